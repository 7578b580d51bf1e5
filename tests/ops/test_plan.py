"""The table that `cisterna plan` prints."""

import gzip
import json
import re

import pytest
import yaml

from cisterna import cli, study
from cisterna.ops import plan
from studies import OWN_TABLE
from tiny import ROOT

DEFAULT = ROOT / "config" / "config.yaml"


def rows(text: str) -> dict[tuple[str, ...], list[str]]:
    """Rows of all tables, by their words; cells as printed."""
    found = {}
    for line in text.splitlines():
        cells = re.split(" {2,}", line.strip()) if line else []
        words = tuple(cell for cell in cells if not cell[0].isdigit())
        found[words] = cells[len(words) :]
    return found


@pytest.fixture
def config() -> dict:
    """The default study without encoders."""
    given = yaml.safe_load(DEFAULT.read_text())
    del given["encoders"], given["lineages"][2:]
    return given


def test_default_plan_counts_models_jobs_and_shared_stages(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    default = study.read(DEFAULT)
    assert cli.main(["plan", "--config", str(DEFAULT)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Study default: 63 models (61 trained checkpoints), 70 evaluations, ")
    table = rows(text)
    assert [table["base", name][:2] for name in default.backbones] == [["1", "54"], ["1", "9"]]
    assert table["cpt", "bio"][:2] == ["1", "21"]
    assert [table["sft", "brief", f"e{rung}"][:2] for rung in (1, 2, 4, 8)] == [
        ["11", "4 to 9"],
        ["11", "3 to 8"],
        ["11", "2 to 5"],
        ["11", "1 to 4"],
    ]
    assert [table["rl", "grpo", f"e{rung}"][:2] for rung in (2, 4)] == [["7", "2"], ["7", "1"]]
    assert table["rl", "grpo-r32", "e2"][:2] == ["2", "1"]
    assert table["protein-fitness",][:2] == ["25", "28"]  # of both forms, and two backbones
    assert all((task,) in table for task in default.tasks)


def test_plan_of_the_paper_lists_its_sweeps_whose_new_models_add_up_and_its_assumptions(tmp_path):
    paper = study.read(ROOT / "config" / "paper.yaml")
    text = plan.plan(paper, tmp_path)
    for sweep in paper.sweeps:
        assert f"\n{sweep} " in text
    for words in ("without ladders and banks", "encoder passes", "GPU-hours", "GB on disk", "H100", "1,000 assumed"):
        assert words in text
    trained = sum(model.kind != "base" for model in paper.models)
    assert sum(row[-1] for row in plan.sweep_rows(paper)) == trained
    _, sweeps, _ = text.split("\n\n", 2)
    assert sweeps in (ROOT / "docs" / "paper.md").read_text()
    assert f"{trained} trained checkpoints" in (ROOT / "README.md").read_text()


def test_rungs_count_what_they_add_to_the_rung_before(config, tmp_path):
    config["tasks"] = {"splice-donor": {"train": 100}}
    config["lineages"] = [{"backbones": ["nano"], "sft": ["brief"]}]
    config["recipes"]["sft"]["brief"]["fraction"] = 0.5
    table = rows(plan.plan(study.load(config), tmp_path))
    assert [table["sft", "brief", f"e{rung}"][2] for rung in (1, 2, 4, 8)] == ["50", "50", "100", "200"]
    config["recipes"]["sft"]["brief"]["lr_scheduler_type"] = "cosine"
    table = rows(plan.plan(study.load(config), tmp_path))
    assert [table["sft", "brief", f"e{rung}"][2] for rung in (1, 2, 4, 8)] == ["50", "100", "200", "400"]


def test_estimates_say_what_they_rest_on(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    corpus = tmp_path / "dna.fasta.gz"
    corpus.write_bytes(gzip.compress(b">a\n" + b"A" * 997))
    config["corpora"] = {"dna": {"file": "dna.fasta.gz", "modality": "dna"}}
    config["recipes"]["cpt"]["bio"] = {"corpora": ["dna"], "block_size": 100}
    config["tasks"] = {"splice-donor": {"train": 100}}
    config["recipes"]["rl"]["grpo"].pop("examples")
    loaded = study.load(config)
    text = plan.plan(loaded)
    assert rows(text)["cpt", "bio"][2:] == ["10", "1,000"]
    assert "estimated from file sizes" in text
    few = config | {"corpora": {"dna": config["corpora"]["dna"] | {"train_documents": 7}}}  # 7,000 tokens, if they were
    assert rows(plan.plan(study.load(few)))["cpt", "bio"][2:] == ["10", "1,000"]
    away = config | {"corpora": {"dna": {"file": "not-here.jsonl", "modality": "text", "train_documents": 7}}}
    absent = plan.plan(study.load(away))
    assert rows(absent)["cpt", "bio"][2:] == ["70", "7,000"]
    assert "1,000 a document" in absent
    assert "100 an example, assumed for splice-donor" in text

    card = tmp_path / "results" / "tokens" / "nano" / "dna" / "card.json"
    card.parent.mkdir(parents=True)
    card.write_text(json.dumps({"train": {"tokens": 900}}))
    first = next(model for model in loaded.models if model.kind == "sft")
    manifest = tmp_path / "results" / first.path / "checkpoint" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"trained": {"tokens": 7000}}))
    text = plan.plan(loaded)
    assert rows(text)["cpt", "bio"][2:] == ["9", "900"]
    assert "tokens of cpt: counted" in text
    assert "measured for splice-donor" in text
    assert rows(text)["sft", "brief", "e1"][2:] == ["200", "14,000"]  # 70 an example, two parents


def test_what_cannot_be_counted_is_named(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("dna", "text"):
        config["corpora"][name]["file"] = f"not-here/{name}.txt"
    config["tasks"] = {"mine": OWN_TABLE}
    text = plan.plan(study.load(config))
    assert re.search("not counted: .*: dna, text$", text, re.MULTILINE)
    assert re.search("1,000 assumed .*: mine", text)
