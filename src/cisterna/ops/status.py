"""`cisterna status`: what a study's run is doing now, from the files that its stages write.

A job is done where its artifact is published. A stage under way says in `progress.json` of its work folder how far it
is (`cisterna.artifacts.progress`); that of another machine is believed, that of this one is checked for its process. A
job that ended with an error has it at the end of its log. So nothing here asks Snakemake or Slurm, and a run on one
machine and
one spread over a cluster look the same. Not for what Snakemake would run again after an edit: `snakemake --dry-run`.
"""

import json
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cisterna import study as studies
from cisterna.artifacts import progress
from cisterna.errors import UserError
from cisterna.study import Study

RESULTS = Path("results")
INTERVAL = 2.0  # seconds between two looks of --watch
SILENT = 600.0  # seconds without a sign of life after which a stage is marked: longer than a step should take
LOST = 86_400.0  # seconds without one after which a stage of another machine counts as stopped
FAILURES = 3  # shown by --watch
TAIL = 65_536  # bytes of a log that are searched for its error: torchrun writes some after it
KINDS = (
    "data baselines base tokenize encoder features cpt sft rl evaluate perplexity gather figures findings".split()
)  # in the order of the workflow
COLUMNS = ("stage", "model", "progress", "", "", "speed", "left", "running for", "last sign", "where")
STATES = ("done", "running", "failed", "waiting")


@dataclass(frozen=True)
class Job:
    """A job of the workflow. Paths are relative to results/; `work` is None where the job says no progress."""

    kind: str
    name: str  # what tells it from others of its kind
    output: str
    proof: str  # the file whose existence means that it is done
    work: str | None
    log: str


@dataclass(frozen=True)
class Stage:
    """A stage that told its progress and has not published."""

    job: Job
    told: dict[str, Any]  # progress.json
    state: str  # running | silent | stopped


@dataclass(frozen=True)
class Failure:
    """A job whose log ends in an error."""

    job: Job
    message: str
    when: float  # Unix time


@dataclass(frozen=True)
class Look:
    """What one look at the results folder found. A stage that stopped without an error counts as waiting."""

    counts: dict[str, Counter[str]]  # kind -> state -> jobs
    stages: list[Stage]  # those that need attention first
    failures: list[Failure]  # the last one first
    when: float


def main(configs: Sequence[Path], below: Path = RESULTS, watch: bool = False) -> None:
    """Print how the study in config files is doing, of all jobs or those `below` a folder; or show it until Ctrl-C."""
    if watch and not sys.stdout.isatty():
        raise UserError("--watch: the output is not a terminal; leave --watch out to print the state once")
    study = studies.read(*configs)
    chosen = _below(jobs(study), below, study.name)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=1000, color_system=None)  # one line a stage, for grep
    if not watch:
        console.print(render(study.name, look(chosen), console))
        return
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                begun = time.monotonic()
                live.update(render(study.name, look(chosen), console, console.height), refresh=True)
                time.sleep(max(INTERVAL, 10 * (time.monotonic() - begun)))  # a slow file system is not asked all day
    except KeyboardInterrupt:
        return


def jobs(study: Study) -> list[Job]:
    """Every job of the workflow, as `cisterna plan` counts them."""
    found = []

    def add(kind: str, name: str, output: str, proof: str = "", work: bool = False, log: str | None = None) -> None:
        place = output.removesuffix("/checkpoint") if work else None
        proof = f"{output}/{proof}" if proof else output
        found.append(Job(kind, name, output, proof, f".work/{place}" if place else None, f"logs/{log or output}.log"))

    for task in study.tasks:
        add("data", task, f"data/{task}", "card.json")
        add("baselines", task, f"baselines/{task}", "metrics.json")
    for backbone, corpus in study.tokenized:
        add("tokenize", f"{backbone}/{corpus}", f"tokens/{backbone}/{corpus}", "card.json")
    for encoder in study.encoders:
        output = f"encoders/{encoder}/checkpoint"
        add("encoder", encoder, output, "manifest.json", True, f"encoders/{encoder}")
    for encoder, task in study.banks:
        add("features", f"{encoder}/{task}", f"features/{encoder}/{task}", "manifest.json", True)
    for model in study.models:
        name = model.path.removeprefix("models/")
        ladder = study.work(model).removeprefix("results/") if model.task else f".work/{model.path}"
        work = None if model.kind == "base" else ladder
        output = f"{model.path}/checkpoint"
        found.append(Job(model.kind, name, output, f"{output}/manifest.json", work, f"logs/{model.path}.log"))
    for folder, _, _ in study.evaluations():
        name = folder.removeprefix("models/").removesuffix("/eval")
        add("evaluate", name, folder, "metrics.json", True)
    tokenized = {backbone for backbone, _ in study.tokenized}
    for model in study.models:
        if model.task is None and model.backbone in tokenized:
            log = f"{model.path}/perplexity"
            add("perplexity", model.path.removeprefix("models/"), f"{log}.json", log=log)
    place = f"studies/{study.name}"
    add("gather", study.name, f"{place}/metrics.parquet", log=f"{place}/gather")
    add("figures", study.name, f"{place}/figures/table.html", log=f"{place}/figures")
    add("findings", study.name, f"{place}/findings.json", log=f"{place}/findings")
    return sorted(found, key=lambda job: KINDS.index(job.kind))


def _below(found: list[Job], folder: Path, study: str) -> list[Job]:
    """The jobs whose output lies in a folder of results/."""
    inside = os.path.relpath(folder, RESULTS)
    chosen = found if inside == "." else [job for job in found if f"{job.output}/".startswith(f"{inside}/")]
    if not chosen:
        raise UserError(f"{folder}: study {study} makes nothing there; `cisterna plan` lists the stages")
    return chosen


def look(chosen: Sequence[Job], results: Path = RESULTS) -> Look:
    """The state of each job, from the files below `results`."""
    now, here = time.time(), socket.gethostname()
    counts: dict[str, Counter[str]] = {}
    stages, failures = [], []
    for job in chosen:
        state = "waiting"
        if os.path.exists(f"{results}/{job.proof}"):
            state = "done"
        else:
            stage = _stage(job, results, now, here)
            if stage is None or stage.state == "stopped" or stage.told["host"] != here:  # else its process lives
                ended = end(job, results)
                if isinstance(ended, Failure):
                    failures.append(ended)
                    state, stage = "failed", None
                elif ended == "stopped" and stage:
                    stage = replace(stage, state="stopped")
            if stage:
                stages.append(stage)
                state = "waiting" if stage.state == "stopped" else "running"
        counts.setdefault(job.kind, Counter())[state] += 1
    order = ("stopped", "silent", "running")
    stages.sort(key=lambda stage: (order.index(stage.state), stage.told["begun"]))
    failures.sort(key=lambda failure: -failure.when)
    return Look(counts, stages, failures, now)


def _stage(job: Job, results: Path, now: float, here: str) -> Stage | None:
    """What a job told, if it told anything: rungs of a ladder share a work folder, so the output has to be its own."""
    if job.work is None:
        return None
    try:
        with open(f"{results}/{job.work}/{progress.NAME}") as stream:
            told = json.load(stream)
    except (OSError, ValueError):
        return None
    if not told["output"].endswith(job.output):
        return None
    age = now - told["updated"]
    gone = not _lives(told["pid"]) if told["host"] == here else age > LOST
    return Stage(job, told, "stopped" if gone else "silent" if age > SILENT else "running")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def end(job: Job, results: Path) -> Failure | str | None:
    """How a job ended by its log: with an error (Cisterna's message, or the exception of a traceback), or "stopped"."""
    try:
        with open(f"{results}/{job.log}", "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - TAIL))
            text = stream.read().decode(errors="replace")
            when = os.fstat(stream.fileno()).st_mtime
    except OSError:
        return None
    _, told, message = f"\n{text}".rpartition("\nerror: ")
    if not told:
        if text.rstrip().rpartition("\n")[2].startswith("stopped: "):
            return "stopped"
        _, told, trace = text.rpartition("Traceback (most recent call last):\n")
        message = next((line for line in trace.splitlines() if line and not line.startswith(" ")), "")
    return Failure(job, _printable(message), when) if told else None


def _printable(text: str) -> str:
    """One line without control characters."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


# --- The page ---


def render(study: str, seen: Look, console: Console, height: int | None = None) -> Group:
    """The page of a look on a console; with a `height` in lines, only what there is room for."""
    unfinished = {kind: counts for kind, counts in seen.counts.items() if counts["done"] < sum(counts.values())}
    shown = seen.failures if height is None else seen.failures[:FAILURES]
    rows = [_row(stage, seen.when) for stage in seen.stages]
    fits = console.measure(_table(COLUMNS, rows)).maximum < console.width
    room = len(rows)
    if height is not None:
        room = max(3, (height - len(unfinished) - 2 * len(shown) - 11) // (1 if fits else 2))
    parts: list[Any] = [_head(study, seen)]
    if rows:
        parts += ["", _table(COLUMNS, rows[:room]) if fits else _stacked(rows[:room])]
        if len(rows) > room:
            parts += [f"and {len(rows) - room} more, which `cisterna status` lists"]
    if shown:
        more = f", the last {len(shown)} of {len(seen.failures)}" if len(seen.failures) > len(shown) else ""
        parts += ["", Text(f"failed{more}", style="bold red")]
    for failure in shown:
        parts += [Text(f"{RESULTS / failure.job.log}, {_duration(seen.when - failure.when)} ago", overflow="fold")]
        parts += [Text(f"  {failure.message}", style="red", overflow="ellipsis", no_wrap=True)]
    if unfinished:
        parts += ["", _counts(seen, unfinished)]
    return Group(*parts)


def _head(study: str, seen: Look) -> Text:
    totals = sum(seen.counts.values(), Counter())
    parts = [f"{totals['done']:,} of {totals.total():,} jobs done"]
    parts += [f"{totals[state]:,} {state}" for state in STATES[1:] if totals[state]]
    clock = time.strftime("%H:%M:%S", time.localtime(seen.when))
    return Text.assemble(clock, (f"  study {study}", "bold"), f"  {', '.join(parts)}")


def _row(stage: Stage, now: float) -> list[str | Text]:
    """The cells of a stage, one for each of COLUMNS."""
    told = stage.told
    lives = stage.state != "stopped"
    age = _duration(now - told["updated"])
    sign = {"running": f"{age} ago", "silent": f"silent for {age}", "stopped": f"stopped {age} ago"}[stage.state]
    job = f" (job {told['slurm_job']})" if told["slurm_job"] else ""
    return [
        stage.job.kind,
        stage.job.name,
        f"{told['done']:,}/{told['total']:,} {told['unit']}",
        f"{told['done'] / told['total']:.0%}" if told["total"] else "",
        _loss(told["numbers"]),
        _speed(told) if lives else "",
        _left(told, now) if stage.state == "running" else "",
        _duration(now - told["begun"]) if lives else "",
        Text(sign, {"running": "", "silent": "yellow", "stopped": "red"}[stage.state]),
        f"{told['host']}{job}",
    ]


def _stacked(rows: Sequence[Sequence[str | Text]]) -> Group:
    """Two lines a stage, where a line is too short for the table: nobody can read a path in pieces."""
    parts: list[Any] = []
    for kind, model, *facts in rows:
        progress, share, loss, speed, left, ran, sign, where = facts
        facts = [progress, share, loss, speed, left and f"{left} left", ran and f"running {ran}", sign, where]
        line = Text("  ").join(Text(fact) if isinstance(fact, str) else fact for fact in facts if fact)
        parts += [Text(f"{kind} {model}", style="bold", overflow="fold"), Padding(line, (0, 0, 0, 2))]
    return Group(*parts)


def _counts(seen: Look, unfinished: dict[str, Counter[str]]) -> Table:
    """Jobs by kind and state; kinds of which all are done in one line."""
    others = sum((counts for kind, counts in seen.counts.items() if kind not in unfinished), Counter())
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


def _loss(numbers: dict[str, float]) -> str:
    return "  ".join(f"{name} {numbers[name]:.3g}" for name in ("loss", "reward") if name in numbers)


def _rate(told: dict[str, Any]) -> float:
    """Units a second since this process began to count; 0 where it is not known yet."""
    seconds = told["updated"] - told["first_update"]
    return (told["done"] - told["begun_at"]) / seconds if seconds > 0 else 0.0


def _speed(told: dict[str, Any]) -> str:
    tokens = told["numbers"].get("tokens_per_second")
    if tokens is not None:
        return f"{tokens:,.0f} tokens/s"
    rate = _rate(told)
    return f"{rate:,.3g} {told['unit']}/s" if rate else ""


def _left(told: dict[str, Any], now: float) -> str:
    rate = _rate(told)
    if not rate:
        return ""
    return _duration((told["total"] - told["done"]) / rate - (now - told["updated"]))


def _duration(seconds: float) -> str:
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, hours = whole // 60, whole // 3600
    if minutes < 60:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60:02} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"
