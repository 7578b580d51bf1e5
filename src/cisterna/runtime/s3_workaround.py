"""A workaround for Snakemake's S3 plugin, for jobs that share no disk with the process that started them (Kubernetes).

Not for local or Slurm runs, and not for reading or writing S3: Snakemake and the plugin do that.
"""

from typing import Any

from snakemake.settings.types import SharedFSUsage


def apply(workflow: Any) -> None:
    """Let the S3 plugin see folders that other processes store, if this run needs it.

    The plugin asks once whether a folder is in the bucket and keeps the answer (snakemake-storage-plugin-s3 0.3.6,
    `StorageObject.is_dir`). A folder that a pod stores later, such as a checkpoint, would stay missing for the process
    that waits for it.
    """
    settings = workflow.storage_settings
    if settings.default_storage_provider == "s3" and SharedFSUsage.INPUT_OUTPUT not in settings.shared_fs_usage:
        see_new_folders()


def see_new_folders() -> None:
    """Replace the plugin's `is_dir` by one that asks each time."""
    from snakemake_storage_plugin_s3 import StorageObject

    def is_dir(self: StorageObject) -> bool:
        return any(self.get_subkeys())

    StorageObject.is_dir = is_dir
