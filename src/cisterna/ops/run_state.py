"""How far a run of Snakemake is: the jobs of each stage, what failed and why, and the time left, from its events.

`cisterna.ops.run_view` shows it, and `snakemake_logger_plugin_cisterna` passes the events on. Not for what is on the
disk, or for a run that another process started: that is `cisterna.ops.status`.
"""

import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cisterna.artifacts import logs
from cisterna.errors import less_memory, one_line, printable
from cisterna.study import Study
from cisterna.study.jobs import Job, jobs

# The lines of the view, each with the rules whose jobs it counts. A rule of another workflow gets a line of its own.
STAGES = {
    "data": ("data", "baselines"),
    "base models": ("base",),
    "tokenizing": ("tokenize",),
    "encoders": ("encoder", "features"),
    "CPT": ("cpt",),
    "SFT": ("sft",),
    "RL": ("rl",),
    "evaluation": ("answers", "evaluate", "perplexity"),
    "report": ("gather", "figures", "findings", "quotes"),
}
TARGETS = ("all", "models", "evaluations", "total")  # rules without a command, and the sum of Snakemake's job stats
TAIL = 3  # lines of a log that has no error in it
CLOCKS = 60.0  # seconds that the clocks of machines and file servers may differ
# How a job ends that the system killed, in the words of Python's subprocess, of a shell and of Slurm.
_KILLED = re.compile(r"SIGKILL|exit status 137|OUT_OF_MEMORY")
_STOPPED = re.compile(r"SIGINT|SIGTERM|exit status (130|143)")


class Counts(NamedTuple):
    """Jobs by state; their sum is all jobs of a stage or a run."""

    done: int
    running: int
    waiting: int
    failed: int


@dataclass(frozen=True)
class RunningJob:
    """A job that Snakemake started or submitted. `begun` is a time of the run's clock, `since` the Unix time."""

    rule: str
    output: str
    log: Path | None
    begun: float
    since: float

    @property
    def name(self) -> str:
        """The rule and the path of the result."""
        return f"{self.rule} {self.output}"

    @property
    def is_local(self) -> bool:
        """Whether the result is in `results/`, and not on remote storage such as s3://bucket/results/."""
        return "://" not in self.output


@dataclass(frozen=True)
class Failure:
    """A job that failed, the reason in one line, and the log that has more."""

    job: RunningJob
    reason: str
    log: Path | None


class Run:
    """The jobs of one run. `stats` is the number of jobs of each rule, `clock` gives the time in seconds."""

    def __init__(self, stats: Mapping[str, int], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun = clock()
        self._whole_study = "all" in stats
        self._planned = Counter({rule: count for rule, count in stats.items() if rule not in TARGETS})
        self._kept: Counter[str] = Counter()  # jobs of the study that this run need not do
        self._done: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)  # that the finished jobs of a rule took
        self._spent = 0.0  # seconds of all jobs that ended
        self._jobs: dict[str, Job] = {}
        self.study: str | None = None
        self.running: dict[int, RunningJob] = {}  # by Snakemake's job id, as below
        self.stopped: dict[int, RunningJob] = {}  # by a signal: no failures
        self.failures: dict[int, Failure] = {}

    # --- Events ---

    def belongs_to(self, study: Study) -> None:
        """The run is one of a study. If it is for all of it, the jobs that were done before count as done."""
        self.study = study.name
        self._jobs = {f"results/{job.output}": job for job in jobs(study)}
        if self._whole_study:
            counts = Counter(job.kind for job in self._jobs.values())
            self._kept = counts - self._planned

    def start(self, number: int, rule: str, outputs: Sequence[str], log_files: Sequence[str]) -> None:
        """A job begins, for the first time or again."""
        if rule in TARGETS:
            return
        self.failures.pop(number, None)
        self.stopped.pop(number, None)
        output, log = ([path.partition(" (")[0] for path in paths[:1]] for paths in (outputs, log_files))
        log_file = Path(log[0]) if log else None
        self.running[number] = RunningJob(rule, "".join(output), log_file, self._clock(), time.time())

    def finish(self, number: int) -> RunningJob | None:
        """A job is done; None if it does not count."""
        job = self._end(number)
        if job:
            self._done[job.rule] += 1
            self._seconds[job.rule] += self._clock() - job.begun
        return job

    def fail(self, number: int, said: str, log_files: Sequence[str] = ()) -> Failure | None:
        """A job ended without its result. None if a signal stopped it.

        `said` is what Snakemake says about it, `log_files` are its log and those of the cluster about it.
        """
        job = self._end(number)
        if job is None:
            return None
        ending = _ending(job)
        state = ending.state if ending else "unknown"
        if state == "stopped" or (state == "unknown" and _STOPPED.search(said)):
            self.stopped[number] = job
            return None
        # The cluster's log tells more of a job that did not come to write into its own.
        others = [Path(path) for path in log_files if Path(path) != job.log]
        log = next((path for path in ([job.log] if ending else []) + others if path and _last_lines(path)), job.log)
        self.failures[number] = failure = Failure(job, _reason(job, ending, said, log), log)
        return failure

    def fail_group(self, numbers: Sequence[int]) -> None:
        """A group of jobs ended early. If it is known which of them failed, the others wait; `fail` does the rest."""
        ended = {number: _ending(self.running[number]) for number in numbers if number in self.running}
        if any(ending and ending.state == "failed" for ending in ended.values()):
            for number, ending in ended.items():
                if ending is None:
                    self._end(number)

    def ended_early(self, number: int) -> RunningJob | None:
        """A job that failed or was stopped, and was not started again."""
        failure = self.failures.get(number)
        return failure.job if failure else self.stopped.get(number)

    def close(self, stopped: bool) -> None:
        """Snakemake has ended, by itself or `stopped` by a person. It does not say of every job that it ended."""
        for number in list(self.running):
            job = self.running.pop(number)
            if stopped:
                self.stopped[number] = job
            else:
                self.failures[number] = Failure(job, "Snakemake gave it up; its own message is above", job.log)

    def _end(self, number: int) -> RunningJob | None:
        job = self.running.pop(number, None)
        if job:
            self._spent += self._clock() - job.begun
        return job

    # --- What is known ---

    @property
    def stages(self) -> dict[str, tuple[str, ...]]:
        """The stages that have jobs, in the order in which they run, with their rules."""
        known = {rule for rules in STAGES.values() for rule in rules}
        present = self._planned + self._kept
        others = {rule: (rule,) for rule in present if rule not in known}
        return {name: rules for name, rules in (STAGES | others).items() if any(present[rule] for rule in rules)}

    def stage_of(self, rule: str) -> str:
        """The stage that counts the jobs of a rule."""
        return next((name for name, rules in STAGES.items() if rule in rules), rule)

    def counts(self, *stages: str) -> Counts:
        """The jobs of some stages by state, or of all."""
        known = self.stages
        rules = [rule for name in stages or known for rule in known[name]]
        done = sum(self._done[rule] + self._kept[rule] for rule in rules)
        running = sum(job.rule in rules for job in list(self.running.values()))
        failed = sum(failure.job.rule in rules for failure in list(self.failures.values()))
        every = sum(self._planned[rule] + self._kept[rule] for rule in rules)
        return Counts(done, running, every - done - running - failed, failed)

    @property
    def finished(self) -> int:
        """How many jobs this run has done."""
        return self._done.total()

    def elapsed(self, job: RunningJob | None = None) -> float:
        """Seconds since a job began, or since the run began."""
        return self._clock() - (job.begun if job else self._begun)

    def known_job(self, job: RunningJob) -> Job | None:
        """The entry of a job in the table of its study."""
        path = job.output if job.is_local else f"results/{job.output.rpartition('/results/')[2]}"
        return self._jobs.get(path)

    def time_left(self) -> tuple[float | None, list[str]]:
        """Seconds until the end, and what the estimate leaves out: stages, or rules of a stage that is counted in part.

        A job takes the mean of the finished ones of its rule in this run, and as many jobs run at the same time as
        did on average so far. Of a rule none of whose jobs has finished, nothing is known; None seconds if that is
        so for most of the jobs that are left.
        """
        running = list(self.running.values())
        failed = Counter(failure.job.rule for failure in list(self.failures.values()))
        known: Counter[str] = Counter()  # jobs that are left, by rule
        unknown: Counter[str] = Counter()
        work = 0.0
        for rule, planned in self._planned.items():
            elapsed = [self.elapsed(job) for job in running if job.rule == rule]
            left = planned - self._done[rule] - failed[rule]
            (known if self._done[rule] else unknown)[rule] = left
            if self._done[rule]:
                mean = self._seconds[rule] / self._done[rule]
                work += mean * (left - len(elapsed)) + sum(max(0.0, mean - seconds) for seconds in elapsed)
        spent = self._spent + sum(self.elapsed(job) for job in running)
        at_once = max(1.0, spent / self.elapsed()) if self.elapsed() > 0 else 1.0
        counted = {self.stage_of(rule) for rule, left in known.items() if left}
        left_out = [rule for rule, left in unknown.items() if left]
        order = list(self.stages)
        left_out.sort(key=lambda rule: order.index(self.stage_of(rule)))
        names = [rule if self.stage_of(rule) in counted else self.stage_of(rule) for rule in left_out]
        reliable = known.total() and known.total() >= unknown.total()
        return (work / at_once if reliable else None), list(dict.fromkeys(names))


def _ending(job: RunningJob) -> logs.Ending | None:
    """How a job ended by its log; None if it has not written there in this run."""
    ending = logs.ending(job.log) if job.log else None
    return ending if ending and ending.when > job.since - CLOCKS else None


def _reason(job: RunningJob, ending: logs.Ending | None, said: str, log: Path | None) -> str:
    """Why a job failed, in one line: its own message, or what is known of its end, from a log."""
    if ending and ending.state == "failed":
        return printable(ending.message)
    if _KILLED.search(said):
        return (
            "killed, most often because the memory of the machine was used up. With more memory, or fewer jobs at a "
            f"time (--cores), it resumes from its last saved state; to need less, {less_memory(job.rule)}"
        )
    lines = _last_lines(log) if log else []
    said = one_line(Exception(said))
    return " / ".join(lines) or said or "it left no message"


def _last_lines(log: Path) -> list[str]:
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - logs.TAIL))
            text = stream.read().decode(errors="replace")
    except OSError:
        return []
    return [" ".join(printable(line).split()) for line in text.splitlines() if line.strip()][-TAIL:]
