"""Accuracy, or balanced accuracy, against SFT epochs: a row of panels for each ladder, ID left and OOD right."""

import pandas as pd
from matplotlib.figure import Figure

from cisterna.report import tables
from cisterna.report.figures import style
from cisterna.report.figures.ladder_panels import cpt_lines, draw_baselines, draw_lines, epoch_axis, finish_row, grid
from cisterna.report.tables import LABEL_METRICS, SPLIT_NAMES, StageNames


def draw(metrics: pd.DataFrame, metric: str) -> Figure:
    """Accuracy, or balanced accuracy, without and with CPT; ID left and OOD right on one scale, with the baselines."""
    if not (metrics.kind == "sft").any():
        return style.empty("This study has no SFT stage.")
    numbers = tables.of_metric(metrics, metric)
    shown = numbers[(numbers.rl == "none") & (numbers.kind != "baseline")]
    ladders = tables.long_ladders(shown[shown.kind == "sft"], ["task", "backbone", "sequences", "sft"])
    if not ladders:
        return style.empty(f"No task of this study has a {LABEL_METRICS[metric]}: their answers are sets of terms.")
    names = StageNames(shown)
    figure, panels, pad = grid(shown, len(ladders))
    for row, (task, backbone, form, sft) in zip(panels, ladders, strict=True):
        mine = tables.rows(shown, task=task, backbone=backbone, sequences=form, sft=(sft, "none"))
        cpts = tables.unique(mine[mine.kind == "sft"].cpt)
        labels = []
        for axes, (split, split_name) in zip(row, SPLIT_NAMES.items(), strict=True):
            here, colour = mine[mine.split == split], style.SPLIT_COLOURS[split]
            baselines = draw_baselines(axes, tables.rows(numbers, task=task, split=split), colour)
            lines = draw_lines(axes, here, "cpt", cpt_lines(cpts, colour), style.SPLIT_MARKS[split], step=0.09)
            labels.append([*baselines, *lines])
            where = [task, *tables.forms_except_tokens(form), *names.if_several(backbone=backbone, sft=sft), split_name]
            epoch_axis(axes, here, f"{' · '.join(where)}, {tables.split_size(here)}", pad)
        finish_row(row, labels, tables.metric_name(mine))
    style.label_x(panels, "SFT epochs (0 = the parent checkpoint, before SFT)")
    title = " and ".join(tables.unique(tables.metric_name(shown[shown.task == task]) for task, *_ in ladders))
    style.heading(
        figure,
        f"{title[0].upper()}{title[1:]} against SFT epochs",
        "Open marks, solid: without CPT; filled marks, broken: with CPT. Dotted: baselines fitted "
        f"on the same training split.\n{tables.intervals(metrics)}",
    )
    return figure
