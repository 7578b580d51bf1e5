"""The bridge (a multimodal projector): how a language model reads an encoder's features in the middle of its prompt.

A feature row is a token id beyond the vocabulary: `first + row`, where `first` is the number of rows of the model's
input embedding and `row` a row of the features (`cisterna.sequences.feature_bank`). `install` adds a hook before the
decoder, which embeds ids below `first` as the model would, and projects the features of the others with the bridge. So
a row stays at its position however ids are padded, cut or reordered; no text can become such an id, because the
tokenizer does not have it; and a policy cannot sample it, because the output layer has no column for it.

Not for making features (`cisterna.sequences.encoders`), and not for prompts (`cisterna.sequences.prompt`).
"""

import inspect
import math
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from cisterna.errors import UserError

KINDS = ("linear", "mlp")


class FeatureRows(Protocol):
    """The interface of a bank and of a live encoder that the bridge needs."""

    width: int

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Features of the rows `index` (int64, shape (n,), on the CPU): (n, width)."""


class Bridge(nn.Module):
    """Features (n, width) to embeddings (n, hidden): a linear layer, as in the paper, or an MLP of two layers.

    Each feature row is first standardised to mean 0 and variance 1 (layer norm without weights), because the scale of
    hidden states differs by orders of magnitude between encoders. With the initial weights, outputs have the standard
    deviation `std` of the model's own embeddings. The weights are plain parameters and not `nn.Linear`, so that PEFT's
    `all-linear` does not adapt them. A bridge of the kind `projection` was trained elsewhere: a linear layer on the
    features as they are.
    """

    def __init__(self, kind: str, width: int, hidden: int, std: float) -> None:
        super().__init__()
        inner = hidden if kind == "mlp" else width
        self.kind, self.width = kind, width
        if kind == "mlp":
            self.inner_weight = nn.Parameter(torch.randn(inner, width) / math.sqrt(width))
            self.inner_bias = nn.Parameter(torch.zeros(inner))
        self.weight = nn.Parameter(torch.randn(hidden, inner) * (std / math.sqrt(inner)))
        self.bias = nn.Parameter(torch.zeros(hidden))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Embeddings of features: (n, width) to (n, hidden)."""
        if self.kind == "projection":
            return functional.linear(features.to(self.weight.dtype), self.weight, self.bias)
        inner = functional.layer_norm(features.to(self.weight.dtype), (self.width,))
        if self.kind == "mlp":
            inner = functional.gelu(functional.linear(inner, self.inner_weight, self.inner_bias))
        return functional.linear(inner, self.weight, self.bias)


def attach(model: Any, kind: str, width: int) -> None:
    """Give a model a new bridge, `model.bridge`, if it has none; in float32, as everything that is trained.

    UserError if it has one with another width.
    """
    present = getattr(model, "bridge", None)
    if present is None:
        table = model.get_input_embeddings()
        std = float(table.weight.detach().float().std()) * _scale(table)
        model.bridge = Bridge(kind, width, table.weight.shape[1], std).to(table.weight.device)
    elif present.width != width:
        raise UserError(f"the model's bridge reads features of width {present.width}, not {width} as the encoder's")


def _scale(table: Any) -> float:
    """What an embedding multiplies its rows with: 1, or in Gemma the square root of the width."""
    ids = torch.arange(min(1024, len(table.weight)), device=table.weight.device)
    with torch.no_grad():
        return float(table(ids).float().norm() / table.weight[ids].float().norm())


def install(model: Any, features: FeatureRows) -> None:
    """Make a model with a bridge read the rows of `features` at ids beyond its vocabulary.

    Call it once, on the plain model, before adapters, DeepSpeed or DataParallel wrap it. The bridge runs in every
    forward pass, even without a feature row, because all ranks must gather and reduce the same parameters; but not in
    a decoding step, one id for each row of a batch with a cache. That id is sampled, so it is no feature row (one would
    be an error in the embedding), and looking at it would make the host wait for the device.
    """
    first = len(model.get_input_embeddings().weight)  # PEFT's wrapper for new tokens has no `num_embeddings`
    decoder = model.get_decoder()
    names = list(inspect.signature(decoder.forward).parameters)
    if not {"input_ids", "inputs_embeds"} <= set(names):
        raise UserError(f"{type(model).__name__} takes no embeddings in place of ids; use sequences: tokens with it")
    # As the image tokens of Gemma 3n and 4: a feature has the per-layer row of the padding token. The id is read here,
    # because a trainer may set the one in the config to that of the tokenizer.
    by_layer, padding = getattr(decoder.config, "hidden_size_per_layer_input", None), decoder.config.pad_token_id
    if by_layer and padding is None:
        raise UserError("the backbone has per-layer embeddings and no pad_token_id in its config.json, expected one")

    def read(decoder: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        # GPT-2 gives the first few without names
        options = dict(zip(names, arguments, strict=False)) | options
        ids = options.get("input_ids")
        if ids is None or (ids.shape[-1] == 1 and options.get("past_key_values") is not None):
            return None
        is_feature = ids >= first
        embeddings = model.get_input_embeddings()(ids.masked_fill(is_feature, 0))
        # Each row goes to the device once, however often prompts are repeated in a batch, as in GRPO.
        index, places = torch.unique(ids[is_feature] - first, return_inverse=True)
        rows = features.rows(index.cpu()).to(ids.device)[places] if len(index) else ids.new_zeros(1, features.width)
        projected = model.bridge(rows).to(embeddings.dtype)
        embeddings = embeddings.masked_scatter(is_feature.unsqueeze(-1), projected)
        options |= {"input_ids": None, "inputs_embeds": embeddings}
        if by_layer:
            options["per_layer_inputs"] = decoder.get_per_layer_inputs(ids.masked_fill(is_feature, padding))
        return (), options

    decoder.register_forward_pre_hook(read, with_kwargs=True)
