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
