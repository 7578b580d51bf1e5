"""The leakage audit: no test question could have been seen in training, and how far each test split is from train."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cisterna.artifacts import files
from cisterna.constants import SPLITS
from cisterna.data import similarity
from cisterna.data.drawing import COLUMNS
from cisterna.errors import UserError

MOST = 2000  # sequences of a split whose nearest neighbour in train is searched for
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def audit(frames: Mapping[str, pd.DataFrame], measure: similarity.Measure | None = None) -> dict[str, Any]:
    """Check the four splits for leaks; returns the checks made and the distance of each test split to train.

    No id, sequence or prompt may be in two splits, no id or prompt twice in one, and no group of `ood` may be in
    another split. `nearest_train` of the result has, for each split but train, quantiles of the distance of its
    sequences to the nearest sequence of train, by `measure` or the one that `cisterna.data.similarity` chooses. Raises
    UserError naming the two splits and the rows (counted from 1) of the first leak.
    """
    for number, first in enumerate(SPLITS):
        if frames[first].empty:
            raise UserError(f"leakage audit: split {first} is empty.")
        for column in ("id", "sequence", "prompt"):
            if column != "sequence":  # one sequence may be in two different prompts
                _refuse_shared(frames, first, first, column)
            for second in SPLITS[number + 1 :]:
                _refuse_shared(frames, first, second, column)
        if first != "ood":
            _refuse_shared(frames, first, "ood", "group")
    train = frames["train"]["sequence"].tolist()
    if measure is None:
        measure = similarity.Measure.of([sequence for split in SPLITS for sequence in frames[split]["sequence"]])
    nearest = {}
    for split in SPLITS[1:]:
        values = similarity.nearest(frames[split]["sequence"].tolist()[:MOST], train, measure)
        nearest[split] = {
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


def audit_folder(folder: Path) -> dict[str, Any]:
    """`audit` of the splits in `folder`. Raises UserError also for missing or broken files."""
    frames, held_out = {}, {}
    if (folder / "card.json").is_file():
        held_out = files.read_json(folder / "card.json").get("audit", {}).get("held_out", {})
    for split in SPLITS:
        path = folder / f"{split}.parquet"
        if not path.is_file():
            raise UserError(f"{path}: no such file. Write the splits with `cisterna data` first.")
        try:
            frames[split] = pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not a readable Parquet file ({error}). Delete the folder and rerun.") from error
        missing = [column for column in COLUMNS if column not in frames[split].columns]
        if missing:
            raise UserError(f"{path}: no column {missing[0]!r}. Delete the folder and rerun.")
    if not held_out:
        return audit(frames)
    measure = similarity.Measure.named(held_out["measure"])
    checked = check_distance(frames, held_out["threshold"], measure)
    return audit(frames, measure) | {"held_out": checked}


def check_distance(frames: Mapping[str, pd.DataFrame], threshold: float, measure: similarity.Measure) -> dict[str, Any]:
    """The smallest distance of a sequence of `ood` to one of another split, for the card.

    Raises UserError if it is below `threshold`.
    """
    others = [sequence for split in frames if split != "ood" for sequence in frames[split]["sequence"]]
    near = similarity.nearest(list(frames["ood"]["sequence"]), others, measure)
    least = float(near.min())
    if least < threshold - similarity.ROUNDING:
        row = int(near.argmin())
        raise UserError(
            f"leakage audit: row {row + 1} of ood (id {frames['ood']['id'].iloc[row]}) is {least:.4f} from a sequence "
            f"of another split, nearer than the threshold {threshold:g}. Delete the folder and rerun."
        )
    return {"measure": str(measure), "threshold": threshold, "least": round(least, 4), "sequences": len(near)}


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
        f"leakage audit: {int(shared.sum())} row(s) of {second} have a {column} that is also in {first}: "
        f"row {before + 1} of {first} (id {frames[first]['id'].iloc[before]}) and row {row + 1} of {second} "
        f"(id {frames[second]['id'].iloc[row]}) share {column} {shown!r}. Keep one of them in the table."
    )
