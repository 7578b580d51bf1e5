"""Snakemake that asks Slurm about its jobs every second. By default its executor waits longer and longer."""

import sys

from snakemake.cli import main
from snakemake_executor_plugin_slurm import Executor

if __name__ == "__main__":
    Executor.next_seconds_between_status_checks = property(lambda _: 1, lambda *_: None)
    sys.exit(main())
