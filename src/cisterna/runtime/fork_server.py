"""Warm starts: one process imports the heavy libraries once, and every job of a local Snakemake run is a fork of it.

Importing torch, transformers and TRL costs 5 to 8 seconds of CPU, more than a nano stage trains. Joining stages into
bigger jobs would save it and lose caching and partial reruns, so the jobs stay small and the import is shared: the
Snakefile starts `cisterna warm` when a local run begins and sets CISTERNA_WARM to its socket; `cisterna sft ...` then
hands its arguments, environment, working folder and output streams to the server, which forks, runs exactly the code
that a cold start runs, and sends back the exit code. Without the variable (by hand, under torchrun, on a cluster)
nothing of this happens.

The pair lives and dies together: signals to the client go to the fork, a killed client kills its fork, of a killed fork
the client says so in the job's log and ends with exit code 137, and the server ends with the Snakemake process that
started it. The server itself never runs torch, so that forks are safe; jobs that use a GPU are not sent to it.
"""

import gc
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

VARIABLE = "CISTERNA_WARM"
KILLED = 137
_BACKLOG = 64

Main = Callable[[Sequence[str]], int]


def serve(path: Path, main: Main) -> None:
    """Import the heavy libraries, then fork for each connection until the parent process is gone.

    `main` runs a command in the fork: it takes its arguments and returns its exit code.
    """
    parent = os.getppid()
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(path))
    path.chmod(0o600)
    # Clients may connect at once; they wait for the imports here instead of each doing their own.
    server.listen(_BACKLOG)
    _import()
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    server.settimeout(1.0)
    try:
        while os.getppid() == parent:
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            if os.fork() == 0:
                server.close()
                _work(connection, main)
            connection.close()
    finally:
        path.unlink(missing_ok=True)


def run(path: str, arguments: list[str]) -> int | None:
    """Have the server at `path` run a command; its exit code, or None if there is no such server."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except OSError:
        return None
    request = json.dumps({"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}).encode()
    socket.send_fds(connection, [len(request).to_bytes(8, "big")], [sys.stdout.fileno(), sys.stderr.fileno()])
    connection.sendall(request)

    def forward(number: int, _: Any) -> None:
        connection.sendall(bytes([number]))

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    try:
        code = connection.recv(1)
    except ConnectionResetError:
        code = b""
    if code:
        return code[0]
    sys.stderr.write(
        f"\nerror: cisterna {arguments[0]} was killed, or crashed, before it could say why. Most often the system did "
        "it for lack of memory (`dmesg` says so). What it had saved is kept: the same command goes on from there\n"
    )
    return KILLED


def _import() -> None:
    """What the commands import. None of these starts a thread or touches a GPU when it is imported."""
    import datasets  # noqa: F401
    import deepspeed  # noqa: F401  (accelerate imports it)
    import peft  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    import transformers.generation.utils
    import transformers.models.qwen3.modeling_qwen3
    import transformers.trainer  # noqa: F401
    import trl.trainer.grpo_trainer
    import trl.trainer.sft_trainer  # noqa: F401

    from cisterna.evaluation import baselines, evaluate, perplexity  # noqa: F401
    from cisterna.training import cpt, rl, sft  # noqa: F401


def _work(connection: socket.socket, main: Main) -> None:
    """In the fork: become the client's command. Never returns."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a server in the background ignores it
        size, streams = _receive_streams(connection)
        request = json.loads(_receive(connection, size))
        for source, target in zip(streams, (1, 2), strict=True):
            os.dup2(source, target)
            os.close(source)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        del os.environ[VARIABLE]
        if threads := os.environ.get("OMP_NUM_THREADS"):
            import torch

            torch.set_num_threads(int(threads))
        threading.Thread(target=_obey, args=(connection,), daemon=True).start()

        code = main(request["arguments"])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # a bug: the client shows the traceback, as a cold start would
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # nothing may keep a fork from its end here
                stream.flush()
        connection.sendall(bytes([code & 0xFF]))
        os._exit(code & 0xFF)


def _obey(connection: socket.socket) -> None:
    """Deliver the client's signals to this process; die when the client is gone."""
    while number := connection.recv(1):
        os.kill(os.getpid(), number[0])
    os.killpg(os.getpgid(0), signal.SIGKILL)


def _receive_streams(connection: socket.socket) -> tuple[int, list[int]]:
    head, streams, _, _ = socket.recv_fds(connection, 8, 2)
    return int.from_bytes(head, "big"), streams


def _receive(connection: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = connection.recv(min(size, 1 << 20))
        if not part:
            raise ConnectionError("the client is gone")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
