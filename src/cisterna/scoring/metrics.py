"""Metrics of predicted labels against gold labels, each with n and a 95% bootstrap interval.

Every metric of ``score`` is a function of the table of counts gold x predicted, so a resample of the
examples is one multinomial draw of that table: the same distribution as drawing examples with
replacement, thousands of times faster. A malformed output (predicted None) has a column of its own
and is wrong under every metric.

Accuracy is split in two, so that a gain that is only a shift of the label prior shows as such:

    prior_accuracy = sum over labels k of P(predicted = k) P(gold = k)
    skill          = accuracy - prior_accuracy

``prior_accuracy`` is what the same mix of answers would score if it were dealt out blindly.
``skill`` is what the answers know about their inputs; it is the numerator of Cohen's kappa (Cohen
1960, doi:10.1177/001316446002000104).

Beside it: accuracy at k samples (``at_k``), calibration of the answers' probabilities
(``calibration``) and means of whatever there is one of an example (``means``); all these resample the
examples.

Not for reading outputs (``cisterna.scoring.answers``), not for losses or rewards.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Summary = dict[str, float | int]
Metric = Callable[[NDArray[np.float64]], NDArray[np.float64]]

LEVEL = 0.95
BINS = 15  # of the calibration error, as Guo et al. 2017 count them
FEWEST = 5  # examples of a group that has a row of its own
OTHER = "other"  # the group of the examples of all smaller groups
BLOCK = 2**22  # resampled examples held in memory at a time


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


def means(
    columns: Mapping[str, ArrayLike],
    seed: int = 0,
    resamples: int = 2000,
) -> dict[str, Summary]:
    """Means over the examples of each column, a number or a truth value an example, with intervals as in ``score``.

    Raises ValueError for no examples, or columns of different lengths.
    """
    if not columns:
        return {}
    rows = [np.asarray(column, dtype=float) for column in columns.values()]
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"lengths differ: {[len(row) for row in rows]}")
    values = np.stack(rows, axis=1)
    if not len(values):
        raise ValueError("no examples to score")
    draws = _resampled_means(values, seed, resamples)
    found = zip(columns, values.mean(axis=0), draws.T, strict=True)
    return {name: _summary(value, column, np.float64(len(values))) for name, value, column in found}


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The chance that k of the samples, drawn without replacement, hold a correct one.

    The unbiased estimate, from ``samples`` answers of which ``correct`` are right, of the chance that one of k new
    answers is right: 1 - C(samples - correct, k) / C(samples, k) (Chen et al. 2021, arXiv:2107.03374, equation 1).
    """
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise ValueError(f"{correct} of {samples} samples correct, {k} drawn")
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def majority_at_k(votes: Sequence[str | None], gold: str, k: int) -> float:
    """The chance that the most frequent answer of k of the votes, drawn without replacement, is the gold one.

    Self-consistency (Wang et al. 2023, arXiv:2203.11171), averaged over all C(len(votes), k) choices, so that it is as
    unbiased as ``pass_at_k``. A malformed output (None) has no vote; where t answers are equally frequent each counts
    1/t; where nobody votes nothing is right.
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


def at_k(
    gold: Sequence[str],
    votes: Sequence[Sequence[str | None]],
    seed: int = 0,
    resamples: int = 2000,
) -> dict[str, Summary]:
    """``pass@k`` and ``maj@k`` for k = 1, 2, 4, ... up to the number of samples.

    ``votes`` has a row an example: the answers of its samples, as many for each, None where malformed. The values are
    means over the examples of ``pass_at_k`` and ``majority_at_k``; maj@1 is pass@1 and is left out. Intervals are over
    the examples, as in ``score``. Raises ValueError for no samples or numbers of samples that differ.
    """
    if len(gold) != len(votes):
        raise ValueError(f"lengths differ: {len(gold)} gold, {len(votes)} rows of samples")
    sizes = {len(row) for row in votes}
    if len(sizes) > 1 or 0 in sizes:
        raise ValueError(f"every example needs as many samples as the others, at least 1: {sorted(sizes)}")
    samples = sizes.pop() if sizes else 0
    steps = [2**power for power in range(samples.bit_length())]
    right = [sum(vote == answer for vote in row) for answer, row in zip(gold, votes, strict=True)]
    columns = {f"pass@{k}": [pass_at_k(samples, number, k) for number in right] for k in steps}
    for k in steps[1:]:
        columns[f"maj@{k}"] = [majority_at_k(row, answer, k) for answer, row in zip(gold, votes, strict=True)]
    return means(columns, seed, resamples)


def calibration(
    gold: Sequence[str],
    predicted: Sequence[str | None],
    logs: ArrayLike,
    labels: Sequence[str],
    seed: int = 0,
    resamples: int = 2000,
) -> dict[str, Summary]:
    """How far the probabilities that a model gives to its answers can be believed.

    ``logs``, shape (examples, labels), are log-probabilities of the labels, up to a constant a row; a row of NaN where
    they are not known. Examples without them or without an answer are left out, and n is the number of the others;
    where there is none, value, low and high are NaN.

    - confidence: mean probability of the answer given (``confidences``)
    - ece: expected calibration error, sum over bins of the bin's share x |accuracy - mean confidence| (Guo et al. 2017,
      arXiv:1706.04599, equation 3), over ``BINS`` bins of equal mass (Nixon et al. 2019, arXiv:1904.01685, section 3):
      their edges are quantiles of the confidences, and answers equally confident are never in different bins
    - ece_if_calibrated: the mean ece, and between which values 95% of them lie, if each answer were right with just
      the probability that it has. Small bins deviate by chance, so that ece is above 0 for every model: one within
      this range shows no miscalibration (Broecker and Smith 2007, doi:10.1175/WAF993.1)
    - brier_score: sum over labels of (probability - 1 if gold else 0) squared, in [0, 2] (Brier 1950)
    - log_loss: - log of the gold label's probability, nats

    Intervals are over the examples, with the bins of the whole. That of ece shares its bias by chance: simulated with
    400 examples of three labels it holds a true error of 0.13 in 0.90 of the cases and one of 0.22 in 0.94, but never
    the 0 of a calibrated model, whose ece is in the range of ece_if_calibrated in 0.93.
    """
    known = _distinct(labels)
    golds, answers = _codes(gold, known, False), _codes(predicted, known, True)
    probabilities, logged = _normalised(logs, len(known))
    if not len(golds) == len(answers) == len(logged):
        raise ValueError(f"lengths differ: {len(golds)} gold, {len(answers)} predicted, {len(logged)} probabilities")
    kept = (answers < len(known)) & ~np.isnan(logged).any(axis=1)
    names = ("confidence", "ece", "ece_if_calibrated", "brier_score", "log_loss")
    if not kept.any():
        return {name: {"value": math.nan, "low": math.nan, "high": math.nan, "n": 0} for name in names}
    golds, answers, probabilities, logged = golds[kept], answers[kept], probabilities[kept], logged[kept]
    every = np.arange(len(golds))
    confidence = probabilities[every, answers]
    truth = np.eye(len(known))[golds]
    brier = ((probabilities - truth) ** 2).sum(axis=1)
    bins = _bins(confidence)
    deviations = bins * ((answers == golds) - confidence)[:, None]
    columns = np.column_stack([confidence, brier, -logged[every, golds], deviations])
    n = np.float64(len(golds))

    def summaries(values: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        """Means of the columns, shape (R, columns), as values of confidence, brier_score, log_loss and ece."""
        return [values[:, 0], values[:, 1], values[:, 2], np.abs(values[:, 3:]).sum(axis=1)]

    drawn = summaries(_resampled_means(columns, seed, resamples))
    observed = summaries(columns.mean(axis=0)[None])
    order = ("confidence", "brier_score", "log_loss", "ece")
    found = {name: _summary(value[0], draws, n) for name, value, draws in zip(order, observed, drawn, strict=True)}
    chance = np.concatenate(
        [
            np.abs(((random < confidence) - confidence) @ bins / n).sum(axis=1)
            for random in _blocks(lambda rng, size: rng.random((size, len(golds))), len(golds), seed, resamples)
        ]
    )
    found["ece_if_calibrated"] = _summary(chance.mean(), chance, n)
    return {name: found[name] for name in names}


def confidences(predicted: Sequence[str | None], logs: ArrayLike, labels: Sequence[str]) -> NDArray[np.float64]:
    """The probability that each answer has among the labels, shape (examples,); NaN where one of both is not known."""
    known = _distinct(labels)
    answers = _codes(predicted, known, True)
    probabilities = np.column_stack([_normalised(logs, len(known))[0], np.full(len(answers), np.nan)])
    return probabilities[np.arange(len(answers)), answers]


def pooled(groups: Sequence[str]) -> list[str]:
    """The group of each example, and ``OTHER`` in place of groups of fewer than ``FEWEST`` examples."""
    sizes = Counter(groups)
    return [group if sizes[group] >= FEWEST else OTHER for group in groups]


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


def _resampled_means(columns: NDArray[np.float64], seed: int, resamples: int) -> NDArray[np.float64]:
    """Means of columns, shape (examples, columns), in bootstrap resamples of the examples: (resamples, columns)."""
    n = len(columns)
    blocks = _blocks(lambda rng, size: rng.multinomial(n, np.full(n, 1 / n), size=size), n, seed, resamples)
    return np.concatenate([weights @ columns / n for weights in blocks])


def _blocks(
    draw: Callable[[np.random.Generator, int], NDArray], n: int, seed: int, resamples: int
) -> Iterator[NDArray]:
    """What ``draw`` gives for ``resamples`` rows of ``n`` numbers, so many rows at a time that memory stays small."""
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")
    rng, size = np.random.default_rng(seed), max(1, BLOCK // n)
    for begin in range(0, resamples, size):
        yield draw(rng, min(size, resamples - begin))


def _normalised(logs: ArrayLike, size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probabilities and their logarithms, rows normalised, from log-probabilities up to a constant a row."""
    given = np.asarray(logs, dtype=float).reshape(-1, size)
    with np.errstate(invalid="ignore"):  # rows of NaN stay NaN
        logged = given - np.logaddexp.reduce(given, axis=1, keepdims=True)
    return np.exp(logged), logged


def _bins(confidence: NDArray[np.float64]) -> NDArray[np.float64]:
    """Which of ``BINS`` bins of equal mass each confidence lies in: ones and zeros, shape (examples, BINS)."""
    edges = np.quantile(confidence, np.linspace(0, 1, BINS + 1)[1:-1])
    return np.eye(BINS)[np.searchsorted(edges, confidence)]


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
