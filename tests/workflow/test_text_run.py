"""A task without sequences, as public challenges have them: from the table to the report with only a config."""

import itertools
import json
import random
from pathlib import Path

import pandas as pd
import pytest

from cisterna.report import METRICS_TABLE, RESULTS_PAGE
from clones import CONFIG, Clone, edited, make

CELL_LINES = ("K562", "RPE1", "HepG2")
LABELS = {"kinase": "up", "phosphatase": "down", "transporter": "none"}  # what the perturbation says of the effect


def effects(path: Path) -> None:
    """200 rows: perturbation, gene, cell line and effect, which follows from the kind of the perturbed gene."""
    draw = random.Random(0)
    perturbations = [f"{kind} {number}" for kind in LABELS for number in range(4)]
    genes = [f"gene {letter}" for letter in "ABCDEFGHIJ"]
    triples = draw.sample(list(itertools.product(perturbations, genes, CELL_LINES)), 200)
    rows = pd.DataFrame(triples, columns=["perturbation", "gene", "cell_line"])
    effect = rows["perturbation"].str.split().str[0].map(LABELS)
    rows.insert(0, "row", range(len(rows)))
    rows.assign(effect=effect).to_csv(path, index=False)


@pytest.fixture(scope="module")
def challenge(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    task = {
        "file": "tables/effects.csv",
        "modality": "text",
        "columns": {"id": "row", "label": "effect"},
        "labels": ["up", "down", "none"],
        "prompt": "{perturbation} off in {cell_line}: {gene}? {options}",
        "split": {"by": "group", "column": ["gene", "perturbation"], "ood": 0.3},
        "train": "all",
        "validation": 8,
        "id": 24,
    }
    config = edited(
        study="challenge",
        tasks={"effects": task},
        lineages=[{"sft": ["brief"], "rl": [{"recipe": "grpo", "from": [2]}]}],
        recipes__sft__brief__epochs=[2, 16],
        recipes__rl__grpo=CONFIG["recipes"]["rl"]["grpo"],
    )
    clone = make(tmp_path_factory.mktemp("challenge") / "study", config)
    effects(clone.folder / "tables" / "effects.csv")
    clone.snakemake()
    return clone


def test_a_table_without_sequences_goes_from_file_to_report(challenge: Clone) -> None:
    study = challenge.results / "studies" / "challenge"
    table = pd.read_parquet(study / METRICS_TABLE)
    whole = table[table.group.isna() & (table.split == "id") & (table.metric == "accuracy")]
    assert set(whole.modality) == {"text"}
    learned = whole[(whole.kind == "sft") & (whole.sft_epochs == 16)]
    assert learned.value.item() > 0.5
    assert (whole.kind == "rl").any()
    choices = json.loads((challenge.results / "baselines" / "effects" / "choices.json").read_text())
    assert choices["features"] == dict.fromkeys(["perturbation", "cell_line", "gene"], "one-hot")
    assert "effects" in (study / "figures" / RESULTS_PAGE).read_text()


def test_each_kind_of_unseen_row_is_a_group_of_the_results(challenge: Clone) -> None:
    card = json.loads((challenge.results / "data" / "effects" / "card.json").read_text())
    kinds = {"unseen gene", "unseen perturbation", "unseen gene and perturbation"}
    assert set(card["splits"]["ood"]["groups"]) == kinds
    table = pd.read_parquet(challenge.results / "studies" / "challenge" / METRICS_TABLE)
    assert {"unseen gene", "unseen perturbation"} <= set(table[table.split == "ood"].group.dropna())


def test_new_rows_are_answered_and_the_study_is_whole(challenge: Clone) -> None:
    effects(challenge.folder / "new.csv")
    (checkpoint,) = (path.parent for path in challenge.results.rglob("e16/checkpoint/manifest.json"))
    command = ["cisterna", "predict", str(checkpoint), "--input", "new.csv"]
    challenge.run(*command, "--columns", "id", "up", "down", "none", "--output", "answers.csv")
    answers = pd.read_csv(challenge.folder / "answers.csv")
    assert len(answers) == 200
    assert answers[["up", "down", "none"]].sum(axis=1).dropna().round(3).eq(1).all()
    for command in (["plan"], ["status"], ["verify"]):
        challenge.run("cisterna", *command)


def test_the_report_shows_the_kinds_of_unseen_rows(challenge: Clone) -> None:
    page = (challenge.results / "studies" / "challenge" / "figures" / RESULTS_PAGE).read_text()
    assert "unseen gene" in page
    assert "unseen perturbation" in page
    challenge.snakemake("--report", "report.html")
