"""Load the model in this folder, which reads features of an encoder in the middle of its prompt.

    from feature_model import encode, load

    model, tokenizer = load(".")
    inputs = encode(model, tokenizer, ["Is it spliced? <rna>GUAAGU</rna>"], [[features]])
    output = model.generate(**inputs)

`features` is what the encoder named in features.json computes for the residues between the tags: a tensor of shape
(rows, width), a row a residue, or one for `pool` residues. README.md says which layer is read, and in which context.
Needs torch, transformers and safetensors (and peft for an adapter), and bridge.py beside it.
"""

import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from cisterna.sequences.bridge import Bridge, install

TAGGED = re.compile(r"<(dna|rna|protein)>([^<]*)</\1>")


class Rows:
    """The rows of features of the current prompts."""

    def __init__(self, width: int) -> None:
        self.width, self.given = width, torch.zeros(0, width)

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Features of the rows `index`: (n, width)."""
        return self.given[index]


def load(folder: str | Path = ".", **options: Any) -> tuple[Any, Any]:
    """The model with its bridge, and the tokenizer. `options` are those of `from_pretrained` (dtype ...)."""
    folder = Path(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    if (folder / "adapter_config.json").is_file():
        from peft import AutoPeftModelForCausalLM

        model = AutoPeftModelForCausalLM.from_pretrained(folder, **options)
        plain = model.get_base_model()
    else:
        plain = model = AutoModelForCausalLM.from_pretrained(folder, **options)
    plain.generation_config = GenerationConfig.from_pretrained(folder)
    described = json.loads((folder / "features.json").read_text())
    embedding = plain.get_input_embeddings().weight
    bridge = Bridge(described["bridge"]["kind"], described["bridge"]["width"], embedding.shape[1], 1.0)
    bridge.load_state_dict(load_file(folder / "bridge.safetensors"))
    plain.bridge = bridge.to(embedding.device)
    model.rows, model.form = Rows(bridge.width), described["sequences"]
    install(plain, model.rows)
    return model.eval(), tokenizer


def encode(model: Any, tokenizer: Any, prompts: Sequence[str], features: Sequence[Sequence[torch.Tensor]]) -> Any:
    """Inputs of `model.generate` or `model` for prompts, and for each the features of its tagged stretches, in order.

    A row of features is one token id beyond the vocabulary. The model keeps the features until the next call.
    """
    first = len(model.get_input_embeddings().weight)
    rows, encoded, done = [torch.zeros(0, model.rows.width)], [], 0
    for prompt, stretches in zip(prompts, features, strict=True):
        if len(stretches) != len(TAGGED.findall(prompt)):
            raise ValueError(f"{len(TAGGED.findall(prompt))} stretches in tags, but features of {len(stretches)}")
        prompt = TAGGED.sub(partial(_in_form, model.form), prompt)
        left = iter(stretches)
        closing = {tokenizer.convert_tokens_to_ids(f"</{modality}>") for modality in ("dna", "rna", "protein")}
        ids: list[int] = []
        for token in _text_ids(tokenizer, prompt):
            if token in closing and (stretch := next(left, None)) is not None:
                if stretch.ndim != 2 or stretch.shape[1] != model.rows.width:
                    raise ValueError(f"features of shape {tuple(stretch.shape)}; expected (rows, {model.rows.width})")
                ids += range(first + done, first + done + len(stretch))
                rows.append(stretch)
                done += len(stretch)
            ids.append(token)
        encoded.append(ids)
    model.rows.given = torch.cat(rows)
    return tokenizer.pad({"input_ids": encoded}, return_tensors="pt").to(model.device)


def _in_form(form: str, stretch: re.Match[str]) -> str:
    """A tagged stretch as the model was trained on it: words, which begin with a blank, stand before the tags."""
    modality, text = stretch.groups()
    if form == "features":
        return f"<{modality}></{modality}>"
    return f"{text}<{modality}></{modality}>" if text.startswith(" ") else stretch[0]


def _text_ids(tokenizer: Any, prompt: str) -> list[int]:
    if not tokenizer.chat_template:
        return tokenizer(prompt)["input_ids"]
    turn = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)["input_ids"]
