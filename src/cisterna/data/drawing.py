"""Drawing: which examples are in train, validation, id and ood."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from cisterna import tasks
from cisterna.constants import SPLITS
from cisterna.errors import UserError
from cisterna.tasks import tables, unseen

COLUMNS = ("id", "prompt", "segments", "reasoning", "answer", "sequence", "group")  # of every split
ALL = "all"  # a size: every row there is


def draw_splits(
    examples: pd.DataFrame, sizes: Mapping[str, Any], seed: int, name: str, quoted: bool = False
) -> dict[str, pd.DataFrame]:
    """The four splits of task `name`, with as many rows as `sizes` asks for (or ALL there are).

    They have the columns COLUMNS and those of `cisterna.tasks.unseen`, if there are any.

    If the examples come with splits (the column `tasks.SPLIT`), ood and id are drawn from theirs and validation from
    their train; without an id split of theirs, id is drawn from train too. Rows of their train that share a sequence or
    a prompt with what was drawn from it, such as one variant in two questions, are left out: `dropped` in the
    attributes of train lists them.

    Rows are ordered by the sha256 of seed and id, so the draw does not depend on the random numbers of a library. `id`
    is drawn first, then `validation`, then `train`: another size of train leaves the two others unchanged. With
    `quoted`, the rows that are `tasks.quotable` are for train only. Raises UserError if a size is missing, not a
    positive whole number, or larger than the number of rows that are left.
    """
    for split in SPLITS:
        size = sizes.get(split)
        if size == ALL and split != "validation":
            continue
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise UserError(
                f"tasks.{name}.{split}: {size!r} is not a size. Give the number of rows of the split, at least 1."
            )
    keys = [hashlib.sha256(f"{seed}:{identifier}".encode()).hexdigest() for identifier in examples["id"]]
    ordered = examples.iloc[np.argsort(np.array(keys), kind="stable")]
    sources = ordered[tasks.SPLIT] if tasks.SPLIT in ordered.columns else np.where(ordered["ood"], "ood", "train")
    left = {source: ordered[sources == source] for source in ("ood", "id", "train")}
    if left["id"].empty and sizes["id"] == ALL:
        raise UserError(
            f"tasks.{name}.id: all rows are asked for, but the data have no id split, so it is drawn from train. "
            "Give the number of rows."
        )
    drawn_from = {"ood": "ood", "id": "train" if left["id"].empty else "id", "validation": "train", "train": "train"}
    frames = {}
    dropped: list[dict[str, Any]] = []
    for split, source in drawn_from.items():
        pool = left[source]
        if quoted and split in ("id", "validation"):
            pool = pool[~pool["id"].map(tasks.quotable)]
        size = max(1, len(pool)) if sizes[split] == ALL else sizes[split]
        if len(pool) < size:
            outside = int(examples["ood"].sum())
            raise UserError(
                f"tasks.{name}.{split}: asks for {sizes[split]} rows but {len(pool)} are left for it ({outside} rows "
                f"out of domain, {len(examples) - outside} in domain). Ask for fewer rows, or change what `ood` holds "
                "out."
            )
        frames[split] = pool.iloc[:size]
        left[source] = left[source].drop(frames[split].index)
        if tasks.SPLIT in ordered.columns and source == "train":
            shared = _shared(left[source], frames[split])
            dropped += tables.dropped(
                f"train, sequence or prompt also in {split}, which was drawn from it", list(left[source]["id"][shared])
            )
            left[source] = left[source][~shared]
    columns = [*COLUMNS, *(name for name in examples.columns if name.startswith(unseen.PREFIX))]
    drawn = {split: frames[split][columns].reset_index(drop=True) for split in SPLITS}
    drawn["train"].attrs = {"dropped": dropped}
    return drawn


def _shared(rows: pd.DataFrame, others: pd.DataFrame) -> pd.Series:
    """Which rows have a sequence or a prompt of the others."""
    return rows["sequence"].isin(others["sequence"]) | rows["prompt"].isin(others["prompt"])


def describe_draw(examples: pd.DataFrame) -> str:
    """How `draw_splits` draws from these examples, for the data card."""
    by = "by the sha256 of seed and id"
    if tasks.SPLIT not in examples.columns:
        return f"id, validation and train are drawn from the other rows, in this order, {by}"
    if (examples[tasks.SPLIT] == "id").any():
        return f"id and ood are those of the data; validation and train are drawn from its train, in this order, {by}"
    return f"ood is that of the data; id, validation and train are drawn from its train, in this order, {by}"


def without_repeats(examples: pd.DataFrame) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Examples of data that come with splits, without the repeats that `audit` refuses, and which were dropped.

    Of rows with the same prompt in one split the first is kept; those with another answer are listed apart. If rows in
    two splits share a sequence or a prompt, those of train are dropped; if the two splits are id and ood, those of id.
    """
    dropped: list[dict[str, Any]] = []
    kept = {split: examples[examples[tasks.SPLIT] == split] for split in ("ood", "id", "train")}
    for split, frame in kept.items():
        again = frame["prompt"].duplicated()
        once = frame[~again]
        differs = frame["answer"] != frame.groupby("prompt")["answer"].transform("first")
        reason = f"{split}, prompt also in {split}"
        dropped += tables.dropped(reason, list(frame["id"][again & ~differs]))
        dropped += tables.dropped(f"{reason}, with another answer", list(frame["id"][again & differs]))
        for tested in ("ood", "id"):
            if tested == split:
                break
            shared = _shared(once, kept[tested])
            if shared.any():
                dropped += tables.dropped(f"{split}, sequence or prompt also in {tested}", list(once["id"][shared]))
                once = once[~shared]
        kept[split] = once
    return pd.concat(kept.values(), ignore_index=True), dropped
