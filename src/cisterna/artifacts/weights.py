"""Strict loading of full weights: no key is missing or left over, shapes fit. For lineages see `cisterna.models`."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from cisterna.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_full(model: "PreTrainedModel", folder: Path) -> None:
    """Load full weights (safetensors, one file or shards), every key present and none left over, or UserError.

    A weight of the model becomes float32 if it is stored in float32: rounded, it would not be the trained one.
    """
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        tensors.update(load_file(path))
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    check(folder, tensors, model.state_dict(), optional=tied)
    for name, weight in model.named_parameters(remove_duplicate=False):
        if name in tensors:
            weight.data = weight.data.to(torch.promote_types(weight.dtype, tensors[name].dtype))
    model.load_state_dict(tensors, strict=False)  # `check` has refused every other difference than absent tied names
    model.tie_weights()


def check(
    folder: Path, stored: Mapping[str, torch.Tensor], model: Mapping[str, torch.Tensor], optional: Collection[str] = ()
) -> None:
    """UserError unless the tensors `stored` in `folder` have the model's names and shapes; `optional` ones may lack."""
    missing = sorted(set(model) - set(stored) - set(optional))
    unexpected = sorted(set(stored) - set(model))
    problem = f"{folder}: the weights do not fit the model"
    if missing or unexpected:
        raise UserError(f"{problem}; missing {missing[:5]}, unexpected {unexpected[:5]}")
    for name, tensor in stored.items():
        if tensor.shape != model[name].shape:
            raise UserError(f"{problem}; {name} has shape {tuple(tensor.shape)}, not {tuple(model[name].shape)}")
