"""What each column of a table is taken for by `cisterna init`, and why; what is not certain becomes a question.

Rules, not a model: content decides first (letters, repeats, numbers), then the words of a column's name. Not for the
content of a column (`cisterna.drafting.columns`), nor for splits (`cisterna.drafting.ways`).
"""

from __future__ import annotations

import itertools
import math
import re
import shlex
import statistics
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from cisterna.drafting import columns as cols
from cisterna.drafting.columns import CLASSES, Column, listed, shown
from cisterna.errors import UserError
from cisterna.tasks import tables

# Beginnings of words in the name of a column.
LABEL = tuple(
    "label class categor outcome target phenotyp effect respons status signific interact bin activ function pathogen "
    "toxic locali solub lethal essential answer".split()
)
GROUP = tuple(
    "famil superfamil group cluster fold clade species organism strain gene protein transcript chr locus "
    "allele assay batch plate study dataset source donor patient cell line tissue site position parent scaffold".split()
)
IDENTIFIER = set("id ids rsid uid identifier accession name variant mutant mutation key index row entry".split())
REASONING = set("reasoning trace rationale explanation why thought".split())
SPLITS = set("train training val valid validation dev test testing holdout id ood".split())
MOST = 50  # values of a column that the user calls the label
RARE = 10  # rows; a label with fewer is hardly learned and hardly measured
PEPTIDE = 12  # letters (median); a shorter sequence of A, C, G and T may be a peptide
SAME = 5  # values in common, by which two columns are of the same kind
FIELDS = 8  # columns in a prompt
ABSENT = {*tables.MISSING, "#n/a", "unknown", "missing", "not available", "?", "-", "."}  # may stand for no value
GAPS = 0.2  # share of the rows; a column with more empty cells is not used, one with fewer has to be filled
ONLY = "the only column with few values"


class Taken(NamedTuple):
    """What a column is taken for, and why."""

    role: str  # sequence, label, id, group, text, date, reasoning, unused
    why: str


@dataclass
class Reading:
    """A table with what its columns were taken for. Without sequences the prompt shows the columns of text."""

    path: Path
    columns: Mapping[str, Column]
    label: str
    labels: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()
    taken: dict[str, Taken] = field(default_factory=dict)
    questions: list[str] = field(default_factory=list)

    def of(self, *roles: str) -> list[str]:
        """The columns with these roles, in the order of the table."""
        return [name for name in self.columns if name in self.taken and self.taken[name].role in roles]

    @property
    def rows(self) -> int:
        """Rows of the table."""
        return len(self.columns[self.label].cells)

    @property
    def sequences(self) -> dict[str, str]:
        """The modality of each column with sequences."""
        return {name: self.columns[name].modalities[0] for name in self.of("sequence")}

    @property
    def groups(self) -> list[str]:
        """Columns whose values may be held out, those that are named as groups first."""
        found = [name for name in self.of("group", "text") if _repeats(self.columns[name])]
        return sorted(found, key=lambda name: not _named(name, GROUP))


def read(
    raw: pd.DataFrame, path: Path, label: str | None, thresholds: Sequence[float], classes: Sequence[str]
) -> Reading:
    """The columns of a table with what they are taken for. `label`, `thresholds` and `classes` are what the user said.

    Raises UserError, naming the candidates and what to type, if the column of the label cannot be decided, and for one
    that cannot be used: empty cells, one value, numbers without thresholds.
    """
    columns = cols.read(raw, path)
    if label is not None:
        tables.column(raw, label, path, " (--label)")
        chosen, why = label, "you said so (--label)"
    else:
        chosen, why = _choose_label(columns, path, bool(thresholds))
    reading = Reading(path, columns, chosen)
    _take_label(reading, why, thresholds, classes)
    _take_structure(reading)
    _take_identifier(reading)
    for name in columns:
        if name not in reading.taken:
            reading.taken[name] = _rest(reading, name)
    _take_fields(reading)
    return reading


# --- The label ---


def _choose_label(columns: Mapping[str, Column], path: Path, cut: bool) -> tuple[str, str]:
    """The column of the label, and why it is that."""
    scores = [name for name, column in columns.items() if _is_score(column)]
    few = [name for name, column in columns.items() if _is_classes(column)]
    named = [name for name in few if _named(name, LABEL)]
    unnamed = [name for name in few if not _named(name, GROUP) and not _names_rows(name)]
    for name, column in columns.items():
        if column.problem and _named(name, LABEL):
            raise UserError(f"{path}: {column.problem} If it is not the label, name another column with --label.")
    if cut:
        numeric = [name for name, column in columns.items() if _may_be_cut(column)]
        if len(numeric) == 1:
            return numeric[0], "the only column of numbers, which your thresholds cut"
        found = f"several columns have numbers ({listed(numeric)})" if numeric else "no column has numbers to cut"
        raise UserError(f"{path}: --threshold: {found}. Name the one that is cut with --label.")
    if len(named) == 1:
        return named[0], "few values, and named as a label"
    if len(unnamed) == 1 and not named and not scores:
        return unnamed[0], ONLY
    candidates = named or [*unnamed, *scores] or few
    if not candidates:
        mixed = [
            f" {shown(name)} has numbers, but also {shown(column.beside_numbers)}."
            for name, column in columns.items()
            if column.beside_numbers
        ]
        raise UserError(
            f"{path}: no column may be the label: none has 2 to {CLASSES} different values, nor numbers in every "
            f"row.{''.join(mixed[:1])} Name it with --label, or add one."
        )
    first = f"--label {shlex.quote(candidates[0])}" + (" --threshold X" if candidates[0] in scores else "")
    cut_too = (
        " Numbers need --threshold X too: where they are cut into classes." if set(candidates) & set(scores) else ""
    )
    raise UserError(
        f"{path}: which column is the label? {listed(candidates)} may be. Choose one, such as {first}.{cut_too}"
    )


def _take_label(reading: Reading, why: str, thresholds: Sequence[float], classes: Sequence[str]) -> None:
    path, column = reading.path, reading.columns[reading.label]
    place = f"{path}: column {shown(column.name)}, the label,"
    if column.problem:
        raise UserError(f"{path}: the label: {column.problem}")
    if column.empty:
        raise UserError(f"{place} is empty in {_empty(column)}. Fill these cells or remove these rows.")
    if len(column.counts) < 2:
        raise UserError(f"{place} is {shown(column.cells[0])} in every row. There is nothing to learn.")
    if not all(map(math.isfinite, thresholds)):
        raise UserError(f"--threshold: expected finite numbers, not {', '.join(map(str, thresholds))}")
    if thresholds:
        reading.thresholds = tuple(sorted(set(thresholds)))
        reading.labels = _class_names(len(reading.thresholds) + 1, classes)
        why += f"; cut at {', '.join(f'{cut:g}' for cut in reading.thresholds)}"
    elif classes:
        raise UserError("--classes: only with --threshold; other labels are the texts in the table")
    elif _is_score(column) or (column.numbers and len(column.counts) > MOST):
        quarters = statistics.quantiles(column.numbers or [], n=4)
        raise UserError(
            f"{place} has {len(column.counts)} different numbers (quartiles: {quarters[0]:.6g}, {quarters[1]:.6g}, "
            f"{quarters[2]:.6g}). Which are which class is yours to say: --threshold X, once for each cut."
        )
    elif len(column.counts) > MOST:
        raise UserError(
            f"{place} has {len(column.counts)} different values, more than {MOST}: too many classes. Name another "
            "column with --label, or add one with fewer classes."
        )
    else:
        reading.labels = tuple(sorted(column.counts))
        absent = [text for text in reading.labels if text.lower() in ABSENT]
        for text in absent:
            reading.questions.append(
                f"{shown(text)} is a label of its own, in {column.counts[text]} rows. If it stands for a missing "
                "value, remove these rows from the table."
            )
    _ask_about_alike(reading, reading.label, reading.labels)
    reading.taken[reading.label] = Taken("label", why)
    others = [
        name
        for name, other in reading.columns.items()
        if name != reading.label and _named(name, LABEL) and _is_classes(other)
    ]
    if why == ONLY:
        reading.questions.append(f"Is {shown(column.name)} the label? It is {ONLY}, but is not named as one (--label).")
    if others:
        reading.questions.append(f"{listed(others)} could also be the label (--label). It is not shown to the model.")


def _class_names(count: int, classes: Sequence[str]) -> tuple[str, ...]:
    usual = {2: ("low", "high"), 3: ("low", "medium", "high")}
    if classes and len(classes) != count:
        raise UserError(f"--classes: {len(classes)} names, but the thresholds make {count} classes, from low to high")
    if not classes and count not in usual:
        raise UserError(f"--classes: the thresholds make {count} classes; name them, from low to high")
    return tuple(classes) or usual[count]


# --- The other columns ---


def _take_structure(reading: Reading) -> None:
    """Sequences, reasoning, and columns that say how somebody else split the rows."""
    for name, column in reading.columns.items():
        if name in reading.taken or column.problem:
            continue
        if column.modalities and len(column.counts) > 1:
            _take_sequence(reading, column)
        elif column.filled and {text.lower() for text in column.counts} <= SPLITS and len(column.counts) > 1:
            reading.taken[name] = Taken("unused", f"{len(column.counts)} values, names of splits")
            reading.questions.append(
                f"Column {shown(name)} seems to say how the rows were split. To test on one of its parts, replace "
                f"`split` by `columns: {{group: ...}}` with this column and `ood: [...]` with the part."
            )
        elif (
            not REASONING.isdisjoint(_words(name))
            and column.filled
            and statistics.mean(map(len, column.filled)) >= cols.WORD
        ):
            if column.empty:
                raise UserError(
                    f"{reading.path}: column {shown(name)}, the reasoning, is empty in {_empty(column)}. Fill these "
                    "cells, or remove these rows or the column."
                )
            reading.taken[name] = Taken(
                "reasoning", "texts, and named as reasoning: what the model writes before its answer"
            )
            reading.questions.append(
                f"Does the reasoning in {shown(name)} follow from the question alone? If whoever wrote it knew the "
                "label, the model learns to write what it cannot know: then remove `reasoning`."
            )


def _take_sequence(reading: Reading, column: Column) -> None:
    name, modality = column.name, column.modalities[0]
    lengths = sorted(map(len, column.filled))
    spread = f"{lengths[0]}" if lengths[0] == lengths[-1] else f"{lengths[0]} to {lengths[-1]}"
    if column.empty:
        raise UserError(
            f"{reading.path}: column {shown(name)}, a sequence, is empty in {_empty(column)}. Fill these cells or "
            "remove these rows."
        )
    reading.taken[name] = Taken("sequence", f"letters of {modality} in every row, {spread} long")
    median = statistics.median(lengths)
    if {"dna", "rna"} <= set(column.modalities):
        reading.questions.append(f"Is {shown(name)} DNA or RNA? It has neither T nor U; dna was taken.")
    elif "protein" in column.modalities and modality != "protein" and median < PEPTIDE:
        reading.questions.append(
            f"Is {shown(name)} {modality}, as was taken, or short peptides? Its letters fit both (`modality`)."
        )


def _take_identifier(reading: Reading) -> None:
    left = [column for name, column in reading.columns.items() if name not in reading.taken and not column.problem]
    unique = [column for column in left if column.unique and (column.whole or not column.numbers)]
    named = [column for column in unique if _names_rows(column.name)]
    plain = [column for column in unique if _counts_up(column) or (reading.sequences and not column.numbers)]
    for column in (named or plain)[:1]:
        reading.taken[column.name] = Taken("id", "different in every row")
    if not reading.of("id"):
        repeated = [
            column for column in left if column.name.lower() in IDENTIFIER and not column.unique and column.filled
        ]
        for column in repeated[:1]:
            value, count = column.counts.most_common(1)[0]
            why = f"repeated: {shown(value)} is there {count} times" if count > 1 else "empty in some rows"
            reading.questions.append(
                f"No column is different in every row ({shown(column.name)} is {why}), so the number of a row is its "
                "id. Are rows with the same id the same thing?"
            )


def _rest(reading: Reading, name: str) -> Taken:
    """What a column is taken for that is neither label, sequence nor id."""
    column = reading.columns[name]
    if column.problem:
        reading.questions.append(f"Column {shown(name)} cannot be read and is not used: {column.problem}")
        return Taken("unused", "cannot be read")
    if not column.filled:
        return Taken("unused", "empty")
    if len(column.counts) == 1 and not column.empty:
        reading.questions.append(f"Column {shown(name)} is {shown(column.cells[0])} in every row: is that right?")
        return Taken("unused", "the same in every row")
    if column.empty:
        group = _named(name, GROUP) and _repeats(column, gaps=True)
        needed = group or bool(not reading.sequences and not column.numbers and len(column.counts) > 1)
        other = (_named(name, LABEL) and _is_classes(column)) or _tells(column, reading)
        if needed and not other and column.empty <= GAPS * reading.rows:
            raise UserError(
                f"{reading.path}: column {shown(name)} is empty in {_empty(column)}, and has a value in all others. "
                "Fill these cells, or remove these rows or the column."
            )
        reading.questions.append(
            f"Column {shown(name)} is empty in {column.empty} of {reading.rows} rows, so it is not used. Fill it to "
            "hold out its values, or to name it in the prompt."
        )
        return Taken("unused", f"empty in {column.empty} rows")
    if _named(name, LABEL) and _is_classes(column):
        return Taken("unused", "may be another label")
    repeats = _repeats(column)
    if _tells(column, reading):
        reading.questions.append(
            f"Column {shown(name)} tells the label: each of its {len(column.counts)} values has one. It is not shown "
            "to the model. Is it known before the label is?"
        )
        group = _named(name, GROUP) and repeats
        return Taken("group", f"{_spread(column)}; tells the label") if group else Taken("unused", "tells the label")
    if column.dates and len(column.counts) > 1:
        return Taken("date", f"dates, {min(column.counts)} to {max(column.counts)}")
    if column.numbers and not (column.whole and repeats and _named(name, GROUP)):
        low, high = min(column.numbers), max(column.numbers)
        reading.questions.append(
            f"Column {shown(name)} has numbers and is not used. If it is measured together with the label, keep it out "
            "of the prompt; if it is known before, name it there."
        )
        return Taken("unused", f"numbers, {low:.4g} to {high:.4g}")
    _ask_about_alike(reading, name, list(column.counts))
    for text in (text for text in column.counts if text.lower() in ABSENT):
        reading.questions.append(
            f"{shown(text)} is a value of {shown(name)}, in {column.counts[text]} rows. If it stands for none, "
            "correct or remove these rows."
        )
    if reading.sequences:
        return (
            Taken("group", _spread(column)) if repeats else Taken("unused", f"{_spread(column)}; there is a sequence")
        )
    return Taken("text", f"{_spread(column)}; in the prompt")


def _take_fields(reading: Reading) -> None:
    """The columns that a prompt without a sequence names."""
    if reading.sequences:
        _ask_about_turned(reading, list(reading.sequences))
        known = [name for name in reading.of("group") if reading.columns[name].may_be_named]
        if known:
            reading.questions.append(
                f"Should the model read more than the sequence, such as {listed(known)}? Then write `prompt` in the "
                "place of `question` (config/README.md, Prompts)."
            )
        return
    for name in reading.of("text"):
        if not reading.columns[name].may_be_named:
            reading.taken[name] = Taken("unused", "its name cannot stand in a prompt")
            reading.questions.append(
                f"Column {shown(name)} cannot be named in a prompt. If the model shall read it, rename it: no "
                ". [ ] { } ! or :, and not only digits."
            )
    fields = reading.of("text")
    for name in fields[FIELDS:]:
        reading.taken[name] = Taken("unused", f"more than {FIELDS} columns of text")
    if not fields:
        others = [f"{shown(name)} {taken.why}" for name, taken in reading.taken.items() if name != reading.label]
        raise UserError(
            f"{reading.path}: no column has sequences, and none is left that a prompt could show beside the label "
            f"{shown(reading.label)}: {'; '.join(others) or 'it is the only one'}."
        )
    reading.questions.append(
        f"No column has sequences, so the model reads texts: {listed(fields)}. Random weights know nothing of names; a "
        "pretrained backbone may (docs/pretrained.md)."
    )
    pairs = [
        (one, two)
        for one, two in itertools.combinations(fields, 2)
        if len(reading.columns[one].counts.keys() & reading.columns[two].counts.keys()) >= SAME
    ]
    for one, two in pairs[:1]:
        reading.questions.append(
            f"{shown(one)} and {shown(two)} have values in common. A value that is held out of one may be in the other "
            "in train. To hold it out of both, name the values in the place of `split` and the number `ood`: "
            f"`ood: {{{one}: [A, B], {two}: [A, B]}}` (config/README.md, Splits)."
        )
    _ask_about_turned(reading, fields)


def _ask_about_turned(reading: Reading, fields: Sequence[str]) -> None:
    """A question if two columns of the prompt have the same two values in both orders, with all others the same."""
    there = set(zip(*(reading.columns[name].cells for name in fields), strict=True))
    worst = (0, "", "")
    for (first, one), (second, two) in itertools.combinations(enumerate(fields), 2):
        number = 0
        for prompt in there:
            turned = list(prompt)
            turned[first], turned[second] = prompt[second], prompt[first]
            number += prompt[first] < prompt[second] and tuple(turned) in there
        worst = max(worst, (number, one, two))
    number, one, two = worst
    if number:
        reading.questions.append(
            f"{number} pairs of {shown(one)} and {shown(two)} are there in both orders, and one may be in train and "
            "the other in a test. If they say the same, keep one of them."
        )


def _ask_about_alike(reading: Reading, name: str, values: Sequence[str]) -> None:
    """A question if two values are written differently and may be the same."""
    first: dict[str, str] = {}
    for value in values:
        plain = " ".join(unicodedata.normalize("NFKC", value).split()).casefold()
        if plain in first:
            reading.questions.append(
                f"{shown(first[plain])} and {shown(value)} are different values of {shown(name)}. If they are one, "
                "write them alike in the table."
            )
            return
        first[plain] = value


# --- Words and counts ---


def _words(name: str) -> list[str]:
    """The words of a name such as cell_line, cellLine or CELL LINE."""
    return re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())


def _named(name: str, beginnings: tuple[str, ...]) -> bool:
    """Whether a word of a name begins with one of these."""
    return any(word.startswith(beginnings) for word in _words(name))


def _names_rows(name: str) -> bool:
    return not IDENTIFIER.isdisjoint(_words(name))


def _is_score(column: Column) -> bool:
    many = column.numbers is not None and len(column.counts) > CLASSES
    return many and not column.problem and not (column.unique and column.whole)  # whole numbers, all different: an id


def _may_be_cut(column: Column) -> bool:
    row = _names_rows(column.name) or _counts_up(column)
    return bool(column.numbers) and len(column.counts) > 2 and not row and not _named(column.name, GROUP)


def _is_classes(column: Column) -> bool:
    few = 2 <= len(column.counts) <= CLASSES and len(column.counts) <= len(column.cells) / 2
    few = few and (column.numbers is None or column.whole or _named(column.name, LABEL))  # 1.5 is a score
    splits = {text.lower() for text in column.counts} <= SPLITS
    return few and not column.problem and not column.modalities and not column.dates and not splits


def _repeats(column: Column, gaps: bool = False) -> bool:
    """Whether its values can be held out: three or more, each in two rows on average; with `gaps`, if it were full."""
    return (column.complete or gaps) and 3 <= len(column.counts) <= len(column.filled) / 2


def _counts_up(column: Column) -> bool:
    """Whether it numbers the rows, in any order."""
    numbers = column.numbers or [0.0]
    return column.unique and column.whole and max(numbers) - min(numbers) == len(numbers) - 1


def _spread(column: Column) -> str:
    """How many values, and rows of each."""
    sizes = sorted(column.counts.values())
    return f"{len(sizes)} values, {sizes[0]} to {sizes[-1]} rows each" if sizes[-1] > 1 else f"{len(sizes)} values"


def _tells(column: Column, reading: Reading) -> bool:
    """Whether each of few values has one label."""
    if not _repeats(column) and not 2 <= len(column.counts) <= CLASSES:
        return False
    pairs = set(zip(column.cells, reading.columns[reading.label].cells, strict=True))
    return not reading.thresholds and len(pairs) == len(column.counts)


def _empty(column: Column) -> str:
    """The rows in which a column is empty, for a message."""
    return _rows([row for row, cell in enumerate(column.cells, 1) if not cell])


def _rows(rows: Sequence[int]) -> str:
    first = ", ".join(map(str, rows[:5]))
    return f"row {first}" if len(rows) == 1 else f"{len(rows)} rows ({first}{', ...' if len(rows) > 5 else ''})"
