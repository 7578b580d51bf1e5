"""The tables of ``cisterna.report.gather`` as figures and pages show them: means over seeds, and ways to select rows.

In a task with several encoders the form of the sequences has the encoder's name behind it ("features nano-esm"), so
that two encoders are never one line. Not for computing metrics (``cisterna.scoring``).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cisterna import report
from cisterna.constants import FORMS
from cisterna.report.words import LABEL_METRICS, STAGE_COLUMNS, TERM_METRICS, base_form
from cisterna.study import Study

TERMS_PRIMARY = next(iter(TERM_METRICS))


@dataclass(frozen=True)
class Tables:
    """The tables of a study. ``metrics`` and ``gains`` are means over seeds (``means``); the others are as gathered."""

    metrics: pd.DataFrame
    gains: pd.DataFrame
    rewards: pd.DataFrame
    perplexity: pd.DataFrame
    cells: pd.DataFrame


def read(study: Study, folder: Path) -> Tables:
    """The tables that ``cisterna.report.gather`` wrote to a folder; metrics of groups of examples are left out."""

    def table(name: str) -> pd.DataFrame:
        return _with_encoders(pd.read_parquet(folder / name))

    metrics = table(report.METRICS_TABLE)
    metrics = metrics[metrics.group.isna()]
    of_corpora = metrics.metric == "perplexity"
    return Tables(
        means(metrics[~of_corpora], study.tasks),
        means(table(report.GAINS_TABLE), study.tasks),
        table(report.REWARDS_TABLE),
        metrics[of_corpora],
        pd.read_parquet(folder / report.CELLS_TABLE),
    )


def means(frame: pd.DataFrame, tasks: Sequence[str]) -> pd.DataFrame:
    """Means of values and of intervals over seeds; ``each`` has the seeds' values, ``model`` names baselines only.

    Tasks come in the order of ``tasks``, their forms in that of ``cisterna.constants.FORMS``; baselines, which have no
    form, have the form and the encoder "none".
    """
    frame = frame.assign(model=frame.model.where(frame.kind == "baseline", ""))
    frame = frame.fillna({"sequences": "none", "encoder": "none"})
    forms = sorted(set(frame.sequences) - {"none"}, key=lambda form: (FORMS.index(base_form(form)), form))
    keys = ["model", "kind", "task", "modality", "encoder", *STAGE_COLUMNS, "split", "metric"]
    result = (
        frame.groupby(keys, sort=False)
        .agg(
            value=("value", "mean"),
            low=("low", "mean"),
            high=("high", "mean"),
            n=("n", "first"),
            seeds=("seed", "nunique"),
            each=("value", tuple),
        )
        .reset_index()
    )
    places = {"task": [*tasks], "sequences": [*forms, "none"]}
    return result.sort_values(list(places), key=lambda names: names.map(places[str(names.name)].index), kind="stable")


def _with_encoders(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with the encoder's name behind the form, in tasks that have several encoders."""
    several = [task for task, names in frame.groupby("task").encoder if len(set(names.dropna())) > 1]
    named = frame.task.isin(several) & frame.encoder.notna()
    return frame.assign(sequences=frame.sequences.mask(named, frame.sequences + " " + frame.encoder))


def rows(table: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """The rows that have the wanted value, or one of a tuple of them, in every column named."""
    kept = np.ones(len(table), dtype=bool)
    for column, values in wanted.items():
        kept &= table[column].isin(values if isinstance(values, tuple) else (values,)).to_numpy()
    return table[kept]


def distinct(frame: pd.DataFrame, columns: list[str]) -> list[tuple[Any, ...]]:
    """Distinct rows of some columns, in order of appearance."""
    return list(frame[columns].drop_duplicates().itertuples(index=False, name=None))


def unique(values: Iterable[Any]) -> list[Any]:
    """Distinct values, in order of appearance."""
    return list(dict.fromkeys(values))


def tasks_of_terms(table: pd.DataFrame) -> set[str]:
    """The tasks whose answers are sets of terms."""
    return set(table.task[table.metric == TERMS_PRIMARY])


def of_metric(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows of a metric of labels; for "accuracy" also micro F1 of tasks whose answers are sets of terms."""
    if metric != "accuracy":
        return table[table.metric == metric]
    terms = table.task.isin(tasks_of_terms(table))
    return table[(table.metric == metric) & ~terms | (table.metric == TERMS_PRIMARY) & terms]


def metric_name(frame: pd.DataFrame) -> str:
    """The name of the metric of rows that have one."""
    return (TERM_METRICS | LABEL_METRICS)[frame.metric.iloc[0]]


def long_ladders(sft: pd.DataFrame, columns: list[str]) -> list[tuple[Any, ...]]:
    """Values of ``columns``, the last of which is the SFT recipe, of the recipes with two rungs or more.

    A rung is the checkpoint after some epochs of a run, a ladder all rungs of a run. A task without any long ladder
    has all its recipes.
    """
    rungs = Counter(tuple(key) for *key, _ in distinct(sft, [*columns, "sft_epochs"]))
    tasks = {key[0] for key, count in rungs.items() if count > 1}
    return [key for key, count in rungs.items() if count > 1 or key[0] not in tasks]


def ladders(models: pd.DataFrame, column: str) -> list[tuple[Any, ...]]:
    """(task, backbone, ``column``, SFT recipe) of all SFT and RL, or where nothing is trained, of the base models.

    RL without SFT (recipe "none") belongs to every ladder with the same other values, and is listed if there is none.
    """
    trained = rows(models, kind=("sft", "rl"))
    keys = distinct(trained if len(trained) else models, ["task", "backbone", column, "sft"])
    with_sft = {tuple(key) for *key, sft in keys if sft != "none"}
    return [(*key, sft) for *key, sft in keys if sft != "none" or tuple(key) not in with_sft]
