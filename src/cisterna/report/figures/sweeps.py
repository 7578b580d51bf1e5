"""Every stage of every sweep: a row of panels for each sweep, a row in it for each trained stage."""

import itertools
from collections.abc import Iterator
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from cisterna.report import tables
from cisterna.report.figures import stage_panel, style
from cisterna.report.tables import STAGE_COLUMNS, StageNames
from cisterna.study import Study

COLUMNS = 4  # tasks of a sweep side by side


def draw(metrics: pd.DataFrame, study: Study) -> Figure:
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
            stage_panel.draw_stages(axes, mine[mine.task == task], some, 0.13, names if axes is row[0] else None)
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
