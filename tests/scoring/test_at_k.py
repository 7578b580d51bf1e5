"""Accuracy at k samples is the mean over all choices of k."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cisterna.scoring import at_k
from cisterna.scoring.at_k import majority_at_k, pass_at_k
from cisterna.scoring.bootstrap import means

LABELS = ("a", "b", "c")
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
    found = at_k.score(gold, votes)
    assert list(found) == ["pass@1", "pass@2", "pass@4", "maj@2", "maj@4"]
    assert found["pass@1"]["value"] == pytest.approx((3 / 5 + 1 / 5) / 2)
    assert found["pass@4"]["value"] == pytest.approx((1 + pass_at_k(5, 1, 4)) / 2)
    assert found["maj@4"]["value"] == pytest.approx(
        (majority_at_k(votes[0], "a", 4) + majority_at_k(votes[1], "b", 4)) / 2
    )
    assert {summary["n"] for summary in found.values()} == {2}
    assert list(at_k.score(["a"], [["a"]])) == ["pass@1"]


def test_pass_at_one_is_the_share_of_right_samples_and_more_samples_never_lower_it() -> None:
    rng = np.random.default_rng(14)
    gold = rng.choice(LABELS, 50).tolist()
    votes = [rng.choice([*LABELS, None], 8).tolist() for _ in gold]
    found = at_k.score(gold, votes)
    right = np.mean([vote == label for label, row in zip(gold, votes, strict=True) for vote in row])
    assert found["pass@1"]["value"] == pytest.approx(right)
    values = [found[f"pass@{k}"]["value"] for k in (1, 2, 4, 8)]
    assert values == sorted(values)
    assert found["pass@8"]["value"] == np.mean([label in row for label, row in zip(gold, votes, strict=True)])


@pytest.mark.parametrize("votes", [[["a"], ["a", "b"]], [[], []]])
def test_rows_of_unequal_or_no_samples_are_refused(votes: list) -> None:
    with pytest.raises(ValueError, match="samples"):
        at_k.score(["a", "b"], votes)


def test_intervals_of_accuracy_at_k_cover_the_truth() -> None:
    """Each example has a rate of its own at which samples are right; the truth is the mean over such rates."""
    rates = np.random.default_rng(15).beta(0.5, 0.8, 200_000)
    truth = {k: np.mean(1 - (1 - rates) ** k) for k in (1, 4)}
    rng = np.random.default_rng(16)
    covered = dict.fromkeys(truth, 0)
    for trial in range(300):
        right = rng.random((150, 8)) < rng.beta(0.5, 0.8, (150, 1))
        columns = {str(k): [pass_at_k(8, number, k) for number in right.sum(axis=1).tolist()] for k in truth}
        for k, summary in means(columns, seed=trial, resamples=300).items():
            covered[int(k)] += summary["low"] <= truth[int(k)] <= summary["high"]
    for k, count in covered.items():
        assert 0.91 <= count / 300 <= 0.985, (k, count / 300)
