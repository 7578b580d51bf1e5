"""The pages of a report: all results of a study, and its findings. A page is one HTML file that needs no other file."""

import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from cisterna import gguf_files
from cisterna.artifacts import files
from cisterna.errors import UserError, one_line
from cisterna.report import explore, published, tables
from cisterna.report.comparisons import BOTH, GAP
from cisterna.report.tables import (
    BASELINE_NAMES,
    FORM_NAMES,
    LABEL_METRICS,
    SPLIT_NAMES,
    STAGE_COLUMNS,
    TERM_METRICS,
    StageNames,
    Tables,
)
from cisterna.scoring import lenient

GAINS = {
    "accuracy": "accuracy",
    "prior_accuracy": "prior shift",
    "skill": "skill",
    "balanced_accuracy": "balanced accuracy",
    "mcc": "MCC",
    "auroc": "AUROC",
    "auprc": "AUPRC",
}
METRIC_NAMES = LABEL_METRICS | {"skill": "skill"}  # of the metrics of findings
MOST_GROUPS = 12  # of a split that the page shows; metrics.parquet has all
PICTURE = 220  # pixels, the width of the picture of an interval


def render(template: str, **values: Any) -> str:
    """The page that a template in ``templates/`` makes of values, which are escaped.

    Raises jinja2.UndefinedError for a value that the template misses.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cisterna.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(values)


# --- A report does not fail after all training is done ---


@contextmanager
def whatever_fails(what: str, kind: str) -> Iterator[list[str]]:
    """Yield a list, which is given the reason if the block fails for a bug; ``what`` is the file of this kind.

    The log has the traceback. Errors of the user's and trouble of the machine are raised: who reruns gets the rest.
    """
    failure: list[str] = []
    try:
        yield failure
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:
        traceback.print_exc()
        failure.append(f"{type(error).__name__}: {one_line(error)}")
        print(f"warning: {what}: this {kind} could not be made ({failure[0]})", file=sys.stderr)


def write(path: Path, title: str, page: Callable[[], str]) -> None:
    """Write a page, or one with its title that says why it could not be made."""
    with whatever_fails(str(path), "page") as failure:
        text = page()
    if failure:
        text = failed(title, failure[0])
    with files.replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def failed(title: str, reason: str) -> str:
    """The page with this title that says why it could not be made."""
    return render("failed.html.j2", title=title, reason=reason)


# --- All results ---


def results(
    of: Tables, study: str, not_drawn: Mapping[str, str] | None = None, numbers: Sequence[pd.DataFrame] = ()
) -> str:
    """What is missing, every model x task x split with baselines, what RL adds, perplexities.

    ``not_drawn`` has the reason for each figure that could not be drawn, ``numbers`` the published ones to show beside.
    """
    names = StageNames(of.metrics[of.metrics.kind != "baseline"])
    terms = tables.tasks_of_terms(of.metrics)
    places = {name: place for place, name in enumerate(BASELINE_NAMES.values())}  # baselines first
    return render(
        "results.html.j2",
        study=study,
        not_drawn=not_drawn or {},
        quantized={name: gguf_files.describe(stored) for name, stored in of.quantized.items() if stored["bits"] < 16},
        note=tables.intervals(of.metrics, dots=False),
        splits=SPLIT_NAMES,
        explore=explore.content(of.checkpoints, names),
        several_seeds=bool((of.metrics.seeds > 1).any()),
        lenient=bool(of.metrics.metric.isin(lenient.METRICS.values()).any()),
        expected=len(of.cells),
        missing=_missing(of.cells),
        engines=_engines(of.cells),
        results=[
            {
                "task": task,
                "modality": rows.modality.iloc[0],
                "sizes": tables.split_sizes(rows),
                "columns": _measured(rows, TERM_METRICS if task in terms else LABEL_METRICS),
                "rows": sorted(_rows(rows, names), key=lambda row: places.get(row["name"], len(places))),
            }
            for task, rows in of.metrics.groupby("task", sort=False)
        ],
        groups=_groups(of.groups, names, terms, places),
        gains=[
            {
                "task": task,
                "columns": _measured(rows, TERM_METRICS if task in terms else GAINS),
                "rows": _rows(rows, names),
            }
            for task, rows in of.gains.groupby("task", sort=False)
        ],
        training=_training(of.rewards, names),
        corpora=tables.unique(of.perplexity.task),
        perplexities=[
            (model, rows.set_index("task").to_dict("index"))
            for model, rows in of.perplexity.groupby("model", sort=False)
        ],
        published=[table for frame in numbers for table in published.beside(frame, of, names)],
    )


def _measured(numbers: pd.DataFrame, columns: Mapping[str, str]) -> dict[str, str]:
    """The columns whose metric some row has: probabilities, for one, are measured on request."""
    return {metric: name for metric, name in columns.items() if metric in set(numbers.metric)}


def _groups(
    numbers: pd.DataFrame, names: StageNames, terms: set[str], places: Mapping[str, int]
) -> list[dict[str, Any]]:
    """A table for each task and split with several groups: their metrics side by side."""
    found = []
    for (task, split), mine in numbers.groupby(["task", "split"], sort=False):
        sizes = mine[mine.metric == "accuracy"].groupby("group").n.first()
        if len(sizes) > 1:
            title = f"{task} · {SPLIT_NAMES[str(split)]}"
            shown = {group: f"{group} (n = {n})" for group, n in sizes.items()} if len(sizes) <= MOST_GROUPS else {}
            columns = _measured(mine, TERM_METRICS if task in terms else LABEL_METRICS)
            rows = _rows(mine, names, "group") if shown else []
            rows.sort(key=lambda row: places.get(row["name"], len(places)))
            found.append({"title": title, "number": len(sizes), "heads": shown, "columns": columns, "rows": rows})
    return found


def _rows(numbers: pd.DataFrame, names: StageNames, head: str = "split") -> list[dict[str, Any]]:
    """A row for each stage and baseline; ``cells`` has value, interval and n for each ``head`` and metric."""
    rows = []
    for (model, kind, *stage), mine in numbers.groupby(["model", "kind", *STAGE_COLUMNS], sort=False):
        name = tables.baseline_name(str(model)) if kind == "baseline" else names.without_form(stage)
        cells = mine.set_index([head, "metric"])[["value", "low", "high", "n"]].to_dict("index")
        rows.append({"name": name, "form": _form(mine), "kind": kind, "cells": cells})
    return rows


def _form(numbers: pd.DataFrame) -> str:
    """The form of a model's sequences, with the encoder; empty for a baseline."""
    form, encoder = numbers.sequences.iloc[0], numbers.encoder.iloc[0]
    if form == "none":
        return ""
    return FORM_NAMES[form] if encoder == "none" else f"{FORM_NAMES[tables.base_form(form)]} ({encoder})"


def _training(rewards: pd.DataFrame, names: StageNames) -> list[dict[str, Any]]:
    """Reward, KL and entropy of runs with a KL penalty: means over the first and the last quarter of the log.

    And the first and the last reward on validation, if it was logged.
    """
    if "kl" not in rewards:
        return []
    rows = []
    for _, log in rewards[rewards.kl.notna()].groupby("model", sort=False):
        quarter = max(1, len(log) // 4)
        ends = log.head(quarter), log.tail(quarter)
        stage = log[STAGE_COLUMNS].iloc[0].tolist()
        values = {column: [float(end[column].mean()) for end in ends] for column in ("reward", "kl", "entropy")}
        held_out = rewards[rewards.model.eq(log.model.iloc[0]) & rewards.kl.isna()].reward
        values["validation"] = [float(held_out.iloc[place]) for place in (0, -1) if len(held_out)]
        rows.append({"task": log.task.iloc[0], "name": names.without_form(stage), "seed": log.seed.iloc[0], **values})
    return rows


def _missing(cells: pd.DataFrame) -> list[dict[str, Any]]:
    """The results that are not there, by state and reason."""
    return [
        {
            "state": state,
            "reason": str(reason),
            "log": next(iter(rows.log.dropna()), None),
            "cells": [f"{row.cell} {row.model}, {row.task}" for row in rows.itertuples()],
        }
        for (state, reason), rows in cells[cells.state != "done"].groupby(["state", "reason"], sort=False)
    ]


def _engines(cells: pd.DataFrame) -> list[dict[str, Any]]:
    """What other engines than transformers wrote; none where none did."""
    if "engine" not in cells:
        return []
    parts = {"evaluation": "the answers of evaluations", "rl_rewards": "the completions in RL"}
    done = cells[(cells.state == "done") & cells.cell.isin(parts)]
    return [
        {"what": parts[str(cell)], "engine": engine, "number": len(rows), "of": int((done.cell == cell).sum())}
        for (cell, engine), rows in done.groupby(["cell", "engine"])
    ]


# --- Findings ---


def findings(content: Mapping[str, Any]) -> str:
    """The content of findings.json, for people."""
    primary = content["method"]["primary_metric"]
    measured = [part for claim in content["claims"] for part in claim["parts"] if part["status"] == "measured"]
    largest = max([abs(part["effect"][primary][end]) for part in measured for end in ("low", "high")] + [0.02])

    def place(value: float) -> float:
        """Pixels from the left of the picture of an interval, on one scale for the page with 0 in the middle."""
        return round(PICTURE / 2 * (1 + 0.96 * value / largest), 1)

    return render(
        "findings.html.j2",
        **content,
        primary=primary,
        metric_names={metric: METRIC_NAMES[metric] for metric in content["method"]["metrics"]},
        split_names=SPLIT_NAMES | {BOTH: "mean of ID and OOD", GAP: "OOD minus ID"},
        short_names={split: split.upper() for split in SPLIT_NAMES} | {BOTH: "ID, OOD", GAP: "OOD - ID"},
        tests=len(measured),
        one_seed=any(part["n"]["seeds"] == 1 for part in measured),
        width=PICTURE,
        place=place,
    )
