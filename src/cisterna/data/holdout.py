"""Which rows of the user's table are out of domain: by group, by similarity or by time.

`hold_out` marks rows as out of domain. A list of groups in the config (`ood: [kinase]`) needs
nothing of this, and neither do data that come with splits. Not for drawing train, validation and
id, nor for the leakage audit: that is `cisterna.data.splits`.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cisterna.data import similarity
from cisterna.errors import UserError

NUMBERS = 20  # numbers of groups that are tried
DRAWS = 20  # of each number of groups


class HeldOut(NamedTuple):
    """Examples with `group` and `ood` as the split says, the rule in words, and the measure it went by."""

    examples: pd.DataFrame
    rule: str
    measure: similarity.Measure | None


def hold_out(examples: pd.DataFrame, split: Mapping[str, Any], seed: int, name: str) -> HeldOut:
    """Mark the examples of task `name` that are out of domain as its key `split` in the config says.

    by: group       whole groups of a column (`group` of the examples), drawn by `seed`, with about
                    the share `ood` of the rows
    by: similarity  the same with clusters: no row out of domain is nearer than `threshold` to one
                    in domain, by the measure that the leakage audit uses
    by: time        the rows later than a date (`group` of the examples): `after`, or the date that
                    leaves about the share `ood` of the rows

    The order of the rows does not matter. Raises UserError if whole groups or dates do not come near
    the share, for a date that cannot be read, and if no row is left on one side.
    """
    where = f"tasks.{name}.split"
    if split["by"] == "time":
        return _by_time(examples, split, where)
    if split["by"] == "group":
        ood = _draw(examples["group"], float(split["ood"]), seed, where, _column(split))
        rule = f"out of domain: groups of {_column(split)} with {ood.mean():.1%} of the rows, drawn by seed {seed}"
        return HeldOut(examples.assign(ood=ood), rule, None)
    sequences, threshold = list(examples["sequence"]), float(split["threshold"])
    measure = similarity.Measure.of(sequences)
    numbers = pd.Series(similarity.clusters(sequences, threshold, measure), index=examples.index)
    # A cluster is called by the first of its ids, so that its name does not depend on the order of the rows.
    groups = examples["id"].groupby(numbers).transform("min")
    what = f"clusters of sequences nearer than {threshold:g} ({measure})"
    ood = _draw(groups, float(split["ood"]), seed, where, what)
    rule = (
        f"out of domain: {groups[ood].nunique()} of {groups.nunique()} {what}, single linkage, with "
        f"{ood.mean():.1%} of the rows, drawn by seed {seed}"
    )
    return HeldOut(examples.assign(group=groups, ood=ood), rule, measure)


def check_distance(frames: Mapping[str, pd.DataFrame], threshold: float, measure: similarity.Measure) -> dict[str, Any]:
    """The least distance of any sequence of `ood` to any of the other splits, for the card.

    Raises UserError if it is below `threshold`.
    """
    others = [sequence for which in frames if which != "ood" for sequence in frames[which]["sequence"]]
    near = similarity.nearest(list(frames["ood"]["sequence"]), others, measure)
    least = float(near.min())
    if least < threshold - similarity.ROUNDING:
        row = int(near.argmin())
        raise UserError(
            f"leakage audit: row {row + 1} of ood (id {frames['ood']['id'].iloc[row]}) is {least:.4f} from a sequence "
            f"of another split, nearer than the threshold {threshold:g}. Delete the folder and rerun."
        )
    return {"measure": str(measure), "threshold": threshold, "least": round(least, 4), "sequences": len(near)}


def _draw(groups: pd.Series, share: float, seed: int, where: str, what: str) -> pd.Series:
    """Whether each row is held out: whole groups, with nearly `share` of the rows.

    Of DRAWS draws of each of several numbers of groups by scikit-learn's GroupShuffleSplit the first
    of those that are nearest to the share.
    """
    from sklearn.model_selection import GroupShuffleSplit

    names, numbers = np.unique(groups.to_numpy(dtype=str), return_inverse=True)
    if len(names) < 2:
        raise UserError(
            f"{where}: {what}: there is one, {str(names[0])!r}, and two are needed: one to train on, one to hold out. "
            + ("Lower the threshold." if "nearer" in what else "Name another column.")
        )
    rows = np.bincount(numbers)
    # Groups differ in size, so that the share of the rows is sought with several numbers of groups.
    counts = sorted({round(count) for count in np.linspace(1, len(names) - 1, NUMBERS)} | {round(share * len(names))})
    nearest, chosen = math.inf, np.zeros(0, np.int64)
    for count in counts:
        if not 0 < count < len(names):
            continue
        drawn = GroupShuffleSplit(n_splits=DRAWS, test_size=count, random_state=seed)
        for _, held_out in drawn.split(names, groups=names):  # a row a group: how many rows it has comes after
            off = abs(rows[held_out].sum() / rows.sum() - share)
            if off < nearest:
                nearest, chosen = off, held_out
    found = rows[chosen].sum() / rows.sum()
    if not share / 2 <= found <= 2 * share:
        largest = int(rows.argmax())
        raise UserError(
            f"{where}.ood: {what}: whole ones do not come near {share:.0%} of the rows (nearest: {found:.0%}). There "
            f"are {len(names)}; the largest, {str(names[largest])!r}, has {rows[largest] / rows.sum():.0%}. Ask for "
            "another share, " + ("or another threshold." if "nearer" in what else "or list the groups under `ood`.")
        )
    return pd.Series(np.isin(numbers, chosen), index=groups.index)


def _by_time(examples: pd.DataFrame, split: Mapping[str, Any], where: str) -> HeldOut:
    column = _column(split)
    dates = pd.Series([_date(text) for text in examples["group"]], index=examples.index)
    if dates.isna().any():
        row = int(dates.isna().to_numpy().argmax())
        raise UserError(
            f"{where}.column: id {examples['id'].iloc[row]}: {examples['group'].iloc[row]!r} in {column} is "
            "not a date as in ISO 8601, such as 2020-01-31 or 2020. Correct the row."
        )
    if "after" in split:
        day, cut = str(split["after"]), _date(str(split["after"]))
        if cut is None:
            raise UserError(f"{where}.after: {day!r} is not a date as in ISO 8601, such as 2020-01-31.")
        if len(day) <= len("2020-01-31"):  # a day, with all of its hours
            cut += datetime.timedelta(days=1, microseconds=-1)
    else:
        share, known = float(split["ood"]), sorted(set(dates))
        counts = dates.value_counts().reindex(known).to_numpy()
        later = 1 - counts.cumsum() / counts.sum()  # the share of the rows after each date
        best = int(np.abs(later - share).argmin())
        if not share / 2 <= later[best] <= 2 * share:
            raise UserError(
                f"{where}.ood: the dates in {column} do not come near {share:.0%} of the rows (nearest: "
                f"{later[best]:.0%} after {known[best].isoformat()}). Ask for another share, or give `after`."
            )
        cut = known[best]
        day = _written(cut)
    ood = dates > cut
    if ood.all() or not ood.any():
        raise UserError(
            f"{where}.after: {'every' if ood.all() else 'no'} row is after {day}; {column} has "
            f"{_written(min(dates))} to {_written(max(dates))}."
        )
    group = pd.Series(np.where(ood, f"after {day}", f"until {day}"), index=examples.index)
    rule = f"out of domain: rows whose {column} is after {day}, {ood.mean():.1%} of the rows"
    return HeldOut(examples.assign(group=group, ood=ood), rule, None)


def _column(split: Mapping[str, Any]) -> str:
    """Where the group of a row is from: a column that `split` names, or the option `group` of an adapter."""
    return f"column {split['column']!r}" if "column" in split else "the option `group`"


def _date(text: str) -> datetime.datetime | None:
    """A date or a time of ISO 8601, or a year; without an offset it is in UTC. None for anything else."""
    if text.isascii() and text.isdigit() and len(text) == 4:
        text += "-01-01"
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=datetime.UTC)


def _written(date: datetime.datetime) -> str:
    midnight = date == date.replace(hour=0, minute=0, second=0, microsecond=0)
    return (date.date() if midnight else date).isoformat()
