"""Means and their intervals; resamples in blocks."""

import numpy as np
import pytest

from cisterna.scoring.bootstrap import means
from cisterna.scoring.metrics import score


def test_mean_of_hits_is_accuracy_with_the_interval_of_accuracy() -> None:
    gold, predicted = np.random.default_rng(12).choice(["a", "b", "c"], (2, 300), p=[0.6, 0.3, 0.1]).tolist()
    hits = [mine == theirs for mine, theirs in zip(gold, predicted, strict=True)]
    found = means({"hits": hits}, resamples=20_000)["hits"]
    expected = score(gold, predicted, ("a", "b", "c"), resamples=20_000)["accuracy"]
    assert (found["value"], found["n"]) == (pytest.approx(expected["value"]), 300)
    assert found["low"] == pytest.approx(expected["low"], abs=0.005)
    assert found["high"] == pytest.approx(expected["high"], abs=0.005)


def test_means_of_no_columns_no_examples_and_unequal_columns() -> None:
    assert means({}) == {}
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
