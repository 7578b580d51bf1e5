"""Collects what is wrong with a config, so that the user sees all of it at once, with file, line and key."""

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from cisterna.errors import UserError

Key = tuple[str | int, ...]


class Place(NamedTuple):
    """Where a key is written."""

    file: str
    line: int


class Problems:
    """The problems of a config. `where` names it; `places` are those of its keys, as far as they are known."""

    def __init__(self, where: str, places: Mapping[Key, Place] | None = None) -> None:
        self.where = where
        self.places = dict(places or {})
        self.entries: dict[tuple[Key, str], Place | None] = {}

    def add(self, key: Key, message: str, place: Place | None = None) -> None:
        """One problem of a key. Messages are phrases without a full stop."""
        self.entries.setdefault((key, message), place or self._place(key))

    def expected(self, key: Key, value: object, expected: str, near: Iterable[str] = ()) -> None:
        """A value that is not what was expected; the nearest of the names `near` is suggested."""
        self.add(key, f"found {show(value)}; expected {expected}{suggest(str(value), near)}")

    def unknown(self, key: Key, expected: str, near: Iterable[str], of: str = "") -> None:
        """A key that is not supported; `of` says in what."""
        self.add(key, f"unknown key{of}; expected {expected}{suggest(str(key[-1]), near)}")

    def missing(self, key: Key, expected: str, where: str = "") -> None:
        """A key that is needed and absent."""
        self.add(key, f"missing{where}; expected {expected}")

    def stop(self) -> None:
        """Raise a UserError with everything found so far, if there is anything."""
        if not self.entries:
            return
        blocks = []
        for (key, message), place in sorted(self.entries.items(), key=lambda entry: entry[1] or Place("", 0)):
            start = f"{place.file}:{place.line}" if place else self.where
            end = "" if message.endswith("?") else "."
            blocks.append(": ".join(filter(None, (start, dotted(key), message + end))))
        if len(blocks) > 1:
            blocks.insert(0, f"{len(blocks)} problems in {self.where}")
        raise UserError("\n".join(blocks))

    def _place(self, key: Key) -> Place | None:
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key)


def dotted(key: Key) -> str:
    """A key as messages spell it: lineages[0].sft."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def suggest(name: str, valid: Iterable[str]) -> str:
    """A sentence like ". Did you mean X?", with the nearest of the valid names, or nothing."""
    nearest = difflib.get_close_matches(name, list(valid), n=1)
    return f". Did you mean {nearest[0]}?" if nearest else ""


def show(value: Any) -> str:
    """A value in words, with its type where YAML may have read another one than was meant."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, str):
        return f"the text {json.dumps(value, ensure_ascii=False)}" if value else "an empty text"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, dict):
        return f"a mapping ({', '.join(map(str, value)) or 'empty'})"
    if isinstance(value, list):
        return f"the list {json.dumps(value, default=str)}"
    return f"the {type(value).__name__} {value}"


def one_of(names: Iterable[object]) -> str:
    """Names as a choice."""
    words = [str(name) for name in names]
    if not words:
        return "a name that is defined, and none is"
    return f"one of {', '.join(words)}" if len(words) > 1 else words[0]


def check_known(key: Key, names: Iterable[str], valid: Iterable[str], problems: Problems) -> None:
    """Add those of the names in the list at `key` that are not valid."""
    for index, name in enumerate(names):
        if name not in valid:
            problems.expected((*key, index), name, one_of(valid), valid)


def check_either(
    key: Key, section: Mapping[str, Any], first: str, second: str, expected: str, problems: Problems
) -> bool:
    """Whether a section has exactly one of two keys."""
    if (one := first in section) != (second in section):
        return True
    problems.add(key, f"{f'both {first} and' if one else f'neither {first} nor'} {second}; expected {expected}")
    return False
