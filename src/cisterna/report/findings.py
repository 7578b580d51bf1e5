"""Tests the claims of arXiv:2606.16517 on the answers of a study: effect, interval, n, verdict, models compared.

    cisterna findings --results results --output results/studies/NAME

writes ``findings.json`` and ``findings.html``. ``cisterna.report.claims`` defines what each claim compares. If a model
is compared with the best of several, the best is chosen on other examples and seeds than it is measured on
(cross-fitting): the best of many noisy numbers is too large. docs/findings.md explains how to read the result.

Not for choosing a model: neither ID nor OOD may choose a checkpoint. For advice on a budget see
``cisterna.report.advice``.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cisterna.artifacts import files
from cisterna.report import pages, statistics
from cisterna.report.claims import Arm, Claim, Contrast, Part, claims
from cisterna.report.statistics import HALVINGS, LEVEL, METRICS, PRIMARY, RESAMPLES, AnySheet, Array, Draws, Values
from cisterna.study import Study

FINDINGS = "findings.json"
PAGE = "findings.html"
ALPHA = 0.05  # of all verdicts of a study together
TERMS_PRIMARY = "f1_micro"  # what PRIMARY is of tasks whose answers are sets of terms
MARGIN = 0.01  # of PRIMARY: a smaller effect would not decide whether anyone trains a stage
SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "not enough evidence"
ABSENT = "not in this study"


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
    give the same bytes. Raises the UserErrors of ``cisterna.report.statistics.read``.
    """
    answers = statistics.read(study, results)
    asked = claims(study, present(answers.sheets))
    found: dict[str, Any] = {
        "study": study.name,
        "method": method(RESAMPLES, MARGIN),
        "evaluations": {"expected": len(study.evaluations()), "absent": list(answers.absent)},
        "tasks_left_out": answers.left_out,
        "claims": judge(asked, answers.sheets),
    }
    output.mkdir(parents=True, exist_ok=True)
    files.write_json(output / FINDINGS, found)
    with files.replacing(output / PAGE) as temporary:
        temporary.write_text(pages.findings(found), encoding="utf-8")
    return found


def method(resamples: int, margin: float) -> dict[str, Any]:
    """How the numbers were made, for the JSON and the page."""
    return {
        "primary_metric": PRIMARY,
        "primary_metric_of_sets_of_terms": TERMS_PRIMARY,
        "metrics": list(METRICS),
        "level": LEVEL,
        "alpha": ALPHA,
        "margin": margin,
        "resamples": resamples,
        "halvings": HALVINGS,
        "interval": "percentile bootstrap over the examples of each task, paired between models, plus between-seed "
        "variance with the tails of Student's t; tasks have equal weight; not adjusted for the number of claims",
        "correction": "Holm, over all parts of all claims that the study could test",
        "winners": "where a part is against the best of several, the best is chosen on one random half of the examples "
        "and by the other seeds, and measured on the other half and its own seed",
    }


def present(sheets: Mapping[tuple[str, str], AnySheet]) -> set[tuple[str, str]]:
    """(task, path of the model) of every evaluation in ``sheets``."""
    return {(task, model) for (task, _), of in sheets.items() for model in of.models}


def judge(
    asked: Sequence[Claim],
    sheets: Mapping[tuple[str, str], AnySheet],
    resamples: int = RESAMPLES,
    margin: float = MARGIN,
    halvings: int = HALVINGS,
) -> list[dict[str, Any]]:
    """Effect, interval, n, p and verdict of every part, and the verdict of every claim, ready for JSON.

    ``asked`` has the claims, ``sheets`` the answers for each (task, split). Each (task, split) is resampled once, so
    that all parts see the same resamples.
    """
    drawn: dict[tuple[str, str], Draws] = {}
    chosen = {
        (contrast.task, part.split)
        for claim in asked
        for part in claim.parts
        for contrast in part.contrasts
        if len(contrast.rivals) > 1
    }

    def of(task: str, split: str) -> Draws:
        if (task, split) not in drawn:
            rng = statistics.generator("examples", task, split)
            wanted = halvings if (task, split) in chosen else 0
            drawn[task, split] = statistics.draw(sheets[task, split], rng, resamples, wanted)
        return drawn[task, split]

    found = [[_measure(part, of, margin) for part in claim.parts] for claim in asked]
    tested = [part for parts in found for part in parts if part["status"] == "measured"]
    for part, p in zip(tested, statistics.holm([part["p"] for part in tested]), strict=True):
        part["p_holm"] = p
        above = part["effect"][PRIMARY]["value"] > 0
        part["verdict"] = UNDECIDED if p > ALPHA else SUPPORTED if above else CONTRADICTED
    return [
        {
            "claim": claim.name,
            "title": claim.title,
            "verdict": _verdict(claim, parts),
            "rule": _rule(claim),
            "parts": parts,
        }
        for claim, parts in zip(asked, found, strict=True)
    ]


def _rule(claim: Claim) -> str:
    if len([part for part in claim.parts if part.decides]) == 1:
        return "the verdict of its first part; the others are contrasts to it"
    if claim.conjunction:
        return "supported if all parts are, contradicted if one is"
    return "supported if one split is and none is contradicted; contradicted if one split is and none is supported"


def _verdict(claim: Claim, parts: Sequence[Mapping[str, Any]]) -> str:
    verdicts = [found["verdict"] for part, found in zip(claim.parts, parts, strict=True) if part.decides]
    if set(verdicts) == {ABSENT}:
        return ABSENT
    if claim.conjunction:
        if CONTRADICTED in verdicts:
            return CONTRADICTED
        return SUPPORTED if set(verdicts) == {SUPPORTED} else UNDECIDED
    decided = set(verdicts) - {UNDECIDED, ABSENT}
    return decided.pop() if len(decided) == 1 else UNDECIDED


def _measure(part: Part, of: Callable[[str, str], Draws], margin: float) -> dict[str, Any]:
    """One part, without the verdict: the correction for many tests needs the p-values of all parts."""
    head: dict[str, Any] = {"part": part.name, "split": part.split, "title": part.title, "decides": part.decides}
    if not part.contrasts:
        return head | {"status": ABSENT, "verdict": ABSENT, "needs": part.needs}
    tasks = list(dict.fromkeys(contrast.task for contrast in part.contrasts))
    drawn = {task: of(task, part.split) for task in tasks}
    settings = {task: _settings([contrast for contrast in part.contrasts if contrast.task == task]) for task in tasks}
    effects = {task: _effects(drawn[task], list(settings[task].values()), part.sign) for task in tasks}

    def summary(metric: str, some: Sequence[str]) -> tuple[dict[str, float], Array]:
        return _summary([effects[task][metric] for task in some], statistics.generator("seeds", part.name, *some))

    def of_all(metric: str, some: Sequence[str]) -> dict[str, float] | None:
        known = [task for task in some if metric in effects[task]]
        return summary(metric, known)[0] if known else None

    draws = summary(PRIMARY, tasks)[1]
    tails = ((draws <= margin).sum(), (draws >= -margin).sum())
    seeds = {contrast.seed for contrast in part.contrasts}
    models = {path for contrast in part.contrasts for arm in _arms(contrast) for path, _ in arm}
    several = any(len(contrast.rivals) > 1 for contrast in part.contrasts)
    return head | {
        "status": "measured",
        "effect": {metric: of_all(metric, tasks) for metric in METRICS},
        "p": float(min(1.0, 2 * (1 + min(tails)) / (1 + len(draws)))),
        "covers": "test examples and training seeds" if len(seeds) > 1 else "test examples only: one training seed",
        "n": {
            "examples": sum(drawn[task].examples for task in tasks),
            "tasks": len(tasks),
            "seeds": len(seeds),
            "pairs": sum(len(contrast.rivals) for contrast in part.contrasts),
            "models": len(models),
        },
        "tasks": {
            task: {
                "effect": {metric: of_all(metric, [task]) for metric in METRICS},
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
                "setting": words,
                "effect": {str(seed): value for seed, value in effects[task][PRIMARY].each[place].items()},
                "models": {
                    str(contrast.seed): {
                        "fixed": [path for path, _ in contrast.fixed],
                        "rivals": {name: [path for path, _ in arm] for name, arm in contrast.rivals.items()},
                    }
                    for contrast in contrasts
                },
            }
            for task in tasks
            for place, (words, contrasts) in enumerate(settings[task].items())
        ],
    }


def _arms(contrast: Contrast) -> list[Arm]:
    return [contrast.fixed, *contrast.rivals.values()]


def _settings(contrasts: Sequence[Contrast]) -> dict[str, list[Contrast]]:
    """Setting -> its contrasts, one for each seed."""
    groups: dict[str, list[Contrast]] = defaultdict(list)
    for contrast in contrasts:
        groups[contrast.setting].append(contrast)
    return dict(groups)


def _each_rival(part: Part, drawn: Mapping[str, Draws]) -> dict[str, dict[str, float]]:
    """The fixed arm against each rival in turn: a description, not corrected for the number of rivals."""
    names = dict.fromkeys(name for contrast in part.contrasts for name in contrast.rivals)
    found = {}
    for name in names:
        mine = [
            replace(contrast, rivals={name: contrast.rivals[name]})
            for contrast in part.contrasts
            if name in contrast.rivals
        ]
        tasks = dict.fromkeys(contrast.task for contrast in mine)
        effects = [
            _effects(drawn[task], list(_settings([one for one in mine if one.task == task]).values()), part.sign)
            for task in tasks
        ]
        rng = statistics.generator("seeds", part.name, name)
        found[name] = _summary([effect[PRIMARY] for effect in effects], rng)[0]
    return found


def _summary(effects: Sequence[Effect], rng: np.random.Generator) -> tuple[dict[str, float], Array]:
    """Mean over tasks of equal weight with its interval over examples and seeds, and the draws of the interval."""
    seeds = [statistics.seed_variance(effect.each) for effect in effects]
    value = float(np.mean([effect.value for effect in effects]))
    draws = np.mean([effect.draws for effect in effects], axis=0)
    draws = draws + statistics.noise(seeds, len(draws), rng)
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return {"value": value, "low": float(low), "high": float(high)}, draws


def _effects(drawn: Draws, settings: Sequence[Sequence[Contrast]], sign: int) -> dict[str, Effect]:
    """Metric -> effect in one task; ``settings`` has for each setting its contrasts, one for each seed."""
    values: dict[str, list[dict[int, float]]] = {metric: [] for metric in drawn.observed}
    draws: dict[str, list[Array]] = {metric: [] for metric in drawn.observed}
    for contrasts in settings:
        names = list(contrasts[0].rivals)  # the same for every seed
        measured = _direct(drawn, contrasts, names[0]) if len(names) == 1 else _crossfit(drawn, contrasts, names)
        for metric, (observed, resampled) in measured.items():
            each = {contrast.seed: sign * float(value) for contrast, value in zip(contrasts, observed, strict=True)}
            values[metric].append(each)
            draws[metric].append(sign * resampled)
    return {
        metric: Effect(
            tuple(values[metric]),
            float(np.mean([sum(each.values()) / len(each) for each in values[metric]])),
            np.mean(draws[metric], axis=0),
        )
        for metric in drawn.observed
    }


def _weights(drawn: Draws, arms: Sequence[Arm]) -> np.ndarray:
    """Coefficients of the models in each arm, shape (models, arms)."""
    found = np.zeros((len(drawn.columns), len(arms)), dtype=np.float32)
    for column, arm in enumerate(arms):
        for path, coefficient in arm:
            found[drawn.columns[path], column] += coefficient
    return found


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
    assert drawn.halves is not None, "drawn with halves"
    assert drawn.resampled_halves is not None, "drawn with halves"
    seeds = len(contrasts)
    fixed = _weights(drawn, [one.fixed for one in contrasts])
    rivals = _weights(drawn, [one.rivals[name] for one in contrasts for name in names])

    def measured(halves: tuple[Values, Values]) -> Values:
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
    found = {}
    for metric in drawn.observed:
        observed = once[metric].mean(0)
        resampled = again[metric].mean(1)
        found[metric] = observed, resampled - resampled.mean() + observed.mean()
    return found
