"""A fork server: one process imports the heavy libraries once, and every job of a local Snakemake run is a fork of it.

Importing torch, transformers and TRL takes 5 to 8 seconds of CPU, longer than a stage of the default study trains.
Bigger jobs would import less often, but cache and rerun less exactly, so the jobs stay small and share the import:

1. `start`, at the start of a local run, starts `cisterna fork-server` and sets CISTERNA_FORK_SERVER to its socket.
2. `cisterna sft ...` with that variable (`run`) sends its arguments, environment, working directory and output streams
   to the server.
3. The server (`serve`) forks. The fork runs the code that `cisterna sft ...` would run by itself, and sends back the
   exit code.

Without the variable (by hand, under torchrun, on a cluster) a command runs by itself.

Signals to the client are passed on to the fork. A killed client kills its fork. If a fork is killed, the client says so
in the job's log and ends with exit code 137. The server ends with the Snakemake process that started it. The server
never runs torch, so forking is safe. Jobs that use a GPU are not sent to it: CUDA does not survive a fork.
"""

import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cisterna.study import Study

VARIABLE = "CISTERNA_FORK_SERVER"
LOG = Path("results/logs/fork_server.log")
KILLED = 137
_BACKLOG = 64

Main = Callable[[Sequence[str]], int]


def start(workflow: Any, study: "Study") -> None:
    """Start a server for the jobs of a run, where it can serve them: on this machine, in this environment, on CPUs."""
    local = workflow.executor_plugin.common_settings.local_exec
    gpu = shutil.which("nvidia-smi") or any(job["gpu"] for job in study.config["resources"].values())
    if not local or gpu or workflow.deployment_settings.deployment_method:
        return
    path = Path(tempfile.mkdtemp(prefix="cisterna-")) / "socket"
    LOG.parent.mkdir(parents=True, exist_ok=True)
    # Its output goes to a file: a pipe behind Snakemake would stay open until the server ends.
    with LOG.open("w") as log:
        command = [sys.executable, "-m", "cisterna", "fork-server", str(path)]
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    os.environ[VARIABLE] = str(path)


def serve(path: Path, main: Main) -> None:
    """Import the heavy libraries, then fork for each connection until the parent process is gone.

    `main` runs a command in the fork: it takes its arguments and returns its exit code.
    """
    parent = os.getppid()
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(path))
    path.chmod(0o600)
    # Clients may connect before the imports are done: then they wait for them.
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


def run(arguments: list[str]) -> int | None:
    """Let the server of this environment run a command. Returns its exit code, or None if there is no server."""
    path = os.environ.get(VARIABLE)
    if not path:
        return None
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
        f"\nerror: cisterna {arguments[0]} was killed or crashed. Most often the system killed it for lack of memory "
        "(`dmesg` says so). What it had saved is kept: rerun the same command and it resumes\n"
    )
    return KILLED


def _import() -> None:
    """Import what the commands use. None of it starts a thread or touches a GPU when it is imported."""
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
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process ignores it
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
    except BaseException:  # a bug: the client shows the traceback
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # the fork has to end, whatever happens here
                stream.flush()
        connection.sendall(bytes([code & 0xFF]))
        os._exit(code & 0xFF)


def _obey(connection: socket.socket) -> None:
    """Send the client's signals to this process, and kill it when the client is gone."""
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
