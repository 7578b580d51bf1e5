"""What baselines read: sequences, and the other columns of the prompt, each as what it is."""

import numpy as np
import pandas as pd
import pytest

from cisterna.evaluation import features


def table(rows: int = 40) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    words = ["kinase", "binds", "the", "membrane", "of", "dividing", "cells", "slowly"]
    return pd.DataFrame(
        {
            "reference": ["".join(rng.choice(list("ACGT"), 8)) for _ in range(rows)],
            "peptide": ["".join(rng.choice(list("AKLV"), 5 + row % 4)) for row in range(rows)],
            "cell": [("HepG2", "K562", "T cell, activated by CD3 and CD28")[row % 3] for row in range(rows)],
            "gene": [f"GENE{row}" for row in range(rows)],
            "dose": [str(row / 4) for row in range(rows)],
            "plate": [f"{row % 5:03}" for row in range(rows)],
            "note": [" ".join(rng.choice(words, 5)) for _ in range(rows)],
        }
    )


def test_each_column_becomes_what_it_is():
    given = table()
    fitted = features.fit(given, {"reference": "dna", "peptide": "protein"})
    assert fitted.kinds == {
        "reference": "positions", "peptide": "2-mers", "cell": "one-hot", "gene": "one-hot", "dose": "number",
        "plate": "one-hot", "note": "tf-idf",
    }  # fmt: skip
    assert fitted.of(given).shape[0] == len(given)


def test_columns_of_several_weigh_the_same():
    given = table()
    both = features.fit(given[["peptide", "cell"]], {"peptide": "protein"}).of(given).toarray()
    assert np.sum(both**2, axis=1) == pytest.approx(2.0)
    alone = features.fit(given[["peptide"]], {"peptide": "protein"}).of(given).toarray()
    assert alone.sum(axis=1).tolist() == [len(text) - 1 for text in given["peptide"]]  # counts, as they are


def test_values_that_train_lacks_are_nothing_and_no_error():
    given = table()
    fitted = features.fit(given[["cell", "dose", "note"]], {})
    new = given.head(1).assign(cell="HeLa", dose="not measured", note="unseen")
    assert not fitted.of(new).toarray().any()


def test_any_text_can_be_a_column():
    """Infinities, text without words, words of one letter."""
    rows = 30
    given = pd.DataFrame(
        {
            "infinite": ["inf", *(str(row) for row in range(rows - 1))],
            "signs": [" ".join("-+*/"[(row >> place) % 4] for place in range(5)) for row in range(rows)],
            "letters": [f"A C G T {'ACGT'[row % 4]} {'ACGT'[row // 4 % 4]} {row}" for row in range(rows)],
        }
    )
    fitted = features.fit(given, {})
    assert fitted.kinds == {"infinite": "one-hot", "signs": "one-hot", "letters": "tf-idf"}
    assert np.isfinite(fitted.of(given).toarray()).all()


def test_a_task_of_texts_without_a_template_is_read_as_text():
    table = pd.DataFrame({"prompt": ["Is it up? TP53", "Is it up? MYC"]})
    found = features.read(table, CARD | {"modality": "text"})
    assert list(found.texts) == ["text"]
    assert found.modalities == {}


def test_a_category_that_looks_like_a_number_stays_what_was_written():
    given = pd.DataFrame({"group": ["010", "10", "1e1", "NA"] * 5})
    found = features.fit(given, {}).of(given).toarray()
    assert len(np.unique(found, axis=0)) == 4


CARD = {"modality": "dna", "labels": ["up", "none"], "spec": {"file": "own.csv"}}


def own(template: str, prompts: list[str]) -> features.Inputs:
    """What is read of the prompts that a user's template made."""
    table = pd.DataFrame({"sequence": "AC", "prompt": [prompt + "\n" for prompt in prompts]})
    return features.read(table, CARD | {"spec": {"file": "own.csv", "prompt": template}})


def test_columns_that_a_prompt_names_are_read_from_it():
    found = own(
        "{pert} in {cell}: {reference}\n{variant}? {options}. {pert}",
        [
            "TP53 in T cell, 24 h: <dna>AC</dna>\n<protein>KL</protein>? up, none. TP53",
            "A (b) in HepG2: <dna>GG</dna>\n<protein>M</protein>? up, none. A (b)",
        ],
    )
    assert found.texts.to_dict("list") == {
        "pert": ["TP53", "A (b)"], "cell": ["T cell, 24 h", "HepG2"], "reference": ["AC", "GG"], "variant": ["KL", "M"],
    }  # fmt: skip
    assert found.modalities == {"reference": "dna", "variant": "protein"}


def test_prompts_that_do_not_fit_their_template_are_read_as_text():
    found = own("{pert}? {sequence}", ["TP53: <dna>AC</dna>", "MYC: <dna>AC</dna>"])
    assert found.texts.to_dict("list") == {"sequence": ["AC", "AC"], "text": ["TP53:  \n", "MYC:  \n"]}
    assert found.modalities == {"sequence": "dna"}


@pytest.mark.parametrize(
    ("prompts", "columns"),
    [
        (["Q? <dna>AC</dna> Options: up", "Q? <dna>GGG</dna> Options: up"], ["sequence"]),
        (["Q1? <dna>AC</dna>", "Q2? <dna>GGG</dna>"], ["sequence", "text"]),
        (["Q? <dna>A</dna> <dna>C</dna>", "Q? <dna>G</dna> <dna>T</dna>"], ["sequence 1", "sequence 2"]),
        (["Which cell? CD3D LYZ", "Which cell? NKG7"], ["sequence"]),
    ],
    ids="question text two genes".split(),
)
def test_without_a_template_sequences_and_the_text_that_differs_are_read(prompts, columns):
    table = pd.DataFrame({"sequence": ["AC", "GGG"], "prompt": prompts})
    found = features.read(table, CARD)
    assert list(found.texts) == columns
    assert set(found.modalities) == set(columns) - {"text"}


def test_of_a_built_in_task_the_sequence_says_all():
    table = pd.DataFrame({"sequence": ["AC", "GG"], "prompt": ["A1? <dna>A</dna>", "G2? <dna>G</dna>"]})
    assert list(features.read(table, CARD | {"spec": {"train": 10}}).texts) == ["sequence"]
