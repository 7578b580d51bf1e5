"""Metrics of predicted labels against gold labels, each with n and a 95% bootstrap interval.

Three kinds: of one answer an example (`score`, `difference`), of several sampled answers (`score_samples`), and of the
probabilities of the labels (`score_probabilities`).

Every metric of one answer is a function of the table of counts gold x predicted. A malformed output (predicted None)
has a column of its own and is wrong under every metric. Accuracy is the sum of two parts, so that a gain that is only a
shift of the label prior shows as such:

    prior_accuracy = sum over labels k of P(predicted = k) P(gold = k)
    skill          = accuracy - prior_accuracy

`prior_accuracy` is the expected accuracy of the same answers in random order. `skill` is what is left: what the answers
know about their inputs, and the numerator of Cohen's kappa (Cohen 1960, doi:10.1177/001316446002000104).

Not for reading outputs (`cisterna.scoring.answers`), not for generating samples or computing probabilities
(`cisterna.evaluation.generate`), not for losses or rewards.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cisterna.constants import MALFORMED
from cisterna.scoring import bootstrap
from cisterna.scoring.bootstrap import Array, Summary

Codes = NDArray[np.int64]
BINS = 15  # of the calibration error, as in Guo et al. 2017
CALIBRATION = ("confidence", "ece", "ece_if_calibrated", "brier_score", "log_loss")


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
    golds, answers = codes(gold, labels, False), [codes(column, labels, True) for column in predicted]
    if any(len(column) != len(golds) for column in answers):
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
    names = [f"predicted:{label}" for label in (*labels, MALFORMED)]
    return dict(zip(names, predicted.T, strict=True)) | {
        f"gold:{label}": gold[:, row] for row, label in enumerate(labels)
    }


# --- Accuracy at k samples ---


def score_samples(
    gold: Sequence[str], samples: Sequence[Sequence[str | None]], seed: int = 0, resamples: int = bootstrap.RESAMPLES
) -> dict[str, Summary]:
    """Summaries of `pass@k` and `maj@k` for k = 1, 2, 4, ... up to the number of samples.

    `samples` has a row an example: its sampled answers, as many for each example, None where malformed. The values are
    means over the examples of `pass_at_k` and `majority_at_k`; maj@1 is pass@1 and is left out. Raises ValueError for
    no examples, no samples or numbers of samples that differ.
    """
    if len(gold) != len(samples):
        raise ValueError(f"lengths differ: {len(gold)} gold, {len(samples)} rows of samples")
    sizes = {len(row) for row in samples}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"every example needs the same number of samples, at least 1: {sorted(sizes)}")
    size = sizes.pop()
    steps = [2**power for power in range(size.bit_length())]
    right = [sum(vote == answer for vote in row) for answer, row in zip(gold, samples, strict=True)]
    columns = {f"pass@{k}": [pass_at_k(size, number, k) for number in right] for k in steps}
    for k in steps[1:]:
        columns[f"maj@{k}"] = [majority_at_k(row, answer, k) for answer, row in zip(gold, samples, strict=True)]
    return bootstrap.means(columns, seed, resamples)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The chance that k of the samples, drawn without replacement, include a correct one.

    The unbiased estimate, from `samples` answers of which `correct` are right, of the chance that one of k new answers
    is right: 1 - C(samples - correct, k) / C(samples, k) (Chen et al. 2021, arXiv:2107.03374, equation 1).
    """
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise ValueError(f"{correct} of {samples} samples correct, {k} drawn")
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def majority_at_k(votes: Sequence[str | None], gold: str, k: int) -> float:
    """The chance that the most frequent answer of k of the votes, drawn without replacement, is the gold one.

    Self-consistency (Wang et al. 2023, arXiv:2203.11171), averaged over all C(len(votes), k) choices, so that it is as
    unbiased as `pass_at_k`. A malformed output (None) has no vote; t answers that are equally frequent count 1/t each;
    without any vote nothing is right.
    """
    if not 1 <= k <= len(votes):
        raise ValueError(f"{len(votes)} votes, {k} drawn")
    counts = Counter(vote for vote in votes if vote is not None)
    for_gold = counts.pop(gold, 0)
    silent = len(votes) - for_gold - counts.total()
    right = 0.0
    for wins in range(1, min(for_gold, k) + 1):
        # ways[others drawn, answers that have as many votes as the gold one], no answer having more
        ways = Counter({(drawn, 0): math.comb(silent, drawn) for drawn in range(silent + 1)})
        for count in counts.values():
            further: Counter[tuple[int, int]] = Counter()
            for (drawn, ties), number in ways.items():
                for taken in range(min(count, wins, k - wins - drawn) + 1):
                    further[drawn + taken, ties + (taken == wins)] += number * math.comb(count, taken)
            ways = further
        mine = math.comb(for_gold, wins)
        right += sum(mine * n / (1 + ties) for (drawn, ties), n in ways.items() if drawn == k - wins)
    return right / math.comb(len(votes), k)


# --- Calibration ---


def score_probabilities(
    gold: Sequence[str],
    predicted: Sequence[str | None],
    logs: ArrayLike,
    labels: Sequence[str],
    seed: int = 0,
    resamples: int = bootstrap.RESAMPLES,
) -> dict[str, Summary]:
    """Summaries of how well the probabilities of answers are calibrated.

    `logs`, shape (examples, labels), are log-probabilities of the labels, up to a constant a row; a row of NaN where
    they are not known. Examples without them or without an answer are left out, and n is the number of the others;
    where there are none, value, low and high are NaN.

    - confidence: mean probability of the answer (`confidences`)
    - ece: expected calibration error, sum over bins of the bin's share x |accuracy - mean confidence| (Guo et al. 2017,
      arXiv:1706.04599, equation 3), over `BINS` bins of equal mass (Nixon et al. 2019, arXiv:1904.01685, section 3):
      their edges are quantiles of the confidences, and equal confidences are always in one bin
    - ece_if_calibrated: mean and 95% range of the ece that chance gives a calibrated model: one whose every answer is
      right with exactly the probability that it has. Small bins deviate by chance, so ece is above 0 for every model;
      one within this range shows no miscalibration (Broecker and Smith 2007, doi:10.1175/WAF993.1)
    - brier_score: sum over labels of (probability - 1 if gold else 0) squared, in [0, 2] (Brier 1950)
    - log_loss: - log of the gold label's probability, nats

    Intervals are over the examples, with the bins of the whole. That of ece has the same bias by chance: simulated with
    400 examples of three labels it covers a true error of 0.13 in 0.90 of the cases and one of 0.22 in 0.94, but never
    the 0 of a calibrated model, whose ece is in the range of ece_if_calibrated in 0.93.
    """
    golds, answers = codes(gold, labels, False), codes(predicted, labels, True)
    probabilities, logged = _normalised(logs, len(labels))
    if not len(golds) == len(answers) == len(logged):
        raise ValueError(f"lengths differ: {len(golds)} gold, {len(answers)} predicted, {len(logged)} probabilities")
    kept = (answers < len(labels)) & ~np.isnan(logged).any(axis=1)
    if not kept.any():
        return {name: {"value": math.nan, "low": math.nan, "high": math.nan, "n": 0} for name in CALIBRATION}
    golds, answers, probabilities, logged = golds[kept], answers[kept], probabilities[kept], logged[kept]
    n = len(golds)
    confidence = probabilities[np.arange(n), answers]
    brier = ((probabilities - np.eye(len(labels))[golds]) ** 2).sum(axis=1)
    bins = _bins(confidence)
    deviations = bins * ((answers == golds) - confidence)[:, None]
    columns = np.column_stack([confidence, brier, -logged[np.arange(n), golds], deviations])

    def values(means: Array) -> dict[str, Array]:
        """The metrics as functions of the means of the columns, shape (R, columns)."""
        ece = np.abs(means[:, 3:]).sum(axis=1)
        return {"confidence": means[:, 0], "brier_score": means[:, 1], "log_loss": means[:, 2], "ece": ece}

    observed, drawn = values(columns.mean(axis=0)[None]), values(bootstrap.column_means(columns, seed, resamples))
    summaries = {name: bootstrap.summary(observed[name][0], draws, n) for name, draws in drawn.items()}
    rng = np.random.default_rng(seed)
    confidence = bootstrap.exact(confidence)
    by_chance = []
    for size in bootstrap.blocks(resamples, max(1, bootstrap.BLOCK // n)):
        right = rng.random((size, n)) < confidence
        by_chance.append(np.abs((right - confidence) @ bins / n).sum(axis=1))
    eces = np.concatenate(by_chance)
    summaries["ece_if_calibrated"] = bootstrap.summary(eces.mean(), eces, n)
    return {name: summaries[name] for name in CALIBRATION}


def confidences(predicted: Sequence[str | None], logs: ArrayLike, labels: Sequence[str]) -> Array:
    """The probability of each answer among the labels, shape (examples,); NaN where it is not known."""
    answers = codes(predicted, labels, True)
    probabilities = np.column_stack([_normalised(logs, len(labels))[0], np.full(len(answers), np.nan)])
    return probabilities[np.arange(len(answers)), answers]


def probabilities(logs: ArrayLike, size: int) -> Array:
    """Probabilities of `size` labels from log-probabilities up to a constant a row, NaN where those are NaN."""
    return _normalised(logs, size)[0]


def _normalised(logs: ArrayLike, size: int) -> tuple[Array, Array]:
    """Probabilities and their logarithms, rows normalised, from log-probabilities up to a constant a row."""
    rows = np.asarray(logs, dtype=float).reshape(-1, size)
    with np.errstate(invalid="ignore"):  # rows of NaN stay NaN
        logged = rows - np.logaddexp.reduce(rows, axis=1, keepdims=True)
    return np.exp(logged), logged


def _bins(confidence: Array) -> Array:
    """Which of `BINS` bins of equal mass each confidence is in: ones and zeros, shape (examples, BINS)."""
    edges = np.quantile(confidence, np.linspace(0, 1, BINS + 1)[1:-1])
    return np.eye(BINS)[np.searchsorted(edges, confidence)]
