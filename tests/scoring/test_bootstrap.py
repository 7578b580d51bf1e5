"""Tests of the bootstrap."""

import numpy as np

from cisterna.scoring import bootstrap


def test_means_are_the_same_in_any_order_of_additions() -> None:
    columns = np.random.default_rng(1).normal(size=(371, 18)) * 10
    means = bootstrap.column_means(columns, seed=0, resamples=50)
    (drawn,) = bootstrap.weights(np.random.default_rng(0), 371, 50, 50)
    whole = np.round(columns * 2**26).astype(np.int64)  # integers have exact sums
    assert np.array_equal(means, drawn @ whole / 2**26 / 371)
    np.testing.assert_allclose(means, drawn @ columns / 371, atol=2**-26)


def test_quick_weights_are_resamples_of_the_examples() -> None:
    blocks = list(bootstrap.quick_weights(np.random.default_rng(2), 7, 5000, 1500))
    assert [len(block) for block in blocks] == [1500, 1500, 1500, 500]
    drawn = np.concatenate(blocks)
    assert (drawn.sum(axis=1) == 7).all()
    np.testing.assert_allclose(drawn.mean(axis=0), 1, atol=0.06)
    np.testing.assert_allclose(drawn.var(axis=0), 6 / 7, atol=0.1)  # multinomial: n p (1 - p)
