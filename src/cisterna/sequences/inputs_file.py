"""inputs.json: the task, form and encoder that a checkpoint was trained with.

With it `cisterna predict` can ask the model about a new sequence, and training refuses data or features that do not
belong to the checkpoint.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cisterna.artifacts import checkpoint, files
from cisterna.errors import UserError

FILE = "inputs.json"


def write(folder: Path, published: Path, inputs: Mapping[str, Any]) -> None:
    """Write inputs.json into `folder`, to be published as `published`; the encoder's path is relative to that."""
    content = dict(inputs)
    if content["encoder"] is not None:
        content["encoder"] = content["encoder"] | {"path": os.path.relpath(content["encoder"]["path"], published)}
    files.write_json(folder / FILE, content)


def read(folder: Path) -> dict[str, Any] | None:
    """The inputs.json of a checkpoint with the encoder's path resolved; None for a base or CPT checkpoint."""
    if not (folder / FILE).is_file():
        return None
    content = files.read_json(folder / FILE)
    if content["encoder"] is not None:
        content["encoder"]["path"] = os.path.normpath(folder / content["encoder"]["path"])
    return content


def feature_space(encoder: Mapping[str, Any]) -> dict[str, Any]:
    """The encoder's identity and how it is read: a bridge can only read features for which both are the same."""
    reading = {key: value for key, value in encoder["reading"].items() if key not in ("batch_tokens", "batch_size")}
    return {"identity": encoder["identity"], "reading": reading}


def hashes(inputs: Mapping[str, Any]) -> dict[str, str]:
    """Hashes, for the manifest, of the inputs that determine the weights: form, bridge, encoder and its reading."""
    hashed = {"sequences": files.digest([inputs["sequences"], inputs["bridge"]])}
    if inputs["encoder"] is not None:
        hashed["encoder"] = files.digest(feature_space(inputs["encoder"]))
    return hashed


def check_data(folder: Path, task: str, hashes: Mapping[str, str]) -> None:
    """UserError if a checkpoint or one of its ancestors was trained on data of `task` with other hashes than these.

    `hashes` maps file names (train.parquet) to their SHA-256. When a task is drawn anew its splits change, and the id
    split may then hold examples that an older checkpoint was trained on. Checkpoints of other tasks, and those without
    inputs.json, pass.
    """
    for current, manifest in reversed(checkpoint.ancestors(folder)):
        inputs = read(current)
        if inputs is not None and inputs["task"] == task:
            for name, expected in hashes.items():
                actual = manifest["data"].get(name, expected)
                if actual != expected:
                    raise UserError(
                        f"{current}: trained on another {name} of {task} (SHA-256 {actual[:12]}) than the one in use "
                        f"now ({expected[:12]}), whose test splits may hold examples that it was trained on. Restore "
                        f"the data that it was trained on, or delete {current} and rerun"
                    )
