"""The example of data of your own (docs/own-data): its table is rebuilt, and its config splits as it says."""

import subprocess
import sys
from pathlib import Path

import pandas as pd

from cisterna import study
from cisterna.data import splits
from tiny import ROOT

EXAMPLE = ROOT / "docs" / "own-data"


def test_table_of_the_example_is_rebuilt_byte_for_byte(tmp_path: Path) -> None:
    built = tmp_path / "donors.csv"
    subprocess.run([sys.executable, str(ROOT / "scripts" / "build_example.py"), str(built)], check=True)
    assert built.read_bytes() == (EXAMPLE / "donors.csv").read_bytes()


def test_config_of_the_example_holds_whole_genes_out(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    spec = study.read(EXAMPLE / "study.yaml").config["tasks"]["donor-site"]
    splits.prepare("donor-site", spec, spec["seed"], tmp_path / "donor-site")
    card = splits.read_card(tmp_path / "donor-site")
    table = pd.read_csv(EXAMPLE / "donors.csv").set_index("site")
    genes = {}
    for split in ("train", "validation", "id", "ood"):
        rows = pd.read_parquet(tmp_path / "donor-site" / f"{split}.parquet")
        assert len(rows) == card["splits"][split]["rows"]
        genes[split] = set(table.gene[rows.id])
        assert (table["class"][rows.id].to_numpy() == rows.answer).all()
        assert (table.trace[rows.id].to_numpy() == rows.reasoning).all()
    assert not genes["ood"] & (genes["train"] | genes["validation"] | genes["id"])
    assert len(rows) >= 100
