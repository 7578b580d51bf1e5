"""`cisterna plan --calibrate`: how many hours a study takes on this machine, by a short measurement of its jobs.

What is measured, and how, is in `cisterna.ops.probes`; the arithmetic in `cisterna.ops.timing`. Not for a cluster: its
jobs wait, and run on other machines.
"""

import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from cisterna.errors import UserError
from cisterna.ops import stopwatch, timing
from cisterna.ops.probes import MOST, Probes
from cisterna.ops.stopwatch import Cost
from cisterna.ops.timing import START, Part, Timing
from cisterna.study import Study
from cisterna.study.jobs import KINDS, Job, asked_as, jobs

LARGEST = 5  # jobs that are listed
KIND_COLUMNS = ("jobs", "in all", "done", "time of the others", "CPU time", "share")
JOB_COLUMNS = ("longest jobs", "", "time")


@dataclass(frozen=True)
class Machine:
    """What was measured with: cores and GPUs that the study may use, the seconds of measuring, cores used by others."""

    cores: int
    gpus: int
    took: float
    others: float

    @property
    def busy(self) -> bool:
        """Whether other programs took so much of it that wall times say little."""
        return self.others > stopwatch.BUSY * (os.cpu_count() or 1)


def calibrate(study: Study, cores: int, results: Path = Path("results")) -> str:
    """Measure, and estimate the jobs of a study that are not done below `results`: tables, and what they assume."""
    everything = jobs(study)
    todo = [job for job in everything if not (results / job.proof).exists()]
    if not todo:
        return f"Study {study.name}: all {len(everything)} jobs are done"
    _refuse(study, todo)
    print(f"measuring, about a minute for each of {len(study.backbones)} backbones", file=sys.stderr)
    with stopwatch.opened(cores, stopwatch.count_gpus()) as watch:
        begun = time.monotonic()
        watch.begin()
        probes = Probes(study, todo, results, watch)
        timed = probes.run()
        machine = Machine(cores, watch.gpus, time.monotonic() - begun, watch.others())
    return render(timed, probes.costs, todo, machine)


def _refuse(study: Study, todo: Sequence[Job]) -> None:
    """UserError for what cannot be measured on one machine."""
    for kind in ("cpt", "sft", "rl"):
        for name, recipe in study.config["recipes"][kind].items():
            if recipe["nodes"] > 1 and any(job.kind == kind for job in todo):
                raise UserError(
                    f"recipes.{kind}.{name}.nodes is {recipe['nodes']}: --calibrate measures on this machine alone; "
                    "leave it out, or set nodes to 1 in a further --config file"
                )


def render(timed: Timing, costs: Mapping[Part, Cost], todo: Sequence[Job], machine: Machine) -> str:
    """The estimate of the jobs `todo` as text."""
    study = timed.study
    estimated = [(job, timing.cost_of(timed.parts(job), costs)) for job in todo]
    uses = {job.kind: _asked(study, job.kind) for job in todo}
    taken = [(job, timing.seconds(cost, uses[job.kind][0], machine.gpus, machine.busy)) for job, cost in estimated]
    wall = timing.makespan(taken, machine.cores, machine.gpus, uses)
    whole = sum(spent for _, spent in taken)
    totals: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    for (job, cost), (_, spent) in zip(estimated, taken, strict=True):
        totals[job.kind] = [a + b for a, b in zip(totals[job.kind], (1, spent, cost.cpu), strict=True)]
    counts = {kind: sum(job.kind == kind for job in jobs(study)) for kind in KINDS}
    rows = []
    for kind in [kind for kind in KINDS if counts[kind]]:
        left, spent, cpu = totals[kind]
        rows.append([kind, counts[kind], counts[kind] - int(left), _long(spent), _long(cpu), f"{spent / whole:.0%}"])
    cpu = sum(cost.cpu for _, cost in estimated)
    done = sum(counts.values()) - len(todo)
    rows.append(["total", sum(counts.values()), done, _long(whole), _long(cpu), ""])
    longest = sorted(taken, key=lambda pair: -pair[1])[:LARGEST]
    parts = [
        f"Study {study.name} on this machine with --cores {machine.cores}: about {_long(wall)} from start to end",
        tabulate(rows, KIND_COLUMNS, colalign=("left", *["right"] * 5), disable_numparse=True),
        tabulate(
            [[job.kind, job.name, _long(spent)] for job, spent in longest],
            JOB_COLUMNS,
            colalign=("left", "left", "right"),
            disable_numparse=True,
        ),
        tabulate(_rates(costs), ("measured here", "start, s", "then"), disable_numparse=True),
        "\n".join(_notes(timed, machine)),
    ]
    return "\n\n".join(parts)


def _asked(study: Study, kind: str) -> tuple[int, int]:
    """Threads and GPUs of the jobs of a kind."""
    asked = study.resources(asked_as(kind))
    return asked["threads"], asked["gpu"]


def _rates(costs: Mapping[Part, Cost]) -> list[list[str]]:
    """For each set of parts: the CPU seconds of its start, and units a CPU second."""
    groups: dict[Part, dict[str, Cost]] = defaultdict(dict)
    for part, cost in costs.items():
        groups[part[:-1]][part[-1]] = cost
    rows = []
    for key, units in groups.items():
        start = f"{units[START].cpu:.1f}" if START in units else ""
        words = [word for word in key if not word.startswith("{")]
        each = [f"{_short(1 / cost.cpu)} {unit}s/s" for unit, cost in units.items() if unit != START and cost.cpu]
        rows.append([" ".join(words), start, ", ".join(each)])
    return rows


def _notes(timed: Timing, machine: Machine) -> list[str]:
    """What the numbers mean, and what they rest on."""
    cores = os.cpu_count() or 1
    place = f"{platform.node()} ({cores} cores, {machine.gpus} GPUs)"
    lines = [
        f"measured in {machine.took:.0f} s on {place}: jobs of the study",
        f"  on at most {MOST:,} rows a split, {machine.cores} threads at a time; starts and units by CPU time.",
    ]
    if machine.busy:
        others = f"{machine.others:.1f} of its {cores} cores"
        lines += [
            f"this machine was busy: other programs used {others}. The times are those",
            "  of a machine with nothing else to do, by CPU time, for jobs of one thread; of others those of now.",
        ]
    lines += [
        "jobs start when their inputs are there and threads and GPUs are free, in the order of this table. Snakemake's",
        "  own time, downloads, retries and waiting for a scheduler are not counted.",
        "outputs of trained models are taken to be as long as the longest that train teaches, those of others to reach",
        "  the limit. Time is linear in tokens and rows.",
    ]
    return lines


def _long(seconds: float) -> str:
    if seconds < 5400:
        return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h"


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"
