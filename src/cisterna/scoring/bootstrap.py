"""The bootstrap: values of metrics with percentile intervals over resamples of the examples.

A resample draws as many examples as there are, with replacement (Efron and Tibshirani 1993, section 13.3). It is kept
as weights: how often each example was drawn. A metric is a function of weighted examples, so models that are computed
under the same weights are compared in pairs.

An interval is from the 2.5% to the 97.5% percentile. It covers no events that the sample lacks: where all examples
agree it has no width, and where fewer than about five examples of a class decide it is too narrow (simulated: 0.87
instead of 0.95).

Not for what the metrics are: see `cisterna.scoring.metrics` and `term_sets`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Summary = dict[str, float | int]  # value, low, high, n
Metrics = Callable[[Array], Mapping[str, Array]]  # weights, shape (R, units) -> metric -> values, shape (R,)

LEVEL = 0.95
RESAMPLES = 2000
BLOCK = 2**22  # weights in memory at a time: resamples x examples


def blocks(resamples: int, at_once: int) -> Iterator[int]:
    """Numbers of at most `at_once` that add up to `resamples`."""
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")
    yield from (min(at_once, resamples - begin) for begin in range(0, resamples, at_once))


def weights(rng: np.random.Generator, examples: int, resamples: int, at_once: int) -> Iterator[NDArray[np.int64]]:
    """How often each example was drawn, in blocks of shape (at most `at_once`, examples).

    A block is drawn when it is taken, so a caller may draw from the same `rng` between two blocks.
    """
    for size in blocks(resamples, at_once):
        yield rng.multinomial(examples, np.full(examples, 1 / examples), size=size)


def quick_weights(rng: np.random.Generator, examples: int, resamples: int, at_once: int) -> Iterator[NDArray[np.int64]]:
    """As `weights`, from other random numbers and ten times faster. Metrics with published numbers keep `weights`."""
    for size in blocks(resamples, at_once):
        drawn = rng.integers(0, examples, (size, examples)) + examples * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * examples).reshape(size, examples)


def counts(observed: NDArray[np.int64], seed: int, resamples: int) -> Array:
    """Resamples of a table of counts, shape (cells,), none of them 0: shape (resamples, cells).

    For metrics that depend on the table alone this is the bootstrap over its examples, thousands of times faster.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")
    total = observed.sum()
    return np.random.default_rng(seed).multinomial(int(total), observed / total, size=resamples).astype(float)


def exact(values: Array) -> Array:
    """Values rounded to multiples of 2**-26 (1.5e-8), so that their sums have no rounding error.

    A sum of other numbers depends on the order of its terms, which differs between processors and numbers of threads.
    Holds while the absolute values of a sum add up to less than 2**27.
    """
    return np.round(values * 2**26) / 2**26


def column_means(columns: Array, seed: int, resamples: int) -> Array:
    """Means of columns, shape (examples, columns), in resamples of the examples: shape (resamples, columns).

    The columns are made `exact`, so the means are the same on every machine.
    """
    n = len(columns)
    columns = exact(columns)
    drawn = weights(np.random.default_rng(seed), n, resamples, max(1, BLOCK // n))
    return np.concatenate([block @ columns / n for block in drawn])


def summary(value: float, draws: Array, n: int) -> Summary:
    """A value, the percentiles of its resamples at `LEVEL`, and the number of examples, ready for JSON."""
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return {"value": float(value), "low": float(low), "high": float(high), "n": int(n)}


def summaries(
    metrics: Metrics, observed: NDArray, drawn: Iterable[Array], n: int | Mapping[str, int]
) -> dict[str, Summary]:
    """Summaries of metrics: at the weights `observed`, shape (units,), with intervals over the blocks `drawn`."""
    values = metrics(observed[None].astype(float))
    resampled = [metrics(block) for block in drawn]
    sizes = dict.fromkeys(values, n) if isinstance(n, int) else n
    draws = {name: np.concatenate([block[name] for block in resampled]) for name in values}
    return {name: summary(value[0], draws[name], sizes[name]) for name, value in values.items()}


def paired(first: Metrics, second: Metrics) -> Metrics:
    """The metrics of `second` minus those of `first`, both under the same weights."""

    def difference(weights: Array) -> dict[str, Array]:
        before, after = first(weights), second(weights)
        return {name: after[name] - before[name] for name in after}

    return difference


def means(columns: Mapping[str, ArrayLike], seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Summary]:
    """Summaries of the mean of each column, which has one number or truth value an example.

    Raises ValueError for no examples, or columns of different lengths.
    """
    rows = [np.asarray(column, dtype=float) for column in columns.values()]
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"lengths differ: {[len(row) for row in rows]}")
    values = np.stack(rows, axis=1)
    if not len(values):
        raise ValueError("no examples to score")
    draws = column_means(values, seed, resamples)
    triples = zip(columns, values.mean(axis=0), draws.T, strict=True)
    return {name: summary(value, column, len(values)) for name, value, column in triples}


def ratio(numerators: Array, denominators: NDArray[np.int64]) -> tuple[float, float]:
    """The interval of a ratio of sums over units: low and high over 1,000 resamples of the units.

    Resamples are drawn as indices and quantiles taken at 0.025 and 0.975 exactly, unlike elsewhere in this module:
    published perplexities have these numbers, to the last bit.
    """
    drawn = np.random.default_rng(0).integers(0, len(numerators), (1000, len(numerators)))
    low, high = np.quantile(numerators[drawn].sum(1) / denominators[drawn].sum(1), [0.025, 0.975])
    return float(low), float(high)
