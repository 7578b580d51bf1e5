"""The ways to split a table that `cisterna init` tries, and what each would hold.

Each is tried for real, by the code of the job `data` (`cisterna.data.splits`), so that what is written in the draft is
what will be there. Not for choosing sizes (`cisterna.drafting.budget`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from cisterna import tasks
from cisterna.constants import SPLITS
from cisterna.data import holdout, similarity, splits
from cisterna.data.splits import Marked
from cisterna.drafting.roles import Reading
from cisterna.errors import UserError

SHARE = 0.2  # of the rows that is out of domain, by one column or by similarity
SHARE_OF_SEVERAL = 0.3  # by several columns: a small part of them has only unseen values
MANY = 10  # values of a column, of which a part as small as that for several columns can be held out
GROUPS = 2  # columns of groups that are tried
THRESHOLDS = (0.5, 0.4, 0.3, 0.2, 0.1, 0.05)
LARGEST = 6000  # rows that are clustered here: the time grows with the square, about 10 s for as many
SAMPLE = 1500  # rows by which thresholds are ruled out before all are clustered
NEAR = 0.1  # distance below which two sequences are near-duplicates
AT_RANDOM = "rows at random: no column tells which are alike"
CHAINED = 0.7  # share of the rows in one cluster, above which no fifth of them can be held out

Spec = dict[str, Any]
Sizes = Callable[[int, int], Mapping[str, int]]  # rows in domain, rows out of domain -> rows of each split


class Way(NamedTuple):
    """A way to split: the key `split` of a task, in words, and what came of it, or why it is not possible."""

    split: Spec
    words: str
    frames: Mapping[str, pd.DataFrame]
    card: Mapping[str, Any]
    sizes: Mapping[str, int]
    problem: str = ""

    @property
    def flaws(self) -> list[str]:
        """Labels that a split lacks."""
        if self.problem:
            return [self.problem]
        counts = {split: self.card["splits"][split]["labels"] for split in SPLITS}
        return [
            f"no row of {split} has the label {label}"
            for split in ("train", "id", "ood")
            for label, rows in counts[split].items()
            if not rows
        ]


def read(name: str, spec: Spec) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """The examples of a table before they are split, and each of their sequences by its name. UserError as the job."""
    task = tasks.load(name, spec | {"split": {"by": "similarity", "ood": SHARE, "threshold": THRESHOLDS[0]}})
    examples = tasks.read(task)
    return examples, {of: holdout.sequence_texts(examples, task.sequences, of) for of in task.sequences}


def near(texts: Sequence[str]) -> tuple[int, int, str]:
    """How many of the first sequences have a near-duplicate, of how many, and what that is."""
    measure, part = similarity.Measure.of(texts), texts[:SAMPLE]
    within = max(NEAR, 1.5 / max(map(len, texts))) if measure.kind == "positions" else NEAR
    numbers = pd.Series(similarity.clusters(part, within, measure))
    return int(numbers.duplicated(keep=False).sum()), len(part), f"nearer than {within:.2g}, {measure}"


def tried(
    name: str,
    spec: Spec,
    reading: Reading,
    texts: Mapping[str, Sequence[str]],
    sizes: Sizes,
) -> list[Way]:
    """Every way that the columns allow, the best first.

    `texts` are the sequences of the examples; `sizes` gives the rows of each split.

    A way whose splits lack a label comes after those that have all, and those that are not possible come last.
    UserError if none is possible.
    """
    found = [_try(name, spec, split, words, sizes) for split, words in _grouped(reading)]
    found += _similar(name, spec, texts, sizes)
    if all(way.problem for way in found):
        column = next(iter(reading.sequences), None) or max(
            reading.of("text"), key=lambda text: len(reading.columns[text].counts)
        )
        split = {"by": "group", "column": column, "ood": SHARE}
        found.append(_try(name, spec, split, AT_RANDOM, sizes))
    found.sort(key=lambda way: 2 if way.problem else bool(way.flaws))
    if not found or found[0].problem:
        reasons = "".join(f"\n- {way.words}: {way.problem}" for way in found)
        raise UserError(
            f"{reading.path}: no way to hold out rows (out of domain, OOD) is possible. Add a column of groups, such "
            f"as families, genes or cell lines, with several rows each.{reasons}"
        )
    return found


def _grouped(reading: Reading) -> Iterator[tuple[Spec, str]]:
    shown = [name for name in reading.of("text") if name in reading.groups]  # in the prompts
    several = [name for name in shown if len(reading.columns[name].counts) >= MANY]
    if len(several) > 1:
        split = {"by": "group", "column": several[:3], "ood": SHARE_OF_SEVERAL}
        yield split, "unseen values of several columns"
    for column in reading.groups[:GROUPS]:
        yield {"by": "group", "column": column, "ood": SHARE}, "unseen groups"
    for column in reading.of("date")[:1]:
        yield {"by": "time", "column": column, "ood": SHARE}, "later dates"


def _similar(
    name: str,
    spec: Spec,
    texts: Mapping[str, Sequence[str]],
    sizes: Sizes,
) -> list[Way]:
    """The split by the largest threshold that is possible: clusters of sequences that are that far apart."""
    if not texts:
        return []
    of, sequences = next(iter(texts.items()))
    column = {"column": of} if len(texts) > 1 else {}
    split: Spec = {"by": "similarity", **column, "ood": SHARE, "threshold": THRESHOLDS[0]}
    words = "clusters of similar sequences"
    if len(sequences) > LARGEST:
        problem = f"not tried: {len(sequences):,} sequences are too many to compare here (at most {LARGEST:,})"
        return [Way(split, words, {}, {}, {}, problem)]
    measure, length = similarity.Measure.of(sequences), max(map(len, sequences))
    steps = list(THRESHOLDS)
    if measure.kind == "positions":  # sequences of different clusters differ by two positions or more
        steps = [*(step for step in steps if step > 1.5 / length), round(1.5 / length, 4)]
    problem = "almost all sequences are in one cluster"
    for threshold in steps:
        part = similarity.clusters(sequences[:SAMPLE], threshold, measure)
        if pd.Series(part).value_counts(normalize=True).iloc[0] > CHAINED:
            continue
        way = _try(name, spec, split | {"threshold": threshold}, words, sizes)
        if not way.problem:
            return [way]
        problem = way.problem
    return [Way(split, words, {}, {}, {}, problem)]


def _try(name: str, spec: Spec, split: Spec, words: str, sizes: Sizes) -> Way:
    tried_spec = spec | {"split": split}
    try:
        marked: Marked = splits.mark(name, tried_spec, 0)
        outside = int(marked.examples["ood"].sum())
        chosen = sizes(len(marked.examples) - outside, outside)
        frames, card = splits.draw(name, tried_spec | dict(chosen), 0, marked)
    except UserError as error:
        return Way(split, words, {}, {}, {}, str(error).removeprefix(f"tasks.{name}.split").lstrip(".: "))
    return Way(split, words, frames, card, chosen)
