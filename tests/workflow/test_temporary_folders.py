"""A run of Snakemake leaves nothing of Cisterna's where temporary files go, however it ends."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from clones import Clone, edited, environment, make, snakemake
from waiting import PATIENCE, wait_until

DATA = "results/data/hairpin"


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A short path: that of a socket must be."""
    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        yield Path(folder)


def left(temporary: Path) -> list[Path]:
    return list(temporary.glob("cisterna*"))


def start(clone: Clone, temporary: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Not in a fork of the tests, which has its own folder for temporary files."""
    variables = environment({"TMPDIR": str(temporary)})
    nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(snakemake(*arguments), cwd=clone.folder, env=variables, start_new_session=True, **nowhere)


def test_run_that_ends_well_or_in_an_error_or_runs_nothing(untouched: Clone, temporary: Path) -> None:
    for arguments in ((DATA,), ("--dry-run",), ("--lint",)):
        assert start(untouched, temporary, *arguments).wait(PATIENCE) == 0
        assert left(temporary) == []
    untouched.write(edited(tasks__hairpin__labels=["low", "higher"]))  # a label of the table is missing
    assert start(untouched, temporary, DATA).wait(PATIENCE) == 1
    assert (untouched.results / "logs" / "fork_server.log").is_file()
    assert left(temporary) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_run_that_a_signal_ends(tmp_path: Path, temporary: Path, number: int) -> None:
    clone = make(tmp_path / "study")
    with start(clone, temporary, "results/models/tiny/base/checkpoint") as run:
        wait_until(lambda: list(temporary.glob("cisterna-*/socket")), "the socket of the fork server", run)
        run.send_signal(number)
        run.wait(PATIENCE)
    wait_until(lambda: not left(temporary), "the end of the fork server")


def test_folder_of_a_server_that_was_killed_is_gone_after_the_next_run(untouched: Clone, temporary: Path) -> None:
    with start(untouched, temporary, "results/models/tiny/base/checkpoint") as run:
        wait_until(lambda: list(temporary.glob("cisterna-*/socket")), "the socket of the fork server", run)
        os.killpg(run.pid, signal.SIGKILL)
    assert len(left(temporary)) == 1
    assert start(untouched, temporary, "--unlock").wait(PATIENCE) == 0
    assert start(untouched, temporary, DATA).wait(PATIENCE) == 0
    assert left(temporary) == []
