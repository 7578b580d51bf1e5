"""What the Snakefile needs besides its rules: the study of a run, and errors as Snakemake reports them.

Not for the rules' inputs and resources, which are look-ups in workflow/rules.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from snakemake.exceptions import WorkflowError

from cisterna.artifacts import files
from cisterna.errors import UserError


class StudyError(WorkflowError):
    """A mistake of the user's, which ends Snakemake with exit code 1. Whoever embeds Snakemake can catch it.

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
        raise StudyError(str(error)) from None


def config_files(workflow: Any, config: Mapping[str, Any]) -> list[Path]:
    """The files that the study is read from: those of --configfile, after the default study if they are none by itself.

    Empty in a workflow that uses this one as a module and passes it a config. UserError if there is no default study.
    """
    if workflow.modifier.skip_configfile:
        return []
    given = [Path(path) for path in workflow.overwrite_configfiles]
    if given and "study" in config:
        return given
    return [files.default_config("--configfile"), *given]


def count_missing(cells: Path) -> str:
    """How many results of a study are missing, for the first page of its report, from the table of its cells."""
    import pandas as pd

    states = list(pd.read_parquet(cells, columns=["state"])["state"]) if cells.is_file() else []
    return f"{sum(state != 'done' for state in states)} of {len(states)} results are missing"
