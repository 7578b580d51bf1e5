"""Runs commands of Cisterna in a temporary folder, side by side, and measures their time: for `plan --calibrate`.

Commands start as in a study: on a machine without a GPU as forks of a fork server that has imported the libraries, with
one GPU or more by themselves. Not for what is run (`cisterna.ops.probes`).
"""

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cisterna.artifacts import logs
from cisterna.errors import UserError
from cisterna.runtime import fork_server

BUSY = 0.1  # of the cores in use by other programs, from which the machine counts as busy


class Cost(NamedTuple):
    """Seconds of wall time, and of CPU time (user and system) of a process with its children."""

    wall: float
    cpu: float

    def minus(self, other: "Cost") -> "Cost":
        """The difference; 0 where it would be negative, which is noise."""
        return Cost(max(0.0, self.wall - other.wall), max(0.0, self.cpu - other.cpu))

    def times(self, factor: float) -> "Cost":
        """So many times of it."""
        return Cost(self.wall * factor, self.cpu * factor)


class Command(NamedTuple):
    """A command to measure: its words, and the threads that its job has."""

    words: Sequence[str]
    threads: int
    may_fail: Callable[[], bool] | None = None  # whether it has done its work, so that its error does not matter


Chain = Generator[Command, Cost, None]  # yields commands one after the other, and gets the cost of each


@dataclass
class Stopwatch:
    """Measures commands that run in `folder`, on so many `cores` at a time."""

    folder: Path
    cores: int
    gpus: int
    _running: dict[int, tuple[subprocess.Popen[bytes], Chain, Command, float]] = field(default_factory=dict)
    _begun: tuple[float, float] = (0.0, 0.0)
    _used: float = 0.0
    count: int = 0

    def measure(self, chains: Iterable[Chain]) -> None:
        """Run the commands of all chains, those of different chains side by side, as the jobs of a study run.

        UserError, with the last line of its log, for a command that fails.
        """
        waiting = [(chain, next(chain)) for chain in chains]
        while waiting or self._running:
            free = self.cores - sum(command.threads for _, _, command, _ in self._running.values())
            fitting = next((pair for pair in waiting if pair[1].threads <= free), None)
            if fitting is None and waiting and not self._running:
                fitting = waiting[0]  # it wants more cores than there are
            if fitting:
                waiting.remove(fitting)
                self._start(*fitting)
                continue
            pid, status, usage = os.wait4(-1, 0)
            if pid not in self._running:  # the fork server
                continue
            process, chain, command, begun = self._running.pop(pid)
            process.returncode = os.waitstatus_to_exitcode(status)
            cost = Cost(time.monotonic() - begun, usage.ru_utime + usage.ru_stime + self._cpu_of_fork(process))
            self._used += cost.cpu
            if process.returncode != 0 and not (command.may_fail and command.may_fail()):
                ending = logs.ending(self._log(process))
                reason = ending.message if ending else f"exit code {process.returncode}"
                raise UserError(f"--calibrate: `cisterna {' '.join(command.words[1:2])}` failed: {reason}")
            try:
                waiting.append((chain, chain.send(cost)))
            except StopIteration:
                continue

    def _start(self, chain: Chain, command: Command) -> None:
        self.count += 1
        name = self.folder / "measured" / f"{self.count}"
        name.parent.mkdir(exist_ok=True)
        environment = os.environ | {fork_server.CPU_TIME: f"{name}.cpu", "OMP_NUM_THREADS": str(command.threads)}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        with open(f"{name}.log", "wb") as log:
            process = subprocess.Popen(
                list(command.words), cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        process.args = str(name)
        self._running[process.pid] = (process, chain, command, time.monotonic())

    def _log(self, process: subprocess.Popen[bytes]) -> Path:
        return Path(f"{process.args!s}.log")

    def _cpu_of_fork(self, process: subprocess.Popen[bytes]) -> float:
        path = Path(f"{process.args!s}.cpu")
        return float(path.read_text()) if path.is_file() else 0.0

    def others(self) -> float:
        """Cores of this machine that other programs have used since the start, on average."""
        busy, when = _busy_seconds(), time.monotonic()
        return max(0.0, (busy - self._begun[0] - self._used) / max(when - self._begun[1], 1e-9))

    def begin(self) -> None:
        """Count what other programs use from now on."""
        self._begun, self._used = (_busy_seconds(), time.monotonic()), 0.0

    def stop(self) -> None:
        """End the commands that still run."""
        for process, *_ in self._running.values():
            process.kill()
            process.wait()
        self._running.clear()


def _busy_seconds() -> float:
    """CPU seconds that all programs of this machine have used, together."""
    fields = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:]
    user, nice, system, _, _, irq, soft, *_ = map(int, fields)
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


@contextmanager
def opened(cores: int, gpus: int) -> Iterator[Stopwatch]:
    """A stopwatch in a temporary folder that looks like this one, but for `results`. Nothing of it is left."""
    with _ended_by_sigterm(), tempfile.TemporaryDirectory(prefix="cisterna-plan-") as name:
        folder = Path(name)
        for entry in os.scandir():
            if entry.name != "results":
                (folder / entry.name).symlink_to(Path(entry.path).absolute())
        stopwatch = Stopwatch(folder, cores, gpus)
        with _fork_server(folder) if not gpus else _no_server():
            try:
                yield stopwatch
            finally:
                stopwatch.stop()


@contextmanager
def _no_server() -> Iterator[None]:
    before = os.environ.pop(fork_server.VARIABLE, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[fork_server.VARIABLE] = before


@contextmanager
def _fork_server(folder: Path) -> Iterator[None]:
    """A fork server for the commands that are started in the block."""
    with _no_server():
        socket = fork_server.new_socket()
        atexit.register(fork_server.remove, socket)
        with (folder / "fork_server.log").open("wb") as log:
            words = [sys.executable, "-m", "cisterna", "fork-server", str(socket)]
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while not socket.exists() and process.poll() is None:
                time.sleep(0.05)
            os.environ[fork_server.VARIABLE] = str(socket)
            yield
        finally:
            os.environ.pop(fork_server.VARIABLE, None)
            process.terminate()
            process.wait()
            fork_server.remove(socket)
            atexit.unregister(fork_server.remove)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM leaves the block as Ctrl-C does, so that nothing stays behind."""

    def end(number: int, _: Any) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def count_gpus() -> int:
    """GPUs that nvidia-smi lists; 0 without it."""
    if not shutil.which("nvidia-smi"):
        return 0
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], text=True, capture_output=True, check=False)
    return len(listed.stdout.splitlines()) if listed.returncode == 0 else 0
