"""Data sets of a published form, from files or from the Hugging Face hub, as one frame of raw rows with their split.

What the splits of a data set are called and what they become here:

    train                    train, from which `validation` is drawn
    ood, network             ood
    val, validation, id      id
    test                     ood, unless there is a split `ood` or `network`: then id

Files are given in the order train, id, ood, or train, ood where there is no third; one file has a
column `split` with the names above, and so may a data set of the hub that is in one piece. Where
data come without an id split, id is drawn from train. A split that is called `test` may well be
drawn at random, so that it is out of domain in name only: the card says which split became what,
and `nearest_train` how far it is.

Not for what the columns mean: that is in the module of each adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cisterna.errors import UserError
from cisterna.tasks import table
from cisterna.tasks.base import SPLIT

OOD = ("ood", "network")
ID = ("id", "val", "validation")
TEST = "test"
ORDER = {1: (None,), 2: ("train", "ood"), 3: ("train", "id", "ood")}  # of the files
WHERE = "where"  # column: place of the row, for messages


def rows(name: str, spec: Mapping[str, Any], required: Sequence[str], optional: Sequence[str] = ()) -> pd.DataFrame:
    """The raw rows of the task `name`: the columns `required`, those of `optional` that there are, SPLIT and WHERE.

    Cells are stripped text. The attribute `fingerprint` says what was read from the hub, `notes`
    which splits became what. Raises UserError naming file and column for a missing or unknown
    column, and also the row for an empty cell (only `optional` ones may be empty) or an unknown split.
    """
    given: list[tuple[str | None, str, pd.DataFrame]]  # split, place, rows
    fingerprint: dict[str, str] | None = None
    if "hub" in spec:
        given, fingerprint = of_hub(name, str(spec["hub"]), spec.get("revision"))
    else:
        files = [spec["file"]] if isinstance(spec["file"], str) else list(spec["file"])
        given = [
            (split, file, table.open_table(Path(file))) for split, file in zip(ORDER[len(files)], files, strict=True)
        ]
    parts = []
    for split, place, frame in given:
        allowed = [*required, *optional, *([SPLIT] if split is None else [])]
        _check_columns(frame, place, [*required, *([SPLIT] if split is None else [])], allowed)
        part = pd.DataFrame(
            {
                column: _cells(frame[column], place, column, column in optional)
                for column in allowed
                if column in frame.columns
            }
        )
        if split is not None:
            part[SPLIT] = split
        part[WHERE] = [f"{place}: row {row}" for row in range(1, len(part) + 1)]
        parts.append(part)
    whole = pd.concat(parts, ignore_index=True)
    for column in set(optional) & set(whole.columns):
        whole[column] = whole[column].fillna("")
    became = _meanings(name, whole)
    whole[SPLIT] = whole[SPLIT].map(became)
    whole.attrs = {"notes": [f"{split} of the data is {name} here" for split, name in became.items()]}
    if fingerprint is not None:
        whole.attrs["fingerprint"] = fingerprint
    return whole


def identifiers(raw: pd.DataFrame) -> list[str]:
    """An id for each row of `rows`: its split and its number there, from 1."""
    numbers = raw.groupby(SPLIT).cumcount() + 1
    return [f"{split}-{number}" for split, number in zip(raw[SPLIT], numbers, strict=True)]


def source(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The fields `sources` and `hub` of a `cisterna.tasks.Task`."""
    if "hub" in spec:
        return {"hub": {"id": str(spec["hub"]), "revision": spec.get("revision")}}
    return {"sources": (spec["file"],) if isinstance(spec["file"], str) else tuple(spec["file"])}


def of_hub(
    name: str, hub: str, revision: str | None
) -> tuple[list[tuple[str | None, str, pd.DataFrame]], dict[str, str]]:
    """The splits of a data set of the hub, or of a local folder that `datasets.load_dataset` reads."""
    import datasets

    try:
        found = datasets.load_dataset(hub, revision=revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError):
            raise  # the disk, not the data set
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"tasks.{name}.hub: {hub!r} cannot be loaded ({reason}). Check its name and revision, that this machine "
            "reaches the hub (or has the data set in its cache), and that you are logged in if it is private."
        ) from error
    splits: list[tuple[str | None, str, pd.DataFrame]] = [
        (str(split), f"{hub}, split {split}", part.to_pandas()) for split, part in found.items()
    ]
    if len(splits) == 1 and SPLIT in splits[0][2].columns:
        splits = [(None, hub, splits[0][2])]
    return splits, {str(split): part._fingerprint for split, part in found.items()}


def _check_columns(frame: pd.DataFrame, place: str, required: Sequence[str], allowed: Sequence[str]) -> None:
    columns = [str(column) for column in frame.columns]
    for column in required:
        if column not in columns:
            raise UserError(
                f"{place}: no column {column!r}. Expected {', '.join(required)}; it has {', '.join(columns)}."
            )
    for column in columns:
        if column not in allowed:
            raise UserError(
                f"{place}: unknown column {column!r}. Expected {', '.join(allowed)}. Remove it or rename it."
            )


def _cells(column: pd.Series, place: str, name: str, may_be_empty: bool) -> list[str]:
    texts = ["" if missing else str(value).strip() for value, missing in zip(column, column.isna(), strict=True)]
    if not may_be_empty and "" in texts:
        raise UserError(f"{place}: row {texts.index('') + 1}: column {name!r} is empty. Fill it or remove the row.")
    return texts


def _meanings(name: str, raw: pd.DataFrame) -> dict[str, str]:
    """What each split of the data becomes, by its name."""
    names = list(dict.fromkeys(raw[SPLIT]))
    other = {"train": "train"} | dict.fromkeys(ID, "id") | dict.fromkeys(OOD, "ood")
    other[TEST] = "id" if set(names) & set(OOD) else "ood"
    for split in names:
        if split not in other:
            first = raw[WHERE][raw[SPLIT] == split].iloc[0]
            raise UserError(f"{first}: the split {split!r} is not known. Use {', '.join(other)}.")
    became = {split: other[split] for split in names}
    for needed in ("train", "ood"):
        if needed not in became.values():
            expected = " or ".join(split for split, meaning in other.items() if meaning == needed)
            raise UserError(f"tasks.{name}: its data have no split {expected}; they have {', '.join(names)}.")
    return became
