"""Tasks: labelled data sets turned into prompt, reasoning trace and answer.

A task knows how to read its raw tables and how to write their rows as text. Not for splitting, sampling or auditing
(`cisterna.data.splits`), and not for finding a task by its name (`cisterna.tasks.loading`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from cisterna.scoring.gene_ontology import Ontology

# Columns of every frame of examples; all str but `segments`, a list of `segment`s, and `ood`, which is bool.
COLUMNS = ("id", "prompt", "segments", "reasoning", "answer", "sequence", "group", "ood")
# Where a data set comes with splits, one more: "train", "id" or "ood".
SPLIT = "split"


@dataclass(frozen=True)
class Task:
    """One labelled data set.

    `open` reads the raw rows from `sources`, which are files, with paths relative to the root of the
    clone or absolute, and from `hub`, a data set of the Hugging Face hub (id and revision). Of its
    attributes (`.attrs`) `fingerprint` says what was read from the hub, and `notes`, a list of
    sentences for the data card, what was left out and why. `examples` takes the raw rows and
    returns one row an example with the columns COLUMNS and, where the data come with splits, the
    column SPLIT. `labels` is the answer space: None if it is all the different answers of the
    examples, empty if an answer is not one of a list.

    `prompt` is the question about one sequence, and `segments` says of which sequence each tagged
    stretch of residues in it is, in order: the context in which an encoder reads it. `letters` and
    `length` are those of a sequence, None where it may have any; `columns` names id and sequence in
    the table, and `fields` are columns of it that `prompt` takes too, as a mapping after the
    sequence. Where a question needs more than that, `prompt` and `segments` are None and `ask` takes
    the path of a table of new rows and returns id, sequence, prompt, segments, as `questions` does.

    Where an answer is a set of terms, `terms` takes the examples of train and returns the ontology by
    which answers are scored, which is written beside the splits.

    `meaning` says what the label is and `rule` which rows are out of domain; both go into the data
    card. `quoted`: the shipped tokenizer text quotes rows of this task, so the rows that are
    `quotable` may be in train but not in validation or id.
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
    fields: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=lambda: {"id": "id", "sequence": "sequence"})
    ask: Callable[[Path], pd.DataFrame] | None = None
    terms: Callable[[pd.DataFrame], Ontology] | None = None


def segment(sequence: str, start: int = 0, center: int | None = None) -> dict[str, Any]:
    """The context of a tagged stretch of residues: it begins at `start` of `sequence` (from 0).

    `center` is the residue that a window for the encoder is cut around; None is the middle of the
    stretch.
    """
    return {"sequence": sequence, "start": start, "center": center}


def quotable(identifier: str) -> bool:
    """Whether the tokenizer's text may quote the row of this id: a quarter of all rows, by the
    sha256 of the id.
    """
    return hashlib.sha256(identifier.encode()).digest()[0] < 64
