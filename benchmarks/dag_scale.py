"""How long a large study takes before its first job starts, and when nothing is left to do.

    .venv/bin/python benchmarks/dag_scale.py

Synthetic studies of 10, 100 and 1,000 lineages, with about five jobs per lineage, are expanded, planned and dry-run.
They are dry-run again when all outputs exist, with Snakemake's records of code, params and inputs. Each dry run is
compared with that of a bare workflow: five one-line rules with the same number of jobs. The two run alternately.
Prints a table and writes it into benchmarks/RESULTS.md; benchmarks/README.md defines the columns. Not for the time of
the jobs: none is run, and the outputs are empty.
"""

import argparse
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cisterna import study
from cisterna.study.jobs import count_jobs
from shared import write_section

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
TITLE = "## dag_scale.py: studies of thousands of jobs"
LIMIT = 1.5  # for the largest study: seconds of its dry run / seconds of the dry run of bare Snakemake
COLUMNS = ("what", "lineages", "jobs", "seconds", "bare, seconds", "ratio", "peak memory", "bare, peak memory")
CONFIG = "config/config.yaml"

TASKS = 5
STAGES = 5  # rules of the bare workflow
# Number of lineages: seeds, pairs of SFT recipes. There is one lineage for each task, seed and SFT recipe.
SIZES = {10: (1, 1), 100: (2, 5), 1000: (10, 10)}

RULE = """
rule stage_{number}:
    input: "results/{before}/{{n}}.txt"
    output: "results/{number}/{{n}}.txt"
    shell: "cp {{input}} {{output}}"
"""

# Snakemake's --touch waits 0.1 s in each job, so that file times differ on disks that store them coarsely. Not here.
TOUCH = """
import sys
from snakemake.cli import main
from snakemake.executors.touch import Executor
Executor.SLEEPING_TIME = 0
main(sys.argv[1:])
"""
EXPAND = """
import sys, time
from cisterna import study
start = time.perf_counter()
study.read(sys.argv[1])
print(time.perf_counter() - start)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Time expansion, plan, dry run and no-op rerun of large studies, and of bare Snakemake.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--lineages", nargs="+", type=int, choices=list(SIZES), default=list(SIZES), help="sizes to measure"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; the table has the medians")
    parser.add_argument("--output", type=Path, default=RESULTS, help="Markdown file to write the section into")
    options = parser.parse_args()
    rows = [row for lineages in options.lineages for row in measure(lineages, options.repeats)]
    text = report(rows, options.repeats)
    print(text)
    write_section(options.output, text)
    largest = max((row for row in rows if row.what == "dry run"), key=lambda row: row.lineages)
    if largest.ratio and largest.ratio > LIMIT:
        sys.exit(f"error: the dry run takes {largest.ratio:.2f} times that of bare Snakemake; expected at most {LIMIT}")


# --- Measuring ---


@dataclass
class Row:
    """Wall seconds and peak memory (MiB) of each run of one command, for the study and for bare Snakemake."""

    what: str
    lineages: int
    jobs: int
    ours: list[tuple[float, float]] = field(default_factory=list)
    bare: list[tuple[float, float]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return statistics.median(seconds for seconds, _ in self.ours)

    @property
    def ratio(self) -> float | None:
        """Median of study / bare Snakemake, each run over the one next to it: a busy moment affects both."""
        pairs = zip(self.ours, self.bare, strict=True)
        return statistics.median(ours[0] / bare[0] for ours, bare in pairs) if self.bare else None


def measure(lineages: int, repeats: int) -> Iterator[Row]:
    """Time everything at one size."""
    with tempfile.TemporaryDirectory() as root:
        ours, bare = Path(root) / "ours", Path(root) / "bare"
        jobs = write_study(ours, lineages)
        write_bare(bare, jobs)
        expand = [sys.executable, "-c", EXPAND, CONFIG]
        plan = [sys.executable, "-m", "cisterna", "plan", "--config", CONFIG]
        yield Row("study.read", lineages, jobs, [(float(run(expand, ours).output), 0.0) for _ in range(repeats)])
        yield Row("cisterna plan", lineages, jobs, [run(plan, ours)[1:] for _ in range(repeats)])
        yield dry_runs("DAG build", lineages, jobs, repeats, (ours, bare), ["--quiet", "all"])
        yield dry_runs("dry run", lineages, jobs, repeats, (ours, bare), [])
        for folder in (ours, bare):
            make_outputs(folder)
        yield dry_runs("no-op rerun", lineages, jobs, repeats, (ours, bare), [])


def dry_runs(what: str, lineages: int, jobs: int, repeats: int, folders: tuple[Path, Path], options: list[str]) -> Row:
    """Dry runs of the study and of bare Snakemake, alternately."""
    row = Row(what, lineages, jobs)
    for number in range(repeats):
        for folder in folders if number % 2 == 0 else folders[::-1]:
            finished = run([sys.executable, "-m", "snakemake", *target(folder), "--dry-run", *options], folder)
            (row.ours if folder == folders[0] else row.bare).append(finished[1:])
            total = re.search(r"^total +(\d+)$", finished.output, re.MULTILINE)
            count = int(total[1]) - 1 if total else 0  # without the rule all
            expected = 0 if what == "no-op rerun" else jobs
            if "--quiet" not in options and count != expected:
                sys.exit(
                    f"error: {what} of {folder.name}: {count} jobs, expected {expected}\n{finished.output[-2000:]}"
                )
    return row


class Finished(NamedTuple):
    """A process that succeeded: what it printed, its wall seconds and its peak memory in MiB."""

    output: str
    seconds: float
    memory: float


def run(command: list[str], folder: Path) -> Finished:
    """Run a command in a folder, with its output in a file, as in the log of a job."""
    with tempfile.TemporaryFile("w+") as stream:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=stream, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        stream.seek(0)
        output = stream.read()
    if process.returncode:
        sys.exit(f"error: {' '.join(command)} ended with {process.returncode}\n{output[-2000:]}")
    return Finished(output, seconds, usage.ru_maxrss / 1024)  # Linux counts in KiB


def target(folder: Path) -> list[str]:
    """Snakemake's options for the workflow of a folder."""
    snakefile = folder / "Snakefile"
    return ["--snakefile", str(snakefile if snakefile.is_file() else ROOT / "Snakefile"), "--cores", "2"]


# --- Workflows ---


def write_study(folder: Path, lineages: int) -> int:
    """Write a study and the files that it names; returns its number of jobs.

    Half of the lineages have one rung of SFT and RL from it, half two rungs and RL from the second one. Every
    checkpoint is evaluated. One task in five is read as features of an encoder.
    """
    seeds, recipes = SIZES[lineages]
    files = [f"tables/{number}.csv" for number in range(TASKS)] + ["tables/protein.fasta", "tables/text.txt"]
    for file in (*files, CONFIG):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    default = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    sft, rl = default["recipes"]["sft"]["brief"], default["recipes"]["rl"]["grpo"]
    columns = {"id": "name", "sequence": "sequence", "label": "label", "group": "family"}
    table: dict[str, Any] = {"modality": "protein", "columns": columns, "labels": ["low", "high"], "ood": ["viral"]}
    tasks = {f"task-{number}": table | {"file": files[number], "question": "Which?"} for number in range(TASKS)}
    tasks["task-0"] |= {"sequences": ["features"], "encoder": "esm"}
    names = [
        (f"{size}-{number}", rungs) for number in range(recipes) for size, rungs in (("one", [1]), ("two", [1, 2]))
    ]
    config = {
        "study": "synthetic",
        "seeds": list(range(seeds)),
        "backbones": {"nano": default["backbones"]["nano"] | {"tokenizer": {"vocab_size": 400, "files": files[-1:]}}},
        "encoders": {"esm": {"pretrained": "esm"}},
        "corpora": {"protein": {"file": files[-2], "modality": "protein"}},
        "tasks": tasks,
        "recipes": {
            "cpt": {"bio": {"corpora": ["protein"]}},
            "sft": {name: sft | {"epochs": rungs} for name, rungs in names},
            "rl": {f"grpo-{name}": rl | {"epochs": [1]} for name, _ in names},
        },
        "lineages": [
            {"cpt": ["bio"], "sft": [name], "rl": [{"recipe": f"grpo-{name}", "from": rungs[-1:]}]}
            for name, rungs in names
        ],
    }
    (folder / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))
    expanded = study.read(folder / CONFIG)
    assert sum(model.kind == "rl" for model in expanded.models) == lineages
    return sum(count_jobs(expanded).values())


def write_bare(folder: Path, jobs: int) -> None:
    """Write a workflow of five one-line rules with so many jobs: chains of five, and single jobs of the first rule."""
    chains, rest = divmod(jobs, STAGES)
    folder.mkdir()
    rules = [RULE.format(number=number, before=number - 1) for number in range(1, STAGES + 1)]
    rules[0] = rules[0].replace('    input: "results/0/{n}.txt"\n', "").replace("cp {input}", "touch")
    targets = [f'expand("results/{STAGES}/{{n}}.txt", n=range({chains}))']
    targets += [f'expand("results/1/{{n}}.txt", n=range({chains}, {chains + rest}))']
    (folder / "Snakefile").write_text(f"rule all:\n    input: {', '.join(targets)}\n" + "".join(rules))


def make_outputs(folder: Path) -> None:
    """Make all outputs as empty files and folders, and let Snakemake record them as made by their rules."""
    output = run([sys.executable, "-m", "snakemake", *target(folder), "--dry-run"], folder).output
    for line in re.findall(r"^    output: (.*)$", output, re.MULTILINE):
        for path in (folder / name for name in line.split(", ")):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch() if path.suffix else path.mkdir(exist_ok=True)
    run([sys.executable, "-c", TOUCH, *target(folder), "--touch", "--forceall", "--quiet", "all"], folder)


# --- Reporting ---


def report(rows: list[Row], repeats: int) -> str:
    """The section: how it was measured, the table, and how time grows with the size."""
    setting = (
        f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}, Snakemake "
        f"{version('snakemake')}. `.venv/bin/python benchmarks/dag_scale.py`, median of {repeats}."
    )
    lines = [
        COLUMNS,
        ["---"] * len(COLUMNS),
        *[cells(row) for what in measured(rows) for row in rows if row.what == what],
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([TITLE, setting, table, "\n".join(growth(rows))]) + "\n"


def measured(rows: list[Row]) -> list[str]:
    """What was timed, in the order of the measurements."""
    return list(dict.fromkeys(row.what for row in rows))


def cells(row: Row) -> list[str]:
    """A row of the table, in the order of COLUMNS."""
    bare = f"{statistics.median(seconds for seconds, _ in row.bare):.2f}" if row.bare else "-"
    ratio = f"{row.ratio:.2f}" if row.ratio else "-"
    peaks = [max((memory for _, memory in runs), default=0.0) for runs in (row.ours, row.bare)]
    memory = [f"{peak:.0f} MiB" if peak else "-" for peak in peaks]
    return [row.what, f"{row.lineages:,}", f"{row.jobs:,}", f"{row.seconds:.2f}", bare, ratio, *memory]


def growth(rows: list[Row]) -> Iterator[str]:
    """The exponent k of seconds = a + b lineages^k through the three sizes: 1 is linear, and a is the start-up."""
    for what in measured(rows):
        sizes = sorted((row for row in rows if row.what == what), key=lambda row: row.lineages)
        for name, seconds in (
            ("", [row.seconds for row in sizes]),
            (" of bare Snakemake", [statistics.median(run[0] for run in row.bare) for row in sizes if row.bare]),
        ):
            if len(seconds) == 3 and seconds[0] < seconds[1] < seconds[2]:
                exponent = math.log10((seconds[2] - seconds[1]) / (seconds[1] - seconds[0]))
                yield f"- {what}{name}: grows as lineages^{exponent:.2f}"


if __name__ == "__main__":
    main()
