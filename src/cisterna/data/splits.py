"""`cisterna data`: one task's examples as train, validation, id and ood, audited for leaks.

    cisterna data --task splice-donor --output results/data/splice-donor --seed 0
        --spec '{"train": 1000, "validation": 150, "id": 400, "ood": 400}'

Writes {train,validation,id,ood}.parquet and card.json, which has their SHA-256, all or nothing. Makes no prompts (that
is `cisterna.tasks`) and no tokens (`cisterna.sequences.tokenization`).
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

from cisterna import tasks
from cisterna.artifacts import files
from cisterna.constants import SPLITS
from cisterna.data import holdout, similarity
from cisterna.errors import UserError
from cisterna.scoring import gene_ontology
from cisterna.sequences.tokenization import TAGGED

COLUMNS = ("id", "prompt", "segments", "reasoning", "answer", "sequence", "group")
SEGMENTS = pa.list_(pa.struct([("sequence", pa.string()), ("start", pa.int32()), ("center", pa.int32())]))
ALL = "all"  # a size: every row there is
NAMED = 200  # groups of a split that the card lists one by one
MOST = 2000  # sequences of a split whose nearest neighbour in train is sought
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def prepare(name: str, spec: Mapping[str, Any], seed: int, output: Path) -> None:
    """Draw, audit and write the splits of task `name` into the folder `output`, which is replaced
    as a whole.

    `spec` is the task's entry in the config: the size of each split and the keys of an adapter or of
    the user's own table; all rows of the groups that such a table lists under `ood` are `ood`. Of
    data that come with splits the repeated rows are dropped (`without_repeats`) and the card says
    how many. Nothing is written unless every check passes. Raises UserError for what is wrong with
    the table, for a split that cannot be filled, and for a leak.
    """
    task = tasks.load(name, spec)
    examples = tasks.read(task)
    provenance = examples.attrs
    _check_segments(examples, name)
    sizes = {which: spec.get(which) for which in SPLITS}
    rule, measure, dropped = task.rule, None, None
    if spec.get("split"):
        examples, rule, measure = holdout.hold_out(examples, spec["split"], seed, name)
        sizes["ood"] = spec.get("ood", ALL)
    elif isinstance(sizes["ood"], list | tuple):  # names of groups
        sizes["ood"] = int(examples["ood"].sum())
    if tasks.SPLIT in examples.columns:
        sizes |= {which: spec.get(which, ALL) for which in ("train", "id", "ood")}
        examples, dropped = without_repeats(examples)
    frames = split(examples, sizes, seed, name, task.quoted)
    labels = tuple(sorted(set(examples["answer"]))) if task.labels is None else task.labels
    findings = audit(frames, measure)
    if measure is not None:
        findings["held_out"] = holdout.check_distance(frames, float(spec["split"]["threshold"]), measure)
    card = {
        "task": name,
        "spec": dict(spec),
        "modality": task.modality,
        "labels": list(labels),
        "meaning": task.meaning,
        "source": _source(task, provenance),
        "seed": seed,
        "rule": f"{rule}. {_drawn(examples)}"
        + ("; rows that the tokenizer's text may quote go to train only" if task.quoted else ""),
        "splits": {which: _counts(frame, labels) for which, frame in frames.items()},
        "audit": findings,
    }
    if dropped is not None:
        card["dropped"] = dropped
    if provenance.get("notes"):
        card["notes"] = list(provenance["notes"])
    with files.new_folder(Path(output)) as folder:
        for which, frame in frames.items():
            write(frame, folder / f"{which}.parquet")
        hashes = {f"{which}.parquet": files.sha256(folder / f"{which}.parquet") for which in SPLITS}
        if task.terms is not None:
            terms = task.terms(frames["train"])
            terms.write(folder / gene_ontology.FILE)
            hashes[gene_ontology.FILE] = files.sha256(folder / gene_ontology.FILE)
            card["answers"] = {"kind": "terms", "version": terms.version, "sha256": hashes[gene_ontology.FILE]}
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


def _source(task: tasks.Task, provenance: Mapping[Any, Any]) -> dict[str, Any]:
    """What a task was made from: of each file the SHA-256, of a data set of the hub the revision and what was read."""
    source: dict[str, Any] = {path: files.sha256(files.locate(path)) for path in task.sources}
    if task.hub is not None:
        given = {"revision": task.hub["revision"], "fingerprint": provenance.get("fingerprint")}
        source[str(task.hub["id"])] = given
    return source


def _drawn(examples: pd.DataFrame) -> str:
    """Which splits are drawn from what, in words."""
    by = "by the sha256 of seed and id"
    if tasks.SPLIT not in examples.columns:
        return f"id, validation and train are drawn from the other rows, in this order, {by}"
    if (examples[tasks.SPLIT] == "id").any():
        return f"id and ood are those of the data; validation and train are drawn from its train, in this order, {by}"
    return f"ood is that of the data; id, validation and train are drawn from its train, in this order, {by}"


def without_repeats(examples: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Examples of data that come with splits, none of which could be answered by memory, and how many were dropped.

    Of rows with one prompt in one split the first stays. Of rows that share a sequence or a prompt
    over two splits those of train are dropped, and of id and ood those of id: a published data set
    may hold such repeats, and `audit` would refuse them.
    """
    dropped: dict[str, int] = {}
    left = {which: examples[examples[tasks.SPLIT] == which] for which in ("ood", "id", "train")}
    for which, frame in left.items():
        once = frame[~frame["prompt"].duplicated()]
        if len(once) < len(frame):
            dropped[f"{which}, prompt also in {which}"] = len(frame) - len(once)
        for tested in ("ood", "id"):
            if tested == which:
                break
            shared = once["sequence"].isin(left[tested]["sequence"]) | once["prompt"].isin(left[tested]["prompt"])
            if shared.any():
                dropped[f"{which}, sequence or prompt also in {tested}"] = int(shared.sum())
                once = once[~shared]
        left[which] = once
    return pd.concat(left.values(), ignore_index=True), dropped


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
    """The four splits, each with the columns COLUMNS and as many rows as `sizes` asks for, or ALL there are.

    Where the examples come with splits (the column `tasks.SPLIT`), ood and id are drawn from theirs
    and validation from their train; without an id of theirs it is drawn from train too.

    Rows are ordered by the sha256 of seed and id, so the draw depends on no library's random
    numbers. `id` is drawn first, then `validation`, then `train`: changing the size of train leaves
    the two others as they are. With `quoted` the rows that are `tasks.quotable` are for train only.
    Raises UserError if a size is missing, not a positive whole number, or larger than what is left.
    """
    for which in SPLITS:
        size = sizes.get(which)
        if size == ALL and which != "validation":
            continue
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise UserError(
                f"tasks.{name}.{which}: {size!r} is not a size. Give the number of rows of the split, at least 1."
            )
    key = [hashlib.sha256(f"{seed}:{identifier}".encode()).hexdigest() for identifier in examples["id"]]
    ordered = examples.iloc[np.argsort(np.array(key), kind="stable")]
    given = ordered[tasks.SPLIT] if tasks.SPLIT in ordered.columns else np.where(ordered["ood"], "ood", "train")
    left = {source: ordered[given == source] for source in ("ood", "id", "train")}
    if left["id"].empty and sizes["id"] == ALL:
        raise UserError(
            f"tasks.{name}.id: all rows are asked for, but the data have no id split, so it is drawn from train. "
            "Give the number of rows."
        )
    home = {"ood": "ood", "id": "train" if left["id"].empty else "id", "validation": "train", "train": "train"}
    frames = {}
    for which, source in home.items():
        pool = left[source]
        if quoted and which in ("id", "validation"):
            pool = pool[~pool["id"].map(tasks.quotable)]
        size = max(1, len(pool)) if sizes[which] == ALL else sizes[which]
        if len(pool) < size:
            raise UserError(
                f"tasks.{name}.{which}: asks for {sizes[which]} rows but {len(pool)} are left "
                "for it "
                f"({int(examples['ood'].sum())} rows out of domain, "
                f"{int((~examples['ood']).sum())} in domain). "
                "Ask for fewer rows, or change what `ood` holds out."
            )
        frames[which] = pool.iloc[:size]
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
    held_out = {}
    if (Path(folder) / "card.json").is_file():
        held_out = files.read_json(Path(folder) / "card.json").get("audit", {}).get("held_out", {})
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
    if not held_out:
        return audit(frames)
    measure = similarity.Measure.named(held_out["measure"])
    checked = holdout.check_distance(frames, held_out["threshold"], measure)
    return audit(frames, measure) | {"held_out": checked}


def audit(frames: Mapping[str, pd.DataFrame], measure: similarity.Measure | None = None) -> dict[str, Any]:
    """Fail if a test could be passed by memory; otherwise say how far each test split is from
    train.

    No id, sequence or prompt may be in two splits, no id or prompt twice in one, and no group of
    `ood` may be in another split. Returns the checks made and, for each split but train,
    `nearest_train`: quantiles of the distance of its sequences to the nearest sequence of train, by
    `measure` or the one that `cisterna.data.similarity` chooses for them. Raises UserError naming the two
    splits and the rows (counted from 1) of the first leak.
    """
    for number, first in enumerate(SPLITS):
        if frames[first].empty:
            raise UserError(f"leakage audit: split {first} is empty.")
        for column in ("id", "sequence", "prompt"):
            if column != "sequence":  # one sequence may be asked about twice, in different words
                _refuse_shared(frames, first, first, column)
            for second in SPLITS[number + 1 :]:
                _refuse_shared(frames, first, second, column)
        if first != "ood":
            _refuse_shared(frames, first, "ood", "group")
    train = frames["train"]["sequence"].tolist()
    if measure is None:
        measure = similarity.Measure.of([sequence for which in SPLITS for sequence in frames[which]["sequence"]])
    nearest = {}
    for which in SPLITS[1:]:
        values = similarity.nearest(frames[which]["sequence"].tolist()[:MOST], train, measure)
        nearest[which] = {
            "measure": str(measure),
            "sequences": len(values),
            "quantiles": {f"{q:g}": round(float(np.quantile(values, q)), 4) for q in QUANTILES},
        }
    return {
        "passed": [
            "no id, sequence or prompt in two splits, no id or prompt twice in one",
            "held-out groups are in ood only",
        ],
        "nearest_train": nearest,
    }


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
    groups = {str(group): int(rows) for group, rows in frame["group"].value_counts().sort_index().items()}
    answers = frame["answer"].value_counts()
    return {
        "rows": len(frame),
        "labels": {label: int(answers.get(label, 0)) for label in labels},
        "groups": groups if len(groups) <= NAMED else {f"{len(groups)} groups": len(frame)},
    }
