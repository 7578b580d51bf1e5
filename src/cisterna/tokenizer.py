"""Tokenizers whose residues are tokens of their own, one set for each modality.

Between tags (`<dna>ACGT</dna>`, `<rna>ACGU</rna>`, `<protein>MKV</protein>`) every residue becomes one token such as
`<|dna:A|>`, so that a sequence never falls into the byte-pair encoding of the text around it, and the A of DNA is not
the A of alanine. `expand` writes the tokens out as text, so any Hugging Face tokenizer that was given `tokens()` reads
them, inside TRL's trainers too; `residue_ids` converts a whole sequence at once for corpora.

Not for packing corpora (`cisterna.corpus`) and not for parsing answers (`cisterna.answers`).
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cisterna.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

ALPHABETS = {"dna": "ACGTN", "rna": "ACGUN", "protein": "ACDEFGHIKLMNPQRSTVWYX"}
THINK = ("<think>", "</think>")
END = "<|endoftext|>"
PAD = "<|pad|>"

_TAGGED = re.compile(r"<(dna|rna|protein)>([^<]*)</\1>")
_RESIDUE = re.compile(r"<\|(?:dna|rna|protein):([A-Z])\|>")
_TABLES = {
    modality: {ord(letter): f"<|{modality}:{letter}|>" for letter in letters} for modality, letters in ALPHABETS.items()
}


def tokens() -> list[str]:
    """Every token that Cisterna adds to a tokenizer, in a fixed order: tags, residues, thinking tags."""
    added = []
    for modality, letters in ALPHABETS.items():
        added += [f"<{modality}>", f"</{modality}>"]
        added += [f"<|{modality}:{letter}|>" for letter in letters]
    return added + list(THINK)


def expand(text: str) -> str:
    """Write each residue between tags as its token. Raises UserError for a letter outside the modality's alphabet."""

    def residues(match: re.Match[str]) -> str:
        modality, sequence = match.groups()
        unknown = set(sequence) - set(ALPHABETS[modality])
        if unknown:
            raise UserError(
                f"<{modality}>{sequence[:40]}: {sorted(unknown)} not in the {modality} alphabet "
                f"{ALPHABETS[modality]}; write upper-case residues and {ALPHABETS[modality][-1]} for unknown ones"
            )
        return f"<{modality}>{sequence.translate(_TABLES[modality])}</{modality}>"

    return _TAGGED.sub(residues, text)


def collapse(text: str) -> str:
    """Undo `expand`: what a person reads in stored predictions."""
    return _RESIDUE.sub(r"\1", text)


def build(vocab_size: int, files: Iterable[Path]) -> "PreTrainedTokenizerBase":
    """Train a byte-level BPE on text files and add the residue tokens.

    `vocab_size` counts the BPE's tokens (at least 256 bytes + 2 control tokens); the residue tokens come on top.
    Numbers stay together up to three digits, as in Llama 3's pre-tokenizer, so that a position in a sequence can be one
    token.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    paths = [Path(file) for file in files]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such file; it is listed as tokenizer text of a backbone in the config")
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}{1,3}|[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.train(
        [str(path) for path in paths],
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END, PAD],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=PAD, padding_side="left")
    tokenizer.add_tokens(tokens())
    return tokenizer


def load(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a base checkpoint, padding on the left as generation needs. UserError where there is none."""
    from transformers import AutoTokenizer

    if not (folder / "tokenizer_config.json").is_file():
        raise UserError(f"{folder}: no tokenizer; expected a base checkpoint, made by `cisterna base`")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "left"
    return tokenizer


def encode(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts with tagged sequences, without control tokens. One call for all texts (batched in Rust)."""
    if not texts:
        return []
    return tokenizer([expand(text) for text in texts], add_special_tokens=False)["input_ids"]


def residue_ids(tokenizer: "PreTrainedTokenizerBase", sequence: bytes, modality: str) -> "np.ndarray":
    """Token ids of a whole sequence by one table look-up: int32, shape (len(sequence),).

    Raises UserError for a byte outside the modality's alphabet.
    """
    import numpy as np

    table = np.full(256, -1, dtype=np.int32)
    for letter in ALPHABETS[modality]:
        table[ord(letter)] = tokenizer.convert_tokens_to_ids(f"<|{modality}:{letter}|>")
    ids = table[np.frombuffer(sequence, dtype=np.uint8)]
    if (ids < 0).any():
        position = int(np.argmax(ids < 0))
        raise UserError(
            f"letter {chr(sequence[position])!r} at position {position + 1} is not in the {modality} alphabet "
            f"{ALPHABETS[modality]}"
        )
    return ids


def prompt_text(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> str:
    """The prompt as a model reads it: through the chat template where the tokenizer has one, else as it stands."""
    text = expand(prompt)
    if getattr(tokenizer, "chat_template", None):
        messages = [{"role": "user", "content": text}]
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text
