"""The user's own table as a task: a csv, tsv, Parquet or JSON-lines file with a sequence and a label.

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
{options} the labels. There may be several sequences, or none (`cisterna.tasks.table_prompt`). With `split` instead of
`ood` and of the column `group`, the rows that are out of domain are chosen (`cisterna.data.holdout`). Without an `id`
a row is called by its number. With `thresholds: [0.5]` the label is a number, which is cut there into the `labels`.

An example is a prompt: of rows with the same prompt and label one is kept, and rows with the same prompt and different
labels are a conflict. Prompts are the same if their sequences and columns are; an id in a prompt makes no difference.

Not for traces that are computed from the sequence: write a task module for that, like those in
`cisterna.tasks.builtin`.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cisterna.errors import UserError
from cisterna.tasks import catalog, table_prompt, tables, unseen
from cisterna.tasks.base import Task
from cisterna.tasks.table_prompt import TablePrompt

ROLES = ("id", "label", "sequence", "group", "reasoning", "position")
CONFLICTS = ("refuse", "majority", "drop")


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
    columns = {role: column for role, column in spec["columns"].items() if role not in ("sequence", "position")}
    if not columns.get("label"):
        raise UserError(f"{where}.columns.label: missing. Name the column of {spec['file']} that holds it.")
    several = unseen.columns(spec)
    if not several and split.get("column") and split["by"] != "similarity":
        columns["group"] = split["column"]
    elif not split and not several and not columns.get("group"):
        raise UserError(
            f"{where}.columns.group: missing. {where}.ood holds out groups, so name the column that holds the group."
        )
    unknown = sorted(set(columns) - set(ROLES))
    if unknown:
        raise UserError(f"{where}.columns.{unknown[0]}: unknown key. Use {', '.join(ROLES)}.")
    conflicts = spec.get("conflicts", CONFLICTS[0])
    if conflicts not in CONFLICTS:
        raise UserError(f"{where}.conflicts: {conflicts!r} is not a rule. Use one of {', '.join(CONFLICTS)}.")
    labels = tuple(str(label) for label in spec["labels"])
    if len(set(labels)) != len(labels) or len(labels) < 2:
        raise UserError(f"{where}.labels: {list(labels)} must be two or more different labels.")
    for label in labels:
        if label != label.strip() or not label or "\n" in label:
            raise UserError(f"{where}.labels: {label!r} must be one line without blanks around it.")
        tables.refuse_markup(label, f"{where}.labels")
    thresholds = tuple(map(float, spec.get("thresholds", ())))
    if thresholds and (len(thresholds) != len(labels) - 1 or list(thresholds) != sorted(set(thresholds))):
        raise UserError(
            f"{where}.thresholds: {list(thresholds)} must be {len(labels) - 1} different numbers from low to high, one "
            f"fewer than the labels."
        )
    prompt = table_prompt.of_spec(where, spec, labels)
    held_out = None if split else unseen.values(spec, columns.get("group"))
    path = Path(spec["file"])
    return Task(
        name=name,
        modality=catalog.modality(name, spec),
        labels=labels,
        open=functools.partial(tables.open_table, path),
        examples=functools.partial(
            examples,
            path=path,
            columns=columns,
            prompt=prompt,
            several=several,
            held_out=held_out,
            conflicts=conflicts,
            thresholds=thresholds,
        ),
        meaning=f"column {columns['label']!r} of {path}" + _cuts(labels, thresholds),
        rule="" if held_out is None else unseen.rule(held_out),
        sources=(str(path),),
        ask=functools.partial(ask, prompt=prompt, identifier=columns.get("id")),
        sequences=tuple(prompt.modalities),
        by_prompt=not prompt.by_sequence(columns.get("id")),
    )


def _cuts(labels: tuple[str, ...], thresholds: tuple[float, ...]) -> str:
    """The classes of a score in words."""
    if not thresholds:
        return ""
    above = (f"{label} from {cut:g}" for cut, label in zip(thresholds, labels[1:], strict=True))
    return f": {labels[0]} below {thresholds[0]:g}, {', '.join(above)}"


def classes(
    texts: Sequence[str], labels: Sequence[str], thresholds: Sequence[float], where: Callable[[int], str]
) -> list[str]:
    """The class of each score: the label after the last threshold that it reaches.

    `where` is what messages call a row, counted from 0. UserError, naming the row, for what is not a finite number.
    """
    found = []
    for row, text in enumerate(texts):
        try:
            score = float(text)
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise UserError(
                f"{where(row)}: {text!r} is not a number, which `thresholds` could cut. Correct the row or remove it."
            )
        found.append(labels[bisect.bisect_right(thresholds, score)])
    return found


def examples(
    raw: pd.DataFrame,
    *,
    path: Path,
    columns: Mapping[str, str],
    prompt: TablePrompt,
    several: tuple[str, ...] = (),
    held_out: Mapping[str, tuple[str, ...]] | None = None,
    conflicts: str = CONFLICTS[0],
    thresholds: tuple[float, ...] = (),
) -> pd.DataFrame:
    """Raw rows as examples, with upper-case sequences. The attribute `dropped` lists the rows that are left out.

    `held_out` are the values of columns that are out of domain; without it `cisterna.data.holdout` chooses them: whole
    groups, or values of the columns `several`. Of rows with the same prompt and label one is kept: the first, or
    without `held_out` the one whose group (such as a date) and id sort first. `conflicts` is the rule for rows with
    the same prompt and different labels: refuse, keep the label of the majority, or drop them all. `thresholds` cut the
    numbers in the column of the label.

    Raises UserError naming file and row for a missing column or value, a repeated id, a label outside `labels`, a
    letter outside the modality, markup in a text, one prompt with two labels or on both sides of the split, or a
    held-out value that no row has.
    """
    frame = pd.DataFrame(index=range(len(raw)))
    if "reasoning" in columns:
        raw = tables.joined(raw, columns["reasoning"], path)
    for role, column in columns.items():
        key = "split.column" if role == "group" and held_out is None else f"columns.{role}"
        frame[role] = tables.texts(raw, column, path, f" ({key})", may_be_empty=role == "reasoning")
    if "id" not in columns:
        frame["id"] = tables.numbers(raw)
    for column in several:
        key = "split.column" if held_out is None else f"ood.{column}"
        frame[unseen.PREFIX + column] = tables.texts(raw, column, path, f" ({key})")

    def row_name(row: int) -> str:
        return f"row {row + 1}"

    tables.check_unique(list(frame["id"]), path, row_name, "Give every row an id of its own")
    if thresholds:
        place = f"column {columns['label']!r}"
        frame["label"] = classes(
            list(frame["label"]), prompt.labels, thresholds, lambda row: f"{path}: {row_name(row)}: {place}"
        )
    for row, label in enumerate(frame["label"]):
        if label not in prompt.labels:
            raise UserError(
                f"{path}: {row_name(row)}: column {columns['label']!r}: label {label!r} is not one of "
                f"{', '.join(prompt.labels)}. Correct the row or add the label to `labels`."
            )
    cells = prompt.read(raw, path)
    frame["segments"] = pd.Series(prompt.segments(cells, raw, path), dtype=object)
    frame["prompt"] = prompt.write(cells)
    frame["key"] = prompt.write_without(cells, columns.get("id"))
    sequences = [cells[name] for name in prompt.modalities]
    frame["sequence"] = ["/".join(row) for row in zip(*sequences, strict=True)] if sequences else ""
    if "group" not in frame.columns:
        frame["group"] = "all"
    frame["ood"] = False
    for column, values in (held_out or {}).items():
        texts = frame[unseen.PREFIX + column] if column in several else frame["group"]
        tables.check_held_out(texts, values, path, column)
        if column not in several:
            frame["ood"] = texts.isin(values)
    if several and held_out:
        frame = unseen.mark(frame, held_out)
    what = "sequence" if prompt.by_sequence(columns.get("id")) else "prompt"
    frame, left_out = _resolve(frame, conflicts, path, row_name, what)
    # Where the rows out of domain are chosen later, the row that is kept must not depend on the order of the rows.
    by = ["group", *(unseen.PREFIX + column for column in several), "id"]
    order = frame.index if held_out is not None else frame.sort_values(by).index
    repeated = frame["key"][order].duplicated().reindex(frame.index)
    left_out += tables.dropped(f"the {what} of another row, with its label", _names(frame[repeated], row_name))
    notes = tables.notes_of_missing(frame["group"], f"column {columns.get('group')!r}")
    for column in prompt.fields:
        notes += tables.notes_of_missing(cells[column], f"column {column!r}")
    frame = frame[~repeated].reset_index(drop=True).rename(columns={"label": "answer"})
    if "reasoning" not in frame.columns:
        frame["reasoning"] = ""
    kept = ["id", "prompt", "segments", "reasoning", "answer", "sequence", "group", "ood"]
    frame = frame[kept + [unseen.PREFIX + column for column in several]]
    frame.attrs = {"dropped": left_out, "notes": notes, "letters": cells.attrs["letters"]}
    return frame


def _resolve(
    frame: pd.DataFrame, conflicts: str, path: Path, row_name: Callable[[int], str], what: str
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Rows without conflicts of labels, and what was dropped. UserError for a conflict that no rule resolves."""
    by_key = frame.groupby("key")
    conflict = by_key["label"].transform("nunique") > 1
    left_out: list[dict[str, Any]] = []
    keep = pd.Series(True, index=frame.index)
    if conflicts == "drop":
        keep = ~conflict
        left_out = tables.dropped(f"the same {what} with different labels", _names(frame[conflict], row_name))
    elif conflicts == "majority":
        votes = frame.groupby(["key", "label"])["id"].transform("size")
        most = votes == votes.groupby(frame["key"]).transform("max")
        winners = frame["label"].where(most).groupby(frame["key"]).transform("nunique")
        tied, outvoted = winners > 1, (winners == 1) & ~most
        keep = ~tied & ~outvoted
        left_out = tables.dropped(
            f"another label than most rows with the same {what}", _names(frame[outvoted], row_name)
        )
        left_out += tables.dropped(f"the same {what} with different labels, no majority", _names(frame[tied], row_name))
    frame = frame[keep]
    advice = "Keep one of them, or none"
    if conflicts == "refuse" and conflict.any():
        advice += "; or set `conflicts` to majority or drop"
    tables.check_consistent(frame, path, lambda row: row_name(frame.index[row]), what, advice, by="key")
    return frame, left_out


def _names(rows: pd.DataFrame, row_name: Callable[[int], str]) -> list[str]:
    return [f"{row_name(int(row))} (id {identifier})" for row, identifier in zip(rows.index, rows["id"], strict=True)]


def ask(path: Path, *, prompt: TablePrompt, identifier: str | None) -> pd.DataFrame:
    """The rows of a new table as questions (see `cisterna.tasks.questions`)."""
    raw = tables.open_table(path)
    cells = prompt.read(raw, path, new=True)
    column = identifier if identifier is not None and identifier in raw.columns else "id"
    ids = tables.texts(raw, column, path) if column in raw.columns else tables.numbers(raw)
    sequence = {"sequence": cells["sequence"]} if prompt.simple else {}
    prompts = {"prompt": prompt.write(cells), "segments": prompt.segments(cells, raw, path, new=True)}
    questions = pd.DataFrame({"id": ids} | sequence | prompts)
    questions.attrs = {"letters": cells.attrs["letters"], "numbered": column not in raw.columns}
    return questions
