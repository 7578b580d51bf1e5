"""What several figures draw in a panel: values with intervals, baselines, epochs on the axis, labels at the edge."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

from cisterna.report.figures import style
from cisterna.report.words import baseline_name, cpt_name

CPT_LINES: tuple[Any, ...] = ("--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
LABEL_DISTANCE = 11.2 / 72  # inches between the middles of two labels of 8 points
LABEL_MARGIN = 0.05  # of the panel's height: labels may be this far above and below it


@dataclass(frozen=True)
class EdgeLabel:
    """A word at the right edge of a panel, next to the value that it names."""

    value: float
    text: str
    colour: str
    bold: bool = False


def edge_labels(axes: Axes, labels: Sequence[EdgeLabel]) -> None:
    """Write labels at the right edge, each at the height of its value or as near as its neighbours allow."""
    low, high = axes.get_ylim()
    ranked = sorted(labels, key=lambda label: label.value)
    wanted = np.array([(label.value - low) / (high - low) for label in ranked])
    places = spread(wanted, LABEL_DISTANCE / style.panel_height(axes), -LABEL_MARGIN, 1 + LABEL_MARGIN)
    for label, value, place in zip(ranked, wanted, places, strict=True):
        axes.annotate(
            label.text,
            (1.0, value),
            (1.045, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=label.colour,
            fontsize=8,
            fontweight="bold" if label.bold else "normal",
            va="center_baseline",
            arrowprops={
                "arrowstyle": "-",
                "color": label.colour,
                "linewidth": 0.5,
                "shrinkA": 0,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
            annotation_clip=False,
        )


def spread(wanted: np.ndarray, distance: float, low: float, high: float) -> np.ndarray:
    """Places between ``low`` and ``high``, ``distance`` apart, with the least squared distance from those wanted.

    ``wanted`` is ascending. With its rank times ``distance`` subtracted, each place only has to be no lower than the
    one before, so the best places are an isotonic regression. Places that do not fit are put closer together.
    """
    if len(wanted) < 2:
        return np.clip(wanted, low, high)
    ranks = min(distance, (high - low) / (len(wanted) - 1)) * np.arange(len(wanted))
    return np.clip(isotonic_regression(wanted - ranks).x, low, high - ranks[-1]) + ranks


def series(axes: Axes, x: np.ndarray, line: pd.DataFrame, colour: str, mark: str, linestyle: Any, filled: bool) -> None:
    """Values with intervals along x, joined by a line; small dots for the seeds, if there are several."""
    axes.errorbar(
        x,
        line.value,
        yerr=_arms(line),
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


def points(axes: Axes, frame: pd.DataFrame, y: np.ndarray, split: str) -> None:
    """Values with intervals, one a row; small dots for the seeds, if there are several."""
    axes.errorbar(
        frame.value,
        y,
        xerr=_arms(frame),
        color=style.SPLIT_COLOURS[split],
        marker=style.SPLIT_MARKS[split],
        markersize=5,
        linestyle="none",
        elinewidth=1.4,
        zorder=3,
    )
    for position, values in zip(y, frame.each, strict=True):
        if len(values) > 1:
            axes.scatter(values, [position] * len(values), s=6, color=style.INK, linewidths=0, zorder=4)


def _arms(frame: pd.DataFrame) -> np.ndarray:
    return np.maximum([frame.value - frame.low, frame.high - frame.value], 0)


def striped_rows(axes: Axes, y: np.ndarray, names: Sequence[str]) -> None:
    """Rows for ``points``, every second one shaded, with their names at the left (none: no names)."""
    for row in y[::2]:
        axes.axhspan(row - 0.5, row + 0.5, color=style.STRIPE, zorder=0)
    axes.set_ylim(-0.6, len(y) - 0.4)
    axes.set_yticks(y, names)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=style.PALE)


def baselines(axes: Axes, frame: pd.DataFrame, colour: str) -> Iterator[EdgeLabel]:
    """Thin dotted lines for the baselines in ``frame``; yields their labels."""
    shown = frame[frame.kind == "baseline"]
    for model, value in zip(shown.model, shown.value, strict=True):
        axes.axhline(value, color=colour, linewidth=0.9, linestyle=(0, (1, 1.5)), alpha=0.8)
        yield EdgeLabel(value, baseline_name(model), colour)


def ladder_grid(models: pd.DataFrame, rows: int) -> tuple[Figure, np.ndarray, float]:
    """Rows of two panels for SFT ladders without and with CPT, and the distance in points of a title from its panel.

    Titles that name a form are long: they are above the labels of the panel to the left.
    """
    long_titles = bool(set(models.sequences) - {"none", "tokens"})
    right = style.text_width(map(cpt_name, models.cpt.unique()))
    gap = 0.8 if long_titles else 0.62
    return *style.grid([1.85] * rows, 2, 0.8, right + 0.45, right, gap), 16 if long_titles else 6


def line_of(cpt: str, variants: Sequence[str]) -> tuple[Any, bool]:
    """Line style, and whether marks are filled: solid and open without CPT, broken and filled with it."""
    if cpt == "none":
        return "-", False
    with_cpt = [name for name in variants if name != "none"]
    return CPT_LINES[with_cpt.index(cpt) % len(CPT_LINES)], True


def epoch_places(epochs: pd.Series) -> np.ndarray:
    """Places of epochs on the axis: log2, and one step left of epoch 1 for 0."""
    values = epochs.to_numpy(dtype=float)
    return np.where(values > 0, np.log2(np.maximum(values, 1)), -1)


def epoch_axis(axes: Axes, epochs: pd.Series) -> None:
    """Ticks at the epochs that occur, from 0 on."""
    ticks = pd.Series(sorted(set(epochs)))
    axes.set_xticks(epoch_places(ticks), [str(tick) for tick in ticks])
    axes.set_xlim(-1.35, epoch_places(ticks).max() + 0.4)
