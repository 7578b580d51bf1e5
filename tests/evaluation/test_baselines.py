"""Baselines on real sequences, those of the shipped corpora, with planted labels."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from cisterna.data import corpus, similarity
from cisterna.errors import UserError
from cisterna.evaluation import baselines
from cisterna.evaluation.features import sequence_kind
from cisterna.scoring.answers import Labels

CORPORA = Path(__file__).resolve().parents[2] / "resources" / "corpora"
LABELS = ("no", "yes")


def planted(length: int | None, modality: str = "dna") -> pd.DataFrame:
    """Real sequences; "yes" if G or C (hydrophobic residues) outweigh the median of the first 8."""
    signal = "GC" if modality == "dna" else "AVILMFWY"
    sequences = [
        document[: length or 40 + 5 * (number % 9)]
        for number, document in enumerate(corpus.documents(CORPORA / f"{modality}.fasta.gz", modality))
        if len(document) >= 80
    ]
    table = pd.DataFrame({"sequence": sequences}).drop_duplicates(ignore_index=True)
    head = 8 if length else 100
    share = table["sequence"].map(lambda text: np.mean([letter in signal for letter in text[:head]]))
    table["answer"] = np.where(share > share.median(), "yes", "no")
    table["id"] = [f"row{number}" for number in range(len(table))]
    return table


def write(table: pd.DataFrame, folder: Path, prompts: list[str] | None = None) -> Path:
    """The table as four splits of 50 / 10 / 20 / 20 %."""
    folder.mkdir()
    table = table.assign(prompt=prompts or table["sequence"], group=[f"group {row % 2}" for row in range(len(table))])
    cuts = [int(len(table) * share) for share in (0, 0.5, 0.6, 0.8, 1)]
    for split, start, stop in zip(("train", "validation", "id", "ood"), cuts[:-1], cuts[1:], strict=True):
        table.iloc[start:stop].to_parquet(folder / f"{split}.parquet", index=False)
    return folder


def fit(
    data: Path, output: Path, modality: str = "dna", labels: tuple[str, ...] = LABELS, spec: dict | None = None
) -> dict:
    card = {"modality": modality, "labels": list(labels), "spec": spec or {}}
    baselines.run(data, output, Labels(tuple(labels)), card, seed=0, bootstrap=200)
    return json.loads((output / "metrics.json").read_text())


def value(scores: dict, baseline: str, metric: str = "accuracy", split: str = "id") -> float:
    return scores[baseline][split][metric]["value"]


@pytest.mark.parametrize(
    ("length", "modality", "features"), [(30, "dna", "positions"), (None, "dna", "3-mers"), (None, "protein", "2-mers")]
)
def test_logistic_regression_finds_a_planted_signal(tmp_path, length, modality, features):
    data = write(planted(length, modality), tmp_path / "data")
    scores = fit(data, tmp_path / "out", modality)
    assert json.loads((tmp_path / "out" / "choices.json").read_text())["features"] == features
    for split in ("id", "ood"):
        logistic = scores["logistic"][split]["accuracy"]
        assert logistic["low"] > scores["majority"][split]["accuracy"]["high"]


@pytest.mark.parametrize(
    ("length", "features"), [(similarity.ALIGNED, "positions"), (similarity.ALIGNED + 1, "3-mers")]
)
def test_long_sequences_of_one_length_are_not_taken_for_aligned(length, features):
    assert sequence_kind(pd.Series(["A" * length, "C" * length]), "dna")[0] == features


def test_a_marker_gene_is_found_in_a_list_of_words(tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "DENSE", 1)  # boosting reads the most telling gene alone
    genes = ["CD3D", "MS4A1", "NKG7", "LYZ", "ACTB", "B2M", "RPLP0", "MALAT1", "HLA-A", "HLA-B"]
    random = np.random.default_rng(0)
    cells = [" ".join(random.choice(genes, 5, replace=False)) for _ in range(400)]
    table = pd.DataFrame({"id": [f"c{i}" for i in range(400)], "sequence": cells})
    table["answer"] = np.where(table["sequence"].str.contains("HLA-A"), "yes", "no")
    scores = fit(write(table, tmp_path / "data"), tmp_path / "out", "rna")
    assert json.loads((tmp_path / "out" / "choices.json").read_text())["features"] == "words"
    assert value(scores, "logistic") == value(scores, "boosting") == 1.0


def test_boosting_finds_what_no_sum_of_letters_says(tmp_path):
    """Whether two letters are equal: trees can say it, logistic regression gets one of the four cases wrong."""
    table = planted(30)
    first = np.random.default_rng(0).choice(["A", "C"], (len(table), 2), p=[0.6, 0.4])
    table["sequence"] = [a + b + text[2:] for (a, b), text in zip(first, table["sequence"], strict=True)]
    table["answer"] = ["yes" if text[0] == text[1] else "no" for text in table["sequence"]]
    scores = fit(write(table, tmp_path / "data"), tmp_path / "out")
    assert value(scores, "boosting") > 0.95
    assert value(scores, "boosting", "auroc") > 0.95
    assert value(scores, "logistic") < 0.9
    assert json.loads((tmp_path / "out" / "choices.json").read_text())["boosting"]["max_iter"] in baselines.ROUNDS


def test_other_columns_of_the_prompt_are_learned_from(tmp_path):
    """The gene that a prompt names decides; the sequence says nothing."""
    table = planted(30)
    genes = np.random.default_rng(0).integers(0, 8, len(table))
    table["answer"] = np.where(genes < 4, "yes", "no")
    prompts = [f"Gene G{gene}: <dna>{text}</dna>\n" for gene, text in zip(genes, table["sequence"], strict=True)]
    data = write(table, tmp_path / "data", prompts)
    spec = {"file": "own.csv", "prompt": "Gene {gene}: {sequence}"}
    scores = fit(data, tmp_path / "out", spec=spec)
    for name in ("knn", "logistic", "boosting"):
        assert value(scores, name) > 0.95, name
    features = json.loads((tmp_path / "out" / "choices.json").read_text())["features"]
    assert features == {"gene": "one-hot", "sequence": "positions"}


def test_groups_and_probabilities_of_baselines_are_scored(tmp_path):
    data = write(planted(30), tmp_path / "data")
    scores = fit(data, tmp_path / "out")
    for split in ("id", "ood"):
        found = pd.read_parquet(tmp_path / "out" / f"{split}.parquet")
        group = pd.read_parquet(data / f"{split}.parquet")["group"] == "group 1"
        for name, rows in found.groupby("baseline"):
            truth, given = (rows["gold"] == "yes").to_numpy(), rows["probability:yes"].to_numpy()
            assert value(scores, name, "auroc", split) == pytest.approx(roc_auc_score(truth, given), abs=1e-6)
            of_group = scores[name]["groups"][split]["group 1"]
            assert of_group["accuracy"]["n"] == group.sum()
            expected = roc_auc_score(truth[group], given[group])
            assert of_group["auroc"]["value"] == pytest.approx(expected, abs=1e-6)


def test_label_that_train_lacks_has_probability_zero(tmp_path):
    data = write(planted(30), tmp_path / "data")
    fit(data, tmp_path / "out", labels=("maybe", "no", "yes"))
    table = pd.read_parquet(tmp_path / "out" / "id.parquet")
    assert list(table.columns[-3:]) == ["probability:maybe", "probability:no", "probability:yes"]
    assert (table["probability:maybe"] == 0).all()


def test_majority_accuracy_is_the_share_of_the_largest_train_class(tmp_path):
    table = planted(30)
    table.loc[table.index % 3 > 0, "answer"] = "no"
    data = write(table, tmp_path / "data")
    scores = fit(data, tmp_path / "out")
    for split in ("id", "ood"):
        gold = pd.read_parquet(data / f"{split}.parquet")["answer"]
        assert value(scores, "majority", split=split) == pytest.approx((gold == "no").mean())
        assert value(scores, "majority", "skill", split) == pytest.approx(0)


def test_labels_of_the_test_splits_change_no_prediction(tmp_path):
    data = write(planted(30), tmp_path / "data")
    fit(data, tmp_path / "before")
    for split in ("id", "ood"):
        table = pd.read_parquet(data / f"{split}.parquet")
        table["answer"] = table["answer"].map({"no": "yes", "yes": "no"})
        table.to_parquet(data / f"{split}.parquet", index=False)
    fit(data, tmp_path / "after")
    for split in ("id", "ood"):
        before, after = (pd.read_parquet(tmp_path / name / f"{split}.parquet") for name in ("before", "after"))
        assert before["predicted"].equals(after["predicted"])
        assert not before["gold"].equals(after["gold"])
    choices = [(tmp_path / name / "choices.json").read_text() for name in ("before", "after")]
    assert choices[0] == choices[1]


def test_validation_chooses_the_penalty_and_is_not_trained_on(tmp_path):
    data = write(planted(30), tmp_path / "data")
    fit(data, tmp_path / "before")
    table = pd.read_parquet(data / "validation.parquet")
    table["answer"] = table["answer"].map({"no": "yes", "yes": "no"})
    table.to_parquet(data / "validation.parquet", index=False)
    fit(data, tmp_path / "after")
    chosen = [json.loads((tmp_path / name / "choices.json").read_text()) for name in ("before", "after")]
    assert chosen[0]["logistic"]["C"] != chosen[1]["logistic"]["C"]
    scores = json.loads((tmp_path / "after" / "metrics.json").read_text())
    assert value(scores, "logistic") > 0.6  # it learned from train, not from the flipped labels


def test_every_example_has_one_prediction_of_each_baseline(tmp_path):
    data = write(planted(30), tmp_path / "data")
    fit(data, tmp_path / "out")
    for split in ("id", "ood"):
        table = pd.read_parquet(tmp_path / "out" / f"{split}.parquet")
        columns = ["probability:no", "probability:yes"]
        assert list(table.columns) == ["id", "baseline", "gold", "predicted", *columns]
        assert set(table["baseline"]) == {"majority", "knn", "logistic", "boosting"}
        np.testing.assert_allclose(table[columns].sum(axis=1), 1, rtol=1e-6)
        likely = np.where(table["probability:yes"] > 0.5, "yes", "no")
        assert (likely == table["predicted"])[table["probability:yes"] != 0.5].all()
        gold = pd.read_parquet(data / f"{split}.parquet")
        for _, rows in table.groupby("baseline"):
            assert rows["id"].tolist() == gold["id"].tolist()
            assert rows["gold"].tolist() == gold["answer"].tolist()
        assert set(table["predicted"]) <= set(LABELS)


def test_two_runs_give_the_same_bytes(tmp_path):
    data = write(planted(None), tmp_path / "data")
    for name in ("one", "two"):
        fit(data, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["choices.json", "id.parquet", "metrics.json", "ood.parquet"]
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_train_with_one_label_is_refused_and_leaves_nothing(tmp_path):
    table = planted(30)
    data = write(table, tmp_path / "data")
    train = pd.read_parquet(data / "train.parquet")
    train["answer"] = "no"
    train.to_parquet(data / "train.parquet", index=False)
    with pytest.raises(UserError, match=r"train\.parquet: every answer is 'no'"):
        fit(data, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_missing_split_is_named(tmp_path):
    data = write(planted(30), tmp_path / "data")
    (data / "ood.parquet").unlink()
    with pytest.raises(UserError, match=r"ood\.parquet"):
        fit(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()
