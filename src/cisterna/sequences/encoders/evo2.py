"""Evo 2, by the Arc Institute's package `evo2` and its network in `vtx` (extra `evo2`; see docs/encoders.md).

    evo2: {pretrained: evo2_1b_base, package: evo2, dtype: auto, layer: blocks.20.mlp.l3, letters: {U: T}}

`pretrained` is a model name of the package, or a folder with `config.json` (the keys of one of the package's
configs/*.yml) and `model.safetensors` (the tensors of its .pt file). Hidden state 0 is the output of
`embedding_layer`, state k that of `blocks.{k - 1}`; the last is the output of the last block, before the norm.

The network reads from left to right, one token a base, without a token before the first base. It runs only on NVIDIA
GPUs, in bfloat16, and uses all GPUs that are visible.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from cisterna.errors import UserError, one_line
from cisterna.sequences.encoders import layers

INSTALL = "pip install -e '.[evo2]', then FlashAttention and, except for the 7B models, Transformer Engine"
LETTERS = frozenset("ACGTN")


class Encoder:
    """See `cisterna.sequences.encoders.Encoder`. `module` is a `vortex.model.model.StripedHyena`."""

    revision = None  # the package takes the newest revision of the hub, and does not report it

    def __init__(self, name: str, layer: int | str, module: Any, device: torch.device) -> None:
        from vortex.model.tokenizer import CharLevelTokenizer

        self.name, self.layer, self.module = name, layer, module
        self._tokenizer, self._device = CharLevelTokenizer(512), device
        blocks = (f"blocks.{index}" for index in range(len(module.blocks)))
        self._read = layers.find(name, module, layer, ["embedding_layer", *blocks])
        with torch.no_grad():
            (probe,) = self.forward(["A"], "dna")
        self.dtype, self.width = probe.dtype, probe.shape[-1]

    def forward(self, sequences: Sequence[str], modality: str) -> list[torch.Tensor]:
        """See `cisterna.sequences.encoders.Encoder`; one row a base."""
        if modality == "protein":
            raise UserError(f"encoder {self.name}: reads DNA, not protein")
        for sequence in sequences:
            if unknown := sorted(set(sequence) - LETTERS):
                raise UserError(
                    f"encoder {self.name}: cannot read {', '.join(unknown)} of {sequence[:40]}; expected A, C, G, T, N "
                    "(see `letters`: {U: T} reads RNA as DNA)"
                )
        token_ids = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(self._tokenizer.tokenize(sequence), dtype=torch.int64) for sequence in sequences],
            batch_first=True,
            padding_value=self._tokenizer.pad_id,  # on the right, so that no base sees the padding
        ).to(self.module.embedding_layer.weight.device)
        states = layers.output(self.module, self._read, token_ids).to(self._device)
        return [row[: len(sequence)] for row, sequence in zip(states, sequences, strict=True)]


def load(spec: Mapping[str, Any], layer: int | str, device: torch.device) -> Encoder:
    """Evo 2 by its name, or from a folder.

    Raises UserError if a package or a GPU is missing, if the weights cannot be loaded or do not fit, and for a revision
    or a type that the package does not support.
    """
    name = str(spec["pretrained"])
    try:
        from evo2.models import Evo2
        from evo2.utils import MODEL_NAMES
    except ImportError as error:
        raise UserError(
            f"encoder {name}: the package evo2 or one that it needs is not installed ({error}). Install {INSTALL}"
        ) from None
    if spec.get("dtype", "auto") not in ("auto", "bfloat16"):
        raise UserError(f"encoder {name}: dtype {spec['dtype']}; expected auto or bfloat16, in which Evo 2 computes")
    if Path(name).is_dir():
        return Encoder(name, layer, _local(Path(name)).eval(), device)
    if name not in MODEL_NAMES:
        raise UserError(
            f"encoder {name}: expected one of {', '.join(MODEL_NAMES)}, or a folder with config.json and "
            "model.safetensors"
        )
    if spec.get("revision") is not None:
        raise UserError(
            f"encoder {name}: the package evo2 always takes the newest revision; leave revision out, or make a folder "
            "with the weights (docs/encoders.md)"
        )
    if not torch.cuda.is_available():
        raise UserError(f"encoder {name}: Evo 2 needs an NVIDIA GPU, and there is none")
    try:
        return Encoder(name, layer, Evo2(name).model.eval(), device)
    except (ImportError, OSError, ValueError) as error:
        raise UserError(f"encoder {name}: cannot be loaded. {one_line(error)}") from None


def _local(folder: Path) -> Any:
    """The model of a folder, with weights loaded strictly, by the steps of the package's own `load_checkpoint`."""
    from vortex.model.model import StripedHyena
    from vortex.model.utils import dotdict

    config, weights = folder / "config.json", folder / "model.safetensors"
    if not config.is_file() or not weights.is_file():
        raise UserError(f"encoder {folder}: expected config.json and model.safetensors in it (docs/encoders.md)")
    options = json.loads(config.read_text())
    if not isinstance(options, dict) or options.get("use_fp8_input_projections"):
        raise UserError(
            f"{config}: expected use_fp8_input_projections: false; the scales of FP8 weights are not tensors, so "
            "they cannot be in a folder. Use the name of such a model instead"
        )
    module = StripedHyena(dotdict(options))
    tensors = load_file(weights)
    # The package would ignore unknown keys. Transformer Engine adds the keys of its scales.
    expected = {key for key in module.state_dict() if not key.endswith("._extra_state")}
    missing, unexpected = sorted(expected - set(tensors)), sorted(set(tensors) - expected)
    if missing or unexpected:
        raise UserError(f"{weights}: does not fit {config}; missing {missing[:5]}, unexpected {unexpected[:5]}")
    module.to_bfloat16_except_pr_lc(to_float32=True)
    try:
        module.custom_load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{weights}: weights do not fit {config}. {' '.join(str(error).split())[:400]}") from None
    module.to_bfloat16_except_pr_lc()
    return module
