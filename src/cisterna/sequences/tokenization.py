"""Tokenizers with residue tokens: every residue of a sequence is one token, with a set of tokens for each modality.

Between tags (`<dna>ACGT</dna>`, `<rna>ACGU</rna>`, `<protein>MKV</protein>`) every residue becomes one token such as
`<|dna:A|>`, so that byte-pair encoding never cuts a sequence into pieces, and the A of DNA is not the A of alanine.
`expand` writes the tokens out as text, which any Hugging Face tokenizer with the `added_tokens()` can read, also inside
TRL's trainers; `residue_ids` converts a whole sequence at once for corpora.

All other text is data and cannot contain a token of structure: `escape` breaks up each of them in it, also those of a
pretrained tokenizer. Words that somebody added to a tokenizer, such as names of genes, are no structure. In the output
of a model tokens of structure are spelled out (`decode_completion`), so that they are not mistaken for the text that
they look like.

Not for corpora (`cisterna.data.tokenized`), not for features in prompts (`cisterna.sequences.prompt`), not for
parsing answers (`cisterna.scoring.answers`).
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cisterna.errors import UserError
from cisterna.sequences import conventions
from cisterna.sequences.chat_template import THINK

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

ALPHABETS = {"dna": "ACGTN", "rna": "ACGUN", "protein": "ACDEFGHIKLMNPQRSTVWYX"}  # the last is the unknown residue
# Letters for ambiguous and rare residues (IUPAC), which have no token of their own: they share that of the unknown one.
UNUSUAL = {"dna": "RYSWKMBDHV", "rna": "RYSWKMBDHV", "protein": "BJOUZ"}
END = "<|endoftext|>"
PAD = "<|pad|>"
MASK = "<|mask|>"
UNKNOWN = "<|unknown|>"
CHANGES = "writes {!r} as {!r}; use another name for it, or another backbone"
NO_RESIDUE = 2**32 - 1  # in a table of token ids: a byte that is no residue
PLACEHOLDER = "\x00"  # in a prompt: the feature rows of a stretch of residues; refused in tables of users

TAGGED = re.compile(r"<(dna|rna|protein)>([^<]*)</\1>")
_RESIDUE = re.compile(r"<\|(?:dna|rna|protein):([A-Z])\|>")
_SPELLED = re.compile(r"<(dna|rna|protein)>(?:<\|\1:[A-Z]\|>)*</\1>")
_MARKUP = re.compile(r"[<>|\[\]{}]")
_TABLES = {
    modality: {ord(letter): f"<|{modality}:{letter}|>" for letter in letters}
    | {ord(letter): f"<|{modality}:{letters[-1]}|>" for letter in UNUSUAL[modality]}
    for modality, letters in ALPHABETS.items()
}


def added_tokens(*, think: bool = True) -> list[str]:
    """Every token that Cisterna adds to a tokenizer, in a fixed order: tags, residues, and thinking tags if `think`."""
    added = []
    for modality, letters in ALPHABETS.items():
        added += [f"<{modality}>", f"</{modality}>"]
        added += [f"<|{modality}:{letter}|>" for letter in letters]
    return [*added, *THINK] if think else added


def expand(text: str, form: str = "tokens") -> str:
    """Write each residue between tags as its token; PLACEHOLDER instead in the form `features`, after them in `both`.

    Between tags, words after a blank (the genes of a cell) are text: they stay as they are, before the tags in `both`,
    without tags in `tokens`, and are left out in `features`.
    Letters of UNUSUAL, which a task has with `unusual_letters: keep`, have the token of the unknown residue. Raises
    UserError for any other letter outside the modality's alphabet.
    """

    def residues(match: re.Match[str]) -> str:
        modality, sequence = match.groups()
        if sequence.startswith(" "):
            place = f"<{modality}>{PLACEHOLDER}</{modality}>"
            return {"tokens": sequence, "features": place, "both": sequence + place}[form]
        unknown = set(sequence) - set(ALPHABETS[modality] + UNUSUAL[modality])
        if unknown:
            raise UserError(
                f"<{modality}>{sequence[:40]}: {sorted(unknown)} not in the {modality} alphabet "
                f"{ALPHABETS[modality]}; write upper-case residues and {ALPHABETS[modality][-1]} for unknown ones"
            )
        spelled = "" if form == "features" else sequence.translate(_TABLES[modality])
        return f"<{modality}>{spelled}{'' if form == 'tokens' else PLACEHOLDER}</{modality}>"

    return TAGGED.sub(residues, text)


def escape(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[str]:
    """Texts without the structure tokens of a tokenizer: a space is put after the first letter of each.

    Stretches of residues between tags stay as they are, and so do the tags of words, but not the words.
    """
    structure = re.compile(_structure(tokenizer))
    pattern = re.compile(f"{TAGGED.pattern}|({structure.pattern})")

    def escaped(match: re.Match[str]) -> str:
        if not match[1]:
            return _broken(match)
        words = match[2].startswith(" ")
        return f"<{match[1]}>{structure.sub(_broken, match[2])}</{match[1]}>" if words else match[0]

    return [pattern.sub(escaped, text) for text in texts]


def _structure(tokenizer: "PreTrainedTokenizerBase") -> str:
    """A pattern of the structure tokens: added ones that are special or have a bracket or bar, as control tokens have.

    Thinking tags are structure also where they are no tokens. Some tokenizers add runs of blanks and single characters
    too; these are no structure.
    """
    added = [(token.content, token.special) for token in tokenizer.added_tokens_decoder.values()]
    tokens = {text for text, special in added if len(text) > 1 and text.strip() and (special or _MARKUP.search(text))}
    return "|".join(map(re.escape, sorted(tokens | set(THINK), key=lambda text: (-len(text), text))))


def _broken(match: re.Match[str]) -> str:
    return f"{match[0][0]} {match[0][1:]}"


def collapse(text: str) -> str:
    """Undo `expand`, to make stored predictions readable. Residue tokens without tags around them stay."""
    return _SPELLED.sub(lambda match: _RESIDUE.sub(r"\1", match[0]), text)


def decode_completion(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> tuple[str, bool]:
    """The text of a completion up to the first end token, and whether there is one.

    It begins with what the chat template has written of it, and marks thoughts with <think> and </think>, whatever the
    model's own marks are. Control tokens are spelled out, so that an answer with a control token differs from the
    answer without it.
    """
    kept = before_end(tokenizer, ids)
    text = conventions.read_output(tokenizer, _decode(tokenizer, kept))
    return collapse(text), len(kept) < len(ids)


def _decode(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    """The text of token ids as they are: cleaning up would change the blanks of an answer."""
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def before_end(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> list[int]:
    """Token ids of a completion up to the first end token, or all of them where there is none."""
    ends = conventions.end_ids(tokenizer)
    return list(itertools.takewhile(lambda token: token not in ends, ids))


def encode_completions(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """Token ids of completions as SFT teaches them (`conventions.written`), with the end token of a turn."""
    if not texts:
        return []
    texts = [expand(conventions.written(tokenizer, text)) for text in texts]
    end = conventions.turn_end_id(tokenizer)
    return [[*ids, end] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def check_words(tokenizer: "PreTrainedTokenizerBase", words: Iterable[str], source: object) -> None:
    """UserError for a word, such as the name of a gene, that comes back from the tokenizer as another text."""
    unique = list(dict.fromkeys(words))
    rows = encode_text(tokenizer, [f" {word}" for word in unique])
    for word, row in zip(unique, rows, strict=True):
        read = _decode(tokenizer, row).strip()
        if read != word:
            raise UserError(f"{source}: the tokenizer of the backbone {CHANGES.format(word, read)}")


def check_known(
    tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Sequence[int]], names: Sequence[str], source: object
) -> None:
    """UserError for a text with letters that the tokenizer has no token for. `rows` are the token ids of texts."""
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown in conventions.end_ids(tokenizer) + conventions.start_ids(tokenizer):
        return
    lost = [name for name, row in zip(names, rows, strict=True) if unknown in row]
    if lost:
        raise UserError(
            f"{source}: {len(lost)} of {len(rows)} texts have letters for which the tokenizer of the backbone has no "
            f"token (first: {lost[0]}). Change these texts, or use another backbone"
        )


def build(vocab_size: int, files: Iterable[Path]) -> "PreTrainedTokenizerBase":
    """Train a byte-level BPE on text files and add the residue tokens.

    `vocab_size` is the number of BPE tokens (at least 256 bytes + 2 control tokens), without residue tokens. Numbers of
    up to three digits stay together, as in Llama 3's pre-tokenizer, so that a position in a sequence can be one
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
    tokenizer.add_tokens(added_tokens())
    return tokenizer


def build_for_encoder() -> "PreTrainedTokenizerBase":
    """The tokenizer of an encoder trained here: residue tokens only; tags, mask and padding are special tokens."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tags = [f"<{close}{modality}>" for modality in ALPHABETS for close in ("", "/")]
    core = Tokenizer(models.WordLevel({PAD: 0, MASK: 1, UNKNOWN: 2}, unk_token=UNKNOWN))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, mask_token=MASK, unk_token=UNKNOWN, extra_special_tokens=tags
    )
    tokenizer.add_tokens([token for token in added_tokens() if _RESIDUE.fullmatch(token)])
    return tokenizer


def load(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a base checkpoint with its conventions, padding on the left. UserError if there is none."""
    from transformers import AutoTokenizer

    if not (folder / "tokenizer_config.json").is_file():
        raise UserError(f"{folder}: no tokenizer; expected a base checkpoint, made by `cisterna base`")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "left"
    conventions.attach(tokenizer, conventions.read(folder, tokenizer))
    return tokenizer


def encode_text(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts without sequences: tags in them are ordinary letters. All texts are encoded in one call."""
    if not texts:
        return []
    pattern = re.compile(_structure(tokenizer))
    return tokenizer([pattern.sub(_broken, text) for text in texts], add_special_tokens=False)["input_ids"]


def residue_table(tokenizer: "PreTrainedTokenizerBase", modality: str) -> "np.ndarray":
    """The token id of each byte that is a letter of a modality, for `residue_ids`: uint32, shape (256,)."""
    import numpy as np

    table = np.full(256, NO_RESIDUE, dtype=np.uint32)
    for letter in ALPHABETS[modality]:
        table[ord(letter)] = tokenizer.convert_tokens_to_ids(f"<|{modality}:{letter}|>")
    return table


def residue_ids(table: "np.ndarray", sequence: bytes, modality: str) -> "np.ndarray":
    """Token ids of a whole sequence, by one look-up in a `residue_table`: uint32, shape (len(sequence),).

    Raises UserError for a byte outside the modality's alphabet.
    """
    import numpy as np

    ids = table.take(np.frombuffer(sequence, dtype=np.uint8))
    if len(ids) and ids.max() == NO_RESIDUE:
        position = int(ids.argmax())
        raise UserError(
            f"letter {chr(sequence[position])!r} at position {position + 1} is not in the {modality} alphabet "
            f"{ALPHABETS[modality]}"
        )
    return ids


def render_prompts(tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], form: str = "tokens") -> list[str]:
    """Prompts as text for the tokenizer: through its chat template if it has one, otherwise as they are."""
    texts = [expand(text, form) for text in escape(tokenizer, prompts)]
    if not getattr(tokenizer, "chat_template", None):
        return texts
    return conventions.render(tokenizer, texts)
