"""Advice from a study for a training budget: the ID-OOD frontier, where OOD peaks, how to split epochs.

    cisterna advise --config config/config.yaml --budget-epochs 8

All numbers have an uncertainty, over resamples of the examples and over training seeds. Where it is too large, the
answer is that the data cannot tell. Advice rests on the test splits: this study reports nothing that was chosen by it,
and whoever follows it needs a fresh test set to measure the outcome.

Not for testing claims (``cisterna.report.findings``), not for what a stage costs (``cisterna.ops.plan``).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from cisterna import study as studies
from cisterna.artifacts import files
from cisterna.constants import TEST_SPLITS
from cisterna.errors import UserError
from cisterna.report import budgets, comparisons, statistics
from cisterna.report.statistics import LEVEL, PRIMARY, RESAMPLES, AnySheet, Array
from cisterna.study import Model, Study

SURE = 0.8  # an allocation has to be the best in this share of the resamples to be advised
LIKELY = 0.05  # a stage has to be on the frontier in this share of the resamples to be listed
FRESH = (
    "OOD results describe the OOD test sets of this study. A choice based on them is a choice on test data: measure "
    "what you choose on a fresh test set."
)


@dataclass(frozen=True)
class Scores:
    """PRIMARY for the stages of one task on one split; a stage here is a checkpoint, whatever its seed.

    ``observed``, shape (stages,), is the mean over seeds; ``drawn``, shape (resamples, stages), the same under
    resamples of examples and seeds.
    """

    observed: Array
    drawn: Array


@dataclass(frozen=True)
class Stages:
    """The stages of one task: their names, the models of each (one a seed), and their scores by split."""

    names: tuple[str, ...]
    models: tuple[tuple[Model, ...], ...]
    scores: Mapping[str, Scores]


def main(
    configs: Sequence[Path], budget: int | None, results: Path = Path("results"), output: Path | None = None
) -> None:
    """Print the advice from a study, and write it to the JSON file ``output`` unless that is None.

    UserError if the config is not valid, or if none of its evaluations is in ``results``.
    """
    advice = advise(studies.read(*configs), results, budget)
    if output:
        files.write_json(output, advice)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200, color_system=None)
    show(advice, console)


def advise(study: Study, results: Path, budget: int | None = None, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Frontier and peaks of every task, and the advice on a budget of SFT and RL epochs, ready for JSON.

    Without a budget it lists the budgets for which the study compares splits. Raises UserError for a budget below 1,
    and the UserErrors of ``cisterna.report.statistics.read``.
    """
    if budget is not None and budget < 1:
        raise UserError(f"--budget-epochs {budget}: expected a number of epochs, 1 or more")
    answers = statistics.read(study, results)
    return {
        "study": study.name,
        "method": {"metric": PRIMARY, "resamples": resamples, "sure": SURE, "level": LEVEL, "likely": LIKELY},
        "evaluations": {"expected": len(study.evaluations()), "absent": list(answers.absent)},
        "tasks_left_out": answers.left_out,
        "note": FRESH,
    } | weigh(study, answers.sheets, budget, resamples)


def weigh(
    study: Study, sheets: Mapping[tuple[str, str], AnySheet], budget: int | None, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """The part of ``advise`` that needs no files: ``sheets`` has the answers for every (task, split)."""
    tasks = {task: _stages(study, task, sheets, resamples) for task in study.tasks if (task, "id") in sheets}
    known = _known(study, tasks)
    return {
        "seeds": {
            task: len({model.seed for models in stages.models for model in models} - {None})
            for task, stages in tasks.items()
        },
        "frontier": {task: _frontier(stages) for task, stages in tasks.items()},
        "peaks": {task: _peaks(stages) for task, stages in tasks.items()},
        "budgets": sorted(known),
        "budget": None if budget is None else _budget(budget, known, tasks),
    }


def _stages(study: Study, task: str, sheets: Mapping[tuple[str, str], AnySheet], resamples: int) -> Stages:
    groups: dict[tuple[Any, ...], list[Model]] = defaultdict(list)
    answered = {path for split in TEST_SPLITS for path in sheets[task, split].models}
    for evaluated_on, model in comparisons.evaluated_models(study):
        if evaluated_on == task and model.path in answered:
            groups[_stage(model)].append(model)
    seeds = sorted({model.seed for models in groups.values() for model in models if model.seed is not None})
    columns = {seed: column for column, seed in enumerate(seeds)}
    weights = statistics.seed_weights(len(seeds), resamples, statistics.generator("advice", task, "seeds"))
    spread = weights - 1 / max(len(seeds), 1)
    scores = {}
    for split in TEST_SPLITS:
        sheet = sheets[task, split]
        drawn = statistics.draw(sheet, statistics.generator("advice", task, split), resamples)
        places = statistics.columns(sheet)
        observed, draws = [], []
        for models in groups.values():
            mine = np.array([places[model.path] for model in models])
            once = drawn.observed[PRIMARY][0, mine].astype(float)
            many = drawn.resampled[PRIMARY][:, mine].mean(1).astype(float)
            if len(models) > 1:
                luck = spread[:, np.array([columns[model.seed] for model in models if model.seed is not None])]
                many = many + luck @ (once - once.mean())
            observed.append(once.mean())
            draws.append(many)
        scores[split] = Scores(np.array(observed), np.stack(draws, axis=1))
    return Stages(
        tuple(_name(models[0]) for models in groups.values()),
        tuple(tuple(models) for models in groups.values()),
        scores,
    )


def _stage(m: Model) -> tuple[Any, ...]:
    return m.backbone, m.sequences, m.encoder, m.cpt, m.sft, m.sft_epochs, m.rl, m.rl_epochs


def _name(m: Model) -> str:
    form = [] if m.sequences == "tokens" else [f"{m.sequences} of {m.encoder}"]
    words = [m.backbone, *form, *([f"CPT {m.cpt}"] if m.cpt else [])]
    words += [f"SFT {m.sft} e{m.sft_epochs}"] if m.sft else []
    words += [f"RL {m.rl} e{m.rl_epochs}"] if m.rl else []
    return " · ".join(words)


def _frontier(stages: Stages) -> list[dict[str, Any]]:
    """The stages on the Pareto frontier of ID and OOD, in the data or in at least LIKELY of the resamples."""
    ours = [stages.scores[split] for split in TEST_SPLITS]
    once = _undominated(*(scores.observed[None] for scores in ours))[0]
    often = _undominated(*(scores.drawn for scores in ours)).mean(0)
    frontier = [
        {
            "stage": stages.names[place],
            "models": [model.path for model in stages.models[place]],
            "on_frontier": bool(once[place]),
            "probability": float(often[place]),
            **{split: _estimate(scores, place) for split, scores in zip(TEST_SPLITS, ours, strict=True)},
        }
        for place in range(len(stages.names))
        if once[place] or often[place] >= LIKELY
    ]
    return sorted(frontier, key=lambda stage: (-stage["id"]["value"], stage["stage"]))


def _undominated(first: Array, second: Array) -> np.ndarray:
    """Which columns are on the Pareto frontier, shape (rows, columns): none is as good on both and better on one."""
    kept = np.ones(first.shape, dtype=bool)
    for place in range(first.shape[1]):
        a, b = first[:, [place]], second[:, [place]]
        kept &= ~((a >= first) & (b >= second) & ((a > first) | (b > second)))
    return kept


def _estimate(scores: Scores, place: int) -> dict[str, float]:
    tail = 50 * (1 - LEVEL)
    # A score is a share. The part of the draws for other training seeds is from Student's t, and may go beyond 0 and 1.
    low, high = np.clip(np.percentile(scores.drawn[:, place], [tail, 100 - tail]), 0, 1)
    return {"value": float(scores.observed[place]), "low": float(low), "high": float(high)}


def _peaks(stages: Stages) -> list[dict[str, Any]]:
    """For each SFT recipe with two rungs or more, the share of the resamples in which OOD is highest at each rung."""
    ladders: dict[tuple[Any, ...], dict[int, int]] = defaultdict(dict)
    for place, (model, *_) in enumerate(stages.models):
        if model.kind == "sft":
            ladders[*_stage(model)[:4], model.sft][model.sft_epochs] = place
    peaks = []
    for rungs in ladders.values():
        if len(rungs) > 1:
            ordered = dict(sorted(rungs.items()))
            places = list(ordered.values())
            best = stages.scores["ood"].drawn[:, places].argmax(1)
            shares = np.bincount(best, minlength=len(places)) / len(best)
            model = stages.models[places[0]][0]
            peak = int(stages.scores["ood"].observed[places].argmax())
            peaks.append(
                {
                    "setting": _name(model).rpartition(" e")[0],
                    "peak": list(ordered)[peak],
                    "sure": bool(shares[peak] >= SURE),
                    "rungs": [
                        {"epochs": epochs, "probability": float(share), "ood": _estimate(stages.scores["ood"], place)}
                        for (epochs, place), share in zip(ordered.items(), shares, strict=True)
                    ],
                }
            )
    return peaks


Known = dict[int, dict[tuple[tuple[int, int], ...], list[tuple[str, str, tuple[int, ...]]]]]


def _known(study: Study, tasks: Mapping[str, Stages]) -> Known:
    """Budget in epochs -> the splits that are compared -> (task, setting, index of the stage of each split)."""
    known: Known = defaultdict(lambda: defaultdict(list))
    places = {
        (task, model.path): place
        for task, stages in tasks.items()
        for place, models in enumerate(stages.models)
        for model in models
    }
    for (unit, total, words, (task, *_)), splits in budgets.allocations(study).items():
        if unit == "epochs" and all((task, model.path) in places for model in splits.values()):
            one = task, words, tuple(places[task, model.path] for model in splits.values())
            if one not in known[total][tuple(splits)]:  # the same for every seed
                known[total][tuple(splits)].append(one)
    return known


def _budget(budget: int, known: Known, tasks: Mapping[str, Stages]) -> dict[str, Any]:
    """For each set of splits that is compared: how good each is, how often it is the best, and a verdict."""
    if budget not in known:
        listed = ", ".join(map(str, sorted(known)))
        has = f"It compares splits of {listed} epochs." if known else "It compares none of any budget."
        verdict = f"The data cannot tell: this study has no two splits of {budget} epochs between SFT and RL. {has}"
        return {"epochs": budget, "comparisons": [], "verdict": verdict}
    comparisons = []
    for splits, where in known[budget].items():
        by_split = {split: _compare(splits, where, tasks, split) for split in TEST_SPLITS}
        comparisons.append(
            {
                "tasks": list(dict.fromkeys(task for task, _, _ in where)),
                "settings": [{"task": task, "setting": words} for task, words, _ in where],
                "allocations": [
                    {"sft": sft, "rl": rl} | {split: by_split[split][place] for split in TEST_SPLITS}
                    for place, (sft, rl) in enumerate(splits)
                ],
                "verdict": {split: _choice(splits, by_split[split], split) for split in TEST_SPLITS},
            }
        )
    return {"epochs": budget, "comparisons": comparisons, "verdict": _overall(budget, comparisons)}


def _compare(
    splits: Sequence[tuple[int, int]],
    where: Sequence[tuple[str, str, tuple[int, ...]]],
    tasks: Mapping[str, Stages],
    split: str,
) -> list[dict[str, float]]:
    """For each allocation: mean over tasks of equal weight, how often it is the best, and its expected regret.

    The expected regret is the mean, over resamples, of the best allocation's score minus this one's.
    """
    once: dict[str, list[Array]] = defaultdict(list)
    many: dict[str, list[Array]] = defaultdict(list)
    for task, _, places in where:
        once[task].append(tasks[task].scores[split].observed[list(places)])
        many[task].append(tasks[task].scores[split].drawn[:, list(places)])
    observed = np.mean([np.mean(values, axis=0) for values in once.values()], axis=0)
    drawn = np.mean([np.mean(values, axis=0) for values in many.values()], axis=0)
    best = np.bincount(drawn.argmax(1), minlength=len(splits)) / len(drawn)
    regret = (drawn.max(1, keepdims=True) - drawn).mean(0)
    pooled = Scores(observed, drawn)
    return [
        _estimate(pooled, place) | {"probability_best": float(best[place]), "expected_regret": float(regret[place])}
        for place in range(len(splits))
    ]


def _choice(splits: Sequence[tuple[int, int]], estimates: Sequence[Mapping[str, float]], split: str) -> dict[str, Any]:
    """The allocation that is the best in most resamples, and whether it is in at least SURE of them."""
    (sft, rl), best = max(zip(splits, estimates, strict=True), key=lambda pair: pair[1]["probability_best"])
    sure = best["probability_best"] >= SURE
    numbers = f"best in {best['probability_best']:.0%} of the resamples, expected regret {best['expected_regret']:.3f}"
    name = budgets.split_words(sft, rl)
    text = f"{name} ({numbers})" if sure else f"the data cannot tell; {name} leads ({numbers})"
    return {"sure": sure, "sft": sft, "rl": rl, "text": f"{split.upper()}: {text}."}


def _overall(budget: int, comparisons: Sequence[Mapping[str, Any]]) -> str:
    """A verdict in one sentence; it names an allocation only if both splits support it in all comparisons."""
    choices = [comparison["verdict"][split] for comparison in comparisons for split in TEST_SPLITS]
    splits = {(choice["sft"], choice["rl"]) for choice in choices if choice["sure"]}
    if all(choice["sure"] for choice in choices) and len(splits) == 1:
        return f"For {budget} epochs the evidence supports {budgets.split_words(*splits.pop())}, for ID and OOD alike."
    if not splits:
        return (
            f"The data cannot tell how to split {budget} epochs: no allocation is the best in {SURE:.0%} of resamples."
        )
    return f"For {budget} epochs there is no one answer: it depends on the split, or on the comparison; see each below."


# The same, for a terminal


def show(advice: Mapping[str, Any], console: Console) -> None:
    """Print what ``advise`` returns."""
    method, absent = advice["method"], advice["evaluations"]["absent"]
    console.print(f"[bold]Advice of study {advice['study']}[/bold], by {method['metric'].replace('_', ' ')}")
    if absent:
        console.print(f"{len(absent)} of {advice['evaluations']['expected']} evaluations are absent and left out.")
    for task, reason in advice["tasks_left_out"].items():
        console.print(f"{task} is left out: {reason}.", markup=False)
    covers = "test examples and training seeds"
    if max(advice["seeds"].values(), default=0) < 2:
        covers = "test examples only: with one training seed the variation between trainings is unknown"
    console.print(f"Intervals ({method['level']:.0%}) and probabilities cover {covers}.\n")
    if advice["budget"]:
        _show_budget(advice["budget"], console)
    else:
        listed = ", ".join(map(str, advice["budgets"])) or "none"
        console.print(f"[bold]Budgets[/bold] (--budget-epochs) for which this study compares splits: {listed}\n")
    for task, ladders in advice["peaks"].items():
        _show_peaks(task, ladders, console)
    for task, stages in advice["frontier"].items():
        _show_frontier(task, stages, console)
    console.print(advice["note"])


def _show_budget(budget: Mapping[str, Any], console: Console) -> None:
    console.print(f"[bold]Budget of {budget['epochs']} epochs[/bold]")
    console.print(f"{budget['verdict']}")
    for comparison in budget["comparisons"]:
        rows = []
        for allocation in comparison["allocations"]:
            row = [budgets.split_words(allocation["sft"], allocation["rl"])]
            for split in TEST_SPLITS:
                numbers = allocation[split]
                row += [_number(numbers), f"{numbers['probability_best']:.0%}", f"{numbers['expected_regret']:.3f}"]
            rows.append(row)
        settings = dict.fromkeys(entry["setting"] for entry in comparison["settings"])
        console.print(f"\n{', '.join(comparison['tasks'])} ({'; '.join(settings)})", markup=False)
        _show_table(["SFT + RL", "ID", "best", "regret", "OOD", "best", "regret"], rows, console)
        for split in TEST_SPLITS:
            console.print(f"  {comparison['verdict'][split]['text']}")
    console.print()


def _show_peaks(task: str, ladders: Sequence[Mapping[str, Any]], console: Console) -> None:
    if not ladders:
        return
    rows = []
    for ladder in ladders:
        shares = "  ".join(f"e{rung['epochs']} {rung['probability']:.0%}" for rung in ladder["rungs"])
        peak = f"e{ladder['peak']}" if ladder["sure"] else f"cannot tell (e{ladder['peak']} leads)"
        rows.append([ladder["setting"], peak, shares])
    console.print(f"[bold]{task}[/bold]: where OOD peaks along SFT")
    _show_table(["SFT ladder", "OOD is highest at", "share of the resamples at each rung"], rows, console)
    console.print()


def _show_frontier(task: str, stages: Sequence[Mapping[str, Any]], console: Console) -> None:
    rows = []
    for stage in stages:
        numbers = [_number(stage[split]) for split in TEST_SPLITS]
        rows.append(["*" if stage["on_frontier"] else "", stage["stage"], *numbers, f"{stage['probability']:.0%}"])
    console.print(f"[bold]{task}[/bold]: frontier of ID and OOD (*: on it in the data; share of the resamples)")
    _show_table(["", "stage", "ID", "OOD", "on the frontier"], rows, console)
    console.print()


def _show_table(columns: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console.print(Padding(table, (0, 0, 0, 2), expand=False))


def _number(numbers: Mapping[str, float]) -> str:
    return f"{numbers['value']:.3f} ({numbers['low']:.3f} to {numbers['high']:.3f})"
