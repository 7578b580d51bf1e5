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

Not for tables that need a trace computed from the sequence: write a task module for that, like its
neighbours here.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cisterna.errors import UserError
from cisterna.tasks import Task, segment
from cisterna.tokenizer import ALPHABETS

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
    for key in ("file", "modality", "columns", "labels", "question", "ood"):
        if not spec.get(key):
            raise UserError(
                f"{where}.{key}: missing or empty. A task with its own file needs it; see config/README.md."
            )
    if spec["modality"] not in ALPHABETS:
        raise UserError(f"{where}.modality: {spec['modality']!r} is not a modality. Use one of {', '.join(ALPHABETS)}.")
    columns = spec["columns"]
    for column in REQUIRED:
        if not columns.get(column):
            raise UserError(f"{where}.columns.{column}: missing. Name the column of {spec['file']} that holds it.")
    if not columns.get("group"):
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
    refuse_markup(str(spec["question"]), f"{where}.question")
    held_out = tuple(str(group) for group in spec["ood"])
    path = Path(spec["file"])
    return Task(
        name=name,
        modality=spec["modality"],
        labels=labels,
        examples=functools.partial(
            examples,
            path=path,
            columns=dict(columns),
            modality=spec["modality"],
            labels=labels,
            question=str(spec["question"]).strip(),
            held_out=held_out,
        ),
        prompt=functools.partial(prompt, str(spec["question"]).strip(), modality=spec["modality"], labels=labels),
        segments=lambda sequence: [segment(sequence)],
        letters=ALPHABETS[spec["modality"]],
        length=None,
        source=str(path),
        meaning=f"column {columns['label']!r} of {path}",
        rule=f"out of domain: rows whose {columns['group']!r} is one of {', '.join(held_out)}",
        open=open_table,
        quoted=False,
        columns=columns,
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
    question: str,
    held_out: tuple[str, ...],
) -> pd.DataFrame:
    """Raw rows as examples, with upper-case sequences. A repeated sequence is kept once.

    Rows in messages count from 1, without the header. Raises UserError naming file and row for a
    missing column or value, a repeated id, a label outside `labels`, a letter outside the modality,
    markup in a text, one sequence with two labels or on both sides of the split, or a held-out
    group that no row has.
    """
    for role, column in columns.items():
        if column not in raw.columns:
            raise UserError(
                f"{path}: no column {column!r} (columns.{role}). It has: {', '.join(map(str, raw.columns))}."
            )
    frame = pd.DataFrame({role: texts(raw[column], path, column, role) for role, column in columns.items()})
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

    frame["ood"] = frame["group"].isin(held_out)
    for name in held_out:
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
    frame = frame.drop_duplicates("sequence", ignore_index=True)
    centers = frame["center"] if "position" in columns else [None] * len(frame)
    return pd.DataFrame(
        {
            "id": frame["id"],
            "prompt": [prompt(question, sequence, modality, labels) for sequence in frame["sequence"]],
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
