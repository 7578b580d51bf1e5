"""ID minus OOD against SFT epochs, before and after RL, with the baselines."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cisterna.constants import TEST_SPLITS
from cisterna.report import tables, words
from cisterna.report.figures import marks, style
from cisterna.report.figures.marks import EdgeLabel
from cisterna.report.words import LABEL_METRICS, STAGE_COLUMNS, TERM_METRICS, StageNames


def draw(metrics: pd.DataFrame) -> Figure:
    """A row of panels a task, form and SFT recipe, a panel for each of the first two metrics of the task."""
    gaps = _gaps(metrics)
    models = gaps[gaps.kind != "baseline"]
    if models.empty:
        return style.empty("No evaluation of a model is there.")
    long = set(tables.long_ladders(models[models.kind == "sft"], ["task", "backbone", "sequences", "sft"]))
    ladders = [key for key in tables.ladders(models, "sequences") if key in long or key[-1] == "none"]
    terms = tables.tasks_of_terms(metrics)
    names = StageNames(models)
    figure, panels, pad = marks.ladder_grid(models, len(ladders))
    for row, (task, backbone, form, sft) in zip(panels, ladders, strict=True):
        mine = tables.rows(models, task=task, backbone=backbone, sequences=form, sft=(sft, "none"))
        labels: list[list[EdgeLabel]] = []
        metric_names = TERM_METRICS if task in terms else LABEL_METRICS
        for axes, metric in zip(row, list(metric_names)[:2], strict=True):
            here = mine[mine.metric == metric]
            baselines = tables.rows(gaps, task=task, metric=metric)
            labels.append([*_panel(axes, here), *marks.baselines(axes, baselines, style.GREY)])
            axes.axhline(0, color=style.INK, linewidth=0.8)
            marks.epoch_axis(axes, here.sft_epochs)
            where = [task, *words.forms_except_tokens(form), *names.if_several(backbone=backbone, sft=sft)]
            size = f" ({words.split_size(here)})" if axes is row[0] else ""
            axes.set_title(" · ".join([*where, metric_names[metric]]) + size, loc="left", pad=pad)
            axes.grid(axis="y", color=style.PALE)
        style.share_y(row)
        for axes, some in zip(row, labels, strict=True):
            marks.edge_labels(axes, some)
        row[0].set_ylabel("ID minus OOD")
    for axes in panels[-1]:
        axes.set_xlabel("SFT epochs (0 = before SFT)")
    style.heading(
        figure,
        "Generalization gap: ID minus OOD",
        "Above 0 the model does better in-domain. Filled marks, broken lines: with CPT. Dotted: "
        "baselines.\n95% intervals of the difference of two independent samples. "
        f"{words.seeds(metrics)}",
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


def _panel(axes: Axes, here: pd.DataFrame) -> list[EdgeLabel]:
    """SFT ladders as lines, and diamonds for RL from their rungs; returns the labels of the lines."""
    labels = []
    variants = tables.unique(tables.rows(here, kind=("sft", "rl")).cpt) or tables.unique(here.cpt)
    recipes = tables.distinct(here[here.rl != "none"], ["rl", "rl_epochs"])
    step = min(0.13, 0.8 / (len(variants) * (1 + len(recipes))))
    for position, cpt in enumerate(variants):
        linestyle, filled = marks.line_of(cpt, variants)
        mine = here[here.cpt == cpt]
        line = mine[mine.rl == "none"].sort_values("sft_epochs")
        x = marks.epoch_places(line.sft_epochs) + step * position - 0.16
        marks.series(axes, x, line, style.STAGE_COLOURS["sft"], "o", linestyle, filled)
        text = f"{style.GLYPHS['o', cpt != 'none']} {words.cpt_name(cpt)}"
        last = line if len(line) else mine  # RL without SFT, in a form that its parent does not read
        labels.append(EdgeLabel(last.value.iloc[-1], text, style.STAGE_COLOURS["sft"], bold=True))
        for turn, (rl, epochs) in enumerate(recipes, start=1):
            after = mine[(mine.rl == rl) & (mine.rl_epochs == epochs)]
            x = marks.epoch_places(after.sft_epochs) + step * (turn * len(variants) + position) - 0.16
            marks.series(axes, x, after, style.STAGE_COLOURS["rl"], "D", "none", filled)
    return labels
