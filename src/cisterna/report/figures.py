"""Draws the tables of ``cisterna.report.gather`` for a reader who has not seen the code.

Figures are SVG and PNG, 10 inches wide (about 1000 px in a browser); the results table is one HTML
page that needs no other file. The same tables give the same bytes. Colours are those of Okabe and
Ito (jfly.uni-koeln.de/color), which colour-blind readers can tell apart; marks, line styles and
words repeat what colour says.

With several seeds a mark is the mean over seeds and its interval the mean of their intervals: it
speaks of the test examples, not of the luck of training, which small dots (one a seed) show.

Not for computing metrics of a model (``cisterna.scoring.metrics``).
"""

import html
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.colors
import matplotlib.patches
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cisterna import report
from cisterna.artifacts import files
from cisterna.study import Model, Study

WIDTH = 10.0  # inches
INK, FAINT, PALE = "#222222", "#767676", "#ececec"
SPLITS = {"id": "in-domain (ID)", "ood": "out-of-domain (OOD)"}
SPLIT_COLOURS = {"id": "#0072B2", "ood": "#D55E00"}
SPLIT_MARKS = {"id": "o", "ood": "s"}
STAGE_COLOURS = {"base": "#6b6b6b", "cpt": "#E69F00", "sft": "#009E73", "rl": "#AA4499"}
LABEL_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#0072B2", "#D55E00")
LINES: tuple[Any, ...] = ("-", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
BASELINES = {"majority": "majority", "knn": "k-NN", "logistic": "logistic"}
METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "mcc": "MCC",
}
TERM_METRICS = {  # of tasks whose answers are sets of terms
    "f1_micro": "micro F1",
    "precision_micro": "micro precision",
    "recall_micro": "micro recall",
    "accuracy": "exact sets",
}
STAGES = ["backbone", "sequences", "cpt", "sft", "sft_epochs", "rl", "rl_epochs"]
FORMS = {"tokens": "tokens", "features": "features", "both": "both forms"}
FORM_LINES: dict[str, Any] = {"tokens": "-", "features": "--", "both": ":"}
FORM_DASHES = {"tokens": "──", "features": "╌╌", "both": "····"}  # the same lines, as letters
FORM_COLOURS = {"tokens": "#555555", "features": "#009E73", "both": "#AA4499"}
RUN_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#E69F00", "#56B4E9", "#555555")
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "cisterna",
    "svg.fonttype": "path",
}
_GLYPHS = {("o", False): "○", ("o", True): "●", ("s", False): "□", ("s", True): "■"}
_KINDS = {"base": "base", "cpt": "CPT", "sft": "SFT", "rl": "RL"}
PANELS = 4  # tasks side by side
ROWS_OF_TREE = 60  # above this the tree counts what it does not draw


@dataclass(frozen=True)
class Tag:
    """A word at the right edge of a panel, beside the value it names."""

    value: float
    text: str
    colour: str
    bold: bool = False


@dataclass(frozen=True)
class Row:
    """A row of the results table; ``numbers`` has a row a split and metric."""

    name: str
    form: str
    kind: str
    numbers: pd.DataFrame


def figures(study: Study, tables: Path, output: Path) -> None:
    """Write the figures of ``cisterna.report.FIGURES`` (.svg, .png) and the results table.

    ``tables`` is the folder that ``cisterna.report.gather`` wrote, ``output`` is a folder. A figure
    about something that the study does not have is written, and says so.
    """
    everything = _formed(pd.read_parquet(tables / report.METRICS))
    everything = everything[everything.group.isna()]
    cells = pd.read_parquet(tables / report.CELLS)
    perplexity = everything[everything.metric == "perplexity"]
    table = _means(everything[everything.metric != "perplexity"], study.tasks)
    paired = _means(_formed(pd.read_parquet(tables / report.GAINS)), study.tasks)
    rewards = _formed(pd.read_parquet(tables / report.REWARDS))
    drawings: dict[str, Callable[[], Figure]] = {
        "sft_accuracy": lambda: sft_ladder(table, "accuracy"),
        "sft_balanced_accuracy": lambda: sft_ladder(table, "balanced_accuracy"),
        "rl_gain": lambda: rl_gain(paired),
        "rl_reward": lambda: rl_reward(_last_rungs(rewards, study), study.tasks),
        "generalization_gap": lambda: generalization_gap(table),
        "label_prior": lambda: label_prior(table),
        "sequences": lambda: sequences(table),
        "sweeps": lambda: sweeps(table, study),
        "lineage": lambda: lineage(study),
    }
    output.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for name in report.FIGURES:
            _save(drawings[name](), output / name)
    page = results_table(table, paired, perplexity, cells, study.name)
    _replace(output / report.TABLE, lambda path: path.write_text(page, encoding="utf-8"))


def sft_ladder(table: pd.DataFrame, metric: str) -> Figure:
    """A metric against SFT epochs: a row a task, form and ladder, ID left, OOD right, baselines thin."""
    if not (table.kind == "sft").any():
        return _nothing("This study has no SFT stage.")
    numbers = _chosen(table, metric)
    shown = numbers[(numbers.rl == "none") & (numbers.kind != "baseline")]
    ladders = _long(shown[shown.kind == "sft"], ["task", "backbone", "sequences", "sft"])
    if not ladders:
        return _nothing(f"No task of this study has a {METRICS[metric]}: their answers are sets of terms.")
    names = _Names(shown)
    right = _room(names.cpt(cpt) for cpt in shown.cpt.unique())
    figure, panels = _grid([1.85] * len(ladders), 2, 0.8, right + 0.45, right, gap=names.gap)
    for row, (task, backbone, form, sft) in zip(panels, ladders, strict=True):
        mine = _rows(shown, task=task, backbone=backbone, sequences=form, sft=(sft, "none"))
        variants = [cpt for (cpt,) in _distinct(mine[mine.kind == "sft"], ["cpt"])]
        baselines = numbers[numbers.task == task]
        tags: dict[str, list[Tag]] = {}
        for axes, split in zip(row, SPLITS, strict=True):
            here = mine[mine.split == split]
            colour = SPLIT_COLOURS[split]
            tags[split] = list(_baselines(axes, baselines[baselines.split == split], colour))
            for position, cpt in enumerate(variants):
                line = here[here.cpt == cpt].sort_values("sft_epochs")
                x = _log(line.sft_epochs) + 0.09 * (position - (len(variants) - 1) / 2)
                _series(axes, x, line, colour, SPLIT_MARKS[split], _style(cpt, variants))
                text = f"{_GLYPHS[SPLIT_MARKS[split], cpt != 'none']} {names.cpt(cpt)}"
                tags[split].append(Tag(line.value.iloc[-1], text, colour, True))
            _epochs(axes, here.sft_epochs)
            title = " · ".join([task, *names.form(form), *names.few(backbone=backbone, sft=sft), SPLITS[split]])
            axes.set_title(f"{title}, {_size(here)}", loc="left", pad=names.pad)
            axes.grid(axis="y", color=PALE)
        _share_y(row)
        for axes, split in zip(row, SPLITS, strict=True):
            _tag(axes, tags[split])
        row[0].set_ylabel(_word(mine))
    for axes in panels[-1]:
        axes.set_xlabel("SFT epochs (0 = the parent checkpoint, before SFT)")
    words = " and ".join(dict.fromkeys(_word(shown[shown.task == task]) for task, *_ in ladders))
    _head(
        figure,
        f"{words[0].upper()}{words[1:]} against SFT epochs",
        "Open marks, solid: without CPT; filled marks, broken: with CPT. Dotted: baselines fitted "
        f"on the same training split.\n{_note(table)}",
    )
    return figure


def rl_gain(paired: pd.DataFrame) -> Figure:
    """What RL adds to the checkpoint it starts from, split in label-prior shift and skill."""
    tasks = [task for (task,) in _distinct(paired, ["task"])]
    if not tasks:
        return _nothing("This study has no RL stage.")
    labels = {"accuracy": "accuracy gain", "prior_accuracy": "= shift of the label prior", "skill": "+ skill"}
    terms = {"f1_micro": "micro F1 gain", "precision_micro": "micro precision", "recall_micro": "micro recall"}
    parts = {task: terms if task in _of_terms(paired) else labels for task in tasks}
    starts = {task: _distinct(paired[paired.task == task], STAGES) for task in tasks}
    heights = [0.55 + 0.4 * len(starts[task]) for task in tasks]
    names = _Names(paired)
    left = 0.1 + _room(names.row(start) for some in starts.values() for start in some)
    figure, panels = _grid(heights, 3, left, between=0.25, right=0.25, gap=0.85, top=1.5)
    shown = pd.concat([paired[(paired.task == task) & paired.metric.isin(parts[task])] for task in tasks])
    edge = 1.08 * max(shown.low.abs().max(), shown.high.abs().max(), 0.02)
    for row, task in zip(panels, tasks, strict=True):
        mine = shown[shown.task == task]
        y = np.arange(len(starts[task]))[::-1]
        sizes = _sizes(mine)
        for place, (axes, (metric, head)) in enumerate(zip(row, parts[task].items(), strict=True)):
            for split, shift in zip(SPLITS, (0.17, -0.17), strict=True):
                points = mine[(mine.metric == metric) & (mine.split == split)]
                points = points.set_index(STAGES).loc[starts[task]].reset_index()
                _points(axes, points, y + shift, split)
            axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
            for stripe in y[::2]:
                axes.axhspan(stripe - 0.5, stripe + 0.5, color="#f6f6f6", zorder=0)
            axes.set_xlim(-edge, edge)
            axes.set_ylim(-0.6, len(y) - 0.4)
            axes.set_yticks(y, [])
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
            axes.grid(axis="x", color=PALE)
            axes.set_title(head, loc="left", color=FAINT if place else INK)
        row[0].set_yticklabels([names.row(start) for start in starts[task]])
        _above(row[0], f"{task}  ({sizes})")
    for axes in panels[-1]:
        axes.set_xlabel("change against the parent")
    _head(
        figure,
        "What RL adds to the checkpoint it starts from",
        "RL minus parent on the same examples, paired 95% bootstrap intervals. Shift of the label "
        "prior: what the new mix of\nanswers would gain if dealt out blindly. Skill: what remains, "
        f"knowledge of the input. {_seeds(paired)}",
    )
    glyphs = {"id": "●", "ood": "■"}
    _key(figure, {f"{glyphs[split]} {SPLITS[split]}": SPLIT_COLOURS[split] for split in SPLITS})
    return figure


def generalization_gap(table: pd.DataFrame) -> Figure:
    """ID minus OOD against SFT epochs, before and after RL, with baselines."""
    gaps = _gaps(table)
    models = gaps[gaps.kind != "baseline"]
    if models.empty:
        return _nothing("No evaluation of a model is there.")
    columns = ["task", "backbone", "sequences", "sft"]
    shown = set(_long(models[models.kind == "sft"], columns))
    ladders = [key for key in _ladders(models, "sequences") if key in shown or key[-1] == "none"]
    terms = _of_terms(table)
    names = _Names(models)
    right = _room(names.cpt(cpt) for cpt in models.cpt.unique())
    figure, panels = _grid([1.85] * len(ladders), 2, 0.8, right + 0.45, right, gap=names.gap)
    for row, (task, backbone, form, sft) in zip(panels, ladders, strict=True):
        mine = _rows(models, task=task, backbone=backbone, sequences=form, sft=(sft, "none"))
        tags: list[list[Tag]] = []
        metrics = TERM_METRICS if task in terms else METRICS
        for axes, metric in zip(row, list(metrics)[:2], strict=True):
            here = mine[mine.metric == metric]
            tags.append(_gap_panel(axes, here, names))
            tags[-1] += _baselines(axes, gaps[(gaps.task == task) & (gaps.metric == metric)], FAINT)
            axes.axhline(0, color=INK, linewidth=0.8)
            _epochs(axes, here.sft_epochs)
            title = " · ".join([task, *names.form(form), *names.few(backbone=backbone, sft=sft), metrics[metric]])
            size = f" ({_size(here)})" if axes is row[0] else ""
            axes.set_title(title + size, loc="left", pad=names.pad)
            axes.grid(axis="y", color=PALE)
        _share_y(row)
        for axes, some in zip(row, tags, strict=True):
            _tag(axes, some)
        row[0].set_ylabel("ID minus OOD")
    for axes in panels[-1]:
        axes.set_xlabel("SFT epochs (0 = before SFT)")
    _head(
        figure,
        "Generalization gap: ID minus OOD",
        "Above 0 the model does better in-domain. Filled marks, broken lines: with CPT. Dotted: "
        "baselines.\n95% intervals of the difference of two independent samples. "
        f"{_seeds(table)}",
    )
    _key(figure, {"● before RL": STAGE_COLOURS["sft"], "◆ after RL": STAGE_COLOURS["rl"]})
    return figure


def label_prior(table: pd.DataFrame) -> Figure:
    """The mix of labels that models answer, beside the mix that is true."""
    shares = table[table.metric.str.startswith(("predicted:", "gold:")) & (table.kind != "baseline")]
    tasks = [task for (task,) in _distinct(shares, ["task"])]
    if not tasks:
        return _nothing("No evaluation of a model on labels is there.")
    stages = {task: _milestones(shares[shares.task == task]) for task in tasks}
    heights = [0.25 + 0.2 * (len(stages[task]) + 1) for task in tasks]
    names = _Names(shares)
    left = 0.1 + _room(names.row(stage) for some in stages.values() for stage in some)
    figure, panels = _grid(heights, 2, left, between=0.45, right=0.35, gap=0.85, top=1.4)
    for row, task in zip(panels, tasks, strict=True):
        mine = shares[shares.task == task]
        labels = [name.removeprefix("gold:") for name in _order(mine.metric) if name[:5] == "gold:"]
        rows = ["gold", *[names.row(stage) for stage in stages[task]]]
        for axes, split in zip(row, SPLITS, strict=True):
            here = mine[mine.split == split]
            gold = here.drop_duplicates("metric").set_index("metric").value
            mixes = [[gold[f"gold:{label}"] for label in labels] + [0.0]]
            values = here.set_index([*STAGES, "metric"]).value
            for stage in stages[task]:
                mixes.append([values[(*stage, f"predicted:{name}")] for name in [*labels, "malformed"]])
            _stacks(axes, np.array(mixes), labels)
            axes.set_yticks(np.arange(len(rows))[::-1], rows if split == "id" else [])
            axes.set_title(f"{task} · {SPLITS[split]}, {_size(here)}", loc="left", pad=20)
        row[0].get_yticklabels()[0].set_fontweight("bold")
        row[0].legend(
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=len(labels) + 1,
            frameon=False,
            fontsize=8.5,
            handlelength=1.1,
            columnspacing=1.2,
            borderpad=0.1,
            borderaxespad=0.1,
        )
    for axes in panels[-1]:
        axes.set_xlabel("share of the examples")
    _head(
        figure,
        "Which labels the models answer, against the gold labels",
        "Dotted lines continue the gold shares. A bar that moves while skill does not is a shift "
        "of the label prior, not\nknowledge. Of each SFT ladder the first and the last rung. "
        f"{_seeds(table, dots=False)}",
    )
    return figure


def sequences(table: pd.DataFrame) -> Figure:
    """Accuracy (of terms micro F1) of the forms of a task against SFT epochs, all else the same: ID left, OOD right."""
    numbers = _chosen(table, "accuracy")
    models = numbers[numbers.kind != "baseline"]
    ladders = {key: _ladder(models, *key) for key in _ladders(models, "cpt")}
    forms = {key: _order(_rows(ladder, kind=("sft", "rl")).sequences) for key, ladder in ladders.items()}
    compared = [key for key in ladders if len(forms[key]) > 1]
    if not compared:
        return _nothing("No task of this study has its sequences in more than one form.")
    names = _Names(models)
    right = _room(f"● {_form_words(form)}" for key in compared for form in forms[key])
    figure, panels = _grid([2.1] * len(compared), 2, 0.8, right + 0.45, right, gap=0.85, top=1.6)
    for row, key in zip(panels, compared, strict=True):
        (task, backbone, cpt, sft), mine = key, ladders[key]
        tags: dict[str, list[Tag]] = {}
        for axes, split in zip(row, SPLITS, strict=True):
            here = mine[mine.split == split]
            baselines = numbers[(numbers.task == task) & (numbers.split == split)]
            tags[split] = [*_forms_panel(axes, here, forms[key]), *_baselines(axes, baselines, FAINT)]
            _epochs(axes, here.sft_epochs)
            axes.set_xlim(left=-1.5)
            axes.set_title(f"{SPLITS[split]}, {_size(here)}", loc="left")
            axes.grid(axis="y", color=PALE)
        _share_y(row)
        for axes, split in zip(row, SPLITS, strict=True):
            _tag(axes, tags[split])
        row[0].set_ylabel(_word(mine))
        encoders = [name for name in _order(mine.encoder) if name != "none"]
        where = [names.cpt(cpt), *names.few(backbone=backbone, sft=sft), f"encoder {', '.join(encoders)}"]
        _above(row[0], f"{task}  ({' · '.join(where)})")
    for axes in panels[-1]:
        axes.set_xlabel("SFT epochs (0 = the parent checkpoint, which reads tokens)")
    _head(
        figure,
        "Sequences as tokens and as features of an encoder",
        "Same task, examples, CPT, SFT recipe and seeds; only the form of the sequences differs. Dotted: baselines on "
        f"the raw sequences.\n{_note(table)}",
    )
    _key(figure, {"● SFT": FAINT} | ({"◆ after RL": FAINT} if (models.rl != "none").any() else {}))
    return figure


def sweeps(table: pd.DataFrame, study: Study) -> Figure:
    """Every trained stage of every sweep: a row a sweep, a panel a task, balanced accuracy (of terms micro F1)."""
    numbers = pd.concat([table[table.metric == "balanced_accuracy"], table[table.metric == "f1_micro"]])
    numbers = _rows(numbers, kind=("sft", "rl"))
    rows = [
        (sweep, tasks[start : start + PANELS], mine)
        for sweep, mine in _swept(numbers, study)
        for tasks in [_order(mine.task)]
        for start in range(0, len(tasks), PANELS)
    ]
    if not rows:
        return _nothing("The lineages of this study name no sweep.")
    names = _Names(numbers)
    stages = [_distinct(_rows(mine, task=tuple(shown)), STAGES) for _, shown, mine in rows]
    left = 0.1 + _room(names.row(stage) for some in stages for stage in some)
    heights = [0.3 + 0.21 * len(some) for some in stages]
    columns = max(len(tasks) for _, tasks, _ in rows)
    figure, panels = _grid(heights, columns, left, between=0.2, right=0.25, gap=0.95, top=1.45)
    low, high = numbers.low.min() - 0.02, numbers.high.max() + 0.02
    for row, (sweep, tasks, mine), some in zip(panels, rows, stages, strict=True):
        y = np.arange(len(some))[::-1]
        for axes, task in itertools.zip_longest(row, tasks):
            if task is None:
                axes.set_axis_off()
                continue
            for split, shift in zip(SPLITS, (0.13, -0.13), strict=True):
                points = _rows(mine, task=task, split=split).set_index(STAGES)
                found = [place for place, stage in zip(y, some, strict=True) if stage in points.index]
                points = points.loc[[stage for stage in some if stage in points.index]]
                _points(axes, points, np.array(found) + shift, split)
            for stripe in y[::2]:
                axes.axhspan(stripe - 0.5, stripe + 0.5, color="#f6f6f6", zorder=0)
            axes.set_xlim(low, high)
            axes.set_ylim(-0.6, len(y) - 0.4)
            axes.set_yticks(y, [names.row(stage) for stage in some] if axes is row[0] else [])
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
            axes.grid(axis="x", color=PALE)
            axes.set_title(task, loc="left")
        _above(row[0], sweep)
    _head(
        figure,
        "Every sweep, every stage",
        "Balanced accuracy, which a shift of the label prior alone does not raise; of sets of terms micro F1.\n"
        f"{_note(table)}",
    )
    glyphs = {"id": "●", "ood": "■"}
    _key(figure, {f"{glyphs[split]} {SPLITS[split]}": SPLIT_COLOURS[split] for split in SPLITS})
    return figure


def rl_reward(rewards: pd.DataFrame, tasks: Sequence[str]) -> Figure:
    """Reward against step while RL trained: a panel a task, a line a run."""
    tasks = [task for task in tasks if task in set(rewards.task)]
    if not tasks:
        return _nothing("This study has no RL stage.")
    runs = {task: _distinct(rewards[rewards.task == task], STAGES) for task in tasks}
    names = _Names(rewards)
    colours: dict[str, str] = {}
    for run in (run for some in runs.values() for run in some):
        colours.setdefault(names.stages(run), RUN_COLOURS[len(colours) % len(RUN_COLOURS)])
    right = 0.7 + _room(names.row(run) for some in runs.values() for run in some)
    heights = [max(1.7, 0.17 * len(some)) for some in runs.values()]
    figure, panels = _grid(heights, 1, 0.8, 0, right, gap=0.62)
    for (axes,), (task, some) in zip(panels, runs.items(), strict=True):
        mine = rewards[rewards.task == task]
        tags = []
        for run in some:
            log = _rows(mine, **dict(zip(STAGES, run, strict=True)))
            colour, form = colours[names.stages(run)], log.sequences.iloc[0]
            first, last, end = _reward_line(axes, log, colour, FORM_LINES[_kind(form)])
            tags.append(Tag(end, f"{first:.2f} → {last:.2f}  {names.row(run)}", colour))
        lengths = mine.groupby("model").step.agg(["max", "size"])
        steps, values = (_span(lengths[column]) for column in lengths)
        axes.set_title(f"{task} · {steps} steps, logged {values} times", loc="left")
        axes.set_xlim(0, lengths["max"].max())
        axes.set_ylabel("mean reward")
        axes.grid(axis="y", color=PALE)
        _tag(axes, tags)
    panels[-1, 0].set_xlabel("training step")
    seeds = rewards.seed.nunique()
    several = f"Thick lines and numbers: means of {seeds} training seeds." if seeds > 1 else "One training seed."
    _head(
        figure,
        "Reward while RL trains",
        "Mean reward of the completions sampled from train. Thin: as logged; thick: centred moving mean over a quarter "
        f"of the steps.\nNumbers: mean of the first → of the last quarter of the steps. {several}",
    )
    forms = [form for form in FORMS if form in set(map(_kind, rewards.sequences))]
    if len(forms) > 1:
        _key(figure, {f"{FORM_DASHES[form]} {FORMS[form]}": FAINT for form in forms})
    return figure


def lineage(study: Study) -> Figure:
    """The family tree of the study's checkpoints: one task drawn out, the others counted."""
    drawn = _Tree(study)
    row = 0.34  # inches
    height = 1.35 + row * (drawn.rows + 1.2)
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, WIDTH)
    axes.set_ylim((height - 1.35) / row, -1.35 / row)
    drawn.draw(axes)
    kinds = [model.kind for model in study.models]
    counts = [f"{kinds.count(kind)} {word}" for kind, word in _KINDS.items() if kind in kinds]
    _head(
        figure,
        f"Lineage: {len(kinds)} checkpoints ({', '.join(counts)})",
        f"{drawn.note}\nSolid: trained from; dotted: the same run, resumed from the rung before.",
    )
    return figure


def results_table(
    table: pd.DataFrame, paired: pd.DataFrame, perplexity: pd.DataFrame, cells: pd.DataFrame, study: str
) -> str:
    """One HTML page: what is missing, every model x task x split, baselines beside, what RL added, perplexities."""
    body = [_missing(cells)]
    terms = _of_terms(table)
    names = _Names(table[table.kind != "baseline"])
    for (task,) in _distinct(table, ["task"]):
        mine = table[table.task == task]
        sizes = _sizes(mine)
        body.append(f"<h2>{html.escape(task)} <small>{mine.modality.iloc[0]}; {sizes}</small></h2>")
        rows = []
        for (model, kind, *stage), numbers in mine.groupby(["model", "kind", *STAGES], sort=False):
            name = _baseline(model) if kind == "baseline" else names.stages(stage)
            rows.append(Row(name, _form(numbers), kind, numbers))
        first = [*BASELINES.values()]
        rows.sort(key=lambda row: first.index(row.name) if row.name in first else len(first))
        body.append(_html_rows(rows, TERM_METRICS if task in terms else METRICS))
    if len(paired):
        body.append("<h1>What RL adds: RL minus the checkpoint it started from</h1>")
        body.append(
            "<p>Differences on the same examples with paired intervals. Accuracy gain = prior "
            "shift + skill: a gain that is all prior shift is habit, not knowledge.</p>"
        )
        columns = {
            "accuracy": "accuracy",
            "prior_accuracy": "prior shift",
            "skill": "skill",
            "balanced_accuracy": "balanced accuracy",
            "mcc": "MCC",
        }
        for (task,) in _distinct(paired, ["task"]):
            mine = paired[paired.task == task]
            starts = [
                Row(names.stages(stage), _form(row), "rl", row) for stage, row in mine.groupby(STAGES, sort=False)
            ]
            shown = TERM_METRICS if task in terms else columns
            body.append(f"<h2>{html.escape(task)}</h2>" + _html_rows(starts, shown, "+.3f"))
    if len(perplexity):
        body.append("<h1>Perplexity on the held-out part of each corpus</h1>")
        body.append("<p>Per token; bootstrap over blocks. An untrained model is near the size of its vocabulary.</p>")
        body.append(_perplexity_rows(perplexity))
    return PAGE.format(
        study=html.escape(study),
        note=html.escape(f"95% bootstrap intervals over the test examples. {_seeds(table, dots=False)}"),
        body="\n".join(body),
    )


PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Results of study {study}</title>
<style>
body {{ font: 13px/1.45 system-ui, sans-serif; color: #222; max-width: 1240px;
  margin: 1.5em auto; padding: 0 1em; }}
h1 {{ font-size: 1.35em; margin-top: 1.6em; }}
h2 {{ font-size: 1.1em; margin: 1.6em 0 .4em; }}
small {{ font-weight: normal; color: #666; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .22em .5em; text-align: right; white-space: nowrap;
  border-bottom: 1px solid #e6e6e6; }}
th:first-child, td:first-child, .form {{ text-align: left; }}
thead th {{ border-bottom: 1px solid #888; }}
.id, .ood {{ border-left: 2px solid #bbb; }}
td span {{ color: #666; font-size: .82em; margin-left: .35em; }}
tr.baseline {{ background: #f5f5f5; }}
.missing {{ border: 2px solid #b00020; padding: .2em 1em 1em; }}
.reason {{ text-align: left !important; white-space: normal; overflow-wrap: anywhere; }}
tr.rl td:first-child {{ color: #882e7c; }}
</style></head><body>
<h1>Results of study {study}</h1>
<p>{note} Shaded rows are baselines fitted on the same training split. A malformed output counts as
wrong. No best value is marked: neither ID nor OOD may choose a checkpoint.</p>
{body}
</body></html>
"""


def _missing(cells: pd.DataFrame) -> str:
    """How many of the cells that the config asks for are there; of the others each with its reason, equal ones once."""
    lost = cells[cells.state != "done"]
    if lost.empty:
        return f"<p>All {len(cells)} results that the config asks for are there.</p>"
    body = []
    for (state, reason), mine in lost.groupby(["state", "reason"], sort=False):
        rows = mine[["cell", "model", "task"]].to_numpy()
        names = "".join(f"<li>{html.escape(f'{cell} {model}, {task}')}</li>" for cell, model, task in rows)
        log = mine.log.dropna()
        where = f"<br><small>results/{html.escape(log.iloc[0])}</small>" if len(log) else ""
        few = f"{len(mine)} result{'s' if len(mine) > 1 else ''}"
        body.append(
            f'<tr><td>{state}</td><td class="reason">{html.escape(str(reason))}{where}</td>'
            f'<td class="reason"><details><summary>{few}</summary><ul>{names}</ul></details></td></tr>'
        )
    return (
        f'<div class="missing"><p><b>{len(lost)} of {len(cells)} results are missing.</b> The study is not complete: '
        "tables and figures show what is there, and means over seeds are of the seeds that are there.</p>"
        '<table><thead><tr><th></th><th class="reason">why</th><th class="reason">what</th></tr></thead>'
        f"<tbody>{chr(10).join(body)}</tbody></table></div>"
    )


def _perplexity_rows(perplexity: pd.DataFrame) -> str:
    corpora = list(dict.fromkeys(perplexity.task))
    head = "".join(f"<th>{html.escape(corpus)}</th>" for corpus in corpora)
    body = []
    for model, frame in perplexity.groupby("model", sort=False):
        values = frame.set_index("task")
        cells = "".join(
            f"<td>{cell.value:.1f}<span>{cell.low:.1f} to {cell.high:.1f}</span></td>"
            for cell in (values.loc[corpus] for corpus in corpora)
        )
        body.append(f"<tr><td>{html.escape(str(model))}</td>{cells}</tr>")
    return (
        f'<div class="wide"><table><thead><tr><th>model</th>{head}</tr></thead>'
        f"<tbody>{chr(10).join(body)}</tbody></table></div>"
    )


def _form(frame: pd.DataFrame) -> str:
    """Words for the form of a model's sequences, with the encoder; none for a baseline."""
    form, encoder = frame.sequences.iloc[0], frame.encoder.iloc[0]
    if form == "none":
        return ""
    return FORMS[form] if encoder == "none" else f"{FORMS[_kind(form)]} ({encoder})"


def _html_rows(rows: Sequence[Row], columns: dict[str, str], number: str = ".3f") -> str:
    """A table with a row a model and the metrics of both splits side by side.

    The form has a column where a row has another than tokens.
    """
    forms = any(row.form not in ("", "tokens") for row in rows)
    head = "".join(
        f"<th{_edge(split, position)}>{name}</th>" for split in SPLITS for position, name in enumerate(columns.values())
    )
    groups = "".join(
        f'<th class="{split}" colspan="{len(columns)}" style="text-align:left">{text}</th>'
        for split, text in SPLITS.items()
    )
    blank, sequences = ("<th></th>", '<th class="form">sequences</th>') if forms else ("", "")
    lines = [f"<tr><th></th>{blank}{groups}</tr><tr><th>model</th>{sequences}{head}</tr>"]
    body = []
    for row in rows:
        values = {(cell["split"], cell["metric"]): cell for cell in row.numbers.to_dict("records")}
        cells = f'<td class="form">{html.escape(row.form)}</td>' if forms else ""
        for split in SPLITS:
            for position, metric in enumerate(columns):
                cell = values[split, metric]
                cells += (
                    f"<td{_edge(split, position)}>{cell['value']:{number}}"
                    f"<span>{cell['low']:.2f} to {cell['high']:.2f}</span></td>"
                )
        body.append(f'<tr class="{row.kind}"><td>{html.escape(row.name)}</td>{cells}</tr>')
    return f'<div class="wide"><table><thead>{"".join(lines)}</thead><tbody>{chr(10).join(body)}</tbody></table></div>'


def _edge(split: str, position: int) -> str:
    """The attribute that draws a line at the left of a split's first column."""
    return f' class="{split}"' if position == 0 else ""


class _Names:
    """Words for stages: a name is said only where the study has more than one to tell apart."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.several = {column: len(set(frame[column]) - {"none"}) > 1 for column in ("backbone", "sft", "rl")}
        forms = set(frame.sequences) - {"none", "tokens"}
        self.pad = 16 if forms else 6  # points between a panel and its title: long titles pass above the tags
        self.gap = 0.8 if forms else 0.62  # inches between rows of panels with such titles

    def few(self, **names: str) -> list[str]:
        return [name for column, name in names.items() if self.several[column]]

    def cpt(self, cpt: str) -> str:
        return "no CPT" if cpt == "none" else f"CPT {cpt}"

    def form(self, form: str) -> list[str]:
        return [] if form == "tokens" else [_form_words(form)]

    def row(self, values: Sequence[Any]) -> str:
        """Words for values of the columns ``STAGES``, the form first."""
        return " · ".join([*self.form(values[STAGES.index("sequences")]), self.stages(values)])

    def stages(self, values: Sequence[Any]) -> str:
        """Words for values of the columns ``STAGES``, without the form."""
        stage = dict(zip(STAGES, values, strict=True))
        text = self.start(values)
        if stage["sft"] == stage["rl"] == "none":
            return f"{text} · before SFT"
        if stage["rl"] != "none":
            text += " → " + " ".join(["RL", *self.few(rl=stage["rl"]), f"e{stage['rl_epochs']}"])
        return text

    def start(self, values: Sequence[Any]) -> str:
        """Words for what is before RL."""
        stage = dict(zip(STAGES, values, strict=True))
        words = [*self.few(backbone=stage["backbone"]), self.cpt(stage["cpt"])]
        if stage["sft"] != "none":
            words.append(" ".join(["SFT", *self.few(sft=stage["sft"]), f"e{stage['sft_epochs']}"]))
        return " · ".join(words)


class _Tree:
    """Boxes in rows: a row for each rung of a ladder, RL beside the checkpoint it started from."""

    COLUMNS = (0.3, 2.6, 4.9, 7.2)
    BOX = 1.7

    def __init__(self, study: Study) -> None:
        self.boxes: list[tuple[float, float, str, str]] = []  # x, row, kind, text
        self.links: list[tuple[str, str, str]] = []  # from, to, style
        self.places: dict[str, tuple[float, float]] = {}
        self.rows = 0.0
        self.skipped = 0
        owned = [model for model in study.models if model.task is not None]
        first = owned[0] if owned else study.models[0]
        self.kept = [
            model
            for model in study.models
            if model.backbone == first.backbone
            and model.task in (None, first.task)
            and model.seed in (None, first.seed)
            and (model.task is None or _form_of(model) == _form_of(first))
        ]
        self.children: dict[str | None, list[Model]] = {}
        for model in self.kept:
            self.children.setdefault(model.parent, []).append(model)
        for root in self.children[None]:
            self._place(root)
        forms = _order(map(_form_of, owned))
        said = [f"{word} {name}" for word, name in self._where(first) if name is not None]
        said = said[: None if len(forms) > 1 else -1]
        self.note = f"Drawn: {', '.join(said)}."
        if self.skipped:
            self.note += f" {self.skipped} of its checkpoints do not fit and are not drawn."
        rest = len(study.models) - len(self.kept)
        others = [
            f"{word} {', '.join(map(str, names))}"
            for (word, mine), every in zip(
                self._where(first), (study.tasks, study.backbones, study.seeds, forms), strict=True
            )
            if (names := [name for name in every if name != mine])
        ]
        self.rest = f"+ {rest} checkpoints not drawn: {'; '.join(others)}" if rest else ""

    @staticmethod
    def _where(model: Model) -> tuple[tuple[str, Any], ...]:
        return ("task", model.task), ("backbone", model.backbone), ("seed", model.seed), ("form", _form_of(model))

    def _place(self, model: Model) -> None:
        """Give a checkpoint the next free row, or its first child's row, from the top down."""
        if self.rows >= ROWS_OF_TREE:
            self.skipped += 1 + sum(1 for _ in self._below(model))
            return
        column = list(STAGE_COLOURS).index(model.kind)
        if model.kind == "cpt":
            self.rows += 0.4
        row = self.rows
        self.places[model.path] = (self.COLUMNS[column], row)
        self.boxes.append((self.COLUMNS[column], row, model.kind, self._text(model)))
        if model.previous in self.places:
            self.links.append((model.previous, model.path, "resumed"))
        elif model.parent in self.places:
            self.links.append((model.parent, model.path, "trained"))
        children = self.children.get(model.path, [])
        # What continues on the same row comes first: a base's own tasks before its CPTs.
        for child in sorted(children, key=lambda child: ("sft", "rl", "cpt").index(child.kind)):
            self._place(child)
        self.rows = max(self.rows, row + 1)

    def _below(self, model: Model) -> Iterator[Model]:
        for child in self.children.get(model.path, []):
            yield child
            yield from self._below(child)

    def _text(self, model: Model) -> str:
        if model.kind == "base":
            return model.backbone
        if model.kind == "cpt":
            return str(model.cpt)
        return f"{model.sft if model.kind == 'sft' else model.rl} e{model.epochs}"

    def draw(self, axes: Axes) -> None:
        for start, end, style in self.links:
            (x0, y0), (x1, y1) = self.places[start], self.places[end]
            if style == "resumed":
                x = x0 + 0.2
                axes.plot([x, x], [y0 + 0.33, y1 - 0.33], color=FAINT, linestyle=":", linewidth=1.5)
                continue
            right = x0 + self.BOX
            turn = right + 0.3
            axes.plot([right, turn, turn, x1], [y0, y0, y1, y1], color=FAINT, linewidth=1, zorder=0)
        for x, y, kind, text in self.boxes:
            axes.text(x + self.BOX / 2, y, text, ha="center", va="center_baseline", zorder=3)
            axes.add_patch(
                mpl.patches.FancyBboxPatch(
                    (x, y - 0.33),
                    self.BOX,
                    0.66,
                    boxstyle="round,pad=0,rounding_size=0.1",
                    facecolor=[*mpl.colors.to_rgb(STAGE_COLOURS[kind]), 0.18],
                    edgecolor=STAGE_COLOURS[kind],
                    linewidth=1.2,
                )
            )
        for x, (kind, colour) in zip(self.COLUMNS, STAGE_COLOURS.items(), strict=True):
            head = {"base": "backbone"}.get(kind, _KINDS[kind])
            axes.text(x, -0.75, head, color=colour, fontweight="bold")
        axes.text(self.COLUMNS[0], self.rows + 0.3, self.rest, color=FAINT, va="center")


def _means(frame: pd.DataFrame, tasks: Sequence[str]) -> pd.DataFrame:
    """Means over ``seeds`` seeds; ``each`` holds their values, ``model`` names baselines only.

    Tasks come in the order of ``tasks``, their forms in that of ``FORMS``; baselines, which have no
    form, have the form and the encoder "none".
    """
    frame = frame.assign(model=frame.model.where(frame.kind == "baseline", ""))
    frame = frame.fillna({"sequences": "none", "encoder": "none"})
    forms = sorted(set(frame.sequences) - {"none"}, key=lambda form: ([*FORMS].index(_kind(form)), form))
    keys = ["model", "kind", "task", "modality", "encoder", *STAGES, "split", "metric"]
    means = (
        frame.groupby(keys, sort=False)
        .agg(
            value=("value", "mean"),
            low=("low", "mean"),
            high=("high", "mean"),
            n=("n", "first"),
            seeds=("seed", "nunique"),
            each=("value", tuple),
        )
        .reset_index()
    )
    places = {"task": [*tasks], "sequences": [*forms, "none"]}
    return means.sort_values(list(places), key=lambda names: names.map(places[str(names.name)].index), kind="stable")


def _formed(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with the encoder's name behind the form of the sequences, in tasks that have more than one encoder."""
    several = [task for task, names in frame.groupby("task").encoder if len(set(names.dropna())) > 1]
    named = frame.task.isin(several) & frame.encoder.notna()
    return frame.assign(sequences=frame.sequences.mask(named, frame.sequences + " " + frame.encoder))


def _kind(form: str) -> str:
    """A form without the encoder that `_formed` wrote behind it."""
    return form.partition(" ")[0]


def _form_words(form: str) -> str:
    kind, _, encoder = form.partition(" ")
    return f"{FORMS[kind]} of {encoder}" if encoder else FORMS[kind]


def _form_of(model: Model) -> str:
    return f"{model.sequences} of {model.encoder}" if model.encoder else str(model.sequences)


def _of_terms(table: pd.DataFrame) -> set[str]:
    """The tasks whose answers are sets of terms."""
    return set(table.task[table.metric == next(iter(TERM_METRICS))])


def _chosen(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows of a metric of labels; of tasks whose answers are sets of terms micro F1 in the place of accuracy."""
    terms = table.task.isin(_of_terms(table))
    mine = table.metric == metric
    if metric == "accuracy":
        return table[(mine & ~terms) | (terms & (table.metric == next(iter(TERM_METRICS))))]
    return table[mine]


def _word(rows: pd.DataFrame) -> str:
    """The name of the one metric of some rows."""
    return (TERM_METRICS | METRICS)[rows.metric.iloc[0]]


def _long(sft: pd.DataFrame, columns: list[str]) -> list[tuple[Any, ...]]:
    """Values of ``columns``, the last of which is the SFT recipe, of the recipes with two rungs or more.

    A task that has none is there with all its recipes.
    """
    rungs = Counter(tuple(key) for *key, _ in _distinct(sft, [*columns, "sft_epochs"]))
    tasks = {key[0] for key, count in rungs.items() if count > 1}
    return [key for key, count in rungs.items() if count > 1 or key[0] not in tasks]


def _swept(numbers: pd.DataFrame, study: Study) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each named sweep with the rows of its stages."""
    keys = ["task", *STAGES]
    several = {task for task, *_ in _distinct(numbers[numbers.sequences.str.contains(" ")], ["task"])}
    for sweep, paths in study.sweeps.items():
        wanted: dict[tuple[Any, ...], None] = {}
        for model in map(study.model, paths):
            form = f"{model.sequences} {model.encoder}" if model.encoder and model.task in several else model.sequences
            stage = (model.sft or "none", model.sft_epochs, model.rl or "none", model.rl_epochs)
            wanted[(model.task, model.backbone, form, model.cpt or "none", *stage)] = None
        places = {key: place for place, key in enumerate(wanted)}
        found = [places.get(key, -1) for key in numbers[keys].itertuples(index=False, name=None)]
        mine = numbers.assign(place=found).query("place >= 0").sort_values("place", kind="stable")
        if sweep and len(mine):
            yield sweep, mine


def _last_rungs(rewards: pd.DataFrame, study: Study) -> pd.DataFrame:
    """The rows of models that end their run: the history of a rung holds those of the rungs before."""
    ends = {
        path for path in rewards.model.unique() if study.ladder(study.model(f"models/{path}"))[-1] == f"models/{path}"
    }
    return rewards[rewards.model.isin(ends)]


def _rows(table: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """The rows that have the wanted value, or one of a tuple of them, in every column named."""
    kept = np.ones(len(table), dtype=bool)
    for column, values in wanted.items():
        kept &= table[column].isin(values if isinstance(values, tuple) else (values,)).to_numpy()
    return table[kept]


def _ladders(models: pd.DataFrame, column: str) -> list[tuple[Any, ...]]:
    """(task, backbone, ``column``, SFT recipe) of all SFT and RL, or if there is none of the models before them.

    RL without SFT (recipe "none") belongs to every ladder that shares the rest, and is listed where there is none.
    """
    trained = _rows(models, kind=("sft", "rl"))
    found = _distinct(trained if len(trained) else models, ["task", "backbone", column, "sft"])
    with_sft = {tuple(key) for *key, sft in found if sft != "none"}
    return [(*key, sft) for *key, sft in found if sft != "none" or tuple(key) not in with_sft]


def _gaps(table: pd.DataFrame) -> pd.DataFrame:
    """ID minus OOD of every model.

    The intervals join those of two independent samples by square-and-add (Newcombe 1998, method 10,
    doi:10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I).
    """
    keys = ["model", "kind", "task", "modality", *STAGES, "metric"]
    a, b = (table[table.split == split].set_index(keys) for split in SPLITS)
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


def _gap_panel(axes: Axes, here: pd.DataFrame, names: _Names) -> list[Tag]:
    """SFT ladders as lines and what RL made of their rungs as diamonds; returns the lines' tags."""
    tags = []
    variants = _order(_rows(here, kind=("sft", "rl")).cpt) or _order(here.cpt)
    recipes = _distinct(here[here.rl != "none"], ["rl", "rl_epochs"])
    step = min(0.13, 0.8 / (len(variants) * (1 + len(recipes))))
    for position, cpt in enumerate(variants):
        style = _style(cpt, variants)
        mine = here[here.cpt == cpt]
        line = mine[mine.rl == "none"].sort_values("sft_epochs")
        x = _log(line.sft_epochs) + step * position - 0.16
        _series(axes, x, line, STAGE_COLOURS["sft"], "o", style)
        text = f"{_GLYPHS['o', cpt != 'none']} {names.cpt(cpt)}"
        last = line if len(line) else mine  # cold RL in a form that the parent does not have
        tags.append(Tag(last.value.iloc[-1], text, STAGE_COLOURS["sft"], True))
        for turn, (rl, epochs) in enumerate(recipes, start=1):
            after = mine[(mine.rl == rl) & (mine.rl_epochs == epochs)]
            x = _log(after.sft_epochs) + step * (turn * len(variants) + position) - 0.16
            _series(axes, x, after, STAGE_COLOURS["rl"], "D", ("none", style[1]))
    return tags


def _ladder(models: pd.DataFrame, task: str, backbone: str, cpt: str, sft: str) -> pd.DataFrame:
    """One SFT ladder in all its forms, with what it starts from and what RL made of it."""
    return _rows(models, task=task, backbone=backbone, cpt=cpt, sft=(sft, "none"))


def _forms_panel(axes: Axes, here: pd.DataFrame, forms: Sequence[str]) -> Iterator[Tag]:
    """A line for every form and diamonds for what RL made of its rungs; yields the lines' tags."""
    recipes = _distinct(here[here.rl != "none"], ["rl", "rl_epochs"])
    count = len(forms) * (1 + len(recipes))
    step = min(0.13, 0.8 / count)
    left = -step * (count - 1) / 2
    for position, form in enumerate(forms):
        mine = here[here.sequences == form]
        with_encoder = [name for name in forms if " " in name]
        colour = RUN_COLOURS[with_encoder.index(form) % len(RUN_COLOURS)] if " " in form else FORM_COLOURS[form]
        filled = form != "tokens"
        line = mine[mine.rl == "none"].sort_values("sft_epochs")
        x = _log(line.sft_epochs) + left + step * position
        _series(axes, x, line, colour, "o", (FORM_LINES[_kind(form)], filled))
        last = line if len(line) else mine
        yield Tag(last.value.iloc[-1], f"{_GLYPHS['o', filled]} {_form_words(form)}", colour, True)
        for turn, (rl, epochs) in enumerate(recipes, start=1):
            after = mine[(mine.rl == rl) & (mine.rl_epochs == epochs)]
            x = _log(after.sft_epochs) + left + step * (turn * len(forms) + position)
            _series(axes, x, after, colour, "D", ("none", filled))


def _reward_line(axes: Axes, log: pd.DataFrame, colour: str, linestyle: Any) -> tuple[float, float, float]:
    """Rewards of one run, as logged and smoothed; returns the means of its first and last quarter, and the end."""
    for _, seed in log.groupby("model", sort=False):
        axes.plot(_middles(seed.step), seed.reward, color=colour, linewidth=0.7, alpha=0.35)
    mean = log.groupby("step").reward.mean()
    total = mean.index[-1]
    x = _middles(mean.index)
    smooth = [_between(mean, at - total / 8, at + total / 8) for at in x]
    axes.plot(x, smooth, color=colour, linestyle=linestyle, linewidth=1.8, zorder=3)
    return _between(mean, 0, total / 4), _between(mean, total * 3 / 4, total), smooth[-1]


def _middles(steps: pd.Series | pd.Index) -> np.ndarray:
    """The middle of what each logged value is the mean of: the steps since the value before."""
    ends = steps.to_numpy(dtype=float)
    return (np.concatenate([[0.0], ends[:-1]]) + ends) / 2


def _between(reward: pd.Series, low: float, high: float) -> float:
    """Mean reward of the steps from ``low`` to ``high``; ``reward`` is indexed by the step it was logged at.

    A logged value is the mean of the steps since the value before, and counts by how many of them are in the range.
    """
    ends = reward.index.to_numpy(dtype=float)
    starts = np.concatenate([[0.0], ends[:-1]])
    weights = np.clip(np.minimum(ends, high) - np.maximum(starts, low), 0, None)
    return float(np.average(reward, weights=weights))


def _span(numbers: pd.Series) -> str:
    low, high = numbers.min(), numbers.max()
    return f"{low}" if low == high else f"{low} to {high}"


def _milestones(shares: pd.DataFrame) -> list[tuple[Any, ...]]:
    """Stages worth a bar: before SFT, first and last rung of each ladder, everything after RL."""
    ladder = shares[shares.kind == "sft"].groupby(["backbone", "sequences", "cpt", "sft"]).sft_epochs
    ends = {key: {epochs.min(), epochs.max()} for key, epochs in ladder}

    def kept(stage: tuple[Any, ...]) -> bool:
        backbone, form, cpt, sft, epochs, rl, _ = stage
        return sft == "none" or rl != "none" or epochs in ends[backbone, form, cpt, sft]

    def place(stage: tuple[Any, ...]) -> tuple[Any, ...]:
        backbone, form, cpt, _, _, rl, _ = stage
        return backbone, [*FORMS].index(_kind(form)), form, cpt != "none", cpt, rl != "none"

    return sorted(filter(kept, _distinct(shares, STAGES)), key=place)


def _stacks(axes: Axes, mixes: np.ndarray, labels: Sequence[str]) -> None:
    """Stacked bars, the first (gold) on top; ``mixes`` has shape (bars, labels + malformed)."""
    y = np.arange(len(mixes))[::-1]
    lefts = np.cumsum(mixes, axis=1) - mixes
    colours = [LABEL_COLOURS[code % len(LABEL_COLOURS)] for code in range(len(labels))]
    for code, name in enumerate([*labels, "malformed"]):
        malformed = code == len(labels)
        axes.barh(
            y,
            mixes[:, code],
            left=lefts[:, code],
            height=0.78,
            label=name,
            color="#ffffff" if malformed else colours[code],
            hatch="////" if malformed else None,
            edgecolor=FAINT if malformed else "white",
            linewidth=0 if malformed else 0.6,
        )
        for bar, share in enumerate(mixes[:, code]):
            if share >= 0.095:
                middle = lefts[bar, code] + share / 2
                back = "white" if malformed else colours[code]
                axes.text(
                    middle,
                    y[bar] - 0.03,
                    f"{share:.0%}",
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    bbox={"facecolor": back, "edgecolor": "none", "pad": 0.6},
                    zorder=4,
                )
    for edge in np.cumsum(mixes[0])[: len(labels) - 1]:
        axes.plot([edge, edge], [-0.5, y[0]], color=INK, linewidth=1, linestyle=":")
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.55, y[0] + 0.5)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    axes.tick_params(axis="y", length=0)
    axes.spines[["left", "bottom"]].set_visible(False)


def _series(
    axes: Axes,
    x: np.ndarray,
    line: pd.DataFrame,
    colour: str,
    mark: str,
    style: tuple[Any, bool],
) -> None:
    """Values with intervals; ``style`` is the line style and whether marks are filled."""
    linestyle, filled = style
    axes.errorbar(
        x,
        line.value,
        yerr=_arms(line),
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
            axes.scatter([position] * len(values), values, s=6, color=INK, linewidths=0, zorder=5)


def _points(axes: Axes, points: pd.DataFrame, y: np.ndarray, split: str) -> None:
    """Differences with intervals, one a row."""
    axes.errorbar(
        points.value,
        y,
        xerr=_arms(points),
        color=SPLIT_COLOURS[split],
        marker=SPLIT_MARKS[split],
        markersize=5,
        linestyle="none",
        elinewidth=1.4,
        zorder=3,
    )
    for position, values in zip(y, points.each, strict=True):
        if len(values) > 1:
            axes.scatter(values, [position] * len(values), s=6, color=INK, linewidths=0, zorder=4)


def _arms(frame: pd.DataFrame) -> np.ndarray:
    return np.maximum([frame.value - frame.low, frame.high - frame.value], 0)


def _baselines(axes: Axes, frame: pd.DataFrame, colour: str) -> Iterator[Tag]:
    """Thin dotted lines for the baselines in ``frame``; yields their tags."""
    shown = frame[frame.kind == "baseline"]
    for model, value in zip(shown.model, shown.value, strict=True):
        axes.axhline(value, color=colour, linewidth=0.9, linestyle=(0, (1, 1.5)), alpha=0.8)
        yield Tag(value, _baseline(model), colour)


def _baseline(model: str) -> str:
    name = model.removeprefix("baseline/")
    return BASELINES.get(name, name)


def _style(cpt: str, variants: Sequence[str]) -> tuple[Any, bool]:
    """Solid line and open marks without CPT; broken lines and filled marks with it."""
    if cpt == "none":
        return "-", False
    with_cpt = [name for name in variants if name != "none"]
    return ("--", *LINES[1:])[with_cpt.index(cpt) % len(LINES)], True


def _tag(axes: Axes, tags: Sequence[Tag]) -> None:
    """Write tags at the right edge, at the height of their values unless they would touch."""
    low, high = axes.get_ylim()
    step = 11.2 / 72 / _inches(axes)
    ranked = sorted(tags, key=lambda tag: tag.value)
    wanted = np.array([(tag.value - low) / (high - low) for tag in ranked])
    places = wanted.copy()
    for _ in range(200):
        for i in range(len(places) - 1):
            overlap = step - (places[i + 1] - places[i])
            if overlap > 1e-6:
                places[i] -= overlap / 2
                places[i + 1] += overlap / 2
        places = np.clip(places, -0.05, 1.05)
    for tag, value, place in zip(ranked, wanted, places, strict=True):
        axes.annotate(
            tag.text,
            (1.0, value),
            (1.045, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=tag.colour,
            fontsize=8,
            fontweight="bold" if tag.bold else "normal",
            va="center_baseline",
            arrowprops={
                "arrowstyle": "-",
                "color": tag.colour,
                "linewidth": 0.5,
                "shrinkA": 0,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
            annotation_clip=False,
        )


def _above(axes: Axes, text: str) -> None:
    """Write the name of a row of panels above their titles."""
    axes.text(0, 1 + 0.34 / _inches(axes), text, transform=axes.transAxes, fontweight="bold")


def _inches(axes: Axes) -> float:
    """Height of a panel."""
    return axes.bbox.height / axes.figure.dpi


def _room(words: Iterable[str]) -> float:
    """Inches that words need at the side of a panel (0.073 a letter at 9 points), at least 1.05."""
    return max(1.05, 0.25 + 0.073 * max(len(word) for word in words))


def _log(epochs: pd.Series) -> np.ndarray:
    """Places of epochs on the axis: log2, and one step left of epoch 1 for 0."""
    values = epochs.to_numpy(dtype=float)
    return np.where(values > 0, np.log2(np.maximum(values, 1)), -1)


def _epochs(axes: Axes, epochs: pd.Series) -> None:
    ticks = pd.Series(sorted(set(epochs)))
    axes.set_xticks(_log(ticks), [str(tick) for tick in ticks])
    axes.set_xlim(-1.35, _log(ticks).max() + 0.4)


def _share_y(row: Sequence[Axes]) -> None:
    limits = np.array([axes.get_ylim() for axes in row])
    for axes in row:
        axes.set_ylim(limits[:, 0].min(), limits[:, 1].max())


def _grid(
    heights: Sequence[float],
    columns: int,
    left: float,
    between: float,
    right: float,
    gap: float,
    top: float = 1.3,
) -> tuple[Figure, np.ndarray]:
    """Panels of the given heights, all margins in inches; axes in shape (rows, columns)."""
    bottom = 0.6
    total = top + sum(heights) + gap * (len(heights) - 1) + bottom
    width = (WIDTH - left - between * (columns - 1) - right) / columns
    figure = Figure(figsize=(WIDTH, total))
    panels = np.empty((len(heights), columns), dtype=object)
    y = total - top
    for row, height in enumerate(heights):
        y -= height
        for column in range(columns):
            x = left + column * (width + between)
            panels[row, column] = figure.add_axes((x / WIDTH, y / total, width / WIDTH, height / total))
        y -= gap
    return figure, panels


def _head(figure: Figure, title: str, note: str) -> None:
    height = figure.get_figheight()
    figure.text(0.02, 1 - 0.16 / height, title, fontsize=13, fontweight="bold", va="top")
    figure.text(0.02, 1 - 0.46 / height, note, color="#555555", va="top", linespacing=1.35)


def _key(figure: Figure, words: dict[str, str]) -> None:
    """Coloured words at the top right: what marks of that colour are."""
    right = WIDTH - 0.3
    for text, colour in reversed(words.items()):
        figure.text(
            right / WIDTH,
            1 - 0.18 / figure.get_figheight(),
            text,
            color=colour,
            fontweight="bold",
            ha="right",
            va="top",
        )
        right -= 0.085 * len(text)


def _nothing(text: str) -> Figure:
    figure = Figure(figsize=(WIDTH, 1.2))
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=12, color=FAINT)
    return figure


def _note(table: pd.DataFrame) -> str:
    return f"95% bootstrap intervals over the test examples. {_seeds(table)}"


def _seeds(table: pd.DataFrame, dots: bool = True) -> str:
    seeds = int(table.seeds.max()) if len(table) else 0
    if seeds <= 1:
        return "One training seed."
    return f"Means of {seeds} training seeds{' (small dots)' if dots else ''}."


def _size(frame: pd.DataFrame) -> str:
    return f"n = {frame.n.iloc[0]}"


def _sizes(frame: pd.DataFrame) -> str:
    return "n = " + ", ".join(f"{frame[frame.split == split].n.iloc[0]} {split.upper()}" for split in SPLITS)


def _distinct(frame: pd.DataFrame, columns: list[str]) -> list[tuple[Any, ...]]:
    """Distinct rows of some columns, in order of appearance."""
    return list(frame[columns].drop_duplicates().itertuples(index=False, name=None))


def _order(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _save(figure: Figure, stem: Path) -> None:
    """Write .svg and .png, without dates and versions: the same figure, the same bytes."""
    svg, png = stem.with_suffix(".svg"), stem.with_suffix(".png")
    _replace(
        svg,
        lambda path: figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None}),
    )
    _replace(png, lambda path: figure.savefig(path, format="png", dpi=150, metadata={"Software": None}))


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    with files.replacing(path) as temporary:
        write(temporary)
