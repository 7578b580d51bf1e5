"""Parts of models that others have trained: an adapter of PEFT with its base, and a linear bridge from features.

Not for the adapters of lineages (`cisterna.models`), which are on the checkpoints of their parents.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from cisterna.artifacts import adapter, files

WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"


@dataclass(frozen=True)
class Adapter:
    """The folder of an adapter, and the hub id or folder of its base with a revision."""

    folder: Path
    base: str
    revision: str | None


def find(name: str, revision: str | None) -> Adapter | None:
    """The adapter that a folder or a repository of the hub has; None if it has a whole model.

    ValueError for one that cannot be used: pickled weights, weights of a whole model beside it, another method than
    LoRA, and a base that is not named or not a model.
    """
    from transformers.utils import cached_file
    from transformers.utils.peft_utils import find_adapter_config_file

    config = find_adapter_config_file(name, revision=revision)
    if config is None:
        return None
    folder = Path(config).parent
    if not Path(name).is_dir():  # the hub: fetched into the same folder of its cache
        cached_file(name, WEIGHTS, revision=revision, _raise_exceptions_for_missing_entries=False)
    if any(folder.glob("model*.safetensors")):
        raise ValueError(f"It has an adapter ({adapter.FILE}) and the weights of a whole model. Remove one of them.")
    if not (folder / WEIGHTS).is_file():
        found = f", and {PICKLE} is a pickle, which can run code" if (folder / PICKLE).is_file() else ""
        raise ValueError(f"It has {adapter.FILE} and no {WEIGHTS}{found}. Save the adapter again with PEFT.")
    stored = files.read_json(folder / adapter.FILE)
    if stored.get("peft_type") != "LORA":
        raise ValueError(f"Its adapter is of the kind {stored.get('peft_type')}; expected LORA.")
    if stored.get("lora_bias"):
        raise ValueError("Its adapter has biases of its own (lora_bias), which cannot be merged into its base.")
    base = stored.get("base_model_name_or_path")
    if adapter.NOTE in stored:
        raise ValueError("Its adapter belongs to a checkpoint of a lineage. Write a whole one with `cisterna export`.")
    if not base:
        raise ValueError(f"{adapter.FILE} does not name its base (base_model_name_or_path).")
    beside = folder / base  # a path in it may be relative to the folder of the adapter
    local = str(beside) if not Path(base).exists() and (beside / "config.json").is_file() else base
    return Adapter(folder, local, stored.get("revision"))


def read_bridge(name: str, revision: str | None, file: str) -> dict[str, torch.Tensor]:
    """`weight` (hidden, width) and `bias` (hidden) of the linear layer in a file of a folder or a repository, float32.

    A pickle (.pt) is read with weights only. ValueError for a file that is something else.
    """
    from transformers.utils import cached_file

    path = Path(name) / file if Path(name).is_dir() else Path(str(cached_file(name, file, revision=revision)))
    if not path.is_file():
        raise ValueError(f"It has no file {file}, which `bridge` names.")
    try:
        safe = path.suffix == ".safetensors"
        stored = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{file} is no file of tensors alone: {str(error).splitlines()[0]}") from None
    tensors = stored if isinstance(stored, dict) else {}
    found = {key.rpartition(".")[2]: tensor for key, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}
    weight = found.get("weight")
    bias = found.get("bias", torch.zeros(len(weight)) if weight is not None else None)
    single = len(found) == len(tensors) and found.keys() <= {"weight", "bias"}  # else two layers, or more in the file
    if not single or weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise ValueError(f"{file} is no single linear layer (weight, bias): it has {sorted(map(str, tensors))}.")
    if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
        raise ValueError(f"{file} has values that are not finite.")
    return {"weight": weight.float().contiguous(), "bias": bias.float().contiguous()}
