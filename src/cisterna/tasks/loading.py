"""Tasks by name: the built-in ones, those of an adapter, and tables of the user's own.

Four tasks are built in (`cisterna.tasks.catalog`, `cisterna.tasks.builtin`); published data are read by an adapter
(`cisterna.tasks.adapters`); any other name is the user's own table (`cisterna.tasks.user_table`). Importing this module
imports no pandas.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Hashable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cisterna.artifacts import files
from cisterna.errors import UserError
from cisterna.sequences.tokenization import ALPHABETS
from cisterna.tasks.adapters import answer_form
from cisterna.tasks.base import COLUMNS, Task
from cisterna.tasks.catalog import ADAPTERS, LABELS, MODALITIES, SOURCES

if TYPE_CHECKING:
    import pandas as pd


def load(name: str, spec: Mapping[str, Any]) -> Task:
    """The task called `name`: of the adapter that `spec` names, or the user's table if it has `file`, or built in.

    `spec` is the task's entry in the config. Raises UserError if there is no such task, or for keys that are missing.
    """
    if spec.get("adapter"):
        adapter = ADAPTERS.get(spec["adapter"])
        if adapter is None:
            raise UserError(
                f"tasks.{name}.adapter: {spec['adapter']!r} is not an adapter. Use one of {', '.join(ADAPTERS)}."
            )
        return importlib.import_module(f"cisterna.tasks.adapters.{adapter.module}").task(name, spec)
    if "file" in spec:
        from cisterna.tasks import user_table

        return user_table.task(name, spec)
    if name not in LABELS:
        raise UserError(
            f"task {name!r} is not built in and has neither the key 'adapter' nor 'file'. Built-in tasks: "
            f"{', '.join(LABELS)}. Adapters: {', '.join(ADAPTERS)}. Your own table needs 'file', 'modality', "
            "'columns', 'labels', 'question' and 'ood'."
        )
    module = importlib.import_module(f"cisterna.tasks.builtin.{name.replace('-', '_')}")
    form = answer_form.line(f"one of {', '.join(LABELS[name])}", stated=spec.get("answer_form", False))
    return Task(
        name=name,
        modality=MODALITIES[name],
        labels=LABELS[name],
        examples=functools.partial(_examples, module, form),
        open=functools.partial(_open_resource, files.locate(SOURCES[name])),
        meaning=module.MEANING,
        rule=module.RULE,
        sources=(SOURCES[name],),
        quoted=True,
        prompt=lambda sequence: module.prompt(sequence) + form,
        segments=module.segments,
        letters=None if module.LENGTH is None else ALPHABETS[MODALITIES[name]],
        length=module.LENGTH,
    )


def _examples(module: ModuleType, form: str, raw: pd.DataFrame) -> pd.DataFrame:
    """The rows of a built-in task as examples: what its module says of each row, and the texts that it writes.

    `form` ends each prompt.
    """
    import pandas as pd

    rows = module.examples(raw)
    texts = {name: rows["sequence"].map(getattr(module, name)) for name in ("prompt", "segments", "reasoning")}
    texts["prompt"] += form
    return pd.DataFrame({"id": raw["id"].astype(str)} | texts | dict(rows.items()))[list(COLUMNS)]


def read(task: Task) -> pd.DataFrame:
    """All examples of a task, with the columns COLUMNS, and SPLIT where the data come with splits.

    They have the attributes (`.attrs`) of the raw rows too. Raises UserError for an unreadable file, a missing column,
    no rows, wrong letters, repeated ids, a label outside the answer space, or one prompt with two labels.
    """
    raw = task.open()
    examples = task.examples(raw)
    lists: dict[Hashable, Any] = {
        key: [*raw.attrs.get(key, []), *examples.attrs.get(key, [])] for key in ("dropped", "notes")
    }
    examples.attrs = {**raw.attrs, **examples.attrs, **lists}
    return examples


def questions(task: Task, path: Path) -> pd.DataFrame:
    """The rows of a new table as questions of a task: columns id, sequence, prompt, segments.

    The table is csv, tsv, Parquet or JSON lines. A user's table has the columns that its task's prompts are made of;
    for other tasks the sequence is in the column `sequence`. An id is optional (else the number of the row). Where
    prompts have no sequence, or several, there is no column of the sequence. The attribute `letters` says what was read
    otherwise than it was written (`cisterna.sequences.letters`), `numbered` whether ids are only numbers of rows.
    Raises UserError for an unreadable table and, naming the row, for one that the task cannot ask about.
    """
    if task.ask is not None:
        return task.ask(path)
    assert task.prompt is not None
    assert task.segments is not None
    import pandas as pd

    from cisterna.sequences import letters
    from cisterna.tasks import tables

    raw = tables.open_table(path)
    rows = tables.row_names(path, len(raw))
    ids = tables.texts(raw, "id", path) if "id" in raw.columns else tables.numbers(raw)
    sequences = tables.texts(raw, "sequence", path, " with the sequences")
    reader = None if task.letters is None else letters.Reader(task.modality)
    if reader is not None:
        sequences = [reader.read(sequence, where) for where, sequence in zip(rows, sequences, strict=True)]
        for where, sequence in zip(rows, sequences, strict=True):
            if task.length not in (None, len(sequence)):
                raise UserError(
                    f"{where}: {len(sequence)} residues; {task.name} asks about sequences of {task.length}. Correct it."
                )
    prompts, segments = map(task.prompt, sequences), map(task.segments, sequences)
    questions = {"id": ids, "sequence": sequences, "prompt": list(prompts), "segments": list(segments)}
    frame = pd.DataFrame(questions)
    frame.attrs = {"letters": reader.report() if reader else {}, "numbered": "id" not in raw.columns}
    return frame


def _open_resource(path: Path) -> pd.DataFrame:
    import pandas as pd

    if not path.is_file():
        raise UserError(
            f"{path}: no such file. It ships with Cisterna: run `git checkout -- resources/tasks` in the clone."
        )
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: not a readable Parquet file ({error}). Restore it with `git checkout -- resources/tasks`."
        ) from error
