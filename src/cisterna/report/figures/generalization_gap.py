"""ID minus OOD against SFT epochs, before and after RL: a row of panels for each ladder."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cisterna.constants import TEST_SPLITS
from cisterna.report import tables
from cisterna.report.figures import style
from cisterna.report.figures.ladder_panels import cpt_lines, draw_baselines, draw_lines, epoch_axis, finish_row, grid
from cisterna.report.tables import LABEL_METRICS, STAGE_COLUMNS, TERM_METRICS, StageNames


def draw(metrics: pd.DataFrame) -> Figure:
    """ID minus OOD before and after RL, with the baselines; a panel for each of the first two metrics of a task."""
    gaps = _gaps(metrics)
    models = gaps[gaps.kind != "baseline"]
    if models.empty:
        return style.empty("No evaluation of a model is there.")
    long = set(tables.long_ladders(models[models.kind == "sft"], ["task", "backbone", "sequences", "sft"]))
    ladders = [key for key in tables.ladders(models, "sequences") if key in long or key[-1] == "none"]
    terms = tables.tasks_of_terms(metrics)
    names = StageNames(models)
    figure, panels, pad = grid(models, len(ladders))
    for row, (task, backbone, form, sft) in zip(panels, ladders, strict=True):
        mine = tables.rows(models, task=task, backbone=backbone, sequences=form, sft=(sft, "none"))
        labels = []
        metric_names = TERM_METRICS if task in terms else LABEL_METRICS
        for axes, metric in zip(row, list(metric_names)[:2], strict=True):
            here = mine[mine.metric == metric]
            cpts = tables.unique(tables.rows(here, kind=("sft", "rl")).cpt) or tables.unique(here.cpt)
            of_cpts = cpt_lines(cpts, style.STAGE_COLOURS["sft"], style.STAGE_COLOURS["rl"])
            lines = draw_lines(axes, here, "cpt", of_cpts, left=-0.16)
            labels.append([*lines, *draw_baselines(axes, tables.rows(gaps, task=task, metric=metric), style.GREY)])
            axes.axhline(0, color=style.INK, linewidth=0.8)
            where = [task, *tables.forms_except_tokens(form), *names.if_several(backbone=backbone, sft=sft)]
            size = f" ({tables.split_size(here)})" if axes is row[0] else ""
            epoch_axis(axes, here, " · ".join([*where, metric_names[metric]]) + size, pad)
        finish_row(row, labels, "ID minus OOD")
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
    """ID minus OOD of every model, in the metrics that both splits have: a namespace of GO may have no term in one.

    The intervals join those of two independent samples by square-and-add (Newcombe 1998, method 10,
    doi:10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I).
    """
    keys = ["model", "kind", "task", "modality", *STAGE_COLUMNS, "metric"]
    a, b = (metrics[metrics.split == split].set_index(keys) for split in TEST_SPLITS)
    both = a.index.intersection(b.index, sort=False)
    a, b = a.loc[both], b.loc[both]
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
