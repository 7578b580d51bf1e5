"""What figures share: colours, sizes, titles, labels at the edge of a panel.

Figures are 10 inches wide (about 1000 pixels in a browser). Colours are those of Okabe and Ito
(jfly.uni-koeln.de/color), which colour-blind readers can tell apart; marks, line styles and words repeat what colour
says.
"""

import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.textpath import TextPath
from scipy.optimize import isotonic_regression

from cisterna.report.tables import SPLIT_NAMES

WIDTH = 10.0  # inches; a figure with very long names is wider
NARROWEST, WIDENED = 1.2, 2.4  # inches of a panel in a figure of WIDTH, and in a wider one
INK, GREY, PALE, STRIPE = "#222222", "#767676", "#ececec", "#f6f6f6"
SPLIT_COLOURS = {"id": "#0072B2", "ood": "#D55E00"}
SPLIT_MARKS = {"id": "o", "ood": "s"}
STAGE_COLOURS = {"base": "#6b6b6b", "cpt": "#E69F00", "sft": "#009E73", "rl": "#AA4499"}
FORM_LINES: dict[str, Any] = {"tokens": "-", "features": "--", "both": ":"}
RUN_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#E69F00", "#56B4E9", "#555555")
GLYPHS = {("o", False): "○", ("o", True): "●", ("s", False): "□", ("s", True): "■"}  # by mark and whether it is filled
LABEL_DISTANCE = 11.2 / 72  # inches between the middles of two labels of 8 points
LABEL_MARGIN = 0.05  # of the panel's height: labels may be this far above and below it
FONT = "DejaVu Sans"  # comes with matplotlib
LAST_RESORT = "Last Resort"  # draws a box with the name of a script; comes with matplotlib
RC: dict[Any, Any] = {
    "font.family": FONT,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "text.parse_math": False,  # a text is no formula, whatever dollar signs it has
    "xtick.color": INK,
    "ytick.color": INK,
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "cisterna",
    "svg.fonttype": "path",
}


def context(texts: Iterable[str] = ()) -> AbstractContextManager[None]:
    """In the block, matplotlib has its defaults and RC, whatever a matplotlibrc says, and fonts for these texts."""
    return matplotlib.style.context(RC | {"font.family": [FONT, *_fonts_for("".join(texts))]}, after_reset=True)


def _fonts_for(text: str) -> list[str]:
    """Installed fonts with the characters that FONT does not have, as far as there are such fonts."""
    wanted = {ord(letter) for letter in text} - _characters(font_manager.findfont(FONT))
    fonts = []
    for entry in sorted(font_manager.fontManager.ttflist, key=lambda entry: (entry.name, entry.fname)):
        if not wanted:
            break
        if entry.style == "normal" and entry.weight == 400 and not entry.name.startswith(LAST_RESORT):
            known = wanted & _characters(entry.fname)
            fonts += [entry.name] if known else []
            wanted -= known
    return fonts


@functools.cache
def _characters(path: str) -> frozenset[int]:
    """The code points of a font file; none of a font of pictures (colour emoji), which matplotlib cannot draw."""
    font = font_manager.get_font(path)
    return frozenset(font.get_charmap()) if font.scalable else frozenset()


def drawable(text: str) -> str:
    r"""A text with \uXXXX for each character that no font of the context has, which would be drawn as the same box."""
    fonts = {font_manager.findfont(name) for name in matplotlib.rcParams["font.family"]}
    known = frozenset().union(*map(_characters, fonts))
    return "".join(
        letter if ord(letter) in known else letter.encode("ascii", "backslashreplace").decode() for letter in text
    )


def shortened(texts: Sequence[str], inches: float, size: float) -> list[str]:
    """Texts, those that are wider than ``inches`` at this size in points without their middle, still all different."""
    short = {}
    for text in texts:
        kept = len(text)
        while kept > 8 and width((one := _without_middle(text, kept)), size) > inches:
            kept = min(kept - 1, int(kept * inches / width(one, size)))
        short[text] = _without_middle(text, kept)
    counts = Counter(short.values())
    for number, (text, one) in enumerate(list(short.items()), start=1):
        if counts[one] > 1:
            short[text] = f"{number}: {one}"
    return [short[text] for text in texts]


def _without_middle(text: str, kept: int) -> str:
    return text if kept >= len(text) else f"{text[: kept - kept // 3]} … {text[len(text) - kept // 3 :]}"


def width(text: str, size: float) -> float:
    """Inches of a text of one line at this size in points."""
    return float(TextPath((0, 0), text, size=size).get_extents().width) / 72 if text.strip() else 0.0


def panel_width(columns: int, left: float, between: float, right: float) -> float:
    """Inches of a panel of a row with these margins, which makes the figure wider if there is no room."""
    width = (WIDTH - left - between * (columns - 1) - right) / columns
    return width if width >= NARROWEST else WIDENED


def grid(
    heights: Sequence[float], columns: int, left: float, between: float, right: float, gap: float, top: float = 1.3
) -> tuple[Figure, np.ndarray]:
    """Rows of panels with these heights and margins, all in inches; the axes have shape (rows, columns)."""
    bottom = 0.6
    total = top + sum(heights) + gap * (len(heights) - 1) + bottom
    width, whole = panel_width(columns, left, between, right), WIDTH
    if width == WIDENED:
        whole = left + (width + between) * columns - between + right
    figure = Figure(figsize=(whole, total))
    panels = np.empty((len(heights), columns), dtype=object)
    y = total - top
    for row, height in enumerate(heights):
        y -= height
        for column in range(columns):
            x = left + column * (width + between)
            panels[row, column] = figure.add_axes((x / whole, y / total, width / whole, height / total))
        y -= gap
    return figure, panels


def heading(figure: Figure, title: str, note: str) -> None:
    """Write the title of a figure, and a note of one or two lines below it."""
    height = figure.get_figheight()
    note = "\n".join(shortened(note.split("\n"), 0.97 * figure.get_figwidth(), RC["font.size"]))
    figure.text(0.02, 1 - 0.16 / height, title, fontsize=13, fontweight="bold", va="top")
    figure.text(0.02, 1 - 0.46 / height, note, color="#555555", va="top", linespacing=1.35)


def key(figure: Figure, colours: dict[str, str]) -> None:
    """Words at the top right, each in the colour of the marks that it names."""
    whole = figure.get_figwidth()
    right, y = whole - 0.3, 1 - 0.18 / figure.get_figheight()
    for text, colour in reversed(colours.items()):
        figure.text(right / whole, y, text, color=colour, fontweight="bold", ha="right", va="top")
        right -= 0.085 * len(text)


def split_key(figure: Figure) -> None:
    """Name the marks and colours of the splits at the top right."""
    key(
        figure,
        {f"{GLYPHS[SPLIT_MARKS[split], True]} {SPLIT_NAMES[split]}": SPLIT_COLOURS[split] for split in SPLIT_NAMES},
    )


def empty(text: str) -> Figure:
    """The figure of something that a study does not have."""
    figure = Figure(figsize=(WIDTH, 1.2))
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=12, color=GREY)
    return figure


def row_name(axes: Axes, text: str) -> None:
    """Write the name of a row of panels above the titles of the panels."""
    axes.text(0, 1 + 0.34 / _height(axes), text, transform=axes.transAxes, fontweight="bold")


def fit_titles(figure: Figure) -> None:
    """Shorten the titles of panels that would run into the panel to the right, or out of the figure."""
    columns: dict[float, list[Axes]] = {}
    for axes in figure.axes:
        columns.setdefault(axes.get_position().x0, []).append(axes)
    for left, right in itertools.pairwise([*sorted(columns), 1.0]):
        titles = [axes.get_title(loc="left") for axes in columns[left]]
        room = 0.97 * figure.get_figwidth() * (right - left) - 0.1  # letters on a screen are a little wider
        for axes, title, short in zip(
            columns[left], titles, shortened(titles, room, RC["axes.titlesize"]), strict=True
        ):
            for text in axes.findobj(Text) if short != title else ():
                if text.get_text() == title:
                    text.set_text(short)


def label_x(panels: np.ndarray, text: str) -> None:
    """Write what x is below each panel of the last row."""
    for axes in panels[-1]:
        axes.set_xlabel(text)


def text_width(words: Iterable[str]) -> float:
    """Inches that words need at the side of a panel (0.073 a letter at 9 points), at least 1.05."""
    return max(1.05, 0.25 + 0.073 * max(len(word) for word in words))


def interval_arms(frame: pd.DataFrame) -> np.ndarray:
    """Lengths of the intervals below and above the values, shape (2, rows), for error bars."""
    return np.maximum([frame.value - frame.low, frame.high - frame.value], 0)


def _height(axes: Axes) -> float:
    """Height of a panel in inches."""
    return axes.bbox.height / axes.figure.dpi


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
    places = spread(wanted, LABEL_DISTANCE / _height(axes), -LABEL_MARGIN, 1 + LABEL_MARGIN)
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
