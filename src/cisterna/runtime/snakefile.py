"""What the Snakefile needs besides its rules: config files, errors, the fork server, a workaround for the S3 plugin.

Not for the rules' inputs and resources, which are look-ups in workflow/rules.
"""

import atexit
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.settings.types import SharedFSUsage

from cisterna.artifacts import files
from cisterna.errors import UserError, printable
from cisterna.runtime import fork_server
from cisterna.study import Study

FORK_SERVER_LOG = Path("results/logs/fork_server.log")


class StudyError(WorkflowError):
    """A mistake of the user's, which ends Snakemake with exit code 1. A program that embeds Snakemake can catch it.

    Snakemake prints the frames of Snakefiles in an exception's traceback. Here they would only hide the message.
    """

    @property
    def __traceback__(self) -> None:
        return None

    @__traceback__.setter
    def __traceback__(self, value: object) -> None:
        pass


@contextmanager
def refusing() -> Iterator[None]:
    """Turn a UserError into a StudyError."""
    try:
        yield
    except UserError as error:
        raise StudyError(printable(str(error))) from None


def config_files(workflow: Any, config: Mapping[str, Any]) -> list[Path]:
    """The files that the study is read from: those of --configfile, after the default study if they are none by itself.

    Empty in a workflow that uses this one as a module and passes it a config. UserError if there is no default study,
    or if the module has a prefix: jobs read and write paths that the config names, which Snakemake does not change.
    """
    paths = workflow.modifier.path_modifier
    while paths is not None:
        if paths.prefix or paths._prefix_replacements:
            raise UserError(
                "prefix and replace_prefix of a module are not supported: results are in results/. For another "
                "folder, run this workflow with --directory, or by itself"
            )
        paths = paths.inner_modifier
    if workflow.modifier.skip_configfile:
        return []
    given = [Path(path) for path in workflow.overwrite_configfiles]
    return given if given and "study" in config else [files.default_config("--configfile"), *given]


def count_missing(cells: Path) -> str:
    """How many results of a study are missing, for the first page of its report, from the table of its cells."""
    import pandas as pd

    states = list(pd.read_parquet(cells, columns=["state"])["state"]) if cells.is_file() else []
    return f"{sum(state != 'done' for state in states)} of {len(states)} results are missing"


def announce(workflow: Any, study: Study, log_files: Sequence[str]) -> None:
    """Say in Snakemake's log which study a run is of. `snakemake --logger cisterna` reads the values."""
    configs = [str(path) for path in workflow.overwrite_configfiles]
    logger.info(f"Study {study.name}", extra={"study": study, "configs": configs, "log_files": log_files})


class ForkServer:
    """The fork server of a run (`cisterna.runtime.fork_server`)."""

    _socket: Path | None = None
    _process: subprocess.Popen[bytes] | None = None

    def start(self, workflow: Any, study: Study) -> None:
        """Start it, if the jobs of the run are on this machine, in this environment, on CPUs."""
        local = workflow.executor_plugin.common_settings.local_exec
        gpu = shutil.which("nvidia-smi") or any(job["gpu"] for job in study.config["resources"].values())
        if not local or gpu or workflow.deployment_settings.deployment_method:
            return
        self._socket = fork_server.new_socket()
        atexit.register(self.stop)
        FORK_SERVER_LOG.parent.mkdir(parents=True, exist_ok=True)
        # Its output goes to a file: a pipe behind Snakemake would stay open until the server ends.
        with FORK_SERVER_LOG.open("w") as log:
            command = [sys.executable, "-m", "cisterna", "fork-server", str(self._socket)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        os.environ[fork_server.VARIABLE] = str(self._socket)

    def stop(self) -> None:
        """End it, if it was started: its jobs are done. It ends by itself if Snakemake is killed."""
        os.environ.pop(fork_server.VARIABLE, None)
        if self._process:
            self._process.terminate()
            self._process.wait()
        if self._socket:
            fork_server.remove(self._socket)
        self._process = self._socket = None
        atexit.unregister(self.stop)


def see_changed_s3_folders(workflow: Any) -> None:
    """Let the S3 plugin see that a folder was removed, or that another process has stored it.

    The plugin asks once whether a folder is in the bucket and keeps the answer (snakemake-storage-plugin-s3 0.3.6,
    `StorageObject.is_dir`). Before a job runs again its old folder is removed; if the job then failed, Snakemake would
    ask for the time of that folder and end with an error, whatever else runs. And in runs without a shared disk
    (Kubernetes) a folder that a pod stores would stay missing for the process that waits for it.
    """
    settings = workflow.storage_settings
    if settings.default_storage_provider != "s3":
        return
    from snakemake_storage_plugin_s3 import StorageObject

    plugins_remove = StorageObject.remove

    def remove(self: StorageObject) -> None:
        plugins_remove(self)
        self._is_dir = None

    def is_dir(self: StorageObject) -> bool:
        return any(self.get_subkeys())

    StorageObject.remove = remove
    if SharedFSUsage.INPUT_OUTPUT not in settings.shared_fs_usage:
        StorageObject.is_dir = is_dir
