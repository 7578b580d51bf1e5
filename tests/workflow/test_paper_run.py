"""The paper's study in miniature: config/paper.yaml with tiny models of the same architectures and a few rows of data.

The files have the columns of the published data, the backbones the chat templates of their kind. `miniature` says what
is made smaller; all else, from the options of the tasks to the rewards, is that of config/paper.yaml.
"""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from test_chat_template import ALWAYS, CONTROL, GEMMA, HYBRID
from test_encoders_nucleotide_transformer import publish, weights
from transformers import AutoTokenizer

import families
import paper_files
from cisterna.artifacts import files
from cisterna.report import METRICS_TABLE, RESULTS_PAGE, REWARDS_TABLE
from clones import Clone, Config
from tiny import ROOT

TEMPLATES = {"qwen3-1.7b": HYBRID, "qwen3-4b-thinking": ALWAYS, "gemma-4-e2b": GEMMA}
TASKS = {
    "kegg": [f"data/kegg-{split}.parquet" for split in paper_files.SPLITS],
    "variant-coding": [f"data/coding-{split}.csv" for split in paper_files.SPLITS],
    "variant-non-snv": [f"data/non-snv-{split}.parquet" for split in paper_files.SPLITS],
    "go-terms": "data/proteins.parquet",
    "cells": "data/cells.h5ad",
}
SMALL = {
    "deepspeed": None,
    "gradient_accumulation_steps": 1,
}
SFT = {"epochs": [12], "fraction": 1.0, "examples": 16, "learning_rate": 5.0e-3, "warmup_steps": 5}
SFT |= {"max_length": 512}  # three or four examples
RL = {"epochs": [1], "examples": 8, "max_completion_length": 48, "per_device_train_batch_size": 8}


def miniature() -> Config:
    """config/paper.yaml with small files and models, and of its lineages one of each kind, each with one rung."""
    config: Config = yaml.safe_load((ROOT / "config" / "paper.yaml").read_text())
    recipes = config["recipes"]
    config |= {
        "study": "miniature",
        # Without its thought, the tiny Gemma learns to answer in as few steps as the others.
        "backbones": {
            name: config["backbones"][name] | {"pretrained": f"models/{name}", "chat_template_kwargs": {}}
            for name in TEMPLATES
        },
        "encoders": {
            "evo2": {"pretrained": "models/nucleotide-transformer", "pool": 6},
            "esm3": {"features": "data/proteins.safetensors", "per": "residue"},
            "transcriptformer": config["encoders"]["transcriptformer"],
        },
        "tasks": {name: small_task(config["tasks"][name], files) for name, files in TASKS.items()},
        "evaluation": config["evaluation"] | {"max_new_tokens": 48, "bootstrap": 100},
        "resources": {},
        "report": {"published": str(ROOT / config["report"]["published"])},
        "lineages": [
            {
                "tasks": ["kegg"],
                "backbones": ["qwen3-1.7b"],
                "cpt": ["lr3e-4-acc128"],
                "sft": ["r32"],
                "rl": [{"recipe": "dna", "from": [12]}],
            },
            {"tasks": ["variant-coding", "variant-non-snv"], "backbones": ["qwen3-1.7b"], "sft": ["variant"]},
            {"tasks": ["cells"], "backbones": ["gemma-4-e2b"], "sft": ["r32"], "rl": [{"recipe": "dna", "from": [12]}]},
            {
                "tasks": ["go-terms"],
                "sequences": ["features"],
                "backbones": ["qwen3-4b-thinking"],
                "sft": ["protein-epochs"],
            },
            {
                "tasks": ["go-terms"],
                "sequences": ["tokens"],
                "backbones": ["qwen3-4b-thinking"],
                "sft": ["protein-data20"],
                "rl": [{"recipe": "protein", "from": [12]}],
            },
        ],
    }
    config["corpora"]["biology"] |= {
        "file": "data/biology.jsonl",
        "skip_documents": 5,
        "train_documents": 20,
        "heldout_documents": 2,
    }
    recipes["cpt"] = {"lr3e-4-acc128": recipes["cpt"]["lr3e-4-acc128"] | SMALL | {"block_size": 64}}
    recipes["sft"] = {
        name: recipes["sft"][name] | SMALL | SFT for name in ("r32", "variant", "protein-epochs", "protein-data20")
    }
    recipes["rl"] = {name: recipes["rl"][name] | SMALL | RL for name in ("dna", "protein")}
    return config


def small_task(task: dict[str, Any], files: object) -> dict[str, Any]:
    """A task of config/paper.yaml with its options, of a file of a few rows."""
    task = {key: value for key, value in task.items() if key not in ("hub", "train", "validation", "id")} | {
        "file": files
    }
    if "ontology" in task["options"]:
        task["options"] = task["options"] | {"ontology": "data/go-basic.obo"}
    return task | {"train": "all", "validation": 4} | ({"id": 6} if "split" in task else {})


def backbone(name: str, folder: Path) -> None:
    """A folder as on the hub: a tiny model of the family, with a chat template of its kind."""
    family = "gemma4" if name.startswith("gemma") else "qwen3"
    # The final norm and the tied embedding, which LoRA does not train, bound how sure a small model can be.
    # The row of the padding token is 0; that of the end token must not be.
    families.make(family, folder, max_position_embeddings=1024, initializer_range=0.5, pad_token_id=1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": CONTROL})
    tokenizer.chat_template = TEMPLATES[name]
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    folder = tmp_path_factory.mktemp("paper") / "study"
    for name in ("config", "data", "models/nucleotide-transformer", *(f"models/{name}" for name in TEMPLATES)):
        (folder / name).mkdir(parents=True)
    paper_files.write(folder / "data")
    for name in TEMPLATES:
        backbone(name, folder / "models" / name)
    publish(folder / "models" / "nucleotide-transformer", weights())
    clone = Clone(folder)
    clone.write(miniature())
    clone.snakemake("--keep-going")
    return clone


def test_the_paper_goes_from_its_files_to_a_report(study: Clone) -> None:
    folder = study.results / "studies" / "miniature"
    table = pd.read_parquet(folder / METRICS_TABLE)
    trained = table[table.kind.isin(["sft", "rl"]) & table.group.isna() & (table.metric == "well_formed")]
    assert set(zip(trained.task, trained.split, strict=True)) == {
        (task, split) for task in TASKS for split in ("id", "ood")
    }
    # Forty-eight steps are too few for the answers of kegg, and for an organism that train does not have.
    assert trained[(trained.task != "kegg") & (trained.split == "id")].value.min() > 0.5
    assert (pd.read_parquet(folder / REWARDS_TABLE).groupby("model").reward.max() > 0).all()
    page = (folder / "figures" / RESULTS_PAGE).read_text()
    assert all(f"<h2>{task} " in page for task in TASKS)
    assert "Nothing is missing" in page
    assert "could not be drawn" not in page


def test_labels_and_splits_are_those_of_the_published_data(study: Clone) -> None:
    cards = {task: files.read_json(study.results / "data" / task / "card.json") for task in TASKS}
    assert cards["variant-non-snv"]["labels"] == cards["variant-coding"]["labels"] == ["benign", "pathogenic"]
    assert cards["kegg"]["labels"] == sorted(name.lower() for name in paper_files.DISEASES)
    for task in ("kegg", "variant-coding", "variant-non-snv"):
        assert [cards[task]["splits"][split]["rows"] for split in ("id", "ood")] == [8, 8]


def test_outputs_have_one_thought_in_the_form_of_the_backbone(study: Clone) -> None:
    models = study.results / "models"
    conventions = {name: files.read_json(models / name / "base/checkpoint/conventions.json") for name in TEMPLATES}
    assert conventions["gemma-4-e2b"]["thought"][0].startswith("<|channel>")
    assert conventions["qwen3-4b-thinking"]["opening"] == "<think>\n"
    for name in ("gemma-4-e2b", "qwen3-4b-thinking"):
        for path in models.glob(f"{name}/base/*/**/e*/eval/id.parquet"):
            outputs = pd.read_parquet(path)
            assert (outputs[outputs.well_formed].output.str.count("<think>") == 1).all()
