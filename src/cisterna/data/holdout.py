"""Hold-out rules: which rows of a table are out of domain, by groups, by values of several columns, by similarity or by
time.

Not for a list of groups in the config (`ood: [kinase]`) or data that come with splits, which need no rule; nor for
drawing the other splits (`cisterna.data.drawing`).
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cisterna.data import similarity
from cisterna.errors import UserError
from cisterna.tasks import unseen

NUMBERS = 20  # numbers of groups that are tried
DRAWS = 20  # draws of each number of groups


class HeldOut(NamedTuple):
    """Examples with their `group` and `ood`, the rule in words, the measure of similarity, if any, and the values of
    several columns that are held out, if any.
    """

    examples: pd.DataFrame
    rule: str
    measure: similarity.Measure | None = None
    unseen: Mapping[str, Sequence[str]] = {}


def hold_out(
    examples: pd.DataFrame,
    split: Mapping[str, Any],
    seed: int,
    name: str,
    sequences: Sequence[str] = ("sequence",),
) -> HeldOut:
    """Mark the examples of task `name` that are out of domain, by the rule `split` of its config.

    by: group       whole groups (`group` of the examples), drawn by `seed`, with about the share `ood` of the rows;
                    with several columns values of each, so that rows with any of them have about that share
    by: similarity  the same with clusters of sequences: no row out of domain is nearer than `threshold` to one in
                    domain, by the measure that the leakage audit uses; with several `sequences` those of one of them,
                    which `column` names
    by: time        rows later than a date (`group` of the examples): later than `after`, or than the date after which
                    there is about the share `ood` of the rows

    The order of the rows does not matter. Raises UserError if no choice of whole groups or dates comes near the share,
    for a date that cannot be read, and if one side has no rows.
    """
    where = f"tasks.{name}.split"
    if split["by"] == "time":
        return _by_time(examples, split, where)
    if split["by"] == "group":
        if isinstance(split.get("column"), list | tuple):
            return _by_values(examples, split, seed, where)
        ood = _draw(examples["group"], float(split["ood"]), seed, where, _column(split))
        rule = f"out of domain: groups of {_column(split)} with {ood.mean():.1%} of the rows, drawn by seed {seed}"
        return HeldOut(examples.assign(ood=ood), rule)
    of = split.get("column", "sequence")
    if of not in sequences:
        raise UserError(
            f"{where}: `by: similarity` needs "
            + (f"`column`, one of {', '.join(sequences)}." if sequences else "a sequence in the prompt.")
        )
    texts, threshold = sequence_texts(examples, sequences, of), float(split["threshold"])
    measure = similarity.Measure.of(texts)
    numbers = pd.Series(similarity.clusters(texts, threshold, measure), index=examples.index)
    # A cluster is named by its first id, so that its name does not depend on the order of the rows.
    groups = examples["id"].groupby(numbers).transform("min")
    what = f"clusters of {'sequences' if of == 'sequence' else of} nearer than {threshold:g} ({measure})"
    ood = _draw(groups, float(split["ood"]), seed, where, what)
    rule = (
        f"out of domain: {groups[ood].nunique()} of {groups.nunique()} {what}, single linkage, with "
        f"{ood.mean():.1%} of the rows, drawn by seed {seed}"
    )
    return HeldOut(examples.assign(group=groups, ood=ood), rule, measure)


def sequence_texts(examples: pd.DataFrame, sequences: Sequence[str], name: str) -> list[str]:
    """The sequence called `name` of each example; `sequences` are the names of all, in the order of the prompt."""
    if tuple(sequences) == ("sequence",):
        return list(examples["sequence"])
    place = list(sequences).index(name)
    return [segments[place]["sequence"] for segments in examples["segments"]]


def _by_values(examples: pd.DataFrame, split: Mapping[str, Any], seed: int, where: str) -> HeldOut:
    """Hold out values of several columns: rows with a held-out value in any of them are out of domain."""
    columns, share = list(split["column"]), float(split["ood"])
    each = 1 - (1 - share) ** (1 / len(columns))  # of the rows, by each column, if the columns are independent
    held_out = {}
    for place, column in enumerate(columns):
        texts = examples[unseen.PREFIX + column]
        what = f"column {column!r} ({each:.0%} of the rows by each column, {share:.0%} by all)"
        drawn = _draw(texts, each, seed + place, where, what)  # not the same places in each column
        held_out[column] = sorted(set(texts[drawn]))
    marked = unseen.mark(examples, held_out)
    actual = marked["ood"].mean()
    if not share / 2 <= actual <= 2 * share:
        raise UserError(
            f"{where}.ood: held-out values of {', '.join(columns)} are in {actual:.0%} of the rows, not near "
            f"{share:.0%}. Ask for another share, or list the values under `ood`."
        )
    counts = ", ".join(f"{len(values)} of {column!r}" for column, values in held_out.items())
    rule = (
        f"out of domain: rows with one of the held-out values, {counts}, {actual:.1%} of the rows, drawn by seed {seed}"
    )
    return HeldOut(marked, rule, unseen=held_out)


def _draw(groups: pd.Series, share: float, seed: int, where: str, what: str) -> pd.Series:
    """Whether each row is held out: whole groups, with nearly `share` of the rows.

    Scikit-learn's GroupShuffleSplit makes DRAWS draws for each of several numbers of groups; the first draw that is
    nearest to the share is taken.
    """
    from sklearn.model_selection import GroupShuffleSplit

    names, numbers = np.unique(groups.to_numpy(dtype=str), return_inverse=True)
    if len(names) < 2:
        raise UserError(
            f"{where}: {what}: the {len(groups)} examples have only one, {str(names[0])!r}; two are needed, one to "
            "train on, one to hold out. " + ("Lower the threshold." if "nearer" in what else "Name another column.")
        )
    rows = np.bincount(numbers)
    # Groups differ in size, so several numbers of groups are tried to reach the share of the rows.
    counts = sorted({round(count) for count in np.linspace(1, len(names) - 1, NUMBERS)} | {round(share * len(names))})
    nearest, chosen = math.inf, np.zeros(0, np.int64)
    for count in counts:
        if not 0 < count < len(names):
            continue
        drawn = GroupShuffleSplit(n_splits=DRAWS, test_size=count, random_state=seed)
        for _, held_out in drawn.split(names, groups=names):  # one item a group, whatever its number of rows
            off = abs(rows[held_out].sum() / rows.sum() - share)
            if off < nearest:
                nearest, chosen = off, held_out
    actual = rows[chosen].sum() / rows.sum()
    if not share / 2 <= actual <= 2 * share:
        largest = int(rows.argmax())
        raise UserError(
            f"{where}.ood: {what}: no choice of whole ones has near {share:.0%} of the rows (nearest: {actual:.0%}). "
            f"There are {len(names)}; the largest, {str(names[largest])!r}, has {rows[largest] / rows.sum():.0%}. Ask "
            "for another share, " + ("or another threshold." if "nearer" in what else "or list the groups under `ood`.")
        )
    return pd.Series(np.isin(numbers, chosen), index=groups.index)


def _by_time(examples: pd.DataFrame, split: Mapping[str, Any], where: str) -> HeldOut:
    column = _column(split)
    dates = pd.Series([_date(text) for text in examples["group"]], index=examples.index)
    if dates.isna().any():
        row = int(dates.isna().to_numpy().argmax())
        raise UserError(
            f"{where}.column: id {examples['id'].iloc[row]}: {examples['group'].iloc[row]!r} in {column} is "
            "not an ISO 8601 date such as 2020-01-31 or 2020. Correct the row."
        )
    if "after" in split:
        day, cut = str(split["after"]), _date(str(split["after"]))
        if cut is None:
            raise UserError(f"{where}.after: {day!r} is not an ISO 8601 date such as 2020-01-31.")
        if len(day) <= len("2020-01-31"):  # a day: up to its end
            cut += datetime.timedelta(days=1, microseconds=-1)
    else:
        share, days = float(split["ood"]), sorted(set(dates))
        counts = dates.value_counts().reindex(days).to_numpy()
        later = 1 - counts.cumsum() / counts.sum()  # the share of the rows after each date
        best = int(np.abs(later - share).argmin())
        if not share / 2 <= later[best] <= 2 * share:
            raise UserError(
                f"{where}.ood: no date in {column} has near {share:.0%} of the rows after it (nearest: "
                f"{later[best]:.0%} after {days[best].isoformat()}). Ask for another share, or give `after`."
            )
        cut = days[best]
        day = _written(cut)
    ood = dates > cut
    if ood.all() or not ood.any():
        raise UserError(
            f"{where}.after: {'every' if ood.all() else 'no'} row is after {day}; {column} has "
            f"{_written(min(dates))} to {_written(max(dates))}."
        )
    group = pd.Series(np.where(ood, f"after {day}", f"until {day}"), index=examples.index)
    rule = f"out of domain: rows whose {column} is after {day}, {ood.mean():.1%} of the rows"
    return HeldOut(examples.assign(group=group, ood=ood), rule)


def _column(split: Mapping[str, Any]) -> str:
    """What messages call the source of the groups: a column that `split` names, or an adapter's option `group`."""
    return f"column {split['column']!r}" if "column" in split else "the option `group`"


def _date(text: str) -> datetime.datetime | None:
    """An ISO 8601 date or time, or a year, in UTC if there is no offset; None for anything else."""
    if text.isascii() and text.isdigit() and len(text) == 4:
        text += "-01-01"
    try:
        date = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=datetime.UTC)


def _written(date: datetime.datetime) -> str:
    midnight = date == date.replace(hour=0, minute=0, second=0, microsecond=0)
    return (date.date() if midnight else date).isoformat()
