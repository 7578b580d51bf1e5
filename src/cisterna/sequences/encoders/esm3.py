"""ESM-3, by EvolutionaryScale's package `esm` (extra `esm3`; docs/encoders.md says how to install it).

    esm3: {pretrained: esm3-sm-open-v1, package: esm, dtype: auto, layer: transformer.blocks.37}

`pretrained` is the package's name of the open model, or a folder with `config.json` (d_model, n_heads, v_heads and
n_layers of `esm.models.esm3.ESM3`) and `model.safetensors` (its state dict). The network reads only the sequence;
structure, function and the other tracks stay masked, as in the package's own embeddings of a sequence.

Hidden state 0 is the output of `encoder`, state k that of `transformer.blocks.{k - 1}`. The last is what the package
calls embeddings: the output of the last block, before `transformer.norm`.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from cisterna.errors import UserError, one_line
from cisterna.sequences.encoders import layers

INSTALL = "pip install -e '.[esm3]' && pip install --no-deps esm==3.2.1.post1"
SIZES = ("d_model", "n_heads", "v_heads", "n_layers")


class Encoder:
    """See `cisterna.sequences.encoders.Encoder`. `module` is an `esm.models.esm3.ESM3`."""

    def __init__(self, name: str, revision: str | None, layer: int | str, module: Any) -> None:
        from esm.utils.constants.esm3 import SEQUENCE_PAD_TOKEN, SEQUENCE_VOCAB

        self.name, self.revision, self.layer, self.module = name, revision, layer, module
        self._padding = SEQUENCE_PAD_TOKEN
        self._letters = frozenset(token for token in SEQUENCE_VOCAB if token.isalpha() and len(token) == 1)
        blocks = (f"transformer.blocks.{index}" for index in range(len(module.transformer.blocks)))
        self._read = layers.find(name, module, layer, ["encoder", *blocks])
        with torch.no_grad():
            (probe,) = self.forward(["A"], "protein")
        self.dtype, self.width = probe.dtype, probe.shape[-1]

    def forward(self, sequences: Sequence[str], modality: str) -> list[torch.Tensor]:
        """See `cisterna.sequences.encoders.Encoder`; one row a residue, without the tokens that the network adds."""
        if modality != "protein":
            raise UserError(f"encoder {self.name}: reads protein, not {modality}")
        for sequence in sequences:
            if unknown := sorted(set(sequence) - self._letters):
                raise UserError(
                    f"encoder {self.name}: cannot read {', '.join(unknown)} of {sequence[:40]}; expected "
                    f"{''.join(sorted(self._letters))} (see `letters`)"
                )
        token_ids = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(self.module.tokenizers.sequence.encode(sequence)) for sequence in sequences],
            batch_first=True,
            padding_value=self._padding,
        ).to(self.module.device)
        # A token attends only to tokens with the same sequence_id, so residues never see the padding.
        with self._precision():
            states = layers.output(
                self.module, self._read, sequence_tokens=token_ids, sequence_id=(token_ids != self._padding).long()
            )
        return [row[1 : len(sequence) + 1] for row, sequence in zip(states, sequences, strict=True)]

    def _precision(self) -> Any:
        """Autocast for half-precision weights, because parts of the network always compute in float32."""
        dtype = next(self.module.parameters()).dtype
        if dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.module.device.type, dtype=dtype)


def load(spec: Mapping[str, Any], layer: int | str, device: torch.device) -> Encoder:
    """ESM-3 from the hub or from a folder; `dtype` auto is the package's default: bfloat16 on CUDA, else float32.

    Raises UserError if the package is missing, if the weights cannot be loaded or do not fit, and for a revision or a
    type that the package does not support.
    """
    name = str(spec["pretrained"])
    try:
        from esm.utils.constants.models import model_is_locally_supported
    except ImportError as error:
        raise UserError(
            f"encoder {name}: the package esm (EvolutionaryScale's, not fair-esm) is not installed ({error}). "
            f"Install it with: {INSTALL}"
        ) from None
    dtype = spec.get("dtype", "auto")
    if dtype not in ("auto", "float32", "bfloat16") or (dtype == "bfloat16" and device.type != "cuda"):
        raise UserError(f"encoder {name}: dtype {dtype}; expected auto, float32, or on a GPU bfloat16")
    if Path(name).is_dir():
        revision, module = None, _local(Path(name))
    elif model_is_locally_supported(name):
        revision, module = _hub(name, spec.get("revision"))
    else:
        raise UserError(
            f"encoder {name}: expected esm3-sm-open-v1 (ESM-3's open model), or a folder with config.json and "
            "model.safetensors"
        )
    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" else "float32"
    return Encoder(name, revision, layer, module.to(device, getattr(torch, dtype)).eval())


def _hub(name: str, revision: str | None) -> tuple[str, Any]:
    """The hub's commit of the open model, and the model: the package always takes the newest in the hub's cache."""
    from esm.models.esm3 import ESM3
    from esm.utils.constants.esm3 import data_root

    try:
        newest = data_root("esm3").name
    except (OSError, ValueError) as error:
        raise UserError(
            f"encoder {name}: cannot get its weights from the hub; accept their licence there and log in "
            f"(HF_TOKEN), or put them in the hub's cache. {one_line(error)}"
        ) from None
    if revision not in (None, newest):
        raise UserError(
            f"encoder {name}: revision {revision}, but the package esm takes {newest}. Set that one, or make a folder "
            "with the weights (docs/encoders.md)"
        )
    return newest, ESM3.from_pretrained(name, device=torch.device("cpu"))


def _local(folder: Path) -> Any:
    """The model of a folder, with weights loaded strictly."""
    from esm import tokenization
    from esm.models.esm3 import ESM3

    config, weights = folder / "config.json", folder / "model.safetensors"
    if not config.is_file() or not weights.is_file():
        raise UserError(f"encoder {folder}: expected config.json and model.safetensors in it (docs/encoders.md)")
    sizes = json.loads(config.read_text())
    if not isinstance(sizes, dict) or sorted(sizes) != sorted(SIZES):
        raise UserError(f"{config}: expected exactly the keys {', '.join(SIZES)}")
    module = ESM3(
        **sizes,
        # The structure and function decoders, and the tokens of annotations, are for tracks that are not used.
        structure_encoder_fn=None,
        structure_decoder_fn=None,
        function_decoder_fn=None,
        tokenizers=tokenization.TokenizerCollection(
            sequence=tokenization.EsmSequenceTokenizer(),
            structure=tokenization.StructureTokenizer(),
            secondary_structure=tokenization.SecondaryStructureTokenizer(),
            sasa=tokenization.SASADiscretizingTokenizer(),
            function=None,
            residue_annotations=None,
        ),
    )
    try:
        module.load_state_dict(load_file(weights), strict=True)
    except RuntimeError as error:
        raise UserError(f"{weights}: weights do not fit {config}. {' '.join(str(error).split())[:400]}") from None
    return module
