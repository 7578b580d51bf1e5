"""A panel with a row for each trained stage, ID above OOD."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from cisterna.report.figures import style
from cisterna.report.tables import SPLIT_NAMES, STAGE_COLUMNS, StageNames


def draw_stages(
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
