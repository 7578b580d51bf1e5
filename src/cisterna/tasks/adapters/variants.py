"""Questions about a variant: text, the reference sequence around it and the sequence with the variant.

Shared by the adapters of variants (`cisterna.tasks.adapters.kegg`, `cisterna.tasks.adapters.variant_effect`). Not for
tables with one sequence a row (`cisterna.tasks.user_table`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cisterna.errors import UserError
from cisterna.sequences import letters
from cisterna.tasks import catalog, tables
from cisterna.tasks.adapters import answer_form, published
from cisterna.tasks.base import SPLIT, Task, segment

PAIR = ("reference_sequence", "variant_sequence")


def task(
    name: str,
    spec: Mapping[str, Any],
    read: Callable[[pd.DataFrame], pd.DataFrame],
    meaning: str,
    what: str,
    columns: tuple[str, ...],
    optional: tuple[str, ...] = (),
) -> Task:
    """The task of a data set with the columns question, answer, reference_sequence, variant_sequence and reasoning.

    `read` takes the raw rows (`published.rows`) and returns those that become examples, with the answer in the column
    answer: see `with_answers`. `what` says in the prompt what an answer is. How sequences are cut, and where they
    stand, are options of the task: see `cut` and `prompt`.
    """
    options = catalog.options(spec)
    form = answer_form.line(what, stated=options["answer_form"])
    rule = spec.get("unusual_letters")
    return Task(
        name=name,
        modality="dna",
        labels=None,
        open=lambda: read(published.rows(name, spec, columns, optional)),
        examples=functools.partial(examples, options=options, form=form, rule=rule),
        meaning=meaning,
        rule="out of domain: the rows of the split that the data hold out",
        ask=functools.partial(ask, options=options, form=form, rule=rule),
        **published.source(spec),
    )


def with_answers(raw: pd.DataFrame, clean: Callable[[str], str]) -> pd.DataFrame:
    """Raw rows with their answers cleaned. UserError, naming the row, for an answer of which no line is left."""
    cleaned = []
    for where, text in zip(raw[published.WHERE], raw["answer"], strict=True):
        answer = clean(text)
        if not answer or not answer.isprintable():
            raise UserError(
                f"{where}: column 'answer': {text!r} is {answer!r} when cleaned; expected one line. Correct the row."
            )
        cleaned.append(answer)
    return raw.assign(answer=cleaned)


def examples(raw: pd.DataFrame, *, options: Mapping[str, Any], form: str = "", rule: str | None = None) -> pd.DataFrame:
    """Rows of `published.rows` with answers as examples; the group is `published.IN` or OUT.

    `form` is the last line of a prompt, `rule` the key `unusual_letters`. Notes say how many rows have a variant that
    does not differ from the reference, and in how many it is cut off. Raises UserError naming the row for a letter that
    is not of DNA.
    """
    raw = raw.reset_index(drop=True)
    reader = letters.Reader("dna", rule)
    asked = _questions(raw, list(raw[published.WHERE]), options, form, reader)
    made = pd.DataFrame(
        {
            "id": raw["id"],
            "prompt": asked["prompt"],
            "segments": asked["segments"],
            "reasoning": raw["reasoning"] if "reasoning" in raw.columns else "",
            "answer": raw["answer"],
            "sequence": asked["sequence"],
            "group": raw[SPLIT].map(lambda split: published.OUT if split == "ood" else published.IN),
            "ood": raw[SPLIT] == "ood",
            SPLIT: raw[SPLIT],
        }
    )
    notes = [*asked.attrs["notes"], *tables.notes_of_missing(raw["answer"], "answers")]
    made.attrs = {"notes": notes, "letters": reader.report()}
    return made


def ask(path: Path, *, options: Mapping[str, Any], form: str = "", rule: str | None = None) -> pd.DataFrame:
    """New rows as questions: id, sequence, prompt, segments.

    The table has the columns question, reference_sequence and variant_sequence, and may have an id; others are ignored.
    """
    raw = tables.open_table(path)
    names = {name: (name, *published.ALIASES.get(name, ())) for name in ("question", *PAIR, "id")}
    if not set(names["id"]) & set(raw.columns):
        del names["id"]
    frame = pd.DataFrame({name: tables.same_texts(raw, others, path) for name, others in names.items()})
    rows = tables.row_names(path, len(frame))
    reader = letters.Reader("dna", rule)
    asked = _questions(frame, rows, options, form, reader)
    asked.insert(0, "id", frame.get("id", pd.Series(tables.numbers(frame))))
    asked.attrs = {"letters": reader.report(), "numbered": "id" not in frame}
    return asked


def _questions(
    raw: pd.DataFrame, places: list[str], options: Mapping[str, Any], form: str, reader: letters.Reader
) -> pd.DataFrame:
    """Sequence (with the variant, cut), prompt and segments of rows with question, reference and variant."""
    rows = []
    same = lost = 0
    for where, question, *texts in zip(places, raw["question"], raw[PAIR[0]], raw[PAIR[1]], strict=True):
        old, new = (
            reader.read(sequence, f"{where}: column {column!r}") for column, sequence in zip(PAIR, texts, strict=True)
        )
        (reference, variant), center = cut(old, new, options)
        same += old == new
        lost += old != new and reference == variant
        rows.append(
            {
                "sequence": variant,
                "prompt": prompt(question, reference, variant, form, first=options["sequences_first"]),
                "segments": [segment(part, 0, min(center, len(part) - 1)) for part in (reference, variant)],
            }
        )
    asked = pd.DataFrame(rows, columns=["sequence", "prompt", "segments"])
    around = ": cut around its middle" if options["flank"] is not None else ""
    asked.attrs["notes"] = [
        *([f"{same} rows have a variant_sequence that is their reference_sequence{around}"] if same else []),
        *(
            [f"{lost} rows have their variant in what is cut off: both sequences of the prompt are equal"]
            if lost
            else []
        ),
    ]
    return asked


def before_semicolon(answer: str) -> str:
    """The text before `;`, in lower case, as BioReason cleans the answers of coding variants."""
    return answer.partition(";")[0].strip().lower()


def clean_label(answer: str) -> str:
    """`before_semicolon` without brackets, quotes and underscores."""
    return clean_text(before_semicolon(answer))


def clean_text(text: str) -> str:
    """A text in lower case, without brackets and quotes, with a blank for an underscore.

    An apostrophe between two letters (`Wilson's`) is no quote.
    """
    text = re.sub(r"[\[\]\"]|(?<![A-Za-z])'|'(?![A-Za-z])", "", text).replace("_", " ")
    return " ".join(text.split()).lower()


def prompt(question: str, reference: str, variant: str, form: str = "", *, first: bool = False) -> str:
    """The question and the two tagged sequences, which stand `first` or after it; ends with a newline.

    `form` is a last line, of the form of the answer.
    """
    pair = f"Reference: <dna>{reference}</dna>\nVariant: <dna>{variant}</dna>\n"
    return (f"{pair}{question}\n" if first else f"{question}\n{pair}") + form


def cut(reference: str, variant: str, options: Mapping[str, Any]) -> tuple[tuple[str, str], int]:
    """Both sequences as the options say, and the index of the first base in which they differ (see `window`).

    First `trim_ends` bases are removed from each end of a sequence that is longer than twice as many and 8, as in the
    code of BioReason and of the paper; then `flank` bases are kept on each side of the variant; then the first `bases`.
    """
    ends, longest = options["trim_ends"], options["bases"]
    if ends:
        reference, variant = (part[ends:-ends] if len(part) > 2 * ends + 8 else part for part in (reference, variant))
    (reference, variant), center = window(reference, variant, options["flank"])
    return (reference[:longest], variant[:longest]), center


def window(reference: str, variant: str, flank: int | None) -> tuple[tuple[str, str], int]:
    """Both sequences cut to `flank` bases on each side of the first base in which they differ, and its index there.

    Indices count from 0. If one sequence is the beginning of the other, the base after its end is the first that
    differs; if they are equal, it is the middle. `flank` is at least 1, so that each sequence keeps a base; with None
    nothing is cut.
    """
    # the two may differ in length: compared up to the end of the shorter
    pairs = enumerate(zip(reference, variant, strict=False))
    first = next((place for place, (old, new) in pairs if old != new), min(len(reference), len(variant)))
    if reference == variant:
        first = len(reference) // 2
    if flank is None:
        return (reference, variant), first
    low = max(0, first - flank)
    high = first + flank + 1
    return (reference[low:high], variant[low:high]), first - low
