"""The leakage audit: no test question could have been seen in training, and how far each test split is from train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cisterna.artifacts import files
from cisterna.constants import SPLITS
from cisterna.data import similarity
from cisterna.data.drawing import COLUMNS
from cisterna.data.holdout import sequence_texts
from cisterna.errors import UserError
from cisterna.tasks.unseen import PREFIX

MOST = 2000  # sequences of a split whose nearest neighbour in train is searched for
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class Prompts:
    """What the audit must know of a task, as its card says it: the fields of `cisterna.tasks.Task`, and `unseen`, the
    values of columns that are held out (`cisterna.tasks.unseen`).
    """

    sequences: tuple[str, ...] = ("sequence",)
    by_prompt: bool = False
    unseen: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def for_card(self) -> dict[str, Any]:
        """What the card says; nothing for prompts of one sequence."""
        named = {"sequences": list(self.sequences), "by_prompt": True} if self.by_prompt else {}
        values = {column: list(held_out) for column, held_out in self.unseen.items()}
        return named | ({"unseen": values} if values else {})

    @classmethod
    def of_card(cls, card: Mapping[str, Any]) -> Prompts:
        """The prompts of the splits with this card."""
        sequences = tuple(card.get("sequences", ("sequence",)))
        return cls(sequences, card.get("by_prompt", False), card.get("unseen", {}))

    def texts(self, examples: pd.DataFrame, name: str) -> list[str]:
        """A sequence of each example."""
        return sequence_texts(examples, self.sequences, name)


def audit(
    frames: Mapping[str, pd.DataFrame],
    prompts: Prompts | None = None,
    measures: Mapping[str, similarity.Measure] | None = None,
) -> dict[str, Any]:
    """Check the four splits for leaks; returns the checks made and the distance of each test split to train.

    No id, prompt or, unless `prompts` have more than one sequence, sequence may be in two splits, no id or prompt twice
    in one, no group of `ood` in another split, and no unseen value either. `nearest_train` of the result has, for each
    split but train, quantiles of the distance of its sequences to the nearest sequence of train, by the one of the
    `measures` or else the one that `cisterna.data.similarity` chooses; with several sequences for each of them, and
    nothing where there is none. Raises UserError naming the two splits and the rows (counted from 1) of the first leak.
    """
    prompts = prompts or Prompts()
    shared = ("id", "prompt") if prompts.by_prompt else ("id", "sequence", "prompt")
    for number, first in enumerate(SPLITS):
        if frames[first].empty:
            raise UserError(f"leakage audit: split {first} is empty.")
        for column in shared:
            if column != "sequence":  # one sequence may be in two different prompts
                _refuse_shared(frames, first, first, column)
            for second in SPLITS[number + 1 :]:
                _refuse_shared(frames, first, second, column)
        if first != "ood":
            _refuse_shared(frames, first, "ood", "group")
            _refuse_unseen(frames[first], first, prompts.unseen)
    nearest: dict[str, Any] = {split: {} for split in SPLITS[1:]}
    for name in prompts.sequences:
        texts = {split: prompts.texts(frames[split], name) for split in SPLITS}
        measure = (measures or {}).get(name) or similarity.Measure.of(
            [text for part in texts.values() for text in part]
        )
        for split in SPLITS[1:]:
            values = similarity.nearest(texts[split][:MOST], texts["train"], measure)
            found = {
                "measure": str(measure),
                "sequences": len(values),
                "quantiles": {f"{q:g}": round(float(np.quantile(values, q)), 4) for q in QUANTILES},
            }
            if len(prompts.sequences) == 1:
                nearest[split] = found
            else:
                nearest[split][name] = found
    passed = [
        f"no {', '.join(shared[:-1])} or {shared[-1]} in two splits, no id or prompt twice in one",
        "held-out groups are in ood only",
    ]
    if prompts.unseen:
        passed.append(f"held-out values of {', '.join(prompts.unseen)} are in ood only")
    checked: dict[str, Any] = {"passed": passed, "nearest_train": nearest if prompts.sequences else {}}
    if not prompts.sequences:
        checked["skipped"] = ["nearest_train: the prompts have no sequences, so there is no distance between them"]
    return checked


def audit_folder(folder: Path) -> dict[str, Any]:
    """`audit` of the splits in `folder`. Raises UserError also for missing or broken files."""
    frames = {}
    card = files.read_json(folder / "card.json") if (folder / "card.json").is_file() else {}
    held_out, prompts = card.get("audit", {}).get("held_out", {}), Prompts.of_card(card)
    for split in SPLITS:
        path = folder / f"{split}.parquet"
        if not path.is_file():
            raise UserError(f"{path}: no such file. Write the splits with `cisterna data` first.")
        try:
            frames[split] = pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not a readable Parquet file ({error}). Delete the folder and rerun.") from error
        columns = [*COLUMNS, *(PREFIX + name for name in prompts.unseen)]
        missing = [column for column in columns if column not in frames[split].columns]
        if missing:
            raise UserError(f"{path}: no column {missing[0]!r}. Delete the folder and rerun.")
    if not held_out:
        return audit(frames, prompts)
    measure, name = similarity.Measure.named(held_out["measure"]), held_out.get("sequence", "sequence")
    checked = check_distance(frames, prompts, held_out["threshold"], measure, name)
    return audit(frames, prompts, {name: measure}) | {"held_out": checked}


def check_distance(
    frames: Mapping[str, pd.DataFrame], prompts: Prompts, threshold: float, measure: similarity.Measure, name: str
) -> dict[str, Any]:
    """The smallest distance of a sequence (the one called `name`) of `ood` to one of another split, for the card.

    Raises UserError if it is below `threshold`.
    """
    others = [text for split in frames if split != "ood" for text in prompts.texts(frames[split], name)]
    near = similarity.nearest(prompts.texts(frames["ood"], name), others, measure)
    least = float(near.min())
    if least < threshold - similarity.ROUNDING:
        row = int(near.argmin())
        raise UserError(
            f"leakage audit: row {row + 1} of ood (id {frames['ood']['id'].iloc[row]}) is {least:.4f} from a sequence "
            f"of another split, nearer than the threshold {threshold:g}. Delete the folder and rerun."
        )
    found = {"measure": str(measure), "threshold": threshold, "least": round(least, 4), "sequences": len(near)}
    return found if prompts.sequences == ("sequence",) else found | {"sequence": name}


def _refuse_unseen(frame: pd.DataFrame, split: str, unseen: Mapping[str, Sequence[str]]) -> None:
    """UserError if a held-out value of a column is in a split other than ood."""
    for column, values in unseen.items():
        shared = frame[PREFIX + column].isin(values).to_numpy()
        if shared.any():
            row = int(shared.argmax())
            raise UserError(
                f"leakage audit: row {row + 1} of {split} (id {frame['id'].iloc[row]}) has "
                f"{frame[PREFIX + column].iloc[row]!r} in {column!r}, a value that is held out. Delete the folder and "
                "rerun."
            )


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
