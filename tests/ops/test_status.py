"""`cisterna status`: what a look at a results folder finds, and the page that shows it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from terminals import Terminal

from cisterna import study
from cisterna.artifacts import progress
from cisterna.errors import UserError
from cisterna.ops import status
from cisterna.study.jobs import jobs
from clones import Clone, make

RUNG = "models/tiny/base/hairpin/s0/sft-brief/e2"
LADDER = ".work/models/tiny/base/hairpin/s0/sft-brief"
# A process that reports step 30 of 120 of a rung, and runs until it is killed.
STAGE = f"""
import sys
from pathlib import Path
from cisterna.artifacts.progress import Progress
progress = Progress(Path("results/{LADDER}"), Path("results/{RUNG}/checkpoint"), "sft")
progress.update(30, 120, "steps", loss=0.5, tokens_per_second=5432.1)
print("reported", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Clone:
    """A clone of the tiny study without results; the test runs in it."""
    made = make(tmp_path)
    monkeypatch.chdir(tmp_path)
    return made


@pytest.fixture
def stage(clone) -> Iterator[subprocess.Popen[str]]:
    """A stage that runs, in a process of its own."""
    command = [sys.executable, "-c", STAGE]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=clone.folder, text=True, **pipes) as process:
        assert process.stdout
        assert process.stdout.readline() == "reported\n"
        yield process
        process.kill()


def look() -> status.Snapshot:
    return status.take_snapshot(jobs(study.read(Path("config/config.yaml"))))


def report(clone: Clone, **changes: Any) -> None:
    """Write or change the progress of a stage; `age` is the seconds since its last update."""
    now = time.time() - changes.pop("age", 0)
    path = clone.results / LADDER / progress.NAME
    if not path.exists():
        progress.Progress(path.parent, Path(f"results/{RUNG}/checkpoint"), "sft").update(30, 120, "steps", loss=0.5)
    times = {"begun": now - 90, "first_update": now - 60, "begun_at": 0, "updated": now}
    path.write_text(json.dumps(json.loads(path.read_text()) | times | changes))


def log(clone: Clone, text: str, path: str = RUNG) -> None:
    target = clone.results / "logs" / f"{path}.log"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def only(seen: status.Snapshot) -> status.RunningJob:
    (found,) = seen.running
    return found


# --- What a look finds ---


def test_jobs_of_a_study_that_was_never_run_are_waiting(clone):
    seen = look()
    assert not seen.running
    assert not seen.failures
    assert {state for counts in seen.counts.values() for state in counts} == {"waiting"}


def test_job_is_done_when_it_has_published_whatever_it_reported_last(clone):
    report(clone)
    folder = clone.results / RUNG / "checkpoint"
    folder.mkdir(parents=True)
    assert look().counts["sft"]["running"] == 1  # no manifest: not complete
    (folder / "manifest.json").touch()
    assert look().counts["sft"] == {"done": 1, "waiting": 7}
    assert not look().running


def test_stage_is_running_while_its_process_exists_and_stopped_after(clone, stage):
    seen = look()
    assert (only(seen).state, only(seen).job.output) == ("running", f"{RUNG}/checkpoint")
    assert seen.counts["sft"] == {"running": 1, "waiting": 7}
    stage.kill()
    stage.wait()
    seen = look()
    assert only(seen).state == "stopped"
    assert seen.counts["sft"] == {"waiting": 8}


@pytest.mark.parametrize(
    ("host", "age", "state"),
    [("here", 3600, "silent"), ("node7", 0, "running"), ("node7", 3600, "silent"), ("node7", 90_000, "stopped")],
)
def test_stage_without_updates_is_silent_and_on_another_machine_stopped_after_a_day(clone, host, age, state):
    pid = os.getpid() if host == "here" else 2**22 + 1  # above the highest pid of Linux: no such process here
    report(clone, host=socket.gethostname() if host == "here" else host, pid=pid, age=age)
    assert only(look()).state == state


def test_stage_of_another_machine_is_stopped_if_its_log_says_so(clone):
    report(clone, host="node7")
    log(clone, "stopped: state of step 30 saved\n")
    assert only(look()).state == "stopped"


def test_progress_belongs_to_the_rung_whose_output_it_names(clone):
    report(clone)
    assert only(look()).job.name == RUNG.removeprefix("models/")
    report(clone, output=f"results/{RUNG.replace('e2', 'e4')}/checkpoint")
    assert only(look()).job.name.endswith("/e4")


def test_job_has_failed_if_its_log_ends_in_an_error(clone):
    report(clone, host="node7")
    log(clone, "step 30/120 loss 0.5\nerror: the loss is nan\n")
    seen = look()
    (failure,) = seen.failures
    assert (failure.job.kind, failure.ending.message) == ("sft", "the loss is nan")
    assert seen.counts["sft"] == {"failed": 1, "waiting": 7}
    assert not seen.running


def test_job_has_not_failed_while_its_process_exists(clone, stage):
    log(clone, "Traceback (most recent call last):\n  File ...\nOSError: retrying\n")
    assert only(look()).state == "running"
    assert not look().failures


def test_unreadable_progress_is_ignored(clone):
    report(clone)
    (clone.results / LADDER / progress.NAME).write_text("{")
    assert not look().running


def test_only_jobs_below_a_folder_are_counted(clone, capsys):
    status.main([Path("config/config.yaml")], Path("results/models/tiny/base/hairpin"))
    assert "0 of 9 jobs done, 9 waiting" in capsys.readouterr().out  # four models, each evaluated, and base
    with pytest.raises(UserError, match=r"results/models/tinny"):
        status.main([Path("config/config.yaml")], Path("results/models/tinny"))


# --- The page ---


def test_the_page_in_a_pipe_is_plain_text_with_one_line_a_stage(clone, stage):
    report(clone, pid=stage.pid, slurm_job="4711", total=135)  # 30 steps in 60 s, so 105 more take 210 s
    page = clone.run("cisterna", "status")
    assert "\x1b" not in page
    assert re.search(r"^\d\d:\d\d:\d\d  study tiny  0 of 38 jobs done, 1 running, 37 waiting *$", page, re.MULTILINE)
    (line,) = [line for line in page.splitlines() if line.startswith("sft  ") and "/e2 " in line]
    *cells, sign, where = re.split(r"  +", line.strip())
    name = "tiny/base/hairpin/s0/sft-brief/e2"
    assert cells == ["sft", name, "30/135 steps", "22%", "loss 0.5", "5,432 tokens/s", "3 min", "1 min"]
    assert re.fullmatch(r"\d+ s ago", sign)
    assert where == f"{socket.gethostname()} (job 4711)"


def test_failure_is_shown_with_its_log_and_a_stage_without_tokens_with_its_own_rate(clone, capsys):
    report(clone, unit="examples", numbers={})
    log(clone, "error: no such column: seq\n", "data/hairpin")
    status.main([Path("config/config.yaml")])
    page = capsys.readouterr().out
    assert "0.5 examples/s" in page
    assert "1 failed" in page
    assert re.search(r"^results/logs/data/hairpin.log, \d+ s ago", page, re.MULTILINE)
    assert "  no such column: seq" in page


def test_a_terminal_too_narrow_for_the_table_shows_paths_whole(clone, stage):
    report(clone, output="results/models/tiny/base/splice-donor/features-tiny-esm/s0/sft-short/e1/checkpoint")
    moved = clone.results / ".work/models/tiny/base/splice-donor/features-tiny-esm/s0/sft-short"
    moved.parent.mkdir(parents=True)
    (clone.results / LADDER).rename(moved)
    page = Terminal(clone.folder, "cisterna", "status").read()
    lines = re.sub(r"\x1b\[[0-9;]*m", "", page).splitlines()
    position = lines.index("sft tiny/base/splice-donor/features-tiny-esm/s0/sft-short/e1")
    assert lines[position + 1].startswith("  30/120 steps  25%  loss 0.5  5,432 tokens/s")
    assert max(map(len, lines)) <= 80


def test_watch_follows_the_run_and_ends_quietly_on_ctrl_c(clone, stage):
    terminal = Terminal(clone.folder, "cisterna", "status", "--watch")
    terminal.read(until="30/120")
    report(clone, done=77)
    terminal.read(until="77/120")
    terminal.process.send_signal(signal.SIGINT)
    page = terminal.read()
    assert terminal.process.wait() == 0
    assert page.endswith("\x1b[?25h\x1b[?1049l")  # the cursor and what was on the screen before are back
    assert "Traceback" not in page


def test_watch_without_a_terminal_is_refused(clone):
    with pytest.raises(UserError, match="--watch"):
        status.main([Path("config/config.yaml")], watch=True)
