"""Values and comments of a drafted study as YAML that a person reads: whatever a table says stays data.

Not for reading YAML (`cisterna.study.config.yaml_lines`).
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml
from tabulate import tabulate

from cisterna.errors import printable

WIDTH = 118
PLAIN = re.compile(
    r"[A-Za-z][A-Za-z0-9_ ./-]*"
)  # texts that may stand without quotes, if YAML reads them as themselves


class _Dumper(yaml.SafeDumper):
    """One line for any text: in double quotes, unless it is plain words."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    plain = bool(PLAIN.fullmatch(text)) and text == text.strip() and yaml.safe_load(text) == text
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Dumper.add_representer(str, _text)


def value(entry: Any) -> str:
    """Any value of a config in one line, in YAML's flow style."""
    text = yaml.dump(
        entry, Dumper=_Dumper, default_flow_style=True, width=math.inf, allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")


def block(mapping: Mapping[str, Any], indent: int) -> str:
    """A mapping, a key a line; mappings in it that do not fit into a line likewise."""
    lines = []
    for key, entry in mapping.items():
        line = f"{' ' * indent}{value(key)}: {value(entry)}"
        if isinstance(entry, Mapping) and len(line) > 100:
            line = f"{' ' * indent}{value(key)}:\n{block(entry, indent + 2)}"
        lines.append(line)
    return "\n".join(lines)


def one_line(text: object) -> str:
    """A text without line breaks and control characters of any kind, so that it cannot end a comment."""
    return " ".join(printable(str(text)).split())


def comment(text: object, start: str = "", indent: int = 0) -> str:
    """A text as lines of comment; `start` begins the first of them."""
    first = f"{' ' * indent}# {start}"
    later = " " * indent + "# " + " " * len(start)
    return textwrap.fill(
        one_line(text),
        WIDTH,
        initial_indent=first,
        subsequent_indent=later,
        break_long_words=False,
        break_on_hyphens=False,
    )


def table(rows: Iterable[Sequence[object]], indent: int = 0, start: str = "#") -> str:
    """Rows as a table in lines that begin with `start`: in comments."""
    cells = [list(map(one_line, row)) for row in rows]
    text = tabulate(cells, tablefmt="plain", disable_numparse=True)
    return "\n".join(f"{' ' * indent}{start}   {line}".rstrip() for line in text.split("\n"))
