"""`cisterna plan`: what a study would train, before anything runs.

Counts of models and jobs are exact. Tokens, GPU-hours and disk are estimates, and the last lines say what each is based
on. Not for what is already done: use `snakemake --dry-run`.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from cisterna import study as studies
from cisterna.errors import UserError
from cisterna.ops import cost, workload
from cisterna.ops.workload import Workload
from cisterna.study import Model, Study
from cisterna.study.jobs import count_jobs

Row = list[Any]

SWEEP_COLUMNS = ("sweep", "models", "cpt", "sft", "rl", "in no sweep above")
STAGE_COLUMNS = ("stage", "recipe", "rung", "models", "lineages each", "examples", "tokens")
TASK_COLUMNS = ("task", "models", "evaluations", "SFT examples", "SFT tokens", "RL prompts", "RL tokens", "tested")
SHARED_COLUMNS = ("work", "as planned", "without ladders and banks", "without sharing")
COST_COLUMNS = ("stage", "GPU-hours", "GB on disk")
TEXT_COLUMNS = ("stage", "recipe", "rung", "task", "sweep", "work")  # all others are numbers


def main(*configs: Path, calibrated: bool = False, cores: int | None = None) -> None:
    """Print the plan of the study in config files (`cisterna.study.read`). UserError if they are not valid.

    With `calibrated` the hours that it takes on this machine, on so many `cores` (default: all).
    """
    if cores is not None and not calibrated:
        raise UserError("--cores: only with --calibrate")
    if cores is not None and cores < 1:
        raise UserError(f"--cores: expected a whole number above 0, not {cores}")
    study = studies.read(*configs)
    if not calibrated:
        print(plan(study))
        return
    from cisterna.ops import calibrate  # imports pandas

    print(calibrate.calibrate(study, cores or len(os.sched_getaffinity(0))))


def plan(study: Study, results: Path = Path("results")) -> str:
    """The tables of a study's sweeps, stages, tasks, costs and jobs, and what the estimates are based on, as text."""
    known = workload.measure(study, results)
    jobs = count_jobs(study)
    trained = sum(model.kind != "base" for model in study.models)
    parts = [
        f"Study {study.name}: {len(study.models)} models ({trained} trained checkpoints), "
        f"{len(study.evaluations())} evaluations, {sum(jobs.values())} jobs\n"
        "How long on this machine: the same command with --calibrate, which measures for a minute or some."
    ]
    if set(study.sweeps) != {""}:
        parts.append(_table(SWEEP_COLUMNS, sweep_rows(study), totals=SWEEP_COLUMNS[-1:]))
    passes = [[what, *map(_short, counts)] for what, *counts in cost.passes(study, known.rows)]
    costs = [[what, *map(_short, amounts)] for what, *amounts in cost.estimates(known)]
    parts += [
        _table(STAGE_COLUMNS, _stage_rows(known), totals=("models",)),
        _table(TASK_COLUMNS, [_task_row(known, task) for task in study.tasks], totals=TASK_COLUMNS[1:]),
        _table(SHARED_COLUMNS, passes),
        _table(COST_COLUMNS, costs),
        _table(tuple(jobs), [list(jobs.values())]),
        "\n".join(_notes(known)),
    ]
    return "\n\n".join(parts)


def sweep_rows(study: Study) -> Iterator[Row]:
    """For each sweep: its trained models, also by stage, and how many of them are in no sweep before it."""
    before: set[str] = set()
    for name, paths in study.sweeps.items():
        trained = [model for model in map(study.model, paths) if model.kind != "base"]
        kinds = Counter(model.kind for model in trained)
        new = {model.path for model in trained} - before
        before |= new
        yield [name or "(none)", len(trained), kinds["cpt"], kinds["sft"], kinds["rl"], len(new)]


def _stage_rows(known: Workload) -> Iterator[Row]:
    """For each kind, recipe and rung: the number of models, in how many lineages each is, and what they train on."""
    groups: dict[tuple[int, str, int], list[Model]] = {}
    for model in known.study.models:
        order = ("base", "cpt", "sft", "rl").index(model.kind)
        groups.setdefault((order, model.recipe or model.backbone, model.epochs), []).append(model)
    lineages = _lineages(known.study)
    for (_, name, epochs), models in sorted(groups.items()):
        counts = [lineages[model.path] for model in models]
        work = [known.of(model) for model in models]
        yield [
            models[0].kind,
            name,
            f"e{epochs}" if models[0].task else "",
            len(models),
            str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}",
            sum(part.examples for part in work),
            sum(part.tokens for part in work),
        ]


def _lineages(study: Study) -> Counter[str]:
    """The number of models that have each model in their lineage, itself included."""
    lineage: dict[str, set[str]] = {}  # of each model its own path, and those of its parents and previous rungs
    counts: Counter[str] = Counter()
    for model in study.models:
        below = (lineage[path] for path in (model.parent, model.previous) if path)
        lineage[model.path] = {model.path}.union(*below)
        counts.update(lineage[model.path])
    return counts


def _task_row(known: Workload, task: str) -> Row:
    models = [model for model in known.study.models if model.task == task]
    evaluations = sum(tested == task for _, _, tested in known.study.evaluations())
    row: Row = [task, len(models), evaluations]
    for kind in ("sft", "rl"):
        work = [known.of(model) for model in models if model.kind == kind]
        row += [sum(part.examples for part in work), sum(part.tokens for part in work)]
    return [*row, evaluations * known.rows_tested(task)]


def _notes(known: Workload) -> list[str]:
    """What the columns mean, and what the estimates are based on."""
    return [
        "lineages each: checkpoints with such a model in their lineage, itself included; it is",
        "  trained once for all of them. examples (cpt: blocks, sft: examples, rl: prompts) and",
        "  tokens of a rung are those beyond the rung before.",
        *known.notes(),
        "without ladders and banks: each rung a run of its own, the encoder in each step, rollout and test;",
        "  without sharing: each checkpoint also trains its parents.",
        *cost.assumptions(known.study),
    ]


def _table(columns: Sequence[str], rows: Iterator[Row] | list[Row], totals: Sequence[str] = ()) -> str:
    """A table with a line of sums of the columns `totals`; numbers in groups of three digits."""
    rows = list(rows)
    if totals and len(rows) > 1:
        sums = [sum(row[index] for row in rows) if name in totals else "" for index, name in enumerate(columns)]
        rows.append(["total", *sums[1:]])
    texts = [[value if isinstance(value, str) else f"{round(value):,}" for value in row] for row in rows]
    aligned = ["left" if column in TEXT_COLUMNS else "right" for column in columns]
    return tabulate(texts, columns, tablefmt="simple", colalign=aligned, disable_numparse=True)


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"
