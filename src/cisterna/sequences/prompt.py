"""Prompts as token ids, with sequences as tokens, as features, or both.

In the prompt of a task each stretch of residues stands between tags, `<protein>D</protein>22<protein>P</protein>`. The
form (config key `sequences`) says what the model reads between the tags:

    tokens     <protein> D </protein>             one token a residue
    features   <protein> row 21 </protein>        the encoder's features of it, in the context of the whole sequence
    both       <protein> D row 21 </protein>

A stretch that begins with a blank is a list of words, the genes of a cell. They are text, without tags:

    tokens     FTL CD74 JUNB
    features   <rna> row 3 </rna>
    both       FTL CD74 JUNB<rna> row 3 </rna>
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cisterna.sequences import conventions, encoders, precomputed, tokenization
from cisterna.sequences.source import Features, LiveEncoder, SequenceSource
from cisterna.sequences.windows import tagged_stretches, window_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_prompts(
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    source: SequenceSource,
    segments: Sequence[Sequence[Mapping[str, Any]]],
    first: int,
    ids: Sequence[str] = (),
) -> list[list[int]]:
    """Token ids of prompts, through the chat template where the tokenizer has one, after its start tokens.

    `segments` has, for each prompt, the context (`cisterna.tasks.segment`) of each tagged stretch, in order; it is used
    for features only. `first` is the size of the model's vocabulary: row r of the features has the id first + r. `ids`
    are those of the examples, which precomputed features are found by.
    """
    texts = tokenization.render_prompts(tokenizer, prompts, source.form)
    if source.features is None:
        encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [conventions.started(tokenizer, ids) for ids in encoded]
    pieces = [text.split(tokenization.PLACEHOLDER) for text in texts]
    text_ids = iter(tokenizer([piece for parts in pieces for piece in parts], add_special_tokens=False)["input_ids"])
    encoded = []
    for parts, stretches in zip(pieces, _rows(source.features, prompts, segments, ids), strict=True):
        prompt_ids = conventions.started(tokenizer, list(next(text_ids)))
        for rows in stretches:
            prompt_ids += [first + row for row in rows] + next(text_ids)
        assert len(parts) == len(stretches) + 1
        encoded.append(prompt_ids)
    return encoded


def _rows(
    features: Features, prompts: Sequence[str], segments: Sequence[Sequence[Mapping[str, Any]]], ids: Sequence[str]
) -> list[list[range]]:
    """The rows of the features of each stretch of each prompt."""
    stretches = [
        list(zip(tagged_stretches(prompt), contexts, strict=True))
        for prompt, contexts in zip(prompts, segments, strict=True)
    ]
    if not precomputed.by_id(features.reading):
        return [[_rows_in_window(features, *stretch) for stretch in row] for row in stretches]
    assert not isinstance(features, LiveEncoder)
    features.prepare(precomputed.wanted(ids, segments, features.names))
    found = []
    for identifier, row in zip(ids, stretches, strict=True):
        names = precomputed.ids_of(identifier, len(row), features.names)
        places = [features.place(name, len(context["sequence"])) for name, (_, context) in zip(names, row, strict=True)]
        found.append(
            [
                precomputed.rows_of(place, stretch, context, features.reading)
                for place, (stretch, context) in zip(places, row, strict=True)
            ]
        )
    return found


def _rows_in_window(features: Any, stretch: str, segment: Mapping[str, Any]) -> range:
    """The rows of the features of a stretch; none if the window does not reach it."""
    text, first, last = window_of(stretch, segment, features.reading["flank"])
    if first >= last:
        return range(0)
    row, _ = features.locate(text)
    pool = features.reading["pool"] or 1
    return range(row + first // pool, row + encoders.rows(last, pool))
