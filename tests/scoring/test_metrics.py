"""Metrics against scikit-learn and direct computations, intervals against simulation."""

import itertools
import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from cisterna.scoring.bootstrap import means
from cisterna.scoring.metrics import (
    BINS,
    confidences,
    difference,
    majority_at_k,
    pass_at_k,
    score,
    score_probabilities,
    score_samples,
)

LABELS = ("a", "b", "c")
MALFORMED = "~malformed"
PAIRS = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, None])), min_size=1, max_size=40)


@given(PAIRS)
def test_values_are_those_of_scikit_learn(pairs: list[tuple[str, str | None]]) -> None:
    gold, predicted = [list(column) for column in zip(*pairs, strict=True)]
    named = [MALFORMED if label is None else label for label in predicted]
    result = score(gold, predicted, LABELS, resamples=10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a single class, or a class that is only predicted
        expected = {
            "accuracy": sklearn_metrics.accuracy_score(gold, named),
            "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(gold, named),
            "macro_f1": sklearn_metrics.f1_score(
                gold, named, labels=sorted(set(gold)), average="macro", zero_division=0
            ),
            "mcc": sklearn_metrics.matthews_corrcoef(gold, named),
        }
    for name, value in expected.items():
        assert result[name]["value"] == pytest.approx(value, abs=1e-12), name


@given(PAIRS)
def test_every_number_is_finite_ordered_and_json(pairs: list[tuple[str, str | None]]) -> None:
    gold, predicted = [list(column) for column in zip(*pairs, strict=True)]
    result = score(gold, predicted, LABELS, resamples=50)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    for summary in result.values():
        assert summary["n"] == len(pairs)
        assert summary["low"] <= summary["high"]
    for prefix in ("gold:", "predicted:"):
        shares = [summary["value"] for name, summary in result.items() if name.startswith(prefix)]
        assert sum(shares) == pytest.approx(1)
    accuracy = result["prior_accuracy"]["value"] + result["skill"]["value"]
    assert accuracy == pytest.approx(result["accuracy"]["value"])


def test_all_malformed_scores_zero_everywhere() -> None:
    result = score(["a", "b", "c", "a"], [None] * 4, LABELS)
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "mcc", "well_formed", "skill"):
        assert result[name] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 4}
    assert result["predicted:malformed"]["value"] == 1


def test_missing_values_of_a_table_count_as_malformed() -> None:
    assert score(["a", "b"], ["a", math.nan], LABELS) == score(["a", "b"], ["a", None], LABELS)


@pytest.mark.parametrize(
    ("gold", "predicted", "labels", "message"),
    [
        ([], [], LABELS, "no examples"),
        (["a"], ["a", "b"], LABELS, "lengths differ"),
        (["z"], ["a"], LABELS, "'z' is not in the answer space"),
        (["a"], ["z"], LABELS, "'z' is not in the answer space"),
        ([None], ["a"], LABELS, "None is not in the answer space"),
        (["a"], ["a"], ("a", "a"), "distinct"),
        (["a"], ["a"], (), "distinct"),
    ],
)
def test_tables_that_cannot_be_scored_are_refused(gold: list, predicted: list, labels: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(gold, predicted, labels)
    with pytest.raises(ValueError, match=message):
        difference(gold, predicted, predicted, labels)


def test_one_seed_gives_one_result_and_another_seed_another() -> None:
    gold, predicted = _draw(np.random.default_rng(0), 100)
    assert score(gold, predicted, LABELS, seed=1) == score(gold, predicted, LABELS, seed=1)
    assert score(gold, predicted, LABELS, seed=1) != score(gold, predicted, LABELS, seed=2)


def test_intervals_are_those_of_resampling_the_examples_one_by_one() -> None:
    rng = np.random.default_rng(3)
    gold, predicted = _draw(rng, 150)
    rows = rng.integers(0, 150, (2000, 150))
    golds = np.array(gold)[rows]
    hits = (np.array(gold) == np.array(predicted))[rows]
    recalls = [(hits & (golds == label)).sum(1) / (golds == label).sum(1) for label in LABELS]
    low, high = np.percentile(np.mean(recalls, axis=0), [2.5, 97.5])
    result = score(gold, predicted, LABELS, resamples=20_000)["balanced_accuracy"]
    assert result["low"] == pytest.approx(low, abs=0.01)
    assert result["high"] == pytest.approx(high, abs=0.01)


def assert_covered(results: list[dict], truth: dict, least: float, most: float) -> None:
    """The share of the trials whose interval has the true value in it is from `least` to `most`, for each metric."""
    for name, value in truth.items():
        share = np.mean([result[name]["low"] <= value <= result[name]["high"] for result in results])
        assert least <= share <= most, (name, share)


def test_intervals_cover_the_truth_at_the_stated_rate() -> None:
    truth = score(*_draw(np.random.default_rng(4), 50_000), LABELS, resamples=1)
    rng = np.random.default_rng(5)
    names = ("accuracy", "balanced_accuracy", "macro_f1", "mcc", "prior_accuracy", "skill")
    results = [score(*_draw(rng, 300), LABELS, seed=trial, resamples=400) for trial in range(400)]
    # 0.95 less the percentile method's small loss at n = 300; 0.035 is three binomial errors of 400 trials
    assert_covered(results, {name: truth[name]["value"] for name in names}, 0.91, 0.985)


def test_paired_differences_cover_the_truth_and_are_tighter_than_unpaired_ones() -> None:
    def draw(rng: np.random.Generator, n: int) -> tuple[list, list, list]:
        gold, first = _draw(rng, n)
        changed = rng.random(n) < 0.3
        return gold, first, [g if c else p for g, p, c in zip(gold, first, changed, strict=True)]

    truth = difference(*draw(np.random.default_rng(6), 50_000), LABELS, resamples=1)
    rng = np.random.default_rng(7)
    names = ("accuracy", "balanced_accuracy", "mcc", "prior_accuracy", "skill")
    results = []
    for trial in range(300):
        gold, first, second = draw(rng, 300)
        results.append(difference(gold, first, second, LABELS, seed=trial, resamples=400))
    assert_covered(results, {name: truth[name]["value"] for name in names}, 0.90, 0.99)
    paired = results[-1]["accuracy"]["high"] - results[-1]["accuracy"]["low"]
    alone = score(gold, second, LABELS)["accuracy"]
    assert paired < alone["high"] - alone["low"]


@given(st.lists(st.tuples(*[st.sampled_from(LABELS)], *[st.sampled_from([*LABELS, None])] * 2), min_size=1))
def test_a_difference_is_the_difference_of_the_scores(triples: list[tuple]) -> None:
    gold, first, second = [list(column) for column in zip(*triples, strict=True)]
    result = difference(gold, first, second, LABELS, resamples=20)
    before = score(gold, first, LABELS, resamples=1)
    after = score(gold, second, LABELS, resamples=1)
    for name, summary in result.items():
        expected = after[name]["value"] - before[name]["value"]
        assert summary["value"] == pytest.approx(expected, abs=1e-12), name
    parts = result["prior_accuracy"]["value"] + result["skill"]["value"]
    assert result["accuracy"]["value"] == pytest.approx(parts, abs=1e-12)


def test_no_change_is_a_difference_of_exactly_zero() -> None:
    gold, predicted = _draw(np.random.default_rng(8), 100)
    for summary in difference(gold, predicted, predicted, LABELS).values():
        assert (summary["value"], summary["low"], summary["high"]) == (0, 0, 0)


def test_a_pure_prior_shift_gains_accuracy_and_no_skill() -> None:
    rng = np.random.default_rng(9)
    gold = rng.choice(["a", "b"], 4000, p=[0.75, 0.25])
    blind = rng.choice(["a", "b"], 4000, p=[0.5, 0.5])
    shifted = rng.choice(["a", "b"], 4000, p=[0.95, 0.05])
    gain = difference(gold, blind, shifted, ("a", "b"))
    assert gain["accuracy"]["low"] > 0.15
    assert gain["prior_accuracy"]["value"] == pytest.approx(0.225, abs=0.02)
    assert gain["skill"]["value"] == pytest.approx(0, abs=0.02)
    assert gain["skill"]["low"] < 0 < gain["skill"]["high"]
    assert gain["mcc"]["low"] < 0 < gain["mcc"]["high"]


def test_a_gain_of_knowledge_gains_skill_and_no_prior_accuracy() -> None:
    rng = np.random.default_rng(10)
    gold = rng.choice(["a", "b"], 4000)
    blind = rng.choice(["a", "b"], 4000)
    knowing = np.where(rng.random(4000) < 0.4, gold, blind)
    gain = difference(gold, blind, knowing, ("a", "b"))
    assert gain["skill"]["value"] == pytest.approx(0.2, abs=0.03)
    assert gain["prior_accuracy"]["value"] == pytest.approx(0, abs=0.005)
    assert gain["mcc"]["low"] > 0.3


def _draw(rng: np.random.Generator, n: int) -> tuple[list[str], list[str | None]]:
    """Unbalanced gold labels; predictions know half of them, and one in ten is malformed."""
    gold = rng.choice(LABELS, n, p=[0.6, 0.3, 0.1])
    blind = rng.choice(LABELS, n, p=[0.3, 0.3, 0.4])
    guess = np.where(rng.random(n) < 0.5, gold, blind)
    broken = rng.random(n) < 0.1
    named = [None if bad else str(label) for label, bad in zip(guess, broken, strict=True)]
    return gold.tolist(), named


# --- Means and their intervals ---


def test_mean_of_hits_is_accuracy_with_the_interval_of_accuracy() -> None:
    gold, predicted = np.random.default_rng(12).choice(["a", "b", "c"], (2, 300), p=[0.6, 0.3, 0.1]).tolist()
    hits = [mine == theirs for mine, theirs in zip(gold, predicted, strict=True)]
    found = means({"hits": hits}, resamples=20_000)["hits"]
    expected = score(gold, predicted, ("a", "b", "c"), resamples=20_000)["accuracy"]
    assert (found["value"], found["n"]) == (pytest.approx(expected["value"]), 300)
    assert found["low"] == pytest.approx(expected["low"], abs=0.005)
    assert found["high"] == pytest.approx(expected["high"], abs=0.005)


def test_means_of_no_examples_and_unequal_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="no examples"):
        means({"a": []})
    with pytest.raises(ValueError, match="lengths differ"):
        means({"a": [1.0], "b": [1.0, 2.0]})


def test_resamples_that_do_not_fit_in_memory_together_are_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(13).random(50)
    whole = means({"a": values}, resamples=1000)["a"]
    monkeypatch.setattr("cisterna.scoring.bootstrap.BLOCK", 50 * 7)
    parts = means({"a": values}, resamples=1000)["a"]
    assert parts == whole  # the same draws, seven resamples at a time


# --- Accuracy at k samples ---

VOTES = st.lists(st.sampled_from(["a", "b", "c", "d", None]), min_size=1, max_size=8)


@given(st.integers(1, 9), st.data())
def test_pass_at_k_is_the_share_of_choices_that_hold_a_right_sample(samples: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, samples))
    k = data.draw(st.integers(1, samples))
    choices = list(itertools.combinations([True] * correct + [False] * (samples - correct), k))
    assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, choices)) / len(choices))


@settings(max_examples=300)
@given(VOTES, st.data())
def test_majority_at_k_is_the_mean_over_all_choices_of_k_votes(votes: list, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(votes)))

    def right(chosen: tuple) -> float:
        counts = {label: chosen.count(label) for label in set(chosen) - {None}}
        best = [label for label, count in counts.items() if count == max(counts.values())]
        return ("a" in best) / max(len(best), 1)

    choices = [right(chosen) for chosen in itertools.combinations(votes, k)]
    assert majority_at_k(votes, "a", k) == pytest.approx(sum(choices) / len(choices))


@pytest.mark.parametrize(("samples", "correct", "k"), [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_numbers_of_samples_that_cannot_be_are_refused(samples: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="drawn"):
        pass_at_k(samples, correct, k)


def test_at_k_has_the_powers_of_two_and_the_mean_of_the_estimates() -> None:
    gold = ["a", "b"]
    votes = [["a", "a", "b", None, "a"], ["a", "b", None, None, "a"]]
    found = score_samples(gold, votes)
    assert list(found) == ["pass@1", "pass@2", "pass@4", "maj@2", "maj@4"]
    assert found["pass@1"]["value"] == pytest.approx((3 / 5 + 1 / 5) / 2)
    assert found["pass@4"]["value"] == pytest.approx((1 + pass_at_k(5, 1, 4)) / 2)
    assert found["maj@4"]["value"] == pytest.approx(
        (majority_at_k(votes[0], "a", 4) + majority_at_k(votes[1], "b", 4)) / 2
    )
    assert {summary["n"] for summary in found.values()} == {2}
    assert list(score_samples(["a"], [["a"]])) == ["pass@1"]


def test_pass_at_one_is_the_share_of_right_samples_and_more_samples_never_lower_it() -> None:
    rng = np.random.default_rng(14)
    gold = rng.choice(LABELS, 50).tolist()
    votes = [rng.choice([*LABELS, None], 8).tolist() for _ in gold]
    found = score_samples(gold, votes)
    right = np.mean([vote == label for label, row in zip(gold, votes, strict=True) for vote in row])
    assert found["pass@1"]["value"] == pytest.approx(right)
    values = [found[f"pass@{k}"]["value"] for k in (1, 2, 4, 8)]
    assert values == sorted(values)
    assert found["pass@8"]["value"] == np.mean([label in row for label, row in zip(gold, votes, strict=True)])


@pytest.mark.parametrize("votes", [[["a"], ["a", "b"]], [[], []]])
def test_rows_of_unequal_or_no_samples_are_refused(votes: list) -> None:
    with pytest.raises(ValueError, match="samples"):
        score_samples(["a", "b"], votes)


def test_intervals_of_accuracy_at_k_cover_the_truth() -> None:
    """Each example has a rate of its own at which samples are right; the truth is the mean over such rates."""
    rates = np.random.default_rng(15).beta(0.5, 0.8, 200_000)
    truth = {f"{k}": np.mean(1 - (1 - rates) ** k) for k in (1, 4)}
    rng = np.random.default_rng(16)
    results = []
    for trial in range(300):
        right = rng.random((150, 8)) < rng.beta(0.5, 0.8, (150, 1))
        columns = {k: [pass_at_k(8, number, int(k)) for number in right.sum(axis=1).tolist()] for k in truth}
        results.append(means(columns, seed=trial, resamples=300))
    assert_covered(results, truth, 0.91, 0.985)


# --- Calibration ---


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
    found = score_probabilities(gold, predicted, logs - 7.0, LABELS)
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
    found = score_probabilities(gold, predicted, logs, LABELS, resamples=20)
    assert found["ece"]["value"] == pytest.approx(error, abs=1e-9)
    order = np.random.default_rng(0).permutation(n)
    shuffled = score_probabilities(
        [gold[at] for at in order], [predicted[at] for at in order], logs[order], LABELS, resamples=1
    )
    assert shuffled["ece"]["value"] == pytest.approx(error, abs=1e-9)


def test_answers_that_are_equally_confident_are_in_one_bin() -> None:
    gold = ["a"] * 30 + ["b"] * 10
    found = score_probabilities(gold, ["a"] * 40, np.log([[0.6, 0.3, 0.1]] * 40), LABELS)
    assert found["ece"]["value"] == pytest.approx(30 / 40 - 0.6)


def test_ece_of_a_calibrated_model_is_within_what_chance_gives_and_of_a_sharpened_one_above_it() -> None:
    rng = np.random.default_rng(19)
    within = 0
    for trial in range(100):
        found = score_probabilities(*_believe(rng, 300), LABELS, seed=trial, resamples=200)
        chance = found["ece_if_calibrated"]
        within += chance["low"] <= found["ece"]["value"] <= chance["high"]
    assert within >= 85  # 0.95 less three binomial errors
    for _ in range(5):
        found = score_probabilities(*_believe(rng, 300, 3.0), LABELS, resamples=200)
        assert found["ece"]["value"] > found["ece_if_calibrated"]["high"]
        assert found["ece"]["low"] > found["ece_if_calibrated"]["value"]


def test_intervals_of_calibration_cover_the_truth() -> None:
    truth = score_probabilities(*_believe(np.random.default_rng(20), 50_000, 3.0), LABELS, resamples=1)
    rng = np.random.default_rng(21)
    names = ("confidence", "brier_score", "log_loss", "ece")
    results = [score_probabilities(*_believe(rng, 400, 3.0), LABELS, seed=n, resamples=300) for n in range(200)]
    assert_covered(results, {name: truth[name]["value"] for name in names}, 0.88, 0.995)


def test_examples_without_an_answer_or_probabilities_are_left_out_and_not_counted() -> None:
    gold, predicted, logs = _believe(np.random.default_rng(22), 60)
    whole = score_probabilities(gold[:40], predicted[:40], logs[:40], LABELS)
    unknown = logs.copy()
    unknown[40:50] = np.nan
    said = [*predicted[:50], *[None] * 10]
    assert score_probabilities(gold, said, unknown, LABELS) == whole
    assert whole["ece"]["n"] == 40
    assert np.isnan(confidences(said, unknown, LABELS)).tolist() == [False] * 40 + [True] * 20


def test_calibration_of_no_examples_has_no_numbers() -> None:
    found = score_probabilities(["a"], [None], [[0.0, 0.0, 0.0]], LABELS)
    assert all(summary["n"] == 0 for summary in found.values())
    assert all(math.isnan(summary[key]) for summary in found.values() for key in ("value", "low", "high"))
