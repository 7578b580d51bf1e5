"""What a task is: a labelled data set whose rows become prompt, reasoning trace and answer.

Not for drawing splits (`cisterna.data.drawing`), and not for finding a task by its name (`cisterna.tasks.loading`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from cisterna.scoring.gene_ontology import Ontology

# Columns of every frame of examples: str, but `segments` is a list of `segment`s, and `ood` is bool.
COLUMNS = ("id", "prompt", "segments", "reasoning", "answer", "sequence", "group", "ood")
# One more column where a data set comes with splits: "train", "id" or "ood".
SPLIT = "split"


@dataclass(frozen=True)
class Task:
    """One labelled data set.

    The data. `open` reads the raw rows, from the files `sources` (relative to the root of the clone, or absolute) or
    from `hub`, a data set of the Hugging Face hub (id, subset and revision). `examples` turns the raw rows into
    examples, with the columns COLUMNS and, where the data come with splits, SPLIT. Both frames may have attributes
    (`.attrs`): `fingerprint` identifies what was read from the hub; for the data card, `dropped` lists the rows that
    were left out (`cisterna.tasks.tables.dropped`), `letters` is what a `cisterna.sequences.letters.Reader` reports,
    and `notes` are sentences.

    The answers. `labels` is the answer space: None if it is the set of all answers of the examples, empty if answers
    are sets of terms. Then `terms` returns, for the examples of train, the ontology for scoring, which is written to
    the folder of the splits. `meaning` (of the label) and `rule` (which rows are out of domain) go into the data card.

    The questions. `prompt` takes a sequence; `segments` returns the context of each tagged stretch of residues in the
    prompt, in order, for the encoder. `letters` and `length` are those of a sequence, None if any are allowed. Where a
    question needs more than that, `prompt` and `segments` are None, and `ask` takes the path of a table of new rows and
    returns id, prompt, segments and, where there is one, sequence, as `questions` does.

    `sequences` are the names of the sequences in the prompt, in order; none for prompts without one. `by_prompt`: there
    is more in the prompt than one sequence, so that a sequence may be in train and in test, with different prompts.

    `quoted`: the tokenizer text that ships quotes rows of this task. Rows that are `quotable` are then kept out of
    validation and id.
    """

    name: str
    modality: str
    labels: tuple[str, ...] | None
    examples: Callable[[pd.DataFrame], pd.DataFrame]
    open: Callable[[], pd.DataFrame]
    meaning: str
    rule: str
    sources: tuple[str, ...] = ()
    hub: Mapping[str, str | None] | None = None
    quoted: bool = False
    prompt: Callable[..., str] | None = None
    segments: Callable[[str], list[dict[str, Any]]] | None = None
    letters: str | None = None
    length: int | None = None
    ask: Callable[[Path], pd.DataFrame] | None = None
    terms: Callable[[pd.DataFrame], Ontology] | None = None
    sequences: tuple[str, ...] = ("sequence",)
    by_prompt: bool = False


def segment(sequence: str, start: int = 0, center: int | None = None) -> dict[str, Any]:
    """The context of a tagged stretch of residues, which begins at index `start` of `sequence`.

    `center` is the residue at the center of the encoder's window; None is the middle of the stretch.
    """
    return {"sequence": sequence, "start": start, "center": center}


def quotable(identifier: str) -> bool:
    """Whether the tokenizer's text may quote the row of this id: a quarter of all rows, by the sha256 of the id."""
    return hashlib.sha256(identifier.encode()).digest()[0] < 64
