"""Metrics of predicted labels against gold labels, each with n and a 95% bootstrap interval.

Every metric is a function of the table of counts gold x predicted. A malformed output (predicted None) has a column of
its own and is wrong under every metric.

Accuracy is the sum of two parts, so that a gain that is only a shift of the label prior shows as such:

    prior_accuracy = sum over labels k of P(predicted = k) P(gold = k)
    skill          = accuracy - prior_accuracy

`prior_accuracy` is the expected accuracy of the same answers in random order. `skill` is what is left: what the answers
know about their inputs, and the numerator of Cohen's kappa (Cohen 1960, doi:10.1177/001316446002000104).

Not for reading outputs (`cisterna.scoring.answers`), not for losses or rewards.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cisterna.scoring import bootstrap
from cisterna.scoring.bootstrap import Array, Summary

Codes = NDArray[np.int64]


def score(
    gold: Sequence[str],
    predicted: Sequence[str | None],
    labels: Sequence[str],
    seed: int = 0,
    resamples: int = bootstrap.RESAMPLES,
) -> dict[str, Summary]:
    """Metrics of one model on one split: metric -> value, low, high, n.

    `gold` and `predicted` have one label an example (None or NaN where the output was malformed); `labels` is the
    answer space. All numbers are finite and ready for JSON, and fractions, except mcc in [-1, 1]. As defined by
    scikit-learn, with malformed as one more predicted class:

    - accuracy, mcc (0 where it is undefined)
    - balanced_accuracy, macro_f1: means over the labels that occur in `gold`, whatever was predicted
    - well_formed: share of outputs that parse
    - prior_accuracy, skill: see the module
    - predicted:LABEL, predicted:malformed, gold:LABEL: shares of the examples

    Intervals are those of `cisterna.scoring.bootstrap`, over `resamples` resamples of the examples. Raises ValueError
    for lengths that differ, no examples, or a label outside the answer space.
    """
    (tables,), counts = _tabulate(gold, [predicted], labels)

    def metrics(weights: Array) -> dict[str, Array]:
        table = tables(weights)
        return _values(table) | _shares(table, labels)

    return bootstrap.summaries(metrics, counts, [bootstrap.counts(counts, seed, resamples)], len(gold))


def difference(
    gold: Sequence[str],
    predicted_a: Sequence[str | None],
    predicted_b: Sequence[str | None],
    labels: Sequence[str],
    seed: int = 0,
    resamples: int = bootstrap.RESAMPLES,
) -> dict[str, Summary]:
    """Metrics of b minus metrics of a, with paired bootstrap intervals.

    `predicted_a` and `predicted_b` answer the same examples in the same order. Same arguments, metrics and errors as
    `score`, without the shares of single labels. Both models are scored on the same resamples, so what makes an example
    easy for both cancels. The difference of accuracy is the difference of prior_accuracy plus that of skill.
    """
    (before, after), counts = _tabulate(gold, [predicted_a, predicted_b], labels)
    metrics = bootstrap.paired(lambda weights: _values(before(weights)), lambda weights: _values(after(weights)))
    return bootstrap.summaries(metrics, counts, [bootstrap.counts(counts, seed, resamples)], len(gold))


def codes(values: Sequence[str | None], labels: Sequence[str], missing: bool) -> Codes:
    """Index of each value in `labels`; len(labels) for a missing one (None or NaN), if `missing` allows it.

    Raises ValueError for any other value, and for labels that are none or not distinct.
    """
    if len(set(labels)) != len(labels) or not labels:
        raise ValueError(f"the answer space must have distinct labels: {list(labels)}")
    index: dict[str | None, int] = {label: code for code, label in enumerate(labels)}

    def code(value: str | None) -> int:
        if value is None or value != value:
            if missing:
                return len(labels)
        elif value in index:
            return index[value]
        raise ValueError(f"label {value!r} is not in the answer space {list(labels)}")

    return np.fromiter((code(value) for value in values), dtype=np.int64)


def recall(hits: NDArray, gold: NDArray) -> NDArray:
    """Recall of a label, from its counts of right answers and of examples; 0 where it has none."""
    return hits / np.maximum(gold, 1)


def chance(gold: NDArray, predicted: NDArray, total: NDArray) -> NDArray:
    """The chance that a label is both answer and gold label if the answers are shuffled: its part of prior_accuracy."""
    return (gold / total) * (predicted / total)


def _tabulate(
    gold: Sequence[str], predicted: Sequence[Sequence[str | None]], labels: Sequence[str]
) -> tuple[list[Callable[[Array], Array]], Codes]:
    """Functions of weights that make each model's table of counts, and the weights that are observed.

    The weighted units are cells: the combinations of a gold label and an answer of each model that occur. Weights,
    shape (R, cells), become tables of shape (R, labels, labels + 1), whose last column is malformed.
    """
    golds, answers = codes(gold, labels, False), [codes(given, labels, True) for given in predicted]
    if any(len(given) != len(golds) for given in answers):
        raise ValueError(f"lengths differ: {len(golds)} gold, {' and '.join(str(len(a)) for a in answers)} predicted")
    if not len(golds):
        raise ValueError("no examples to score")
    size = len(labels)
    cells, counts = np.unique(np.stack([golds, *answers]), axis=1, return_counts=True)

    def tables_of(answered: Codes) -> Callable[[Array], Array]:
        member = np.zeros((len(counts), size * (size + 1)))
        member[np.arange(len(counts)), cells[0] * (size + 1) + answered] = 1
        return lambda weights: (weights @ member).reshape(-1, size, size + 1)

    return [tables_of(row) for row in cells[1:]], counts


def _values(tables: Array) -> dict[str, Array]:
    """The metrics of tables of counts, shape (R, labels, labels + 1): each of shape (R,)."""
    hits = np.diagonal(tables, axis1=1, axis2=2)
    gold, predicted, total = tables.sum(2), tables.sum(1), tables.sum((1, 2))
    answered = predicted[:, :-1]
    present = gold > 0
    f1 = 2 * hits / np.maximum(gold + answered, 1)
    accuracy = hits.sum(1) / total
    prior = chance(gold, answered, total[:, None]).sum(1)
    return {
        "accuracy": accuracy,
        "balanced_accuracy": recall(hits, gold).sum(1) / present.sum(1),
        "macro_f1": np.where(present, f1, 0).sum(1) / present.sum(1),
        "mcc": _mcc(hits, gold, predicted, total),
        "well_formed": 1 - predicted[:, -1] / total,
        "prior_accuracy": prior,
        "skill": accuracy - prior,
    }


def _mcc(hits: Array, gold: Array, predicted: Array, total: Array) -> Array:
    """Multi-class correlation R_K (Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006)."""
    covariance = hits.sum(1) * total - (gold * predicted[:, :-1]).sum(1)
    spread = (total**2 - (gold**2).sum(1)) * (total**2 - (predicted**2).sum(1))
    return np.where(spread > 0, covariance / np.sqrt(np.where(spread > 0, spread, 1)), 0)


def _shares(tables: Array, labels: Sequence[str]) -> dict[str, Array]:
    """The share of the examples that each label is predicted for, and is the gold label of."""
    total = tables.sum((1, 2))[:, None]
    predicted, gold = tables.sum(1) / total, tables.sum(2) / total
    names = [f"predicted:{label}" for label in (*labels, "malformed")]
    return dict(zip(names, predicted.T, strict=True)) | {
        f"gold:{label}": gold[:, row] for row, label in enumerate(labels)
    }
