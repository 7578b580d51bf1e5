"""Panels with a metric against SFT epochs. Lines join the rungs (epoch checkpoints) of one SFT run."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cisterna.report import tables
from cisterna.report.figures import style
from cisterna.report.figures.style import EdgeLabel

CPT_LINES: tuple[Any, ...] = ("--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
FORM_COLOURS = {"tokens": "#555555", "features": "#009E73", "both": "#AA4499"}


@dataclass(frozen=True)
class Line:
    """How to draw the ladder of the models that have ``value`` in some column."""

    value: str
    name: str
    colour: str
    style: Any
    filled: bool
    colour_after_rl: str


def cpt_lines(cpts: Sequence[str], colour: str, colour_after_rl: str = "") -> Iterator[Line]:
    """Solid and open without CPT, broken and filled with it."""
    with_cpt = [cpt for cpt in cpts if cpt != "none"]
    for cpt in cpts:
        dashes = "-" if cpt == "none" else CPT_LINES[with_cpt.index(cpt) % len(CPT_LINES)]
        yield Line(cpt, tables.cpt_name(cpt), colour, dashes, cpt != "none", colour_after_rl)


def form_lines(forms: Sequence[str]) -> Iterator[Line]:
    """A colour for each form, or for each encoder where a task has several."""
    with_encoder = [form for form in forms if form != tables.base_form(form)]
    for form in forms:
        base = tables.base_form(form)
        colour = FORM_COLOURS[base]
        if form in with_encoder:
            colour = style.RUN_COLOURS[with_encoder.index(form) % len(style.RUN_COLOURS)]
        yield Line(form, tables.form_name(form), colour, style.FORM_LINES[base], form != "tokens", colour)


def grid(models: pd.DataFrame, rows: int) -> tuple[Figure, np.ndarray, float]:
    """Rows of two panels for ladders without and with CPT, and the distance in points of a title from its panel.

    Titles that name a form are long: they are above the labels of the panel to the left.
    """
    long_titles = bool(set(models.sequences) - {"none", "tokens"})
    right = style.text_width(map(tables.cpt_name, models.cpt.unique()))
    gap = 0.8 if long_titles else 0.62
    return *style.grid([1.85] * rows, 2, 0.8, right + 0.45, right, gap), 16 if long_titles else 6


def draw_lines(
    axes: Axes,
    here: pd.DataFrame,
    column: str,
    lines: Iterable[Line],
    mark: str = "o",
    step: float | None = None,
    left: float | None = None,
) -> Iterator[EdgeLabel]:
    """SFT ladders as lines, and diamonds for RL from their rungs; yields the labels of the lines.

    What has the same epochs is drawn ``step`` apart, from ``left`` of the place of these epochs on (centred, if None).
    """
    lines = list(lines)
    recipes = tables.distinct(here[here.rl != "none"], ["rl", "rl_epochs"])
    count = len(lines) * (1 + len(recipes))
    step = step or min(0.13, 0.8 / count)
    left = -step * (count - 1) / 2 if left is None else left
    for position, line in enumerate(lines):
        mine = here[here[column] == line.value]
        sft = mine[mine.rl == "none"].sort_values("sft_epochs")
        x = _epoch_places(sft.sft_epochs) + left + step * position
        _series(axes, x, sft, line.colour, mark, line.style, line.filled)
        last = sft if len(sft) else mine  # RL without SFT, in a form that its parent does not read
        yield EdgeLabel(last.value.iloc[-1], f"{style.GLYPHS[mark, line.filled]} {line.name}", line.colour, bold=True)
        for turn, (rl, epochs) in enumerate(recipes, start=1):
            after = mine[(mine.rl == rl) & (mine.rl_epochs == epochs)]
            x = _epoch_places(after.sft_epochs) + left + step * (turn * len(lines) + position)
            _series(axes, x, after, line.colour_after_rl, "D", "none", line.filled)


def _series(
    axes: Axes, x: np.ndarray, line: pd.DataFrame, colour: str, mark: str, linestyle: Any, filled: bool
) -> None:
    """Values with intervals along x, joined by a line; small dots for the seeds, if there are several."""
    axes.errorbar(
        x,
        line.value,
        yerr=style.interval_arms(line),
        color=colour,
        marker=mark,
        markersize=5,
        markerfacecolor=colour if filled else "white",
        markeredgewidth=1.3,
        linestyle=linestyle,
        linewidth=1.6,
        elinewidth=1.1,
        zorder=4,
    )
    for position, values in zip(x, line.each, strict=True):
        if len(values) > 1:
            axes.scatter([position] * len(values), values, s=6, color=style.INK, linewidths=0, zorder=5)


def draw_baselines(axes: Axes, frame: pd.DataFrame, colour: str) -> Iterator[EdgeLabel]:
    """Thin dotted lines for the baselines in ``frame``; yields their labels."""
    shown = frame[frame.kind == "baseline"]
    for model, value in zip(shown.model, shown.value, strict=True):
        axes.axhline(value, color=colour, linewidth=0.9, linestyle=(0, (1, 1.5)), alpha=0.8)
        yield EdgeLabel(value, tables.baseline_name(model), colour)


def _epoch_places(epochs: pd.Series) -> np.ndarray:
    """Places of epochs on the axis: log2, and one step left of epoch 1 for 0."""
    values = epochs.to_numpy(dtype=float)
    return np.where(values > 0, np.log2(np.maximum(values, 1)), -1)


def epoch_axis(axes: Axes, here: pd.DataFrame, title: str, pad: float = 6) -> None:
    """Ticks at the SFT epochs that occur, lines across, and the title of the panel."""
    ticks = pd.Series(sorted(set(here.sft_epochs)))
    axes.set_xticks(_epoch_places(ticks), [str(tick) for tick in ticks])
    axes.set_xlim(-1.35, _epoch_places(ticks).max() + 0.4)
    axes.set_title(title, loc="left", pad=pad)
    axes.grid(axis="y", color=style.PALE)


def finish_row(row: Sequence[Axes], labels: Sequence[Sequence[EdgeLabel]], metric: str) -> None:
    """Give the panels of a row the smallest scale that has the ranges of all, and write their labels."""
    limits = np.array([axes.get_ylim() for axes in row])
    for axes, some in zip(row, labels, strict=True):
        axes.set_ylim(limits[:, 0].min(), limits[:, 1].max())
        style.edge_labels(axes, some)
    row[0].set_ylabel(metric)
