"""What all figures look like: colours, size, margins, titles.

Figures are 10 inches wide (about 1000 pixels in a browser). Colours are those of Okabe and Ito
(jfly.uni-koeln.de/color), which colour-blind readers can tell apart; marks, line styles and words repeat what colour
says.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cisterna.report.words import SPLIT_NAMES

WIDTH = 10.0  # inches
INK, GREY, PALE, STRIPE = "#222222", "#767676", "#ececec", "#f6f6f6"
SPLIT_COLOURS = {"id": "#0072B2", "ood": "#D55E00"}
SPLIT_MARKS = {"id": "o", "ood": "s"}
STAGE_COLOURS = {"base": "#6b6b6b", "cpt": "#E69F00", "sft": "#009E73", "rl": "#AA4499"}
FORM_LINES: dict[str, Any] = {"tokens": "-", "features": "--", "both": ":"}
RUN_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#E69F00", "#56B4E9", "#555555")
GLYPHS = {("o", False): "○", ("o", True): "●", ("s", False): "□", ("s", True): "■"}  # by mark and whether it is filled
RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "cisterna",
    "svg.fonttype": "path",
}


def grid(
    heights: Sequence[float],
    columns: int,
    left: float,
    between: float,
    right: float,
    gap: float,
    top: float = 1.3,
) -> tuple[Figure, np.ndarray]:
    """Rows of panels with these heights and margins, all in inches; the axes have shape (rows, columns)."""
    bottom = 0.6
    total = top + sum(heights) + gap * (len(heights) - 1) + bottom
    width = (WIDTH - left - between * (columns - 1) - right) / columns
    figure = Figure(figsize=(WIDTH, total))
    panels = np.empty((len(heights), columns), dtype=object)
    y = total - top
    for row, height in enumerate(heights):
        y -= height
        for column in range(columns):
            x = left + column * (width + between)
            panels[row, column] = figure.add_axes((x / WIDTH, y / total, width / WIDTH, height / total))
        y -= gap
    return figure, panels


def heading(figure: Figure, title: str, note: str) -> None:
    """Write the title of a figure, and a note of one or two lines below it."""
    height = figure.get_figheight()
    figure.text(0.02, 1 - 0.16 / height, title, fontsize=13, fontweight="bold", va="top")
    figure.text(0.02, 1 - 0.46 / height, note, color="#555555", va="top", linespacing=1.35)


def key(figure: Figure, colours: dict[str, str]) -> None:
    """Words at the top right, each in the colour of the marks that it names."""
    right = WIDTH - 0.3
    for text, colour in reversed(colours.items()):
        figure.text(
            right / WIDTH,
            1 - 0.18 / figure.get_figheight(),
            text,
            color=colour,
            fontweight="bold",
            ha="right",
            va="top",
        )
        right -= 0.085 * len(text)


def split_key(figure: Figure) -> None:
    """Name the marks and colours of the splits at the top right."""
    words = {split: f"{GLYPHS[SPLIT_MARKS[split], True]} {name}" for split, name in SPLIT_NAMES.items()}
    key(figure, {word: SPLIT_COLOURS[split] for split, word in words.items()})


def empty(text: str) -> Figure:
    """The figure of something that a study does not have."""
    figure = Figure(figsize=(WIDTH, 1.2))
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=12, color=GREY)
    return figure


def row_name(axes: Axes, text: str) -> None:
    """Write the name of a row of panels above the titles of the panels."""
    axes.text(0, 1 + 0.34 / panel_height(axes), text, transform=axes.transAxes, fontweight="bold")


def panel_height(axes: Axes) -> float:
    """Height of a panel in inches."""
    return axes.bbox.height / axes.figure.dpi


def text_width(words: Iterable[str]) -> float:
    """Inches that words need at the side of a panel (0.073 a letter at 9 points), at least 1.05."""
    return max(1.05, 0.25 + 0.073 * max(len(word) for word in words))


def share_y(panels: Sequence[Axes]) -> None:
    """Give panels one scale: the smallest range of y that has the ranges of all."""
    limits = np.array([axes.get_ylim() for axes in panels])
    for axes in panels:
        axes.set_ylim(limits[:, 0].min(), limits[:, 1].max())
