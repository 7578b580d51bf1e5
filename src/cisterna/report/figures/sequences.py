"""Accuracy (of terms micro F1) of the forms of a task's sequences against SFT epochs, all else the same."""

from collections.abc import Iterator, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cisterna.report import tables, words
from cisterna.report.figures import marks, style
from cisterna.report.figures.marks import EdgeLabel
from cisterna.report.words import SPLIT_NAMES, StageNames, base_form, form_name

FORM_COLOURS = {"tokens": "#555555", "features": "#009E73", "both": "#AA4499"}


def draw(metrics: pd.DataFrame) -> Figure:
    """A row of panels a task, backbone, CPT and SFT recipe, ID left and OOD right on one scale."""
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
    right = style.text_width(f"● {form_name(form)}" for key in compared for form in forms[key])
    figure, panels = style.grid([2.1] * len(compared), 2, 0.8, right + 0.45, right, gap=0.85, top=1.6)
    for row, key in zip(panels, compared, strict=True):
        (task, backbone, cpt, sft), mine = key, ladders[key]
        labels: dict[str, list[EdgeLabel]] = {}
        for axes, (split, split_name) in zip(row, SPLIT_NAMES.items(), strict=True):
            here = mine[mine.split == split]
            baselines = tables.rows(numbers, task=task, split=split)
            labels[split] = [*_panel(axes, here, forms[key]), *marks.baselines(axes, baselines, style.GREY)]
            marks.epoch_axis(axes, here.sft_epochs)
            axes.set_xlim(left=-1.5)
            axes.set_title(f"{split_name}, {words.split_size(here)}", loc="left")
            axes.grid(axis="y", color=style.PALE)
        style.share_y(row)
        for axes, split in zip(row, SPLIT_NAMES, strict=True):
            marks.edge_labels(axes, labels[split])
        row[0].set_ylabel(tables.metric_name(mine))
        encoders = [name for name in tables.unique(mine.encoder) if name != "none"]
        where = [words.cpt_name(cpt), *names.if_several(backbone=backbone, sft=sft), f"encoder {', '.join(encoders)}"]
        style.row_name(row[0], f"{task}  ({' · '.join(where)})")
    for axes in panels[-1]:
        axes.set_xlabel("SFT epochs (0 = the parent checkpoint, which reads tokens)")
    style.heading(
        figure,
        "Sequences as tokens and as features of an encoder",
        "Same task, examples, CPT, SFT recipe and seeds; only the form of the sequences differs. Dotted: baselines on "
        f"the raw sequences.\n{words.intervals(metrics)}",
    )
    after_rl = {"◆ after RL": style.GREY} if (models.rl != "none").any() else {}
    style.key(figure, {"● SFT": style.GREY} | after_rl)
    return figure


def _panel(axes: Axes, here: pd.DataFrame, forms: Sequence[str]) -> Iterator[EdgeLabel]:
    """A line a form, and diamonds for RL from its rungs; yields the labels of the lines."""
    recipes = tables.distinct(here[here.rl != "none"], ["rl", "rl_epochs"])
    count = len(forms) * (1 + len(recipes))
    step = min(0.13, 0.8 / count)
    left = -step * (count - 1) / 2
    with_encoder = [name for name in forms if name != base_form(name)]
    for position, form in enumerate(forms):
        mine = here[here.sequences == form]
        base = base_form(form)
        colour = FORM_COLOURS[base]
        if form in with_encoder:
            colour = style.RUN_COLOURS[with_encoder.index(form) % len(style.RUN_COLOURS)]
        filled = form != "tokens"
        line = mine[mine.rl == "none"].sort_values("sft_epochs")
        x = marks.epoch_places(line.sft_epochs) + left + step * position
        marks.series(axes, x, line, colour, "o", style.FORM_LINES[base], filled)
        last = line if len(line) else mine
        text = f"{style.GLYPHS['o', filled]} {form_name(form)}"
        yield EdgeLabel(last.value.iloc[-1], text, colour, bold=True)
        for turn, (rl, epochs) in enumerate(recipes, start=1):
            after = mine[(mine.rl == rl) & (mine.rl_epochs == epochs)]
            x = marks.epoch_places(after.sft_epochs) + left + step * (turn * len(forms) + position)
            marks.series(axes, x, after, colour, "D", "none", filled)
