"""The KEGG adapter, on small data of its schema: files, a folder that `datasets` reads, and every mistake in them."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cisterna import study, tasks
from cisterna.artifacts import files
from cisterna.constants import SPLITS
from cisterna.data import splits
from cisterna.data.audit import audit_folder
from cisterna.errors import UserError
from cisterna.tasks.adapters import kegg, published, variants
from tiny import READING

ROOT = Path(__file__).resolve().parents[2]
ROWS = {"train": 40, "id": 12, "ood": 14}
FLANK = 20
DISEASES = ["Parkinson's disease; H00057", "Cystic fibrosis", "Amyotrophic lateral sclerosis (ALS)"]
BASES = st.text("ACGT", min_size=1, max_size=30)


def rows(split, count, start=0):
    """Rows of the published schema without mistakes, every one another variant of another place."""
    draw = random.Random(f"{split} {start}")
    found = []
    for number in range(start, start + count):
        reference = "".join(draw.choices("ACGT", k=draw.randint(61, 90)))
        place = draw.randrange(len(reference))
        new = draw.choice(sorted(set("ACGT") - {reference[place]}))
        found.append(
            {
                "question": f"Network of the pathway: GENE{number}* -> apoptosis ({split}). Which disease is it?",
                "answer": DISEASES[number % 3],
                "reasoning": f"Step 1: GENE{number} is changed.\nStep 2: its pathway fails.",
                "reference_sequence": reference,
                "variant_sequence": reference[:place] + new + reference[place + 1 :],
            }
        )
    return pd.DataFrame(found)


def save(folder, **changed):
    """The three files of the data, with the frames of `changed` in place of theirs; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in ROWS.items():
        changed.get(split, rows(split, count)).to_csv(folder / f"{split}.csv", index=False)
    return [str(folder / f"{split}.csv") for split in ROWS]


def entry(source, **changes):
    key = "file" if isinstance(source, list) else "hub"
    return {"adapter": "kegg", key: source, "validation": 5, "options": {"flank": FLANK}} | changes


def prepare(output, source, **changes):
    splits.prepare("kegg", entry(source, **changes), 0, output)
    return {which: pd.read_parquet(output / f"{which}.parquet") for which in SPLITS}, splits.read_card(output)


def refused(source, pattern, **changes):
    with pytest.raises(UserError, match=pattern):
        tasks.read(tasks.load("kegg", entry(source, **changes)))


def test_docstring_example_is_true(tmp_path):
    documented = " ".join(kegg.__doc__.split())
    row = {
        "question": "Network of the pathway: SOD1* -> apoptosis. What does this allele contribute to?",
        "answer": "Amyotrophic lateral sclerosis (ALS); H00058",
        "reasoning": "['The variant replaces alanine 4 of SOD1.', 'SOD1 then aggregates.']",
        "reference_sequence": "AGTTATGGCGACGAAGGCCGTGTGCGTGC",
        "variant_sequence": "AGTTATGGCGACGAAGGTCGTGTGCGTGC",
    }
    assert " ".join(f"{name} {value}" for name, value in row.items()) in documented
    paths = save(tmp_path, train=pd.DataFrame([row]))
    example = tasks.read(tasks.load("kegg", entry(paths, options={"flank": 8, "answer_form": True}))).iloc[0]
    fields = f"prompt {example['prompt']} trace {example['reasoning']} answer {example['answer']}"
    assert " ".join(fields.split()) in documented


def test_three_files_are_train_id_and_ood_and_validation_is_drawn_from_train(tmp_path):
    paths = save(tmp_path / "raw")
    frames, card = prepare(tmp_path / "out", paths)
    assert {which: len(frame) for which, frame in frames.items()} == ROWS | {"train": 35, "validation": 5}
    for which in ("id", "ood"):
        assert {identifier.partition("-")[0] for identifier in frames[which]["id"]} == {which}
        assert set(frames[which]["reasoning"]) == set(rows(which, ROWS[which])["reasoning"])
    inside = set(frames["train"]["id"]) | set(frames["validation"]["id"])
    assert inside == {f"train-{number}" for number in range(1, 41)}
    assert card["source"] == {path: files.sha256(Path(path)) for path in paths}
    assert card["labels"] == ["amyotrophic lateral sclerosis (als)", "cystic fibrosis", "parkinson's disease"]
    assert "dropped" not in card
    assert "validation and train are drawn from its train" in card["rule"]
    assert audit_folder(tmp_path / "out") == card["audit"]


def test_a_smaller_train_leaves_the_other_splits_as_they_are(tmp_path):
    paths = save(tmp_path / "raw")
    whole, _ = prepare(tmp_path / "all", paths)
    part, _ = prepare(tmp_path / "part", paths, train=10, id=6)
    for which in ("validation", "ood"):
        pd.testing.assert_frame_equal(part[which], whole[which])
    pd.testing.assert_frame_equal(part["train"], whole["train"].head(10))
    pd.testing.assert_frame_equal(part["id"], whole["id"].head(6))


def test_more_rows_in_the_file_of_train_leave_id_and_ood_as_they_are(tmp_path):
    before, _ = prepare(tmp_path / "a", save(tmp_path / "raw"))
    more = pd.concat([rows("train", 40), rows("train", 30, 100)])
    after, _ = prepare(tmp_path / "b", save(tmp_path / "raw2", train=more))
    for which in ("id", "ood"):
        pd.testing.assert_frame_equal(after[which], before[which])
    assert len(after["train"]) == 65


def test_one_file_says_its_splits_in_a_column(tmp_path):
    names = {"train": "train", "id": "validation", "ood": "network"}
    whole = pd.concat([rows(split, count).assign(split=names[split]) for split, count in ROWS.items()])
    whole.to_csv(tmp_path / "all.csv", index=False)
    single, card = prepare(tmp_path / "one", [str(tmp_path / "all.csv")])
    three, _ = prepare(tmp_path / "three", save(tmp_path / "raw"))
    for which in SPLITS:
        pd.testing.assert_frame_equal(single[which], three[which])
    assert card["notes"] == [
        "train of the data is train here",
        "validation of the data is id here",
        "network of the data is ood here",
    ]


@pytest.mark.parametrize(
    "expected",
    [
        {"train": "train", "val": "id", "test": "ood"},
        {"train": "train", "test": "id", "network": "ood"},
        {"train": "train", "validation": "id", "test": "id", "ood": "ood"},
    ],
)
def test_what_the_splits_of_the_data_become(tmp_path, expected):
    whole = pd.concat([rows(name, 3).assign(split=name) for name in expected])
    whole.to_json(tmp_path / "all.jsonl", orient="records", lines=True)
    raw = published.rows("kegg", {"file": str(tmp_path / "all.jsonl")}, kegg.COLUMNS)
    assert list(raw["split"]) == [meaning for meaning in expected.values() for _ in range(3)]


def hub_folder(folder, **parts):
    """A data set as it lies on the hub: Parquet files, and a card that names the splits."""
    lines = ["---", "configs:", "- config_name: default", "  data_files:"]
    folder.mkdir(parents=True)
    for split, frame in parts.items():
        frame.to_parquet(folder / f"{split}-00000-of-00001.parquet", index=False)
        lines += [f"  - split: {split}", f"    path: {split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return str(folder)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Datasets keep what they read beside the test and not in the user's cache."""
    import datasets

    assert datasets.config.HF_HUB_OFFLINE
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_a_folder_that_datasets_reads_gives_the_same_splits_as_the_files(tmp_path, cache):
    names = {"train": "train", "validation": "id", "network": "ood"}
    hub = hub_folder(tmp_path / "hub", **{name: rows(split, ROWS[split]) for name, split in names.items()})
    loaded, card = prepare(tmp_path / "a", hub)
    expected, _ = prepare(tmp_path / "b", save(tmp_path / "raw"))
    for which in SPLITS:
        pd.testing.assert_frame_equal(loaded[which], expected[which])
    assert list(card["source"]) == [hub]
    assert card["source"][hub]["revision"] is None
    assert set(card["source"][hub]["fingerprint"]) == set(names)


def test_a_data_set_in_one_piece_says_its_splits_in_a_column(tmp_path, cache):
    whole = pd.concat([rows(split, count).assign(split=split) for split, count in ROWS.items()])
    loaded, _ = prepare(tmp_path / "a", hub_folder(tmp_path / "hub", train=whole))
    expected, _ = prepare(tmp_path / "b", save(tmp_path / "raw"))
    for which in SPLITS:
        pd.testing.assert_frame_equal(loaded[which], expected[which])


def test_of_a_data_set_with_subsets_one_is_chosen_and_none_is_guessed(tmp_path, cache):
    folder = tmp_path / "hub"
    lines = ["---", "configs:"]
    for subset, start in (("a", 0), ("b", 100)):
        hub_folder(folder / subset, **{split: rows(split, count, start) for split, count in ROWS.items()})
        (folder / subset / "README.md").unlink()
        lines += [f"- config_name: {subset}", "  data_files:"]
        lines += [f"  - {{split: {split}, path: '{subset}/{split}-*'}}" for split in ROWS]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    refused(str(folder), r"tasks\.kegg\.subset: .*several subsets.*a, b")
    refused(str(folder), r"tasks\.kegg\.subset: .*no subset 'c'.*a, b", subset="c")
    loaded, card = prepare(tmp_path / "out", str(folder), subset="b")
    assert card["source"][str(folder)]["subset"] == "b"
    assert loaded["id"]["prompt"].str.contains(r"GENE1\d\d").all()


@pytest.mark.parametrize("name", ["{}_test_network_split.csv", "{}-test.csv"])
def test_a_folder_whose_files_of_id_and_ood_datasets_would_pool_is_refused(tmp_path, cache, name):
    save(tmp_path / "raw")
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "raw/train.csv").rename(folder / "train_network_split.csv")
    for split in ("id", "ood"):
        (tmp_path / f"raw/{split}.csv").rename(folder / name.format(split))
    named = [re.escape(name.format(split)) for split in ("id", "ood")]
    refused(str(folder), rf"data: split test would be made of {named[0]} and {named[1]}\. Give .*`file`")


def test_csv_files_of_the_hub_are_text_and_classes_have_their_names(tmp_path, cache):
    answers = ["007", "NA", "1e5"]
    parts = {split: rows(split, count).assign(answer=(answers * count)[:count]) for split, count in ROWS.items()}
    as_csv = hub_folder(tmp_path / "csv", **parts)
    for path in (tmp_path / "csv").glob("*.parquet"):
        pd.read_parquet(path).to_csv(path.with_suffix(".csv"), index=False)
        path.unlink()
    as_text, _ = prepare(tmp_path / "a", as_csv)
    assert set(as_text["train"]["answer"]) == {"007", "na", "1e5"}  # the adapter writes answers in lower case
    folder = hub_folder(tmp_path / "classes", **parts)
    names = datasets.ClassLabel(names=answers)
    for split, frame in parts.items():
        part = datasets.Dataset.from_pandas(frame, preserve_index=False).cast_column("answer", names)
        part.to_parquet(f"{folder}/{split}-00000-of-00001.parquet")
    classes, _ = prepare(tmp_path / "b", folder)
    assert classes["train"]["answer"].tolist() == as_text["train"]["answer"].tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: f"{line},x", "row 1, line 2, has more fields"),
        (lambda line: line.rpartition(",")[0], "row 1, line 2, has fewer fields"),
        (lambda line: f'"{line}', "row 1, which ends in line"),
    ],
)
def test_csv_files_of_the_hub_are_as_strict_as_files_of_the_user(tmp_path, cache, change, message):
    header, *lines = rows("train", 5).assign(reasoning="One step.").to_csv(index=False).splitlines()
    (tmp_path / "data").mkdir()
    path = tmp_path / "data/train.csv"
    path.write_text("\n".join([header, *map(change, lines)]))
    refused(str(path.parent), rf"data, file train\.csv: .*{message}")
    path.write_text("\n".join([f"{header},answer", *(f"{line},x" for line in lines)]))
    refused(str(path.parent), r"file train\.csv: .*two columns have the name 'answer'")
    path.write_text("\n".join([header, *lines]).replace("Network", "Müller"), encoding="latin-1")
    refused(str(path.parent), r"file train\.csv, line 2: .*not UTF-8")


def test_a_data_set_that_is_not_in_the_cache_of_an_offline_machine_is_a_user_error(tmp_path, cache):
    refused("nobody/no-such-data", r"tasks\.kegg\.hub: 'nobody/no-such-data' cannot be loaded .*Check its name")
    refused(str(tmp_path / "none"), r"tasks\.kegg\.hub: .*cannot be loaded")


def test_a_hub_data_set_is_not_asked_for_when_the_study_is_read_and_is_no_file_of_it():
    given = {
        "study": "paper",
        "backbones": {"b": {"pretrained": "x"}},
        "tasks": {"kegg": {"adapter": "kegg", "hub": "wanglab/kegg", "train": 1000, "validation": 100}},
        "lineages": [{}],
    }
    script = (
        f"import sys; from cisterna import study; s = study.load({given!r});"
        "assert s.sources('kegg') == [], s.sources('kegg');"
        "sys.exit(', '.join({'datasets', 'pandas', 'torch', 'numpy', 'huggingface_hub'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    spec = study.load(given).spec("kegg")
    assert spec["options"] == {
        "flank": 1024,
        "trim_ends": 0,
        "bases": None,
        "sequences_first": False,
        "answer_form": True,
    }
    assert (spec["train"], spec["id"], spec["ood"], spec["revision"]) == (1000, "all", "all", None)


def test_files_of_a_task_are_its_sources(tmp_path):
    paths = save(tmp_path)
    task = tasks.load("kegg", entry(paths))
    assert list(task.sources) == paths
    assert tasks.catalog.sources("kegg", entry(paths)) == paths
    assert tasks.catalog.sources("kegg", entry(paths) | {"file": paths[0]}) == paths[:1]


@pytest.mark.parametrize("column", kegg.COLUMNS)
def test_missing_column_is_named(tmp_path, column):
    paths = save(tmp_path, id=rows("id", 5).drop(columns=column))
    refused(paths, rf"id\.csv: no column '{column}'.*question, answer, ")


def test_other_columns_are_not_read_and_are_listed(tmp_path, capsys):
    frames = {split: rows(split, count).assign(weight=1.5) for split, count in ROWS.items()}
    frames["id"]["__index_level_0__"] = [f"<think>{row}" for row in range(ROWS["id"])]
    frames["ood"]["split"] = "test"  # says what the file says
    loaded, card = prepare(tmp_path / "a", save(tmp_path / "raw", **frames))
    expected, _ = prepare(tmp_path / "b", save(tmp_path / "plain"))
    for which in SPLITS:
        pd.testing.assert_frame_equal(loaded[which], expected[which])
    note = "columns that are not read: weight, __index_level_0__"
    assert card["notes"][-1] == note
    assert f"note: {note}\n" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["train", "ood", "fold 1"])
def test_a_column_of_splits_that_contradicts_the_files_is_refused(tmp_path, text):
    frame = rows("id", 5).assign(split=["id", "val", "test", text, "id"])
    refused(save(tmp_path, id=frame), rf"id\.csv: row 4: column 'split' says '{text}', but .* given as id")


def test_columns_may_have_the_other_name_that_published_data_give_them(tmp_path):
    frames = {split: rows(split, count) for split, count in ROWS.items()}
    expected, _ = prepare(tmp_path / "a", save(tmp_path / "raw", **frames))
    renamed = {split: frame.rename(columns={"variant_sequence": "mutated_sequence"}) for split, frame in frames.items()}
    renamed["id"]["variant_sequence"] = renamed["id"]["mutated_sequence"]  # both, and the same
    loaded, card = prepare(tmp_path / "b", save(tmp_path / "other", **renamed))
    for which in SPLITS:
        pd.testing.assert_frame_equal(loaded[which], expected[which])
    assert "not read" not in str(card["notes"])
    renamed["id"].loc[2, "mutated_sequence"] = "ACGT"
    refused(
        save(tmp_path / "c", **renamed), r"id\.csv: row 3: columns 'variant_sequence' and 'mutated_sequence' .*'ACGT'"
    )


@pytest.mark.parametrize("column", ["id", "ID"])
def test_ids_are_those_of_the_data_if_every_row_has_one_of_its_own(tmp_path, column):
    frames = {
        split: rows(split, count).assign(**{column: [f"{split[0]}{7 * row}" for row in range(count)]})
        for split, count in ROWS.items()
    }
    loaded, _ = prepare(tmp_path / "a", save(tmp_path / "raw", **frames))
    assert set(loaded["ood"]["id"]) == set(frames["ood"][column])
    frames["id"].loc[3, column] = frames["train"].loc[5, column]
    twice, card = prepare(tmp_path / "b", save(tmp_path / "twice", **frames))
    assert set(twice["ood"]["id"]) == {f"ood-{row}" for row in range(1, 15)}
    assert "ids are split and number of a row: the column of ids has 't35' twice" in card["notes"]
    frames["id"].loc[3, column] = None
    _, card = prepare(tmp_path / "c", save(tmp_path / "none", **frames))
    assert "ids are split and number of a row: the column of ids has an empty cell" in card["notes"]


STEPS = ['Step 1: the gene\'s "first" exon, [G>A], is lost.', " Step 2: its pathway fails. ", ""]
JOINED = 'Step 1: the gene\'s "first" exon, [G>A], is lost.\nStep 2: its pathway fails.'


@pytest.mark.parametrize("form", ["parquet", "jsonl", "python", "numpy", "json"])
def test_reasoning_that_is_a_list_of_steps_is_joined_by_line_breaks(tmp_path, form):
    frame = pd.concat([rows(split, 3).assign(split=split) for split in ROWS])
    written = {"python": str(STEPS), "numpy": str(np.array(STEPS)), "json": json.dumps(STEPS)}.get(form, STEPS)
    frame["reasoning"] = pd.Series([written] * len(frame), index=frame.index)
    path = tmp_path / f"all.{form if form in ('parquet', 'jsonl') else 'csv'}"
    if form == "parquet":
        frame.to_parquet(path, index=False)
    elif form == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False)
    assert set(tasks.read(tasks.load("kegg", entry([str(path)])))["reasoning"]) == {JOINED}


@pytest.mark.parametrize("text", ["[G>A] is lost", "[1, 2]", "Step ['a', 'b']", "[The gene] fails [here]"])
def test_a_text_in_brackets_is_no_list(tmp_path, text):
    frame = rows("id", 5).assign(reasoning=text)
    found = tasks.read(tasks.load("kegg", entry(save(tmp_path, id=frame)))).query("split == 'id'")
    assert set(found["reasoning"]) == {text}


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        *(
            (cell, "not a whole list")
            for cell in ("['Step 1', 'Step", "['Step 1', 2]", "[['a'], ['b']]", "[{'step': 1}]")
        ),
        ("[]", "is empty"),
        ("['', ' ']", "is empty"),
    ],
)
def test_a_broken_or_empty_list_of_steps_is_refused(tmp_path, cell, message):
    frame = rows("id", 5)
    frame.loc[3, "reasoning"] = cell
    refused(save(tmp_path, id=frame), rf"id\.csv: row 4: column 'reasoning'.*{message}")


def test_sequences_may_stand_before_the_question_as_in_the_paper(tmp_path):
    paths = save(tmp_path)
    last = tasks.read(tasks.load("kegg", entry(paths)))
    first = tasks.read(tasks.load("kegg", entry(paths, options={"flank": FLANK, "sequences_first": True})))
    for one, other in zip(last["prompt"], first["prompt"], strict=True):
        question, pair = one.split("\n", 1)
        assert other == f"{pair}{question}\n"
    pd.testing.assert_frame_equal(first.drop(columns="prompt"), last.drop(columns="prompt"))


def test_the_truncation_of_the_paper_removes_the_ends_and_says_which_variants_are_lost(tmp_path):
    paper = {"flank": None, "trim_ends": 10, "bases": 30}
    left, right, middle = "AC" * 5, "GT" * 5, "ACGTTGCA" * 5
    pairs = [
        (left + middle + right, left + middle[:6] + "T" + middle[7:] + right),  # seen
        (left + middle + right, left + middle[:35] + "C" + middle[36:] + right),  # after the first 30
        (left + middle + right, "T" + left[1:] + middle + right),  # in an end
        (middle[:28], middle[:6] + "T" + middle[7:28]),  # not longer than twice 10 and 8: stays whole
    ]
    frame = rows("train", 4)
    frame[list(variants.PAIR)] = pairs
    examples = tasks.read(tasks.load("kegg", entry(save(tmp_path, train=frame), options=paper)))
    cut = [[part["sequence"] for part in segments] for segments in examples["segments"][:4]]
    assert cut[:3] == [
        [middle[:30], middle[:6] + "T" + middle[7:30]],
        [middle[:30], middle[:30]],
        [middle[:30], middle[:30]],
    ]
    assert cut[3] == list(pairs[3])
    assert [segments[1]["center"] for segments in examples["segments"][:4]] == [6, 29, 20, 6]
    lost = sum(reference["sequence"] == variant["sequence"] for reference, variant in examples["segments"])
    assert examples.attrs["notes"][3].startswith(f"{lost} rows have their variant in what is cut off")


def test_the_form_of_the_answer_is_the_last_line_of_a_prompt_that_may_be_left_out(tmp_path):
    paths = save(tmp_path)
    for stated in (True, False):
        task = tasks.load("kegg", entry(paths, options={"answer_form": stated}))
        for prompts in (tasks.read(task)["prompt"], tasks.questions(task, Path(paths[1]))["prompt"]):
            line = 'End with the line "Answer: X", where X is the name of the disease in lower case.\n'
            assert prompts.str.endswith(f"</dna>\n{line}").all() == stated
            assert prompts.str.endswith("</dna>\n").all() != stated


def test_a_checkpoint_of_an_earlier_version_asks_as_it_was_trained(tmp_path):
    """Its entry in the config has the options of that version."""
    prompts = tasks.read(tasks.load("kegg", entry(save(tmp_path), options={"flank": 1024})))["prompt"]
    assert prompts.str.fullmatch(r"Network.*\nReference: <dna>\w+</dna>\nVariant: <dna>\w+</dna>\n").all()


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        *((column, "  ", "is empty") for column in kegg.COLUMNS),
        *((column, "ACGTU", "'U'.* dna") for column in variants.PAIR),
        *((column, "so </think>", "contains '</think>'") for column in ("question", "answer", "reasoning")),
        ("answer", "; H00057", "'; H00057'"),  # nothing is left of it when it is cleaned
    ],
)
def test_wrong_cell_is_named(tmp_path, column, cell, message):
    frame = rows("ood", 5)
    frame.loc[3, column] = cell
    refused(save(tmp_path, ood=frame), rf"ood\.csv: row 4: column '{column}'.*{message}")


def test_lower_case_and_unknown_bases_are_read(tmp_path):
    frame = rows("train", 5)
    expected = tasks.read(tasks.load("kegg", entry(save(tmp_path / "a", train=frame))))
    frame[list(variants.PAIR)] = frame[list(variants.PAIR)].apply(lambda column: column.str.lower())
    lower = tasks.read(tasks.load("kegg", entry(save(tmp_path / "b", train=frame))))
    pd.testing.assert_frame_equal(lower, expected)
    frame.loc[0, list(variants.PAIR)] = ["ANNNA", "ANNNG"]
    assert "ANNNG" in set(tasks.read(tasks.load("kegg", entry(save(tmp_path / "c", train=frame))))["sequence"])


def test_unknown_split(tmp_path):
    rows("train", 5).assign(split=["train", "test", "dev", "test", "train"]).to_csv(tmp_path / "a.csv", index=False)
    refused([str(tmp_path / "a.csv")], r"a\.csv: row 3: the split 'dev'.* train, id, val, .*network, test")
    rows("train", 5).assign(split="train").to_csv(tmp_path / "a.csv", index=False)
    refused([str(tmp_path / "a.csv")], r"tasks\.kegg: .*no split ood or network or test")


def test_repeats_over_splits_are_dropped_from_train_and_counted(tmp_path):
    train, inside, outside = (rows(split, count) for split, count in ROWS.items())
    same = list(variants.PAIR)
    train.loc[0, same] = inside.loc[0, same].to_numpy()  # a variant of id, another question
    train.loc[1] = outside.loc[1]  # a whole row of ood
    train.loc[2] = train.loc[3]  # a whole row of train
    inside.loc[5, same] = outside.loc[5, same].to_numpy()
    frames, card = prepare(tmp_path / "out", save(tmp_path / "raw", train=train, id=inside))
    assert {entry["reason"]: (entry["rows"], entry["examples"]) for entry in card["dropped"]} == {
        "train, prompt also in train": (1, ["train-4"]),
        "train, sequence or prompt also in id": (1, ["train-1"]),
        "train, sequence or prompt also in ood": (1, ["train-2"]),
        "id, sequence or prompt also in ood": (1, ["id-6"]),
    }
    assert {which: len(frame) for which, frame in frames.items()} == {
        "train": 32, "validation": 5, "id": 11, "ood": 14,
    }  # fmt: skip
    assert not {"train-1", "train-2", "train-4"} & set(frames["train"]["id"])


def test_a_prompt_with_two_answers_is_listed_apart(tmp_path):
    train = rows("train", ROWS["train"])
    train.loc[2] = train.loc[3]
    train.loc[2, "answer"] = next(name for name in DISEASES if name != train.loc[3, "answer"])
    _, card = prepare(tmp_path / "out", save(tmp_path / "raw", train=train))
    (entry,) = card["dropped"]
    assert (entry["reason"], entry["rows"]) == ("train, prompt also in train, with another answer", 1)


def test_one_variant_may_be_asked_about_twice_in_one_split(tmp_path):
    train = rows("train", ROWS["train"])
    train.loc[1, list(variants.PAIR)] = train.loc[0, list(variants.PAIR)].to_numpy()
    frames, card = prepare(tmp_path / "out", save(tmp_path / "raw", train=train))
    assert "dropped" not in card
    assert len(frames["train"]) + len(frames["validation"]) == 40


def test_rows_without_a_difference_are_cut_around_their_middle_and_counted(tmp_path):
    train = rows("train", ROWS["train"])
    train.loc[:1, "variant_sequence"] = train.loc[:1, "reference_sequence"]
    paths = save(tmp_path / "raw", train=train)
    _, card = prepare(tmp_path / "out", paths)
    assert card["notes"][3:] == [
        "2 rows have a variant_sequence that is their reference_sequence: cut around its middle"
    ]
    first = tasks.read(tasks.load("kegg", entry(paths)))["sequence"][0]
    whole = train["reference_sequence"][0]
    middle = len(whole) // 2
    assert first == whole[middle - FLANK : middle + FLANK + 1]


def test_stretches_are_read_by_an_encoder_around_the_variant(tmp_path):
    examples = tasks.read(tasks.load("kegg", entry(save(tmp_path))))
    for row in examples.itertuples():
        reference, variant = row.segments
        assert row.prompt.count("<dna>") == row.prompt.count("</dna>") == 2
        assert f"Reference: <dna>{reference['sequence']}</dna>\nVariant: <dna>{variant['sequence']}</dna>" in row.prompt
        center = variant["center"]
        assert reference["sequence"][center] != variant["sequence"][center]
        assert reference["sequence"][:center] == variant["sequence"][:center]
        assert reference["start"] == variant["start"] == 0
        assert row.sequence == variant["sequence"]


def test_an_encoder_reads_reference_and_variant_of_every_row(tmp_path, esm):
    from cisterna.sequences import feature_bank
    from cisterna.sequences.feature_bank import Bank

    frames, _ = prepare(tmp_path / "data", save(tmp_path / "raw"))
    feature_bank.build_for_task(esm, tmp_path / "data", READING | {"flank": 8}, tmp_path / "work", tmp_path / "bank")
    bank = Bank(tmp_path / "bank")
    for row in frames["ood"].itertuples():
        for part in row.segments:
            center = part["center"]
            first, rows = bank.locate(part["sequence"][max(0, center - 8) : center + 8])
            assert rows == min(center, 8) + min(len(part["sequence"]) - center, 8)
            assert first >= 0


@given(
    left=BASES, right=BASES, old=st.text("ACGT", max_size=8), new=st.text("ACGT", max_size=8), flank=st.integers(1, 9)
)
@settings(max_examples=300)
def test_any_pair_is_cut_to_flank_bases_on_each_side_of_its_first_difference(left, right, old, new, flank):
    reference, variant = left + old + right, left + new + right
    (cut, changed), center = variants.window(reference, variant, flank)
    assert cut in reference
    assert changed in variant
    assert 1 <= min(len(cut), len(changed)) <= max(len(cut), len(changed)) <= 2 * flank + 1
    if reference == variant:
        return
    # the two may differ in length
    same = [a == b for a, b in zip(reference, variant, strict=False)]
    first = same.index(False) if False in same else len(same)
    assert cut == reference[max(0, first - flank) : first + flank + 1]
    assert changed == variant[max(0, first - flank) : first + flank + 1]
    assert cut[:center] == changed[:center]
    assert cut[center : center + 1] != changed[center : center + 1]


def test_new_rows_become_questions(tmp_path):
    task = tasks.load("kegg", entry(save(tmp_path)))
    new = rows("id", 4).drop(columns=["answer", "reasoning"]).assign(note="not read")
    new.to_csv(tmp_path / "new.csv", index=False)
    asked = tasks.questions(task, tmp_path / "new.csv")
    known = tasks.read(task).query("split == 'id'").head(4)
    for column in ("sequence", "prompt", "segments"):
        assert list(asked[column]) == list(known[column])
    assert list(asked["id"]) == ["1", "2", "3", "4"]
    new.drop(columns="question").to_csv(tmp_path / "new.csv", index=False)
    with pytest.raises(UserError, match=r"new\.csv: no column 'question'"):
        tasks.questions(task, tmp_path / "new.csv")
    new.assign(variant_sequence=["ACGT", "ACGU", "A", "A"]).to_csv(tmp_path / "new.csv", index=False)
    with pytest.raises(UserError, match=r"new\.csv: row 2: column 'variant_sequence': letter 'U'"):
        tasks.questions(task, tmp_path / "new.csv")


def test_answer_that_tables_of_results_use_for_none_is_refused(tmp_path):
    frames = {
        split: rows(split, count).replace({"answer": {DISEASES[0]: "malformed"}}) for split, count in ROWS.items()
    }
    with pytest.raises(UserError, match="kegg: an answer is 'malformed'"):
        prepare(tmp_path / "out", save(tmp_path / "files", **frames))
    assert not (tmp_path / "out").exists()
