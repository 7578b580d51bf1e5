"""Published data sets, from files or from the Hugging Face hub, as one frame of raw rows with their split.

The names of splits in the data, and what they become here:

    train                    train, from which `validation` is drawn
    ood, network             ood
    val, validation, id      id
    test                     ood, unless there is a split `ood` or `network`: then id

Three files are train, id and ood, in this order; two are train and ood. A single file has a column `split` with the
names above, and so may a data set of the hub that is in one piece; where there are several parts, such a column has to
agree with them. Without an id split, id is drawn from train. A split that is called `test` is often drawn at random,
and then it is out of domain in name only: the data card says which split became what, and `nearest_train` how far it is
from train.

Not for what the columns mean: that is in the module of each adapter.
"""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cisterna.errors import UserError, one_line
from cisterna.tasks import catalog, tables
from cisterna.tasks.base import SPLIT

OOD = ("ood", "network")
ID = ("id", "val", "validation")
TEST = "test"
# What the names of splits in the data can become.
MEANINGS = {
    "train": ("train",),
    **dict.fromkeys(ID, ("id",)),
    **dict.fromkeys(OOD, ("ood",)),
    TEST: ("id", "ood"),
}
ORDER = {1: (None,), 2: ("train", "ood"), 3: ("train", "id", "ood")}  # of the files
ALIASES = {"variant_sequence": ("mutated_sequence",), "id": ("ID",)}  # other names of columns in published data
IN, OUT = "in domain", "out of domain"  # groups where the data have no others
WHERE = "where"  # column: place of the row, for messages

Part = tuple[str | None, str, pd.DataFrame]  # split (None if it is in a column), place and rows of a part of the data


def rows(name: str, spec: Mapping[str, Any], required: Sequence[str], optional: Sequence[str] = ()) -> pd.DataFrame:
    """The raw rows of the task `name`: the columns `required`, those of `optional` that exist, `id`, SPLIT and WHERE.

    Cells are stripped text; `reasoning` that is a list is joined by line breaks. A column may have another name that it
    has in published data (ALIASES). Other columns are not read, and listed. The attribute `fingerprint` says what was
    read from the hub, `notes` which splits became what and which columns were not read. Raises UserError naming file
    and column for a missing column, and also the row for an empty cell (only `optional` ones may be empty), for two
    names of one column with different values, for markup, or for an unknown split.
    """
    parts, fingerprint = open_parts(name, spec)
    columns = [*required, *dict.fromkeys([*optional, "id"])]
    frames, unread = [], dict[str, None]()
    for split, place, raw in parts:
        raw = tables.joined(raw, "reasoning", place)
        advice = f" Expected {', '.join([*required, *([SPLIT] if split is None else [])])}."
        cells, read = {}, {SPLIT}
        for column in columns:
            names = (column, *ALIASES.get(column, ()))
            if column in required or any(other in raw.columns for other in names):
                cells[column] = tables.same_texts(raw, names, place, advice, may_be_empty=column not in required)
            read |= set(names)
        frame = pd.DataFrame(cells)
        frame[WHERE] = tables.row_names(place, len(frame))
        frame[SPLIT] = splits(raw, split, place, advice)
        unread |= dict.fromkeys(str(column) for column in raw.columns if column not in read)
        frames.append(frame)
    whole = pd.concat(frames, ignore_index=True)
    for column in set(columns) - set(required):
        if column in whole.columns:
            whole[column] = whole[column].fillna("")
    whole, notes = settled(name, whole)
    whole["id"], renamed = _identifiers(whole)
    whole.attrs = {"notes": [*notes, *renamed, *not_read(unread)]}
    if fingerprint is not None:
        whole.attrs["fingerprint"] = fingerprint
    return whole


def not_read(columns: Iterable[str], where: str = "") -> list[str]:
    """The note of a data card on columns (`where`: of what) that are not read; none without columns."""
    names = ", ".join(columns)
    return [f"columns{where} that are not read: {names}"] if names else []


def open_parts(name: str, spec: Mapping[str, Any]) -> tuple[list[Part], dict[str, str] | None]:
    """Split (None if it is in a column), place and rows of each part of the data; and the hub's fingerprints."""
    if "hub" in spec:
        return _open_hub(name, str(spec["hub"]), spec.get("subset"), spec.get("revision"))
    paths = catalog.files(spec)
    splits = ORDER.get(len(paths), (None,) * len(paths))
    return [(split, path, tables.open_table(Path(path))) for split, path in zip(splits, paths, strict=True)], None


def splits(raw: pd.DataFrame, split: str | None, place: str, advice: str = "") -> list[str]:
    """The split of each row of a part of the data: `split`, or if that is None what its column SPLIT says.

    UserError if the column says that a row of the part `split` is in another split, or nothing that is a split.
    """
    if split is None:
        return tables.texts(raw, SPLIT, place, advice=advice)
    if SPLIT in raw.columns:
        for row, text in enumerate(tables.texts(raw, SPLIT, place, may_be_empty=True), 1):
            if text and set(MEANINGS.get(text, ())).isdisjoint(MEANINGS.get(split, (split,))):
                raise UserError(
                    f"{place}: row {row}: column {SPLIT!r} says {text!r}, but these rows are given as {split}. Remove "
                    "or rename the column, or give one file with it."
                )
    return [split] * len(raw)


def _identifiers(raw: pd.DataFrame) -> tuple[list[str], list[str]]:
    """An id for each row and a note, if there is one: the id of the data where all rows have one of their own.

    Otherwise it is the split of a row and its number there, from 1.
    """
    notes = []
    if "id" in raw.columns:
        given = raw["id"]
        if not (given == "").any() and not given.duplicated().any():
            return list(given), []
        why = "an empty cell" if (given == "").any() else f"{given[given.duplicated()].iloc[0]!r} twice"
        notes = [f"ids are split and number of a row: the column of ids has {why}"]
    numbers = raw.groupby(SPLIT).cumcount() + 1
    return [f"{split}-{number}" for split, number in zip(raw[SPLIT], numbers, strict=True)], notes


def source(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The fields `sources` and `hub` of a `cisterna.tasks.Task`."""
    if "hub" in spec:
        return {"hub": {"id": str(spec["hub"]), "subset": spec.get("subset"), "revision": spec.get("revision")}}
    return {"sources": tuple(catalog.files(spec))}


def _open_hub(name: str, hub: str, subset: str | None, revision: str | None) -> tuple[list[Part], dict[str, str]]:
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
    _check_files(hub, builder.config.data_files or {})
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


def _check_files(hub: str, data_files: Mapping[Any, Sequence[str]]) -> None:
    """UserError if `datasets` makes one split of files that are called id and ood: it knows of train and test only."""
    for split, paths in data_files.items():
        names = sorted({Path(path).name for path in paths})
        sides = {side: [name for name in names if side in re.split("[^a-z]+", name.lower())] for side in ("id", "ood")}
        if all(sides.values()):
            raise UserError(
                f"{hub}: split {split} would be made of {sides['id'][0]} and {sides['ood'][0]}. Give the files of "
                "train, id and ood in the key `file`, in this order."
            )


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


def settled(name: str, raw: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The rows with train, id or ood in the column SPLIT instead of the names in the data, and notes that say so.

    UserError for a name that is unknown, naming the row, and for data without train or ood.
    """
    names = list(dict.fromkeys(raw[SPLIT]))
    known = {split: meanings[0] for split, meanings in MEANINGS.items()}
    known[TEST] = "id" if set(names) & set(OOD) else "ood"
    for split in names:
        if split not in known:
            first = raw[WHERE][raw[SPLIT] == split].iloc[0]
            raise UserError(f"{first}: the split {split!r} is not known. Use {', '.join(known)}.")
    became = {split: known[split] for split in names}
    for needed in ("train", "ood"):
        if needed not in became.values():
            expected = " or ".join(split for split, meaning in known.items() if meaning == needed)
            raise UserError(f"tasks.{name}: its data have no split {expected}; they have {', '.join(names)}.")
    notes = [f"{split} of the data is {meaning} here" for split, meaning in became.items()]
    return raw.assign(**{SPLIT: raw[SPLIT].map(became)}), notes
