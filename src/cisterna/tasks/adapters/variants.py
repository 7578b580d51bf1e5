"""Questions about a variant: text, the reference sequence around it and the sequence with the variant.

Shared by the adapters of variants (`cisterna.tasks.adapters.kegg`, `cisterna.tasks.adapters.variant_effect`). Not for
tables with one sequence a row (`cisterna.tasks.user_table`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cisterna.errors import UserError
from cisterna.sequences import letters
from cisterna.tasks import tables
from cisterna.tasks.adapters import published
from cisterna.tasks.base import SPLIT, Task, segment

PAIR = ("reference_sequence", "variant_sequence")
IN, OUT = "in domain", "out of domain"  # groups


def task(
    name: str,
    spec: Mapping[str, Any],
    clean: Callable[[str], str],
    meaning: str,
    columns: tuple[str, ...],
    optional: tuple[str, ...] = (),
) -> Task:
    """The task of a data set with the columns question, answer, reference_sequence, variant_sequence and reasoning.

    `clean` turns a cell of the column answer into an answer. Both sequences are cut to `flank` bases (an option of the
    task) on each side of the first base in which they differ.
    """
    flank = int(spec.get("options", {}).get("flank", 1024))
    rule = spec.get("unusual_letters")
    return Task(
        name=name,
        modality="dna",
        labels=None,
        open=functools.partial(published.rows, name, spec, columns, optional),
        examples=functools.partial(examples, flank=flank, clean=clean, rule=rule),
        meaning=meaning,
        rule="out of domain: the rows of the split that the data hold out",
        ask=functools.partial(ask, flank=flank, rule=rule),
        **published.source(spec),
    )


def examples(raw: pd.DataFrame, flank: int, clean: Callable[[str], str], rule: str | None = None) -> pd.DataFrame:
    """Raw rows (`published.rows`) as examples; the group is IN or OUT. `rule` is the key `unusual_letters`.

    A note says how many rows have a variant that does not differ from the reference. Raises UserError naming the row
    for a letter that is not of DNA, and for an answer that is empty when cleaned.
    """
    notes = []
    raw = raw.reset_index(drop=True)
    same = int((raw[PAIR[0]].str.upper() == raw[PAIR[1]].str.upper()).sum())
    if same:
        notes.append(f"{same} rows have a variant_sequence that is their reference_sequence: cut around its middle")
    reader = letters.Reader("dna", rule)
    asked = _questions(raw, list(raw[published.WHERE]), flank, reader)
    reasoning = list(raw["reasoning"]) if "reasoning" in raw.columns else [""] * len(raw)
    answers = []
    for where, text in zip(raw[published.WHERE], raw["answer"], strict=True):
        answer = clean(text)
        if not answer or not answer.isprintable():
            raise UserError(
                f"{where}: column 'answer': {text!r} is {answer!r} when cleaned; expected one line. Correct the row."
            )
        answers.append(answer)
    made = pd.DataFrame(
        {
            "id": published.identifiers(raw),
            "prompt": asked["prompt"],
            "segments": asked["segments"],
            "reasoning": reasoning,
            "answer": answers,
            "sequence": asked["sequence"],
            "group": raw[SPLIT].map(lambda split: OUT if split == "ood" else IN),
            "ood": raw[SPLIT] == "ood",
            SPLIT: raw[SPLIT],
        }
    )
    notes += tables.notes_of_missing(answers, "answers")
    made.attrs = {"notes": notes, "letters": reader.report()}
    return made


def ask(path: Path, flank: int, rule: str | None = None) -> pd.DataFrame:
    """New rows as questions: id, sequence, prompt, segments.

    The table has the columns question, reference_sequence and variant_sequence, and may have an id; others are ignored.
    """
    raw = tables.open_table(path)
    names = [*(["id"] if "id" in raw.columns else []), "question", *PAIR]
    frame = pd.DataFrame({name: tables.texts(raw, name, path) for name in names})
    rows = tables.row_names(path, len(frame))
    reader = letters.Reader("dna", rule)
    asked = _questions(frame, rows, flank, reader)
    asked.insert(0, "id", frame.get("id", pd.Series([str(row) for row in range(1, len(frame) + 1)])))
    asked.attrs = {"letters": reader.report()}
    return asked


def _questions(raw: pd.DataFrame, places: list[str], flank: int, reader: letters.Reader) -> pd.DataFrame:
    """Sequence (with the variant, cut), prompt and segments of rows with question, reference and variant."""
    rows = []
    for where, question, reference, variant in zip(places, raw["question"], raw[PAIR[0]], raw[PAIR[1]], strict=True):
        pair = [
            reader.read(sequence, f"{where}: column {column!r}")
            for column, sequence in zip(PAIR, (reference, variant), strict=True)
        ]
        (reference, variant), center = window(pair[0], pair[1], flank)
        rows.append(
            {
                "sequence": variant,
                "prompt": prompt(question, reference, variant),
                "segments": [segment(part, 0, min(center, len(part) - 1)) for part in (reference, variant)],
            }
        )
    return pd.DataFrame(rows, columns=["sequence", "prompt", "segments"])


def before_semicolon(answer: str) -> str:
    """The text before `;`, in lower case, as BioReason cleans the answers of KEGG and of coding variants."""
    return answer.partition(";")[0].strip().lower()


def prompt(question: str, reference: str, variant: str) -> str:
    """The question and the two tagged sequences; ends with a newline."""
    return f"{question}\nReference: <dna>{reference}</dna>\nVariant: <dna>{variant}</dna>\n"


def window(reference: str, variant: str, flank: int) -> tuple[tuple[str, str], int]:
    """Both sequences cut to `flank` bases on each side of the first base in which they differ, and its index there.

    Indices count from 0. If one sequence is the beginning of the other, the base after its end is the first that
    differs; if they are equal, it is the middle. `flank` is at least 1, so that each sequence keeps a base.
    """
    # the two may differ in length: compared up to the end of the shorter
    pairs = enumerate(zip(reference, variant, strict=False))
    first = next((place for place, (old, new) in pairs if old != new), min(len(reference), len(variant)))
    if reference == variant:
        first = len(reference) // 2
    low = max(0, first - flank)
    high = first + flank + 1
    return (reference[low:high], variant[low:high]), first - low
