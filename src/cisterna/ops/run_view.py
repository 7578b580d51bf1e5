"""What a terminal shows of a run of Snakemake: a line a stage, the time left, and at the end what failed and what
to do.

On a terminal the lines are drawn again every second. Elsewhere (a pipe, a file, CI) a line of plain text is written
when a stage begins or ends or a job fails, and else once a minute at most. `snakemake --logger cisterna` uses it
(`snakemake_logger_plugin_cisterna`). Not for what the counts mean: `cisterna.ops.run_state`.
"""

import shlex
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cisterna.errors import printable
from cisterna.ops.run_state import Failure, Run, RunningJob
from cisterna.ops.status import RESULTS, duration, read_progress
from cisterna.runtime.commands import TRAINING
from cisterna.study import Study

INTERVAL = 1.0  # seconds between two drawings
PAUSE = 60.0  # seconds without a line of plain text after which the next finished job writes one
SHOWN = 8  # running jobs on a terminal
OTHER_LINES = 10  # of the page, without those of stages and running jobs
LISTED = 10  # failures at the end
STOPPING = "stopping: the jobs that run end first"


def console_for(stream: TextIO, color: bool) -> Console:
    """A console that writes control characters to a terminal and to nothing else, whatever FORCE_COLOR says."""
    terminal = stream.isatty()
    return Console(
        file=stream,
        force_terminal=terminal,
        force_interactive=None if terminal else False,
        color_system="auto" if terminal else None,
        no_color=not color,
        highlight=False,
        markup=False,
        emoji=False,
    )


class View:
    """Shows one run on a console, until `end`."""

    def __init__(self, console: Console, run: Run) -> None:
        self._console = console
        self._run = run
        self._live: Live | None = None
        self._drawing = threading.Thread(target=self._draw, daemon=True)
        # Of the drawing: rich's own thread for it can come between the two steps in which a text is written above.
        self._lock = threading.Lock()
        self._begun = False
        self._stages: set[str] = set()  # those that have begun
        self._warned: set[str] = set()
        self._last_line = time.monotonic()
        self._configs: Sequence[str] = ()
        self._log_files: Sequence[str] = ()
        self._stopping = False
        self._over = threading.Event()

    # --- Events ---

    def belongs_to(self, study: Study, configs: Sequence[str], log_files: Sequence[str]) -> None:
        """The run is one of a study: its config files, if any were given, and the files of Snakemake's log."""
        self._run.belongs_to(study)
        self._configs, self._log_files = ([_near(path) for path in paths] for paths in (configs, log_files))

    def begin(self) -> None:
        """Jobs are about to start."""
        if self._begun:
            return
        self._begun = True
        if self._console.is_interactive and not self._console.is_dumb_terminal:
            self._live = Live(get_renderable=self._page, console=self._console, auto_refresh=False)
            self._live.start(refresh=True)
            self._drawing.start()
            return
        counts = self._run.counts()
        before = f", {counts.done:,} were done before" if counts.done else ""
        self._line(f"{self._title}: {_jobs(counts.waiting)} to do{before}")
        if self._log_files:
            self._line(f"full log: {' '.join(self._log_files)}")

    def started(self, number: int, rule: str, outputs: Sequence[str], log_files: Sequence[str]) -> None:
        """A job has begun."""
        self._run.start(number, rule, outputs, log_files)
        stage = self._run.stage_of(rule)
        if stage in self._run.stages and stage not in self._stages:
            self._stages.add(stage)
            self._line_of(stage)

    def finished(self, number: int) -> None:
        """A job is done."""
        job = self._run.finish(number)
        if job:
            stage = self._run.stage_of(job.rule)
            counts = self._run.counts(stage)
            if counts.done == sum(counts) or time.monotonic() - self._last_line > PAUSE:
                self._line_of(stage)

    def failed(self, number: int, said: str, log_files: Sequence[str]) -> None:
        """A job has ended without its result, as in `Run.fail`. The others may go on."""
        if failure := self._run.fail(number, said, log_files):
            self.say(f"{_clock()}  failed: {failure.job.name}\n          {failure.reason}", "red")
        elif (job := self._run.stopped.get(number)) and not self._stopping:
            self.say(f"{_clock()}  stopped by a signal: {job.name}", "yellow")

    def group_failed(self, numbers: Sequence[int]) -> None:
        """A group of jobs has ended early; `failed` follows for each of them."""
        self._run.fail_group(numbers)

    def restarted(self, number: str) -> None:
        """Snakemake starts a job again that failed or was stopped, or a group, which has another sort of number."""
        if not number.isdecimal():
            self.say(f"{_clock()}  tried again: a group of jobs")
        elif job := self._run.ended_early(int(number)):
            self.say(f"{_clock()}  tried again: {job.name}")

    def stopping(self) -> None:
        """Ctrl-C or SIGTERM: no other job will start."""
        if not self._stopping and not self._live:
            self._line(STOPPING)
        self._stopping = True

    @property
    def knows_why(self) -> bool:
        """Whether the summary at the end will say why the run did not do all its jobs."""
        return self._stopping or bool(self._run.failures or self._run.stopped)

    def say(self, text: str, style: str = "") -> None:
        """Write a text, on a terminal above the lines of the stages."""
        with self._lock:
            self._console.print(Text(printable(text), style), soft_wrap=True)

    def warn(self, text: str, style: str) -> None:
        """Write what Snakemake or a plugin says of the run, once: Slurm's plugin repeats a warning for each job."""
        if text not in self._warned:
            self._warned.add(text)
            self.say(text, style)

    def end(self) -> None:
        """The run is over: write how it ended, and what to do."""
        self._run.close(self._stopping)
        self._over.set()
        if self._live:
            self._drawing.join()
            self._live.stop()
        if self._begun:
            for text, style in self._summary():
                self.say(text, style)

    # --- The page on a terminal ---

    @property
    def _title(self) -> str:
        return f"Study {self._run.study}" if self._run.study else "This run"

    def _draw(self) -> None:
        while self._live and not self._over.wait(INTERVAL):
            with self._lock:
                self._live.refresh()

    def _page(self) -> Group:
        parts: list[Any] = [self._headline(), "", self._table()]
        if self._over.is_set():
            return Group(*parts)
        running = list(self._run.running.values())
        shown = max(1, min(SHOWN, self._console.height - len(self._run.stages) - OTHER_LINES))
        parts += ["", Text(self._time_left())]
        if running:
            parts += ["", self._running(running[:shown])]
        if len(running) > shown:
            parts += [Text(f"and {len(running) - shown} more")]
        note = STOPPING if self._stopping else "Ctrl-C stops; the same command continues"
        return Group(*parts, "", Text(note, style="yellow" if self._stopping else "dim"))

    def _headline(self) -> Text:
        counts = self._run.counts()
        words = [f"{counts.done:,} of {sum(counts):,} jobs done"]
        words += [f"{counts.failed:,} failed"] if counts.failed else []
        return Text.assemble((self._title, "bold"), f"  {', '.join(words)}, after {duration(self._run.elapsed())}")

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("stage")
        table.add_column("")
        for name in ("done", "running", "waiting", "failed"):
            table.add_column(name, justify="right")
        for stage in self._run.stages:
            done, running, waiting, failed = counts = self._run.counts(stage)
            table.add_row(
                stage,
                ProgressBar(total=sum(counts), completed=done, width=20),
                f"{done:,}/{sum(counts):,}",
                _unless_zero(running),
                _unless_zero(waiting),
                Text(_unless_zero(failed), style="bold red"),
            )
        return table

    def _running(self, running: Sequence[RunningJob]) -> Table:
        table = Table.grid(padding=(0, 2, 0, 0))
        for job in running:
            entry = self._run.known_job(job)
            elapsed = self._run.elapsed(job)
            reported = read_progress(entry, RESULTS) if entry else None
            steps = ""
            if reported and reported["updated"] > time.time() - elapsed:  # else by an earlier run
                steps = f"{reported['done']:,}/{reported['total']:,} {reported['unit']}"
            name = Text(entry.name if entry else job.output, overflow="fold")
            table.add_row(Text(job.rule), name, Text(steps), Text(duration(elapsed)))
        return table

    # --- Lines of text ---

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        self.say(f"{_clock()}  {text}")

    def _line_of(self, stage: str) -> None:
        if self._live:
            return
        done, running, waiting, failed = counts = self._run.counts(stage)
        states = {"running": running, "waiting": waiting, "failed": failed}
        parts = [f"{stage}: {done:,} of {sum(counts):,} done"]
        parts += [f"{count:,} {state}" for state, count in states.items() if count]
        every = self._run.counts()
        left = f", {self._time_left()}" if self._time_left() else ""
        self._line(f"{', '.join(parts)}; in all {every.done:,} of {sum(every):,}{left}")

    def _time_left(self) -> str:
        seconds, unknown = self._run.time_left()
        if seconds is None:
            return "time left: not known yet" if unknown else ""
        # Some of the jobs that wait need a failed one and will not run.
        about = "at most about" if self._run.failures else "about"
        without = f", not counting {_listing(unknown)}" if unknown else ""
        return f"time left: {about} {duration(seconds)}{without}"

    # --- The end ---

    def _summary(self) -> list[tuple[str, str]]:
        run = self._run
        counts = run.counts()
        took = duration(run.elapsed())
        logged = [(f"Full log: {' '.join(self._log_files)}", "")] if self._log_files else []
        if counts.done == sum(counts):
            now = f" in {took}" if run.finished == counts.done else f", {run.finished:,} of them now, in {took}"
            return [(f"{self._title} is done: {_jobs(counts.done)}{now}", "bold"), *logged]
        states = [f"{counts.done:,} of {sum(counts):,} jobs are done"]
        states += [f"{counts.failed:,} failed"] if counts.failed else []
        stopped = len(run.stopped)
        states += [f"{stopped:,} {'was' if stopped == 1 else 'were'} stopped"] if stopped else []
        waiting = sum(counts) - counts.done - counts.failed - stopped
        states += [f"{waiting:,} {'was' if waiting == 1 else 'were'} not started"] if waiting else []
        lines = [("", ""), (f"{self._title}: {', '.join(states)}, after {took}", "bold")]
        failures = list(run.failures.values())
        for failure in failures[:LISTED]:
            lines += [("", ""), *self._explained(failure)]
        if len(failures) > LISTED:
            rest = f"and {len(failures) - LISTED} more; `cisterna status{self._config}` lists all"
            lines += [("", ""), (rest, "red")]
        lines += [("", ""), (self._advice(), "bold"), *logged]
        return lines

    def _explained(self, failure: Failure) -> list[tuple[str, str]]:
        job = failure.job
        lines = [(f"failed: {job.name}", "bold red"), (f"  why:  {failure.reason}", "red")]
        lines += [(f"  log:  {failure.log}", "")] if failure.log else []
        if self._run.known_job(job) and job.is_local:
            lines += [(f"  alone, after the cause is corrected:  {self._command(job)}", "")]
        return lines

    def _advice(self) -> str:
        resume = "what is done is kept, and a stage that was stopped resumes from its last saved state"
        failures = self._run.failures.values()
        if failures and not self._stopping:
            report = f"\n      `cisterna report --partial{self._config}` makes a report of what is done."
            local = all(failure.job.is_local for failure in failures)
            return f"Next: correct the cause, then type the same command again: {resume}.{report if local else ''}"
        return f"To continue, type the same command again: {resume}."

    def _command(self, job: RunningJob) -> str:
        path = shlex.quote(job.output)
        if job.rule in TRAINING:
            return f"cisterna train {path}{self._config}"
        if job.rule == "evaluate":
            return f"cisterna evaluate {path}{self._config}"
        names = f" --configfile {shlex.join(self._configs)}" if self._configs else ""
        return f"snakemake --cores 1 {path}{names}"

    @property
    def _config(self) -> str:
        return f" --config {shlex.join(self._configs)}" if self._configs else ""


def _clock() -> str:
    return time.strftime("%H:%M:%S")


def _near(path: str) -> str:
    """A path as short as it can be named here."""
    return str(Path(path).relative_to(Path.cwd())) if Path(path).is_relative_to(Path.cwd()) else path


def _jobs(count: int) -> str:
    return f"{count:,} job{'' if count == 1 else 's'}"


def _unless_zero(count: int) -> str:
    return f"{count:,}" if count else ""


def _listing(words: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)
