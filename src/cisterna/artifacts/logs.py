"""How a job ended, read from the end of its log. Not for how far a running stage is (`cisterna.artifacts.progress`)."""

import os
from dataclasses import dataclass
from pathlib import Path

TAIL = 65_536  # bytes of a log that are searched for an error: torchrun writes some text after it
# The exceptions with which Python, and torchrun around the processes of a stage, end when a signal stops them.
SIGNALS = ("KeyboardInterrupt", "torch.distributed.elastic.multiprocessing.api.SignalException")


@dataclass(frozen=True)
class Ending:
    """The end of a log.

    `state` is "failed" if it has an error, "stopped" if the job ended on SIGTERM or SIGINT, and "unknown" if it has
    neither: the job still runs, was killed, or is done.
    """

    state: str
    message: str  # the error in one line: Cisterna's message, or the last exception; "" if it did not fail
    when: float  # Unix time of the last write


def ending(log: Path) -> Ending | None:
    """How the job with this log ended; None without a log."""
    try:
        with log.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - TAIL))
            text = stream.read().decode(errors="replace")
            when = os.fstat(stream.fileno()).st_mtime
    except OSError:
        return None
    _, failed, message = f"\n{text}".rpartition("\nerror: ")
    if not failed:
        if text.rstrip().rpartition("\n")[2].startswith("stopped: "):
            return Ending("stopped", "", when)
        _, failed, trace = text.rpartition("Traceback (most recent call last):\n")
        message = next((line for line in trace.splitlines() if line and not line.startswith(" ")), "")
        if not failed:
            return Ending("unknown", "", when)
        if message.startswith(SIGNALS):
            return Ending("stopped", "", when)
    printable = "".join(letter if letter.isprintable() else " " for letter in message)
    return Ending("failed", " ".join(printable.split()), when)
