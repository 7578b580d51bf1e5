"""Graceful shutdown on SIGTERM, which Slurm sends before a time limit or on `scancel`, and a user with `kill`.

The signal only sets a flag. The stage checks the flag where its state is consistent (between two steps of training,
between two batches of an evaluation), saves and raises `Stopped`. Further SIGTERMs change nothing: Slurm sends one to
every process of a job, and torchrun sends its own on. After SIGKILL a stage resumes from its last save.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

EXIT_CODE = 128 + signal.SIGTERM

_asked = threading.Event()


class Stopped(Exception):  # noqa: N818  (it is no error)
    """A stage was stopped from outside after it saved its state; says what was saved. Exit code 143."""


@contextmanager
def watch() -> Iterator[None]:
    """In the block SIGTERM does not end the process, but makes `requested()` true; also if the block is in another."""
    inside = signal.getsignal(signal.SIGTERM) is _ask
    if inside or threading.current_thread() is not threading.main_thread():  # only the main thread may set a handler
        yield
        return
    _asked.clear()
    earlier = signal.signal(signal.SIGTERM, _ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _ask(*_: Any) -> None:
    _asked.set()


def requested() -> bool:
    """Whether this process has received SIGTERM."""
    return _asked.is_set()
