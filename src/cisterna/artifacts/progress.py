"""Progress of a stage: one small file in its work folder, which `cisterna status` reads.

Nothing that a stage computes or publishes depends on the file, and no stage resumes from it. Times are Unix times in
seconds.
"""

import json
import math
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from cisterna.artifacts import files

NAME = "progress.json"
INTERVAL = 1.0  # seconds between two writes: steps of a tiny model take milliseconds, and the disk may be a network's


class Progress:
    """Writes how far a stage is, in its main process alone.

    `work` is the stage's work folder, `output` what it will publish, `kind` its command: cpt, features, ...
    """

    def __init__(self, work: Path, output: Path, kind: str) -> None:
        self._path = work / NAME
        self._facts: dict[str, Any] = {
            "kind": kind,
            "output": str(output),
            "begun": time.time(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
        }
        self._first: dict[str, float] = {}
        self._numbers: dict[str, float] = {}
        self._written = -math.inf

    def update(self, done: int, total: int, unit: str, **numbers: float) -> None:
        """Record that `done` of `total` `unit`s are done, and `numbers` (loss, reward, ...), kept until they change.

        It writes at most once a second, and at the end. If the file cannot be written, the stage continues.
        """
        if not self._first:  # rates are counted from here: imports and loading are over
            self._first = {"begun_at": done, "first_update": time.time()}
        self._numbers |= {key: float(value) for key, value in numbers.items() if math.isfinite(value)}
        now = time.monotonic()
        if now - self._written < INTERVAL and done < total:
            return
        self._written = now
        state = self._facts | self._first | {"done": done, "total": total, "unit": unit, "numbers": self._numbers}
        state |= {"updated": time.time()}
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with files.replacing(self._path) as temporary:
                temporary.write_text(json.dumps(state, indent=1) + "\n")
