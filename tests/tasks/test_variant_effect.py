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
DISEASES = ["['Marfan_syndrome']", "['Wilson_disease', 'Ectopia_lentis']", "Benign"]


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
    paths = save(tmp_path / "raw", CODING if adapter == ADAPTERS[0] else DISEASES)
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
    assert (
        card["labels"]
        == {
            ADAPTERS[0]: ["benign", "pathogenic"],
            ADAPTERS[1]: ["benign", "marfan syndrome", "wilson disease, ectopia lentis"],
        }[adapter]
    )
    assert card["modality"] == "dna"


def test_id_of_data_without_an_id_split_needs_a_number(tmp_path):
    paths = save(tmp_path / "raw", CODING)
    with pytest.raises(UserError, match=r"tasks\.clinvar\.id: all rows are asked for, but the data have no id split"):
        splits.prepare("clinvar", entry(ADAPTERS[0], paths, id="all"), 0, tmp_path / "out")


def test_docstring_example_is_true(tmp_path):
    documented = " ".join(variant_effect.__doc__.split())
    row = {
        "question": "This variant lies in SOD1 on chromosome 21. What is its effect?",
        "answer": "Pathogenic; amyotrophic_lateral_sclerosis",
        "reference_sequence": "AGTTATGGCGACGAAGGCCGTGTGCGTGC",
        "variant_sequence": "AGTTATGGCGACGAAGGTCGTGTGCGTGC",
    }
    assert " ".join(f"{name} {value}" for name, value in row.items()) in documented
    paths = save(tmp_path, CODING, train=pd.DataFrame([row]))
    example = tasks.read(tasks.load("clinvar", entry(ADAPTERS[0], paths, options={"flank": 8}))).iloc[0]
    fields = f"prompt {example['prompt']} trace {example['reasoning']} answer {example['answer']}"
    assert " ".join(fields.split()) in documented
    assert "`['Marfan_syndrome', 'Ectopia_lentis']`" in documented
    assert variant_effect.clean_diseases("['Marfan_syndrome', 'Ectopia_lentis']") == "marfan syndrome, ectopia lentis"


@pytest.mark.parametrize(
    ("text", "coding", "diseases"),
    [
        ("Benign", "benign", "benign"),
        ("Pathogenic; Marfan_syndrome", "pathogenic", "pathogenic; marfan syndrome"),
        ("['Marfan_syndrome']", "['marfan_syndrome']", "marfan syndrome"),
        (
            "['Wilson_disease'  'Ectopia_lentis']",
            "['wilson_disease'  'ectopia_lentis']",
            "wilson disease ectopia lentis",
        ),
        ('["Wilson\'s_disease"]', '["wilson\'s_disease"]', "wilson's disease"),
        ("  ['A_b',\n 'C']", "['a_b',\n 'c']", "a b, c"),
    ],
)
def test_answers_are_cleaned(text, coding, diseases):
    assert variants.before_semicolon(text) == coding
    assert variant_effect.clean_diseases(text) == diseases


@given(st.text(max_size=40))
def test_cleaning_twice_is_cleaning_once_and_leaves_no_markup_of_lists(text):
    for clean in (variants.before_semicolon, variant_effect.clean_diseases):
        assert clean(clean(text)) == clean(text)
    assert not set('[]_"') & set(variant_effect.clean_diseases(text))


def test_a_deletion_is_cut_around_its_place(tmp_path):
    whole = rows("train", 40, DISEASES, deletion=True)
    paths = save(tmp_path, DISEASES, train=whole)
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
