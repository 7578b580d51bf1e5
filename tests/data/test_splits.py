"""Splits and the leakage audit, on the tables that ship."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cisterna import tasks
from cisterna.artifacts import files
from cisterna.data import splits
from cisterna.data.audit import audit, audit_folder
from cisterna.data.drawing import COLUMNS, draw_splits, without_repeats
from cisterna.errors import UserError
from cisterna.tasks.builtin import splice_donor
from cisterna.tasks.catalog import LABELS

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"train": 200, "validation": 40, "id": 80, "ood": 90}


@pytest.fixture(autouse=True)
def _root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def examples():
    os.chdir(ROOT)
    return tasks.read(tasks.load("splice-donor", {}))


@pytest.fixture(scope="module")
def frames(examples):
    return draw_splits(examples, SIZES, 0, "splice-donor", quoted=True)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.mark.parametrize("name", LABELS)
def test_every_built_in_task_is_prepared_and_passes_its_audit(name, tmp_path):
    output = tmp_path / name
    segments = tasks.read(tasks.load(name, {})).set_index("id")["segments"]
    splits.prepare(name, SIZES, 0, output)
    assert sorted(contents(output)) == sorted([*(f"{s}.parquet" for s in SIZES), "card.json"])
    card = json.loads((output / "card.json").read_text())
    for which, size in SIZES.items():
        frame = pd.read_parquet(output / f"{which}.parquet")
        assert tuple(frame.columns) == COLUMNS
        assert [list(parts) for parts in frame["segments"]] == list(segments[frame["id"]])
        assert len(frame) == size == card["splits"][which]["rows"]
        assert card["splits"][which]["labels"] == {
            label: int((frame["answer"] == label).sum()) for label in LABELS[name]
        }
    assert card["labels"] == list(LABELS[name])
    assert set(card["audit"]["nearest_train"]) == {"validation", "id", "ood"}
    assert audit_folder(output) == card["audit"]
    for which in SIZES:
        assert card["files"][f"{which}.parquet"] == files.sha256(output / f"{which}.parquet")
        assert splits.check(output, which, card) == output / f"{which}.parquet"


def test_split_that_is_not_the_one_of_its_card_is_refused(tmp_path):
    splits.prepare("splice-donor", SIZES, 0, tmp_path / "t")
    card = splits.read_card(tmp_path / "t")
    (tmp_path / "t/id.parquet").write_bytes((tmp_path / "t/ood.parquet").read_bytes())
    with pytest.raises(UserError, match=r"t/id\.parquet: its SHA-256"):
        splits.check(tmp_path / "t", "id", card)
    (tmp_path / "t/id.parquet").unlink()
    with pytest.raises(UserError, match=r"t/id\.parquet: no such file"):
        splits.check(tmp_path / "t", "id", card)


def test_card_that_is_missing_or_says_no_hashes_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"card\.json: no such file"):
        splits.read_card(tmp_path)
    (tmp_path / "card.json").write_text('{"task": "splice-donor"}')
    with pytest.raises(UserError, match=r"card\.json: .*SHA-256"):
        splits.read_card(tmp_path)


def test_card_keeps_what_the_config_says_of_the_task(tmp_path):
    spec = SIZES | {"sequences": ["tokens", "features"], "encoder": "nano-esm"}
    splits.prepare("splice-donor", spec, 0, tmp_path / "t")
    card = json.loads((tmp_path / "t/card.json").read_text())
    assert (card["task"], card["spec"], card["modality"]) == ("splice-donor", spec, "rna")


@pytest.mark.parametrize("wrong", ["start", "number"])
def test_task_whose_segments_are_not_its_stretches_is_a_bug_and_not_data(tmp_path, monkeypatch, wrong):
    original = splice_donor.segments
    broken = {
        "start": lambda sequence: [part | {"start": part["start"] + 1} for part in original(sequence)],
        "number": lambda sequence: original(sequence)[:1],
    }
    monkeypatch.setattr(splice_donor, "segments", broken[wrong])
    with pytest.raises(ValueError, match=r"its segments|zip"):
        splits.prepare("splice-donor", SIZES, 0, tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        splits.prepare("cell-type", SIZES, 3, tmp_path / folder)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_another_seed_gives_other_splits(examples, frames):
    other = draw_splits(examples, SIZES, 1, "splice-donor", quoted=True)
    assert set(other["id"]["id"]) != set(frames["id"]["id"])


def test_the_order_of_the_table_does_not_matter(examples, frames):
    shuffled = draw_splits(examples.sample(frac=1, random_state=1), SIZES, 0, "t", quoted=True)
    for which in SIZES:
        pd.testing.assert_frame_equal(shuffled[which], frames[which])


def test_more_train_rows_leave_the_other_splits_as_they_are(examples, frames):
    more = draw_splits(examples, {**SIZES, "train": 500}, 0, "splice-donor", quoted=True)
    for which in ("validation", "id", "ood"):
        pd.testing.assert_frame_equal(more[which], frames[which])
    pd.testing.assert_frame_equal(more["train"].head(SIZES["train"]), frames["train"])


def test_splits_are_disjoint_and_only_ood_is_out_of_domain(examples, frames):
    ids = [identifier for frame in frames.values() for identifier in frame["id"]]
    assert len(ids) == len(set(ids)) == sum(SIZES.values())
    outside = set(examples["id"][examples["ood"]])
    assert set(frames["ood"]["id"]) <= outside
    for which in ("train", "validation", "id"):
        assert not set(frames[which]["id"]) & outside


def test_rows_quoted_by_the_tokenizers_text_are_never_tested_on(frames):
    for which in ("validation", "id"):
        assert not frames[which]["id"].map(tasks.quotable).any()
    assert frames["train"]["id"].map(tasks.quotable).any()


@pytest.mark.parametrize(
    ("which", "size"), [*zip(SIZES, [0, -1, None, 2.5], strict=True), ("train", "many"), ("validation", True)]
)
def test_a_size_that_is_no_number_of_rows_is_refused(examples, which, size):
    with pytest.raises(UserError, match=rf"tasks\.my-task\.{which}: .* is not a size"):
        draw_splits(examples, {**SIZES, which: size}, 0, "my-task")


@pytest.mark.parametrize("which", SIZES)
def test_a_split_that_cannot_be_filled_is_refused_with_the_numbers(examples, which):
    with pytest.raises(UserError, match=rf"tasks\.t\.{which}: asks for 99999 rows but \d+ are left"):
        draw_splits(examples, {**SIZES, which: 99999}, 0, "t")


def test_all_of_train_is_what_the_other_splits_leave(examples, frames):
    whole = draw_splits(examples, {**SIZES, "train": "all"}, 0, "splice-donor", quoted=True)
    for which in ("validation", "id", "ood"):
        pd.testing.assert_frame_equal(whole[which], frames[which])
    tested = set(frames["validation"]["id"]) | set(frames["id"]["id"])
    assert set(whole["train"]["id"]) == set(examples["id"][~examples["ood"]]) - tested


def test_all_of_validation_is_refused(examples):
    with pytest.raises(UserError, match=r"tasks\.t\.validation: 'all' is not a size"):
        draw_splits(examples, {**SIZES, "validation": "all"}, 0, "t")


def given_splits(sequences, prompts, names):
    """Examples of data that come with splits."""
    count = len(names)
    return pd.DataFrame(
        {
            "id": [f"r{number}" for number in range(count)],
            "prompt": prompts,
            "segments": [[] for _ in range(count)],
            "reasoning": "",
            "answer": "x",
            "sequence": sequences,
            "group": ["out" if name == "ood" else "in" for name in names],
            "ood": [name == "ood" for name in names],
            "split": names,
        }
    )


@given(
    st.lists(
        st.tuples(st.sampled_from("ABCDEFGH"), st.sampled_from("pqrst"), st.sampled_from(["train", "id", "ood"])),
        min_size=1,
    )
)
def test_repeats_of_given_splits_are_dropped_so_that_none_is_left_whatever_the_table(rows):
    sequences, prompts, names = zip(*rows, strict=True)
    whole = given_splits(list(sequences), list(prompts), list(names))
    left, dropped = without_repeats(whole)
    assert len(whole) - len(left) == sum(entry["rows"] for entry in dropped)
    assert not left.duplicated(["prompt"]).any()
    assert left.groupby("sequence")["split"].nunique().max() == 1
    assert set(left["id"]) <= set(whole["id"])
    outside = whole[whole["ood"]]
    assert (left["split"] == "ood").sum() == outside["prompt"].nunique()  # nothing else is dropped from ood


def test_given_splits_are_never_mixed(frames):
    names = ["train"] * 30 + ["id"] * 10 + ["ood"] * 10
    whole = given_splits([f"s{n}" for n in range(50)], [f"p{n}" for n in range(50)], names)
    sizes = {"train": "all", "validation": 5, "id": 8, "ood": "all"}
    drawn = draw_splits(whole, sizes, 0, "t")
    assert {which: len(frame) for which, frame in drawn.items()} == {"train": 25, "validation": 5, "id": 8, "ood": 10}
    home = dict(zip(whole["id"], names, strict=True))
    for which, frame in drawn.items():
        assert set(frame["id"].map(home)) == {"train" if which == "validation" else which}
    with pytest.raises(UserError, match=r"tasks\.t\.id: asks for 11 rows but 10 are left"):
        draw_splits(whole, {**sizes, "id": 11}, 0, "t")


@pytest.mark.parametrize("given_id", [True, False])
def test_a_sequence_of_two_questions_is_on_one_side_of_what_is_drawn_from_train(given_id):
    sequences = [f"s{n % 40}" for n in range(80)] + [f"other{n}" for n in range(20)]
    names = ["train"] * 80 + ["id" if given_id else "ood"] * 10 + ["ood"] * 10
    whole = given_splits(sequences, [f"p{n}" for n in range(100)], names)
    drawn = draw_splits(whole, {"train": "all", "validation": 6, "id": 6, "ood": "all"}, 0, "t")
    audit(drawn)
    left_out = drawn["train"].attrs["dropped"]
    counts = {entry["reason"].split(",")[1].split()[-1]: entry["rows"] for entry in left_out}
    from_train = 80 - sum(counts.values()) - 6 - (0 if given_id else 6)
    assert set(counts) == ({"validation"} if given_id else {"id", "validation"})
    assert len(drawn["train"]) == from_train
    assert len(drawn["validation"]) == len(drawn["id"]) == 6


@pytest.mark.parametrize("which", SIZES)
def test_audit_finds_a_row_that_is_twice_in_one_split(frames, which):
    doubled = frames | {which: pd.concat([frames[which], frames[which].head(1)], ignore_index=True)}
    with pytest.raises(UserError, match=rf"row 1 of {which} .*row {SIZES[which] + 1} of {which}"):
        audit(doubled)


@pytest.mark.parametrize("which", ["train", "validation", "id"])
def test_audit_finds_a_held_out_group_in_another_split(frames, which):
    planted = {name: frame.copy() for name, frame in frames.items()}
    planted[which].loc[0, "group"] = "GC"
    with pytest.raises(UserError, match=rf"group that is also in {which}.*'GC'"):
        audit(planted)


@pytest.mark.parametrize("which", SIZES)
def test_audit_refuses_an_empty_split(frames, which):
    with pytest.raises(UserError, match=f"split {which} is empty"):
        audit({**frames, which: frames[which].head(0)})


@given(st.data())
@settings(max_examples=25)
def test_audit_finds_a_leak_wherever_it_is(frames, data_):
    first, second = data_.draw(st.permutations(list(SIZES)))[:2]
    column = data_.draw(st.sampled_from(["id", "sequence", "prompt"]))
    source = data_.draw(st.integers(0, SIZES[first] - 1))
    target = data_.draw(st.integers(0, SIZES[second] - 1))
    planted = {which: frame.copy() for which, frame in frames.items()}
    planted[second].loc[target, column] = planted[first].loc[source, column]
    with pytest.raises(UserError, match="leakage audit") as caught:
        audit(planted)
    assert f"row {source + 1} of {first}" in str(caught.value)
    assert f"row {target + 1} of {second}" in str(caught.value)


def test_audit_folder_catches_a_file_that_was_changed_afterwards(tmp_path):
    splits.prepare("cell-type", SIZES, 0, tmp_path / "t")
    train = pd.read_parquet(tmp_path / "t/train.parquet")
    splits.write(pd.concat([train.head(1), train.iloc[2:]]), tmp_path / "t/train.parquet")
    audit_folder(tmp_path / "t")
    test = pd.read_parquet(tmp_path / "t/id.parquet")
    splits.write(pd.concat([train, test.head(1)]), tmp_path / "t/train.parquet")
    with pytest.raises(UserError, match=r"row 201 of train.*row 1 of id"):
        audit_folder(tmp_path / "t")


def test_audit_folder_names_a_missing_or_broken_file(tmp_path):
    with pytest.raises(UserError, match=r"train\.parquet: no such file"):
        audit_folder(tmp_path)
    splits.prepare("cell-type", SIZES, 0, tmp_path / "t")
    (tmp_path / "t/ood.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"ood\.parquet: not a readable Parquet file"):
        audit_folder(tmp_path / "t")


def test_a_failure_leaves_the_earlier_output_whole_and_nothing_beside_it(tmp_path):
    splits.prepare("cell-type", SIZES, 0, tmp_path / "t")
    before = contents(tmp_path / "t")
    with pytest.raises(UserError):
        splits.prepare("cell-type", {**SIZES, "ood": 5000}, 0, tmp_path / "t")
    assert contents(tmp_path / "t") == before
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_a_failure_while_writing_leaves_no_half_written_folder(tmp_path, monkeypatch):
    written = []

    def fail_at_the_third(frame, path):
        if len(written) == 2:
            raise OSError("No space left on device")
        written.append(path)
        path.write_bytes(b"half")

    monkeypatch.setattr(splits, "write", fail_at_the_third)
    with pytest.raises(OSError, match="No space left"):
        splits.prepare("cell-type", SIZES, 0, tmp_path / "t")
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_output_is_replaced_as_a_whole(tmp_path):
    output = tmp_path / "t"
    output.mkdir()
    (output / "stale.parquet").write_bytes(b"old")
    splits.prepare("cell-type", SIZES, 0, output)
    assert not (output / "stale.parquet").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_out_of_domain_is_further_from_train_than_id(frames):
    nearest = audit(frames)["nearest_train"]
    assert nearest["ood"]["quantiles"]["0.5"] > nearest["id"]["quantiles"]["0.5"]
    assert nearest["id"]["quantiles"]["0"] > 0
