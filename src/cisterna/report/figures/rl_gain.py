"""What RL adds to the checkpoint that it starts from, split in a shift of the label prior and skill."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cisterna.report import tables, words
from cisterna.report.figures import marks, style
from cisterna.report.words import SPLIT_NAMES, STAGE_COLUMNS, StageNames

OF_LABELS = {"accuracy": "accuracy gain", "prior_accuracy": "= shift of the label prior", "skill": "+ skill"}
OF_TERMS = {"f1_micro": "micro F1 gain", "precision_micro": "micro precision", "recall_micro": "micro recall"}


def draw(gains: pd.DataFrame) -> Figure:
    """A row of panels a task, a panel a metric, a row in it for each RL model."""
    tasks = tables.unique(gains.task)
    if not tasks:
        return style.empty("This study has no RL stage.")
    metrics = {task: OF_TERMS if task in tables.tasks_of_terms(gains) else OF_LABELS for task in tasks}
    stages = {task: tables.distinct(gains[gains.task == task], STAGE_COLUMNS) for task in tasks}
    heights = [0.55 + 0.4 * len(stages[task]) for task in tasks]
    names = StageNames(gains)
    left = 0.1 + style.text_width(names.with_form(stage) for some in stages.values() for stage in some)
    figure, panels = style.grid(heights, 3, left, between=0.25, right=0.25, gap=0.85, top=1.5)
    shown = pd.concat([tables.rows(gains, task=task, metric=tuple(metrics[task])) for task in tasks])
    edge = 1.08 * max(shown.low.abs().max(), shown.high.abs().max(), 0.02)
    for row, task in zip(panels, tasks, strict=True):
        mine = shown[shown.task == task]
        y = np.arange(len(stages[task]))[::-1]
        for place, (axes, (metric, title)) in enumerate(zip(row, metrics[task].items(), strict=True)):
            for split, shift in zip(SPLIT_NAMES, (0.17, -0.17), strict=True):
                points = tables.rows(mine, metric=metric, split=split).set_index(STAGE_COLUMNS)
                marks.points(axes, points.loc[stages[task]].reset_index(), y + shift, split)
            axes.axvline(0, color=style.INK, linewidth=0.8, zorder=1)
            axes.set_xlim(-edge, edge)
            marks.striped_rows(axes, y, [] if place else [names.with_form(stage) for stage in stages[task]])
            axes.set_title(title, loc="left", color=style.GREY if place else style.INK)
        style.row_name(row[0], f"{task}  ({words.split_sizes(mine)})")
    for axes in panels[-1]:
        axes.set_xlabel("change against the parent")
    style.heading(
        figure,
        "What RL adds to the checkpoint it starts from",
        "RL minus parent on the same examples, paired 95% bootstrap intervals. Shift of the label "
        "prior: what the new mix of\nanswers would gain if dealt out blindly. Skill: what remains, "
        f"knowledge of the input. {words.seeds(gains)}",
    )
    style.split_key(figure)
    return figure
