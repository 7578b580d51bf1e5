"""Work folders: where a stage keeps what it has done, so that the same command goes on after the process was killed.

A work folder is no output of a rule, so Snakemake never deletes it. What it holds counts only for the run whose facts
(inputs, options, packages) stand in its `fingerprint.json`. Not for trainer state, which a ladder shares
(`cisterna.training.run`), and not for how a stage saves.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cisterna.artifacts import files, shutdown

FINGERPRINT = "fingerprint.json"
LOCK = ".lock"
SAVE_MINUTES = 10.0  # between two saves of a stage that is not told otherwise


@contextmanager
def folder(work: Path, output: Path, facts: Mapping[str, Any]) -> Iterator[None]:
    """Hold the work folder of the stage that publishes `output`.

    It stays when the stage has ended, until `cisterna clean`: Snakemake deletes what a job published if it is killed
    before the job's end is on record, and then the same command goes on from here once more.

    In the block SIGTERM is to be obeyed (`cisterna.artifacts.shutdown`), and all that `work` holds was made by a run
    of the same `facts`, a JSON object: what another run left is removed, with a line that says why. UserError if
    another process
    holds it.
    """
    with files.lock(work), shutdown.watch():
        files.remove_leftovers(output)
        _discard_stale(work, facts)
        yield


def _discard_stale(work: Path, facts: Mapping[str, Any]) -> None:
    path = work / FINGERPRINT
    known = files.read_json(path) if path.is_file() else {}
    changed = sorted(key for key in facts if known.get(key) != facts[key])
    if changed:
        if known:
            print(f"from the start: the state in {work} is of another run ({', '.join(changed)} changed)", flush=True)
        _empty(work)
        files.write_json(path, dict(facts))


def _empty(work: Path) -> None:
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()
