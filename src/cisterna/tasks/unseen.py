"""Values of several columns held out at once, such as of a pair: unseen genes, unseen perturbations, and both.

Each kind of out-of-domain row is a group of its own, named by what is unseen: `unseen gene`, `unseen gene and
perturbation`. Not for drawing the values (`cisterna.data.holdout`), nor for one column of groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cisterna.tasks import catalog

if TYPE_CHECKING:
    import pandas as pd

PREFIX = "split:"  # of the columns of examples and splits that have the values
SEEN = "seen"  # the group of rows in domain


def columns(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns whose values a task holds out: those of `ood` as a mapping, or of `split.column` as a list."""
    if isinstance(spec.get("ood"), Mapping):
        return tuple(spec["ood"])
    column = (spec.get("split") or {}).get("column")
    return tuple(column) if isinstance(column, list | tuple) else ()


def values(spec: Mapping[str, Any], group: str | None) -> dict[str, tuple[str, ...]]:
    """The values that `ood` lists, by column; a list has values of the column `group`."""
    if isinstance(spec["ood"], Mapping):
        return {column: tuple(map(str, held)) for column, held in spec["ood"].items()}
    return {str(group): catalog.held_out(spec)}


def rule(held_out: Mapping[str, tuple[str, ...]], what: str = "rows") -> str:
    """The rule in words, for the data card; `what` is what it calls the rows."""
    parts = (f"whose {column!r} is one of {', '.join(held)}" for column, held in held_out.items())
    return f"out of domain: {what} {', or '.join(parts)}"


def mark(examples: pd.DataFrame, held_out: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Examples with their `group`, what is unseen of them, and `ood`."""
    kinds = [
        " and ".join(column for column, value in zip(held_out, row, strict=True) if value in set(held_out[column]))
        for row in zip(*(examples[PREFIX + column] for column in held_out), strict=True)
    ]
    group = [f"unseen {kind}" if kind else SEEN for kind in kinds]
    return examples.assign(group=group, ood=[bool(kind) for kind in kinds])
