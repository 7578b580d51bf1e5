"""The user's own table: what works, and what every mistake in it says."""

import json
import random
import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cisterna import tasks
from cisterna.constants import SPLITS
from cisterna.data import splits
from cisterna.errors import UserError
from cisterna.tasks import user_table
from studies import OWN_TABLE

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = OWN_TABLE["columns"]
SIZES = {"train": 20, "validation": 5, "id": 10}
# The file is written anew for each example, so one folder for all of them is right.
PER_EXAMPLE = {"suppress_health_check": [HealthCheck.function_scoped_fixture]}
SHAPES = ["5", "null", '"x"', "[1]", "{}", '{"variant": [1]}', ""]


def rows(count=60, letters="ACDEFGHIKLMNPQRSTVWY"):
    """A table without mistakes: every third row of the held-out family."""
    draw = random.Random(0)
    return pd.DataFrame(
        {
            "variant": [f"v{number}" for number in range(count)],
            "seq": ["".join(draw.choices(letters, k=draw.randint(8, 20))) for _ in range(count)],
            "class": [draw.choice(["low", "high"]) for _ in range(count)],
            "family": ["kinase" if number % 3 == 0 else "gpcr" for number in range(count)],
            "why": ["" if number % 2 else "no proline" for number in range(count)],
        }
    )


def spec(path, **changes):
    return OWN_TABLE | {"file": str(path)} | SIZES | changes


def save(frame, path):
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


def read(path, **changes):
    return tasks.read(tasks.load("my-assay", spec(path, **changes)))


@pytest.fixture
def csv(tmp_path):
    return tmp_path / "assay.csv"


def refused(path, pattern, **changes):
    """Reading fails with one message that names the file and matches the pattern."""
    with pytest.raises(UserError, match=pattern) as caught:
        read(path, **changes)
    assert str(path) in str(caught.value)


def test_docstring_example_is_true(csv):
    documented = " ".join(user_table.__doc__.split())
    csv.write_text("variant,seq,class,family,why\nv1,MKVLA,high,gpcr,no proline\nv2,MK,low,kinase,\n")
    row = read(csv, columns={**COLUMNS, "reasoning": "why"}).iloc[0]
    fields = f"prompt {row['prompt']} trace {row['reasoning']} answer {row['answer']}"
    assert " ".join(fields.split()) in documented
    assert row["prompt"] == "Is this variant active?\n<protein>MKVLA</protein>\nOptions: low, high\n"
    assert set(read(csv)["reasoning"]) == {""}  # without the column


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl"])
def test_all_kinds_of_file_give_the_same_examples(tmp_path, csv, suffix):
    expected = read(save(rows(), csv))
    pd.testing.assert_frame_equal(read(save(rows(), tmp_path / f"assay{suffix}")), expected)


def test_reasoning_column_is_the_trace(csv):
    examples = read(save(rows(), csv), columns={**COLUMNS, "reasoning": "why"})
    assert list(examples["reasoning"]) == list(rows()["why"])


@pytest.mark.parametrize("form", ["csv", "parquet", "jsonl"])
def test_reasoning_that_is_a_list_of_texts_is_joined(tmp_path, form):
    steps = [["No proline.", "So it folds."] if number % 2 else [] for number in range(60)]
    path = save(rows().assign(why=steps), tmp_path / f"table.{form}")
    examples = read(path, columns={**COLUMNS, "reasoning": "why"})
    assert list(examples["reasoning"]) == ["No proline.\nSo it folds." if texts else "" for texts in steps]


def test_identifiers_and_labels_that_look_like_numbers_stay_text(csv):
    frame = rows().assign(variant=[f"{n:03d}" for n in range(60)], **{"class": ["0", "1"] * 30})
    examples = read(save(frame, csv), labels=[0, 1])
    assert list(examples["id"])[:2] == ["000", "001"]
    assert set(examples["answer"]) == {"0", "1"}


def test_the_word_na_is_a_label_and_not_a_missing_value(csv):
    frame = rows().assign(**{"class": ["NA", "high"] * 30})
    assert set(read(save(frame, csv), labels=["NA", "high"])["answer"]) == {"NA", "high"}


def test_thresholds_cut_a_score_into_classes_and_a_score_on_one_is_above_it(csv):
    frame = rows().assign(**{"class": ["-2.5", "0", "0.4999", "0.5", "1e3", "7"] * 10})
    examples = read(save(frame, csv), labels=["low", "medium", "high"], thresholds=[0, 0.5])
    assert list(examples["answer"]) == ["low", "medium", "medium", "high", "high", "high"] * 10
    assert (
        "low below 0, medium from 0, high from 0.5"
        in tasks.load("my-assay", spec(csv, labels=["low", "medium", "high"], thresholds=[0, 0.5])).meaning
    )


@pytest.mark.parametrize("score", ["n.d.", "nan", "inf", "1,5"])
def test_a_score_that_is_no_number_is_refused_with_its_row(csv, score):
    refused(
        save(rows().assign(**{"class": ["1"] * 7 + [score] + ["2"] * 52}), csv),
        f"row 8: column 'class': '{score}'",
        thresholds=[1],
    )


@pytest.mark.parametrize("thresholds", [[1, 2], [2, 1], [1, 1]])
def test_thresholds_that_do_not_fit_the_labels_are_refused(csv, thresholds):
    with pytest.raises(UserError, match=r"tasks.my-assay.thresholds: "):
        read(save(rows(), csv), thresholds=thresholds)


def test_without_an_id_a_row_is_called_by_its_number(csv):
    columns = {role: name for role, name in COLUMNS.items() if role != "id"}
    examples = read(save(rows().drop(columns="variant"), csv), columns=columns)
    assert list(examples["id"]) == [str(number) for number in range(1, 61)]
    asked = tasks.questions(tasks.load("my-assay", spec(csv, columns=columns)), csv)
    assert list(asked["id"]) == list(examples["id"])


def test_lower_case_sequences_are_raised(csv):
    frame = rows().assign(seq=rows()["seq"].str.lower())
    assert list(read(save(frame, csv))["sequence"]) == list(rows()["seq"])


def test_a_table_becomes_splits_with_all_held_out_rows_in_ood(csv, tmp_path):
    splits.prepare("my-assay", spec(save(rows(), csv)), 0, tmp_path / "out")
    frames = {which: pd.read_parquet(tmp_path / f"out/{which}.parquet") for which in SPLITS}
    assert {which: len(frame) for which, frame in frames.items()} == {**SIZES, "ood": 20}
    assert set(frames["ood"]["group"]) == {"kinase"}
    card = json.loads((tmp_path / "out/card.json").read_text())
    assert card["audit"]["nearest_train"]["ood"]["measure"] == "jaccard of 3-mers"


def test_the_segment_is_the_whole_sequence_around_its_middle_or_its_position(csv):
    frame = rows().assign(pos=[1 + number % 8 for number in range(60)])
    examples = read(save(frame, csv))
    assert list(examples["segments"]) == [
        [{"sequence": sequence, "start": 0, "center": None}] for sequence in examples["sequence"]
    ]
    examples = read(csv, columns={**COLUMNS, "position": "pos"})
    assert [segments[0]["center"] for segments in examples["segments"]] == [number % 8 for number in range(60)]


@pytest.mark.parametrize("position", ["0", "-1", "99", "2.5", "two", "\u0663"])
def test_position_that_is_none(csv, position):
    frame = rows().assign(pos="3")
    frame.loc[5, "pos"] = position
    refused(save(frame, csv), rf"row 6: column 'pos': '{position}'", columns={**COLUMNS, "position": "pos"})


def test_file_that_is_missing_or_a_folder(tmp_path):
    refused(tmp_path / "none.csv", "no such file")
    (tmp_path / "folder.csv").mkdir()
    refused(tmp_path / "folder.csv", "no such file")


def test_unknown_kind_of_file(tmp_path):
    path = tmp_path / "assay.xlsx"
    path.write_bytes(b"PK")
    refused(path, r"unknown kind of file.*\.csv, \.tsv, \.parquet, \.jsonl")


def test_broken_json_line_is_named(tmp_path):
    path = tmp_path / "assay.jsonl"
    path.write_text('{"variant": "v1"}\n\n{"variant": \n')
    refused(path, "line 3")
    path.write_text('{"variant": "v1"}\n[1]\n')
    refused(path, "line 2 is not a JSON object")


def test_table_without_rows(csv):
    refused(save(rows().head(0), csv), "has no rows")


def test_rows_longer_than_the_header(csv):
    csv.write_text("variant,seq,class,family\nv1,MKV,low,gpcr,extra\nv2,MKA,high,kinase,extra\n")
    refused(csv, "more fields than the header")


@pytest.mark.parametrize("role", COLUMNS)
def test_missing_column(csv, role):
    path = save(rows().drop(columns=COLUMNS[role]), csv)
    refused(path, rf"no column '{COLUMNS[role]}' \(columns\.{role}\)\. It has: ")


@pytest.mark.parametrize("role", COLUMNS)
def test_empty_value(csv, role):
    frame = rows()
    frame.loc[4, COLUMNS[role]] = "  "
    refused(save(frame, csv), rf"row 5: column '{COLUMNS[role]}' is empty")


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_null_value(tmp_path, suffix):
    frame = rows()
    frame.loc[4, "class"] = None
    refused(save(frame, tmp_path / f"assay{suffix}"), "row 5: column 'class' is empty")


def test_label_outside_the_answer_space(csv):
    frame = rows()
    frame.loc[7, "class"] = "medium"
    refused(save(frame, csv), "row 8: column 'class': label 'medium' .* low, high")


@pytest.mark.parametrize(
    ("modality", "letters", "wrong"),
    [("dna", "ACGT", "U"), ("rna", "ACGU", "T"), ("protein", "ACDEF", "*"), ("dna", "ACGT", " ")],
)
def test_letter_outside_the_modality(csv, modality, letters, wrong):
    frame = rows(letters=letters)
    read(save(frame, csv), modality=modality)
    frame.loc[9, "seq"] = letters + wrong + letters
    place = len(letters) + 1
    refused(
        save(frame, csv), f"row 10: column 'seq': letter '{re.escape(wrong)}' at position {place}", modality=modality
    )


@given(row=st.integers(0, 59), place=st.integers(0, 8), letter=st.characters(blacklist_categories=("Cs", "Cc", "Z")))
@settings(max_examples=40, **PER_EXAMPLE)
def test_any_letter_is_either_of_the_alphabet_or_refused_with_its_row(tmp_path, row, place, letter):
    frame = rows(letters="ACGT")
    sequence = frame.loc[row, "seq"]
    frame.loc[row, "seq"] = sequence[:place] + letter + sequence[place:]
    path = save(frame, tmp_path / "assay.parquet")
    if set(letter.upper()) <= set("ACGTN"):
        assert len(read(path, modality="dna")) >= 59
    else:
        refused(path, f"row {row + 1}: column 'seq'", modality="dna")


def test_duplicate_identifiers(csv):
    frame = rows()
    frame.loc[11, "variant"] = "v2"
    refused(save(frame, csv), "row 3 and row 12 .*'v2'")


def test_one_sequence_with_two_labels(csv):
    frame = rows()
    frame.loc[4, ["seq", "class"]] = [frame.loc[1, "seq"].lower(), "low"]
    frame.loc[1, "class"] = "high"
    refused(save(frame, csv), "row 2 and row 5 have the same sequence but different labels")


def test_one_sequence_in_domain_and_out_of_domain(csv):
    frame = rows()
    frame.loc[4, ["seq", "class"]] = frame.loc[3, ["seq", "class"]]
    refused(save(frame, csv), "row 4 and row 5 have the same sequence but different sides")


def test_a_repeated_measurement_is_kept_once(csv):
    frame = rows()
    frame.loc[4, ["seq", "class"]] = frame.loc[1, ["seq", "class"]]
    examples = read(save(frame, csv))
    assert len(examples) == 59
    assert "v4" not in set(examples["id"])


@pytest.mark.parametrize(
    ("column", "markup"),
    [("variant", "<dna>"), ("family", "</protein>"), ("why", "<|im_end|>"), ("why", "< RNA >"), ("why", "\x00")],
)
def test_markup_in_a_cell(tmp_path, markup, column):
    frame = rows()
    frame.loc[2, column] = f"text {markup} text"
    with_trace = {**COLUMNS, "reasoning": "why"}
    refused(save(frame, tmp_path / "assay.parquet"), rf"row 3: column '{column}': contains", columns=with_trace)


@pytest.mark.parametrize(
    "change", [{"question": "What is <dna>?"}, {"labels": ["low", "<|high|>"]}, {"prompt": "<dna> {sequence}"}]
)
def test_markup_in_the_config(csv, change):
    with pytest.raises(UserError, match=rf"tasks\.my-assay\.{next(iter(change))}: contains '<"):
        read(save(rows(), csv), **change)


def test_held_out_group_that_no_row_has(csv):
    refused(save(rows(), csv), "'protease'.*'family'.*gpcr, kinase", ood=["kinase", "protease"])


def test_holding_out_every_group_leaves_nothing_to_train_on(csv, tmp_path):
    whole = spec(save(rows(), csv), ood=["kinase", "gpcr"])
    with pytest.raises(UserError, match=r"tasks\.my-assay\.id: asks for 10 rows but 0 are left"):
        splits.prepare("my-assay", whole, 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["modality", "columns", "labels", "question", "ood"])
@pytest.mark.parametrize("empty", [True, False])
def test_missing_key(csv, key, empty):
    entry = spec(save(rows(), csv))
    entry[key] = None
    if not empty:
        del entry[key]
    with pytest.raises(UserError, match=rf"tasks\.my-assay\.{key}: missing or empty"):
        tasks.load("my-assay", entry)


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"modality": "lipid"}, "'lipid' is not a modality. Use one of dna, rna, protein"),
        ({"columns": {"id": "variant", "sequence": "seq"}}, r"columns\.label: missing"),
        ({"columns": {k: v for k, v in COLUMNS.items() if k != "group"}}, r"columns\.group: missing"),
        ({"columns": {**COLUMNS, "weight": "w"}}, r"columns\.weight: unknown key"),
        ({"labels": ["low"]}, "two or more different labels"),
        ({"labels": ["low", "low"]}, "two or more different labels"),
        ({"labels": ["low", " high"]}, "one line"),
        ({"labels": ["low", "hi\ngh"]}, "one line"),
    ],
)
def test_malformed_key(csv, change, pattern):
    with pytest.raises(UserError, match=pattern):
        tasks.load("my-assay", spec(csv, **change))


TEMPLATE = "Is {variant} of the {family} family active? {sequence} Say {options}; {{nothing}} else."


def template(path, text=TEMPLATE, **changes):
    """The entry of a task with a template in place of the question."""
    return {key: value for key, value in spec(path, **changes).items() if key != "question"} | {"prompt": text}


def test_template_writes_the_prompt_with_the_columns_it_names(csv):
    save(rows(), csv)
    examples = tasks.read(tasks.load("my-assay", template(csv)))
    for number, (found, row) in enumerate(zip(examples.itertuples(), rows().itertuples(), strict=True)):
        assert found.prompt == (
            f"Is v{number} of the {row.family} family active? <protein>{row.seq}</protein> "
            "Say low, high; {nothing} else.\n"
        )
        assert found.segments == [{"sequence": row.seq, "start": 0, "center": None}]


def test_template_is_filled_with_cells_and_not_with_what_they_say(csv):
    frame = rows().assign(family="{sequence} {options} {0}", labels="a column of any name")
    save(frame, csv)
    entry = template(csv, "{labels} {family} {sequence}", ood=["{sequence} {options} {0}"])
    example = tasks.read(tasks.load("my-assay", entry)).iloc[0]
    sequence = example["sequence"]
    assert example["prompt"] == f"a column of any name {{sequence}} {{options}} {{0}} <protein>{sequence}</protein>\n"


def test_template_that_names_a_column_that_is_not_there(csv):
    save(rows(), csv)
    with pytest.raises(UserError, match=r"assay\.csv: no column 'gene', which `prompt` names\. It has: variant, seq"):
        tasks.read(tasks.load("my-assay", template(csv, "{gene} {sequence}")))


@pytest.mark.parametrize(("cell", "message"), [(" ", "is empty"), ("</think>", "contains '</think>'")])
def test_template_that_names_a_column_with_a_cell_that_cannot_be_shown(csv, cell, message):
    frame = rows()
    frame.loc[4, "why"] = cell
    frame["why"] = frame["why"].replace("", "yes")
    save(frame, csv)
    with pytest.raises(UserError, match=rf"assay\.csv: row 5: column 'why'.*{message}"):
        tasks.read(tasks.load("my-assay", template(csv, "{why} {sequence}")))


def test_new_sequences_are_asked_about_with_the_template(csv, tmp_path):
    save(rows(), csv)
    task = tasks.load("my-assay", template(csv))
    new = rows().head(5).rename(columns={"seq": "sequence"}).drop(columns="class")
    asked = tasks.questions(task, save(new, tmp_path / "new.csv"))
    assert list(asked["prompt"]) == list(tasks.read(task)["prompt"].head(5))
    with pytest.raises(UserError, match=r"new\.csv: no column 'family', which the task's prompt names"):
        tasks.questions(task, save(new.drop(columns="family"), tmp_path / "new.csv"))


@given(suffix=st.sampled_from([".csv", ".tsv", ".parquet", ".jsonl"]), content=st.binary(max_size=200))
@example(".csv", b"")
@example(".parquet", b"\xff\xfe\x00\x01garbage\x00")
@settings(max_examples=150, **PER_EXAMPLE)
def test_random_bytes_never_raise_anything_but_a_user_error_that_names_the_file(tmp_path, suffix, content):
    path = tmp_path / f"assay{suffix}"
    path.write_bytes(content)
    refused(path, "")


@given(lines=st.lists(st.sampled_from(SHAPES), max_size=4))
@settings(max_examples=60, **PER_EXAMPLE)
def test_json_lines_of_any_shape_never_raise_anything_but_a_user_error(tmp_path, lines):
    path = tmp_path / "assay.jsonl"
    path.write_text("\n".join(lines))
    refused(path, "")
