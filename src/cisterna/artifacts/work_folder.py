"""Work folders: where a stage keeps what it has done, so that it resumes when the same command is run again.

A work folder (`results/.work/...`) is no output of a rule, so Snakemake never deletes it. What is in it counts only for
a run with the facts (inputs, options, packages) that its `fingerprint.json` records.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cisterna.artifacts import files, shutdown
from cisterna.errors import UserError

FINGERPRINT = "fingerprint.json"
LOCK = ".lock"
SAVE_MINUTES = 10.0  # between two saves, by default


@contextmanager
def folder(work: Path, output: Path, facts: Mapping[str, Any]) -> Iterator[None]:
    """Lock the work folder of the stage that publishes `output`, and remove what a run of other `facts` left in it.

    `facts` is a JSON object. In the block SIGTERM asks for a graceful shutdown (`cisterna.artifacts.shutdown`).

    The folder stays when the stage has ended, until `cisterna clean`: if Snakemake is killed before it has recorded the
    end of the job, it deletes what the job published, and the same command then resumes from the work folder.
    """
    with locked(work, output), shutdown.watch():
        discard_stale(work, facts)
        yield


@contextmanager
def locked(work: Path, output: Path | None = None) -> Iterator[None]:
    """Lock a work folder, which is made if it does not exist, and remove what killed processes left next to `output`.

    UserError if another process has locked it. The operating system releases the lock when the process ends, also when
    it is killed.
    """
    from filelock import FileLock, Timeout

    work.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work / LOCK, timeout=0):
            if output:
                files.remove_leftovers(output)
            yield
    except Timeout:
        raise UserError(
            f"{work}: another process is working on this stage; wait for it to end, or stop it, then run again"
        ) from None


def discard_stale(work: Path, facts: Mapping[str, Any], pattern: str = "*", reason: str | None = None) -> None:
    """Remove what matches `pattern` in a work folder if a run of other `facts` made it, and record `facts`.

    With `reason` it is removed in any case. What is removed, and why, is printed.
    """
    path = work / FINGERPRINT
    known = files.read_json(path) if path.is_file() else {}
    changed = sorted(key for key in facts if known.get(key) != facts[key])
    saved = [entry for entry in work.glob(pattern) if entry.name not in (LOCK, FINGERPRINT)]
    if changed and saved:
        reason = f"the state in {work} is of another run ({', '.join(changed)} changed)"
    if reason:
        print(f"from the start: {reason}", flush=True)
        for entry in saved:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    files.write_json(path, dict(facts))
