"""Published numbers beside those of a study, joined by the names of task, backbone and recipes.

A file of published numbers (Parquet, or CSV with the same columns) has a row a number:

    finding                what it speaks to, as a text ("1, 4"); may be empty
    task, backbone         names as in the config of the study; for a perplexity the task is the corpus
    encoder                the encoder whose features are read; empty: any
    cpt, sft, rl           names of recipes, or "none"
    sft_epochs, rl_epochs  0 where there is no such stage
    split                  id, ood, id+ood (one number for both), heldout (of a corpus), validation or train
    metric                 accuracy, perplexity, ...
    value                  empty: the authors' table has the cell without a number
    n                      examples it is of, if known
    source, date, note     file and its date; what a reader has to know

`resources/paper-results.parquet` has those of the paper's authors; docs/paper-results.md discusses them. Not for
testing whether a difference is real: what was published has no answers that could be paired.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from cisterna.errors import UserError, one_line
from cisterna.report import tables
from cisterna.report.tables import LABEL_METRICS, TERM_METRICS, StageNames, Tables

COLUMNS = {
    "finding": "string",
    "task": "string",
    "backbone": "string",
    "encoder": "string",
    "cpt": "string",
    "sft": "string",
    "sft_epochs": "int64",
    "rl": "string",
    "rl_epochs": "int64",
    "split": "string",
    "metric": "string",
    "value": "float64",
    "n": "Int64",
    "source": "string",
    "date": "string",
    "note": "string",
}
REQUIRED = ("task", "backbone", "cpt", "sft", "sft_epochs", "rl", "rl_epochs", "split", "metric", "source")
MODEL = ["task", "backbone", "cpt", "sft", "sft_epochs", "rl", "rl_epochs"]  # the columns that name a model
SPLITS = {"id": "ID", "ood": "OOD", "id+ood": "ID and OOD together", "heldout": "held out"}
OTHER_SPLITS = ("validation", "train")  # this study has no numbers of them
MEANS = ("accuracy", "accuracy_lenient")  # means over examples, so that two splits can be pooled


def read(path: Path) -> pd.DataFrame:
    """The numbers of a file, with COLUMNS. UserError, naming column or row, for a file that is not of this form."""
    try:
        frame = pd.read_csv(path, dtype=str) if path.suffix == ".csv" else pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as published numbers, Parquet or CSV: {one_line(error)}") from None
    if set(frame.columns) != set(COLUMNS):
        raise UserError(f"{path}: has the columns {', '.join(frame.columns)}; expected {', '.join(COLUMNS)}")
    for column, kind in COLUMNS.items():
        try:
            numbers = pd.to_numeric(frame[column]) if "64" in kind else frame[column]
            if column in REQUIRED and numbers.isna().any():
                raise UserError(f"{path}, row {int(numbers.isna().argmax()) + 1}: no {column}")
            if kind in ("int64", "Int64") and (numbers % 1 > 0).any():
                raise ValueError("not a whole number")
            frame[column] = numbers.astype(pd.api.types.pandas_dtype(kind))
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}, column {column}: {one_line(error)}; expected {kind}") from None
    wrong = ~frame.split.isin([*SPLITS, *OTHER_SPLITS])
    if wrong.any():
        row, known = int(wrong.argmax()), ", ".join([*SPLITS, *OTHER_SPLITS])
        raise UserError(f"{path}, row {row + 1}: split {frame.split.iloc[row]!r}; expected one of {known}")
    return frame[list(COLUMNS)]


def beside(published: pd.DataFrame, of: Tables, names: StageNames) -> list[dict[str, Any]]:
    """For each task and metric of the study that has published numbers: a table for the page of results.

    Metrics that the study does not measure have none. A table has `lines`, one for each published number of a model
    that the study has, and the number of those of other models (`absent`). The cells of a line are by (split, metric).
    """
    corpora = of.perplexity.fillna({"sequences": "none", "encoder": "none"})
    ours = pd.concat([of.metrics[of.metrics.kind != "baseline"], corpora])
    labels = TERM_METRICS | LABEL_METRICS
    found = []
    for (task, metric), rows in published.groupby(["task", "metric"], sort=False):
        lines = [line for row in rows.itertuples() for line in _lines(row, ours, names)]
        measured = {cell for line in lines for cell in line["cells"]}
        columns = [name for name in _beside(metric) if any(name == of_metric for _, of_metric in measured)]
        if measured:
            table = {
                "task": task,
                "metric": labels.get(str(metric), str(metric)),
                "format": "%.4f" if metric in MEANS else "%.2f",
                "heads": {
                    split: name for split, name in SPLITS.items() if any((split, one) in measured for one in columns)
                },
                "columns": {name: labels.get(name, name) for name in columns},
                "lines": lines,
                "absent": len(rows) - len({line["row"] for line in lines}),
                "sources": tables.unique((rows.source + (", " + rows.date).fillna("")).tolist()),
            }
            found.append(table)
    return found


def _beside(metric: Any) -> tuple[str, ...]:
    """The metrics of the study that are shown beside a published one: of accuracy both readings of an output."""
    return MEANS if metric == "accuracy" else (str(metric),)


def _lines(row: Any, ours: pd.DataFrame, names: StageNames) -> Iterator[dict[str, Any]]:
    """A published number beside each model of the study with its names: one for each form of the sequences."""
    wanted: dict[str, Any] = {column: getattr(row, column) for column in MODEL}
    if pd.notna(row.encoder):
        wanted["encoder"] = row.encoder
    same = tables.rows(ours, **wanted)
    for (form, encoder), numbers in same.groupby(["sequences", "encoder"], sort=False):
        numbers = tables.rows(numbers, metric=_beside(row.metric)).set_index(["split", "metric"])
        cells: dict[Any, Any] = dict(numbers[["value", "low", "high", "n"]].to_dict("index"))
        for metric in MEANS:
            if ("id", metric) in cells and ("ood", metric) in cells:
                both = numbers.loc[[("id", metric), ("ood", metric)]]
                cells["id+ood", metric] = {"value": float((both.value * both.n).sum() / both.n.sum())}
        yield {
            "row": row.Index,
            "name": names.without_form([getattr(row, column, form) for column in tables.STAGE_COLUMNS]),
            "form": "" if encoder == "none" else f"{tables.FORM_NAMES[tables.base_form(str(form))]} ({encoder})",
            "published": None if pd.isna(row.value) else row.value,
            "split": SPLITS.get(row.split, row.split),
            "n": None if pd.isna(row.n) else row.n,
            "note": "" if pd.isna(row.note) else row.note,
            "cells": cells,
        }
