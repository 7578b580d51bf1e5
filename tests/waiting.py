"""Waiting for another process, however busy the machine is."""

import subprocess
import time
from collections.abc import Callable
from typing import TypeVar

from forks import Fork

PATIENCE = 400  # seconds: a limit for what has failed, far above what anything here takes on a busy machine
Found = TypeVar("Found")


def wait_until(
    condition: Callable[[], Found | None],
    what: str,
    process: Fork | subprocess.Popen[bytes] | None = None,
    pause: float = 0.01,
) -> Found:
    """Wait until `condition` returns something true, and return it.

    It is asked every `pause` seconds. AssertionError naming `what` if `process` ends before, or after PATIENCE seconds.
    """
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert process is None or process.poll() is None, f"the process ended before: {what}"
        assert time.monotonic() < end, f"{what}: not within {PATIENCE} s"
        time.sleep(pause)
    return found
