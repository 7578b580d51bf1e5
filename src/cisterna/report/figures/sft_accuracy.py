"""Accuracy, or balanced accuracy, against SFT epochs, without and with CPT, with the baselines: two figures."""

import pandas as pd
from matplotlib.figure import Figure

from cisterna.report import tables, words
from cisterna.report.figures import marks, style
from cisterna.report.figures.marks import EdgeLabel
from cisterna.report.words import LABEL_METRICS, SPLIT_NAMES, StageNames


def draw(metrics: pd.DataFrame, metric: str) -> Figure:
    """A row of panels a task, form and SFT recipe, ID left and OOD right on one scale."""
    if not (metrics.kind == "sft").any():
        return style.empty("This study has no SFT stage.")
    numbers = tables.of_metric(metrics, metric)
    shown = numbers[(numbers.rl == "none") & (numbers.kind != "baseline")]
    ladders = tables.long_ladders(shown[shown.kind == "sft"], ["task", "backbone", "sequences", "sft"])
    if not ladders:
        return style.empty(f"No task of this study has a {LABEL_METRICS[metric]}: their answers are sets of terms.")
    names = StageNames(shown)
    figure, panels, pad = marks.ladder_grid(shown, len(ladders))
    for row, (task, backbone, form, sft) in zip(panels, ladders, strict=True):
        mine = tables.rows(shown, task=task, backbone=backbone, sequences=form, sft=(sft, "none"))
        variants = [cpt for (cpt,) in tables.distinct(mine[mine.kind == "sft"], ["cpt"])]
        baselines = numbers[numbers.task == task]
        labels: dict[str, list[EdgeLabel]] = {}
        for axes, (split, split_name) in zip(row, SPLIT_NAMES.items(), strict=True):
            here = mine[mine.split == split]
            colour, mark = style.SPLIT_COLOURS[split], style.SPLIT_MARKS[split]
            labels[split] = list(marks.baselines(axes, baselines[baselines.split == split], colour))
            for position, cpt in enumerate(variants):
                line = here[here.cpt == cpt].sort_values("sft_epochs")
                x = marks.epoch_places(line.sft_epochs) + 0.09 * (position - (len(variants) - 1) / 2)
                marks.series(axes, x, line, colour, mark, *marks.line_of(cpt, variants))
                text = f"{style.GLYPHS[mark, cpt != 'none']} {words.cpt_name(cpt)}"
                labels[split].append(EdgeLabel(line.value.iloc[-1], text, colour, bold=True))
            marks.epoch_axis(axes, here.sft_epochs)
            where = [task, *words.forms_except_tokens(form), *names.if_several(backbone=backbone, sft=sft), split_name]
            axes.set_title(f"{' · '.join(where)}, {words.split_size(here)}", loc="left", pad=pad)
            axes.grid(axis="y", color=style.PALE)
        style.share_y(row)
        for axes, split in zip(row, SPLIT_NAMES, strict=True):
            marks.edge_labels(axes, labels[split])
        row[0].set_ylabel(tables.metric_name(mine))
    for axes in panels[-1]:
        axes.set_xlabel("SFT epochs (0 = the parent checkpoint, before SFT)")
    title = " and ".join(tables.unique(tables.metric_name(shown[shown.task == task]) for task, *_ in ladders))
    style.heading(
        figure,
        f"{title[0].upper()}{title[1:]} against SFT epochs",
        "Open marks, solid: without CPT; filled marks, broken: with CPT. Dotted: baselines fitted "
        f"on the same training split.\n{words.intervals(metrics)}",
    )
    return figure
