"""Every trained stage of every sweep: balanced accuracy (of terms micro F1)."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cisterna.report import tables, words
from cisterna.report.figures import marks, style
from cisterna.report.words import SPLIT_NAMES, STAGE_COLUMNS, StageNames
from cisterna.study import Study

COLUMNS = 4  # tasks side by side


def draw(metrics: pd.DataFrame, study: Study) -> Figure:
    """A row of panels a sweep (or several, of ``COLUMNS`` tasks each), a panel a task, a row in it for each stage."""
    numbers = pd.concat([metrics[metrics.metric == metric] for metric in ("balanced_accuracy", tables.TERMS_PRIMARY)])
    numbers = tables.rows(numbers, kind=("sft", "rl"))
    sweeps = [
        (sweep, tasks[start : start + COLUMNS], mine)
        for sweep, mine in _by_sweep(numbers, study)
        for tasks in [tables.unique(mine.task)]
        for start in range(0, len(tasks), COLUMNS)
    ]
    if not sweeps:
        return style.empty("The lineages of this study name no sweep.")
    names = StageNames(numbers)
    stages = [tables.distinct(tables.rows(mine, task=tuple(tasks)), STAGE_COLUMNS) for _, tasks, mine in sweeps]
    left = 0.1 + style.text_width(names.with_form(stage) for some in stages for stage in some)
    heights = [0.3 + 0.21 * len(some) for some in stages]
    columns = max(len(tasks) for _, tasks, _ in sweeps)
    figure, panels = style.grid(heights, columns, left, between=0.2, right=0.25, gap=0.95, top=1.45)
    low, high = numbers.low.min() - 0.02, numbers.high.max() + 0.02
    for row, (sweep, tasks, mine), some in zip(panels, sweeps, stages, strict=True):
        y = np.arange(len(some))[::-1]
        for axes, task in itertools.zip_longest(row, tasks):
            if task is None:
                axes.set_axis_off()
                continue
            for split, shift in zip(SPLIT_NAMES, (0.13, -0.13), strict=True):
                points = tables.rows(mine, task=task, split=split).set_index(STAGE_COLUMNS)
                there = [stage in points.index for stage in some]
                marks.points(axes, points.loc[list(itertools.compress(some, there))], y[there] + shift, split)
            axes.set_xlim(low, high)
            marks.striped_rows(axes, y, [names.with_form(stage) for stage in some] if axes is row[0] else [])
            axes.set_title(task, loc="left")
        style.row_name(row[0], sweep)
    style.heading(
        figure,
        "Every sweep, every stage",
        "Balanced accuracy, which a shift of the label prior alone does not raise; of sets of terms micro F1.\n"
        f"{words.intervals(metrics)}",
    )
    style.split_key(figure)
    return figure


def _by_sweep(numbers: pd.DataFrame, study: Study) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each named sweep with the rows of its stages, in the order of the config."""
    keys = ["task", *STAGE_COLUMNS]
    with_encoder = set(numbers.task[numbers.sequences.str.contains(" ")])
    for sweep, paths in study.sweeps.items():
        wanted: dict[tuple[Any, ...], None] = {}
        for model in map(study.model, paths):
            form = model.sequences
            if model.encoder and model.task in with_encoder:
                form = f"{model.sequences} {model.encoder}"
            stage = (model.sft or "none", model.sft_epochs, model.rl or "none", model.rl_epochs)
            wanted[(model.task, model.backbone, form, model.cpt or "none", *stage)] = None
        places = {key: place for place, key in enumerate(wanted)}
        found = [places.get(key, -1) for key in numbers[keys].itertuples(index=False, name=None)]
        mine = numbers.assign(place=found).query("place >= 0").sort_values("place", kind="stable")
        if sweep and len(mine):
            yield sweep, mine
