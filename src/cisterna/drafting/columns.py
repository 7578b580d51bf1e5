"""The columns of a table as `cisterna init` sees them: what is in each, whatever its name.

Not for what a column is taken for (`cisterna.drafting.roles`), nor for examples (`cisterna.tasks.user_table`).
"""

from __future__ import annotations

import datetime
import math
import statistics
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from cisterna.errors import UserError, printable
from cisterna.sequences.letters import MARKS
from cisterna.sequences.tokenization import ALPHABETS, UNUSUAL
from cisterna.tasks import tables

CLASSES = 20  # a column with more different values is not taken for classes, unless the user says so
SHORTEST = 5  # letters (median) of a sequence; words such as CASE are shorter
# Share of the cells of a column of sequences in which every letter is a usual one, and of a cell with wrong letters the
# share of those that are usual.
PLAIN = 0.9
STOP = "*"  # at the end of a translated sequence; the reader of sequences says what to do about it
WORD = 20  # lower-case text shorter than this is words, not residues
SHOWN = 40  # letters of a text of the table that messages and comments show


@dataclass(frozen=True)
class Column:
    """A column: its cells as texts, empty where there is no value. `problem` says why it cannot be read."""

    name: str
    cells: Sequence[str]
    problem: str = ""

    @cached_property
    def filled(self) -> list[str]:
        """The cells that are not empty."""
        return [cell for cell in self.cells if cell]

    @property
    def empty(self) -> int:
        """How many cells are empty."""
        return len(self.cells) - len(self.filled)

    @cached_property
    def counts(self) -> Counter[str]:
        """How often each value is there."""
        return Counter(self.filled)

    @property
    def complete(self) -> bool:
        """Whether it can be read, and no cell is empty."""
        return not self.problem and not self.empty

    @property
    def unique(self) -> bool:
        """Whether every row has a value of its own."""
        return self.complete and len(self.counts) == len(self.cells)

    @cached_property
    def numbers(self) -> list[float] | None:
        """Its values as numbers; None if one is no finite number."""
        try:
            found = [float(cell) for cell in self.filled]
        except ValueError:
            return None
        return found if found and all(map(math.isfinite, found)) else None

    @property
    def beside_numbers(self) -> str:
        """The first value that is no number, if most are; else empty."""
        others = [text for text in self.filled if not _is_number(text)]
        return others[0] if 0 < len(others) < len(self.filled) / 2 else ""

    @property
    def whole(self) -> bool:
        """Whether it has whole numbers, written without a dot."""
        return self.numbers is not None and all(cell.lstrip("+-").isdigit() for cell in self.filled)

    @cached_property
    def dates(self) -> bool:
        """Whether all values are ISO 8601 dates with a month."""
        try:
            for text in self.counts:
                datetime.date.fromisoformat(text[:10])
        except ValueError:
            return False
        return bool(self.counts)

    @cached_property
    def modalities(self) -> list[str]:
        """The modalities whose letters its values have; none if they are no sequences."""
        if not self.filled or statistics.median(map(len, self.filled)) < SHORTEST or not self._as_residues():
            return []
        found = []
        for modality, alphabet in ALPHABETS.items():
            usual, allowed = set(alphabet), set(alphabet + UNUSUAL[modality]) | set(MARKS)
            letters = [set(text.upper().rstrip(STOP)) for text in self.filled]
            plain = sum(text <= usual for text in letters)
            if plain >= PLAIN * len(letters) and all(text <= allowed for text in letters):
                found.append(modality)
        return found or self._nearly()

    def _nearly(self) -> list[str]:
        """The modality of sequences with some wrong letters or cells, which their reader names; the best one."""
        found = {}
        for modality, alphabet in ALPHABETS.items():
            shares = [sum(letter in alphabet for letter in text.upper()) / len(text) for text in self.filled]
            if sum(share >= PLAIN for share in shares) >= PLAIN * len(shares):
                found[modality] = sum(shares)
        return [max(found, key=found.__getitem__)] if found else []

    def _as_residues(self) -> bool:
        """Whether it is not one of few words, nor words in lower case."""
        longest = max(map(len, self.filled))
        return (len(self.counts) > CLASSES or longest >= WORD or len(self.counts) > len(self.filled) / 2) and (
            longest >= WORD or all(text.isupper() for text in self.filled)
        )

    @property
    def may_be_named(self) -> bool:
        """Whether a prompt can name it in braces."""
        try:
            fields = list(string.Formatter().parse(f"{{{self.name}}}"))
        except ValueError:
            return False
        plain = fields == [("", self.name, "", None)] and not set(self.name) & set(".[]")
        return plain and not self.name.isdigit() and self.name != "options" and not tables.MARKUP.search(self.name)


def read(raw: pd.DataFrame, path: Path) -> dict[str, Column]:
    """The columns of a table, by name and in its order."""
    found = {}
    for name in map(str, raw.columns):
        try:
            found[name] = Column(name, tables.texts(raw, name, path, may_be_empty=True))
        except UserError as error:
            found[name] = Column(name, [""] * len(raw), str(error).removeprefix(f"{path}: "))
    return found


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def shown(text: object) -> str:
    """A text of the table as one short line in quotes, for messages and for comments in YAML."""
    line = " ".join(printable(str(text)).split())
    return f'"{line if len(line) <= SHOWN else line[: SHOWN - 3] + "..."}"'


def listed(names: Sequence[object], most: int = 6) -> str:
    """Texts of the table in one line: the first ones, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(shown, names[:most])) + more
