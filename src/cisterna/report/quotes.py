"""Quotes what the models wrote: the same few test examples, answered by every checkpoint along each lineage.

    cisterna quotes --results results --output results/studies/NAME

writes ``quotes.html``. The only source are the predictions in the folders of the evaluations. Examples are chosen by a
hash of their ids, so neither their answers nor which evaluations are there changes the choice. Not for measuring: a
dozen examples illustrate; below them are counts over all examples, and the other pages have the intervals.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cisterna.constants import TEST_SPLITS
from cisterna.errors import UserError, printable
from cisterna.evaluation.scores import PROBABILITY
from cisterna.report import QUOTES_PAGE, pages
from cisterna.report.grids import Column, Grid, grids
from cisterna.report.tables import KIND_NAMES, SPLIT_NAMES
from cisterna.scoring import answers, gene_ontology, term_sets
from cisterna.study import Study

SEED = 0  # of the choice of examples
MOST_BYTES = 5_000_000  # of the page
# Examples of a split and letters of a text. The first that makes a page of at most MOST_BYTES is taken, or the last.
LIMITS = ((12, 4000), (12, 1500), (8, 1500), (5, 1500), (3, 1500), (2, 800), (1, 400), (1, 100))
RIGHT, PARTLY, WRONG, MALFORMED, ABSENT = "r", "p", "w", "m", "n"
STATES = {RIGHT: "right", PARTLY: "partly right", WRONG: "wrong", MALFORMED: "malformed", ABSENT: "not there"}
GLYPHS = {RIGHT: "✓", PARTLY: "◐", WRONG: "✗", MALFORMED: "?", ABSENT: "·"}
ORDER = MALFORMED + WRONG + PARTLY + RIGHT  # from worse to better

Row = dict[str, Any]
Judge = Callable[[str, str | None], str]  # (gold, predicted) -> a state


@dataclass(frozen=True)
class Answered:
    """What one checkpoint answered to a split: the state of every example, and the rows of those that are quoted."""

    states: NDArray[np.str_]  # in the order of `Sheet.ids`; ABSENT for one that was not answered
    rows: dict[str, Row]  # by example id


@dataclass(frozen=True)
class Sheet:
    """A split of a task: the ids of all its examples, those to quote in the order of the choice, and the answers."""

    ids: tuple[str, ...]
    chosen: tuple[str, ...]
    answered: dict[str, Answered]  # by folder of the evaluation, of those that are there


Sheets = dict[tuple[str, str], Sheet]  # by task and split


def quotes(study: Study, results: Path, output: Path, partial: bool = False) -> None:
    """Write quotes.html of a study into the folder ``output``; the same predictions give the same bytes.

    ``results`` is the folder with ``models/`` (and with ``data/``, for tasks whose answers are sets of terms). An
    evaluation that is absent is a column without answers. UserError if all are, or if one cannot be read; with
    ``partial`` that one is absent too.
    """
    sheets = read(study, results, partial)
    output.mkdir(parents=True, exist_ok=True)
    pages.write(output / QUOTES_PAGE, f"What the models of study {study.name} say", lambda: page(study, sheets))


def read(study: Study, results: Path, partial: bool = False) -> Sheets:
    """The answers of every evaluation that is there. Raises the UserErrors of ``quotes``."""
    sheets: Sheets = {}
    for task in study.tasks:
        judge = _judge(results / "data" / task / gene_ontology.FILE if task in study.of_terms else None)
        for split in TEST_SPLITS:
            ids: tuple[str, ...] = ()
            chosen: tuple[str, ...] = ()
            answered: dict[str, Answered] = {}
            for folder in [folder for folder, _, its_task in study.evaluations() if its_task == task]:
                table = _predictions(results / folder / f"{split}.parquet", partial)
                if table is None:
                    continue
                columns = (table[name].to_pylist() for name in ("id", "answer", "predicted"))
                states = {example: judge(gold, predicted) for example, gold, predicted in zip(*columns, strict=True)}
                if not ids:
                    ids = tuple(sorted(states))
                    chosen = choose(ids, f"{task} {split}", LIMITS[0][0])
                quoted = [place for place, example in enumerate(states) if example in chosen]
                answered[folder] = Answered(
                    np.array([states.get(example, ABSENT) for example in ids], dtype="U1"),
                    {row["id"]: row | {"state": states[row["id"]]} for row in table.take(quoted).to_pylist()},
                )
            sheets[task, split] = Sheet(ids, chosen, answered)
    if not any(sheet.answered for sheet in sheets.values()):
        raise UserError(
            f"study {study.name}: none of its {len(study.evaluations())} evaluations is in {results}; "
            "run snakemake to make them, or give their folder with --results"
        )
    return sheets


def choose(ids: Sequence[str], where: str, number: int) -> tuple[str, ...]:
    """That many of the ids, in an order that depends on each id, on ``where`` and on SEED alone."""

    def place(example: str) -> str:
        return hashlib.sha256(f"{SEED} {where} {example}".encode()).hexdigest()

    return tuple(sorted(ids, key=place)[:number])


def _judge(ontology: Path | None) -> Judge:
    """The state of an answer. Of sets of terms PARTLY, if it names a term of the gold set."""
    known = gene_ontology.load(ontology) if ontology and ontology.is_file() else None

    @functools.cache
    def judge(gold: str, predicted: str | None) -> str:
        if not isinstance(predicted, str):
            return MALFORMED
        if ontology is None:
            return RIGHT if predicted == gold else WRONG
        named, true = answers.split(predicted), answers.split(gold)
        if term_sets.same(named, true, known) if known else set(named) == set(true):
            return RIGHT
        return PARTLY if set(named) & set(true) else WRONG

    return judge


def _predictions(file: Path, partial: bool) -> pa.Table | None:
    """The predictions of an evaluation; None if there are none."""
    if not file.is_file():
        return None
    wanted = ["id", "prompt", "output", "answer", "predicted"]
    try:
        names = pq.read_schema(file).names
        more = [name for name in ("predicted_lenient", "finished", "confidence") if name in names]
        more += [name for name in names if name.startswith(PROBABILITY)]
        return pq.read_table(file, columns=[*wanted, *more])
    except (OSError, ValueError, KeyError) as error:
        if partial:
            return None
        raise UserError(f"{file}: cannot be read ({error}); delete {file.parent} and run snakemake again") from error


# --- The page ---


def page(study: Study, sheets: Sheets) -> str:
    """The page with the most that MOST_BYTES allow (LIMITS)."""
    lines = grids(study)
    for limits in LIMITS:
        text = pages.render("quotes.html.j2", **_content(study, sheets, lines, *limits))
        if len(text.encode()) <= MOST_BYTES:
            break
    return text


def _content(study: Study, sheets: Sheets, lines: Sequence[Grid], most: int, letters: int) -> Row:
    """What the template shows, with at most that many examples of a split and letters of a text."""
    texts: dict[str, int] = {}  # each once: rungs often write the same

    def place(text: str | None) -> int | None:
        return None if text is None else texts.setdefault(shortened(text, letters), len(texts))

    examples = {
        task: [row for split in TEST_SPLITS for row in _examples(sheets[task, split], split, most)]
        for task in study.tasks
    }
    said = {
        folder: [_said(sheets[task, row["split"]], folder, row["id"]) for row in examples[task]]
        for folder, _, task in study.evaluations()
    }
    folders = {folder: number for number, folder in enumerate(said)}
    data = {
        "examples": {
            task: [[row["name"], row["split"], row["gold"], place(row["prompt"])] for row in rows]
            for task, rows in examples.items()
        },
        "said": [
            [quote and [place(quote["output"]), quote["state"], *quote["facts"]] for quote in quotes]
            for quotes in said.values()
        ],
        "grids": [
            [grid.task, [[one.name, one.kind, folders[one.folder], one.repeated] for one in grid.columns]]
            for grid in lines
        ],
        "texts": list(texts),
        "states": STATES,
        "glyphs": GLYPHS,
        "splits": SPLIT_NAMES,
    }
    return {
        "study": study.name,
        "expected": len(folders),
        "absent": [folder for folder in folders if not any(folder in sheet.answered for sheet in sheets.values())],
        "sizes": {task: {split: len(sheets[task, split].ids) for split in TEST_SPLITS} for task in study.tasks},
        "limits": {"most": most, "of": LIMITS[0][0], "letters": letters, "megabytes": MOST_BYTES // 1_000_000},
        "seed": SEED,
        "states": {key: name for key, name in STATES.items() if key != PARTLY or study.of_terms},
        "glyphs": GLYPHS,
        "splits": SPLIT_NAMES,
        "kinds": {kind: name for kind, name in KIND_NAMES.items() if any(model.kind == kind for model in study.models)},
        "lineages": list(dict.fromkeys(grid.lineage for grid in lines)),
        "tasks": {
            task: {
                "grids": [
                    (number, _grid(grid, sheets, examples[task]))
                    for number, grid in enumerate(lines)
                    if grid.task == task
                ],
                "reading": _reading(next(grid for grid in lines if grid.task == task), examples[task], said, letters),
            }
            for task in study.tasks
        },
        "data": json_for_html(data),
    }


def _examples(sheet: Sheet, split: str, most: int) -> list[Row]:
    """The examples of a split that are shown, those with the same gold answer together."""
    rows = []
    for example in sheet.chosen[:most]:
        found = next(answered.rows[example] for answered in sheet.answered.values() if example in answered.rows)
        shown = {"name": printable(example), "gold": printable(found["answer"]), "prompt": found["prompt"]}
        rows.append({"id": example, "split": split} | shown)
    return sorted(rows, key=lambda row: row["gold"])


def _said(sheet: Sheet, folder: str, example: str) -> Row | None:
    """The output of one checkpoint for one example; ``facts`` say what was read in it and how sure the model was."""
    row = sheet.answered[folder].rows.get(example) if folder in sheet.answered else None
    if row is None:
        return None
    lenient = row.get("predicted_lenient") if row["state"] == MALFORMED else None
    predicted = row["predicted"] or lenient
    probabilities = [row.get("confidence"), row.get(f"{PROBABILITY}{row['answer']}")]
    facts = [
        predicted and printable(predicted),
        *(None if value is None else round(float(value), 3) for value in probabilities),
        row.get("finished", True),
    ]
    return {"output": row["output"], "state": row["state"], "facts": facts}


def _grid(grid: Grid, sheets: Sheets, examples: Sequence[Row]) -> Row:
    """The cells of a grid, and below those of a split what became of all its examples."""
    return {
        "lineage": grid.lineage,
        "runs": [(heading, len(list(run))) for heading, run in groupby(grid.columns, key=lambda one: one.heading)],
        "columns": grid.columns,
        "splits": {
            split: {
                "rows": [
                    row | {"number": number, "cells": _cells(grid.columns, sheets[grid.task, split], row["id"])}
                    for number, row in enumerate(examples)
                    if row["split"] == split
                ],
                "sums": _sums(grid.columns, sheets[grid.task, split]),
            }
            for split in TEST_SPLITS
        },
    }


def _before(columns: Sequence[Column], number: int) -> Column | None:
    """The checkpoint that a column is compared with: the one to its left."""
    return None if number == 0 or columns[number].repeated else columns[number - 1]


def _cells(columns: Sequence[Column], sheet: Sheet, example: str) -> list[tuple[str, str]]:
    """State and change (up, down or nothing) of each column for one example."""

    def state_of(column: Column | None) -> str:
        answered = sheet.answered.get(column.folder) if column else None
        return answered.rows[example]["state"] if answered and example in answered.rows else ABSENT

    cells = []
    for number, column in enumerate(columns):
        state, earlier = state_of(column), state_of(_before(columns, number))
        known = ABSENT not in (state, earlier)
        better = ORDER.index(state) - ORDER.index(earlier) if known else 0
        cells.append((state, "up" if better > 0 else "down" if better < 0 else ""))
    return cells


def _sums(columns: Sequence[Column], sheet: Sheet) -> list[Row]:
    """Of all examples of a split, for each column: the share that is right, and how many became right or stopped being.

    Empty for a checkpoint that is not there; without changes where there is none before it.
    """
    sums = []
    for number, column in enumerate(columns):
        before = _before(columns, number)
        answered, earlier = (sheet.answered.get(one.folder) if one else None for one in (column, before))
        numbers: Row = {}
        if answered and sheet.ids:
            right = answered.states == RIGHT
            numbers = {"right": float(right.mean()), "malformed": float((answered.states == MALFORMED).mean())}
            if earlier:
                was = earlier.states == RIGHT
                numbers |= {"gained": int((right & ~was).sum()), "lost": int((was & ~right).sum())}
        sums.append(numbers)
    return sums


def _reading(grid: Grid, examples: Sequence[Row], said: dict[str, list[Row | None]], letters: int) -> Row | None:
    """One example in full, for a browser without scripts: the first out-of-domain one, along one lineage."""
    number = next((number for number, row in enumerate(examples) if row["split"] == TEST_SPLITS[-1]), None)
    if number is None:
        return None
    shown = [(column.name, said[column.folder][number]) for column in grid.columns if not column.repeated]
    return examples[number] | {
        "prompt": shortened(examples[number]["prompt"], letters),
        "quotes": [
            quote | {"name": name, "output": shortened(quote["output"], letters)} for name, quote in shown if quote
        ],
    }


def shortened(text: str, letters: int) -> str:
    """A text with escapes for control characters, and without its middle if it has more letters than that."""
    if len(text) > letters:
        head, tail = letters - letters // 3, letters // 3
        text = f"{text[:head]} [… {len(text) - head - tail:,} letters left out …] {text[-tail:]}"
    return printable(text)


def json_for_html(value: Any) -> str:
    """JSON that can stand in a script element: no text in it can end the element or is markup."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
