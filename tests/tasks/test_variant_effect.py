"""The adapters of variant effects, on small data of their schema: cleaned answers, splits, mistakes."""

import random

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cisterna import tasks
from cisterna.constants import SPLITS
from cisterna.data import splits
from cisterna.errors import UserError
from cisterna.tasks.adapters import variant_effect, variants

ADAPTERS = ("variant-effect-coding", "variant-effect-non-snv")
CODING = ["Pathogenic; Marfan_syndrome", "Benign", "benign ; not_provided"]
NON_SNV = ["pathogenic; ['Marfan_syndrome']", "benign", "pathogenic; ['Wilson_disease', 'Ectopia_lentis']"]


def rows(split, count, answers, deletion=False):
    """Rows of the published schema without mistakes."""
    draw = random.Random(split)
    found = []
    for number in range(count):
        reference = "".join(draw.choices("ACGT", k=60))
        place = draw.randrange(10, 50)
        new = "" if deletion else draw.choice(sorted(set("ACGT") - {reference[place]}))
        found.append(
            {
                "question": f"This variant is number {number} of {split}. What is its effect?",
                "answer": answers[number % len(answers)],
                "reference_sequence": reference,
                "variant_sequence": reference[:place] + new + reference[place + 1 :],
            }
        )
    return pd.DataFrame(found)


def save(folder, answers, **changed):
    """Files of train and test; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 40), ("test", 15)):
        changed.get(split, rows(split, count, answers)).to_csv(folder / f"{split}.csv", index=False)
    return [str(folder / "train.csv"), str(folder / "test.csv")]


def entry(adapter, paths, **changes):
    return {"adapter": adapter, "file": paths, "validation": 5, "id": 10, "options": {"flank": 12}} | changes


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_test_is_ood_and_id_and_validation_are_drawn_from_train(tmp_path, adapter):
    paths = save(tmp_path / "raw", CODING if adapter == ADAPTERS[0] else NON_SNV)
    splits.prepare("clinvar", entry(adapter, paths), 0, tmp_path / "out")
    card = splits.read_card(tmp_path / "out")
    frames = {which: pd.read_parquet(tmp_path / f"out/{which}.parquet") for which in SPLITS}
    assert {which: len(frame) for which, frame in frames.items()} == {"train": 25, "validation": 5, "id": 10, "ood": 15}
    for which, frame in frames.items():
        assert {identifier.partition("-")[0] for identifier in frame["id"]} == {"ood" if which == "ood" else "train"}
        assert set(frame["reasoning"]) == {""}
    assert card["rule"].endswith(
        "id, validation and train are drawn from its train, in this order, by the sha256 of seed and id"
    )
    assert card["labels"] == ["benign", "pathogenic"]
    assert card["modality"] == "dna"


def test_id_of_data_without_an_id_split_needs_a_number(tmp_path):
    paths = save(tmp_path / "raw", CODING)
    with pytest.raises(UserError, match=r"tasks\.clinvar\.id: all rows are asked for, but the data have no id split"):
        splits.prepare("clinvar", entry(ADAPTERS[0], paths, id="all"), 0, tmp_path / "out")


def test_docstring_example_is_true(tmp_path):
    documented = " ".join(variant_effect.__doc__.split())
    row = {
        "question": "This deletion lies in FBN1 on chromosome 15. What is its effect?",
        "answer": "pathogenic; ['Marfan_syndrome']",
        "cleaned_pathogenicity": "pathogenic",
        "reference_sequence": "AGTTATGGCGACGAAGGCCGTGTGCGTGC",
        "mutated_sequence": "AGTTATGGCGACGAAGGCGTGTGCGTGC",
    }
    assert " ".join(f"{name} {value}" for name, value in row.items()) in documented
    paths = save(tmp_path, NON_SNV, train=pd.DataFrame([row]))
    options = {"flank": 8, "answer_form": True}
    example = tasks.read(tasks.load("indels", entry(ADAPTERS[1], paths, options=options))).iloc[0]
    fields = f"prompt {example['prompt']} trace {example['reasoning']} answer {example['answer']}"
    assert " ".join(fields.split()) in documented
    about_disease = entry(ADAPTERS[1], paths, options=options | {"target": "disease"})
    assert tasks.read(tasks.load("indels", about_disease))["answer"][0] == "marfan syndrome"
    assert "the answer above is `marfan syndrome`" in documented


@pytest.mark.parametrize(
    ("text", "label", "diseases"),
    [
        ("Benign", "benign", []),
        ("Pathogenic; Marfan_syndrome", "pathogenic", ["marfan syndrome"]),
        ("[Likely_pathogenic]; not_provided", "likely pathogenic", []),
        ("pathogenic; ['Marfan_syndrome']", "pathogenic", ["marfan syndrome"]),
        ("pathogenic; ['A_b', 'not_provided',\n 'a_B']", "pathogenic", ["a b"]),
        ("pathogenic; ['A; type 2', 'B']", "pathogenic", ["a; type 2", "b"]),
        ("pathogenic; ['Wilson_disease'  'Ectopia_lentis']", "pathogenic", ["wilson disease", "ectopia lentis"]),
        ('pathogenic;["Wilson\'s_disease"]', "pathogenic", ["wilson's disease"]),
        ("pathogenic; []", "pathogenic", []),
        ("['A; type_2']", "a", ["a; type 2"]),
        ("pathogenic; nan", "pathogenic", []),
        ("pathogenic; Marfan_syndrome|not_provided", "pathogenic", ["marfan syndrome"]),
        ("pathogenic; A_b|C_d", "pathogenic", ["a b", "c d"]),
    ],
)
def test_answers_are_cleaned(text, label, diseases):
    assert variants.clean_label(text) == label
    assert variant_effect.diseases(text) == diseases


@given(st.text(max_size=40))
def test_cleaning_twice_is_cleaning_once_and_leaves_no_markup_of_lists(text):
    for clean in (variants.before_semicolon, variants.clean_label):
        assert clean(clean(text)) == clean(text)
    assert not set('[]_"') & set(variants.clean_label(text))


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_columns_of_the_hub_are_read(tmp_path, adapter):
    """Coding data have an ID; non-SNV data another name of a sequence, a cleaned label and an index of pandas."""
    frames = {}
    for split, count in (("train", 40), ("test", 15)):
        frame = rows(split, count, CODING if adapter == ADAPTERS[0] else NON_SNV)
        if adapter == ADAPTERS[0]:
            frame["ID"] = range(100 * len(frames), 100 * len(frames) + count)
        else:
            frame = frame.rename(columns={"variant_sequence": "mutated_sequence"})
            frame["cleaned_pathogenicity"] = frame["answer"].str.partition(";")[0]
            frame["__index_level_0__"] = range(count)
        frame.to_parquet(tmp_path / f"{split}.parquet", index=False)
        frames[split] = frame
    paths = [str(tmp_path / f"{split}.parquet") for split in frames]
    examples = tasks.read(tasks.load("clinvar", entry(adapter, paths)))
    assert set(examples["answer"]) == {"pathogenic", "benign"}
    assert len(examples) == 55
    assert list(examples["id"][:2]) == (["0", "1"] if adapter == ADAPTERS[0] else ["train-1", "train-2"])
    unread = [note for note in examples.attrs["notes"] if "not read" in note]
    assert unread == ([] if adapter == ADAPTERS[0] else ["columns that are not read: __index_level_0__"])


def test_rows_that_have_two_labels_are_left_out_and_counted(tmp_path):
    train = rows("train", 40, NON_SNV).assign(cleaned_pathogenicity="")
    train.loc[:3, "cleaned_pathogenicity"] = ["Pathogenic", "benign", "likely_pathogenic", "benign"]
    paths = save(tmp_path / "raw", NON_SNV, train=train)
    splits.prepare("indels", entry(ADAPTERS[1], paths), 0, tmp_path / "out")
    (dropped,) = splits.read_card(tmp_path / "out")["dropped"]
    reason = "cleaned_pathogenicity is not the effect before `;`"
    assert dropped == {"reason": reason, "rows": 2, "examples": ["train-3", "train-4"]}
    train["cleaned_pathogenicity"] = "1"
    paths = save(
        tmp_path / "raw", NON_SNV, train=train, test=rows("test", 5, NON_SNV).assign(cleaned_pathogenicity="0")
    )
    with pytest.raises(UserError, match=r"tasks\.indels: no row has an answer.*cleaned_pathogenicity .*\(45\)"):
        tasks.read(tasks.load("indels", entry(ADAPTERS[1], paths)))


def test_disease_is_a_task_of_the_rows_that_name_one(tmp_path):
    answers = [*NON_SNV, "pathogenic; ['not_provided']", "benign; ['Marfan_syndrome']", "['Usher_syndrome']"]
    paths = save(tmp_path / "raw", answers)
    given = entry(ADAPTERS[1], paths, id=2, validation=2, options={"target": "disease", "answer_form": True})
    splits.prepare("diseases", given, 0, tmp_path / "out")
    card = splits.read_card(tmp_path / "out")
    assert card["labels"] == ["marfan syndrome", "usher syndrome"]
    assert {entry["reason"]: entry["rows"] for entry in card["dropped"]} == {
        "no disease is named": 19,  # benign, and not_provided
        "several diseases are named": 10,
        "benign, so no disease": 8,
    }
    train = pd.read_parquet(tmp_path / "out/train.parquet")
    assert train["prompt"].str.endswith("where X is the name of the disease in lower case.\n").all()
    with pytest.raises(UserError, match=r"train\.csv: row 6: column 'answer': .* is a list of diseases.*target"):
        tasks.read(tasks.load("effects", entry(ADAPTERS[1], paths)))


def test_a_deletion_is_cut_around_its_place(tmp_path):
    whole = rows("train", 40, NON_SNV, deletion=True)
    paths = save(tmp_path, NON_SNV, train=whole)
    examples = tasks.read(tasks.load("indels", entry(ADAPTERS[1], paths)))
    for number, segments in enumerate(examples["segments"][:40]):
        reference, variant = (part["sequence"] for part in segments)
        center = segments[0]["center"]
        assert reference in whole["reference_sequence"][number]
        assert variant in whole["variant_sequence"][number]
        assert center == 12 or whole["reference_sequence"][number].startswith(reference)
        assert reference[:center] == variant[:center]
        assert reference[center] != variant[center : center + 1]


def test_reasoning_may_be_there_and_may_be_empty(tmp_path):
    train = rows("train", 40, CODING).assign(reasoning=["", "It is conserved."] * 20)
    paths = save(tmp_path, CODING, train=train)
    examples = tasks.read(tasks.load("clinvar", entry(ADAPTERS[0], paths)))
    assert list(examples["reasoning"]) == ["", "It is conserved."] * 20 + [""] * 15
