"""The words for splits, metrics, forms and stages that figures and pages share."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

SPLIT_NAMES = {"id": "in-domain (ID)", "ood": "out-of-domain (OOD)"}
KIND_NAMES = {"base": "base", "cpt": "CPT", "sft": "SFT", "rl": "RL"}
FORM_NAMES = {"tokens": "tokens", "features": "features", "both": "both forms"}
BASELINE_NAMES = {"majority": "majority", "knn": "k-NN", "logistic": "logistic"}
LABEL_METRICS = {  # of tasks whose answers are labels
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "mcc": "MCC",
}
TERM_METRICS = {  # of tasks whose answers are sets of terms
    "f1_micro": "micro F1",
    "precision_micro": "micro precision",
    "recall_micro": "micro recall",
    "accuracy": "exact sets",
}
STAGE_COLUMNS = ["backbone", "sequences", "cpt", "sft", "sft_epochs", "rl", "rl_epochs"]
"""The columns of the tables that tell the trained stages of a task apart, whatever the seed."""


def base_form(form: str) -> str:
    """A form without the name of an encoder that ``cisterna.report.tables`` added to it."""
    return form.partition(" ")[0]


def form_name(form: str) -> str:
    """The name of a form, with its encoder if the form has one behind it."""
    base, _, encoder = form.partition(" ")
    return f"{FORM_NAMES[base]} of {encoder}" if encoder else FORM_NAMES[base]


def baseline_name(model: str) -> str:
    """The name of a baseline, by its ``model`` in the tables."""
    name = model.removeprefix("baseline/")
    return BASELINE_NAMES.get(name, name)


def cpt_name(cpt: str) -> str:
    """The name of a CPT recipe, or of none."""
    return "no CPT" if cpt == "none" else f"CPT {cpt}"


def forms_except_tokens(form: str) -> list[str]:
    """A form as part of a title: tokens, the usual form, are not named."""
    return [] if form == "tokens" else [form_name(form)]


def split_size(frame: pd.DataFrame) -> str:
    """The number of examples of rows of one split."""
    return f"n = {frame.n.iloc[0]}"


def split_sizes(frame: pd.DataFrame) -> str:
    """The number of examples of each split of a task."""
    return "n = " + ", ".join(f"{frame[frame.split == split].n.iloc[0]} {split.upper()}" for split in SPLIT_NAMES)


def intervals(table: pd.DataFrame, dots: bool = True) -> str:
    """What intervals are, and how many seeds a mean is of."""
    return f"95% bootstrap intervals over the test examples. {seeds(table, dots)}"


def seeds(table: pd.DataFrame, dots: bool = True) -> str:
    """How many training seeds a mean is of. ``dots``: the figure shows each seed as a small dot."""
    number = int(table.seeds.max()) if len(table) else 0
    if number <= 1:
        return "One training seed."
    return f"Means of {number} training seeds{' (small dots)' if dots else ''}."


class StageNames:
    """Names of the stages of a study. A backbone or a recipe is named only where the study has several."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self._several = {column: len(set(frame[column]) - {"none"}) > 1 for column in ("backbone", "sft", "rl")}

    def if_several(self, **names: str) -> list[str]:
        """The names, by column, of which the study has several."""
        return [name for column, name in names.items() if self._several[column]]

    def with_form(self, values: Sequence[Any]) -> str:
        """The name of the stage with these values of ``STAGE_COLUMNS``, the form of the sequences first."""
        form = values[STAGE_COLUMNS.index("sequences")]
        return " · ".join([*forms_except_tokens(form), self.without_form(values)])

    def without_form(self, values: Sequence[Any]) -> str:
        """The name of the stage with these values of ``STAGE_COLUMNS``."""
        stage = dict(zip(STAGE_COLUMNS, values, strict=True))
        words = [*self.if_several(backbone=stage["backbone"]), cpt_name(stage["cpt"])]
        if stage["sft"] != "none":
            words.append(" ".join(["SFT", *self.if_several(sft=stage["sft"]), f"e{stage['sft_epochs']}"]))
        elif stage["rl"] == "none":
            words.append("before SFT")
        name = " · ".join(words)
        if stage["rl"] != "none":
            name += " → " + " ".join(["RL", *self.if_several(rl=stage["rl"]), f"e{stage['rl_epochs']}"])
        return name
