"""OOD rows chosen by group, similarity or time: nothing leaks, whatever the table. And the distance behind it."""

import datetime
import random

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cisterna import tasks
from cisterna.constants import SPLITS
from cisterna.data import holdout, similarity, splits
from cisterna.data.audit import audit_folder
from cisterna.errors import UserError
from studies import OWN_TABLE

SIZES = {"train": 30, "validation": 5, "id": 10}
COLUMNS = {"id": "variant", "sequence": "seq", "label": "class"}
GROUP = {"by": "group", "column": "family", "ood": 0.2}
SIMILARITY = {"by": "similarity", "ood": 0.2, "threshold": 0.4}
TIME = {"by": "time", "column": "date", "ood": 0.2}


def rows(count=100, families=12, seed=0):
    """Proteins in families: variants of one parent each, with a date."""
    draw = random.Random(seed)
    parents = ["".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=40)) for _ in range(families)]
    found = []
    for number in range(count):
        family = draw.randrange(families)
        sequence = list(parents[family])
        for place in draw.sample(range(40), 2):
            sequence[place] = draw.choice("ACDEFGHIKLMNPQRSTVWY")
        found.append(
            {
                "variant": f"v{number}",
                "seq": "".join(sequence),
                "class": draw.choice(["low", "high"]),
                "family": f"f{family}",
                "date": (datetime.date(2015, 1, 1) + datetime.timedelta(days=draw.randrange(2000))).isoformat(),
            }
        )
    return pd.DataFrame(found).drop_duplicates("seq", ignore_index=True)


def spec(path, split, **changes):
    table = {key: value for key, value in OWN_TABLE.items() if key != "ood"}
    return table | {"file": str(path), "columns": COLUMNS, "split": split} | SIZES | changes


def prepare(folder, frame, split, seed=0, **changes):
    """The splits of a table, with the columns of the table, and the card."""
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_csv(folder / "table.csv", index=False)
    splits.prepare("mine", spec(folder / "table.csv", split, **changes), seed, folder / "out")
    frames = {which: pd.read_parquet(folder / f"out/{which}.parquet") for which in SPLITS}
    known = frame.set_index("variant")
    return {which: part.join(known, on="id") for which, part in frames.items()}, splits.read_card(folder / "out")


def inside(frames):
    return pd.concat([frames[which] for which in ("train", "validation", "id")])


# --- Each way ---


def test_whole_groups_are_held_out_with_about_the_share_of_the_rows(tmp_path):
    frame = rows()
    frames, card = prepare(tmp_path, frame, GROUP)
    held_out = set(frames["ood"]["family"])
    assert not held_out & set(inside(frames)["family"])
    assert set(frames["ood"]["id"]) == set(frame["variant"][frame["family"].isin(held_out)])
    assert list(frames["ood"]["group"]) == list(frames["ood"]["family"])
    assert 0.15 <= len(frames["ood"]) / len(frame) <= 0.25
    assert card["rule"].startswith("out of domain: groups of column 'family' with ")
    assert "drawn by seed 0. id, validation and train are drawn from the other rows" in card["rule"]


def test_no_sequence_out_of_domain_is_nearer_to_one_in_domain_than_the_threshold(tmp_path):
    frame = rows()
    frames, card = prepare(tmp_path, frame, SIMILARITY)
    near = [
        sum(a != b for a, b in zip(left, right, strict=True)) / 40
        for left in frames["ood"]["seq"]
        for right in inside(frames)["seq"]
    ]
    assert min(near) >= 0.4
    found = card["audit"]["held_out"]
    assert found["measure"] == "hamming / length"
    assert (found["threshold"], found["sequences"]) == (0.4, len(frames["ood"]))
    assert found["least"] == pytest.approx(min(near), abs=1e-4)
    assert not set(frames["ood"]["family"]) & set(inside(frames)["family"])  # as families are far from each other
    assert "clusters of sequences nearer than 0.4 (hamming / length), single linkage" in card["rule"]
    assert audit_folder(tmp_path / "out") == card["audit"]


def test_audit_finds_a_sequence_that_came_too_near_afterwards(tmp_path):
    prepare(tmp_path, rows(), SIMILARITY)
    train = pd.read_parquet(tmp_path / "out/train.parquet")
    near = pd.read_parquet(tmp_path / "out/ood.parquet")["sequence"][3]
    train.loc[0, "sequence"] = near[:-1] + ("A" if near[-1] != "A" else "C")
    splits.write(train, tmp_path / "out/train.parquet")
    with pytest.raises(UserError, match=r"leakage audit: row \d+ of ood \(id v\d+\) is 0\.0250 from a sequence"):
        audit_folder(tmp_path / "out")


def test_later_rows_are_held_out(tmp_path):
    frame = rows()
    frames, card = prepare(tmp_path, frame, TIME)
    last = max(inside(frames)["date"])
    assert last < min(frames["ood"]["date"])
    assert 0.15 <= len(frames["ood"]) / len(frame) <= 0.25
    cut = frames["ood"]["group"].iloc[0].removeprefix("after ")
    assert set(frames["ood"]["group"]) == {f"after {cut}"}
    assert set(inside(frames)["group"]) == {f"until {cut}"}
    assert f"rows whose column 'date' is after {cut}" in card["rule"]


@pytest.mark.parametrize("after", ["2018-05-01", "2018-05-01T00:00:00", "20180501"])
def test_rows_after_a_date_are_held_out_and_those_of_the_day_are_not(tmp_path, after):
    frame = rows()
    frame.loc[:9, "date"] = "2018-05-01"
    split = {"by": "time", "column": "date", "after": after}
    frames, _ = prepare(tmp_path, frame, split)
    assert set(frames["ood"]["id"]) == set(frame["variant"][frame["date"] > "2018-05-01"])


def test_hours_of_the_day_named_are_not_after_it(tmp_path):
    frame = rows()
    frame["date"] = [f"2020-01-{1 + number % 20:02d}T12:00:00+00:00" for number in range(len(frame))]
    frames, _ = prepare(tmp_path, frame, {"by": "time", "column": "date", "after": "2020-01-15"})
    assert min(frames["ood"]["date"]) == "2020-01-16T12:00:00+00:00"


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_years_and_times_are_dates(tmp_path, suffix):
    frame = rows()
    kind = {".parquet": pd.to_datetime(frame["date"]), ".jsonl": frame["date"].str[:4].astype(int)}
    frame["date"] = kind.get(suffix, frame["date"] + "T10:00:00Z")
    path = tmp_path / f"table{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(path)
    elif suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False)
    splits.prepare("mine", spec(path, {"by": "time", "column": "date", "after": "2018-12-31"}), 0, tmp_path / "out")
    later = set(frame["variant"][frame["date"].astype(str).str[:4] >= "2019"])
    assert set(pd.read_parquet(tmp_path / "out/ood.parquet")["id"]) == later


def test_fewer_ood_rows_may_be_tested(tmp_path):
    whole, _ = prepare(tmp_path / "a", rows(), GROUP)
    part, card = prepare(tmp_path / "b", rows(), GROUP, ood=7)
    pd.testing.assert_frame_equal(part["ood"], whole["ood"].head(7))
    pd.testing.assert_frame_equal(part["train"], whole["train"])
    assert card["splits"]["ood"]["rows"] == 7


@pytest.mark.parametrize("split", [GROUP, SIMILARITY, TIME], ids=lambda split: split["by"])
def test_the_same_seed_gives_the_same_splits_whatever_the_order_of_the_rows(tmp_path, split):
    first, _ = prepare(tmp_path / "a", rows(), split)
    second, _ = prepare(tmp_path / "b", rows().sample(frac=1, random_state=1), split)
    for which in SPLITS:
        pd.testing.assert_frame_equal(first[which], second[which])


def test_a_sequence_that_is_measured_again_stays_on_its_earliest_date_whatever_the_order(tmp_path):
    frame = rows()
    again = frame.head(30).assign(date="2021-01-01", variant=[f"again{number}" for number in range(30)])
    for order in (pd.concat([frame, again]), pd.concat([again, frame])):
        frames, _ = prepare(tmp_path, order, {"by": "time", "column": "date", "after": "2018-12-31"})
        everything = pd.concat(frames.values())
        assert not everything["id"].str.startswith("again").any()
        assert set(frames["ood"]["id"]) == set(frame["variant"][frame["date"] > "2018-12-31"])


@pytest.mark.parametrize("split", [GROUP, SIMILARITY], ids=lambda split: split["by"])
def test_another_seed_holds_out_other_groups(tmp_path, split):
    drawn = {frozenset(prepare(tmp_path / str(seed), rows(), split, seed)[0]["ood"]["family"]) for seed in range(4)}
    assert len(drawn) > 1


@pytest.mark.parametrize("split", [GROUP, SIMILARITY, TIME], ids=lambda split: split["by"])
def test_a_smaller_train_leaves_the_other_splits_as_they_are(tmp_path, split):
    whole, _ = prepare(tmp_path / "a", rows(), split)
    part, _ = prepare(tmp_path / "b", rows(), split, train=12)
    for which in ("validation", "id", "ood"):
        pd.testing.assert_frame_equal(part[which], whole[which])


# --- Any table ---


@st.composite
def tables(draw):
    """Examples with any sequences, groups and dates: frames as `tasks.read` gives them."""
    count = draw(st.integers(4, 24))
    sequences = draw(st.lists(st.text("ACGT", min_size=1, max_size=12), min_size=count, max_size=count, unique=True))
    groups = draw(st.lists(st.sampled_from("abcdef"), min_size=count, max_size=count))
    return pd.DataFrame({"id": [f"r{n}" for n in range(count)], "sequence": sequences, "group": groups, "ood": False})


def held_out(frame, split, seed=0):
    """What `hold_out` gives, or nothing where it refuses the table."""
    try:
        return holdout.hold_out(frame, split, seed, "mine")
    except UserError:
        assume(False)


@given(tables(), st.sampled_from([0.1, 0.25, 0.5]), st.integers(0, 5))
@settings(max_examples=60)
def test_no_group_is_on_both_sides_whatever_the_table(frame, share, seed):
    found = held_out(frame, {"by": "group", "column": "g", "ood": share}, seed).examples
    assert not set(found["group"][found["ood"]]) & set(found["group"][~found["ood"]])
    assert share / 2 <= found["ood"].mean() <= 2 * share
    assert 0 < found["ood"].sum() < len(found)


@given(tables(), st.sampled_from([0.1, 0.3, 0.6, 0.9, 1.0]), st.integers(0, 5))
@settings(max_examples=100)
def test_no_pair_over_the_split_is_nearer_than_the_threshold_whatever_the_table(frame, threshold, seed):
    found = held_out(frame, {"by": "similarity", "threshold": threshold, "ood": 0.3}, seed)
    examples = found.examples
    assert not set(examples["group"][examples["ood"]]) & set(examples["group"][~examples["ood"]])
    for left in examples["sequence"][examples["ood"]]:
        for right in examples["sequence"][~examples["ood"]]:
            assert distance(left, right, found.measure) >= threshold - 1e-6


@given(tables(), st.data())
@settings(max_examples=60)
def test_no_row_in_domain_is_later_than_one_out_of_domain_whatever_the_table(frame, data_):
    days = data_.draw(st.lists(st.integers(0, 8), min_size=len(frame), max_size=len(frame)))
    frame["group"] = [f"2020-01-{1 + day:02d}" for day in days]
    found = held_out(frame, {"by": "time", "column": "d", "ood": 0.3}).examples
    dates = frame["group"]
    assert max(dates[~found["ood"]]) < min(dates[found["ood"]])


# --- Mistakes ---


@pytest.mark.parametrize(
    ("frame", "split", "pattern"),
    [
        (rows(families=1), GROUP, r"tasks\.mine\.split: column 'family': .*'f0'.*Name another column"),
        (rows(families=2), GROUP | {"ood": 0.05}, r"split\.ood: column 'family': .* 5% .*list"),
        (rows(families=1), SIMILARITY, r"split: clusters of sequences nearer than 0\.4.*Lower the threshold"),
        (rows().assign(family=""), GROUP, r"row 1: column 'family' is empty"),
        (rows(), GROUP | {"column": "clan"}, r"no column 'clan' \(split\.column\)"),
        (rows(), TIME | {"column": "family"}, r"split\.column: id v0: 'f\d+' in column 'family' .*date"),
        (rows().assign(date="2020-01-01"), TIME, r"split\.ood: .*column 'date' .*20%"),
        (rows(), {"by": "time", "column": "date", "after": "2030-01-01"}, r"split\.after: no row is after 2030-01-01"),
        (
            rows(),
            {"by": "time", "column": "date", "after": "1999-01-01"},
            r"split\.after: every row is after 1999-01-01",
        ),
        (rows(), {"by": "time", "column": "date", "after": "soon"}, r"split\.after: 'soon' .*date"),
    ],
)
def test_what_cannot_be_split_is_refused_and_writes_nothing(tmp_path, frame, split, pattern):
    with pytest.raises(UserError, match=pattern):
        prepare(tmp_path, frame, split)
    assert not (tmp_path / "out").exists()


# --- The distance ---


def words(sequence, size):
    return {sequence[start : start + size] for start in range(max(1, len(sequence) - size + 1))}


def distance(left, right, measure):
    if measure.kind == "positions":
        return sum(a != b for a, b in zip(left, right, strict=True)) / len(left)
    one, two = (set(text.split()) if measure.kind == "genes" else words(text, measure.word) for text in (left, right))
    return 1 - len(one & two) / len(one | two)


equal = st.lists(st.text(alphabet="ACGT", min_size=6, max_size=6), min_size=1, max_size=6)
unequal = st.lists(st.text(alphabet="ACGT", min_size=1, max_size=12), min_size=1, max_size=6)
genes = st.lists(
    st.lists(st.sampled_from("ABCDEF"), min_size=2, max_size=5, unique=True).map(" ".join), min_size=1, max_size=6
)


@given(st.sampled_from([equal, unequal, genes]).flatmap(lambda kind: st.tuples(kind, kind)))
@settings(max_examples=300)
def test_distance_to_the_nearest_is_that_of_all_pairs(both):
    left, right = both
    measure = similarity.Measure.of([*left, *right])
    expected = [min(distance(x, y, measure) for y in right) for x in left]
    np.testing.assert_allclose(similarity.nearest(left, right, measure), expected, atol=1e-6)


@given(st.sampled_from([equal, unequal, genes]).flatmap(lambda kind: kind), st.sampled_from([0.2, 0.5, 1.0]))
@settings(max_examples=200)
def test_clusters_are_those_of_single_linkage(sequences, threshold):
    measure = similarity.Measure.of(sequences)
    expected = list(range(len(sequences)))
    for first, left in enumerate(sequences):
        for second, right in enumerate(sequences):
            if distance(left, right, measure) < threshold - similarity.ROUNDING:
                old, new = expected[second], expected[first]
                expected = [new if number == old else number for number in expected]
    found = similarity.clusters(sequences, threshold, measure)
    pairs = {(number, name) for number, name in zip(found, expected, strict=True)}
    assert len(pairs) == len(set(found)) == len(set(expected))


def test_words_that_are_too_many_for_a_column_each_are_compared_too():
    sequences = list(rows(30)["seq"])
    measure = similarity.Measure("words", 7)
    assert similarity.WIDEST < 21**7
    expected = [min(distance(left, right, measure) for right in sequences[10:]) for left in sequences[:10]]
    np.testing.assert_allclose(similarity.nearest(sequences[:10], sequences[10:], measure), expected, atol=1e-9)


def test_clusters_do_not_depend_on_the_size_of_a_block(monkeypatch):
    sequences = list(rows()["seq"])
    measure = similarity.Measure.of(sequences)
    whole = similarity.clusters(sequences, 0.4, measure)
    monkeypatch.setattr(similarity, "BLOCK", 3 * len(sequences))
    parts = similarity.clusters(sequences, 0.4, measure)
    assert len(set(zip(whole, parts, strict=True))) == len(set(whole)) == len(set(parts)) == 12


@pytest.mark.parametrize(
    ("sequences", "expected"),
    [
        (["ACGT" * 10, "ACGA" * 10], "hamming / length"),
        (["ACG", "AC"], "jaccard of 5-mers"),  # log4(99 x 3) = 4.1
        (["ACGT" * 150, "ACGA" * 150], "jaccard of 8-mers"),  # windows, not variants of one parent: log4(59400) = 7.9
        (["ACDEFGHIKLMNPQRSTVWY", "ACD"], "jaccard of 3-mers"),  # log20(1980) = 2.5
        (["CD4 CD8", "CD8"], "jaccard of genes"),
    ],
)
def test_measure_is_chosen_by_the_sequences_and_read_back_from_its_name(sequences, expected):
    measure = similarity.Measure.of(sequences)
    assert str(measure) == expected
    assert similarity.Measure.named(expected) == measure


def test_windows_of_a_genome_are_near_where_they_overlap():
    draw = random.Random(0)
    genome = "".join(draw.choices("ACGT", k=6000))
    windows = [genome[:2049], genome[40:2089], genome[3000:5049]]
    near = similarity.nearest(windows[1:], windows[:1], similarity.Measure.of(windows))
    assert near[0] < 0.1
    assert near[1] > 0.95


# --- From a config on ---


def test_adapter_with_groups_can_be_split_too(tmp_path):
    """The option `group` of an adapter takes the place of the column."""
    frame = rows()
    examples = pd.DataFrame({"id": frame["variant"], "sequence": frame["seq"], "group": frame["family"], "ood": False})
    found = holdout.hold_out(examples, {"by": "group", "ood": 0.2}, 0, "blood")
    assert found.rule.startswith("out of domain: groups of the option `group` with ")
    assert found.examples["ood"].any()


def test_table_that_is_split_reads_as_in_domain_until_it_is(tmp_path):
    rows().to_csv(tmp_path / "t.csv", index=False)
    task = tasks.load("mine", spec(tmp_path / "t.csv", SIMILARITY))
    assert not tasks.read(task)["ood"].any()
