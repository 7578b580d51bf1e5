"""Tables of the user: reading a file, its columns, and the checks that tasks share.

Each check raises a UserError that names the file and the row, counted from 1 without the header. Not for what the
columns mean: that is in the module of each task.
"""

from __future__ import annotations

import ast
import csv
import functools
import io
import itertools
import json
import re
import tokenize
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cisterna.artifacts import files
from cisterna.errors import UserError, one_line

# What the tokenizer and the answer parser read as structure.
MARKUP = re.compile(r"</?\s*(?:dna|rna|protein|think)\s*>|<\||\|>|\x00", re.IGNORECASE)

MISSING = {"nan", "na", "n/a", "<na>", "null", "none"}  # texts that often stand for a missing value
LIST = re.compile(r"\s*\[\s*['\"\[{\]]")  # how a list of texts begins; `[G>A] is lost` does not
NAMED = 5  # rows that are named as examples of those that were dropped


def _read_json_lines(path: Path) -> pd.DataFrame:
    """One JSON object a line, with numbers as they are written. Raises ValueError naming the line."""
    records = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(
                    line, object_pairs_hook=_pairs, parse_int=str, parse_float=str, parse_constant=_refuse_constant
                )
                if "\\ud" in line.lower():  # half of a letter, which JSON can spell and no file can hold
                    json.dumps(record, ensure_ascii=False).encode()
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number}: {error}") from error
            if not isinstance(record, dict):
                raise ValueError(f"line {number} is not a JSON object")
            records.append(record)
    names = list(dict.fromkeys(name for record in records for name in record))
    return _frame(names, [[record.get(name) for record in records] for name in names])


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_repeats([name for name, _ in pairs])
    return dict(pairs)


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON; a missing value is null")


def _read_rows(path: Path, **dialect: Any) -> pd.DataFrame:
    """Every cell as text, as it is written. Raises ValueError naming row and line of the first mistake."""
    csv.field_size_limit(2**31 - 1)  # by default no field is as long as some sequences are
    rows: list[list[str]] = []
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, **dialect)
        try:
            for row in filter(None, reader):  # without empty lines
                rows.append(row)
                if len(row) != len(rows[0]):
                    than = "more fields than" if len(row) > len(rows[0]) else "fewer fields than"
                    raise ValueError(
                        f"row {len(rows) - 1}, line {reader.line_num}, has {than} the header has names: {len(row)}, "
                        f"not {len(rows[0])}"
                    )
        except csv.Error as error:
            raise ValueError(f"row {len(rows)}, which ends in line {reader.line_num}: {error}") from error
    header, *body = rows or [[]]
    names = [name or f"Unnamed: {number}" for number, name in enumerate(header)]  # what pandas calls such columns
    return _frame(names, zip(*body, strict=True) if body else [() for _ in names])


def from_arrow(table: Any) -> pd.DataFrame:
    """A `pyarrow.Table` as Python values: missing ones are None, and whole numbers beside them stay whole."""
    columns = []
    for column in table.columns:
        values = column.to_pylist()
        if str(column.type) in ("float", "halffloat"):  # in the digits of its own precision
            values = [None if value is None else np.float32(value) for value in values]
        columns.append(values)
    return _frame(table.column_names, columns)


def _read_parquet(path: Path) -> pd.DataFrame:
    import pyarrow.parquet

    return from_arrow(pyarrow.parquet.ParquetFile(path).read())


def _frame(names: Sequence[str], columns: Iterable[Iterable[Any]]) -> pd.DataFrame:
    _refuse_repeats(names)
    return pd.DataFrame(
        {name: pd.Series(list(values), dtype=object) for name, values in zip(names, columns, strict=True)}
    )


def _refuse_repeats(names: Sequence[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"two columns have the name {repeated[0]!r}; give each a name of its own")


READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": functools.partial(_read_rows, strict=True),
    ".tsv": functools.partial(_read_rows, delimiter="\t", quoting=csv.QUOTE_NONE),  # a quotation mark is a letter
    ".parquet": _read_parquet,
    ".jsonl": _read_json_lines,
}


SEPARATORS = {".csv": ",", ".tsv": "\t"}
SEPARATOR_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons"}


def check_file(path: Path) -> None:
    """UserError if there is no such file."""
    if not path.is_file():
        raise UserError(f"{path}: no such file. Paths are relative to the folder where the command runs.")


def open_table(path: Path) -> pd.DataFrame:
    """The rows of a .csv, .tsv, .parquet or .jsonl file: texts, or the values of a format that has types.

    Nothing is guessed: `010`, `NA` and `1,5` in a text stay what they are. A .csv file quotes as in RFC 4180, a .tsv
    file does not quote. UserError if the file cannot be read or has no rows, for text that is not UTF-8 (a byte-order
    mark is skipped), a row with more or fewer fields than the header, and two columns with one name.
    """
    if path.suffix.lower() not in READERS:
        raise UserError(f"{path}: unknown kind of file. Use one of {', '.join(READERS)}.")
    check_file(path)
    form = path.suffix.lower()
    if form in SEPARATORS:
        _check_separator(path, SEPARATORS[form])
    return read_as(form, path, path)


def _check_separator(path: Path, expected: str) -> None:
    """UserError if another separator gives header and first row as many fields as each other, and more than this."""

    def fields(separator: str) -> list[int]:
        with path.open(encoding="utf-8", errors="replace", newline="") as stream:
            try:
                return [len(row) for row in itertools.islice(csv.reader(stream, delimiter=separator), 2)]
            except csv.Error:
                return []

    header = next(iter(fields(expected)), 1)
    for separator, name in SEPARATOR_NAMES.items():
        counts = fields(separator)
        if len(counts) == 2 and counts[0] == counts[1] > header:
            raise UserError(
                f"{path}: its fields seem to be separated by {name}; expected {SEPARATOR_NAMES[expected]}. Export it "
                "again."
            )


def read_as(form: str, path: Path, place: object) -> pd.DataFrame:
    """The rows of a file of the form that an ending (of READERS) stands for, as `open_table` reads it.

    `place` is what messages call the file.
    """
    try:
        frame = READERS[form](path)
    except UnicodeDecodeError:
        with path.open("rb") as stream:
            raise UserError(f"{place}, {files.not_unicode(stream)}.") from None
    except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's errors are of these kinds
        raise UserError(f"{place}: cannot be read as {form} ({one_line(error)}). Export it again.") from error
    if len(frame) == 0:
        raise UserError(f"{place}: has no rows. It needs a header and at least one row a split.")
    return frame


def row_names(place: object, count: int) -> list[str]:
    """What messages call each row of a table: "data.csv: row 1", ..."""
    return [f"{place}: row {row}" for row in range(1, count + 1)]


def numbers(raw: pd.DataFrame) -> list[str]:
    """The numbers of the rows, from 1: ids of a table that has none."""
    return [str(row + 1) for row in range(len(raw))]


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
    """A column as stripped text; numbers, dates and true or false (True, False) as Python writes them.

    UserError if it does not exist, for a cell that is empty, contains markup or is not one value (a list, bytes), and
    for whole numbers that were stored as fractions (1.0) because some are missing.
    """
    values = column(raw, name, place, role, advice)
    missing = values.isna()
    cells = []
    for row, (value, absent) in enumerate(zip(values, missing, strict=True), 1):
        where = f"{place}: row {row}"
        if isinstance(value, list | dict | tuple | bytes | np.ndarray):
            raise UserError(f"{where}: column {name!r}: {str(value)[:40]} is not a text. Export the column as texts.")
        cells.append("" if absent else str(value).strip())
        if not cells[-1] and not may_be_empty:
            raise UserError(f"{where}: column {name!r} is empty. Fill it or remove the row.")
        refuse_markup(cells[-1], f"{where}: column {name!r}")
    present = list(values[~missing])
    whole = all(isinstance(value, float | np.floating) and value.is_integer() for value in present)
    if present and whole and missing.any():
        raise UserError(
            f"{place}: column {name!r} has {present[0]} and missing values: numbers that may have been whole. "
            "Export the column as texts or as whole numbers."
        )
    return cells


def same_texts(
    raw: pd.DataFrame, names: Sequence[str], place: object, advice: str = "", *, may_be_empty: bool = False
) -> list[str]:
    """`texts` of a column that may have any of these names. UserError if two of them differ, naming the first row."""
    present = [name for name in names if name in raw.columns] or list(names[:1])
    first, *others = (texts(raw, name, place, advice=advice, may_be_empty=may_be_empty) for name in present)
    for other, cells in zip(present[1:], others, strict=True):
        for row, (one, two) in enumerate(zip(first, cells, strict=True), 1):
            if one != two:
                raise UserError(
                    f"{place}: row {row}: columns {present[0]!r} and {other!r} are two names of one column, and differ "
                    f"({one[:40]!r}, {two[:40]!r}). Remove the one that is not meant."
                )
    return first


def listed(text: str) -> list[str] | None:
    """The texts in what JSON, Python or numpy writes for a list of texts; None for any other text."""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        found = _quoted(text)
    return found if isinstance(found, list) and all(isinstance(item, str) for item in found) else None


def _quoted(text: str) -> list[Any] | None:
    """The literals of a Python list of texts, which numpy writes without commas; None if there is more in it."""
    items: list[Any] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text[1:-1]).readline):
            if token.type == tokenize.STRING:
                items.append(ast.literal_eval(token.string))
            elif token.string != "," and token.string.strip():
                return None
    except (tokenize.TokenError, SyntaxError, ValueError):
        return None
    return items


def joined(raw: pd.DataFrame, name: str, place: object) -> pd.DataFrame:
    """The table with the lists of texts in a column joined by line breaks: values, or as JSON or Python writes them.

    A text that is no list stays as it is. UserError, naming the row, for a list of other things, or a broken one.
    """
    if name not in raw.columns:
        return raw
    cells = []
    for row, value in enumerate(raw[name], 1):
        steps: Any = value
        if isinstance(value, str) and LIST.match(value):
            steps = listed(value.strip())
        if steps is None and value is not None:
            raise UserError(f"{place}: row {row}: column {name!r}: {value[:40]!r} is not a whole list. Correct it.")
        if isinstance(steps, list | tuple | np.ndarray):
            if not all(isinstance(step, str) for step in steps):
                raise UserError(f"{place}: row {row}: column {name!r}: a list of other things than texts. Correct it.")
            steps = "\n".join(step.strip() for step in steps if step.strip())
        cells.append(steps)
    return raw.assign(**{name: pd.Series(cells, index=raw.index, dtype=object)})


def refuse_markup(text: str, where: str) -> None:
    """UserError for a text that contains what Cisterna's prompts use as markup."""
    markup = MARKUP.search(text)
    if markup:
        raise UserError(
            f"{where}: contains {markup[0]!r}, which Cisterna's own prompts use as markup. Remove it from the text."
        )


def dropped(reason: str, examples: Sequence[object]) -> list[dict[str, Any]]:
    """The entry of rows that are left out in `dropped` of a card, with the names of the first; none without rows."""
    return [{"reason": reason, "rows": len(examples), "examples": list(map(str, examples[:NAMED]))}] if examples else []


def notes_of_missing(texts: Iterable[str], what: str) -> list[str]:
    """A note for the card for each text that often stands for a missing value, such as `nan`, but is read as it is."""
    counts = Counter(text for text in texts if text.lower() in MISSING)
    return [f"{what}: the text {text!r} is read as it is (rows: {count})" for text, count in sorted(counts.items())]


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


def check_consistent(
    frame: pd.DataFrame, place: object, where: Callable[[int], str], what: str, advice: str, by: str = "sequence"
) -> None:
    """UserError if rows that are the same in column `by` have different labels, or only one of them is out of domain.

    `where` is what messages call a row, counted from 0; `what` is what they call the content of `by`.
    """
    for name, difference in (("label", "labels"), ("ood", "sides of the split (in and out of domain)")):
        differs = (frame.groupby(by)[name].transform("first") != frame[name]).to_numpy()
        if differs.any():
            second = int(differs.argmax())
            first = int((frame[by] == frame[by].iloc[second]).to_numpy().argmax())
            rows = f"{where(first)} and {where(second)}"
            raise UserError(f"{place}: {rows} have the same {what} but different {difference}. {advice}.")
