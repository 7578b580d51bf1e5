"""Nucleotide Transformer v2: an ESM with rotary positions whose feed-forward layers are gated and mostly without bias.

Its weights come with code for transformers 4, which transformers 5 cannot import: it needs functions for pruning heads
that are gone, and its list of tied weights has another form. The network is the library's own ESM but for the
feed-forward layer, so it is built from that here, and no code from the hub is run:

    hidden -> dense, twice as wide as `intermediate_size` -> SiLU(first half) * second half -> dense -> hidden

Source: Dalla-Torre et al., Nucleotide Transformer, Nature Methods 2025, and the published config (`add_bias_fnn`). The
first version (such as nucleotide-transformer-500m-human-ref) is a plain ESM.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import EsmConfig, EsmModel

BIAS = "add_bias_fnn"  # a key of the config that only this family has
# Published are the rotary frequencies of every layer, which are all the same; the library's ESM has them once.
ROTARY = {r"encoder\.layer\.\d+\.attention\.self\.rotary_embeddings\.inv_freq": "rotary_embeddings.inv_freq"}


class GatedIntermediate(nn.Module):
    """The first half of a gated feed-forward layer: (..., hidden_size) to (..., intermediate_size)."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=getattr(config, BIAS))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Project, and let the first half be the gate of the second."""
        gate, value = self.dense(hidden_states).chunk(2, dim=-1)
        return nn.functional.silu(gate) * value


class GatedEsm(EsmModel):
    """The library's ESM with gated feed-forward layers, under the names of the published weights."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__(config, add_pooling_layer=False)
        for layer in self.encoder.layer:
            layer.intermediate = GatedIntermediate(config)
            layer.output.dense = nn.Linear(config.intermediate_size, config.hidden_size, bias=getattr(config, BIAS))
        self.post_init()


def read_config(name: str, revision: str | None) -> EsmConfig | None:
    """The config of a model on the hub or in a folder if it is of this family, without running its code."""
    found: Mapping[str, Any] = EsmConfig.get_config_dict(name, revision=revision)[0]
    if BIAS not in found:
        return None
    return EsmConfig(**{key: value for key, value in found.items() if key not in ("auto_map", "model_type")})
