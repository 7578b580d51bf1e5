"""A mend of Snakemake's S3 plugin, for jobs that share no disk with the process that started them (Kubernetes).

Not for local or Slurm runs, and not for reading or writing S3: that is Snakemake's and the plugin's work.
"""


def see_new_folders() -> None:
    """Let the S3 plugin ask again whether a folder is in the bucket.

    It asks once and remembers the answer (snakemake-storage-plugin-s3 0.3.6, `StorageObject.is_dir`), so that a folder
    which a pod makes later, such as a checkpoint, stays missing in the eyes of the process that waits for it.
    """
    from snakemake_storage_plugin_s3 import StorageObject

    def is_dir(self: StorageObject) -> bool:
        return any(self.get_subkeys())

    StorageObject.is_dir = is_dir
