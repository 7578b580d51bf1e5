"""Sequences as tokens and as features of an encoder, against SFT epochs: ID left and OOD right."""

import pandas as pd
from matplotlib.figure import Figure

from cisterna.report import tables
from cisterna.report.figures import style
from cisterna.report.figures.ladder_panels import draw_baselines, draw_lines, epoch_axis, finish_row, form_lines
from cisterna.report.tables import SPLIT_NAMES, StageNames


def draw(metrics: pd.DataFrame) -> Figure:
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
            lines = draw_lines(axes, here, "sequences", form_lines(forms[key]))
            labels.append([*lines, *draw_baselines(axes, tables.rows(numbers, task=task, split=split), style.GREY)])
            epoch_axis(axes, here, f"{split_name}, {tables.split_size(here)}")
            axes.set_xlim(left=-1.5)
        finish_row(row, labels, tables.metric_name(mine))
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
