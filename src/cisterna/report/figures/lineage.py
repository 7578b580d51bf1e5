"""The family tree of a study's checkpoints: one task, backbone, seed and form are drawn, the others counted."""

from collections.abc import Iterator

import matplotlib.colors
import matplotlib.patches
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cisterna.report import tables
from cisterna.report.figures import style
from cisterna.report.words import KIND_NAMES
from cisterna.study import Model, Study

COLUMNS = {"base": 0.3, "cpt": 2.6, "sft": 4.9, "rl": 7.2}  # left edge of the boxes of a kind, in inches
BOX = 1.7  # width of a box, in inches
ROW = 0.34  # height of a row, in inches
TOP = 1.35  # inches above the first row
MOST_ROWS = 60  # checkpoints below are counted, not drawn


def draw(study: Study) -> Figure:
    """Boxes in rows: a row for each rung of a ladder, with RL in the row of the checkpoint that it started from."""
    tree = _Tree(study)
    height = TOP + ROW * (tree.rows + 1.2)
    figure = Figure(figsize=(style.WIDTH, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, style.WIDTH)
    axes.set_ylim((height - TOP) / ROW, -TOP / ROW)
    tree.draw(axes)
    kinds = [model.kind for model in study.models]
    counts = [f"{kinds.count(kind)} {name}" for kind, name in KIND_NAMES.items() if kind in kinds]
    style.heading(
        figure,
        f"Lineage: {len(kinds)} checkpoints ({', '.join(counts)})",
        f"{tree.note}\nSolid: trained from; dotted: the same run, resumed from the rung before.",
    )
    return figure


class _Tree:
    """Which checkpoints are drawn and where; ``note`` says which they are, ``rest`` which are not drawn."""

    def __init__(self, study: Study) -> None:
        self.places: dict[str, tuple[float, float]] = {}  # path -> left edge in inches, row
        self.drawn: list[Model] = []
        self.rows = 0.0
        self.skipped = 0
        trained = [model for model in study.models if model.task is not None]
        first = trained[0] if trained else study.models[0]
        kept = [
            model
            for model in study.models
            if model.backbone == first.backbone
            and model.task in (None, first.task)
            and model.seed in (None, first.seed)
            and (model.task is None or _form(model) == _form(first))
        ]
        self.children: dict[str | None, list[Model]] = {}
        for model in kept:
            self.children.setdefault(model.parent, []).append(model)
        for root in self.children[None]:
            self._place(root)
        forms = tables.unique(map(_form, trained))
        axes = {
            "task": (first.task, study.tasks),
            "backbone": (first.backbone, study.backbones),
            "seed": (first.seed, study.seeds),
            "form": (_form(first), forms),
        }
        named = [f"{axis} {value}" for axis, (value, _) in axes.items() if value is not None]
        self.note = f"Drawn: {', '.join(named if len(forms) > 1 else named[:-1])}."
        if self.skipped:
            self.note += f" {self.skipped} of its checkpoints do not fit and are not drawn."
        others = {axis: [str(other) for other in every if other != value] for axis, (value, every) in axes.items()}
        listed = "; ".join(f"{axis} {', '.join(values)}" for axis, values in others.items() if values)
        count = len(study.models) - len(kept)
        self.rest = f"+ {count} checkpoints not drawn: {listed}" if count else ""

    def _place(self, model: Model) -> None:
        """Give a checkpoint the next free row, and its first child the same, from the top down."""
        if self.rows >= MOST_ROWS:
            self.skipped += 1 + sum(1 for _ in self._descendants(model))
            return
        if model.kind == "cpt":
            self.rows += 0.4
        row = self.rows
        self.places[model.path] = (COLUMNS[model.kind], row)
        self.drawn.append(model)
        # The first child is drawn in this row: a task of the base itself, not a CPT, which has tasks of its own.
        children = self.children.get(model.path, [])
        for child in sorted(children, key=lambda child: ("sft", "rl", "cpt").index(child.kind)):
            self._place(child)
        self.rows = max(self.rows, row + 1)

    def _descendants(self, model: Model) -> Iterator[Model]:
        for child in self.children.get(model.path, []):
            yield child
            yield from self._descendants(child)

    def draw(self, axes: Axes) -> None:
        for model in self.drawn:
            self._link(axes, model)
        for model in self.drawn:
            self._box(axes, model)
        for kind, x in COLUMNS.items():
            title = "backbone" if kind == "base" else KIND_NAMES[kind]
            axes.text(x, -0.75, title, color=style.STAGE_COLOURS[kind], fontweight="bold")
        axes.text(COLUMNS["base"], self.rows + 0.3, self.rest, color=style.GREY, va="center")

    def _link(self, axes: Axes, model: Model) -> None:
        """Join a checkpoint to the rung that it was resumed from, or else to its parent."""
        x1, y1 = self.places[model.path]
        if model.previous in self.places:
            x0, y0 = self.places[model.previous]
            x = x0 + 0.2
            axes.plot([x, x], [y0 + 0.33, y1 - 0.33], color=style.GREY, linestyle=":", linewidth=1.5)
        elif model.parent in self.places:
            x0, y0 = self.places[model.parent]
            right = x0 + BOX
            turn = right + 0.3
            axes.plot([right, turn, turn, x1], [y0, y0, y1, y1], color=style.GREY, linewidth=1, zorder=0)

    def _box(self, axes: Axes, model: Model) -> None:
        x, y = self.places[model.path]
        colour = style.STAGE_COLOURS[model.kind]
        axes.text(x + BOX / 2, y, _name(model), ha="center", va="center_baseline", zorder=3)
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


def _name(model: Model) -> str:
    if model.kind == "base":
        return model.backbone
    if model.kind == "cpt":
        return str(model.cpt)
    return f"{model.recipe} e{model.epochs}"
