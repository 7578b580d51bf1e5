"""Published data sets, from files or from the Hugging Face hub, as one frame of raw rows with their split.

The names of splits in the data, and what they become here:

    train                    train, from which `validation` is drawn
    ood, network             ood
    val, validation, id      id
    test                     ood, unless there is a split `ood` or `network`: then id

Three files are train, id and ood, in this order; two are train and ood. A single file has a column `split` with the
names above, and so may a data set of the hub that is in one piece. Without an id split, id is drawn from train. A split
that is called `test` is often drawn at random, and then it is out of domain in name only: the data card says which
split became what, and `nearest_train` how far it is from train.

Not for what the columns mean: that is in the module of each adapter.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cisterna.errors import UserError, one_line
from cisterna.tasks import catalog, tables
from cisterna.tasks.base import SPLIT

OOD = ("ood", "network")
ID = ("id", "val", "validation")
TEST = "test"
ORDER = {1: (None,), 2: ("train", "ood"), 3: ("train", "id", "ood")}  # of the files
WHERE = "where"  # column: place of the row, for messages


def rows(name: str, spec: Mapping[str, Any], required: Sequence[str], optional: Sequence[str] = ()) -> pd.DataFrame:
    """The raw rows of the task `name`: the columns `required`, those of `optional` that exist, SPLIT and WHERE.

    Cells are stripped text. The attribute `fingerprint` says what was read from the hub, `notes` which splits became
    what. Raises UserError naming file and column for a missing or unknown column, and also the row for an empty cell
    (only `optional` ones may be empty), for markup, or for an unknown split.
    """
    parts, fingerprint = open_parts(name, spec)
    frames = []
    for split, place, raw in parts:
        needed = [*required, *([SPLIT] if split is None else [])]
        allowed = [*needed, *optional]
        for column in map(str, raw.columns):
            if column not in allowed:
                raise UserError(
                    f"{place}: unknown column {column!r}. Expected {', '.join(allowed)}. Remove it or rename it."
                )
        advice = f" Expected {', '.join(needed)}."
        frame = pd.DataFrame(
            {
                column: tables.texts(raw, column, place, advice=advice, may_be_empty=column in optional)
                for column in allowed
                if column in needed or column in raw.columns
            }
        )
        frame[WHERE] = tables.row_names(place, len(frame))
        frames.append(frame if split is None else frame.assign(**{SPLIT: split}))
    whole = pd.concat(frames, ignore_index=True)
    for column in set(optional) & set(whole.columns):
        whole[column] = whole[column].fillna("")
    meanings = _meanings(name, whole)
    whole[SPLIT] = whole[SPLIT].map(meanings)
    whole.attrs = {"notes": [f"{split} of the data is {meaning} here" for split, meaning in meanings.items()]}
    if fingerprint is not None:
        whole.attrs["fingerprint"] = fingerprint
    return whole


def open_parts(
    name: str, spec: Mapping[str, Any]
) -> tuple[list[tuple[str | None, str, pd.DataFrame]], dict[str, str] | None]:
    """Split (None if it is in a column), place and rows of each part of the data; and the hub's fingerprints."""
    if "hub" in spec:
        return _open_hub(name, str(spec["hub"]), spec.get("subset"), spec.get("revision"))
    paths = catalog.files(spec)
    splits = ORDER.get(len(paths), (None,) * len(paths))
    return [(split, path, tables.open_table(Path(path))) for split, path in zip(splits, paths, strict=True)], None


def identifiers(raw: pd.DataFrame) -> list[str]:
    """An id for each row: its split and its number there, from 1."""
    numbers = raw.groupby(SPLIT).cumcount() + 1
    return [f"{split}-{number}" for split, number in zip(raw[SPLIT], numbers, strict=True)]


def source(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The fields `sources` and `hub` of a `cisterna.tasks.Task`."""
    if "hub" in spec:
        return {"hub": {"id": str(spec["hub"]), "subset": spec.get("subset"), "revision": spec.get("revision")}}
    return {"sources": tuple(catalog.files(spec))}


def _open_hub(
    name: str, hub: str, subset: str | None, revision: str | None
) -> tuple[list[tuple[str | None, str, pd.DataFrame]], dict[str, str]]:
    """The splits of a data set of the hub, or of a local folder that `datasets.load_dataset` reads."""
    import datasets

    try:
        parts = datasets.load_dataset(hub, subset, revision=revision, **_as_text(hub, subset, revision))
        fingerprints = {str(split): part._fingerprint for split, part in parts.items()}
        frames = {str(split): _frame(part) for split, part in parts.items()}
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError):
            raise  # the disk, not the data set
        if isinstance(error, ValueError):
            _check_subset(name, hub, subset, revision)
        raise UserError(
            f"tasks.{name}.hub: {hub!r} cannot be loaded ({one_line(error)}). Check its name, subset and revision, "
            "that this machine reaches the hub (or has the data set in its cache), and that you are logged in if it is "
            "private."
        ) from error
    if len(frames) == 1 and SPLIT in (whole := next(iter(frames.values()))).columns:
        return [(None, hub, whole)], fingerprints
    return [(split, f"{hub}, split {split}", frame) for split, frame in frames.items()], fingerprints


def _check_subset(name: str, hub: str, subset: str | None, revision: str | None) -> None:
    """UserError, with the names of the subsets, if the data set has several and none of them is chosen."""
    import datasets

    try:
        subsets = datasets.get_dataset_config_names(hub, revision=revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError):
        return  # the data set cannot be read at all
    if subset in subsets or (subset is None and len(subsets) == 1):
        return
    problem = "has several subsets (configurations)" if subset is None else f"has no subset {subset!r}"
    raise UserError(f"tasks.{name}.subset: {hub!r} {problem}. Set `subset` to one of: {tables.shown(subsets)}.")


def _as_text(hub: str, subset: str | None, revision: str | None) -> dict[str, Any]:
    """Options with which `datasets` reads CSV and TSV files as text and guesses nothing; none for other forms.

    UserError for a file that `tables.open_table` would refuse: pandas, which `datasets` uses, takes an extra field for
    an index and moves all others by one column, fills short rows and renames the second of two columns.
    """
    import datasets
    from datasets.packaged_modules.csv.csv import Csv

    builder = datasets.load_dataset_builder(hub, subset, revision=revision)
    if not isinstance(builder, Csv):
        return {}
    tabs = builder.config.sep == "\t"
    options = {"keep_default_na": False, "quoting": csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL}
    names: Sequence[str] = ()
    if _plain(builder.config):
        manager = datasets.DownloadManager()
        for source in (source for sources in builder.config.data_files.values() for source in sources):
            for path in manager.iter_files(manager.download_and_extract(source)):
                place = f"{hub}, file {Path(source).name}"
                names = list(tables.read_as(".tsv" if tabs else ".csv", Path(path), place).columns)
    else:
        parts = datasets.load_dataset(hub, subset, revision=revision, **options)
        names = next(iter(parts.values())).column_names
    return options | {"features": datasets.Features({column: datasets.Value("string") for column in names})}


def _plain(config: Any) -> bool:
    """Whether the CSV or TSV files of a data set are read without further options of its README."""
    known = type(config)(sep=config.sep)
    ignored = {"name", "version", "data_dir", "data_files", "description"}
    return config.sep in (",", "\t") and all(
        getattr(config, field.name) == getattr(known, field.name)
        for field in dataclasses.fields(config)
        if field.name not in ignored
    )


def _frame(part: Any) -> pd.DataFrame:
    """The rows of a `datasets.Dataset`, with the names of its classes and not their numbers."""
    import datasets

    frame = tables.from_arrow(part.with_format("arrow")[:])
    for column, feature in part.features.items():
        if isinstance(feature, datasets.ClassLabel):
            frame[column] = pd.Series(
                [None if number is None or number < 0 else feature.int2str(number) for number in frame[column]],
                dtype=object,
            )
    return frame


def _meanings(name: str, raw: pd.DataFrame) -> dict[str, str]:
    """Which split (train, id, ood) each split of the data becomes."""
    names = list(dict.fromkeys(raw[SPLIT]))
    known = {"train": "train"} | dict.fromkeys(ID, "id") | dict.fromkeys(OOD, "ood")
    known[TEST] = "id" if set(names) & set(OOD) else "ood"
    for split in names:
        if split not in known:
            first = raw[WHERE][raw[SPLIT] == split].iloc[0]
            raise UserError(f"{first}: the split {split!r} is not known. Use {', '.join(known)}.")
    meanings = {split: known[split] for split in names}
    for needed in ("train", "ood"):
        if needed not in meanings.values():
            expected = " or ".join(split for split, meaning in known.items() if meaning == needed)
            raise UserError(f"tasks.{name}: its data have no split {expected}; they have {', '.join(names)}.")
    return meanings
