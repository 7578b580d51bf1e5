"""A job of the fork server is as one by itself: same results, streams, folder, environment, signals and exit code.

A job that does not end by itself is `cisterna tokenize` of a named pipe that nothing is written to.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

import cisterna
from cisterna.artifacts import checkpoint
from cisterna.runtime import fork_server
from tiny import TEXTS, backbone
from waiting import PATIENCE, wait_until

COMMAND = [sys.executable, "-m", "cisterna"]
START = "import subprocess, sys; subprocess.Popen(sys.argv[1:]).wait()"


def environment(socket_path=None, **changes):
    variables = {name: value for name, value in os.environ.items() if name != fork_server.VARIABLE}
    variables |= {"PYTHONPATH": str(Path(cisterna.__file__).parents[1]), "OMP_NUM_THREADS": "1"} | changes
    return variables | ({fork_server.VARIABLE: str(socket_path)} if socket_path else {})


def writing_end(pipe):
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:  # no reader yet
        return None


@contextlib.contextmanager
def serving():
    """A server with a parent process of its own, as Snakemake is one; yields the parent and the socket."""
    folder = Path(tempfile.mkdtemp(prefix="fork-"))  # a socket's path has to be shorter than pytest's
    parent = subprocess.Popen(
        [sys.executable, "-c", START, *COMMAND, "fork-server", str(folder / "socket")], env=environment()
    )
    try:
        wait_until((folder / "socket").exists, "the socket")
        yield psutil.Process(parent.pid), folder / "socket"
    finally:
        children = psutil.Process(parent.pid).children(recursive=True) if parent.poll() is None else []
        parent.kill()
        parent.wait()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def server():
    with serving() as (parent, path):
        yield parent.children()[0], path


@pytest.fixture
def endless(server, base, tmp_path):
    """A client whose job never ends, and the fork that is the job."""
    process, path = server
    os.mkfifo(tmp_path / "pipe")
    arguments = ["tokenize", "--corpus", "pipe", "--modality", "dna", "--base", str(base), "--output", "out/tokens"]
    client = subprocess.Popen([*COMMAND, *arguments], cwd=tmp_path, env=environment(path))
    fork = wait_until(process.children, "the fork")[0]
    with contextlib.ExitStack() as stack:
        stack.callback(client.wait)
        stack.callback(client.kill)
        # The writing end can be opened once the job waits at the reading end; nothing is ever written.
        stack.callback(os.close, wait_until(lambda: writing_end(tmp_path / "pipe"), "the job at the pipe"))
        yield client, fork
        client.kill()
        wait_until(lambda: not process.children(), "the end of the fork")
        assert not (tmp_path / "out" / "tokens").exists()


def command(arguments, folder, path=None, **changes):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=folder,
        env=environment(path, **changes),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def make_base(output):
    return ["base", "--spec", json.dumps(backbone()), "--output", output]


def gone(process):
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def ignored_signals(process):
    """The standard signals (1 to 31) that a process ignores, as bits; those above are the C library's own."""
    (mask,) = re.findall(r"^SigIgn:\s*(\w+)$", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
    return int(mask, 16) & 0x7FFFFFFF


def test_a_forked_job_gives_the_bytes_and_the_output_of_one_by_itself(server, base, tmp_path):
    made = command(make_base("checkpoint"), tmp_path, server[1])
    assert made.returncode == 0, made.stderr
    assert checkpoint.verify(tmp_path / "checkpoint")["identity"] == checkpoint.read_manifest(base)["identity"]
    (tmp_path / "text.txt").write_text("\n".join(TEXTS[0].read_text().splitlines()[:300]))
    results = {}
    # A job runs by itself if its server is dead.
    dead = server[1].with_name("dead")
    with socket.socket(socket.AF_UNIX) as unused:
        unused.bind(str(dead))
    for name, path in (("forked", server[1]), ("alone", dead)):
        arguments = ["tokenize", "--corpus", "text.txt", "--modality", "text", "--base", "checkpoint", "--output", name]
        ended = command(arguments, tmp_path, path)
        assert ended.returncode == 0, ended.stderr
        results[name] = (ended.stdout, {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()})
    assert results["forked"] == results["alone"]
    assert '"documents"' in results["forked"][0]
    assert len(results["forked"][1]) == 5


def test_an_error_comes_back_with_its_text_and_code_and_a_bug_with_its_traceback(server, base, tmp_path):
    arguments = ["tokenize", "--corpus", "absent.fasta", "--modality", "dna", "--base", base, "--output", "tokens"]
    ended = command(arguments, tmp_path, server[1])
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("error: absent.fasta: cannot be read")
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").write_text("a file where a folder has to be")
    bug = command(make_base("out/checkpoint"), tmp_path, server[1])
    assert bug.returncode == 1
    assert "Traceback" in bug.stderr


def test_a_job_has_the_folder_and_the_environment_of_its_client(server, tmp_path):
    # A manifest names the git commit: what the `git` of the client's PATH says.
    git = tmp_path / "bin" / "git"
    git.parent.mkdir()
    git.write_text("#!/bin/sh\necho the-clients-git\n")
    git.chmod(0o755)
    ended = command(make_base("checkpoint"), tmp_path, server[1], PATH=f"{git.parent}:{os.environ['PATH']}")
    assert ended.returncode == 0, ended.stderr
    assert checkpoint.read_manifest(tmp_path / "checkpoint")["provenance"]["git_commit"] == "the-clients-git"


def test_the_jobs_end_with_a_killed_client(endless):
    client, fork = endless
    client.kill()
    wait_until(lambda: gone(fork), "the end of the fork")


def test_a_killed_job_is_code_137_in_the_client(endless):
    client, fork = endless
    fork.kill()
    assert client.wait(PATIENCE) == 137


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_client_reaches_the_job_and_both_end(endless, number):
    client, fork = endless
    assert ignored_signals(fork) == ignored_signals(client)
    client.send_signal(number)
    assert client.wait(PATIENCE) not in (0, 2)
    wait_until(lambda: gone(fork), "the end of the fork")


def test_jobs_run_at_the_same_time(server, endless, tmp_path):
    ended = command(make_base("checkpoint"), tmp_path, server[1])
    assert ended.returncode == 0, ended.stderr
    assert endless[0].poll() is None
    endless[0].kill()


@pytest.fixture
def temporary(monkeypatch):
    """Where temporary files go: a short path."""
    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def listening(path):
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    return server


def test_new_socket_removes_the_folders_of_dead_servers_and_no_others(temporary):
    for name in ("cisterna-dead0000", "cisterna-lives000", "cisterna-other000", "cisterna-empty000"):
        (temporary / name).mkdir()
    listening(temporary / "cisterna-dead0000" / "socket").close()
    (temporary / "cisterna-other000" / "socket").touch()
    (temporary / "cisterna-other000" / "a file of the user's").touch()
    os.utime(temporary / "cisterna-empty000", (0, 0))  # empty, and its server would have made the socket long ago
    with listening(temporary / "cisterna-lives000" / "socket"):
        path = fork_server.new_socket()
        starting = fork_server.new_socket().parent
        assert set(temporary.iterdir()) == {
            path.parent,
            starting,
            temporary / "cisterna-lives000",
            temporary / "cisterna-other000",
        }
    listening(path).close()
    fork_server.remove(path)
    assert not path.parent.exists()


def test_path_of_a_socket_is_short_enough_wherever_temporary_files_go(temporary, monkeypatch):
    long = temporary / ("long" * 30)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    path = fork_server.new_socket()
    try:
        listening(path).close()
    finally:
        fork_server.remove(path)
    assert not path.parent.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_server_that_a_signal_ends_takes_its_folder_along(temporary, number):
    path = fork_server.new_socket()
    process = subprocess.Popen([*COMMAND, "fork-server", str(path)], env=environment())
    wait_until(path.exists, "the socket", process)
    process.send_signal(number)
    assert process.wait(PATIENCE) == 128 + number
    assert list(temporary.iterdir()) == []


def test_the_server_ends_when_its_parent_is_gone_and_takes_its_socket_along():
    with serving() as (parent, path):
        process = parent.children()[0]
        parent.kill()
        wait_until(lambda: gone(process), "the end of the server")
        assert not path.exists()
