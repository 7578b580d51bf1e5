"""The bridge: how a language model reads features of an encoder in the middle of its prompt.

A feature row is one token id beyond the vocabulary: `first + row`, where `first` is the number of rows of the model's
input embedding and `row` the row of a source of features (`cisterna.sequences.feature_bank`). `install` puts a hook
before the decoder that looks the ids below `first` up in the embedding, as the model would, and takes the others from
the source
through the bridge. So a row stays at its position whatever pads, cuts or reorders the ids; no text can spell such an
id, for the tokenizer does not have it; and a policy cannot sample it, for the output layer has no column for it.

Not for making features (`cisterna.sequences.encoders`), and not for prompts (`cisterna.sequences.prompt`).
"""

import math
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from cisterna.errors import UserError

KINDS = ("linear", "mlp")


class Source(Protocol):
    """Where rows come from: a bank, or a live encoder."""

    width: int

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Features of the rows `index` (int64, shape (n,), on the CPU): (n, width)."""


class Bridge(nn.Module):
    """Features (n, width) to embeddings (n, hidden): a linear layer, as in the paper, or an MLP of two.

    Features are first standardised, each row to mean 0 and variance 1 (layer norm without weights), as the hidden
    states of encoders differ in scale by orders of magnitude. Initial weights are such that the outputs have the
    spread `std` of the model's own embeddings. The weights are plain parameters and no `nn.Linear`, which PEFT's
    `all-linear` would take for a layer to adapt.
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
        inner = functional.layer_norm(features.to(self.weight.dtype), (self.width,))
        if self.kind == "mlp":
            inner = functional.gelu(functional.linear(inner, self.inner_weight, self.inner_bias))
        return functional.linear(inner, self.weight, self.bias)


def attach(model: Any, kind: str, width: int) -> None:
    """Give a model a new bridge, `model.bridge`, unless it has one. UserError if that one is of another shape."""
    present = getattr(model, "bridge", None)
    if present is None:
        embedding = model.get_input_embeddings().weight
        bridge = Bridge(kind, width, embedding.shape[1], float(embedding.detach().float().std()))
        model.bridge = bridge.to(embedding.device, embedding.dtype)
    elif present.width != width:
        raise UserError(f"the model's bridge reads features of width {present.width}, the encoder's are {width} wide")


def install(model: Any, source: Source) -> None:
    """Make a model with a bridge read the rows of `source` at ids beyond its vocabulary.

    To be called once, on the plain model, before adapters, DeepSpeed or DataParallel wrap it. The bridge runs in every
    forward pass, also in one without a row: ranks have to gather and reduce the same parameters.
    """
    first = model.get_input_embeddings().num_embeddings

    def read(decoder: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        ids = options.get("input_ids")
        if ids is None:
            return None
        beyond = ids >= first
        embeddings = model.get_input_embeddings()(ids.masked_fill(beyond, 0))
        index = (ids[beyond] - first).cpu()
        found = source.rows(index) if len(index) else torch.zeros(1, source.width)
        projected = model.bridge(found.to(embeddings.device)).to(embeddings.dtype)
        embeddings = embeddings.masked_scatter(beyond.unsqueeze(-1), projected)
        return arguments, options | {"input_ids": None, "inputs_embeds": embeddings}

    model.get_decoder().register_forward_pre_hook(read, with_kwargs=True)
