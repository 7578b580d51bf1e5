"""Tests the claims of arXiv:2606.16517 on the answers of a study: effect, interval, n, verdict, models compared.

    cisterna findings --results results --output results/studies/NAME

writes ``findings.json`` and ``findings.html``. ``cisterna.report.claims`` defines what each claim compares. If a model
is compared with the best of several, the best is chosen on other examples and seeds than it is measured on
(cross-fitting): the best of many noisy numbers is too large. docs/findings.md explains how to read the result.

Not for choosing a model: neither ID nor OOD may choose a checkpoint. For advice on a budget see
``cisterna.report.advice``.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cisterna.artifacts import files
from cisterna.constants import TEST_SPLITS
from cisterna.report import effects, pages, statistics
from cisterna.report.claims import claims
from cisterna.report.comparisons import MIXTURES, Claim, Contrast, Part
from cisterna.report.statistics import HALVINGS, LEVEL, PRIMARY, RESAMPLES, AnySheet, Draws
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
    "same_shape": effects.SAME_SHAPE,
    "resamples": RESAMPLES,
    "halvings": HALVINGS,
    "interval": "percentile bootstrap over the examples of each task, paired between models, plus between-seed "
    "variance with the tails of Student's t; tasks have equal weight; not adjusted for the number of claims",
    "correction": "Holm, over all parts of all claims that the study could test",
    "winners": "where a part has the best of several, it is chosen on one random half of the examples "
    "and by the other seeds, and measured on the other half and its own seed",
}
"""How the numbers are made, for the JSON and the page."""


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
    with_choice = {
        (contrast.task, split)
        for claim in tested
        for part in claim.parts
        for contrast in part.contrasts
        if effects.has_choice(contrast)
        for split in (TEST_SPLITS if part.split in MIXTURES else [part.split])
    }

    @functools.cache
    def draws(task: str, split: str) -> Draws:
        if split in MIXTURES:
            first, second = (draws(task, one) for one in TEST_SPLITS)
            return statistics.mix(first, second, MIXTURES[split])
        rng = statistics.generator("examples", task, split)
        wanted = halvings if (task, split) in with_choice else 0
        return statistics.draw(sheets[task, split], rng, resamples, wanted)

    measured = [[_measure(part, draws, margin) for part in claim.parts] for claim in tested]
    parts = [part for of_claim in measured for part in of_claim if part["status"] == "measured"]
    for part, p in zip(parts, statistics.holm([part["p"] for part in parts]), strict=True):
        part["p_holm"] = p
        part["verdict"] = UNDECIDED if p > ALPHA else part["verdict"]
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
    deciding = sum(part.decides for part in claim.parts)
    contrasts = "; the others are contrasts to it" if deciding < len(claim.parts) else ""
    if deciding == 1:
        return f"the verdict of its first part{contrasts}"
    if claim.conjunction:
        which = f"its first {deciding} parts" if contrasts else "all parts"
        return f"supported if {which} are, contradicted if one of them is{contrasts}"
    return (
        "supported if one split is and none is contradicted; contradicted if one split is and none is supported"
        f"{contrasts}"
    )


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
    """One part. Its verdict is what it leans to: the correction for many tests needs the p-values of all parts."""
    head: dict[str, Any] = {"part": part.name, "split": part.split, "title": part.title, "decides": part.decides}
    if not part.contrasts:
        return head | {"status": ABSENT, "verdict": ABSENT, "needs": part.needs}
    settings = effects.by_task_and_setting(part.contrasts)
    tasks = list(settings)
    drawn = {task: draws(task, part.split) for task in tasks}
    found = effects.measured(part, drawn)

    def by_metric(some: Sequence[str]) -> dict[str, dict[str, float] | None]:
        """Over the tasks that have the metric; None if none has."""
        known = {
            metric: [task for task in some if metric in found.metrics(task)] for metric in statistics.COMPARED_METRICS
        }
        return {metric: found.interval(metric, having) if having else None for metric, having in known.items()}

    claimed, against = found.p_values(margin)
    seeds = {contrast.seed for contrast in part.contrasts}
    return (
        head
        | {
            "status": "measured",
            "kind": type(part).__name__.lower() if type(part) is not Part else "difference",
            "verdict": SUPPORTED if claimed <= against else CONTRADICTED,
            "effect": by_metric(tasks),
            "p": min(1.0, 2 * min(claimed, against)),
            "covers": "test examples and training seeds" if len(seeds) > 1 else "test examples only: one training seed",
            "n": {
                "examples": sum(drawn[task].examples for task in tasks),
                "tasks": len(tasks),
                "seeds": len(seeds),
                "pairs": sum(len(contrast.ours) * len(contrast.rivals) for contrast in part.contrasts),
                "models": len({path for contrast in part.contrasts for arm in contrast.arms for path, _ in arm}),
            },
            "tasks": {
                task: {
                    "effect": by_metric([task]),
                    "primary_metric": PRIMARY if "skill" in found.metrics(task) else TERMS_PRIMARY,
                    "examples": drawn[task].examples,
                    "seeds": len({contrast.seed for contrast in part.contrasts if contrast.task == task}),
                }
                for task in tasks
            },
            "pairs": [
                {
                    "task": task,
                    "setting": setting,
                    "effect": {str(seed): value for seed, value in each.items()},
                    "chosen": chosen,
                    "models": {str(contrast.seed): _paths(contrast) for contrast in contrasts},
                }
                for task in tasks
                for (setting, contrasts), each, chosen in zip(
                    settings[task].items(), found.each(task), found.choices(task), strict=True
                )
            ],
        }
        | found.more(margin)
    )


def _paths(contrast: Contrast) -> dict[str, dict[str, list[str]]]:
    return {
        side: {name: [path for path, _ in arm] for name, arm in getattr(contrast, side).items()}
        for side in ("ours", "rivals")
    }
