"""Every checkpoint on every task, as the page of all results filters, sorts and draws it in a browser.

``templates/explore.html.j2`` is that part of the page. ``browser/`` has its script and the libraries that it uses,
which are written into the page. Not for means over seeds, which are in the plain tables of ``cisterna.report.pages``.
"""

import json
from importlib import resources
from typing import Any

import pandas as pd
from jinja2.utils import htmlsafe_json_dumps

from cisterna import report
from cisterna.report import tables
from cisterna.report.tables import BASELINE_NAMES, KIND_NAMES, LABEL_METRICS, STAGE_COLUMNS, TERM_METRICS, StageNames

FILTERS = {
    "task": "task",
    "stage": "stage",
    "backbone": "backbone",
    "sequences": "sequences",
    "cpt": "CPT",
    "sft": "SFT",
    "sft_epochs": "SFT epochs",
    "rl": "RL",
    "rl_epochs": "RL epochs",
    "seed": "seed",
}
"""What a reader can choose checkpoints by, where a study has several of it -> its name."""
EPOCHS = ("sft_epochs", "rl_epochs")
SCRIPTS = ("dataTables.min.js", "chart.min.js", "explore.js")


def content(checkpoints: pd.DataFrame, names: StageNames) -> dict[str, Any]:
    """What the template shows of the metrics of all checkpoints: filters, columns of numbers and axes.

    ``data`` has the rows as JSON that can stand inside of ``<script>``, and ``scripts`` the scripts that work on them.
    """
    columns = _columns(checkpoints)
    places = {column: place for place, column in enumerate(columns)}
    rows = _rows(checkpoints[checkpoints.metric.isin({metric for metric, _ in columns})], names, places)
    filters = {column: values for column in FILTERS if (values := _choices(rows, column))}
    kept = {*filters, "task", "stage", "name", "seed", "path", "numbers"}
    rows = [{name: value for name, value in row.items() if name in kept} for row in rows]
    data = {"columns": list(columns.values()), "rows": rows}
    return {
        "filters": {column: (FILTERS[column], values) for column, values in filters.items()},
        "heads": {column: FILTERS[column] for column in ("sequences", "seed") if column in filters},
        "columns": list(columns.values()),
        "axes": {column: FILTERS[column] for column in EPOCHS if column in filters},
        "data": htmlsafe_json_dumps(data, json.dumps, separators=(",", ":"), default=int),
        "scripts": [resources.files(report).joinpath("browser", name).read_text("utf-8") for name in SCRIPTS],
    }


def _columns(checkpoints: pd.DataFrame) -> dict[tuple[str, str], dict[str, str]]:
    """The columns of numbers, by metric and split. A metric of labels and of terms has its name among labels."""
    labels = set(checkpoints.task) - tables.tasks_of_terms(checkpoints)
    metrics = LABEL_METRICS | {name: title for name, title in TERM_METRICS.items() if name not in LABEL_METRICS}
    measured = set(checkpoints.metric)
    return {
        (metric, split): {"metric": title, "split": split.upper()}
        for metric, title in (metrics if labels else TERM_METRICS).items()
        for split in tables.SPLIT_NAMES
        if metric in measured
    }


def _rows(metrics: pd.DataFrame, names: StageNames, places: dict[tuple[str, str], int]) -> list[dict[str, Any]]:
    """A row for each task and checkpoint, in each task the baselines first.

    Its numbers, in the order of the columns, are [value, low, high, n] or None.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for one in metrics.itertuples(index=False):
        key = str(one.task), str(one.model)
        if key not in rows:
            rows[key] = _identity(one, names) | {"numbers": [None] * len(places)}
        if pd.notna(one.value):
            rows[key]["numbers"][places[str(one.metric), str(one.split)]] = _number(one)
    tasks = tables.unique(task for task, _ in rows)
    first = list(BASELINE_NAMES.values())
    place = {name: number - len(first) for number, name in enumerate(first)}
    return sorted(rows.values(), key=lambda row: (tasks.index(row["task"]), place.get(row["name"], 0)))


def _number(one: Any) -> list[float | None]:
    return [*(None if pd.isna(number) else round(number, 4) for number in (one.value, one.low, one.high)), one.n]


def _identity(one: Any, names: StageNames) -> dict[str, Any]:
    """What tells a checkpoint from others on the page, of a row of its metrics."""
    stage = {column: getattr(one, column) for column in STAGE_COLUMNS}
    if one.kind == "baseline":
        name, path = tables.baseline_name(one.model), f"baselines/{one.task}"
    else:
        name, path = names.without_form(list(stage.values())), f"models/{one.model}/checkpoint"
        stage["sequences"] = tables.form_name(one.sequences)
    return {
        "task": one.task,
        "stage": KIND_NAMES.get(one.kind, one.kind),
        "name": name,
        **stage,
        "seed": "none" if pd.isna(one.seed) else one.seed,
        "path": f"results/{path}",
    }


def _choices(rows: list[dict[str, Any]], column: str) -> list[Any]:
    """The values of a column, numbers by size; none where the rows that have one have the same.

    Of CPT "none" counts as a value: with and without it is a comparison.
    """
    values = tables.unique(row[column] for row in rows)
    if len(set(values) - ({"none"} if column != "cpt" else set())) < 2:
        return []
    if column in (*EPOCHS, "seed"):
        values.sort(key=lambda value: -1 if value == "none" else value)
    return values
