"""The user's own table as a task: any csv, tsv, Parquet or JSON-lines file with an id, a sequence
and a label.

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

`prompt` takes the place of `question` where the whole prompt is to be written, with the columns it
names in braces: `Is {variant} active in {cell}? {sequence} It is one of {options}.` There {sequence} is
the tagged sequence and {options} the labels. `split` takes the place of `ood` and of the column
`group` where OOD rows are to be chosen (`cisterna.data.holdout`).

Not for tables that need a trace computed from the sequence: write a task module for that, like its
neighbours here.
"""

from __future__ import annotations

import functools
import json
import re
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from cisterna.errors import UserError
from cisterna.sequences.tokenization import ALPHABETS
from cisterna.tasks.base import Task, segment

# What the tokenizer and the answer parser read as structure.
MARKUP = re.compile(r"</?\s*(?:dna|rna|protein|think)\s*>|<\||\|>|\x00", re.IGNORECASE)


def _read_json_lines(path: Path) -> pd.DataFrame:
    """One JSON object a line, values as they are. Raises ValueError naming the line."""
    records = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
            if not isinstance(record, dict):
                raise ValueError(f"line {number} is not a JSON object")
            records.append(record)
    return pd.DataFrame(records, dtype=object)


def _read_text(path: Path, separator: str) -> pd.DataFrame:
    """Every cell as it stands: no number is parsed, and `NA` is a text."""
    return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False)


READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": functools.partial(_read_text, separator=","),
    ".tsv": functools.partial(_read_text, separator="\t"),
    ".parquet": pd.read_parquet,
    ".jsonl": _read_json_lines,
}
REQUIRED = ("id", "sequence", "label")
OPTIONAL = ("group", "reasoning", "position")


def task(name: str, spec: Mapping[str, Any]) -> Task:
    """The task of a user's table. `spec` is its entry in the config (keys as in config/README.md).

    Raises UserError naming the key for a missing or malformed key. The file itself is opened by
    `cisterna.tasks.read`.
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
        refuse_markup(label, f"{where}.labels")
    asked = str(spec[question]).strip()
    refuse_markup(asked, f"{where}.{question}")
    template = asked if question == "prompt" else None
    fields = named(template) if template else ()
    held_out = () if split else tuple(str(group) for group in spec["ood"])
    path = Path(spec["file"])
    write = functools.partial(prompt, asked, modality=spec["modality"], labels=labels)
    if template is not None:
        write = functools.partial(fill, template, modality=spec["modality"], labels=labels)
    return Task(
        name=name,
        modality=spec["modality"],
        labels=labels,
        open=functools.partial(open_table, path),
        examples=functools.partial(
            examples,
            path=path,
            columns=columns,
            modality=spec["modality"],
            labels=labels,
            write=write,
            fields=fields,
            held_out=None if split else held_out,
        ),
        meaning=f"column {columns['label']!r} of {path}",
        rule="" if split else f"out of domain: rows whose {columns['group']!r} is one of {', '.join(held_out)}",
        sources=(str(path),),
        prompt=write,
        segments=lambda sequence: [segment(sequence)],
        letters=ALPHABETS[spec["modality"]],
        columns=columns,
        fields=fields,
    )


def open_table(path: Path) -> pd.DataFrame:
    """The rows of a .csv, .tsv, .parquet or .jsonl file. Raises UserError if it cannot be read or
    has no rows.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: unknown kind of file. Use one of {', '.join(READERS)}.")
    if not path.is_file():
        raise UserError(f"{path}: no such file. Paths are relative to the folder where the command runs.")
    try:
        frame = reader(path)
    except (OSError, ValueError) as error:  # pandas' and pyarrow's parse errors are ValueErrors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: cannot be read as {path.suffix.lower()} ({reason}). Export it again.") from error
    if not isinstance(frame.index, pd.RangeIndex):  # pandas took the first field for an index
        raise UserError(f"{path}: rows have more fields than the header has names. Export it again.")
    if len(frame) == 0:
        raise UserError(f"{path}: has no rows. It needs a header and at least one row a split.")
    return frame


def named(template: str) -> tuple[str, ...]:
    """The columns that a template names, without its own fields sequence and options."""
    names = dict.fromkeys(name for _, name, _, _ in string.Formatter().parse(template) if name)
    return tuple(name for name in names if name not in ("sequence", "options"))


def fill(
    template: str,
    sequence: str,
    cells: Mapping[str, str] = MappingProxyType({}),
    *,
    modality: str,
    labels: tuple[str, ...],
) -> str:
    """The template with the tagged sequence, the labels and the cells of a row; ends with a newline."""
    tagged = f"<{modality}>{sequence}</{modality}>"
    own = {"sequence": tagged, "options": ", ".join(labels)}
    return (
        "".join(
            text + ("" if name is None else own[name] if name in own else cells[name])
            for text, name, _, _ in string.Formatter().parse(template)
        )
        + "\n"
    )


def prompt(question: str, sequence: str, modality: str, labels: tuple[str, ...]) -> str:
    """The question, the tagged sequence and the answers to choose from; ends with a newline."""
    return f"{question}\n<{modality}>{sequence}</{modality}>\nOptions: {', '.join(labels)}\n"


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
) -> pd.DataFrame:
    """Raw rows as examples, with upper-case sequences. A repeated sequence is kept once: the first, or without
    `held_out` that of the first group (the earliest, if groups are dates) and id.

    `write` makes the prompt of a sequence and, where there are `fields`, of their cells by name. Without
    `held_out`, the groups that are out of domain, no row is: `cisterna.data.holdout` chooses them.

    Rows in messages count from 1, without the header. Raises UserError naming file and row for a
    missing column or value, a repeated id, a label outside `labels`, a letter outside the modality,
    markup in a text, one sequence with two labels or on both sides of the split, or a held-out
    group that no row has.
    """
    for role, column in columns.items():
        if column not in raw.columns:
            key = "split.column" if role == "group" and held_out is None else f"columns.{role}"
            raise UserError(f"{path}: no column {column!r} ({key}). It has: {', '.join(map(str, raw.columns))}.")
    for column in fields:
        if column not in raw.columns:
            raise UserError(
                f"{path}: no column {column!r}, which `prompt` names. It has: {', '.join(map(str, raw.columns))}."
            )
    frame = pd.DataFrame({role: texts(raw[column], path, column, role) for role, column in columns.items()})
    cells = pd.DataFrame({column: texts(raw[column], path, column, "prompt") for column in fields}, index=frame.index)
    frame["sequence"] = [text.upper() for text in frame["sequence"]]

    duplicated = frame["id"].duplicated()
    if duplicated.any():
        repeated = _first(duplicated)
        name = frame["id"].iloc[repeated]
        before = _first(frame["id"] == name)
        raise UserError(
            f"{path}: rows {before + 1} and {repeated + 1} share the id {name!r}. Give every row an id of its own."
        )
    unknown = ~frame["label"].isin(labels)
    if unknown.any():
        outside = _first(unknown)
        raise UserError(
            f"{path}: row {outside + 1}: label {frame['label'].iloc[outside]!r} is not one of "
            f"{', '.join(labels)}. "
            "Correct the row or add the label to `labels`."
        )
    for row, sequence in enumerate(frame["sequence"], 1):
        wrong = sorted(set(sequence) - set(ALPHABETS[modality]))
        if wrong:
            raise UserError(
                f"{path}: row {row}: sequence has {wrong[0]!r}, which is not a letter of "
                f"{modality} "
                f"({ALPHABETS[modality]}). Correct the row or the task's `modality`."
            )
    if "position" in columns:
        frame["center"] = [
            center(text, len(sequence), f"{path}: row {row}: column {columns['position']!r}")
            for row, (text, sequence) in enumerate(zip(frame["position"], frame["sequence"], strict=True), 1)
        ]
    for role in columns:
        for row, text in enumerate(frame[role], 1):
            refuse_markup(text, f"{path}: row {row}: column {columns[role]!r}")
    for column in fields:
        for row, text in enumerate(cells[column], 1):
            refuse_markup(text, f"{path}: row {row}: column {column!r}")

    if "group" not in frame.columns:
        frame["group"] = "all"
    frame["ood"] = frame["group"].isin(held_out or ())
    for name in held_out or ():
        if name not in set(frame["group"]):
            raise UserError(
                f"{path}: no row has the group {name!r}, which `ood` holds out. Column "
                f"{columns['group']!r} has: "
                f"{', '.join(sorted(set(frame['group']))[:10])}."
            )
    for role, what in (("label", "labels"), ("ood", "sides of the split (in and out of domain)")):
        first = frame.groupby("sequence")[role].transform("first")
        differs = frame[role] != first
        if differs.any():
            second = _first(differs)
            before = _first(frame["sequence"] == frame["sequence"].iloc[second])
            raise UserError(
                f"{path}: rows {before + 1} and {second + 1} have the same sequence but different "
                f"{what}. "
                "Keep one of them, or none."
            )
    # Where rows are chosen by their group or date, which of the repeated ones is read must not depend on their order.
    order = frame.index if held_out is not None else frame.sort_values(["group", "id"]).index
    once = ~frame["sequence"][order].duplicated().reindex(frame.index)
    frame, given = frame[once].reset_index(drop=True), records(cells[once], fields)
    centers = frame["center"] if "position" in columns else [None] * len(frame)
    return pd.DataFrame(
        {
            "id": frame["id"],
            "prompt": [write(sequence, *row) for sequence, row in zip(frame["sequence"], given, strict=True)],
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


def records(cells: pd.DataFrame, fields: tuple[str, ...]) -> list[tuple[dict[str, str], ...]]:
    """What `write` takes beside the sequence, of each row: nothing, or the cells of `fields` by name."""
    if not fields:
        return [()] * len(cells)
    return [(dict(zip(fields, row, strict=True)),) for row in cells[list(fields)].itertuples(index=False)]


def texts(column: pd.Series, path: Path, name: str, role: str) -> list[str]:
    """A column as stripped text. Only the reasoning may be empty."""
    texts = ["" if missing else str(value).strip() for value, missing in zip(column, column.isna(), strict=True)]
    if role != "reasoning" and "" in texts:
        raise UserError(f"{path}: row {texts.index('') + 1}: column {name!r} is empty. Fill it or remove the row.")
    return texts


def center(text: str, length: int, where: str) -> int:
    """A 1-based position in a sequence, counted from 0."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= length:
        raise UserError(f"{where}: {text!r} is not a position. Give a whole number from 1 to {length}.")
    return int(text) - 1


def refuse_markup(text: str, where: str) -> None:
    """UserError for a text that holds what Cisterna's prompts use as markup."""
    found = MARKUP.search(text)
    if found:
        raise UserError(
            f"{where}: contains {found[0]!r}, which Cisterna's own prompts use as markup. Remove it from the text."
        )


def _first(wrong: pd.Series) -> int:
    """Position of the first true value."""
    return int(wrong.to_numpy().argmax())
