"""Reward against step while RL trained."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cisterna.constants import VALIDATION
from cisterna.report import tables
from cisterna.report.figures import style
from cisterna.report.figures.style import EdgeLabel
from cisterna.report.tables import FORM_NAMES, STAGE_COLUMNS, StageNames, base_form
from cisterna.study import Study

FORM_DASHES = {"tokens": "──", "features": "╌╌", "both": "····"}  # style.FORM_LINES as letters


def draw(rewards: pd.DataFrame, study: Study) -> Figure:
    """A panel a task, a line a run."""
    rewards, held_out = by_prompts(last_rungs(rewards, study))
    tasks = [task for task in study.tasks if task in set(rewards.task)]
    if not tasks:
        return style.empty("This study has no RL stage.")
    runs = {task: tables.distinct(rewards[rewards.task == task], STAGE_COLUMNS) for task in tasks}
    names = StageNames(rewards)
    colours: dict[str, str] = {}
    for run in (run for some in runs.values() for run in some):
        colours.setdefault(names.without_form(run), style.RUN_COLOURS[len(colours) % len(style.RUN_COLOURS)])
    right = 0.7 + style.text_width(names.with_form(run) for some in runs.values() for run in some)
    heights = [max(1.7, 0.17 * len(some)) for some in runs.values()]
    figure, panels = style.grid(heights, 1, 0.8, 0, right, gap=0.62)
    for (axes,), (task, some) in zip(panels, runs.items(), strict=True):
        mine = rewards[rewards.task == task]
        labels = []
        for run in some:
            of_run = {"task": task, **dict(zip(STAGE_COLUMNS, run, strict=True))}
            log, dots = tables.rows(mine, **of_run), tables.rows(held_out, **of_run).groupby("step").reward.mean()
            colour, form = colours[names.without_form(run)], base_form(log.sequences.iloc[0])
            if len(dots):
                axes.plot(dots.index, dots, "o", color=colour, markersize=4, markeredgecolor="white", zorder=4)
            first, last, end = _line(axes, log, colour, style.FORM_LINES[form])
            labels.append(EdgeLabel(end, f"{first:.2f} → {last:.2f}  {names.with_form(run)}", colour))
        lengths = mine.groupby("model").step.agg(["max", "size"])
        steps, values = (_range(lengths[column]) for column in lengths)
        axes.set_title(f"{task} · {steps} steps, logged {values} times", loc="left")
        axes.set_xlim(0, lengths["max"].max())
        axes.set_ylabel("mean reward")
        axes.grid(axis="y", color=style.PALE)
        style.edge_labels(axes, labels)
    panels[-1, 0].set_xlabel("training step")
    seeds = rewards.seed.nunique()
    several = f"Thick lines and numbers: means of {seeds} training seeds." if seeds > 1 else "One training seed."
    style.heading(
        figure,
        "Reward while RL trains",
        "Mean reward of the completions sampled from train. Thin: as logged; thick: centred moving mean over a quarter "
        f"of the steps.\nNumbers: mean of the first → of the last quarter of the steps. {several}"
        + ("" if held_out.empty else "\nDots: the same on the examples of validation, one completion of each."),
    )
    forms = [form for form in FORM_NAMES if form in set(map(base_form, rewards.sequences))]
    if len(forms) > 1:
        style.key(figure, {f"{FORM_DASHES[form]} {FORM_NAMES[form]}": style.GREY for form in forms})
    return figure


def by_prompts(rewards: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows whose prompts are of train, and those of validation."""
    held_out = rewards["split"] == VALIDATION if "split" in rewards else pd.Series(False, rewards.index)
    return rewards[~held_out], rewards[held_out]


def last_rungs(rewards: pd.DataFrame, study: Study) -> pd.DataFrame:
    """The rows of models that end their run: the history of a rung has that of the rungs before it."""
    models = [study.model(f"models/{path}") for path in rewards.model.unique()]
    ends = {model.path.removeprefix("models/") for model in models if study.ladder(model)[-1] == model.path}
    return rewards[rewards.model.isin(ends)]


def _line(axes: Axes, log: pd.DataFrame, colour: str, linestyle: Any) -> tuple[float, float, float]:
    """Rewards of one run, as logged and smoothed; returns the means of its first and last quarter, and the end."""
    for _, seed in log.groupby("model", sort=False):
        axes.plot(middles(seed.step), seed.reward, color=colour, linewidth=0.7, alpha=0.35)
    mean = log.groupby("step").reward.mean()
    total = mean.index[-1]
    x = middles(mean.index)
    smooth = [mean_between(mean, at - total / 8, at + total / 8) for at in x]
    axes.plot(x, smooth, color=colour, linestyle=linestyle, linewidth=1.8, zorder=3)
    return mean_between(mean, 0, total / 4), mean_between(mean, total * 3 / 4, total), smooth[-1]


def middles(steps: pd.Series | pd.Index) -> np.ndarray:
    """The middle of the steps that each logged value is the mean of: those since the value before."""
    ends = steps.to_numpy(dtype=float)
    return (np.concatenate([[0.0], ends[:-1]]) + ends) / 2


def mean_between(reward: pd.Series, low: float, high: float) -> float:
    """Mean reward of the steps from ``low`` to ``high``; ``reward`` is indexed by the step it was logged at.

    A logged value is the mean of the steps since the value before; its weight is how many of them are in the range.
    """
    ends = reward.index.to_numpy(dtype=float)
    starts = np.concatenate([[0.0], ends[:-1]])
    weights = np.clip(np.minimum(ends, high) - np.maximum(starts, low), 0, None)
    return float(np.average(reward, weights=weights))


def _range(numbers: pd.Series) -> str:
    low, high = numbers.min(), numbers.max()
    return f"{low}" if low == high else f"{low} to {high}"
