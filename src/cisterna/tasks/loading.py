"""Tasks by name: the built-in ones, those of an adapter, and tables of the user's own.

Four tasks are built in (`cisterna.tasks.catalog`, `cisterna.tasks.builtin`); data of a published form are read by an
adapter (`cisterna.tasks.adapters`); any other name is the user's own table (`cisterna.tasks.table`). Importing this
module imports no pandas.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cisterna.errors import UserError
from cisterna.sequences.tokenization import ALPHABETS
from cisterna.tasks.base import Task
from cisterna.tasks.catalog import ADAPTERS, LABELS, MODALITIES, SOURCES

if TYPE_CHECKING:
    import pandas as pd


def load(name: str, spec: Mapping[str, Any]) -> Task:
    """The task called `name`: of the adapter that `spec` names, else the user's table if `spec` has
    the key `file`, else the built-in task of that name.

    Raises UserError if the name is neither, or if the user's keys are incomplete.
    """
    if spec.get("adapter"):
        adapter = ADAPTERS.get(spec["adapter"])
        if adapter is None:
            raise UserError(
                f"tasks.{name}.adapter: {spec['adapter']!r} is not an adapter. Use one of {', '.join(ADAPTERS)}."
            )
        return importlib.import_module(f"cisterna.tasks.adapters.{adapter.module}").task(name, spec)
    if "file" in spec:
        from cisterna.tasks import table

        return table.task(name, spec)
    if name not in LABELS:
        raise UserError(
            f"task {name!r} is not built in and has neither the key 'adapter' nor 'file'. "
            f"Built-in tasks: {', '.join(LABELS)}. Adapters: {', '.join(ADAPTERS)}. For your own table give "
            "'file', 'modality', 'columns', 'labels', 'question' and 'ood'."
        )
    module = importlib.import_module(f"cisterna.tasks.builtin.{name.replace('-', '_')}")
    return Task(
        name=name,
        modality=MODALITIES[name],
        labels=LABELS[name],
        examples=module.examples,
        open=functools.partial(_open_resource, Path(SOURCES[name])),
        meaning=module.MEANING,
        rule=module.RULE,
        sources=(SOURCES[name],),
        quoted=True,
        prompt=module.prompt,
        segments=module.segments,
        letters=None if module.LENGTH is None else ALPHABETS[MODALITIES[name]],
        length=module.LENGTH,
    )


def read(task: Task) -> pd.DataFrame:
    """All examples of a task, one row each, with the columns COLUMNS, and SPLIT where the data come with splits.

    The attributes (`.attrs`) of the raw rows are kept, with those of the examples. Raises UserError for an
    unreadable file, a missing column, no rows, wrong letters, duplicate ids, a label outside the
    answer space, or one sequence with two labels.
    """
    raw = task.open()
    examples = task.examples(raw)
    examples.attrs = {**raw.attrs, **examples.attrs}
    return examples


def questions(task: Task, path: Path) -> pd.DataFrame:
    """The sequences of any table as questions of a task: columns id, sequence, prompt, segments.

    The table is csv, tsv, Parquet or JSON lines with the sequence in the column `sequence`, or as
    the task's own table calls it, an optional id (else the number of the row) and, where the task's
    own table has one, the position of the variant. Raises UserError for an unreadable table
    and, naming the row, for a sequence that the task cannot ask about.
    """
    if task.ask is not None:
        return task.ask(path)
    assert task.prompt is not None
    assert task.segments is not None
    import pandas as pd

    from cisterna.tasks import table

    raw = table.open_table(path)
    found = {}
    for role in {"id", "sequence", "position"} & set(task.columns):
        column = next((name for name in (task.columns[role], role) if name in raw.columns), None)
        if column is not None:
            found[role] = table.texts(raw[column], path, column, role)
    for role in ("sequence", "position"):
        if role in task.columns and role not in found:
            has = ", ".join(map(str, raw.columns))
            raise UserError(f"{path}: no column {task.columns[role]!r} with the {role}s. It has: {has}.")
    sequences = found["sequence"]
    if task.letters is not None:
        sequences = [sequence.upper() for sequence in sequences]
    for row, sequence in enumerate(sequences, 1):
        where = f"{path}: row {row}"
        table.refuse_markup(sequence, where)
        if task.letters is not None and set(sequence) - set(task.letters):
            wrong = sorted(set(sequence) - set(task.letters))[0]
            raise UserError(f"{where}: {wrong!r} is not a letter of {task.modality} ({task.letters}). Correct the row.")
        if task.length not in (None, len(sequence)):
            raise UserError(
                f"{where}: {len(sequence)} residues; {task.name} asks about sequences of {task.length}. Correct it."
            )
    for column in task.fields:
        if column not in raw.columns:
            has = ", ".join(map(str, raw.columns))
            raise UserError(f"{path}: no column {column!r}, which the task's prompt names. It has: {has}.")
        for row, text in enumerate(table.texts(raw[column], path, column, "prompt"), 1):
            table.refuse_markup(text, f"{path}: row {row}: column {column!r}")
    cells = pd.DataFrame({column: table.texts(raw[column], path, column, "prompt") for column in task.fields})
    rows = table.records(cells.reindex(range(len(raw))), task.fields)
    segments = [task.segments(sequence) for sequence in sequences]
    for row, text in enumerate(found.get("position", []), 1):
        center = table.center(text, len(sequences[row - 1]), f"{path}: row {row}")
        segments[row - 1] = [part | {"center": center} for part in segments[row - 1]]
    return pd.DataFrame(
        {
            "id": found.get("id", [str(row) for row in range(1, len(raw) + 1)]),
            "sequence": sequences,
            "prompt": [task.prompt(sequence, *row) for sequence, row in zip(sequences, rows, strict=True)],
            "segments": segments,
        }
    )


def _open_resource(path: Path) -> pd.DataFrame:
    import pandas as pd

    if not path.is_file():
        raise UserError(
            f"{path}: no such file. Built-in tables are found from the root of the clone: run "
            "the command there, "
            "or restore the file with `git checkout -- resources/tasks`."
        )
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: not a readable Parquet file ({error}). Restore it with `git checkout -- resources/tasks`."
        ) from error
