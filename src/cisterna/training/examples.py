"""The examples of a task that SFT and RL train on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cisterna.data import splits
from cisterna.sequences import inputs_file
from cisterna.training.arguments import StageArguments
from cisterna.training.parent import parent_of


@dataclass(frozen=True)
class Examples:
    """Rows of train: the part that the recipe uses, the file that they are from, and the card of the splits."""

    frame: pd.DataFrame
    path: Path
    card: dict[str, Any]

    @property
    def hashes(self) -> dict[str, str]:
        """The SHA-256 of the file."""
        return {self.path.name: self.card["files"][self.path.name]}


def load_examples(arguments: StageArguments, data: Path) -> Examples:
    """The examples of the splits in the folder `data` that the recipe uses.

    UserError if the file is not the one of the card, or if the parent was trained on other splits of the task.
    """
    card = splits.read_card(data)
    path = splits.check(data, "train", card)
    inputs_file.check_data(parent_of(arguments), card["task"], {path.name: card["files"][path.name]})
    return Examples(head(pd.read_parquet(path), arguments.recipe), path, card)


def head(frame: pd.DataFrame, recipe: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of train that a recipe uses: the first `examples`, or the first `fraction` of them, rounded up.

    Rows are in the order in which the split was drawn, so a smaller part is contained in every larger one, for SFT and
    RL alike.
    """
    return frame.head(recipe.get("examples") or math.ceil(len(frame) * float(recipe.get("fraction", 1.0))))
