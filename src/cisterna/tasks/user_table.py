"""The user's own table as a task: a csv, tsv, Parquet or JSON-lines file with an id, a sequence and a label.

With this entry in the config

    my-assay:
      file: data/my-assay.csv
      modality: protein
      columns: {id: variant, sequence: seq, label: class, group: family, reasoning: why}
      labels: [low, high]
      question: Is this variant active?
      ood: [kinase]

the row

    variant,seq,class,family,why
    v1,MKVLA,high,gpcr,no proline

becomes

    prompt  Is this variant active? <protein>MKVLA</protein> Options: low, high
    trace   no proline
    answer  high

With `prompt` instead of `question` the whole prompt is written, with names of columns in braces:
`Is {variant} active in {cell}? {sequence} It is one of {options}.` There {sequence} is the tagged sequence and
{options} the labels. With `split` instead of `ood` and of the column `group`, the rows that are out of domain are
chosen (`cisterna.data.holdout`).

Not for traces that are computed from the sequence: write a task module for that, like those in
`cisterna.tasks.builtin`.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cisterna.errors import UserError
from cisterna.sequences import letters
from cisterna.sequences.tokenization import ALPHABETS
from cisterna.tasks import catalog, tables
from cisterna.tasks.base import Task, segment

REQUIRED = ("id", "sequence", "label")
OPTIONAL = ("group", "reasoning", "position")


def task(name: str, spec: Mapping[str, Any]) -> Task:
    """The task of a user's table; `spec` is its entry in the config. `cisterna.tasks.read` opens the file.

    Raises UserError, which names the key, for a missing or malformed key.
    """
    where = f"tasks.{name}"
    split = spec.get("split") or {}
    question = "prompt" if "prompt" in spec else "question"
    for key in ("file", "modality", "columns", "labels", question, *(() if split else ("ood",))):
        if not spec.get(key):
            raise UserError(
                f"{where}.{key}: missing or empty. A task with its own file needs it; see config/README.md."
            )
    if spec["modality"] not in ALPHABETS:
        raise UserError(f"{where}.modality: {spec['modality']!r} is not a modality. Use one of {', '.join(ALPHABETS)}.")
    columns = dict(spec["columns"])
    for column in REQUIRED:
        if not columns.get(column):
            raise UserError(f"{where}.columns.{column}: missing. Name the column of {spec['file']} that holds it.")
    if split.get("column"):
        columns["group"] = split["column"]
    elif not split and not columns.get("group"):
        raise UserError(
            f"{where}.columns.group: missing. {where}.ood holds out groups, so name the column that holds the group."
        )
    unknown = sorted(set(columns) - {*REQUIRED, *OPTIONAL})
    if unknown:
        raise UserError(f"{where}.columns.{unknown[0]}: unknown key. Use {', '.join((*REQUIRED, *OPTIONAL))}.")
    labels = tuple(str(label) for label in spec["labels"])
    if len(set(labels)) != len(labels) or len(labels) < 2:
        raise UserError(f"{where}.labels: {list(labels)} must be two or more different labels.")
    for label in labels:
        if label != label.strip() or not label or "\n" in label:
            raise UserError(f"{where}.labels: {label!r} must be one line without blanks around it.")
        tables.refuse_markup(label, f"{where}.labels")
    template = str(spec[question]).strip()
    tables.refuse_markup(template, f"{where}.{question}")
    fields = named_columns(template) if question == "prompt" else ()
    if question == "question":
        template = template.replace("{", "{{").replace("}", "}}") + "\n{sequence}\nOptions: {options}"
    held_out = None if split else catalog.held_out(spec)
    path = Path(spec["file"])
    write = functools.partial(fill, template, modality=spec["modality"], labels=labels)
    return Task(
        name=name,
        modality=spec["modality"],
        labels=labels,
        open=functools.partial(tables.open_table, path),
        examples=functools.partial(
            examples,
            path=path,
            columns=columns,
            modality=spec["modality"],
            labels=labels,
            write=write,
            fields=fields,
            held_out=held_out,
            unusual_letters=spec.get("unusual_letters"),
        ),
        meaning=f"column {columns['label']!r} of {path}",
        rule=""
        if held_out is None
        else f"out of domain: rows whose {columns['group']!r} is one of {', '.join(held_out)}",
        sources=(str(path),),
        prompt=write,
        segments=lambda sequence: [segment(sequence)],
        letters=ALPHABETS[spec["modality"]],
        unusual_letters=spec.get("unusual_letters"),
        columns=columns,
        fields=fields,
    )


def named_columns(template: str) -> tuple[str, ...]:
    """The columns that a template names, without its own fields `sequence` and `options`."""
    names = dict.fromkeys(name for _, name, _, _ in string.Formatter().parse(template) if name)
    return tuple(name for name in names if name not in ("sequence", "options"))


def fill(template: str, sequence: str, *cells: str, modality: str, labels: tuple[str, ...]) -> str:
    """The template with the tagged sequence, the labels and the cells of its named columns; ends with a newline."""
    values = dict(zip(named_columns(template), cells, strict=True)) | {
        "sequence": f"<{modality}>{sequence}</{modality}>",
        "options": ", ".join(labels),
    }
    parts = string.Formatter().parse(template)
    return "".join(text + ("" if name is None else values[name]) for text, name, _, _ in parts) + "\n"


def examples(
    raw: pd.DataFrame,
    *,
    path: Path,
    columns: Mapping[str, str],
    modality: str,
    labels: tuple[str, ...],
    write: Callable[..., str],
    fields: tuple[str, ...] = (),
    held_out: tuple[str, ...] | None = None,
    unusual_letters: str | None = None,
) -> pd.DataFrame:
    """Raw rows as examples, with upper-case sequences; `write` makes the prompt of a sequence and its `fields`.

    `held_out` are the groups that are out of domain; without it `cisterna.data.holdout` chooses them. Of rows with the
    same sequence one is kept: the first, or without `held_out` the one whose group (such as a date) and id sort first.

    Raises UserError naming file and row for a missing column or value, a repeated id, a label outside `labels`, a
    letter outside the modality, markup in a text, one sequence with two labels or on both sides of the split, or a
    held-out group that no row has.
    """
    frame = pd.DataFrame(index=range(len(raw)))
    for role, column in columns.items():
        key = "split.column" if role == "group" and held_out is None else f"columns.{role}"
        frame[role] = tables.texts(raw, column, path, f" ({key})", may_be_empty=role == "reasoning")
    for column in fields:
        frame[("prompt", column)] = tables.texts(raw, column, path, ", which `prompt` names")

    def where(row: int, role: str) -> str:
        return f"{path}: row {row + 1}: column {columns[role]!r}"

    def row_name(row: int) -> str:
        return f"row {row + 1}"

    tables.check_unique(list(frame["id"]), path, row_name, "Give every row an id of its own")
    for row, label in enumerate(frame["label"]):
        if label not in labels:
            raise UserError(
                f"{where(row, 'label')}: label {label!r} is not one of {', '.join(labels)}. "
                "Correct the row or add the label to `labels`."
            )
    reader = letters.Reader(modality, unusual_letters)
    frame["sequence"] = [reader.read(text, where(row, "sequence")) for row, text in enumerate(frame["sequence"])]
    if "position" in columns:
        frame["center"] = [
            center(text, len(sequence), where(row, "position"))
            for row, (text, sequence) in enumerate(zip(frame["position"], frame["sequence"], strict=True))
        ]
    if "group" not in frame.columns:
        frame["group"] = "all"
    frame["ood"] = frame["group"].isin(held_out or ())
    tables.check_held_out(frame["group"], held_out or (), path, columns.get("group", ""))
    tables.check_consistent(frame, path, row_name, "sequence", "Keep one of them, or none")
    # Where the rows out of domain are chosen later, the row that is kept must not depend on the order of the rows.
    order = frame.index if held_out is not None else frame.sort_values(["group", "id"]).index
    once = ~frame["sequence"][order].duplicated().reindex(frame.index)
    dropped = tables.dropped("the sequence of another row, with its label", [row + 1 for row in frame.index[~once]])
    notes = tables.notes_of_missing(frame["group"], f"column {columns.get('group')!r}")
    frame = frame[once].reset_index(drop=True)
    cells = [frame[("prompt", column)] for column in fields]
    centers = frame["center"] if "position" in columns else [None] * len(frame)
    made = pd.DataFrame(
        {
            "id": frame["id"],
            "prompt": [write(*row) for row in zip(frame["sequence"], *cells, strict=True)],
            "segments": [
                [segment(sequence, 0, middle)] for sequence, middle in zip(frame["sequence"], centers, strict=True)
            ],
            "reasoning": frame.get("reasoning", ""),
            "answer": frame["label"],
            "sequence": frame["sequence"],
            "group": frame["group"],
            "ood": frame["ood"],
        }
    )
    made.attrs = {"dropped": dropped, "notes": notes, "letters": reader.report()}
    return made


def center(text: str, length: int, where: str) -> int:
    """The text of a position, which counts from 1, as an index from 0. UserError if it is not in the sequence."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= length:
        raise UserError(f"{where}: {text!r} is not a position. Give a whole number from 1 to {length}.")
    return int(text) - 1
