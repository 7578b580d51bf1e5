"""Tests the claims of arXiv:2606.16517 on the answers of a study: effect, interval, n, verdict, models compared.

    cisterna findings --results results --output results/studies/NAME

writes ``findings.json`` and ``findings.html``. ``cisterna.report.claims`` defines what each claim compares. If a model
is compared with the best of several, the best is chosen on other examples and seeds than it is measured on
(cross-fitting): the best of many noisy numbers is too large. docs/findings.md explains how to read the result.

Not for choosing a model: neither ID nor OOD may choose a checkpoint. For advice on a budget see
``cisterna.report.advice``.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cisterna.artifacts import files
from cisterna.report import pages, statistics
from cisterna.report.claims import Arm, Claim, Contrast, Part, claims
from cisterna.report.statistics import HALVINGS, LEVEL, PRIMARY, RESAMPLES, AnySheet, Array, Draws, Values
from cisterna.study import Study

FINDINGS = "findings.json"
PAGE = "findings.html"
ALPHA = 0.05  # of all verdicts of a study together
TERMS_PRIMARY = "f1_micro"  # what PRIMARY is of tasks whose answers are sets of terms
MARGIN = 0.01  # of PRIMARY: a smaller effect would not decide whether anyone trains a stage
SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "not enough evidence"
ABSENT = "not in this study"
METHOD = {
    "primary_metric": PRIMARY,
    "primary_metric_of_sets_of_terms": TERMS_PRIMARY,
    "metrics": list(statistics.COMPARED_METRICS),
    "level": LEVEL,
    "alpha": ALPHA,
    "margin": MARGIN,
    "resamples": RESAMPLES,
    "halvings": HALVINGS,
    "interval": "percentile bootstrap over the examples of each task, paired between models, plus between-seed "
    "variance with the tails of Student's t; tasks have equal weight; not adjusted for the number of claims",
    "correction": "Holm, over all parts of all claims that the study could test",
    "winners": "where a part is against the best of several, the best is chosen on one random half of the examples "
    "and by the other seeds, and measured on the other half and its own seed",
}
"""How the numbers are made, for the JSON and the page."""


@dataclass(frozen=True)
class Effect:
    """The effect on one metric in one task.

    ``each`` has the effect of each seed for each setting, ``value`` their mean, and ``draws``, shape (resamples,), that
    mean under resamples of the examples.
    """

    each: tuple[dict[int, float], ...]
    value: float
    draws: Array


def findings(study: Study, results: Path, output: Path) -> dict[str, Any]:
    """Write findings.json and findings.html of a study into the folder ``output``; returns the content of the JSON.

    ``results`` is the folder with ``models/``. Evaluations that are absent are listed and left out. The same answers
    give the same bytes. Raises the UserErrors of ``cisterna.report.statistics.read``. If judging fails for a bug,
    the JSON has the reason as ``error`` and no claims, and the page says so.
    """
    answers = statistics.read(study, results)
    present = {(task, model) for (task, _), sheet in answers.sheets.items() for model in sheet.models}
    content: dict[str, Any] = {
        "study": study.name,
        "method": METHOD,
        "evaluations": {"expected": len(study.evaluations()), "absent": list(answers.absent)},
        "tasks_left_out": answers.left_out,
        "claims": [],
    }
    title = f"Findings of study {study.name}"
    with pages.whatever_fails(str(output / FINDINGS), "test of the claims") as failure:
        content["claims"] = judge(claims(study, present), answers.sheets)
    if failure:
        content["error"] = failure[0]
    output.mkdir(parents=True, exist_ok=True)
    files.write_json(output / FINDINGS, content)
    pages.write(output / PAGE, title, lambda: pages.failed(title, failure[0]) if failure else pages.findings(content))
    return content


def judge(
    tested: Sequence[Claim],
    sheets: Mapping[tuple[str, str], AnySheet],
    resamples: int = RESAMPLES,
    margin: float = MARGIN,
    halvings: int = HALVINGS,
) -> list[dict[str, Any]]:
    """Effect, interval, n, p and verdict of every part, and the verdict of every claim, ready for JSON.

    ``tested`` has the claims, ``sheets`` the answers for each (task, split). Each (task, split) is resampled once, so
    that all parts see the same resamples.
    """
    with_rivals = {
        (contrast.task, part.split)
        for claim in tested
        for part in claim.parts
        for contrast in part.contrasts
        if len(contrast.rivals) > 1
    }

    @functools.cache
    def draws(task: str, split: str) -> Draws:
        rng = statistics.generator("examples", task, split)
        wanted = halvings if (task, split) in with_rivals else 0
        return statistics.draw(sheets[task, split], rng, resamples, wanted)

    measured = [[_measure(part, draws, margin) for part in claim.parts] for claim in tested]
    parts = [part for of_claim in measured for part in of_claim if part["status"] == "measured"]
    for part, p in zip(parts, statistics.holm([part["p"] for part in parts]), strict=True):
        part["p_holm"] = p
        above = part["effect"][PRIMARY]["value"] > 0
        part["verdict"] = UNDECIDED if p > ALPHA else SUPPORTED if above else CONTRADICTED
    return [
        {
            "claim": claim.name,
            "title": claim.title,
            "verdict": _verdict(claim, of_claim),
            "rule": _rule(claim),
            "parts": of_claim,
        }
        for claim, of_claim in zip(tested, measured, strict=True)
    ]


def _rule(claim: Claim) -> str:
    if sum(part.decides for part in claim.parts) == 1:
        return "the verdict of its first part; the others are contrasts to it"
    if claim.conjunction:
        return "supported if all parts are, contradicted if one is"
    return "supported if one split is and none is contradicted; contradicted if one split is and none is supported"


def _verdict(claim: Claim, parts: Sequence[Mapping[str, Any]]) -> str:
    verdicts = [part["verdict"] for part in parts if part["decides"]]
    if set(verdicts) == {ABSENT}:
        return ABSENT
    if claim.conjunction:
        if CONTRADICTED in verdicts:
            return CONTRADICTED
        return SUPPORTED if set(verdicts) == {SUPPORTED} else UNDECIDED
    decided = set(verdicts) - {UNDECIDED, ABSENT}
    return decided.pop() if len(decided) == 1 else UNDECIDED


def _measure(part: Part, draws: Callable[[str, str], Draws], margin: float) -> dict[str, Any]:
    """One part, without the verdict: the correction for many tests needs the p-values of all parts."""
    head: dict[str, Any] = {"part": part.name, "split": part.split, "title": part.title, "decides": part.decides}
    if not part.contrasts:
        return head | {"status": ABSENT, "verdict": ABSENT, "needs": part.needs}
    settings = _by_task_and_setting(part.contrasts)
    tasks = list(settings)
    drawn = {task: draws(task, part.split) for task in tasks}
    effects = {task: _effects(drawn[task], settings[task].values(), part.sign) for task in tasks}

    def summary(metric: str, some: Sequence[str]) -> tuple[dict[str, float], Array]:
        return _summary([effects[task][metric] for task in some], statistics.generator("seeds", part.name, *some))

    def by_metric(some: Sequence[str]) -> dict[str, dict[str, float] | None]:
        """Over the tasks that have the metric; None if none has."""
        known = {metric: [task for task in some if metric in effects[task]] for metric in statistics.COMPARED_METRICS}
        return {metric: summary(metric, having)[0] if having else None for metric, having in known.items()}

    of_effect = summary(PRIMARY, tasks)[1]
    tails = ((of_effect <= margin).sum(), (of_effect >= -margin).sum())
    seeds = {contrast.seed for contrast in part.contrasts}
    arms = [arm for contrast in part.contrasts for arm in (contrast.fixed, *contrast.rivals.values())]
    several = any(len(contrast.rivals) > 1 for contrast in part.contrasts)
    return head | {
        "status": "measured",
        "effect": by_metric(tasks),
        "p": float(min(1.0, 2 * (1 + min(tails)) / (1 + len(of_effect)))),
        "covers": "test examples and training seeds" if len(seeds) > 1 else "test examples only: one training seed",
        "n": {
            "examples": sum(drawn[task].examples for task in tasks),
            "tasks": len(tasks),
            "seeds": len(seeds),
            "pairs": sum(len(contrast.rivals) for contrast in part.contrasts),
            "models": len({path for arm in arms for path, _ in arm}),
        },
        "tasks": {
            task: {
                "effect": by_metric([task]),
                "primary_metric": PRIMARY if "skill" in effects[task] else TERMS_PRIMARY,
                "examples": drawn[task].examples,
                "seeds": len({contrast.seed for contrast in part.contrasts if contrast.task == task}),
            }
            for task in tasks
        },
        "rivals": _each_rival(part, drawn) if several else {},
        "pairs": [
            {
                "task": task,
                "setting": setting,
                "effect": {str(seed): value for seed, value in each.items()},
                "models": {
                    str(contrast.seed): {
                        "fixed": [path for path, _ in contrast.fixed],
                        "rivals": {name: [path for path, _ in arm] for name, arm in contrast.rivals.items()},
                    }
                    for contrast in contrasts
                },
            }
            for task in tasks
            for (setting, contrasts), each in zip(settings[task].items(), effects[task][PRIMARY].each, strict=True)
        ],
    }


def _by_task_and_setting(contrasts: Iterable[Contrast]) -> dict[str, dict[str, list[Contrast]]]:
    """Task -> setting -> its contrasts, one for each seed."""
    groups: dict[str, dict[str, list[Contrast]]] = {}
    for contrast in contrasts:
        groups.setdefault(contrast.task, {}).setdefault(contrast.setting, []).append(contrast)
    return groups


def _each_rival(part: Part, drawn: Mapping[str, Draws]) -> dict[str, dict[str, float]]:
    """The fixed arm against each rival in turn: a description, not corrected for the number of rivals."""
    summaries = {}
    for name in dict.fromkeys(name for contrast in part.contrasts for name in contrast.rivals):
        settings = _by_task_and_setting(
            replace(contrast, rivals={name: contrast.rivals[name]})
            for contrast in part.contrasts
            if name in contrast.rivals
        )
        effects = [_effects(drawn[task], of_task.values(), part.sign)[PRIMARY] for task, of_task in settings.items()]
        summaries[name] = _summary(effects, statistics.generator("seeds", part.name, name))[0]
    return summaries


def _summary(effects: Sequence[Effect], rng: np.random.Generator) -> tuple[dict[str, float], Array]:
    """Mean over tasks of equal weight with its interval over examples and seeds, and the draws of the interval."""
    seeds = [statistics.seed_variance(effect.each) for effect in effects]
    value = float(np.mean([effect.value for effect in effects]))
    draws = np.mean([effect.draws for effect in effects], axis=0)
    draws = draws + statistics.noise(seeds, len(draws), rng)
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return {"value": value, "low": float(low), "high": float(high)}, draws


def _effects(drawn: Draws, settings: Iterable[Sequence[Contrast]], sign: int) -> dict[str, Effect]:
    """Metric -> effect in one task; ``settings`` has for each setting its contrasts, one for each seed."""
    values: dict[str, list[dict[int, float]]] = defaultdict(list)
    draws: dict[str, list[Array]] = defaultdict(list)
    for contrasts in settings:
        names = list(contrasts[0].rivals)  # the same for every seed
        measured = _direct(drawn, contrasts, names[0]) if len(names) == 1 else _crossfit(drawn, contrasts, names)
        for metric, (observed, resampled) in measured.items():
            each = {contrast.seed: sign * float(value) for contrast, value in zip(contrasts, observed, strict=True)}
            values[metric].append(each)
            draws[metric].append(sign * resampled)
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


def _direct(drawn: Draws, contrasts: Sequence[Contrast], name: str) -> dict[str, tuple[Array, Array]]:
    """Metric -> fixed minus rival for each seed, shape (seeds,), and its mean under resamples, shape (resamples,)."""
    weights = _weights(drawn, [one.fixed for one in contrasts])
    weights -= _weights(drawn, [one.rivals[name] for one in contrasts])
    return {
        metric: ((drawn.observed[metric] @ weights)[0], drawn.resampled[metric] @ weights.mean(1))
        for metric in drawn.observed
    }


def _crossfit(drawn: Draws, contrasts: Sequence[Contrast], names: Sequence[str]) -> dict[str, tuple[Array, Array]]:
    """As ``_direct``, with fixed minus the best rival, chosen on PRIMARY.

    The rival of a seed is the best by the mean of the other seeds (its own, if it is the only one) on one half of the
    examples; it is measured with that seed on the other half; then the halves are swapped. The estimate is the mean
    over many random halvings of the examples. Each resample of the examples repeats halving, choice and measurement.
    The draws are shifted so that their mean is the estimate: a resample has fewer distinct examples to choose with, so
    its choices are worse than those on the data.
    """
    assert drawn.halves, "drawn with halves"
    seeds = len(contrasts)
    fixed = _weights(drawn, [one.fixed for one in contrasts])
    rivals = _weights(drawn, [one.rivals[name] for one in contrasts for name in names])

    def measured(halves: list[Values]) -> Values:
        total: Values = {}
        for choose, measure in (halves, halves[::-1]):
            scores = (choose[PRIMARY] @ rivals).reshape(-1, seeds, len(names))
            if seeds > 1:
                scores = scores.sum(1, keepdims=True) - scores
            best = scores.argmax(2)[:, :, None]
            for metric in drawn.observed:
                those = (measure[metric] @ rivals).reshape(-1, seeds, len(names))
                difference = measure[metric] @ fixed - np.take_along_axis(those, best, 2)[:, :, 0]
                total[metric] = total.get(metric, np.float32(0)) + difference / 2
        return total

    once, again = measured(drawn.halves), measured(drawn.resampled_halves)
    estimates = {}
    for metric in drawn.observed:
        observed, resampled = once[metric].mean(0), again[metric].mean(1)
        estimates[metric] = observed, resampled - resampled.mean() + observed.mean()
    return estimates
