"""A polite end: SIGTERM (Slurm before a time limit, `scancel`, a user's `kill`) asks a stage to save its state and end.

The signal only raises a flag; the stage looks at it where its state is whole (between two steps of training, between
two batches of an evaluation), saves and raises `Stopped`. Further SIGTERMs change nothing: Slurm sends one to every
process of a job, and torchrun hands on its own. Not for SIGKILL, after which the state of the last save is there.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_CODE = 128 + signal.SIGTERM

_asked = threading.Event()


class Stopped(Exception):  # noqa: N818  (nothing went wrong)
    """A stage was stopped from outside after it saved its state; says what was saved. Exit code 143."""


@contextmanager
def watch() -> Iterator[None]:
    """While the block runs, SIGTERM ends nothing and makes `requested()` true."""
    if threading.current_thread() is not threading.main_thread():  # no thread but this one may set a handler
        yield
        return
    _asked.clear()
    earlier = signal.signal(signal.SIGTERM, lambda *_: _asked.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def requested() -> bool:
    """Whether this process has been asked to end."""
    return _asked.is_set()
