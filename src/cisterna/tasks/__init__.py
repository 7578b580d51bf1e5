"""Tasks: labelled data sets turned into prompt, reasoning trace and answer.

A task knows how to read one raw table and how to write its rows as text. It does not split, sample
or audit: that is `cisterna.data`. Four tasks are built in (`cisterna.tasks.catalog`); any other
name is the user's own table (`cisterna.tasks.table`). Importing this package imports no pandas.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cisterna.errors import UserError
from cisterna.tasks.catalog import LABELS, MODALITIES, SOURCES

if TYPE_CHECKING:
    import pandas as pd

# Columns of every frame of examples; all str but `ood`, which is bool.
COLUMNS = ("id", "prompt", "reasoning", "answer", "sequence", "group", "ood")


@dataclass(frozen=True)
class Task:
    """One labelled data set.

    `examples` takes the raw rows and returns one row an example with the columns COLUMNS. `open`
    reads the raw rows from `source`, a path relative to the root of the clone or absolute.
    `meaning` says what the label is and `rule` which rows are out of domain; both go into the data
    card. `quoted`: the shipped tokenizer text quotes rows of this task, so the rows that are
    `quotable` may be in train but not in validation or id.
    """

    name: str
    modality: str
    labels: tuple[str, ...]
    examples: Callable[[pd.DataFrame], pd.DataFrame]
    source: str
    meaning: str
    rule: str
    open: Callable[[Path], pd.DataFrame]
    quoted: bool


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
