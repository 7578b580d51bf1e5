"""What RL adds to the checkpoint it starts from: a row for each RL stage."""

import pandas as pd
from matplotlib.figure import Figure

from cisterna.report import tables
from cisterna.report.figures import stage_panel, style
from cisterna.report.tables import STAGE_COLUMNS, StageNames

GAINS_OF_LABELS = {"accuracy": "accuracy gain", "prior_accuracy": "= shift of the label prior", "skill": "+ skill"}
GAINS_OF_TERMS = {"f1_micro": "micro F1 gain", "precision_micro": "micro precision", "recall_micro": "micro recall"}


def draw(gains: pd.DataFrame) -> Figure:
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
            stage_panel.draw_stages(axes, mine[mine.metric == metric], stages[task], 0.17, names if first else None)
            axes.axvline(0, color=style.INK, linewidth=0.8, zorder=1)
            axes.set_xlim(-edge, edge)
            axes.set_title(title, loc="left", color=style.INK if first else style.GREY)
        style.row_name(row[0], f"{task}  ({tables.split_sizes(mine)})")
    style.label_x(panels, "change against the parent")
    style.heading(
        figure,
        "What RL adds to the checkpoint it starts from",
        "RL minus parent on the same examples, paired 95% bootstrap intervals. Shift of the label "
        "prior: what the new answers would\ngain in random order. Skill: what remains, "
        f"knowledge of the input. {tables.seeds(gains)}",
    )
    style.split_key(figure)
    return figure
