"""Calibration against scikit-learn and a direct computation, intervals against simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from cisterna.scoring.calibration import BINS, confidences
from cisterna.scoring.calibration import score as calibration

LABELS = ("a", "b", "c")


def _believe(rng: np.random.Generator, n: int, sharpness: float = 1.0) -> tuple[list[str], list[str], np.ndarray]:
    """Gold labels drawn with the true probabilities; the model's are these, sharpened. It answers the likeliest."""
    scores = rng.normal(0, 1.5, (n, len(LABELS)))
    true = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    gold = (rng.random((n, 1)) > true.cumsum(axis=1)).sum(axis=1)
    name = np.array(LABELS)
    return name[gold].tolist(), name[scores.argmax(axis=1)].tolist(), scores * sharpness


def test_scores_of_probabilities_are_those_of_scikit_learn() -> None:
    gold, predicted, logs = _believe(np.random.default_rng(17), 200)
    probabilities = np.exp(logs) / np.exp(logs).sum(axis=1, keepdims=True)
    found = calibration(gold, predicted, logs - 7.0, LABELS)
    expected = sklearn_metrics.brier_score_loss(gold, probabilities, labels=LABELS, scale_by_half=False)
    assert found["brier_score"]["value"] == pytest.approx(expected)
    assert found["log_loss"]["value"] == pytest.approx(sklearn_metrics.log_loss(gold, probabilities, labels=LABELS))
    assert found["confidence"]["value"] == pytest.approx(probabilities.max(axis=1).mean())
    np.testing.assert_allclose(confidences(predicted, logs - 7.0, LABELS), probabilities.max(axis=1))


@given(st.integers(1, 120), st.integers(0, 10**6), st.sampled_from([1, 3, 100]))
def test_calibration_error_is_that_of_a_direct_computation(n: int, seed: int, decimals: int) -> None:
    gold, predicted, logs = _believe(np.random.default_rng(seed), n, 2.0)
    logs = np.round(logs, decimals)  # few digits: many examples with equal confidences
    confidence = confidences(predicted, logs, LABELS)
    right = np.array(gold) == np.array(predicted)
    edges = [np.quantile(confidence, number / BINS) for number in range(1, BINS)]
    error = 0.0
    for number in range(BINS):
        inside = np.ones(n, dtype=bool)
        if number:
            inside &= confidence > edges[number - 1]
        if number < BINS - 1:
            inside &= confidence <= edges[number]
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    found = calibration(gold, predicted, logs, LABELS, resamples=20)
    assert found["ece"]["value"] == pytest.approx(error, abs=1e-9)
    order = np.random.default_rng(0).permutation(n)
    shuffled = calibration(
        [gold[at] for at in order], [predicted[at] for at in order], logs[order], LABELS, resamples=1
    )
    assert shuffled["ece"]["value"] == pytest.approx(error, abs=1e-9)


def test_answers_that_are_equally_confident_are_in_one_bin() -> None:
    gold = ["a"] * 30 + ["b"] * 10
    found = calibration(gold, ["a"] * 40, np.log([[0.6, 0.3, 0.1]] * 40), LABELS)
    assert found["ece"]["value"] == pytest.approx(30 / 40 - 0.6)


def test_ece_of_a_calibrated_model_is_within_what_chance_gives_and_of_a_sharpened_one_above_it() -> None:
    rng = np.random.default_rng(19)
    within = 0
    for trial in range(100):
        found = calibration(*_believe(rng, 300), LABELS, seed=trial, resamples=200)
        chance = found["ece_if_calibrated"]
        within += chance["low"] <= found["ece"]["value"] <= chance["high"]
    assert within >= 85  # 0.95 less three binomial errors
    for _ in range(5):
        found = calibration(*_believe(rng, 300, 3.0), LABELS, resamples=200)
        assert found["ece"]["value"] > found["ece_if_calibrated"]["high"]
        assert found["ece"]["low"] > found["ece_if_calibrated"]["value"]


def test_intervals_of_calibration_cover_the_truth() -> None:
    truth = calibration(*_believe(np.random.default_rng(20), 50_000, 3.0), LABELS, resamples=1)
    rng = np.random.default_rng(21)
    names = ("confidence", "brier_score", "log_loss", "ece")
    covered = dict.fromkeys(names, 0)
    for trial in range(200):
        found = calibration(*_believe(rng, 400, 3.0), LABELS, seed=trial, resamples=300)
        for name in names:
            covered[name] += found[name]["low"] <= truth[name]["value"] <= found[name]["high"]
    for name, count in covered.items():
        assert 0.88 <= count / 200 <= 0.995, (name, count / 200)


def test_examples_without_an_answer_or_probabilities_are_left_out_and_not_counted() -> None:
    gold, predicted, logs = _believe(np.random.default_rng(22), 60)
    whole = calibration(gold[:40], predicted[:40], logs[:40], LABELS)
    unknown = logs.copy()
    unknown[40:50] = np.nan
    said = [*predicted[:50], *[None] * 10]
    assert calibration(gold, said, unknown, LABELS) == whole
    assert whole["ece"]["n"] == 40
    assert np.isnan(confidences(said, unknown, LABELS)).tolist() == [False] * 40 + [True] * 20


def test_calibration_of_no_examples_has_no_numbers() -> None:
    found = calibration(["a"], [None], [[0.0, 0.0, 0.0]], LABELS)
    assert all(summary["n"] == 0 for summary in found.values())
    assert all(math.isnan(summary[key]) for summary in found.values() for key in ("value", "low", "high"))
