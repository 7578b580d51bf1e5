"""The whole weights of a lineage as safetensors, in a dtype that keeps what was trained."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cisterna import models, pretrained, updates

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = ("float32", "bfloat16", "float16")
Chain = Sequence[tuple[Path, dict[str, Any]]]  # of `checkpoint.lineage`


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of a name of DTYPES."""
    return getattr(torch, name)


def choose(chain: Chain, asked: str | None) -> tuple[str, dict[str, float]]:
    """The dtype of exported weights, and the share of the update of each stage that they have, by the stage's folder.

    It is `asked`, or else that of the base if this keeps `updates.KEPT` of the update of each stage, or else float32.
    An adapter of others, with which a lineage may begin, counts as the update of the base.
    """
    spec = chain[0][1]["recipe"]
    dtype = asked or spec.get("dtype", "float32")
    begun = models.published_adapter(chain[0][0], spec) is not None
    if dtype == "float32" or (len(chain) == 1 and not begun):
        return dtype, {str(path): 1.0 for path, _ in chain[1:]}
    kept = _shares(chain, torch_dtype(dtype))
    if asked or all(share >= updates.KEPT for share in kept.values()):
        return dtype, kept
    return "float32", dict.fromkeys(kept, 1.0)


def _shares(chain: Chain, dtype: torch.dtype) -> dict[str, float]:
    """The share of the update of each stage that a cast of the weights to `dtype` leaves (see `updates.share`)."""
    found = {}
    spec = chain[0][1]["recipe"]
    part = models.published_adapter(chain[0][0], spec)
    first = (
        models.compose(chain[0][0], torch.float32)
        if part is None
        else pretrained.load(part.base, part.revision, spec.get("dtype", "float32"))[0]
    )
    before = first.state_dict()
    for path, _ in chain[1 if part is None else 0 :]:
        after = models.compose(path, torch.float32).state_dict()
        there = trained = 0.0
        for name in before.keys() & after.keys():
            old, new = before[name].float(), after[name].float()
            new = new[: len(old)] if new.dim() else new  # without the rows of new tokens
            cast = new.to(dtype).float() - old.to(dtype).float()
            there, trained = there + float((cast * (new - old)).sum()), trained + float((new - old).square().sum())
        found[str(path)] = updates.share(there, trained) if math.isfinite(there) else 0.0  # too large for float16
        before = after
    return found


def load(folder: Path, dtype: str) -> "PreTrainedModel":
    """The model of a checkpoint with everything merged, its weights in `dtype`; a bridge stays in float32."""
    model = models.compose(folder, torch.float32)
    models.cast(model, torch_dtype(dtype))
    return model


def save(model: "PreTrainedModel", folder: Path) -> None:
    """Write config and weights of a model without its bridge and encoder, as `from_pretrained` reads them."""
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    if last is not None and last.weight is not first.weight:  # one of two tied ones may have been trained alone
        model.config.get_text_config().tie_word_embeddings = False
        model.config.tie_word_embeddings = False
    parts = {name: getattr(model, name) for name in ("bridge", "encoder") if hasattr(model, name)}
    for name in parts:
        delattr(model, name)
    try:
        model.save_pretrained(folder, save_original_format=False)
    finally:
        for name, part in parts.items():
            setattr(model, name, part)
