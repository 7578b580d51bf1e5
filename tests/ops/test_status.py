"""`cisterna status`: what a look at a results folder finds, and the page that shows it."""

import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cisterna import study
from cisterna.artifacts import progress
from cisterna.errors import UserError
from cisterna.ops import plan, status
from clones import Clone, environment, make
from tiny import ROOT

RUNG = "models/tiny/base/hairpin/s0/sft-brief/e2"
LADDER = ".work/models/tiny/base/hairpin/s0/sft-brief"
# A process that says that it is at step 30 of 120 of a rung, and stays.
STAGE = f"""
import time
from pathlib import Path
from cisterna.progress import Progress
told = Progress(Path("results/{LADDER}"), Path("results/{RUNG}/checkpoint"), "sft")
told.update(30, 120, "steps", loss=0.5, tokens_per_second=5432.1)
print("told", flush=True)
time.sleep(600)
"""


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Clone:
    """A clone of the tiny study without results; the test runs in it."""
    made = make(tmp_path)
    monkeypatch.chdir(tmp_path)
    return made


@pytest.fixture
def stage(clone) -> Iterator[subprocess.Popen[str]]:
    """A stage under way, in a process of its own."""
    process = subprocess.Popen([sys.executable, "-c", STAGE], cwd=clone.folder, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "told\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def look() -> status.Look:
    return status.look(status.jobs(study.read(Path("config/config.yaml"))))


def tell(clone: Clone, work: str = LADDER, **changes: Any) -> None:
    """Write or change the progress of a stage; `age` is the seconds since its last sign of life."""
    now = time.time() - changes.pop("age", 0)
    path = clone.results / work / progress.NAME
    if not path.exists():
        told = progress.Progress(path.parent, Path(f"results/{RUNG}/checkpoint"), "sft")
        told.update(30, 120, "steps", loss=0.5)
    times = {"begun": now - 90, "first_update": now - 60, "begun_at": 0, "updated": now}
    path.write_text(json.dumps(json.loads(path.read_text()) | times | changes))


def log(clone: Clone, text: str, path: str = RUNG) -> None:
    target = clone.results / "logs" / f"{path}.log"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def only(seen: status.Look) -> status.Stage:
    (found,) = seen.stages
    return found


# --- The jobs of a study ---


@pytest.mark.parametrize("path", ["config/config.yaml", "config/gpu.yaml"])
def test_jobs_are_those_that_the_plan_counts(path):
    read = study.read(ROOT / path)
    assert Counter(job.kind for job in status.jobs(read)) == +Counter(plan.jobs(read))


@pytest.mark.snakemake
def test_artifacts_logs_and_work_folders_are_those_of_the_workflow(clone):
    """Every rule's own words, from a dry run."""
    output = clone.snakemake("--dry-run", "--printshellcmds")
    blocks = re.findall(
        r"^rule (\w+):\n(?:    .*\n)*?    output: (.+)\n(?:    .*\n)*?    log: (\S+)(?: .*)?\n((?:.*\n)*?)(?=\[)",
        output + "[",
        re.MULTILINE,
    )
    of_workflow = {}
    for rule, outputs, written, rest in blocks:
        work = re.search(r" --work (\S+)", rest)
        of_workflow[written] = (rule, set(outputs.split(", ")), work and work[1])
    jobs = status.jobs(study.read(Path("config/config.yaml")))
    assert len(jobs) == len(of_workflow) == 37
    for job in jobs:
        rule, outputs, work = of_workflow[f"results/{job.log}"]
        assert rule == job.kind
        assert any(f"results/{job.proof}".startswith(f"{path}/") or path == f"results/{job.proof}" for path in outputs)
        assert work == (f"results/{job.work}" if job.work else None), job


# --- What a look finds ---


def test_a_study_that_was_never_run_waits(clone):
    seen = look()
    assert not seen.stages
    assert not seen.failures
    assert {state for counts in seen.counts.values() for state in counts} == {"waiting"}


def test_what_is_published_is_done_whatever_its_stage_told_last(clone):
    tell(clone)
    assert look().counts["sft"]["running"] == 1
    folder = clone.results / RUNG / "checkpoint"
    folder.mkdir(parents=True)
    assert look().counts["sft"]["running"] == 1  # no manifest: not whole
    (folder / "manifest.json").touch()
    assert look().counts["sft"] == {"done": 1, "waiting": 7}
    assert not look().stages


def test_a_stage_runs_while_its_process_lives_and_has_stopped_when_it_is_gone(clone, stage):
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
    [
        ("here", 0, "running"),
        ("here", 3600, "silent"),
        ("node7", 0, "running"),
        ("node7", 3600, "silent"),
        ("node7", 90_000, "stopped"),
    ],
)
def test_a_stage_without_a_sign_of_life_is_marked_and_one_of_another_machine_given_up_after_a_day(
    clone, host, age, state
):
    pid = os.getpid() if host == "here" else 2**22 + 1  # more than Linux gives out: nothing is asked about it
    tell(clone, host=socket.gethostname() if host == "here" else host, pid=pid, age=age)
    assert only(look()).state == state


def test_a_stage_of_another_machine_that_was_stopped_says_so_in_its_log(clone):
    tell(clone, host="node7")
    log(clone, "step 30/120 loss 0.5\nstopped: state of step 30 saved; the same command goes on\n")
    assert only(look()).state == "stopped"


def test_rungs_of_a_ladder_are_told_apart_by_what_they_publish(clone):
    tell(clone)
    assert only(look()).job.name == RUNG.removeprefix("models/")
    tell(clone, output=f"results/{RUNG.replace('e2', 'e4')}/checkpoint")
    assert only(look()).job.name.endswith("/e4")


def test_a_job_failed_if_its_log_ends_in_an_error(clone):
    tell(clone, host="node7")
    log(clone, "step 30/120 loss 0.5\nerror: the loss is nan at step 31;\n  lower \x1b[31mlearning_rate\n")
    seen = look()
    (failure,) = seen.failures
    assert failure.message == "the loss is nan at step 31; lower [31mlearning_rate"
    assert seen.counts["sft"] == {"failed": 1, "waiting": 7}
    assert not seen.stages


def test_a_bug_is_a_failure_too(clone):
    log(
        clone,
        "x\n" * 100_000 + "Traceback (most recent call last):\n  File ...\nValueError: 3 is not 4\n",
        "data/hairpin",
    )
    (failure,) = look().failures
    assert (failure.job.kind, failure.message) == ("data", "ValueError: 3 is not 4")


def test_a_process_that_lives_has_not_failed_whatever_was_logged(clone, stage):
    log(clone, "Traceback (most recent call last):\n  File ...\nOSError: retrying\n")
    assert only(look()).state == "running"
    assert not look().failures


def test_progress_that_cannot_be_read_is_passed_over(clone):
    tell(clone)
    (clone.results / LADDER / progress.NAME).write_text("{")
    assert not look().stages


def test_only_jobs_below_a_folder_are_counted(clone, capsys):
    status.main([Path("config/config.yaml")], Path("results/models/tiny/base/hairpin"))
    assert "0 of 9 jobs done, 9 waiting" in capsys.readouterr().out  # four models, each evaluated, and base
    with pytest.raises(UserError, match="makes nothing there"):
        status.main([Path("config/config.yaml")], Path("results/models/tinny"))


# --- The page ---


def test_the_page_in_a_pipe_is_plain_text_with_one_line_a_stage(clone, stage):
    tell(clone, pid=stage.pid, slurm_job="4711", total=135)  # 30 steps in 60 s, so 105 more take 210 s
    page = clone.run("cisterna", "status")
    assert "\x1b" not in page
    assert re.search(r"^\d\d:\d\d:\d\d  study tiny  0 of 37 jobs done, 1 running, 36 waiting *$", page, re.MULTILINE)
    (line,) = [line for line in page.splitlines() if line.startswith("sft  ") and "/e2 " in line]
    *cells, sign, where = re.split(r"  +", line.strip())
    assert cells == [
        "sft",
        "tiny/base/hairpin/s0/sft-brief/e2",
        "30/135 steps",
        "22%",
        "loss 0.5",
        "5,432 tokens/s",
        "3 min",
        "1 min",
    ]
    assert re.fullmatch(r"\d+ s ago", sign)
    assert where == f"{socket.gethostname()} (job 4711)"


def test_a_stage_without_tokens_shows_its_own_rate(clone):
    tell(clone, unit="examples", numbers={})
    assert "0.5 examples/s" in clone.run("cisterna", "status")


def test_a_failure_is_shown_with_its_log(clone):
    log(clone, "error: no such column: seq\n", "data/hairpin")
    page = clone.run("cisterna", "status")
    assert "1 failed" in page
    assert re.search(r"^results/logs/data/hairpin.log, \d+ s ago", page, re.MULTILINE)
    assert "  no such column: seq" in page


class Terminal:
    """A command that believes that it writes to a terminal of 80 columns and 24 lines."""

    def __init__(self, clone: Clone, *command: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        variables = environment({"TERM": "xterm-256color"})
        streams = {"stdin": slave, "stdout": slave, "stderr": slave}
        # Where the tests run in the background Ctrl-C is ignored, and a child would inherit that.
        earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.process = subprocess.Popen(command, cwd=clone.folder, env=variables, start_new_session=True, **streams)
        signal.signal(signal.SIGINT, earlier)
        os.close(slave)
        self.text = ""

    def read(self, until: str | None = None) -> str:
        """What it has written when the text `until` has come, or at its end."""
        while until is None or until not in self.text:
            try:
                self.text += os.read(self.master, 65_536).decode()
            except OSError:  # Linux's way to say that the other side is closed
                assert until is None, self.text
                os.close(self.master)
                break
        return self.text


def test_a_terminal_too_narrow_for_the_table_shows_paths_whole(clone, stage):
    tell(clone, output="results/models/tiny/base/splice-donor/features-tiny-esm/s0/sft-short/e1/checkpoint")
    moved = clone.results / ".work/models/tiny/base/splice-donor/features-tiny-esm/s0/sft-short"
    moved.parent.mkdir(parents=True)
    (clone.results / LADDER).rename(moved)
    page = Terminal(clone, "cisterna", "status").read()
    lines = re.sub(r"\x1b\[[0-9;]*m", "", page).splitlines()
    position = lines.index("sft tiny/base/splice-donor/features-tiny-esm/s0/sft-short/e1")
    assert lines[position + 1].startswith("  30/120 steps  25%  loss 0.5  5,432 tokens/s")
    assert max(map(len, lines)) <= 80


def test_watch_follows_the_run_and_ends_in_silence_on_ctrl_c(clone, stage):
    terminal = Terminal(clone, "cisterna", "status", "--watch")
    terminal.read(until="30/120")
    tell(clone, done=77)
    terminal.read(until="77/120")
    terminal.process.send_signal(signal.SIGINT)
    page = terminal.read()
    assert terminal.process.wait(10) == 0
    assert page.endswith("\x1b[?25h\x1b[?1049l")  # the cursor and what was on the screen before are back
    assert "Traceback" not in page


def test_watch_needs_a_terminal(clone):
    assert "error: --watch: the output is not a terminal" in clone.run("cisterna", "status", "--watch", code=2)


def test_it_starts_without_the_heavy_libraries(clone):
    heavy = "{'torch', 'transformers', 'pandas', 'numpy', 'snakemake', 'sklearn', 'datasets'}"
    script = f"import sys; from cisterna import cli; cli.main(['status']); sys.exit(str({heavy} & set(sys.modules)))"
    assert clone.run(sys.executable, "-c", script, code=1).endswith("\nset()\n")
