"""A fork server: one process imports the heavy libraries once, and every job of a local Snakemake run is a fork of it.

Importing torch, transformers and TRL takes 5 to 8 seconds of CPU, longer than a stage of the default study trains.
Bigger jobs would import less often, but cache and rerun less exactly, so the jobs stay small and share the import:

1. At the start of a local run the Snakefile starts `cisterna fork-server` and sets CISTERNA_FORK_SERVER to its socket
   (`cisterna.runtime.snakefile`).
2. `cisterna sft ...` with that variable (`run`) sends its arguments, environment, working directory and output streams
   to the server.
3. The server (`serve`) forks. The fork runs the code that `cisterna sft ...` would run by itself, and sends back the
   exit code.

Without the variable (by hand, under torchrun, on a cluster) a command runs by itself.

Signals to the client are passed on to the fork. A killed client kills its fork. If a fork is killed, the client says so
in the job's log and ends with exit code 137. The server ends with the Snakemake process that started it. Its
socket is in a temporary folder that it removes when it ends; the next run removes that of a killed server. The server
never runs torch, so forking is safe. Jobs that use a GPU are not sent to it: CUDA does not survive a fork.
"""

import gc
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

VARIABLE = "CISTERNA_FORK_SERVER"
KILLED = 137
PREFIX = "cisterna-"  # of the folder of a socket
_NAME = "socket"
_LONGEST = 78  # bytes of the path of the folder for temporary files; systems allow about 104 for that of a socket
_STARTING = 3600.0  # seconds in which a server surely makes its socket
_BACKLOG = 64

Main = Callable[[Sequence[str]], int]


def new_socket() -> Path:
    """A path for the socket of a server, in a new folder; removes the folders that killed servers of this user left."""
    root = Path(tempfile.gettempdir())
    if len(os.fsencode(root)) > _LONGEST:
        root = Path("/tmp")  # noqa: S108  (mkdtemp makes a folder in it that only this user may open)
    for folder in root.glob(f"{PREFIX}????????"):
        with suppress(OSError):
            if _is_left(folder):
                shutil.rmtree(folder)
    return Path(tempfile.mkdtemp(prefix=PREFIX, dir=root)) / _NAME


def _is_left(folder: Path) -> bool:
    """Whether a folder is that of a socket that no server listens at."""
    about = folder.lstat()
    names = os.listdir(folder)
    if about.st_uid != os.getuid() or set(names) - {_NAME}:
        return False
    if not names:
        return time.time() - about.st_mtime > _STARTING
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(str(folder / _NAME))
        except ConnectionRefusedError:
            return True
    return False


def remove(path: Path) -> None:
    """Remove a socket, and its folder if `new_socket` made it."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
        if path.parent.name.startswith(PREFIX):
            path.parent.rmdir()


def serve(path: Path, main: Main) -> None:
    """Import the heavy libraries, then fork for each connection until the parent process is gone.

    `main` runs a command in the fork: it takes its arguments and returns its exit code.
    """
    parent, own = os.getppid(), os.getpid()

    def end(number: int, _: Any) -> None:
        if os.getpid() == own:  # not in a fork that has not reset its signals yet
            remove(path)
        os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end)
    try:
        _serve(path, main, parent)
    finally:
        remove(path)


def _serve(path: Path, main: Main, parent: int) -> None:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(path))
    path.chmod(0o600)
    server.listen(_BACKLOG)  # before the imports: a client that connects waits for them
    _import()
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    server.settimeout(1.0)
    while os.getppid() == parent:
        try:
            connection, _ = server.accept()
        except TimeoutError:
            continue
        if os.fork() == 0:
            server.close()
            _run_in_fork(connection, main)
        connection.close()


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
    request = json.dumps({"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)})
    socket.send_fds(connection, [b"\n"], [sys.stdout.fileno(), sys.stderr.fileno()])
    connection.sendall(f"{request}\n".encode())

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
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    from cisterna.evaluation import answering, baselines, evaluate, perplexity  # noqa: F401
    from cisterna.training import cpt, rl, sft  # noqa: F401

    get_checkpoint_conversion_mapping("")  # makes the table that every model is looked up in: 0.2 s


def _run_in_fork(connection: socket.socket, main: Main) -> None:
    """In the fork: run the client's command and end the process with its exit code. Never returns."""
    code = 1
    try:
        os.setsid()
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGCHLD or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process ignores it
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as Python does; the server ends at it, as all light commands
        _, streams, _, _ = socket.recv_fds(connection, 1, 2)
        received = connection.makefile("rb")
        request = json.loads(received.readline())
        for source, target in zip(streams, (1, 2), strict=True):
            os.dup2(source, target)
            os.close(source)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        del os.environ[VARIABLE]
        if threads := os.environ.get("OMP_NUM_THREADS"):  # libraries read it when the server loads them
            import torch
            from threadpoolctl import threadpool_limits

            torch.set_num_threads(int(threads))
            threadpool_limits(int(threads))
        threading.Thread(target=_pass_signals_on, args=(received,), daemon=True).start()

        code = main(request["arguments"])
    except BaseException:  # a bug: the client shows the traceback
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # the fork has to end, whatever happens here
                stream.flush()
        with suppress(OSError):
            connection.sendall(bytes([code]))
        os._exit(code)


def _pass_signals_on(received: BinaryIO) -> None:
    """Send the client's signals to this process, and kill it when the client is gone."""
    while number := received.read(1):
        os.kill(os.getpid(), number[0])
    os.killpg(os.getpgid(0), signal.SIGKILL)
