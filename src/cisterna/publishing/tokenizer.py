"""A tokenizer that turns tagged sequences in plain text into residue tokens by itself.

Here `tokenization.expand` writes `<dna>ACGT</dna>` as `<dna><|dna:A|><|dna:C|>...` before a tokenizer sees it.
Elsewhere nobody does, and byte-pair encoding would cut the letters into pieces that the model has never seen there.
So the normalizer of an exported tokenizer does it: a part of tokenizer.json, which every program with the `tokenizers`
library obeys. What it reads between tags:

    ACGT...          residue tokens
    acgt             the same, in upper case
    R, B, U of protein ... (`tokenization.UNUSUAL`)       the token of the unknown residue
    words after a blank (the genes of a cell)             text, without the tags
    anything else (a gap, a line break, U in DNA)         the whole stretch stays text

A normalizer cannot raise an error, so the last case, which `expand` refuses, is in the model card.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from cisterna.artifacts import files
from cisterna.errors import UserError
from cisterna.sequences import conventions, prompt, tokenization
from cisterna.sequences.chat_template import THINK
from cisterna.sequences.source import TOKENS
from cisterna.sequences.tokenization import ALPHABETS, UNUSUAL

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

MARK = "\ufdd0"  # before a residue while it is normalized: Unicode reserves it for such uses, so no text has it
PROBES = (
    "Spliced? <rna>GUAAGUacgun</rna> with <dna>ACGTNRYSWKMBDHV</dna>, <protein>ACDEFGHIKLMNPQRSTVWYXBJOUZ</protein>.",
    "<dna>a</dna><dna>CC</dna> ACGT <protein></protein>\n1 kb of DNA, é <rna>UU</rna>",
    "<rna> FTL CD74 JUNB</rna> and <rna> A</rna>\nNo sequence. Answer: up",
)


def save(ours: "PreTrainedTokenizerBase", folder: Path, config: "PretrainedConfig") -> None:
    """Write the tokenizer of a base checkpoint (`tokenization.load`) into `folder`, so that it needs no Cisterna.

    `config` is that of its model, by which transformers chooses a tokenizer. UserError if transformers, loading it from
    there, would read prompts as other tokens than Cisterna does.
    """
    from transformers import AutoTokenizer

    core = getattr(ours, "backend_tokenizer", None)
    if not isinstance(core, Tokenizer):
        raise UserError(f"{ours.name_or_path}: its tokenizer has no form that could be exported (tokenizer.json)")
    template = ours.chat_template
    try:
        ours.chat_template = _template(ours)
        ours.save_pretrained(folder)
    finally:
        ours.chat_template = template
    (folder / "tokenizer.json").write_text(_converting(core).to_str(pretty=True))
    # A class of a model family would build the normalizer of that family; this one takes what is in tokenizer.json.
    path = folder / "tokenizer_config.json"
    settings = files.read_json(path) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    files.write_json(path, settings)
    if _misread(AutoTokenizer.from_pretrained(folder, config=config), ours) is not None:
        # For some families transformers ignores the class, unless the folder offers code of its own (here: none).
        files.write_json(path, settings | {"auto_map": {"AutoTokenizer": [None, "none.None"]}})
        if (text := _misread(AutoTokenizer.from_pretrained(folder, config=config), ours)) is not None:
            raise UserError(
                f"{ours.name_or_path}: its tokenizer cannot be exported: by itself it would read {text!r} as other "
                "tokens than Cisterna does"
            )


def _template(tokenizer: "PreTrainedTokenizerBase") -> Any:
    """The chat template, which begins with the options of the study and the start tokens that it does not write."""
    template, known = tokenizer.chat_template, conventions.of(tokenizer)
    if not template:
        return template
    options = [(name, _literal(value)) for name, value in known.chat_template_kwargs.items()]
    before = "".join(f"{{% if {k} is not defined %}}{{% set {k} = {value} %}}{{% endif %}}" for k, value in options)
    rendered = tokenizer(conventions.render(tokenizer, [""])[0], add_special_tokens=False)["input_ids"]
    missing = conventions.started(tokenizer, rendered) != rendered
    if not options and not missing:
        return template
    # An expression ends it: after a block, jinja would drop a line break with which the template begins.
    before += f"{{{{ {json.dumps(''.join(known.start_tokens) if missing else '')} }}}}"
    if isinstance(template, dict):
        return {name: before + text for name, text in template.items()}
    return before + template


def _literal(value: Any) -> str:
    """A JSON value as jinja writes it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(key)}: {_literal(part)}' for key, part in value.items())}}}"
    return "none" if value is None else json.dumps(value)


def _converting(core: Tokenizer) -> Tokenizer:
    """A copy of a tokenizer that finds tags and residue tokens after its normalizer, which writes the residues."""
    content: dict[str, Any] = json.loads(core.to_str())
    added = [token for token in tokenization.added_tokens() if token not in THINK]
    for token in content["added_tokens"]:
        if token["content"] in added:  # those that are not normalized are found before the normalizer
            token["normalized"] = True
    given = content["normalizer"]
    steps = [] if given is None else given["normalizers"] if given["type"] == "Sequence" else [given]
    # What a normalizer prepends is for every text between two added tokens. Here these are found later.
    tokens = "|".join(map(re.escape, added))
    begin = {"Regex": rf"(?:\A|(?<={tokens}))(?!{tokens}|\Z)"}
    for number, step in enumerate(steps):
        if step["type"] == "Prepend":
            steps[number] = {"type": "Replace", "pattern": begin, "content": step["prepend"]}
    content["normalizer"] = {"type": "Sequence", "normalizers": [*_residues(), *steps]}
    return Tokenizer.from_str(json.dumps(content))


def _residues() -> list[dict[str, Any]]:
    r"""Normalizers that write residues between tags as their tokens, as tokenizer.json has them.

    The first of a modality puts a mark before each letter of a stretch that has no other letters; `\G` is where the
    search goes on, so a stretch is read once, whatever its length. Later ones do the same with the words after a blank,
    whose tags go away.
    """
    steps: list[tuple[str, str]] = []
    for modality, letters in ALPHABETS.items():
        known = letters + UNUSUAL[modality]
        any_case = f"[{known}{known.lower()}]"
        first = rf"(?<=<{modality}>)(?={any_case}+</{modality}>)"
        steps.append((rf"(?:{first}|(?!\A)\G)(?={any_case})", MARK))
        for letter in letters:
            same = letter if letter != letters[-1] else letter + UNUSUAL[modality]
            steps.append((f"{MARK}[{same}{same.lower()}]", f"<|{modality}:{letter}|>"))
        first = rf"(?<=<{modality}>)(?= [^<]*</{modality}>)"
        steps.append((rf"(?:{first}|(?!\A)\G(?<!<))(?=[^<]|</{modality}>)", MARK))
        steps += [(f"<{modality}>{MARK}", ""), (f"{MARK}</{modality}>", ""), (MARK, "")]
    return [{"type": "Replace", "pattern": {"Regex": pattern}, "content": text} for pattern, text in steps]


def _misread(theirs: "PreTrainedTokenizerBase", ours: "PreTrainedTokenizerBase") -> str | None:
    """A probe that an exported tokenizer reads as other tokens than ours; None if there is none."""
    upper = [
        tokenization.TAGGED.sub(lambda match: f"<{match[1]}>{match[2].upper()}</{match[1]}>", text) for text in PROBES
    ]
    expected = prompt.encode_prompts(ours, upper, TOKENS, [[]] * len(upper), 0)
    return next((text for text, ids in zip(PROBES, expected, strict=True) if encode(theirs, text) != ids), None)


def encode(theirs: "PreTrainedTokenizerBase", text: str) -> Sequence[int]:
    """The token ids of a prompt, as the model card says to make them."""
    if not theirs.chat_template:
        return theirs(text)["input_ids"]
    turn = [{"role": "user", "content": text}]
    return theirs.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)["input_ids"]
