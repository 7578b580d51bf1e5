"""The tables of ``cisterna.report.gather`` as figures and pages show them: means over seeds, selections, names.

In a task with several encoders the form of the sequences is followed by the encoder's name ("features nano-esm"), so
that two encoders are never drawn as one line. Not for computing metrics (``cisterna.scoring``).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cisterna import report
from cisterna.constants import FORMS
from cisterna.study import Study

SPLIT_NAMES = {"id": "in-domain (ID)", "ood": "out-of-domain (OOD)"}
KIND_NAMES = {"base": "base", "cpt": "CPT", "sft": "SFT", "rl": "RL"}
FORM_NAMES = {"tokens": "tokens", "features": "features", "both": "both forms"}
BASELINE_NAMES = {"majority": "majority", "knn": "k-NN", "logistic": "logistic", "boosting": "boosting"}
LABEL_METRICS = {  # of tasks whose answers are labels
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "mcc": "MCC",
    "accuracy_lenient": "lenient accuracy",  # of models only
    "accuracy_few_shot": "few-shot accuracy",  # of base and CPT models, on request
    "accuracy_lenient_few_shot": "lenient few-shot accuracy",
    "auroc": "AUROC",  # this one and the next where the probabilities of labels were measured
    "auprc": "AUPRC",
}
TERM_METRICS = {  # of tasks whose answers are sets of terms
    "f1_micro": "micro F1",
    "precision_micro": "micro precision",
    "recall_micro": "micro recall",
    "accuracy": "exact sets",
    "f1_micro_lenient": "lenient micro F1",
    "f1_micro_few_shot": "few-shot micro F1",
    "f1_micro_lenient_few_shot": "lenient few-shot micro F1",
}
STAGE_COLUMNS = ["backbone", "sequences", "cpt", "sft", "sft_epochs", "rl", "rl_epochs"]
"""The columns of the tables that identify a trained stage of a task, whatever the seed."""
TERMS_PRIMARY = next(iter(TERM_METRICS))


@dataclass(frozen=True)
class Tables:
    """The tables of a study. ``metrics``, ``groups`` and ``gains`` are means over seeds (``means``).

    The others are as gathered. ``groups`` has the metrics of each group of a split, ``checkpoints`` those of every
    seed, ``quantized`` what the weights of a backbone were stored in (`cisterna.gguf_files`).
    """

    metrics: pd.DataFrame
    groups: pd.DataFrame
    gains: pd.DataFrame
    rewards: pd.DataFrame
    perplexity: pd.DataFrame
    cells: pd.DataFrame
    checkpoints: pd.DataFrame
    quantized: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read(study: Study, folder: Path) -> Tables:
    """The tables that ``cisterna.report.gather`` wrote to a folder."""

    def table(name: str) -> pd.DataFrame:
        return _with_encoders(pd.read_parquet(folder / name))

    metrics = table(report.METRICS_TABLE)
    quantized, metrics.attrs = metrics.attrs.get("quantized", {}), {}
    groups = metrics[metrics.group.notna()]
    metrics = metrics[metrics.group.isna()]
    of_corpora = metrics.metric == "perplexity"
    of_tasks = metrics[~of_corpora]
    return Tables(
        means(of_tasks, study.tasks),
        means(groups, study.tasks, "group"),
        means(table(report.GAINS_TABLE), study.tasks),
        table(report.REWARDS_TABLE),
        metrics[of_corpora],
        pd.read_parquet(folder / report.CELLS_TABLE),
        _in_order(_with_none(of_tasks), study.tasks),
        quantized,
    )


def means(frame: pd.DataFrame, tasks: Sequence[str], *further: str) -> pd.DataFrame:
    """Means of values and of intervals over seeds; ``each`` has the seeds' values, ``model`` names baselines only.

    Tasks come in the order of ``tasks``, their forms in that of ``cisterna.constants.FORMS``; baselines, which have no
    form, have the form and the encoder "none". ``further`` columns tell rows apart too.
    """
    frame = _with_none(frame.assign(model=frame.model.where(frame.kind == "baseline", "")))
    keys = ["model", "kind", "task", "modality", "encoder", *STAGE_COLUMNS, "split", "metric", *further]
    result = (
        frame.groupby(keys, sort=False)
        .agg(
            value=("value", "mean"),
            low=("low", "mean"),
            high=("high", "mean"),
            n=("n", "first"),
            seeds=("seed", "nunique"),
            each=("value", tuple),
        )
        .reset_index()
    )
    return _in_order(result, tasks)


def _with_none(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.fillna({"sequences": "none", "encoder": "none"})


def _in_order(frame: pd.DataFrame, tasks: Sequence[str]) -> pd.DataFrame:
    """The table by task, then by form."""
    forms = sorted(set(frame.sequences) - {"none"}, key=lambda form: (FORMS.index(base_form(form)), form))
    places = {"task": [*tasks], "sequences": [*forms, "none"]}
    return frame.sort_values(list(places), key=lambda names: names.map(places[str(names.name)].index), kind="stable")


def _with_encoders(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with the encoder's name behind the form, in tasks that have several encoders."""
    several = [task for task, names in frame.groupby("task").encoder if len(set(names.dropna())) > 1]
    named = frame.task.isin(several) & frame.encoder.notna()
    return frame.assign(sequences=frame.sequences.mask(named, frame.sequences + " " + frame.encoder))


def rows(table: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """The rows that have the wanted value, or one of a tuple of them, in every column named."""
    kept = np.ones(len(table), dtype=bool)
    for column, values in wanted.items():
        kept &= table[column].isin(values if isinstance(values, tuple) else (values,)).to_numpy()
    return table[kept]


def distinct(frame: pd.DataFrame, columns: list[str]) -> list[tuple[Any, ...]]:
    """Distinct rows of some columns, in order of appearance."""
    return list(frame[columns].drop_duplicates().itertuples(index=False, name=None))


def unique(values: Iterable[Any]) -> list[Any]:
    """Distinct values, in order of appearance."""
    return list(dict.fromkeys(values))


def tasks_of_terms(table: pd.DataFrame) -> set[str]:
    """The tasks whose answers are sets of terms."""
    return set(table.task[table.metric == TERMS_PRIMARY])


def of_metric(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows of a metric of labels; for "accuracy" also micro F1 of tasks whose answers are sets of terms."""
    if metric != "accuracy":
        return table[table.metric == metric]
    terms = table.task.isin(tasks_of_terms(table))
    return table[(table.metric == metric) & ~terms | (table.metric == TERMS_PRIMARY) & terms]


def metric_name(frame: pd.DataFrame) -> str:
    """The name of the metric of rows that have one."""
    return (TERM_METRICS | LABEL_METRICS)[frame.metric.iloc[0]]


def long_ladders(sft: pd.DataFrame, columns: list[str]) -> list[tuple[Any, ...]]:
    """Values of ``columns``, the last of which is the SFT recipe, of the recipes with two rungs or more.

    A rung is the checkpoint after some epochs of a run, a ladder all rungs of a run. A task without any long ladder
    has all its recipes.
    """
    rungs = Counter(tuple(key) for *key, _ in distinct(sft, [*columns, "sft_epochs"]))
    tasks = {key[0] for key, count in rungs.items() if count > 1}
    return [key for key, count in rungs.items() if count > 1 or key[0] not in tasks]


def ladders(models: pd.DataFrame, column: str) -> list[tuple[Any, ...]]:
    """(task, backbone, ``column``, SFT recipe) of all SFT and RL, or where nothing is trained, of the base models.

    RL without SFT (recipe "none") belongs to every ladder with the same other values, and is listed if there is none.
    """
    trained = rows(models, kind=("sft", "rl"))
    keys = distinct(trained if len(trained) else models, ["task", "backbone", column, "sft"])
    with_sft = {tuple(key) for *key, sft in keys if sft != "none"}
    return [(*key, sft) for *key, sft in keys if sft != "none" or tuple(key) not in with_sft]


# --- Names ---


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
