"""Runs commands of Cisterna in a temporary folder, to their end or for some seconds: for `cisterna plan --calibrate`.

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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cisterna.artifacts import files, logs, progress
from cisterna.errors import UserError
from cisterna.runtime import fork_server

POLL = 0.1  # seconds between two looks at a command


class Command(NamedTuple):
    """A command to run: its words, the threads of its job, and the work folder where it writes its progress."""

    words: Sequence[str]
    threads: int
    work: Path | None = None
    may_fail: bool = False  # after a unit: its time is known then


class Trial(NamedTuple):
    """How long parts of a command took, in seconds. A unit is a step, an example or what else its progress counts."""

    seconds: float  # until it ended, or was stopped
    start: float  # before its first unit
    unit: float  # of one unit; 0 if it counts none
    end: float  # after its last unit; 0 if it was stopped
    total: int  # units of the whole command


@dataclass
class Trials:
    """Runs commands in `folder`, on so many `cores` at a time."""

    folder: Path
    cores: int
    gpus: int
    _running: set[subprocess.Popen[bytes]] = field(default_factory=set)

    def side_by_side(self, tasks: Iterable[Callable[[], None]], threads: int) -> None:
        """Call functions that run commands, as many at a time as jobs of so many threads fit; the first error ends all.

        Jobs of a study run like that, and slow each other down.
        """
        with ThreadPoolExecutor(max(1, self.cores // threads)) as pool:
            waiting = [pool.submit(task) for task in tasks]
            try:
                for done in as_completed(waiting):
                    done.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self.stop()
                raise

    def run(self, command: Command, limit: float | None = None) -> Trial:
        """Run a command, but stop it as soon as it has worked for `limit` seconds and done a unit beyond the first.

        UserError, with the last line of its log, if it fails.
        """
        log = self.folder / "logs" / f"{time.monotonic_ns()}.log"
        log.parent.mkdir(exist_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": str(command.threads)}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        begun = time.time()
        with log.open("wb") as stream:
            process = subprocess.Popen(
                list(command.words),
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        self._running.add(process)
        stopped = False
        while process.poll() is None:
            time.sleep(POLL)
            if limit is not None and not stopped and (state := _progress(command)) and _worked(state) > limit:
                stopped = True
                _kill(process)
        self._running.discard(process)
        seconds, state = time.time() - begun, _progress(command)
        if process.returncode != 0 and not stopped and not (command.may_fail and state):
            ending = logs.ending(log)
            reason = (ending and ending.message) or f"exit code {process.returncode}"
            raise UserError(f"--calibrate: `cisterna {' '.join(command.words[1:2])}` failed: {reason}")
        if not state:
            return Trial(seconds, seconds, 0.0, 0.0, 0)
        end = 0.0 if stopped else begun + seconds - state["updated"]
        more = state["done"] - state["begun_at"]
        before = state["first_update"] - begun
        unit = _worked(state) / more if more else before / max(1, state["begun_at"])
        return Trial(seconds, max(0.0, before - unit * state["begun_at"]), unit, end, state["total"])

    def stop(self) -> None:
        """End the commands that still run."""
        for process in list(self._running):
            _kill(process)
            process.wait()


def _progress(command: Command) -> Mapping[str, Any] | None:
    path = command.work / progress.NAME if command.work else None
    return files.read_json(path) if path and path.is_file() else None


def _worked(state: Mapping[str, Any]) -> float:
    """Seconds since the first unit was done, if there are more units now."""
    return state["updated"] - state["first_update"] if state["done"] > state["begun_at"] else 0.0


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # its fork ends with it (`cisterna.runtime.fork_server`)


@contextmanager
def opened(cores: int, gpus: int) -> Iterator[Trials]:
    """Trials in a temporary folder that looks like this one, but for `results`. Nothing of it is left."""
    with _ended_by_sigterm(), tempfile.TemporaryDirectory(prefix="cisterna-plan-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        for entry in os.scandir():
            if entry.name != "results":
                (folder / entry.name).symlink_to(Path(entry.path).absolute())
        trials = Trials(folder, cores, gpus)
        with _fork_server(folder) if not gpus else _no_server():
            try:
                yield trials
            finally:
                trials.stop()


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
