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
    """Load full weights (safetensors, one file or shards), every key present and none left over, or UserError."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        tensors.update(load_file(path))
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    check(f"{folder}: weights do", tensors, model.state_dict(), optional=tied)
    model.load_state_dict(tensors, strict=False)  # only tied names can be absent now
    model.tie_weights()


def check(
    what: str, found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], optional: Collection[str] = ()
) -> None:
    """UserError unless `found` has the names and shapes of `expected`; those in `optional` may be absent."""
    missing = sorted(set(expected) - set(found) - set(optional))
    unexpected = sorted(set(found) - set(expected))
    if missing or unexpected:
        raise UserError(f"{what} not fit the model; missing {missing[:5]}, unexpected {unexpected[:5]}")
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            raise UserError(
                f"{what} not fit the model; {name} has shape {tuple(tensor.shape)}, not {tuple(expected[name].shape)}"
            )
