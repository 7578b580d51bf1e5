"""TensorBoard, Weights & Biases and Trackio beside a training run, through the libraries' own `report_to`.

    CISTERNA_REPORT_TO=tensorboard snakemake --cores 4
    tensorboard --logdir results/logs/tensorboard

Off unless the variable names one or several, with commas between. A variable and no key of the config, because who
watches a run must not be part of what determines its weights: nothing is trained again when it changes. Addresses and
keys (WANDB_API_KEY, WANDB_MODE, TRACKIO_SPACE_ID, ...) are the trackers' own variables. Not for `cisterna status`,
which needs none of this.
"""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cisterna.artifacts import files
from cisterna.errors import UserError

VARIABLE = "CISTERNA_REPORT_TO"
PROJECT = "WANDB_PROJECT"  # the Snakefile sets it to the name of the study if the user does not; Trackio gets it too
KNOWN = ("tensorboard", "wandb", "trackio")  # each is also the name of its package
LOGS = Path("results/logs")


def chosen() -> list[str]:
    """The trackers that the environment asks for. UserError for one that is not known or not installed."""
    names = [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    for name in names:
        if name not in KNOWN:
            raise UserError(f"{VARIABLE}: found {name!r}; expected {', '.join(KNOWN)}, or several with commas between")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{VARIABLE}: {name} is not installed; run `pip install {name}`, or unset {VARIABLE}")
    return names


def options(output: Path, recipe: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The options of the library's config class for a run that publishes the checkpoint `output`.

    The run is called by the path of its model. Sets what the trackers read from the environment.
    """
    names = chosen()
    if not names:
        return {"report_to": "none"}
    parts = output.parent.parts
    if "results" in parts:  # its last occurrence: with remote storage, the local copy lies in a folder per bucket
        parts = parts[len(parts) - parts[::-1].index("results") :]
    name = "/".join(part for part in parts if part != "/")
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(LOGS / "tensorboard" / name)
    # A resumed stage goes on in its run of W&B, an edited one begins another; Trackio goes by the name alone.
    os.environ["WANDB_RUN_ID"] = files.digest([name, dict(recipe), seed])[:16]
    os.environ.setdefault("WANDB_RESUME", "allow")
    os.environ.setdefault("WANDB_DIR", str(LOGS))
    os.environ.setdefault(PROJECT, "cisterna")
    return {"report_to": names, "run_name": name, "project": os.environ[PROJECT]}
