"""The family tree of a study's checkpoints: one task, backbone, seed and form are drawn, the others counted."""

from collections import defaultdict
from collections.abc import Sequence

import matplotlib.colors
import matplotlib.patches
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cisterna.report import tables
from cisterna.report.figures import style
from cisterna.report.tables import KIND_NAMES
from cisterna.study import Model, Study

COLUMNS = {"base": 0.3, "cpt": 2.6, "sft": 4.9, "rl": 7.2}  # left edge of the boxes of a kind, in inches
BOX = 1.7  # width of a box, in inches
ROW = 0.34  # height of a row, in inches
TOP = 1.35  # inches above the first row
MOST_ROWS = 60  # checkpoints below are counted, not drawn

Places = dict[str, tuple[float, float]]  # path of a model -> left edge in inches, row


def draw(study: Study) -> Figure:
    """Boxes in rows: a row for each rung of a ladder, with RL in the row of the checkpoint that it started from."""
    trained = [model for model in study.models if model.task is not None]
    first = trained[0] if trained else study.models[0]
    shown = [
        model
        for model in study.models
        if model.backbone == first.backbone
        and model.task in (None, first.task)
        and model.seed in (None, first.seed)
        and (model.task is None or _form(model) == _form(first))
    ]
    places, rows = _places(shown)
    height = TOP + ROW * (rows + 1.2)
    figure = Figure(figsize=(style.WIDTH, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, style.WIDTH)
    axes.set_ylim((height - TOP) / ROW, -TOP / ROW)
    drawn = [study.model(path) for path in places]
    for model in drawn:
        _link(axes, model, places)
    names = style.shortened([_name(model) for model in drawn], BOX - 0.1, style.RC["font.size"])
    for model, name in zip(drawn, names, strict=True):
        _box(axes, model, name, *places[model.path])
    for kind, x in COLUMNS.items():
        title = "backbone" if kind == "base" else KIND_NAMES[kind]
        axes.text(x, -0.75, title, color=style.STAGE_COLOURS[kind], fontweight="bold")
    forms = tables.unique(map(_form, trained))
    dimensions = {
        "task": (first.task, study.tasks),
        "backbone": (first.backbone, study.backbones),
        "seed": (first.seed, study.seeds),
        "form": (_form(first), forms),
    }
    left_out = ""
    if len(shown) < len(study.models):
        others = {name: [str(one) for one in every if one != value] for name, (value, every) in dimensions.items()}
        listed = "; ".join(f"{name} {', '.join(values)}" for name, values in others.items() if values)
        left_out = f"+ {len(study.models) - len(shown)} checkpoints not drawn: {listed}"
    (left_out,) = style.shortened([left_out], style.WIDTH - 2 * COLUMNS["base"], style.RC["font.size"])
    axes.text(COLUMNS["base"], rows + 0.3, left_out, color=style.GREY, va="center")
    named = [f"{name} {value}" for name, (value, _) in dimensions.items() if value is not None]
    note = f"Drawn: {', '.join(named if len(forms) > 1 else named[:-1])}."
    if len(places) < len(shown):
        note += f" {len(shown) - len(places)} of its checkpoints do not fit and are not drawn."
    kinds = [model.kind for model in study.models]
    counts = [f"{kinds.count(kind)} {name}" for kind, name in KIND_NAMES.items() if kind in kinds]
    style.heading(
        figure,
        f"Lineage: {len(kinds)} checkpoints ({', '.join(counts)})",
        f"{note}\nSolid: trained from; dotted: the same run, resumed from the rung before.",
    )
    return figure


def _places(models: Sequence[Model]) -> tuple[Places, float]:
    """The places of the models that fit, and the number of rows; the first child of a model is in its row."""
    children: dict[str | None, list[Model]] = defaultdict(list)
    for model in models:
        children[model.parent].append(model)
    places: Places = {}

    def place(model: Model, row: float) -> float:
        """Place a model and its children from a row on; returns the next free row."""
        if row >= MOST_ROWS:
            return row
        if model.kind == "cpt":
            row += 0.4
        places[model.path] = COLUMNS[model.kind], row
        # The first child is drawn in this row: a task of the base itself, not a CPT, which has tasks of its own.
        free = row
        for child in sorted(children[model.path], key=lambda child: ("sft", "rl", "cpt").index(child.kind)):
            free = place(child, free)
        return max(free, row + 1)

    rows = 0.0
    for root in children[None]:
        rows = place(root, rows)
    return places, rows


def _link(axes: Axes, model: Model, places: Places) -> None:
    """Join a checkpoint to the rung that it was resumed from, or else to its parent."""
    x1, y1 = places[model.path]
    if model.previous in places:
        x0, y0 = places[model.previous]
        x = x0 + 0.2
        axes.plot([x, x], [y0 + 0.33, y1 - 0.33], color=style.GREY, linestyle=":", linewidth=1.5)
    elif model.parent in places:
        x0, y0 = places[model.parent]
        right = x0 + BOX
        turn = right + 0.3
        axes.plot([right, turn, turn, x1], [y0, y0, y1, y1], color=style.GREY, linewidth=1, zorder=0)


def _name(model: Model) -> str:
    names = {"base": model.backbone, "cpt": str(model.cpt)}
    return names.get(model.kind, f"{model.recipe} e{model.epochs}")


def _box(axes: Axes, model: Model, name: str, x: float, y: float) -> None:
    colour = style.STAGE_COLOURS[model.kind]
    axes.text(x + BOX / 2, y, name, ha="center", va="center_baseline", zorder=3)
    axes.add_patch(
        matplotlib.patches.FancyBboxPatch(
            (x, y - 0.33),
            BOX,
            0.66,
            boxstyle="round,pad=0,rounding_size=0.1",
            facecolor=[*matplotlib.colors.to_rgb(colour), 0.18],
            edgecolor=colour,
            linewidth=1.2,
        )
    )


def _form(model: Model) -> str:
    return f"{model.sequences} of {model.encoder}" if model.encoder else str(model.sequences)
