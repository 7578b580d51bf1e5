"""Models from checkpoints: a base and the weights that its descendants have changed, loaded strictly.

`compose` loads the base, merges the adapter of each descendant in order, and returns one plain model, with its bridge
if it reads features (`cisterna.sequences.source.connect` connects it to them). A missing or unexpected key, or a hash
that does not match its manifest, is an error that names it. Not for training (`cisterna.training`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from cisterna.artifacts import checkpoint, weights
from cisterna.errors import UserError
from cisterna.models.base import load_base
from cisterna.sequences import inputs_file
from cisterna.sequences.source import restore

if TYPE_CHECKING:
    from peft import LoraConfig


def lora_config(options: Mapping[str, Any]) -> "LoraConfig":
    """The PEFT configuration of a recipe's `lora` block; options by their PEFT names, all linear layers by default."""
    from peft import LoraConfig

    return LoraConfig(**({"task_type": "CAUSAL_LM", "target_modules": "all-linear"} | dict(options)))


def attach(model: PreTrainedModel, folder: Path, trainable: bool = False) -> Any:
    """Put the adapter stored in `folder` on a model. Strict: UserError for a missing or unexpected key."""
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    config = PeftConfig.from_pretrained(folder)
    config.inference_mode = not trainable
    adapted = get_peft_model(model, config)
    tensors = load_file(folder / "adapter_model.safetensors")
    weights.check(folder, tensors, get_peft_model_state_dict(adapted))
    set_peft_model_state_dict(adapted, tensors)
    return adapted


def compose(folder: Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model of a checkpoint: its lineage is verified and loaded from the base on, every adapter merged.

    The model is on the CPU, in evaluation mode; weights are in the base's dtype unless `dtype` names another.
    """
    chain = checkpoint.lineage(folder)
    base, manifest = chain[0]
    if manifest["kind"] != "base":
        raise UserError(f"{base}: a lineage has to begin with a base checkpoint, and this one is {manifest['kind']}")
    model = load_base(base, manifest)
    for path, _ in chain[1:]:
        if sequence_inputs := inputs_file.read(path):
            restore(model, sequence_inputs)
        if (path / "adapter_model.safetensors").is_file():
            model = attach(model, path).merge_and_unload()
        else:
            weights.load_full(model, path)
    if dtype is not None:
        model = model.to(dtype)
    return model.eval()


def base_of(folder: Path) -> Path:
    """The base checkpoint of a lineage; it has the tokenizer for all of it."""
    while (manifest := checkpoint.read_manifest(folder))["parent"]:
        folder = checkpoint.parent_of(folder, manifest)
    return folder
