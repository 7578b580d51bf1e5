"""Metrics of predicted labels against gold labels, each with n and a 95% bootstrap interval.

Every metric is a function of the table of counts gold x predicted, so a resample of the examples is
one multinomial draw of that table: the same distribution as drawing examples with replacement,
thousands of times faster. A malformed output (predicted None) has a column of its own and is wrong
under every metric.

Accuracy is split in two, so that a gain that is only a shift of the label prior shows as such:

    prior_accuracy = sum over labels k of P(predicted = k) P(gold = k)
    skill          = accuracy - prior_accuracy

``prior_accuracy`` is what the same mix of answers would score if it were dealt out blindly.
``skill`` is what the answers know about their inputs; it is the numerator of Cohen's kappa (Cohen
1960, doi:10.1177/001316446002000104).

Not for reading outputs (``cisterna.answers``), not for losses or rewards.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Summary = dict[str, float | int]
Metric = Callable[[NDArray[np.float64]], NDArray[np.float64]]

LEVEL = 0.95


def score(
    gold: Sequence[str],
    predicted: Sequence[str | None],
    labels: Sequence[str],
    seed: int = 0,
    resamples: int = 2000,
) -> dict[str, Summary]:
    """Metrics of one model on one split, as ``{metric: {"value", "low", "high", "n"}}``.

    ``gold`` and ``predicted`` hold one label an example (None or NaN where the output was
    malformed); ``labels`` is the answer space. All numbers are finite and ready for JSON, and
    fractions, except mcc in [-1, 1]. As defined by scikit-learn, with malformed as one more
    predicted class:

    - accuracy, mcc (0 where it is undefined)
    - balanced_accuracy, macro_f1: means over the labels that occur in ``gold``, whatever was
      predicted
    - well_formed: share of outputs that parse
    - prior_accuracy, skill: see the module
    - predicted:LABEL, predicted:malformed, gold:LABEL: shares of the examples

    ``low`` and ``high`` are the 2.5% and 97.5% percentiles over ``resamples`` bootstrap resamples
    of the examples (Efron and Tibshirani 1993, section 13.3). They know no events that the sample
    lacks: where all examples agree the interval has no width, and where fewer than about five
    examples of a class decide it is too narrow (simulated: 0.87 instead of 0.95).

    Raises ValueError for lengths that differ, no examples, or a label outside the answer space.
    """
    known = _distinct(labels)
    counts = _count(_codes(gold, known, False), _codes(predicted, known, True), len(known))
    draws = _resample(counts.reshape(-1), seed, resamples).reshape(-1, *counts.shape)
    metrics = _metrics() | _shares(known)
    return {name: _summary(metric(counts[None])[0], metric(draws), counts.sum()) for name, metric in metrics.items()}


def difference(
    gold: Sequence[str],
    predicted_a: Sequence[str | None],
    predicted_b: Sequence[str | None],
    labels: Sequence[str],
    seed: int = 0,
    resamples: int = 2000,
) -> dict[str, Summary]:
    """Metrics of b minus metrics of a, with paired bootstrap intervals.

    ``predicted_a`` and ``predicted_b`` answer the same examples in the same order.

    Same arguments, metrics and errors as ``score``, without the shares of single labels. Both
    models are scored on the same resamples, so what makes an example easy for both cancels. The
    difference of accuracy is exactly the difference of prior_accuracy plus the difference of skill.
    """
    known = _distinct(labels)
    size = len(known)
    golds, first, second = (
        _codes(gold, known, False),
        _codes(predicted_a, known, True),
        _codes(predicted_b, known, True),
    )
    if not len(golds) == len(first) == len(second):
        raise ValueError(f"lengths differ: {len(golds)} gold, {len(first)} and {len(second)} predicted")
    if not len(golds):
        raise ValueError("no examples to compare")
    triples = (golds * (size + 1) + first) * (size + 1) + second
    cells, counts = np.unique(triples, return_counts=True)
    draws = _resample(counts, seed, resamples)

    pairs, last = np.divmod(cells, size + 1)
    rows = pairs // (size + 1)
    columns = {"a": pairs % (size + 1), "b": last}

    def table(side: str, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Cells' weights, shape (R, cells), as tables of shape (R, labels, labels + 1)."""
        member = np.zeros((len(cells), size * (size + 1)))
        member[np.arange(len(cells)), rows * (size + 1) + columns[side]] = 1
        return (weights @ member).reshape(-1, size, size + 1)

    observed = counts[None].astype(float)
    return {
        name: _summary(
            (metric(table("b", observed)) - metric(table("a", observed)))[0],
            metric(table("b", draws)) - metric(table("a", draws)),
            counts.sum(),
        )
        for name, metric in _metrics().items()
    }


def _distinct(labels: Sequence[str]) -> tuple[str, ...]:
    if len(set(labels)) != len(labels) or not labels:
        raise ValueError(f"the answer space must hold distinct labels: {list(labels)}")
    return tuple(labels)


def _codes(values: Sequence[str | None], labels: tuple[str, ...], missing: bool) -> NDArray[np.int64]:
    """Index of each value in ``labels``; ``len(labels)`` for a missing one, if allowed."""
    index: dict[str | None, int] = {label: code for code, label in enumerate(labels)}

    def code(value: str | None) -> int:
        if value is None or value != value:
            if missing:
                return len(labels)
        elif value in index:
            return index[value]
        raise ValueError(f"label {value!r} is not in the answer space {list(labels)}")

    return np.fromiter((code(value) for value in values), dtype=np.int64)


def _count(gold: NDArray[np.int64], predicted: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """Counts gold x predicted, shape (labels, labels + 1); the last column is malformed."""
    if len(gold) != len(predicted):
        raise ValueError(f"lengths differ: {len(gold)} gold, {len(predicted)} predicted")
    if not len(gold):
        raise ValueError("no examples to score")
    cells = np.bincount(gold * (size + 1) + predicted, minlength=size * (size + 1))
    return cells.reshape(size, size + 1).astype(float)


def _resample(counts: NDArray[np.number], seed: int, resamples: int) -> NDArray[np.float64]:
    """Bootstrap resamples of counts, shape (resamples, cells). Empty cells stay empty."""
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")
    total = counts.sum()
    filled = np.flatnonzero(counts)
    draws = np.zeros((resamples, len(counts)))
    draws[:, filled] = np.random.default_rng(seed).multinomial(int(total), counts[filled] / total, size=resamples)
    return draws


def _summary(value: np.float64, draws: NDArray[np.float64], n: np.float64) -> Summary:
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return {"value": float(value), "low": float(low), "high": float(high), "n": int(n)}


def _metrics() -> dict[str, Metric]:
    """Functions from tables of counts, shape (R, labels, labels + 1), to values, shape (R,)."""
    return {
        "accuracy": _accuracy,
        "balanced_accuracy": _balanced_accuracy,
        "macro_f1": _macro_f1,
        "mcc": _mcc,
        "well_formed": lambda tables: 1 - _predicted(tables)[:, -1],
        "prior_accuracy": _prior_accuracy,
        "skill": lambda tables: _accuracy(tables) - _prior_accuracy(tables),
    }


def _shares(labels: tuple[str, ...]) -> dict[str, Metric]:
    def predicted(column: int) -> Metric:
        return lambda tables: _predicted(tables)[:, column]

    def gold(row: int) -> Metric:
        return lambda tables: _gold(tables)[:, row]

    return (
        {f"predicted:{label}": predicted(code) for code, label in enumerate(labels)}
        | {"predicted:malformed": predicted(len(labels))}
        | {f"gold:{label}": gold(code) for code, label in enumerate(labels)}
    )


def _hits(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.diagonal(tables, axis1=1, axis2=2)


def _predicted(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    return tables.sum(1) / tables.sum((1, 2))[:, None]


def _gold(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    return tables.sum(2) / tables.sum((1, 2))[:, None]


def _accuracy(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    return _hits(tables).sum(1) / tables.sum((1, 2))


def _balanced_accuracy(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    gold = tables.sum(2)
    recall = _hits(tables) / np.maximum(gold, 1)
    return recall.sum(1) / (gold > 0).sum(1)


def _macro_f1(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    gold = tables.sum(2)
    f1 = 2 * _hits(tables) / np.maximum(gold + tables.sum(1)[:, :-1], 1)
    return np.where(gold > 0, f1, 0).sum(1) / (gold > 0).sum(1)


def _mcc(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    """Multi-class correlation R_K (Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006)."""
    total = tables.sum((1, 2))
    gold, predicted = tables.sum(2), tables.sum(1)
    covariance = _hits(tables).sum(1) * total - (gold * predicted[:, :-1]).sum(1)
    spread = (total**2 - (gold**2).sum(1)) * (total**2 - (predicted**2).sum(1))
    return np.where(spread > 0, covariance / np.sqrt(np.where(spread > 0, spread, 1)), 0)


def _prior_accuracy(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    return (_gold(tables) * _predicted(tables)[:, :-1]).sum(1)
