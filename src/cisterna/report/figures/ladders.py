"""Figures with a metric against SFT epochs: accuracy, ID minus OOD, and the forms of the sequences side by side.

Each has a row of two panels for each ladder, that is, all rungs (checkpoints) of one SFT run; lines join rungs.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cisterna.constants import TEST_SPLITS
from cisterna.report import tables
from cisterna.report.figures import style
from cisterna.report.figures.style import EdgeLabel
from cisterna.report.tables import LABEL_METRICS, SPLIT_NAMES, STAGE_COLUMNS, TERM_METRICS, StageNames

CPT_LINES: tuple[Any, ...] = ("--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
FORM_COLOURS = {"tokens": "#555555", "features": "#009E73", "both": "#AA4499"}


def accuracy(metrics: pd.DataFrame, metric: str) -> Figure:
    """Accuracy, or balanced accuracy, without and with CPT; ID left and OOD right on one scale, with the baselines."""
    if not (metrics.kind == "sft").any():
        return style.empty("This study has no SFT stage.")
    numbers = tables.of_metric(metrics, metric)
    shown = numbers[(numbers.rl == "none") & (numbers.kind != "baseline")]
    ladders = tables.long_ladders(shown[shown.kind == "sft"], ["task", "backbone", "sequences", "sft"])
    if not ladders:
        return style.empty(f"No task of this study has a {LABEL_METRICS[metric]}: their answers are sets of terms.")
    names = StageNames(shown)
    figure, panels, pad = _grid(shown, len(ladders))
    for row, (task, backbone, form, sft) in zip(panels, ladders, strict=True):
        mine = tables.rows(shown, task=task, backbone=backbone, sequences=form, sft=(sft, "none"))
        cpts = tables.unique(mine[mine.kind == "sft"].cpt)
        labels = []
        for axes, (split, split_name) in zip(row, SPLIT_NAMES.items(), strict=True):
            here, colour = mine[mine.split == split], style.SPLIT_COLOURS[split]
            baselines = _baselines(axes, tables.rows(numbers, task=task, split=split), colour)
            lines = _lines(axes, here, "cpt", _cpt_lines(cpts, colour), style.SPLIT_MARKS[split], step=0.09)
            labels.append([*baselines, *lines])
            where = [task, *tables.forms_except_tokens(form), *names.if_several(backbone=backbone, sft=sft), split_name]
            _epoch_axis(axes, here, f"{' · '.join(where)}, {tables.split_size(here)}", pad)
        _finish_row(row, labels, tables.metric_name(mine))
    style.label_x(panels, "SFT epochs (0 = the parent checkpoint, before SFT)")
    title = " and ".join(tables.unique(tables.metric_name(shown[shown.task == task]) for task, *_ in ladders))
    style.heading(
        figure,
        f"{title[0].upper()}{title[1:]} against SFT epochs",
        "Open marks, solid: without CPT; filled marks, broken: with CPT. Dotted: baselines fitted "
        f"on the same training split.\n{tables.intervals(metrics)}",
    )
    return figure


def generalization_gap(metrics: pd.DataFrame) -> Figure:
    """ID minus OOD before and after RL, with the baselines; a panel for each of the first two metrics of a task."""
    gaps = _gaps(metrics)
    models = gaps[gaps.kind != "baseline"]
    if models.empty:
        return style.empty("No evaluation of a model is there.")
    long = set(tables.long_ladders(models[models.kind == "sft"], ["task", "backbone", "sequences", "sft"]))
    ladders = [key for key in tables.ladders(models, "sequences") if key in long or key[-1] == "none"]
    terms = tables.tasks_of_terms(metrics)
    names = StageNames(models)
    figure, panels, pad = _grid(models, len(ladders))
    for row, (task, backbone, form, sft) in zip(panels, ladders, strict=True):
        mine = tables.rows(models, task=task, backbone=backbone, sequences=form, sft=(sft, "none"))
        labels = []
        metric_names = TERM_METRICS if task in terms else LABEL_METRICS
        for axes, metric in zip(row, list(metric_names)[:2], strict=True):
            here = mine[mine.metric == metric]
            cpts = tables.unique(tables.rows(here, kind=("sft", "rl")).cpt) or tables.unique(here.cpt)
            of_cpts = _cpt_lines(cpts, style.STAGE_COLOURS["sft"], style.STAGE_COLOURS["rl"])
            lines = _lines(axes, here, "cpt", of_cpts, left=-0.16)
            labels.append([*lines, *_baselines(axes, tables.rows(gaps, task=task, metric=metric), style.GREY)])
            axes.axhline(0, color=style.INK, linewidth=0.8)
            where = [task, *tables.forms_except_tokens(form), *names.if_several(backbone=backbone, sft=sft)]
            size = f" ({tables.split_size(here)})" if axes is row[0] else ""
            _epoch_axis(axes, here, " · ".join([*where, metric_names[metric]]) + size, pad)
        _finish_row(row, labels, "ID minus OOD")
    style.label_x(panels, "SFT epochs (0 = before SFT)")
    style.heading(
        figure,
        "Generalization gap: ID minus OOD",
        "Above 0 the model does better in-domain. Filled marks, broken lines: with CPT. Dotted: "
        "baselines.\n95% intervals of the difference of two independent samples. "
        f"{tables.seeds(metrics)}",
    )
    style.key(figure, {"● before RL": style.STAGE_COLOURS["sft"], "◆ after RL": style.STAGE_COLOURS["rl"]})
    return figure


def _gaps(metrics: pd.DataFrame) -> pd.DataFrame:
    """ID minus OOD of every model.

    The intervals join those of two independent samples by square-and-add (Newcombe 1998, method 10,
    doi:10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I).
    """
    keys = ["model", "kind", "task", "modality", *STAGE_COLUMNS, "metric"]
    a, b = (metrics[metrics.split == split].set_index(keys) for split in TEST_SPLITS)
    b = b.loc[a.index]
    gap = a.value - b.value
    frame = pd.DataFrame(
        {
            "value": gap,
            "low": gap - np.hypot(a.value - a.low, b.high - b.value),
            "high": gap + np.hypot(a.high - a.value, b.value - b.low),
            "seeds": a.seeds,
            "n": [f"{x} ID, {y} OOD" for x, y in zip(a.n, b.n, strict=True)],
            "each": [tuple(np.subtract(x, y)) for x, y in zip(a.each, b.each, strict=True)],
        }
    )
    return frame.reset_index()


def sequences(metrics: pd.DataFrame) -> Figure:
    """Accuracy (of terms micro F1) of the forms of a task's sequences, all else the same; ID left and OOD right."""
    numbers = tables.of_metric(metrics, "accuracy")
    models = numbers[numbers.kind != "baseline"]
    ladders = {
        (task, backbone, cpt, sft): tables.rows(models, task=task, backbone=backbone, cpt=cpt, sft=(sft, "none"))
        for task, backbone, cpt, sft in tables.ladders(models, "cpt")
    }
    forms = {key: tables.unique(tables.rows(ladder, kind=("sft", "rl")).sequences) for key, ladder in ladders.items()}
    compared = [key for key in ladders if len(forms[key]) > 1]
    if not compared:
        return style.empty("No task of this study has its sequences in more than one form.")
    names = StageNames(models)
    right = style.text_width(f"● {tables.form_name(form)}" for key in compared for form in forms[key])
    figure, panels = style.grid([2.1] * len(compared), 2, 0.8, right + 0.45, right, gap=0.85, top=1.6)
    for row, key in zip(panels, compared, strict=True):
        (task, backbone, cpt, sft), mine = key, ladders[key]
        labels = []
        for axes, (split, split_name) in zip(row, SPLIT_NAMES.items(), strict=True):
            here = mine[mine.split == split]
            lines = _lines(axes, here, "sequences", _form_lines(forms[key]))
            labels.append([*lines, *_baselines(axes, tables.rows(numbers, task=task, split=split), style.GREY)])
            _epoch_axis(axes, here, f"{split_name}, {tables.split_size(here)}")
            axes.set_xlim(left=-1.5)
        _finish_row(row, labels, tables.metric_name(mine))
        encoders = [name for name in tables.unique(mine.encoder) if name != "none"]
        where = [tables.cpt_name(cpt), *names.if_several(backbone=backbone, sft=sft), f"encoder {', '.join(encoders)}"]
        style.row_name(row[0], f"{task}  ({' · '.join(where)})")
    style.label_x(panels, "SFT epochs (0 = the parent checkpoint, which reads tokens)")
    style.heading(
        figure,
        "Sequences as tokens and as features of an encoder",
        "Same task, examples, CPT, SFT recipe and seeds; only the form of the sequences differs. Dotted: baselines on "
        f"the raw sequences.\n{tables.intervals(metrics)}",
    )
    after_rl = {"◆ after RL": style.GREY} if (models.rl != "none").any() else {}
    style.key(figure, {"● SFT": style.GREY} | after_rl)
    return figure


# --- Panels ---


@dataclass(frozen=True)
class Line:
    """How to draw the ladder of the models that have ``value`` in some column."""

    value: str
    name: str
    colour: str
    style: Any
    filled: bool
    colour_after_rl: str


def _cpt_lines(cpts: Sequence[str], colour: str, colour_after_rl: str = "") -> Iterator[Line]:
    """Solid and open without CPT, broken and filled with it."""
    with_cpt = [cpt for cpt in cpts if cpt != "none"]
    for cpt in cpts:
        dashes = "-" if cpt == "none" else CPT_LINES[with_cpt.index(cpt) % len(CPT_LINES)]
        yield Line(cpt, tables.cpt_name(cpt), colour, dashes, cpt != "none", colour_after_rl)


def _form_lines(forms: Sequence[str]) -> Iterator[Line]:
    """A colour for each form, or for each encoder where a task has several."""
    with_encoder = [form for form in forms if form != tables.base_form(form)]
    for form in forms:
        base = tables.base_form(form)
        colour = FORM_COLOURS[base]
        if form in with_encoder:
            colour = style.RUN_COLOURS[with_encoder.index(form) % len(style.RUN_COLOURS)]
        yield Line(form, tables.form_name(form), colour, style.FORM_LINES[base], form != "tokens", colour)


def _grid(models: pd.DataFrame, rows: int) -> tuple[Figure, np.ndarray, float]:
    """Rows of two panels for ladders without and with CPT, and the distance in points of a title from its panel.

    Titles that name a form are long: they are above the labels of the panel to the left.
    """
    long_titles = bool(set(models.sequences) - {"none", "tokens"})
    right = style.text_width(map(tables.cpt_name, models.cpt.unique()))
    gap = 0.8 if long_titles else 0.62
    return *style.grid([1.85] * rows, 2, 0.8, right + 0.45, right, gap), 16 if long_titles else 6


def _lines(
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


def _baselines(axes: Axes, frame: pd.DataFrame, colour: str) -> Iterator[EdgeLabel]:
    """Thin dotted lines for the baselines in ``frame``; yields their labels."""
    shown = frame[frame.kind == "baseline"]
    for model, value in zip(shown.model, shown.value, strict=True):
        axes.axhline(value, color=colour, linewidth=0.9, linestyle=(0, (1, 1.5)), alpha=0.8)
        yield EdgeLabel(value, tables.baseline_name(model), colour)


def _epoch_places(epochs: pd.Series) -> np.ndarray:
    """Places of epochs on the axis: log2, and one step left of epoch 1 for 0."""
    values = epochs.to_numpy(dtype=float)
    return np.where(values > 0, np.log2(np.maximum(values, 1)), -1)


def _epoch_axis(axes: Axes, here: pd.DataFrame, title: str, pad: float = 6) -> None:
    """Ticks at the SFT epochs that occur, lines across, and the title of the panel."""
    ticks = pd.Series(sorted(set(here.sft_epochs)))
    axes.set_xticks(_epoch_places(ticks), [str(tick) for tick in ticks])
    axes.set_xlim(-1.35, _epoch_places(ticks).max() + 0.4)
    axes.set_title(title, loc="left", pad=pad)
    axes.grid(axis="y", color=style.PALE)


def _finish_row(row: Sequence[Axes], labels: Sequence[Sequence[EdgeLabel]], metric: str) -> None:
    """Give the panels of a row the smallest scale that has the ranges of all, and write their labels."""
    limits = np.array([axes.get_ylim() for axes in row])
    for axes, some in zip(row, labels, strict=True):
        axes.set_ylim(limits[:, 0].min(), limits[:, 1].max())
        style.edge_labels(axes, some)
    row[0].set_ylabel(metric)
