"""A task whose answers are sets of GO terms, from the file of proteins to the report."""

import json
import random
from pathlib import Path

import pandas as pd
import pytest

from cisterna.report import GAINS_TABLE, METRICS_TABLE, QUOTES_PAGE, RESULTS_PAGE
from clones import CONFIG, Clone, edited, make
from terms import OBO

DOMAINS = {"IPR000719: Protein kinase domain": "GO:0000005", "IPR001425: Rhodopsin pore": "GO:0000025"}


def proteins(path: Path, count: int = 120) -> None:
    """A table with the columns of BioReason-Pro: the domain says the function, and every fourth protein is a fish's."""
    draw = random.Random(0)
    rows = []
    for number in range(count):
        domain, term = draw.choice(list(DOMAINS.items()))
        rows.append(
            {
                "protein_id": f"P{number:05}",
                "sequence": "M" + "".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=12)),
                "organism": "Danio rerio" if number % 4 == 0 else "Homo sapiens",
                "interpro_formatted": domain,
                "go_pred": "",
                "reasoning": "domain",
                "go_mf": term if term == "GO:0000005" else "",
                "go_bp": "",
                "go_cc": term if term == "GO:0000025" else "",
            }
        )
    pd.DataFrame(rows).to_csv(path, index=False)


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    task = {
        "adapter": "go-terms",
        "file": "tables/proteins.csv",
        "options": {"ontology": "tables/go.obo"},
        "ood": ["Danio rerio"],
        "train": 64,
        "validation": 8,
        "id": 18,
    }
    config = edited(
        study="functions",
        tasks={"functions": task},
        lineages=[{"sweep": "rl", "sft": ["brief"], "rl": [{"recipe": "grpo", "from": [16]}]}],
        evaluation__max_new_tokens=24,
        recipes__sft__brief__epochs=[2, 16],
        recipes__rl__grpo=CONFIG["recipes"]["rl"]["grpo"]
        | {"rewards": {"go_f1": 1.0, "tags": 0.5}, "max_completion_length": 24},
    )
    clone = make(tmp_path_factory.mktemp("functions") / "study", config)
    proteins(clone.folder / "tables" / "proteins.csv")
    (clone.folder / "tables" / "go.obo").write_text(OBO)
    clone.snakemake()
    return clone


def test_go_terms_go_from_file_to_report(functions: Clone) -> None:
    study = functions.results / "studies" / "functions"
    table = pd.read_parquet(study / METRICS_TABLE)
    learned = table[(table.kind == "sft") & (table.sft_epochs == 16) & table.group.isna() & (table.split == "id")]
    scores = learned.set_index("metric").value
    assert scores["well_formed"] > 0.5
    assert scores["f1_micro"] > 0
    assert scores["f1_micro_lenient"] > 0
    assert scores["accuracy_lenient"] >= scores["accuracy"]
    gains = pd.read_parquet(study / GAINS_TABLE)
    assert {"f1_micro", "precision_micro", "recall_micro"} <= set(gains.metric)
    assert "skill" not in set(gains.metric)
    page = (study / "figures" / RESULTS_PAGE).read_text()
    assert "micro F1" in page
    assert "lenient micro F1" in page
    assert "MCC" not in page
    quoted = (study / QUOTES_PAGE).read_text()
    assert "partly right" in quoted
    assert "&lt;/think&gt;Answer: GO:" in quoted
    claims = json.loads((study / "findings.json").read_text())["claims"]
    (part,) = [part for claim in claims for part in claim["parts"] if part["part"] == "sft_raises_id"]
    assert part["tasks"]["functions"]["primary_metric"] == "f1_micro"
    assert part["status"] == "measured"


def test_report_of_go_terms_is_written(functions: Clone) -> None:
    functions.snakemake("--report", "report.html")
    assert "micro F1" in (functions.folder / "report.html").read_text()
