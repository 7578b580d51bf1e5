"""Metrics against scikit-learn, intervals against simulation, and accuracy as prior and skill."""

import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from cisterna.scoring.metrics import difference, score

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


def test_intervals_cover_the_truth_at_the_stated_rate() -> None:
    truth = score(*_draw(np.random.default_rng(4), 50_000), LABELS, resamples=1)
    rng = np.random.default_rng(5)
    names = ("accuracy", "balanced_accuracy", "macro_f1", "mcc", "prior_accuracy", "skill")
    covered = dict.fromkeys(names, 0)
    trials = 400
    for trial in range(trials):
        result = score(*_draw(rng, 300), LABELS, seed=trial, resamples=400)
        for name in names:
            covered[name] += result[name]["low"] <= truth[name]["value"] <= result[name]["high"]
    # 0.95 less the percentile method's small loss at n = 300; 0.035 is three binomial errors of 400
    # trials
    for name, count in covered.items():
        assert 0.91 <= count / trials <= 0.985, (name, count / trials)


def test_paired_differences_cover_the_truth_and_are_tighter_than_unpaired_ones() -> None:
    def draw(rng: np.random.Generator, n: int) -> tuple[list, list, list]:
        gold, first = _draw(rng, n)
        changed = rng.random(n) < 0.3
        return gold, first, [g if c else p for g, p, c in zip(gold, first, changed, strict=True)]

    truth = difference(*draw(np.random.default_rng(6), 50_000), LABELS, resamples=1)
    rng = np.random.default_rng(7)
    names = ("accuracy", "balanced_accuracy", "mcc", "prior_accuracy", "skill")
    covered = dict.fromkeys(names, 0)
    for trial in range(300):
        gold, first, second = draw(rng, 300)
        result = difference(gold, first, second, LABELS, seed=trial, resamples=400)
        for name in names:
            covered[name] += result[name]["low"] <= truth[name]["value"] <= result[name]["high"]
    for name, count in covered.items():
        assert 0.90 <= count / 300 <= 0.99, (name, count / 300)
    paired = result["accuracy"]["high"] - result["accuracy"]["low"]
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
