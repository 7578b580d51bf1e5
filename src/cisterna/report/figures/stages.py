"""Figures with a row for each trained stage: what RL adds to its parent, and every stage of every sweep."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cisterna.report import tables
from cisterna.report.figures import style
from cisterna.report.tables import SPLIT_NAMES, STAGE_COLUMNS, StageNames
from cisterna.study import Study

GAINS_OF_LABELS = {"accuracy": "accuracy gain", "prior_accuracy": "= shift of the label prior", "skill": "+ skill"}
GAINS_OF_TERMS = {"f1_micro": "micro F1 gain", "precision_micro": "micro precision", "recall_micro": "micro recall"}
COLUMNS = 4  # tasks of a sweep side by side


def rl_gain(gains: pd.DataFrame) -> Figure:
    """A row of panels a task, a panel a metric: the gain, split into a shift of the label prior and skill."""
    tasks = tables.unique(gains.task)
    if not tasks:
        return style.empty("This study has no RL stage.")
    terms = tables.tasks_of_terms(gains)
    metrics = {task: GAINS_OF_TERMS if task in terms else GAINS_OF_LABELS for task in tasks}
    stages = {task: tables.distinct(gains[gains.task == task], STAGE_COLUMNS) for task in tasks}
    names = StageNames(gains)
    left = 0.1 + style.text_width(names.with_form(stage) for some in stages.values() for stage in some)
    heights = [0.55 + 0.4 * len(stages[task]) for task in tasks]
    figure, panels = style.grid(heights, 3, left, between=0.25, right=0.25, gap=0.85, top=1.5)
    shown = pd.concat([tables.rows(gains, task=task, metric=tuple(metrics[task])) for task in tasks])
    edge = 1.08 * max(shown.low.abs().max(), shown.high.abs().max(), 0.02)
    for row, task in zip(panels, tasks, strict=True):
        mine = shown[shown.task == task]
        for axes, (metric, title) in zip(row, metrics[task].items(), strict=True):
            first = axes is row[0]
            _panel(axes, mine[mine.metric == metric], stages[task], 0.17, names if first else None)
            axes.axvline(0, color=style.INK, linewidth=0.8, zorder=1)
            axes.set_xlim(-edge, edge)
            axes.set_title(title, loc="left", color=style.INK if first else style.GREY)
        style.row_name(row[0], f"{task}  ({tables.split_sizes(mine)})")
    style.label_x(panels, "change against the parent")
    style.heading(
        figure,
        "What RL adds to the checkpoint it starts from",
        "RL minus parent on the same examples, paired 95% bootstrap intervals. Shift of the label "
        "prior: what the new mix of\nanswers would gain if dealt out blindly. Skill: what remains, "
        f"knowledge of the input. {tables.seeds(gains)}",
    )
    style.split_key(figure)
    return figure


def sweeps(metrics: pd.DataFrame, study: Study) -> Figure:
    """Balanced accuracy (of terms micro F1) of every stage: a row of panels a sweep (several, if it has more than
    ``COLUMNS`` tasks), a panel a task.
    """
    numbers = pd.concat([metrics[metrics.metric == metric] for metric in ("balanced_accuracy", tables.TERMS_PRIMARY)])
    numbers = tables.rows(numbers, kind=("sft", "rl"))
    rows = [
        (sweep, tasks[start : start + COLUMNS], mine)
        for sweep, mine in _by_sweep(numbers, study)
        for tasks in [tables.unique(mine.task)]
        for start in range(0, len(tasks), COLUMNS)
    ]
    if not rows:
        return style.empty("The lineages of this study name no sweep.")
    names = StageNames(numbers)
    stages = [tables.distinct(tables.rows(mine, task=tuple(tasks)), STAGE_COLUMNS) for _, tasks, mine in rows]
    left = 0.1 + style.text_width(names.with_form(stage) for some in stages for stage in some)
    heights = [0.3 + 0.21 * len(some) for some in stages]
    columns = max(len(tasks) for _, tasks, _ in rows)
    figure, panels = style.grid(heights, columns, left, between=0.2, right=0.25, gap=0.95, top=1.45)
    low, high = numbers.low.min() - 0.02, numbers.high.max() + 0.02
    for row, (sweep, tasks, mine), some in zip(panels, rows, stages, strict=True):
        for axes, task in itertools.zip_longest(row, tasks):
            if task is None:
                axes.set_axis_off()
                continue
            _panel(axes, mine[mine.task == task], some, 0.13, names if axes is row[0] else None)
            axes.set_xlim(low, high)
            axes.set_title(task, loc="left")
        style.row_name(row[0], sweep)
    style.heading(
        figure,
        "Every sweep, every stage",
        "Balanced accuracy, which a shift of the label prior alone does not raise; of sets of terms micro F1.\n"
        f"{tables.intervals(metrics)}",
    )
    style.split_key(figure)
    return figure


def _by_sweep(numbers: pd.DataFrame, study: Study) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each named sweep with the rows of its stages, in the order of the config."""
    with_encoder = set(numbers.task[numbers.sequences.str.contains(" ")])
    for sweep, paths in study.sweeps.items():
        places: dict[tuple[Any, ...], int] = {}
        for model in map(study.model, paths):
            form = model.sequences
            if model.encoder and model.task in with_encoder:
                form = f"{model.sequences} {model.encoder}"
            stage = (model.sft or "none", model.sft_epochs, model.rl or "none", model.rl_epochs)
            places.setdefault((model.task, model.backbone, form, model.cpt or "none", *stage), len(places))
        keys = numbers[["task", *STAGE_COLUMNS]].itertuples(index=False, name=None)
        mine = numbers.assign(place=[places.get(key, -1) for key in keys])
        mine = mine.query("place >= 0").sort_values("place", kind="stable")
        if sweep and len(mine):
            yield sweep, mine


def _panel(
    axes: Axes, frame: pd.DataFrame, stages: Sequence[tuple[Any, ...]], shift: float, names: StageNames | None
) -> None:
    """Values with intervals, a row a stage, every second one shaded; ID ``shift`` above the middle and OOD below it.

    Small dots are the seeds, if there are several. Stages are named at the left unless ``names`` is None.
    """
    y = np.arange(len(stages))[::-1]
    for split, offset in zip(SPLIT_NAMES, (shift, -shift), strict=True):
        values = frame[frame.split == split].set_index(STAGE_COLUMNS)
        known = [stage in values.index for stage in stages]
        values = values.loc[list(itertools.compress(stages, known))]
        places = y[known] + offset
        axes.errorbar(
            values.value,
            places,
            xerr=style.interval_arms(values),
            color=style.SPLIT_COLOURS[split],
            marker=style.SPLIT_MARKS[split],
            markersize=5,
            linestyle="none",
            elinewidth=1.4,
            zorder=3,
        )
        for place, each in zip(places, values.each, strict=True):
            if len(each) > 1:
                axes.scatter(each, [place] * len(each), s=6, color=style.INK, linewidths=0, zorder=4)
    for row in y[::2]:
        axes.axhspan(row - 0.5, row + 0.5, color=style.STRIPE, zorder=0)
    axes.set_ylim(-0.6, len(y) - 0.4)
    axes.set_yticks(y, [names.with_form(stage) for stage in stages] if names else [])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=style.PALE)
