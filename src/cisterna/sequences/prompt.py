"""Prompts as token ids, with sequences as tokens, as features, or both.

In the prompt of a task each stretch of residues stands between tags, `<protein>D</protein>22<protein>P</protein>`. The
form (config key `sequences`) says what the model reads between the tags:

    tokens     <protein> D </protein>             one token a residue
    features   <protein> row 21 </protein>        the encoder's features of it, in the context of the whole sequence
    both       <protein> D row 21 </protein>
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cisterna.sequences import conventions, encoders, tokenization
from cisterna.sequences.source import Features, SequenceSource
from cisterna.sequences.windows import tagged_stretches, window_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_prompts(
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    source: SequenceSource,
    segments: Sequence[Sequence[Mapping[str, Any]]],
    first: int,
) -> list[list[int]]:
    """Token ids of prompts, through the chat template where the tokenizer has one, after its start tokens.

    `segments` has, for each prompt, the context (`cisterna.tasks.segment`) of each tagged stretch, in order; it is used
    for features only. `first` is the size of the model's vocabulary: row r of the features has the id first + r.
    """
    texts = tokenization.render_prompts(tokenizer, prompts, source.form)
    if source.features is None:
        encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [conventions.started(tokenizer, ids) for ids in encoded]
    pieces = [text.split(tokenization.PLACEHOLDER) for text in texts]
    ids = iter(tokenizer([piece for parts in pieces for piece in parts], add_special_tokens=False)["input_ids"])
    encoded = []
    for prompt, parts, contexts in zip(prompts, pieces, segments, strict=True):
        prompt_ids = conventions.started(tokenizer, list(next(ids)))
        for stretch, segment in zip(tagged_stretches(prompt), contexts, strict=True):
            prompt_ids += [first + row for row in _rows(source.features, stretch, segment)] + next(ids)
        assert len(parts) == len(contexts) + 1
        encoded.append(prompt_ids)
    return encoded


def _rows(features: Features, stretch: str, segment: Mapping[str, Any]) -> range:
    """The rows of the features of a stretch; none if the window does not reach it."""
    text, first, last = window_of(stretch, segment, features.reading["flank"])
    if first >= last:
        return range(0)
    row, _ = features.locate(text)
    pool = features.reading["pool"] or 1
    return range(row + first // pool, row + encoders.rows(last, pool))
