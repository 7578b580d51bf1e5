"""`cisterna status`: what a study's run is doing now, from the files that its jobs write.

A job is done when its output is published. A running stage writes its progress to its work folder
(`cisterna.artifacts.progress`). Whether it still runs is known by its process if it is on this machine, and by the time
of its last update if it is on another. A failed job has the error at the end of its log (`cisterna.artifacts.logs`).
Neither Snakemake nor Slurm is asked, so a run on one machine and one spread over a cluster look the same.

Not for what Snakemake would run again after an edit: use `snakemake --dry-run`.
"""

import json
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cisterna import study as studies
from cisterna.artifacts import logs, progress
from cisterna.errors import UserError
from cisterna.study.jobs import Job, jobs

RESULTS = Path("results")
INTERVAL = 2.0  # seconds between two updates of --watch
SILENT = 600.0  # seconds without an update after which a stage is marked: longer than a step should take
LOST = 86_400.0  # seconds without an update after which a stage of another machine counts as stopped
FAILURES = 3  # shown by --watch
COLUMNS = ("stage", "model", "progress", "", "", "speed", "left", "running for", "last sign", "where")
STATES = ("done", "running", "failed", "waiting")


@dataclass(frozen=True)
class RunningJob:
    """A job that has reported progress and has not published."""

    job: Job
    progress: dict[str, Any]  # progress.json
    state: str  # running | silent | stopped


@dataclass(frozen=True)
class Failure:
    """A job whose log ends in an error."""

    job: Job
    ending: logs.Ending


@dataclass(frozen=True)
class Snapshot:
    """The state of the jobs at one moment. A stage that was stopped without an error counts as waiting."""

    counts: dict[str, Counter[str]]  # kind -> state -> number of jobs
    running: list[RunningJob]  # stopped first, then silent
    failures: list[Failure]  # the most recent first
    when: float  # Unix time


def main(configs: Sequence[Path], below: Path = RESULTS, watch: bool = False) -> None:
    """Print the state of the jobs of a study, all or those `below` a folder; with `watch` show it until Ctrl-C."""
    if watch and not sys.stdout.isatty():
        raise UserError("--watch: the output is not a terminal; leave --watch out to print the state once")
    study = studies.read(*configs)
    chosen = _jobs_below(jobs(study), below, study.name)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=1000, color_system=None)  # one line a stage, for grep
    if not watch:
        console.print(render(study.name, take_snapshot(chosen), console))
        return
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                begun = time.monotonic()
                live.update(render(study.name, take_snapshot(chosen), console, console.height), refresh=True)
                # On a slow file system a snapshot takes long: wait longer then, so as not to load it all the time.
                time.sleep(max(INTERVAL, 10 * (time.monotonic() - begun)))
    except KeyboardInterrupt:
        return


def _jobs_below(all_jobs: Sequence[Job], folder: Path, study: str) -> list[Job]:
    """The jobs whose first output is in a folder of results/."""
    inside = os.path.relpath(folder, RESULTS)
    chosen = [job for job in all_jobs if inside == "." or f"{job.output}/".startswith(f"{inside}/")]
    if not chosen:
        raise UserError(f"{folder}: no job of study {study} writes there; `cisterna plan` lists its stages")
    return chosen


def take_snapshot(chosen: Sequence[Job], results: Path = RESULTS) -> Snapshot:
    """The state of each job, from the files below `results`."""
    now, host = time.time(), socket.gethostname()
    counts: dict[str, Counter[str]] = {}
    running: list[RunningJob] = []
    failures: list[Failure] = []
    for job in chosen:
        outcome = _state_of(job, results, now, host)
        if isinstance(outcome, RunningJob):
            running.append(outcome)
            state = "waiting" if outcome.state == "stopped" else "running"
        elif isinstance(outcome, Failure):
            failures.append(outcome)
            state = "failed"
        else:
            state = outcome
        counts.setdefault(job.kind, Counter())[state] += 1
    order = ("stopped", "silent", "running")
    running.sort(key=lambda stage: (order.index(stage.state), stage.progress["begun"]))
    failures.sort(key=lambda failure: -failure.ending.when)
    return Snapshot(counts, running, failures, now)


def _state_of(job: Job, results: Path, now: float, host: str) -> RunningJob | Failure | str:
    """The state of one job: running, failed, or the word "done" or "waiting"."""
    if os.path.exists(f"{results}/{job.proof}"):
        return "done"
    reported = read_progress(job, results)
    state = "stopped"
    if reported:
        age = now - reported["updated"]
        here = reported["host"] == host
        if _exists(reported["pid"]) if here else age <= LOST:
            state = "silent" if age > SILENT else "running"
        if here and state != "stopped":  # an error in its log did not end it
            return RunningJob(job, reported, state)
    ending = logs.ending(results / job.log)
    if ending and ending.state == "failed":
        return Failure(job, ending)
    if reported:
        return RunningJob(job, reported, "stopped" if ending and ending.state == "stopped" else state)
    return "waiting"


def read_progress(job: Job, results: Path) -> dict[str, Any] | None:
    """What a job last reported. The rungs of a ladder share a work folder, so the output must be that of the job."""
    if job.work is None:
        return None
    try:
        with open(f"{results}/{job.work}/{progress.NAME}") as stream:
            reported: dict[str, Any] = json.load(stream)
    except (OSError, ValueError):
        return None
    return reported if reported["output"].endswith(job.output) else None


def _exists(pid: int) -> bool:
    """Whether a process exists on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        return True
    return True


# --- The page ---


def render(study: str, snapshot: Snapshot, console: Console, height: int | None = None) -> Group:
    """The page that shows a snapshot on a console; with a `height` in lines, only as much as fits in it."""
    unfinished = {kind: counts for kind, counts in snapshot.counts.items() if counts["done"] < counts.total()}
    shown = snapshot.failures if height is None else snapshot.failures[:FAILURES]
    rows = [_row(stage, snapshot.when) for stage in snapshot.running]
    table_fits = console.measure(_table(COLUMNS, rows)).maximum < console.width
    most_rows = len(rows)
    if height is not None:
        most_rows = max(3, (height - len(unfinished) - 2 * len(shown) - 11) // (1 if table_fits else 2))
    parts: list[Any] = [_headline(study, snapshot)]
    if rows:
        parts += ["", _table(COLUMNS, rows[:most_rows]) if table_fits else _stacked(rows[:most_rows])]
        if len(rows) > most_rows:
            parts += [f"and {len(rows) - most_rows} more; `cisterna status` lists all"]
    if shown:
        more = f", the last {len(shown)} of {len(snapshot.failures)}" if len(snapshot.failures) > len(shown) else ""
        parts += ["", Text(f"failed{more}", style="bold red")]
    for failure in shown:
        age = duration(snapshot.when - failure.ending.when)
        parts += [Text(f"{RESULTS / failure.job.log}, {age} ago", overflow="fold")]
        parts += [Text(f"  {failure.ending.message}", style="red", overflow="ellipsis", no_wrap=True)]
    if unfinished:
        parts += ["", _counts(snapshot, unfinished)]
    return Group(*parts)


def _headline(study: str, snapshot: Snapshot) -> Text:
    totals = sum(snapshot.counts.values(), Counter())
    parts = [f"{totals['done']:,} of {totals.total():,} jobs done"]
    parts += [f"{totals[state]:,} {state}" for state in STATES[1:] if totals[state]]
    clock = time.strftime("%H:%M:%S", time.localtime(snapshot.when))
    return Text.assemble(clock, (f"  study {study}", "bold"), f"  {', '.join(parts)}")


def _row(stage: RunningJob, now: float) -> list[str | Text]:
    """What the table shows of a stage, one text for each of COLUMNS."""
    reported = stage.progress
    done, total, unit, numbers = reported["done"], reported["total"], reported["unit"], reported["numbers"]
    seconds = reported["updated"] - reported["first_update"]
    rate = (done - reported["begun_at"]) / seconds if seconds > 0 else 0.0  # units a second; 0 if not known yet
    tokens = numbers.get("tokens_per_second")
    speed = f"{tokens:,.0f} tokens/s" if tokens is not None else f"{rate:,.3g} {unit}/s" if rate else ""
    age = now - reported["updated"]
    last_sign = {"running": "{} ago", "silent": "silent for {}", "stopped": "stopped {} ago"}[stage.state]
    stopped = stage.state == "stopped"
    return [
        stage.job.kind,
        stage.job.name,
        f"{done:,}/{total:,} {unit}",
        f"{done / total:.0%}" if total else "",
        "  ".join(f"{name} {numbers[name]:.3g}" for name in ("loss", "reward") if name in numbers),
        "" if stopped else speed,
        duration((total - done) / rate - age) if rate and stage.state == "running" else "",
        "" if stopped else duration(now - reported["begun"]),
        Text(last_sign.format(duration(age)), {"running": "", "silent": "yellow", "stopped": "red"}[stage.state]),
        reported["host"] + (f" (job {reported['slurm_job']})" if reported["slurm_job"] else ""),
    ]


def _stacked(rows: Sequence[Sequence[str | Text]]) -> Group:
    """Two lines a stage, for a terminal that is too narrow for the table, so that no path is broken."""
    parts: list[Any] = []
    for kind, model, *facts in rows:
        done, share, loss, speed, left, ran, last_sign, where = facts
        facts = [done, share, loss, speed, left and f"{left} left", ran and f"running {ran}", last_sign, where]
        line = Text("  ").join(Text(fact) if isinstance(fact, str) else fact for fact in facts if fact)
        parts += [Text(f"{kind} {model}", style="bold", overflow="fold"), Padding(line, (0, 0, 0, 2))]
    return Group(*parts)


def _counts(snapshot: Snapshot, unfinished: dict[str, Counter[str]]) -> Table:
    """Jobs by kind and state; the kinds whose jobs are all done share one line."""
    others = sum((counts for kind, counts in snapshot.counts.items() if kind not in unfinished), Counter())
    counted = unfinished | ({"the others": others} if others else {})
    rows = [
        [kind, *(f"{counts[state]:,}" if counts[state] else "" for state in STATES), f"{counts.total():,}"]
        for kind, counts in counted.items()
    ]
    return _table(("jobs", *STATES, "in all"), rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        words = name in ("stage", "model", "last sign", "where", "jobs")
        table.add_column(name, justify="left" if words else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def duration(seconds: float) -> str:
    """A time in the units that a person would say."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, hours = whole // 60, whole // 3600
    if minutes < 60:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60:02} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"
