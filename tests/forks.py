"""Programs that start without their imports: as forks of a process that has imported the libraries, and nothing else.

Importing torch, transformers and TRL costs 5 s of CPU and Snakemake 1 s, more than the rest of most tests. Apart from
its imports a fork is like a program started from a shell: it has its own process group, folder, environment, output
and exit code.
"""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    [
        "datasets",
        "deepspeed",
        "snakemake.cli",
        "snakemake.report.html_reporter",
        "snakemake_executor_plugin_slurm",
        "snakemake_storage_plugin_s3",
        "transformers.models.esm.modeling_esm",
        "transformers.models.qwen3.modeling_qwen3",
        "cisterna.evaluation.evaluate",
        "cisterna.training.cpt",
        "cisterna.training.rl",
        "cisterna.training.sft",
    ]
)


class Fork:
    """`python -m module arguments...` in a fork, both output streams in the file `log`. Used like subprocess.Popen."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        log: Path,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        hook: object = None,
    ) -> None:
        """`hook` is an audit hook (sys.addaudithook) of the program."""
        self.command = f"{module} {' '.join(arguments)}"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")  # of an earlier program
        place = (str(log), str(folder or Path.cwd()), dict(environment or os.environ))
        self._process = _forks.Process(target=_become, args=(module, list(arguments), *place, hook), daemon=True)
        self._process.start()
        self.pid: int = self._process.pid or 0

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while the program runs."""
        return self._process.exitcode

    def join(self, seconds: float) -> None:
        """Wait for the end, at most `seconds`."""
        self._process.join(seconds)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit code. After `timeout` seconds the program is killed: TimeoutError."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f"{self.command} has not ended after {timeout} s")
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _become(
    module: str, arguments: list[str], log: str, folder: str, environment: dict[str, str], hook: object
) -> None:
    """In the fork: run the program and leave with its exit code."""
    os.setsid()
    for number, path, flags in ((0, os.devnull, os.O_RDONLY), (1, log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)):
        opened = os.open(path, flags, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    os.dup2(1, 2)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    if hook:
        sys.addaudithook(hook)
    code: object = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
