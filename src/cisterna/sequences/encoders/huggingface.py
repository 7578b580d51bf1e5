"""Encoders of the transformers library (any masked or causal language model), and encoders trained here.

One token of an encoder may be several residues, as the six bases of Nucleotide Transformer or the pieces of DNABERT-2.
Each residue then gets the features of its token, so that there is always one row a residue; `pool` reduces the repeats.

    ESM-2, one token a residue        M    K    V         rows M, K, V
    Nucleotide Transformer v2         ATTGCA    C    G    rows six times ATTGCA, C, G

Not for training (`cisterna.training.encoder`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cisterna.artifacts import weights
from cisterna.errors import UserError, one_line
from cisterna.sequences import tokenization
from cisterna.sequences.encoders import layers

POSITIONS = ("position_embeddings", "embed_positions", "wpe")  # names of learned positions in the library's models

# What code for another version of transformers raises, beside ImportError.
OF_CODE = (AttributeError, TypeError, KeyError, IndexError, NameError, NotImplementedError, AssertionError)


class Encoder:
    """See `cisterna.sequences.encoders.Encoder`. With `tagged`, sequences are read as residue tokens between tags."""

    def __init__(
        self, name: str, revision: str | None, layer: int | str, module: Any, tokenizer: Any, tagged: bool = False
    ) -> None:
        self.name, self.revision, self.layer, self.module = name, revision, layer, module
        self.tokenizer, self.tagged = tokenizer, tagged
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.pad_token is None:
            raise UserError(f"encoder {name}: its tokenizer has no padding token and no end-of-text token")
        self._limit = position_limit(module)
        special = set(tokenizer.all_special_ids)
        vocabulary = tokenizer.get_vocab()
        self._lengths = torch.zeros(max(vocabulary.values()) + 1, dtype=torch.int64)
        for token, index in vocabulary.items():
            if index not in special:
                self._lengths[index] = 1 if tagged else len(token.removeprefix("##").strip("▁Ġ"))
        modules = [path for path, _ in module.named_modules() if path]
        layers.check(name, module, layer, int(module.config.num_hidden_layers), modules[:8])
        with torch.no_grad():
            (probe,) = self.forward(["A"], "dna")
        self.dtype, self.width = probe.dtype, probe.shape[1]

    def forward(self, sequences: Sequence[str], modality: str) -> list[torch.Tensor]:
        """Features of one batch; see `cisterna.sequences.encoders.Encoder`."""
        texts = list(sequences)
        if self.tagged:
            texts = [tokenization.expand(f"<{modality}>{sequence}</{modality}>") for sequence in texts]
        batch = self.tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=not self.tagged)
        count = batch["input_ids"].shape[1]
        if self._limit is not None and count > self._limit:
            raise UserError(
                f"encoder {self.name}: reads at most {self._limit} tokens, but a sequence of "
                f"{max(map(len, sequences))} residues has {count}; make `flank` smaller"
            )
        batch = {key: batch[key].to(self.module.device) for key in ("input_ids", "attention_mask")}
        hidden = self._hidden(batch)
        features = []
        for sequence, ids, mask, states in zip(
            sequences, batch["input_ids"].cpu(), batch["attention_mask"].cpu().bool(), hidden, strict=True
        ):
            lengths = self._lengths[ids[mask]]
            if " " in sequence:  # words, such as the genes of a cell
                lengths = lengths.clamp(max=1)
            features.append(torch.repeat_interleave(states[mask.to(states.device)], lengths.to(states.device), dim=0))
        return features

    def _hidden(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The hidden state `layer` of a batch: (sequences, tokens, width)."""
        if isinstance(self.layer, int):
            return self.module(**batch, output_hidden_states=True).hidden_states[self.layer]
        return layers.output(self.module, self.layer, **batch)


def position_limit(module: torch.nn.Module) -> int | None:
    """The largest number of tokens for a network with learned positions; None for others (rotary, ALiBi)."""
    for name, part in module.named_modules():
        if isinstance(part, torch.nn.Embedding) and name.rpartition(".")[2] in POSITIONS:
            return part.num_embeddings - (0 if part.padding_idx is None else part.padding_idx + 1)
    return None


def load(spec: Mapping[str, Any], layer: int | str, device: torch.device) -> Encoder:
    """A pretrained encoder. UserError if it cannot be loaded, or if weights are missing.

    Code from the hub runs only with `trust_remote_code`, and then at the revision that the config must name. UserError
    if it fails: much of it was written for earlier versions of transformers.
    """
    from transformers import __version__

    name, trusted = spec["pretrained"], bool(spec.get("trust_remote_code", False))
    other = f" (code of its own may be for another version of transformers than {__version__})" if trusted else ""
    try:
        return _load(name, spec, layer, device)
    except UserError:
        raise
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"encoder {name}: cannot be loaded; expected a hub id or a local folder with config.json, safetensors "
            f"weights and a tokenizer, and trust_remote_code if it has code of its own. {one_line(error)}{other}"
        ) from None
    except OF_CODE as error:
        if not trusted:
            raise
        raise UserError(
            f"encoder {name}: the code that comes with it fails with transformers {__version__}: "
            f"{type(error).__name__}: {one_line(error)}. Use a revision whose code is for this version, or compute the "
            "features elsewhere and give them as files (docs/encoders.md, precomputed features)"
        ) from error


def _load(name: str, spec: Mapping[str, Any], layer: int | str, device: torch.device) -> Encoder:
    from transformers import AutoModel, AutoTokenizer

    from cisterna.sequences.encoders import nucleotide_transformer

    revision = spec.get("revision")
    options = {"revision": revision, "trust_remote_code": bool(spec.get("trust_remote_code", False))}
    if (gated := nucleotide_transformer.read_config(name, revision)) is not None:
        options["trust_remote_code"] = False
    tokenizer = AutoTokenizer.from_pretrained(name, **options)
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):  # without files transformers makes an empty one
        raise ValueError("It has no tokenizer.")
    options |= {"use_safetensors": True}  # never the pickles of pytorch_model.bin, which can run code
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # both are errors, see below
    options |= {"dtype": spec.get("dtype", "float32")}
    if gated is None:
        module, report = AutoModel.from_pretrained(name, **options)
    else:
        options |= {"config": gated, "key_mapping": nucleotide_transformer.ROTARY}
        module, report = nucleotide_transformer.GatedEsm.from_pretrained(name, **options)
    wrong = [key for key in report["missing_keys"] if "pooler" not in key and "contact_head" not in key]
    wrong += [f"{key} of shape {tuple(shape)}" for key, shape, _ in report["mismatched_keys"]]
    if wrong:
        raise UserError(f"encoder {name}: weights do not fit the model; missing {sorted(wrong)[:5]}")
    if spec.get("random_weights"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = type(module)(module.config).to(module.dtype)
    return Encoder(name, revision, layer, module.to(device).eval(), tokenizer)


def load_made(folder: Path, layer: int | str, device: torch.device) -> Encoder:
    """An encoder trained here (`cisterna.training.encoder`), from its verified checkpoint."""
    from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

    module = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(folder))
    weights.load_full(module, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Encoder(folder.parent.name, None, layer, module.base_model.to(device).eval(), tokenizer, tagged=True)
