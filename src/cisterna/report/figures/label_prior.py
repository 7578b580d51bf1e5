"""The mix of labels that models answer, with the mix of the gold labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from cisterna.constants import FORMS, MALFORMED
from cisterna.report import tables
from cisterna.report.figures import style
from cisterna.report.tables import SPLIT_NAMES, STAGE_COLUMNS, StageNames, base_form

LABEL_SIZE = 8.5  # points
LABEL_HANDLE = 0.38  # inches of a label's colour, with the space around it
LABEL_LINE = 0.185  # inches between two rows of labels
LONGEST_LABEL = 3.4  # inches; the middle of a longer one is left out
LABEL_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#0072B2", "#D55E00")


def draw(metrics: pd.DataFrame) -> Figure:
    """A row of panels a task, ID left and OOD right; a bar for the gold labels and for each of some stages."""
    shares = metrics[metrics.metric.str.startswith(("predicted:", "gold:")) & (metrics.kind != "baseline")]
    tasks = tables.unique(shares.task)
    if not tasks:
        return style.empty("No evaluation of a model on labels is there.")
    stages = {task: _milestones(shares[shares.task == task]) for task in tasks}
    heights = [0.25 + 0.2 * (len(stages[task]) + 1) for task in tasks]
    names = StageNames(shares)
    left = 0.1 + style.text_width(names.with_form(stage) for some in stages.values() for stage in some)
    room = 2 * style.panel_width(2, left, 0.45, 0.35) + 0.45
    keys = {task: _keys(labels(shares[shares.task == task]), room) for task in tasks}
    rows = {task: -(-len(texts) // columns) for task, (texts, columns) in keys.items()}
    more = LABEL_LINE * (max(rows.values()) - 1)
    figure, panels = style.grid(heights, 2, left, between=0.45, right=0.35, gap=0.85 + more, top=1.4 + more)
    for row, task in zip(panels, tasks, strict=True):
        mine = shares[shares.task == task]
        names_of_labels = labels(mine)
        bars = ["gold", *[names.with_form(stage) for stage in stages[task]]]
        for axes, (split, split_name) in zip(row, SPLIT_NAMES.items(), strict=True):
            here = mine[mine.split == split]
            gold = here.drop_duplicates("metric").set_index("metric").value
            mixes = [[gold[f"gold:{label}"] for label in names_of_labels] + [0.0]]
            values = here.set_index([*STAGE_COLUMNS, "metric"]).value
            for stage in stages[task]:
                mixes.append([values[(*stage, f"predicted:{name}")] for name in [*names_of_labels, MALFORMED]])
            parts = _stacks(axes, np.array(mixes))
            axes.set_yticks(np.arange(len(bars))[::-1], bars if axes is row[0] else [])
            axes.set_title(
                f"{task} · {split_name}, {tables.split_size(here)}",
                loc="left",
                pad=20 + 72 * LABEL_LINE * (rows[task] - 1),
            )
        row[0].get_yticklabels()[0].set_fontweight("bold")
        texts, columns = keys[task]
        row[0].legend(
            parts,  # with their labels, of which matplotlib would leave out those that begin with "_"
            texts,
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=columns,
            frameon=False,
            fontsize=LABEL_SIZE,
            handlelength=1.1,
            columnspacing=1.2,
            borderpad=0.1,
            borderaxespad=0.1,
        )
    style.label_x(panels, "share of the examples")
    style.heading(
        figure,
        "Which labels the models answer, against the gold labels",
        "Dotted lines continue the gold shares. A bar that moves while skill does not is a shift "
        "of the label prior, not\nknowledge. Of each SFT ladder the first and the last rung. "
        f"{tables.seeds(metrics, dots=False)}",
    )
    return figure


def labels(shares: pd.DataFrame) -> list[str]:
    """The labels of a task, from the rows of its shares."""
    return [name.removeprefix("gold:") for name in tables.unique(shares.metric) if name.startswith("gold:")]


def _keys(names: Sequence[str], inches: float) -> tuple[list[str], int]:
    """The words of the legend, and in how many columns they fit this width."""
    texts = style.shortened([style.drawable(name) for name in [*names, MALFORMED]], LONGEST_LABEL, LABEL_SIZE)
    widths = [LABEL_HANDLE + style.width(text, LABEL_SIZE) for text in texts]
    fits = (count for count in range(len(texts), 1, -1) if _columns_width(widths, count) <= inches)
    return texts, next(fits, 1)


def _columns_width(widths: Sequence[float], count: int) -> float:
    """The width of ``count`` columns, which matplotlib fills one after the other, the first ones with one more."""
    columns = np.array_split(np.array(widths), count)
    return float(sum(column.max() for column in columns))


def _milestones(shares: pd.DataFrame) -> list[tuple[Any, ...]]:
    """Stages worth a bar: before SFT, first and last rung of each ladder, everything after RL."""
    ladders = shares[shares.kind == "sft"].groupby(["backbone", "sequences", "cpt", "sft"]).sft_epochs
    ends = {key: {epochs.min(), epochs.max()} for key, epochs in ladders}

    def kept(stage: tuple[Any, ...]) -> bool:
        backbone, form, cpt, sft, epochs, rl, _ = stage
        return sft == "none" or rl != "none" or epochs in ends[backbone, form, cpt, sft]

    def place(stage: tuple[Any, ...]) -> tuple[Any, ...]:
        backbone, form, cpt, _, _, rl, _ = stage
        return backbone, FORMS.index(base_form(form)), form, cpt != "none", cpt, rl != "none"

    return sorted(filter(kept, tables.distinct(shares, STAGE_COLUMNS)), key=place)


def _stacks(axes: Axes, mixes: np.ndarray) -> list[BarContainer]:
    """Stacked bars, the first (gold) on top; ``mixes`` has shape (bars, labels + malformed). Returns each label's."""
    y = np.arange(len(mixes))[::-1]
    lefts = np.cumsum(mixes, axis=1) - mixes
    count = mixes.shape[1] - 1
    colours = [LABEL_COLOURS[code % len(LABEL_COLOURS)] for code in range(count)]
    parts = []
    for code in range(count + 1):
        malformed = code == count
        part = axes.barh(
            y,
            mixes[:, code],
            left=lefts[:, code],
            height=0.78,
            color="#ffffff" if malformed else colours[code],
            hatch="////" if malformed else None,
            edgecolor=style.GREY if malformed else "white",
            linewidth=0 if malformed else 0.6,
        )
        parts.append(part)
        for bar, share in enumerate(mixes[:, code]):
            if share >= 0.095:  # a narrower part has no room for its number
                axes.text(
                    lefts[bar, code] + share / 2,
                    y[bar] - 0.03,
                    f"{share:.0%}",
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    bbox={"facecolor": "white" if malformed else colours[code], "edgecolor": "none", "pad": 0.6},
                    zorder=4,
                )
    for edge in np.cumsum(mixes[0])[: count - 1]:
        axes.plot([edge, edge], [-0.5, y[0]], color=style.INK, linewidth=1, linestyle=":")
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.55, y[0] + 0.5)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    axes.tick_params(axis="y", length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    return parts
