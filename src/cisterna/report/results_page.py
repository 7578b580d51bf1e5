"""The page of all results: what is missing, every model x task x split with baselines, what RL adds, perplexities."""

from dataclasses import dataclass

import pandas as pd

from cisterna.report import pages, tables, words
from cisterna.report.tables import Tables
from cisterna.report.words import (
    BASELINE_NAMES,
    FORM_NAMES,
    LABEL_METRICS,
    SPLIT_NAMES,
    STAGE_COLUMNS,
    TERM_METRICS,
    StageNames,
)

GAINS = {
    "accuracy": "accuracy",
    "prior_accuracy": "prior shift",
    "skill": "skill",
    "balanced_accuracy": "balanced accuracy",
    "mcc": "MCC",
}


@dataclass(frozen=True)
class Row:
    """A row of a table. ``cells`` has the value with its interval for each split and metric."""

    name: str
    form: str
    kind: str
    cells: dict[tuple[str, str], dict[str, float]]


def page(of: Tables, study: str) -> str:
    """The page as HTML."""
    names = StageNames(of.metrics[of.metrics.kind != "baseline"])
    terms = tables.tasks_of_terms(of.metrics)
    results = [
        {
            "task": task,
            "modality": mine.modality.iloc[0],
            "sizes": words.split_sizes(mine),
            "columns": TERM_METRICS if task in terms else LABEL_METRICS,
            "rows": _results(mine, names),
        }
        for task, mine in of.metrics.groupby("task", sort=False)
    ]
    gains = [
        {
            "task": task,
            "columns": TERM_METRICS if task in terms else GAINS,
            "rows": [
                _row(names.without_form(stage), "rl", mine) for stage, mine in gained.groupby(STAGE_COLUMNS, sort=False)
            ],
        }
        for task, gained in of.gains.groupby("task", sort=False)
    ]
    return pages.render(
        "results.html.j2",
        study=study,
        note=words.intervals(of.metrics, dots=False),
        splits=SPLIT_NAMES,
        expected=len(of.cells),
        missing=_missing(of.cells),
        results=results,
        gains=gains,
        corpora=tables.unique(of.perplexity.task),
        perplexities=[
            (model, mine.set_index("task").to_dict("index"))
            for model, mine in of.perplexity.groupby("model", sort=False)
        ],
    )


def _results(mine: pd.DataFrame, names: StageNames) -> list[Row]:
    """The rows of a task, baselines first."""
    rows = []
    for (model, kind, *stage), numbers in mine.groupby(["model", "kind", *STAGE_COLUMNS], sort=False):
        name = words.baseline_name(str(model)) if kind == "baseline" else names.without_form(stage)
        rows.append(_row(name, str(kind), numbers))
    first = [*BASELINE_NAMES.values()]
    return sorted(rows, key=lambda row: first.index(row.name) if row.name in first else len(first))


def _row(name: str, kind: str, numbers: pd.DataFrame) -> Row:
    columns = ["split", "metric", "value", "low", "high"]
    cells = {
        (split, metric): {"value": value, "low": low, "high": high}
        for split, metric, value, low, high in numbers[columns].itertuples(index=False, name=None)
    }
    return Row(name, _form(numbers), kind, cells)


def _form(numbers: pd.DataFrame) -> str:
    """The form of a model's sequences, with the encoder; empty for a baseline."""
    form, encoder = numbers.sequences.iloc[0], numbers.encoder.iloc[0]
    if form == "none":
        return ""
    return FORM_NAMES[form] if encoder == "none" else f"{FORM_NAMES[words.base_form(form)]} ({encoder})"


def _missing(cells: pd.DataFrame) -> list[dict[str, object]]:
    """The results that are not there, by state and reason."""
    lost = cells[cells.state != "done"]
    return [
        {
            "state": state,
            "reason": str(reason),
            "log": next(iter(mine.log.dropna()), None),
            "cells": [
                f"{cell} {model}, {task}" for cell, model, task in zip(mine.cell, mine.model, mine.task, strict=True)
            ],
        }
        for (state, reason), mine in lost.groupby(["state", "reason"], sort=False)
    ]
