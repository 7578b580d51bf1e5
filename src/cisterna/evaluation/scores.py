"""Predictions as a table, and its metrics: of a whole split and of each group of its data.

A table has a row an example: answer (the gold one), predicted (None without one), group, and where they are known the
probabilities of the labels, a column each (`probability:up`), in the order of the task's `labels`. Models and baselines
share it.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cisterna.scoring import ranking
from cisterna.scoring.answers import AnswerSpace
from cisterna.scoring.bootstrap import Summary

PROBABILITY = "probability:"  # and a label: the name of a column
FEWEST = 5  # examples of a group that has metrics of its own
OTHER = "other"  # the group of all examples of smaller groups


def probability_columns(labels: Sequence[str]) -> list[str]:
    """The names of the columns of probabilities."""
    return [f"{PROBABILITY}{label}" for label in labels]


def probability_table(probabilities: NDArray[np.float64], labels: Sequence[str]) -> pd.DataFrame:
    """Probabilities, shape (examples, labels), as columns.

    They are float32: rounding errors of other processors and orders of addition then hardly make or break ties, on
    which AUROC depends.
    """
    return pd.DataFrame(probabilities.astype(np.float32), columns=probability_columns(labels))


def of_split(table: pd.DataFrame, space: AnswerSpace, seed: int, resamples: int) -> dict[str, Summary]:
    """The metrics of the answer space, and with probabilities also those of `cisterna.scoring.ranking`."""
    gold, predicted = table["answer"].tolist(), texts(table["predicted"])
    return space.score(gold, predicted, seed, resamples) | _ranking(table, space, seed, resamples)


def of_groups(table: pd.DataFrame, space: AnswerSpace, seed: int, resamples: int) -> dict[str, dict[str, Any]]:
    """Some metrics of each group of a split (`pooled`), with null for NaN."""
    found = {}
    for group, rows in table.groupby(np.array(pooled(table["group"].fillna("none").tolist())), sort=False):
        summaries = space.score(rows["answer"].tolist(), texts(rows["predicted"]), seed, resamples)
        shown = {name: summaries[name] for name in space.group_metrics}
        found[str(group)] = for_json(shown | _ranking(rows, space, seed, resamples))
    return found


def _ranking(table: pd.DataFrame, space: AnswerSpace, seed: int, resamples: int) -> dict[str, Summary]:
    columns = probability_columns(space.labels)
    if not columns or columns[0] not in table:
        return {}
    return ranking.score(table["answer"].tolist(), table[columns].to_numpy(float), space.labels, seed, resamples)


def pooled(groups: Sequence[str]) -> list[str]:
    """The group of each example, with all groups of fewer than `FEWEST` examples as one.

    That is called `OTHER`, with "(pooled)" behind it if the data have a group of that name.
    """
    sizes = Counter(groups)
    other = OTHER
    while sizes[other] >= FEWEST:
        other += " (pooled)"
    return [group if sizes[group] >= FEWEST else other for group in groups]


def for_json(summaries: Mapping[str, Summary]) -> dict[str, Any]:
    """Summaries with null for NaN, which JSON does not have."""
    return {
        name: {key: None if math.isnan(number) else number for key, number in summary.items()}
        for name, summary in summaries.items()
    }


def predicted(outputs: pd.DataFrame, parse: Callable[[str], str | None]) -> list[str | None]:
    """The answers in the columns output and finished of a table; None where there is none, or it was cut."""
    rows = zip(outputs["output"], outputs["finished"], strict=True)
    return [parse(output) if finished else None for output, finished in rows]


def texts(column: pd.Series) -> list[str | None]:
    """The answers in a column of a table, None where there is none."""
    return [value if isinstance(value, str) else None for value in column]


def rows_for_json(table: NDArray[np.float64]) -> list[list[float | None]]:
    """The rows of a table of numbers, with null for NaN."""
    return [[None if math.isnan(number) else number for number in row] for row in table.tolist()]
