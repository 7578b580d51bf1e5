"""AUROC and AUPRC against scikit-learn, by hand, and where they are not defined."""

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from cisterna.scoring import bootstrap, ranking

LABELS = ("up", "down", "none")


def drawn(seed: int, n: int, labels: tuple[str, ...] = LABELS) -> tuple[list[str], np.ndarray]:
    """Gold labels and probabilities that know something about them; with ties, as those of k-NN have."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, len(labels), n)
    logs = rng.normal(size=(n, len(labels))) + 0.8 * np.eye(len(labels))[codes]
    probabilities = np.round(np.exp(logs) / np.exp(logs).sum(axis=1, keepdims=True), 1)
    return [labels[code] for code in codes], probabilities


def sklearn(gold: list[str], probabilities: np.ndarray, labels: tuple[str, ...], weights=None) -> dict[str, float]:
    """scikit-learn's macro means over the labels that occur."""
    present = [k for k, label in enumerate(labels) if label in gold]
    truth = np.array([[label == labels[k] for k in present] for label in gold])
    scores = probabilities[:, present]
    return {
        "auroc": roc_auc_score(truth, scores, average="macro", sample_weight=weights),
        "auprc": average_precision_score(truth, scores, average="macro", sample_weight=weights),
    }


@pytest.mark.parametrize("labels", [LABELS, LABELS[:2], (*LABELS, "absent")], ids="three two absent".split())
@pytest.mark.parametrize("seed", range(4))
def test_values_are_those_of_scikit_learn(seed, labels):
    gold, probabilities = drawn(seed, 150, labels)
    if "absent" in labels:  # no example has the label: it is left out of the mean
        gold = [label if label != "absent" else "up" for label in gold]
    found = ranking.score(gold, probabilities, labels, resamples=10)
    for name, value in sklearn(gold, probabilities, labels).items():
        assert found[name]["value"] == pytest.approx(value, abs=1e-7)
        assert found[name]["n"] == 150


def test_intervals_are_percentiles_of_scikit_learns_values_of_the_resamples():
    gold, probabilities = drawn(5, 60)
    found = ranking.score(gold, probabilities, LABELS, seed=3, resamples=300)
    (weights,) = bootstrap.quick_weights(np.random.default_rng(3), 60, 300, 300)
    values = [sklearn(gold, probabilities, LABELS, row) for row in weights]
    for name in ranking.METRICS:
        low, high = np.percentile([value[name] for value in values], [2.5, 97.5])
        assert found[name]["low"] == pytest.approx(low, abs=1e-7)
        assert found[name]["high"] == pytest.approx(high, abs=1e-7)


def test_by_hand():
    # "a": 0.9 and 0.4 are positives, 0.6 is the negative between them: of two pairs one is in order.
    found = ranking.score(["a", "b", "a"], [[0.9, 0.1], [0.6, 0.4], [0.4, 0.6]], ["a", "b"], resamples=5)
    assert found["auroc"]["value"] == pytest.approx(0.5)
    assert found["auprc"]["value"] == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2, abs=1e-7)


def test_examples_without_probabilities_count_as_equal_ones():
    gold = ["a", "b"] * 5
    nothing = np.full((10, 2), math.nan)
    assert ranking.score(gold, nothing, ["a", "b"], resamples=50)["auroc"] == {
        "value": 0.5, "low": 0.5, "high": 0.5, "n": 10,
    }  # fmt: skip
    some = nothing.copy()
    some[0] = [0.9, 0.1]
    filled = np.where(np.isnan(some), 0.5, some)
    assert ranking.score(gold, some, ["a", "b"]) == ranking.score(gold, filled, ["a", "b"])


def test_one_label_alone_has_no_value():
    for summary in ranking.score(["a", "a"], [[0.9, 0.1], [0.6, 0.4]], ["a", "b"]).values():
        assert summary["n"] == 0
        assert all(math.isnan(summary[key]) for key in ("value", "low", "high"))


def test_resamples_with_one_label_alone_are_left_out_of_the_interval():
    gold, probabilities = ["a", "b"], [[0.9, 0.1], [0.2, 0.8]]  # half of the resamples have one label
    assert ranking.score(gold, probabilities, ["a", "b"])["auroc"] == {"value": 1, "low": 1, "high": 1, "n": 2}


def test_differences_are_paired():
    gold, before = drawn(8, 80)
    _, other = drawn(9, 80)
    after = before + np.eye(3)[[LABELS.index(label) for label in gold]]
    found = ranking.difference(gold, before, after, LABELS, resamples=200)
    first, last = (ranking.score(gold, given, LABELS, resamples=200) for given in (before, after))
    for name in ranking.METRICS:
        assert found[name]["value"] == pytest.approx(last[name]["value"] - first[name]["value"], abs=1e-12)
        assert found[name]["low"] > 0
        assert found[name]["n"] == 80
        same = ranking.difference(gold, other, other, LABELS, resamples=200)[name]
        assert (same["value"], same["low"], same["high"]) == (0, 0, 0)
    assert ranking.difference(["a"], [[1, 0]], [[1, 0]], ["a", "b"])["auroc"]["n"] == 0


def test_blocks_change_nothing(monkeypatch):
    gold, probabilities = drawn(7, 40)
    whole = ranking.score(gold, probabilities, LABELS, resamples=100)
    monkeypatch.setattr(bootstrap, "BLOCK", 4 * 40 * 7)
    assert ranking.score(gold, probabilities, LABELS, resamples=100) == whole


@pytest.mark.parametrize(
    ("gold", "probabilities"), [(["a"], [[0.5, 0.5], [0.5, 0.5]]), (["a"], [[1.0]]), (["c"], [[0.5, 0.5]])]
)
def test_what_does_not_fit_together_is_refused(gold, probabilities):
    with pytest.raises(ValueError, match=r"probabilities of shape|not in the answer space"):
        ranking.score(gold, probabilities, ["a", "b"])
