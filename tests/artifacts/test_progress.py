"""Progress of a stage: one file, written at most once a second and never half."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cisterna.artifacts import progress
from cisterna.artifacts.progress import Progress

STAGE = """
import sys, time
from pathlib import Path
from cisterna.artifacts import progress
progress.INTERVAL = 0
record = progress.Progress(Path(sys.argv[1]), Path("results/models/x/checkpoint"), "sft")
for step in range(10**9):
    record.update(step, 10**9, "steps", loss=1.0)
"""


def read(work: Path) -> dict[str, Any]:
    return json.loads((work / progress.NAME).read_text())


def test_the_file_has_what_the_stage_is_where_it_runs_and_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    before = time.time()
    Progress(tmp_path / "work", Path("results/models/x/checkpoint"), "sft").update(3, 12, "steps", loss=0.5)
    state = read(tmp_path / "work")
    times = [before, *(state.pop(key) for key in ("begun", "first_update", "updated")), time.time()]
    assert times == sorted(times)
    assert state == {
        **{"kind": "sft", "output": "results/models/x/checkpoint"},
        **{"host": socket.gethostname(), "pid": os.getpid(), "slurm_job": "4711"},
        **{"begun_at": 3, "done": 3, "total": 12, "unit": "steps", "numbers": {"loss": 0.5}},
    }


def test_numbers_are_kept_until_they_change_and_those_not_finite_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    record = Progress(tmp_path, Path("x"), "rl")
    record.update(1, 9, "steps", reward=0.25, loss=1.0)
    record.update(2, 9, "steps", loss=float("nan"))
    record.update(3, 9, "steps", tokens_per_second=10)
    assert read(tmp_path)["numbers"] == {"reward": 0.25, "loss": 1.0, "tokens_per_second": 10.0}


def test_writes_at_most_once_a_second_and_at_the_end(tmp_path):
    record = Progress(tmp_path, Path("x"), "sft")
    record.update(1, 9, "steps")
    record.update(2, 9, "steps", loss=3.0)
    assert read(tmp_path)["done"] == 1
    record.update(9, 9, "steps")
    assert (read(tmp_path)["done"], read(tmp_path)["begun_at"], read(tmp_path)["numbers"]) == (9, 1, {"loss": 3.0})


def test_a_folder_that_refuses_the_file_does_not_end_the_stage(tmp_path):
    (tmp_path / "work").write_text("a file where the folder should be")
    Progress(tmp_path / "work", Path("x"), "sft").update(1, 9, "steps")
    assert os.listdir(tmp_path) == ["work"]


def test_a_reader_never_sees_half_a_file(tmp_path):
    stage = subprocess.Popen([sys.executable, "-c", STAGE, str(tmp_path)])
    try:
        seen = set()
        while len(seen) < 200:
            assert stage.poll() is None, f"the writer ended after {len(seen)} states"
            if (tmp_path / progress.NAME).exists():
                seen.add(read(tmp_path)["done"])
    finally:
        stage.kill()
        stage.wait()
