"""`cisterna data`: one task's examples as train, validation, id and ood, audited for leaks.

    cisterna data --task splice-donor --output results/data/splice-donor --seed 0
        --spec '{"train": 1000, "validation": 150, "id": 400, "ood": 400}'

Writes {train,validation,id,ood}.parquet and card.json, which has their SHA-256, all or nothing. Makes no prompts (that
is `cisterna.tasks`) and no tokens (`cisterna.tokenizer`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

from cisterna import files, tasks
from cisterna.errors import UserError
from cisterna.tokenizer import TAGGED

SPLITS = ("train", "validation", "id", "ood")
COLUMNS = ("id", "prompt", "segments", "reasoning", "answer", "sequence", "group")
SEGMENTS = pa.list_(pa.struct([("sequence", pa.string()), ("start", pa.int32()), ("center", pa.int32())]))
WORD = 3  # letters of the words that sequences of unequal length are compared by
MOST = 2000  # sequences of a split whose nearest neighbour in train is sought
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def prepare(name: str, spec: Mapping[str, Any], seed: int, output: Path) -> None:
    """Draw, audit and write the splits of task `name` into the folder `output`, which is replaced
    as a whole.

    `spec` is the task's entry in the config: the size of each split and, for the user's own table,
    its keys; all rows of the groups that such a table holds out are `ood`. Nothing is written
    unless every check passes. Raises UserError for what is wrong with the table, for a split that
    cannot be filled, and for a leak.
    """
    task = tasks.load(name, spec)
    examples = tasks.read(task)
    sizes = {which: spec.get(which) for which in SPLITS}
    if isinstance(sizes["ood"], list | tuple):  # names of groups, in the user's own table
        sizes["ood"] = int(examples["ood"].sum())
    _check_segments(examples, name)
    frames = split(examples, sizes, seed, name, task.quoted)
    findings = audit(frames)
    card = {
        "task": name,
        "spec": dict(spec),
        "modality": task.modality,
        "labels": list(task.labels),
        "meaning": task.meaning,
        "source": task.source,
        "source_sha256": files.sha256(Path(task.source)),
        "seed": seed,
        "rule": f"{task.rule}. id, validation and train are drawn from the other rows, in this "
        "order, by the sha256 "
        "of seed and id" + ("; rows that the tokenizer's text may quote go to train only" if task.quoted else ""),
        "splits": {which: _counts(frame, task.labels) for which, frame in frames.items()},
        "audit": findings,
    }
    with files.new_folder(Path(output)) as folder:
        for which, frame in frames.items():
            write(frame, folder / f"{which}.parquet")
        hashes = {f"{which}.parquet": files.sha256(folder / f"{which}.parquet") for which in SPLITS}
        files.write_json(folder / "card.json", card | {"files": hashes})


def read_card(folder: Path) -> dict[str, Any]:
    """The card of the splits in `folder`. UserError where there is none, or one without the hashes of its files."""
    path = Path(folder) / "card.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file. Write the splits with `cisterna data` first.")
    card = files.read_json(path)
    if "files" not in card:
        raise UserError(
            f"{path}: says no SHA-256 of its splits; an earlier version wrote it. Delete the folder and rerun."
        )
    return card


def check(folder: Path, which: str, card: Mapping[str, Any]) -> Path:
    """The file of split `which` in `folder`. UserError if it is not the one that the card describes."""
    path = Path(folder) / f"{which}.parquet"
    if not path.is_file():
        raise UserError(f"{path}: no such file. Write the splits with `cisterna data` first.")
    found = files.sha256(path)
    if found != card["files"][path.name]:
        raise UserError(
            f"{path}: its SHA-256 is {found[:12]}, card.json says {card['files'][path.name][:12]}; it was changed "
            "after it was written. Delete the folder and rerun."
        )
    return path


def _check_segments(examples: pd.DataFrame, name: str) -> None:
    """Every tagged stretch of a prompt is what its segment says: a bug of the task's, if not."""
    for prompt, segments in zip(examples["prompt"], examples["segments"], strict=True):
        found = [match[2] for match in TAGGED.finditer(prompt)]
        said = [
            part["sequence"][part["start"] : part["start"] + len(stretch)]
            for part, stretch in zip(segments, found, strict=True)
        ]
        if found != said:
            raise ValueError(f"task {name}: stretches {found} of the prompt {prompt!r} are {said} in its segments")


def split(
    examples: pd.DataFrame, sizes: Mapping[str, Any], seed: int, name: str, quoted: bool = False
) -> dict[str, pd.DataFrame]:
    """The four splits, each with the columns COLUMNS and as many rows as `sizes` asks for.

    Rows are ordered by the sha256 of seed and id, so the draw depends on no library's random
    numbers. `id` is drawn first, then `validation`, then `train`: changing the size of train leaves
    the two others as they are. With `quoted` the rows that are `tasks.quotable` are for train only.
    Raises UserError if a size is missing, not a positive whole number, or larger than what is left.
    """
    for which in SPLITS:
        size = sizes.get(which)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise UserError(
                f"tasks.{name}.{which}: {size!r} is not a size. Give the number of rows of the split, at least 1."
            )
    key = [hashlib.sha256(f"{seed}:{identifier}".encode()).hexdigest() for identifier in examples["id"]]
    ordered = examples.iloc[np.argsort(np.array(key), kind="stable")]
    left = {"ood": ordered[ordered["ood"]], "train": ordered[~ordered["ood"]]}
    frames = {}
    for which in ("ood", "id", "validation", "train"):
        source = "ood" if which == "ood" else "train"
        pool = left[source]
        if quoted and which in ("id", "validation"):
            pool = pool[~pool["id"].map(tasks.quotable)]
        if len(pool) < sizes[which]:
            raise UserError(
                f"tasks.{name}.{which}: asks for {sizes[which]} rows but {len(pool)} are left "
                "for it "
                f"({int(examples['ood'].sum())} rows out of domain, "
                f"{int((~examples['ood']).sum())} in domain). "
                "Ask for fewer rows, or change what `ood` holds out."
            )
        frames[which] = pool.iloc[: sizes[which]]
        left[source] = left[source].drop(frames[which].index)
    return {which: frames[which][list(COLUMNS)].reset_index(drop=True) for which in SPLITS}


def write(frame: pd.DataFrame, path: Path) -> None:
    """A split as Parquet: the columns COLUMNS, all but the segments strings; the same bytes for the same rows."""
    columns = {
        name: pa.array(list(frame[name]), SEGMENTS)
        if name == "segments"
        else pa.array([str(value) for value in frame[name]], pa.string())
        for name in COLUMNS
    }
    pq.write_table(pa.table(columns), path, compression="zstd")


def audit_folder(folder: Path) -> dict[str, Any]:
    """`audit` on the splits that `prepare` wrote into `folder`. Raises UserError also for files
    missing or broken.
    """
    frames = {}
    for which in SPLITS:
        path = Path(folder) / f"{which}.parquet"
        if not path.is_file():
            raise UserError(f"{path}: no such file. Write the splits with `cisterna data` first.")
        try:
            frames[which] = pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not a readable Parquet file ({error}). Delete the folder and rerun.") from error
        missing = [column for column in COLUMNS if column not in frames[which].columns]
        if missing:
            raise UserError(f"{path}: no column {missing[0]!r}. Delete the folder and rerun.")
    return audit(frames)


def audit(frames: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Fail if a test could be passed by memory; otherwise say how far each test split is from
    train.

    No id, sequence or prompt may be in two splits or twice in one, and no group of `ood` may be in
    another split. Returns the checks made and, for each split but train, `nearest_train`: quantiles
    of the distance of its sequences to the nearest sequence of train, see `distances`. Raises
    UserError naming the two splits and the rows (counted from 1) of the first leak.
    """
    for number, first in enumerate(SPLITS):
        if frames[first].empty:
            raise UserError(f"leakage audit: split {first} is empty.")
        for column in ("id", "sequence", "prompt"):
            _refuse_shared(frames, first, first, column)
            for second in SPLITS[number + 1 :]:
                _refuse_shared(frames, first, second, column)
        if first != "ood":
            _refuse_shared(frames, first, "ood", "group")
    train = frames["train"]["sequence"].tolist()
    nearest = {}
    for which in SPLITS[1:]:
        measure, values = distances(frames[which]["sequence"].tolist()[:MOST], train)
        nearest[which] = {
            "measure": measure,
            "sequences": len(values),
            "quantiles": {f"{q:g}": round(float(np.quantile(values, q)), 4) for q in QUANTILES},
        }
    return {
        "passed": [
            "no id, sequence or prompt twice, in one split or two",
            "held-out groups are in ood only",
        ],
        "nearest_train": nearest,
    }


def distances(sequences: list[str], train: list[str]) -> tuple[str, np.ndarray]:
    """What is measured, and the distance of each sequence to the nearest of `train`: float64 in [0,
    1], shape (n,).

    Normalised Hamming distance if all have one length, otherwise the Jaccard distance of their sets
    of words: the genes of a cell sentence, or all runs of three letters.
    """
    everything = sequences + train
    bags: list[set[Any]]
    if any(" " in sequence for sequence in everything):
        measure = "jaccard of genes"
        bags = [set(sequence.split()) for sequence in everything]
    elif len({len(sequence) for sequence in everything}) == 1:
        measure = "hamming / length"
        bags = [set(enumerate(sequence)) for sequence in everything]
    else:
        measure = f"jaccard of {WORD}-mers"
        bags = [
            {sequence[start : start + WORD] for start in range(max(1, len(sequence) - WORD + 1))}
            for sequence in everything
        ]
    column: dict[Any, int] = {}
    indices = [column.setdefault(word, len(column)) for bag in bags for word in bag]
    sizes = np.array([len(bag) for bag in bags])
    table = sparse.csr_matrix(
        (np.ones(len(indices), np.float32), indices, np.concatenate([[0], np.cumsum(sizes)])),
        shape=(len(bags), len(column)),
    )
    count = len(sequences)
    train_table = table[count:].T.tocsc()
    nearest = np.empty(count)
    for start in range(0, count, 100):  # a hundred rows at a time bound the dense block
        stop = min(start + 100, count)
        shared = (table[start:stop] @ train_table).toarray()
        if measure.startswith("hamming"):
            near = 1 - shared / sizes[0]
        else:
            near = 1 - shared / (sizes[start:stop, None] + sizes[None, count:] - shared)
        nearest[start:stop] = near.min(axis=1)
    return measure, nearest


def _refuse_shared(frames: Mapping[str, pd.DataFrame], first: str, second: str, column: str) -> None:
    """UserError if a value of `column` is in both splits, or twice in one if they are the same."""
    left, right = frames[first][column], frames[second][column]
    shared = right.duplicated() if first == second else right.isin(left)
    if not shared.any():
        return
    row = int(shared.to_numpy().argmax())
    value = right.iloc[row]
    before = int((left == value).to_numpy().argmax())
    shown = value if len(value) <= 60 else value[:57] + "..."
    raise UserError(
        f"leakage audit: {int(shared.sum())} row(s) of {second} have a {column} that is also in "
        f"{first}: "
        f"row {before + 1} of {first} (id {frames[first]['id'].iloc[before]}) and row {row + 1} "
        f"of {second} "
        f"(id {frames[second]['id'].iloc[row]}) share {column} {shown!r}. Keep one of them in "
        "the table."
    )


def _counts(frame: pd.DataFrame, labels: tuple[str, ...]) -> dict[str, Any]:
    return {
        "rows": len(frame),
        "labels": {label: int((frame["answer"] == label).sum()) for label in labels},
        "groups": {str(group): int(rows) for group, rows in frame["group"].value_counts().sort_index().items()},
    }
