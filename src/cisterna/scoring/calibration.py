"""Calibration: how far the probabilities that a model gives to its answers agree with how often they are right.

Not for computing the probabilities: see `cisterna.evaluation.label_scores`.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from cisterna.scoring import bootstrap
from cisterna.scoring.bootstrap import Array, Summary
from cisterna.scoring.metrics import codes

BINS = 15  # of the calibration error, as in Guo et al. 2017
METRICS = ("confidence", "ece", "ece_if_calibrated", "brier_score", "log_loss")


def score(
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
        return {name: {"value": math.nan, "low": math.nan, "high": math.nan, "n": 0} for name in METRICS}
    golds, answers, probabilities, logged = golds[kept], answers[kept], probabilities[kept], logged[kept]
    n = len(golds)
    every = np.arange(n)
    confidence = probabilities[every, answers]
    brier = ((probabilities - np.eye(len(labels))[golds]) ** 2).sum(axis=1)
    bins = _bins(confidence)
    deviations = bins * ((answers == golds) - confidence)[:, None]
    columns = np.column_stack([confidence, brier, -logged[every, golds], deviations])

    def values(means: Array) -> dict[str, Array]:
        """The metrics as functions of the means of the columns, shape (R, columns)."""
        ece = np.abs(means[:, 3:]).sum(axis=1)
        return {"confidence": means[:, 0], "brier_score": means[:, 1], "log_loss": means[:, 2], "ece": ece}

    observed, drawn = values(columns.mean(axis=0)[None]), values(bootstrap.column_means(columns, seed, resamples))
    found = {name: bootstrap.summary(observed[name][0], draws, n) for name, draws in drawn.items()}
    rng = np.random.default_rng(seed)
    chance = np.concatenate(
        [
            np.abs(((rng.random((size, n)) < confidence) - confidence) @ bins / n).sum(axis=1)
            for size in bootstrap.blocks(resamples, max(1, bootstrap.BLOCK // n))
        ]
    )
    found["ece_if_calibrated"] = bootstrap.summary(chance.mean(), chance, n)
    return {name: found[name] for name in METRICS}


def confidences(predicted: Sequence[str | None], logs: ArrayLike, labels: Sequence[str]) -> Array:
    """The probability of each answer among the labels, shape (examples,); NaN where it is not known."""
    answers = codes(predicted, labels, True)
    probabilities = np.column_stack([_normalised(logs, len(labels))[0], np.full(len(answers), np.nan)])
    return probabilities[np.arange(len(answers)), answers]


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
