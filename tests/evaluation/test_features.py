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
    fitted = features.fit(given, {"reference": "dna", "peptide": "protein"}, ["cell", "gene", "dose", "plate", "note"])
    assert fitted.kinds == {
        "reference": "positions", "peptide": "2-mers", "cell": "one-hot", "gene": "one-hot", "dose": "number",
        "plate": "one-hot", "note": "tf-idf",
    }  # fmt: skip
    assert fitted.of(given).shape[0] == len(given)


def test_columns_of_several_weigh_the_same():
    given = table()
    both = features.fit(given, {"peptide": "protein"}, ["cell"]).of(given).toarray()
    assert np.sum(both**2, axis=1) == pytest.approx(2.0)
    alone = features.fit(given, {"peptide": "protein"}).of(given).toarray()
    assert alone.sum(axis=1).tolist() == [len(text) - 1 for text in given["peptide"]]  # counts, as they are


def test_values_that_train_lacks_are_nothing_and_no_error():
    given = table()
    fitted = features.fit(given, {}, ["cell", "dose", "note"])
    new = given.head(1).assign(cell="HeLa", dose="not measured", note="unseen")
    assert not fitted.of(new).toarray().any()


def test_a_category_that_looks_like_a_number_stays_what_was_written():
    given = pd.DataFrame({"group": ["010", "10", "1e1", "NA"] * 5})
    found = features.fit(given, {}, ["group"]).of(given).toarray()
    assert len(np.unique(found, axis=0)) == 4
