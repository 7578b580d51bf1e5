"""Training curves in TensorBoard, Weights & Biases or Trackio, through the libraries' own `report_to`.

    CISTERNA_REPORT_TO=tensorboard snakemake --cores 4
    tensorboard --logdir results/logs/tensorboard

Off unless the variable names one or several trackers, separated by commas. It is an environment variable and not a key
of the config, so that a change of it does not train anything again. Addresses and keys (WANDB_API_KEY, WANDB_MODE,
TRACKIO_SPACE_ID, ...) are the trackers' own variables. `cisterna status` needs no tracker.
"""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cisterna.artifacts import files
from cisterna.errors import UserError

VARIABLE = "CISTERNA_REPORT_TO"
PROJECT = "WANDB_PROJECT"  # by default the Snakefile sets it to the name of the study; used for Trackio too
KNOWN = ("tensorboard", "wandb", "trackio")  # each is also the name of its package
LOGS = Path("results/logs")


def chosen() -> list[str]:
    """The trackers that the environment names. UserError for one that is not known or not installed."""
    names = [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    for name in names:
        if name not in KNOWN:
            raise UserError(f"{VARIABLE}: {name!r} is no tracker; expected one or several of {', '.join(KNOWN)}")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{VARIABLE}: {name} is not installed; run `pip install {name}`, or unset {VARIABLE}")
    return names


def options(output: Path, recipe: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The library's options for a run that publishes the checkpoint `output`; the run has the name of its model's path.

    Sets the environment variables that the trackers read.
    """
    names = chosen()
    if not names:
        return {"report_to": "none"}
    parts = output.parent.parts
    if "results" in parts:  # its last occurrence: with remote storage, the local copy is in a folder of the bucket
        parts = parts[len(parts) - parts[::-1].index("results") :]
    name = "/".join(part for part in parts if part != "/")
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(LOGS / "tensorboard" / name)
    # A resumed stage continues its W&B run, an edited recipe starts another. Trackio only knows the name.
    os.environ["WANDB_RUN_ID"] = files.digest([name, dict(recipe), seed])[:16]
    os.environ.setdefault("WANDB_RESUME", "allow")
    os.environ.setdefault("WANDB_DIR", str(LOGS))
    os.environ.setdefault(PROJECT, "cisterna")
    return {"report_to": names, "run_name": name, "project": os.environ[PROJECT]}
