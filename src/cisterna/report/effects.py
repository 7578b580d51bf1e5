"""The effect of a part of a claim with its interval and p-values, from resamples of the answers.

`Differences` is for most parts, `Shares` and `Shapes` for parts of these kinds. All have the same methods.

Not for what is compared (`cisterna.report.claims`), not for verdicts (`cisterna.report.findings`).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cisterna.report import statistics
from cisterna.report.comparisons import Arm, Contrast, Part, Shape, Share
from cisterna.report.statistics import LEVEL, PRIMARY, Array, Draws, Values

SAME_SHAPE = 0.05  # of PRIMARY: centred curves that differ by less than this have the same shape

Interval = dict[str, float]  # value, low, high
Settings = dict[str, dict[str, list[Contrast]]]  # task -> setting -> its contrasts, one for each seed


@dataclass(frozen=True)
class Effect:
    """The effect on one metric in one task.

    ``each`` has the effect of each seed for each setting, ``value`` their mean, and ``draws``, shape (resamples,), that
    mean under resamples of the examples.
    """

    each: tuple[dict[int, float], ...]
    value: float
    draws: Array


class Differences:
    """Ours minus rival: mean over seeds, then over settings, then over tasks, each with equal weight."""

    def __init__(self, part: Part, drawn: Mapping[str, Draws]) -> None:
        """`drawn` has the resamples of every task of the part."""
        self.part, self.drawn = part, drawn
        self.settings = by_task_and_setting(part.contrasts)
        self.effects = {task: _effects(drawn[task], some.values()) for task, some in self.settings.items()}

    def metrics(self, task: str) -> set[str]:
        """The metrics that a task has."""
        return set(self.drawn[task].observed)

    def interval(self, metric: str, tasks: Sequence[str]) -> Interval:
        """Effect on a metric that all of these tasks have, with its interval."""
        return self._summary(metric, tasks)[0]

    def each(self, task: str) -> Sequence[Mapping[int, float]]:
        """Effect on PRIMARY of each seed, for each setting of a task."""
        return self.effects[task][PRIMARY].each

    def p_values(self, margin: float) -> tuple[float, float]:
        """One-sided, for the claim and against it: that the effect is above the margin, or below minus the margin."""
        draws = self._summary(PRIMARY, list(self.settings))[1]
        return _tail(draws <= margin), _tail(draws >= -margin)

    def more(self, margin: float) -> dict[str, Any]:
        """What else to say of this part, for JSON."""
        return {"rivals": self._in_turn()}

    def choices(self, task: str) -> Sequence[Mapping[str, float]]:
        """How often each of several arms is chosen as the best, for each setting of a task; empty without a choice."""
        return [_chosen(self.drawn[task], contrasts) for contrasts in self.settings[task].values()]

    def _summary(self, metric: str, tasks: Sequence[str]) -> tuple[Interval, Array]:
        effects = [self.effects[task][metric] for task in tasks]
        return _summary(effects, statistics.generator("seeds", self.part.name, *tasks))

    def _in_turn(self) -> dict[str, Interval]:
        """Each of several rivals in turn, or else each of several of ours: a description, not corrected for many."""
        side = next(
            (side for side in ("rivals", "ours") if any(len(getattr(one, side)) > 1 for one in self.part.contrasts)), ""
        )
        intervals = {}
        for name in dict.fromkeys(name for one in self.part.contrasts for name in getattr(one, side, ())):
            settings = by_task_and_setting(
                _only(one, side, name) for one in self.part.contrasts if name in getattr(one, side)
            )
            effects = [_effects(self.drawn[task], of_task.values())[PRIMARY] for task, of_task in settings.items()]
            intervals[name] = _summary(effects, statistics.generator("seeds", self.part.name, name))[0]
        return intervals


class Shares(Differences):
    """What share of a gain ours is. The effect is ours minus half of the gain, which is linear: no ratio decides.

    The share is 1/2 + effect / gain, of the means. It is given only where the gain is above the margin by its interval,
    and no resample divides by less than the margin.
    """

    def __init__(self, part: Share, drawn: Mapping[str, Draws]) -> None:
        super().__init__(part, drawn)
        self.gain = Differences(replace(part, name=f"{part.name}_gain", contrasts=part.gains), drawn)

    def p_values(self, margin: float) -> tuple[float, float]:
        """That there is a gain *and* that ours is more (less) than half of it: the larger p-value of the two."""
        gain, _ = self.gain.p_values(margin)
        more, less = super().p_values(0.0)
        return max(gain, more), max(gain, less)

    def more(self, margin: float) -> dict[str, Any]:
        """The whole gain, and the share of it, of all tasks and of each; None where there is no sure gain."""
        tasks = list(self.settings)
        return {
            "rivals": {},
            "gain": self.gain.interval(PRIMARY, tasks),
            "share": self._share(tasks, margin),
            "shares": {task: self._share([task], margin) for task in tasks},
        }

    def _share(self, tasks: Sequence[str], margin: float) -> Interval | None:
        if self.gain.interval(PRIMARY, tasks)["low"] <= margin:
            return None
        pairs = [[side.effects[task][PRIMARY] for side in (self, self.gain)] for task in tasks]
        rng = statistics.generator("share", self.part.name, *tasks)
        observed = np.mean([[one.value for one in pair] for pair in pairs], axis=0)
        draws = np.mean(
            [
                np.stack([one.draws for one in pair], axis=1)
                + statistics.joint_noise([statistics.influence(one.each) for one in pair], len(pair[0].draws), rng)
                for pair in pairs
            ],
            axis=0,
        )
        low, high = _percentiles(0.5 + draws[:, 0] / np.maximum(draws[:, 1], max(margin, 1e-6)))
        return {"value": float(0.5 + observed[0] / observed[1]), "low": low, "high": high}


@dataclass(frozen=True)
class Curves:
    """Differences of pairs of centred curves, rung by rung: mean over seeds, its draws, and every seed."""

    observed: Array  # (rungs,) of all curves, one curve after the other
    draws: Array  # (resamples, rungs)
    each: tuple[dict[int, Array], ...]  # of each curve: seed -> (rungs of the curve,)


class Shapes:
    """The largest difference, at any rung of any curve, between two curves of which each was centred."""

    def __init__(self, part: Shape, drawn: Mapping[str, Draws]) -> None:
        """`drawn` has the resamples of every task of the part."""
        self.part, self.drawn = part, drawn
        self.settings = by_task_and_setting(part.contrasts)

    def metrics(self, task: str) -> set[str]:
        """The metrics that a task has."""
        return set(self.drawn[task].observed)

    def interval(self, metric: str, tasks: Sequence[str]) -> Interval:
        """The largest difference.

        It is below `high` unless the largest one is beyond its own interval. It is above `low` unless some difference
        is off by more than any in 95% of the resamples: the largest of many noisy differences is too large.
        """
        curves = self._joined(metric, tasks)
        largest = float(np.abs(curves.observed).max())
        tail = 50 * (1 - LEVEL)
        high = np.abs(np.percentile(curves.draws, [tail, 100 - tail], axis=0)).max()
        error = np.percentile(self._errors(curves), 100 * LEVEL)
        return {"value": largest, "low": max(0.0, float(largest - error)), "high": float(max(largest, high))}

    def each(self, task: str) -> Sequence[Mapping[int, float]]:
        """The largest difference of each seed, for each setting of a task."""
        curves = self._of_task(PRIMARY, task).each
        return [{seed: float(np.abs(values).max()) for seed, values in each.items()} for each in curves]

    def p_values(self, margin: float) -> tuple[float, float]:
        """One-sided: that all differences are within SAME_SHAPE (an intersection-union test: the largest p-value of two
        one-sided tests at each rung), and that one is beyond it (against the largest error of any in a resample).
        """
        curves = self._joined(PRIMARY, list(self.settings))
        within = max(_tail(side >= SAME_SHAPE) for column in curves.draws.T for side in (column, -column))
        excess = np.abs(curves.observed).max() - SAME_SHAPE
        return within, _tail(self._errors(curves) >= excess)

    def more(self, margin: float) -> dict[str, Any]:
        """The difference at each rung of each curve, with its interval."""
        described = []
        for task, of_task in self.settings.items():
            curves, place = self._of_task(PRIMARY, task), 0
            for name, each in zip(of_task, curves.each, strict=True):
                rungs = []
                for _ in next(iter(each.values())):
                    low, high = _percentiles(curves.draws[:, place])
                    rungs.append({"value": float(curves.observed[place]), "low": low, "high": high})
                    place += 1
                described.append({"task": task, "setting": name, "rungs": rungs})
        return {"rivals": {}, "same_shape": SAME_SHAPE, "curves": described}

    def choices(self, task: str) -> Sequence[Mapping[str, float]]:
        """As of `Differences`: there is no choice."""
        return [{} for _ in self.settings[task]]

    def _errors(self, curves: Curves) -> Array:
        """The largest error at any rung, for each resample."""
        return np.asarray(np.abs(curves.draws - curves.observed).max(1))

    def _joined(self, metric: str, tasks: Sequence[str]) -> Curves:
        of_tasks = [self._of_task(metric, task) for task in tasks]
        return Curves(
            np.concatenate([one.observed for one in of_tasks]),
            np.concatenate([one.draws for one in of_tasks], axis=1),
            tuple(each for one in of_tasks for each in one.each),
        )

    def _of_task(self, metric: str, task: str) -> Curves:
        drawn = self.drawn[task]
        observed, draws, everyone, moved = [], [], [], []
        for contrasts in self.settings[task].values():
            weights = np.stack([_centred(drawn, one) for one in contrasts])  # (seeds, models, rungs)
            each = (drawn.observed[metric] @ weights)[:, 0].astype(float)
            observed.append(each.mean(0))
            draws.append((drawn.resampled[metric] @ weights.mean(0)).astype(float))
            everyone.append({one.seed: values for one, values in zip(contrasts, each, strict=True)})
            moved += [statistics.influence([{s: v[k] for s, v in everyone[-1].items()}]) for k in range(each.shape[1])]
        resampled = np.concatenate(draws, axis=1)
        rng = statistics.generator("seeds", self.part.name, task)
        return Curves(
            np.concatenate(observed),
            resampled + statistics.joint_noise(moved, len(resampled), rng),
            tuple(everyone),
        )


def measured(part: Part, drawn: Mapping[str, Draws]) -> Differences | Shapes:
    """The effect of a part, by its kind."""
    if isinstance(part, Shape):
        return Shapes(part, drawn)
    return Shares(part, drawn) if isinstance(part, Share) else Differences(part, drawn)


def by_task_and_setting(contrasts: Iterable[Contrast]) -> Settings:
    """Task -> setting -> its contrasts, one for each seed."""
    groups: Settings = {}
    for contrast in contrasts:
        groups.setdefault(contrast.task, {}).setdefault(contrast.setting, []).append(contrast)
    return groups


def has_choice(contrast: Contrast) -> bool:
    """Whether a side has several arms, of which the best is to be chosen."""
    return len(contrast.ours) > 1 or len(contrast.rivals) > 1


def _only(contrast: Contrast, side: str, name: str) -> Contrast:
    """A contrast with one of the arms of a side."""
    arms = {name: getattr(contrast, side)[name]}
    return replace(contrast, ours=arms) if side == "ours" else replace(contrast, rivals=arms)


def _tail(beyond: np.ndarray) -> float:
    """The share of the resamples in which something is so, never 0."""
    return float((1 + beyond.sum()) / (1 + len(beyond)))


def _percentiles(draws: Array) -> tuple[float, float]:
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)


def _summary(effects: Sequence[Effect], rng: np.random.Generator) -> tuple[Interval, Array]:
    """Mean over tasks of equal weight with its interval over examples and seeds, and the draws of the interval."""
    seeds = [statistics.seed_variance(effect.each) for effect in effects]
    draws = np.mean([effect.draws for effect in effects], axis=0)
    draws = draws + statistics.noise(seeds, len(draws), rng)
    low, high = _percentiles(draws)
    return {"value": float(np.mean([effect.value for effect in effects])), "low": low, "high": high}, draws


def _effects(drawn: Draws, settings: Iterable[Sequence[Contrast]]) -> dict[str, Effect]:
    """Metric -> effect in one task; ``settings`` has for each setting its contrasts, one for each seed."""
    values: dict[str, list[dict[int, float]]] = defaultdict(list)
    draws: dict[str, list[Array]] = defaultdict(list)
    for contrasts in settings:
        found = _crossfit(drawn, contrasts) if has_choice(contrasts[0]) else _direct(drawn, contrasts)
        for metric, (observed, resampled) in found.items():
            values[metric].append({one.seed: float(value) for one, value in zip(contrasts, observed, strict=True)})
            draws[metric].append(resampled)
    return {
        metric: Effect(
            tuple(some),
            float(np.mean([sum(each.values()) / len(each) for each in some])),
            np.mean(draws[metric], axis=0),
        )
        for metric, some in values.items()
    }


def _weights(drawn: Draws, arms: Sequence[Arm]) -> np.ndarray:
    """Coefficients of the models in each arm, shape (models, arms)."""
    weights = np.zeros((len(drawn.columns), len(arms)), dtype=np.float32)
    for column, arm in enumerate(arms):
        for path, coefficient in arm:
            weights[drawn.columns[path], column] += coefficient
    return weights


def _centred(drawn: Draws, contrast: Contrast) -> np.ndarray:
    """Coefficients of the models in the centred curve of ours minus that of the rival, shape (models, rungs)."""
    (ours,), (theirs,) = contrast.ours.values(), contrast.rivals.values()
    rungs = [((path, 1.0), (other, -1.0)) for (path, _), (other, _) in zip(ours, theirs, strict=True)]
    weights = _weights(drawn, rungs)
    return weights - weights.mean(1, keepdims=True)


def _direct(drawn: Draws, contrasts: Sequence[Contrast]) -> dict[str, tuple[Array, Array]]:
    """Metric -> ours minus rival for each seed, shape (seeds,), and its mean under resamples, shape (resamples,)."""
    weights = _weights(drawn, [arm for one in contrasts for arm in one.ours.values()])
    weights -= _weights(drawn, [arm for one in contrasts for arm in one.rivals.values()])
    return {
        metric: ((drawn.observed[metric] @ weights)[0], drawn.resampled[metric] @ weights.mean(1))
        for metric in drawn.observed
    }


def _best(drawn: Draws, contrasts: Sequence[Contrast], side: str, choose: Values) -> NDArray[np.intp]:
    """The best arm of a side for each seed by PRIMARY, shape (rows, seeds), from the other seeds if there are any."""
    names = list(getattr(contrasts[0], side))  # the same for every seed
    weights = _weights(drawn, [getattr(one, side)[name] for one in contrasts for name in names])
    scores = (choose[PRIMARY] @ weights).reshape(-1, len(contrasts), len(names))
    if len(contrasts) > 1:
        scores = scores.sum(1, keepdims=True) - scores
    return scores.argmax(2)


def _chosen(drawn: Draws, contrasts: Sequence[Contrast]) -> dict[str, float]:
    """How often each of several arms of a side is chosen as the best; empty if there is no choice."""
    shares: dict[str, float] = {}
    for side in ("ours", "rivals"):
        names = list(getattr(contrasts[0], side))
        if len(names) > 1:
            best = np.concatenate([_best(drawn, contrasts, side, half).ravel() for half in drawn.halves])
            counts = np.bincount(best, minlength=len(names)) / len(best)
            shares |= dict(zip(names, counts.tolist(), strict=True))
    return shares


def _crossfit(drawn: Draws, contrasts: Sequence[Contrast]) -> dict[str, tuple[Array, Array]]:
    """As ``_direct``, with the best of ours minus the best rival, chosen on PRIMARY.

    The best of a seed is chosen by the mean of the other seeds (its own, if it is the only one) on one half of the
    examples; it is measured with that seed on the other half; then the halves are swapped. The estimate is the mean
    over many random halvings of the examples. Each resample of the examples repeats halving, choice and measurement.
    The draws are shifted so that their mean is the estimate: a resample has fewer distinct examples to choose with, so
    its choices are worse than those on the data.
    """
    assert drawn.halves, "drawn with halves"
    weights = {
        side: _weights(drawn, [arm for one in contrasts for arm in getattr(one, side).values()])
        for side in ("ours", "rivals")
    }

    def measured(halves: list[Values]) -> Values:
        total: Values = {}
        for choose, measure in (halves, halves[::-1]):
            best = {side: _best(drawn, contrasts, side, choose)[:, :, None] for side in weights}
            for metric in drawn.observed:
                ours, rivals = (
                    np.take_along_axis(
                        (measure[metric] @ weights[side]).reshape(len(best[side]), len(contrasts), -1), best[side], 2
                    )[:, :, 0]
                    for side in ("ours", "rivals")
                )
                total[metric] = total.get(metric, np.float32(0)) + (ours - rivals) / 2
        return total

    once, again = measured(drawn.halves), measured(drawn.resampled_halves)
    estimates = {}
    for metric in drawn.observed:
        observed, resampled = once[metric].mean(0), again[metric].mean(1)
        estimates[metric] = observed, resampled - resampled.mean() + observed.mean()
    return estimates
