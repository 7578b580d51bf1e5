"""Tasks: labelled data sets turned into prompt, reasoning trace and answer.

A task knows how to read one raw table and how to write its rows as text. It does not split, sample
or audit: that is `cisterna.data`. Four tasks are built in (`cisterna.tasks.catalog`); any other
name is the user's own table (`cisterna.tasks.table`). Importing this package imports no pandas.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cisterna.errors import UserError
from cisterna.tasks.catalog import LABELS, MODALITIES, SOURCES
from cisterna.tokenizer import ALPHABETS

if TYPE_CHECKING:
    import pandas as pd

# Columns of every frame of examples; all str but `segments`, a list of `segment`s, and `ood`, which is bool.
COLUMNS = ("id", "prompt", "segments", "reasoning", "answer", "sequence", "group", "ood")


@dataclass(frozen=True)
class Task:
    """One labelled data set.

    `examples` takes the raw rows and returns one row an example with the columns COLUMNS. `prompt`
    is the question about one sequence, and `segments` says of which sequence each tagged stretch of
    residues in it is, in order: the context in which an encoder reads it. `letters` and `length`
    are those of a sequence, None where it may have any. `open` reads the raw rows from `source`, a
    path relative to the root of the clone or absolute; there `columns` names id and sequence.
    `meaning` says what the label is and `rule` which rows are out of domain; both go into the data
    card. `quoted`: the shipped tokenizer text quotes rows of this task, so the rows that are
    `quotable` may be in train but not in validation or id.
    """

    name: str
    modality: str
    labels: tuple[str, ...]
    examples: Callable[[pd.DataFrame], pd.DataFrame]
    prompt: Callable[[str], str]
    segments: Callable[[str], list[dict[str, Any]]]
    letters: str | None
    length: int | None
    source: str
    meaning: str
    rule: str
    open: Callable[[Path], pd.DataFrame]
    quoted: bool
    columns: Mapping[str, str] = field(default_factory=lambda: {"id": "id", "sequence": "sequence"})


def load(name: str, spec: Mapping[str, Any]) -> Task:
    """The task called `name`: the user's table if `spec` has the key `file`, else the built-in task
    of that name.

    Raises UserError if the name is neither, or if the user's keys are incomplete.
    """
    if "file" in spec:
        from cisterna.tasks import table

        return table.task(name, spec)
    if name not in LABELS:
        raise UserError(
            f"task {name!r} is not built in and has no key 'file'. "
            f"Built-in tasks: {', '.join(LABELS)}. For your own table give 'file', 'modality', "
            "'columns', 'labels', "
            "'question' and 'ood'."
        )
    module = importlib.import_module(f"cisterna.tasks.{name.replace('-', '_')}")
    return Task(
        name=name,
        modality=MODALITIES[name],
        labels=LABELS[name],
        examples=module.examples,
        prompt=module.prompt,
        segments=module.segments,
        letters=None if module.LENGTH is None else ALPHABETS[MODALITIES[name]],
        length=module.LENGTH,
        source=SOURCES[name],
        meaning=module.MEANING,
        rule=module.RULE,
        open=_open_resource,
        quoted=True,
    )


def read(task: Task) -> pd.DataFrame:
    """All examples of a task, one row each, with the columns COLUMNS.

    Raises UserError for an unreadable file, a missing column, no rows, wrong letters, duplicate
    ids, a label outside the answer space, or one sequence with two labels.
    """
    return task.examples(task.open(Path(task.source)))


def segment(sequence: str, start: int = 0, center: int | None = None) -> dict[str, Any]:
    """The context of a tagged stretch of residues: it begins at `start` of `sequence` (from 0).

    `center` is the residue that a window for the encoder is cut around; None is the middle of the
    stretch.
    """
    return {"sequence": sequence, "start": start, "center": center}


def questions(task: Task, path: Path) -> pd.DataFrame:
    """The sequences of any table as questions of a task: columns id, sequence, prompt, segments.

    The table is csv, tsv, Parquet or JSON lines with the sequence in the column `sequence`, or as
    the task's own table calls it, an optional id (else the number of the row) and, where the task's
    own table has one, the position of the variant. Raises UserError for an unreadable table
    and, naming the row, for a sequence that the task cannot ask about.
    """
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
    segments = [task.segments(sequence) for sequence in sequences]
    for row, text in enumerate(found.get("position", []), 1):
        center = table.center(text, len(sequences[row - 1]), f"{path}: row {row}")
        segments[row - 1] = [part | {"center": center} for part in segments[row - 1]]
    return pd.DataFrame(
        {
            "id": found.get("id", [str(row) for row in range(1, len(raw) + 1)]),
            "sequence": sequences,
            "prompt": [task.prompt(sequence) for sequence in sequences],
            "segments": segments,
        }
    )


def quotable(identifier: str) -> bool:
    """Whether the tokenizer's text may quote the row of this id: a quarter of all rows, by the
    sha256 of the id.
    """
    return hashlib.sha256(identifier.encode()).digest()[0] < 64


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
