"""Tasks: labelled data sets turned into prompt, reasoning trace and answer.

A task knows how to read its raw tables and how to write their rows as text. It does not split, sample
or audit: that is `cisterna.data.splits`. Four tasks are built in (`cisterna.tasks.catalog`); data of a
published form are read by an adapter, a module of this package; any other name is the user's own
table (`cisterna.tasks.table`). Importing this package imports no pandas.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cisterna.errors import UserError
from cisterna.sequences.tokenizer import ALPHABETS
from cisterna.tasks.catalog import ADAPTERS, LABELS, MODALITIES, SOURCES

if TYPE_CHECKING:
    import pandas as pd

    from cisterna.scoring.gene_ontology import Ontology

# Columns of every frame of examples; all str but `segments`, a list of `segment`s, and `ood`, which is bool.
COLUMNS = ("id", "prompt", "segments", "reasoning", "answer", "sequence", "group", "ood")
# Where a data set comes with splits, one more: "train", "id" or "ood".
SPLIT = "split"


@dataclass(frozen=True)
class Task:
    """One labelled data set.

    `open` reads the raw rows from `sources`, which are files, with paths relative to the root of the
    clone or absolute, and from `hub`, a data set of the Hugging Face hub (id and revision). Of its
    attributes (`.attrs`) `fingerprint` says what was read from the hub, and `notes`, a list of
    sentences for the data card, what was left out and why. `examples` takes the raw rows and
    returns one row an example with the columns COLUMNS and, where the data come with splits, the
    column SPLIT. `labels` is the answer space: None if it is all the different answers of the
    examples, empty if an answer is not one of a list.

    `prompt` is the question about one sequence, and `segments` says of which sequence each tagged
    stretch of residues in it is, in order: the context in which an encoder reads it. `letters` and
    `length` are those of a sequence, None where it may have any; `columns` names id and sequence in
    the table, and `fields` are columns of it that `prompt` takes too, as a mapping after the
    sequence. Where a question needs more than that, `prompt` and `segments` are None and `ask` takes
    the path of a table of new rows and returns id, sequence, prompt, segments, as `questions` does.

    Where an answer is a set of terms, `terms` takes the examples of train and returns the ontology by
    which answers are scored, which is written beside the splits.

    `meaning` says what the label is and `rule` which rows are out of domain; both go into the data
    card. `quoted`: the shipped tokenizer text quotes rows of this task, so the rows that are
    `quotable` may be in train but not in validation or id.
    """

    name: str
    modality: str
    labels: tuple[str, ...] | None
    examples: Callable[[pd.DataFrame], pd.DataFrame]
    open: Callable[[], pd.DataFrame]
    meaning: str
    rule: str
    sources: tuple[str, ...] = ()
    hub: Mapping[str, str | None] | None = None
    quoted: bool = False
    prompt: Callable[..., str] | None = None
    segments: Callable[[str], list[dict[str, Any]]] | None = None
    letters: str | None = None
    length: int | None = None
    fields: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=lambda: {"id": "id", "sequence": "sequence"})
    ask: Callable[[Path], pd.DataFrame] | None = None
    terms: Callable[[pd.DataFrame], Ontology] | None = None


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
