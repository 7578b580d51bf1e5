"""`cisterna plan --calibrate`: how many hours a study takes on this machine, by a short measurement of its jobs.

What is measured, and how, is in `cisterna.ops.probes`; the arithmetic in `cisterna.ops.timing`. Not for a cluster: its
jobs wait, and run on other machines.
"""

import os
import platform
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from cisterna.errors import UserError
from cisterna.ops import timing, trials
from cisterna.ops.probes import MOST, Probes
from cisterna.ops.timing import START, Part, Timing
from cisterna.study import Study
from cisterna.study.jobs import KINDS, Job, asked_as, jobs

LARGEST = 5  # jobs that are listed
BUSY = 0.25  # load average a core from which the machine counts as busy
KIND_COLUMNS = ("jobs", "in all", "done", "time of the others", "share")
JOB_COLUMNS = ("longest jobs", "", "time")


@dataclass(frozen=True)
class Machine:
    """What was measured with: cores and GPUs that the study may use, the seconds of measuring, the load before it."""

    cores: int
    gpus: int
    took: float
    load: float

    @property
    def busy(self) -> bool:
        """Whether other programs took so much of it that the times are not those of a machine of one's own."""
        return self.load > BUSY * (os.cpu_count() or 1)


def calibrate(study: Study, cores: int, results: Path = Path("results")) -> str:
    """Measure, and estimate the jobs of a study that are not done below `results`: tables, and what they assume."""
    everything = jobs(study)
    todo = [job for job in everything if not (results / job.proof).exists()]
    if not todo:
        return f"Study {study.name}: all {len(everything)} jobs are done"
    _refuse(study, todo)
    print("measuring jobs of the study, some seconds of each kind", file=sys.stderr)
    load = os.getloadavg()[0]
    with trials.opened(cores, trials.count_gpus()) as opened:
        begun = time.monotonic()
        probes = Probes(study, todo, results, opened)
        timed = probes.run()
        machine = Machine(cores, opened.gpus, time.monotonic() - begun, load)
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


def render(timed: Timing, costs: Mapping[Part, float], todo: Sequence[Job], machine: Machine) -> str:
    """The estimate of the jobs `todo` as text."""
    study = timed.study
    taken = [(job, timing.cost(timed.parts(job), costs)) for job in todo]
    wall = timing.makespan(taken, machine.cores, machine.gpus, {job.kind: _asked(study, job.kind) for job in todo})
    spent: dict[str, float] = dict.fromkeys(KINDS, 0.0)
    for job, seconds in taken:
        spent[job.kind] += seconds
    whole = sum(spent.values())
    every, left = (Counter(job.kind for job in listed) for listed in (jobs(study), todo))
    rows = [
        [kind, every[kind], every[kind] - left[kind], _long(spent[kind]), f"{spent[kind] / whole:.0%}"]
        for kind in KINDS
        if every[kind]
    ]
    rows.append(["total", every.total(), every.total() - len(todo), _long(whole), ""])
    longest = sorted(taken, key=lambda pair: -pair[1])[:LARGEST]
    parts = [
        f"Study {study.name} on this machine with --cores {machine.cores}: about {_long(wall)} from start to end",
        tabulate(rows, KIND_COLUMNS, colalign=("left", *["right"] * 4), disable_numparse=True),
        tabulate(
            [[job.kind, job.name, _long(seconds)] for job, seconds in longest],
            JOB_COLUMNS,
            colalign=("left", "left", "right"),
            disable_numparse=True,
        ),
        tabulate(_rates(costs), ("measured here", "start, s", "then"), disable_numparse=True),
        "\n".join(_notes(machine)),
    ]
    return "\n\n".join(parts)


def _asked(study: Study, kind: str) -> tuple[int, int]:
    """Threads and GPUs of the jobs of a kind."""
    asked = study.resources(asked_as(kind))
    return asked["threads"], asked["gpu"]


def _rates(costs: Mapping[Part, float]) -> list[list[str]]:
    """For each set of parts: the seconds of its start, and units a second."""
    groups: dict[Part, dict[str, float]] = defaultdict(dict)
    for part, seconds in costs.items():
        groups[part[:-1]][part[-1]] = seconds
    rows = []
    for key, units in groups.items():
        start = f"{units[START]:.1f}" if START in units else ""
        each = [
            f"{_short(1 / seconds)} {unit}s/s"
            for unit, seconds in units.items()
            if seconds and unit not in (START, "scores")
        ]
        rows.append([" ".join(key), start, ", ".join(each)])
    return rows


def _notes(machine: Machine) -> list[str]:
    """What the numbers mean, and what they rest on."""
    cores = os.cpu_count() or 1
    lines = [
        f"measured in {machine.took:.0f} s on {platform.node()} ({cores} cores, {machine.gpus} GPUs): jobs of",
        f"  the study on at most {MOST:,} rows a split, {machine.cores} threads at a time.",
    ]
    if machine.busy:
        lines += [
            f"this machine was busy: its load was {machine.load:.1f} in the minute before. The times are those of a",
            "  machine that stays as busy.",
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
