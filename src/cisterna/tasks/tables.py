"""Tables of the user: reading a file, its columns, and the checks that tasks share.

Each check raises a UserError that names the file and the row, counted from 1 without the header. Not for what the
columns mean: that is in the module of each task.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd

from cisterna.errors import UserError, one_line
from cisterna.sequences.tokenization import ALPHABETS

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
    """Every cell as text: no number is parsed, and `NA` is not a missing value."""
    return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False)


READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": functools.partial(_read_text, separator=","),
    ".tsv": functools.partial(_read_text, separator="\t"),
    ".parquet": pd.read_parquet,
    ".jsonl": _read_json_lines,
}


def check_file(path: Path) -> None:
    """UserError if there is no such file."""
    if not path.is_file():
        raise UserError(f"{path}: no such file. Paths are relative to the folder where the command runs.")


def open_table(path: Path) -> pd.DataFrame:
    """The rows of a .csv, .tsv, .parquet or .jsonl file. UserError if it cannot be read or has no rows."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: unknown kind of file. Use one of {', '.join(READERS)}.")
    check_file(path)
    try:
        frame = reader(path)
    except (OSError, ValueError) as error:  # pandas' and pyarrow's parse errors are ValueErrors
        raise UserError(
            f"{path}: cannot be read as {path.suffix.lower()} ({one_line(error)}). Export it again."
        ) from error
    if not isinstance(frame.index, pd.RangeIndex):  # pandas used the first field as an index
        raise UserError(f"{path}: rows have more fields than the header has names. Export it again.")
    if len(frame) == 0:
        raise UserError(f"{path}: has no rows. It needs a header and at least one row a split.")
    return frame


def row_names(place: object, count: int) -> list[str]:
    """What messages call each row of a table: "data.csv: row 1", ..."""
    return [f"{place}: row {row}" for row in range(1, count + 1)]


def shown(names: Iterable[object]) -> str:
    """The first ten names, and how many more there are."""
    listed = list(map(str, names))
    return ", ".join(listed[:10]) + (f" and {len(listed) - 10} more" if len(listed) > 10 else "")


def column(raw: pd.DataFrame, name: str, place: object, role: str = "", advice: str = "") -> pd.Series:
    """A column of a table. UserError if it does not exist; `role` says what it is for, `advice` what to do."""
    if name not in raw.columns:
        raise UserError(f"{place}: no column {name!r}{role}. It has: {', '.join(map(str, raw.columns))}.{advice}")
    return raw[name]


def texts(
    raw: pd.DataFrame, name: str, place: object, role: str = "", advice: str = "", *, may_be_empty: bool = False
) -> list[str]:
    """A column as stripped text. UserError if it does not exist, or for a cell that is empty or contains markup."""
    values = column(raw, name, place, role, advice)
    cells = ["" if missing else str(value).strip() for value, missing in zip(values, values.isna(), strict=True)]
    if not may_be_empty and "" in cells:
        raise UserError(f"{place}: row {cells.index('') + 1}: column {name!r} is empty. Fill it or remove the row.")
    for row, cell in enumerate(cells, 1):
        refuse_markup(cell, f"{place}: row {row}: column {name!r}")
    return cells


def refuse_markup(text: str, where: str) -> None:
    """UserError for a text that contains what Cisterna's prompts use as markup."""
    markup = MARKUP.search(text)
    if markup:
        raise UserError(
            f"{where}: contains {markup[0]!r}, which Cisterna's own prompts use as markup. Remove it from the text."
        )


def check_letters(sequence: str, modality: str, where: str) -> None:
    """UserError for a letter outside the alphabet of the modality."""
    wrong = sorted(set(sequence) - set(ALPHABETS[modality]))
    if wrong:
        raise UserError(
            f"{where}: {wrong[0]!r} is not a letter of {modality} ({ALPHABETS[modality]}). Correct the row."
        )


def check_unique(ids: Sequence[str], place: object, where: Callable[[int], str], advice: str) -> None:
    """UserError for two rows with the same id; `where` is what messages call a row, counted from 0."""
    seen: dict[str, int] = {}
    for row, identifier in enumerate(ids):
        first = seen.setdefault(identifier, row)
        if first != row:
            raise UserError(f"{place}: {where(first)} and {where(row)} have the same id {identifier!r}. {advice}.")


def check_held_out(groups: pd.Series, held_out: Iterable[str], place: object, name: str) -> None:
    """UserError for a group of the key `ood` that no row has; `name` is the column of the groups."""
    present = sorted(set(groups))
    for group in held_out:
        if group not in present:
            raise UserError(f"{place}: no row has the group {group!r} of `ood`. Column {name!r} has: {shown(present)}.")


def check_consistent(frame: pd.DataFrame, place: object, where: Callable[[int], str], what: str, advice: str) -> None:
    """UserError if two rows with the same sequence have different labels, or only one of them is out of domain.

    `where` is what messages call a row, counted from 0; `what` is what they call a sequence.
    """
    for name, difference in (("label", "labels"), ("ood", "sides of the split (in and out of domain)")):
        differs = (frame.groupby("sequence")[name].transform("first") != frame[name]).to_numpy()
        if differs.any():
            second = int(differs.argmax())
            first = int((frame["sequence"] == frame["sequence"].iloc[second]).to_numpy().argmax())
            rows = f"{where(first)} and {where(second)}"
            raise UserError(f"{place}: {rows} have the same {what} but different {difference}. {advice}.")
