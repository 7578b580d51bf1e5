"""Sweeps: the paper's study as a config, budgets, parts of the data, and several encoders."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cisterna import study
from cisterna.errors import UserError
from cisterna.ops import plan, workload
from cisterna.training.stage import head
from clones import CONFIG, edited
from tiny import ROOT

PAPER = ROOT / "config" / "paper.yaml"
MINI = ROOT / "config" / "mini.yaml"


@pytest.fixture(scope="module")
def paper() -> study.Study:
    return study.read(PAPER)


def refused(config: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        study.load(config)
    return str(caught.value)


# --- The paper's study ---


def test_paper_has_more_than_a_hundred_models_of_every_arm(paper: study.Study) -> None:
    trained = [model for model in paper.models if model.kind != "base"]
    assert len(trained) > 100
    assert set(paper.backbones) == {"qwen3-1.7b", "qwen3-4b", "qwen3-4b-thinking", "gemma-4-e2b"}
    assert {(model.task, model.encoder) for model in trained if model.task and model.encoder} == {
        ("kegg", "evo2"),
        ("kegg-nt", "nucleotide-transformer"),
        ("variant-coding", "evo2"),
        ("variant-non-snv", "evo2"),
        ("go-terms", "esm3"),
        ("cells", "transcriptformer"),
    }
    assert {model.backbone for model in trained if model.task == "cells"} == {"qwen3-1.7b", "gemma-4-e2b"}
    assert {model.backbone for model in trained if model.task == "go-terms"} == {"qwen3-4b-thinking"}
    assert {model.sequences for model in trained if model.task == "go-terms" and model.kind == "rl"} == {"tokens"}


def lora(rank: int, dropout: float) -> dict[str, Any]:
    return {"r": rank, "lora_alpha": 2 * rank, "lora_dropout": dropout}


# What the launch scripts of the paper's code pass, or take from the defaults of what they start.
PUBLISHED: dict[tuple[str, str], dict[str, Any]] = {
    ("cpt", "lr3e-4-acc128"): {
        "learning_rate": 3e-4,
        "gradient_accumulation_steps": 128,
        "per_device_train_batch_size": 1,
        "block_size": 1024,
        "weight_decay": 0.01,
        "warmup_steps": 0.03,
        "num_train_epochs": 1,
        "lr_scheduler_type": "cosine",
    },
    ("sft", "r32"): {
        "lora": lora(32, 0.05),
        "learning_rate": 5e-5,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 8,
        "weight_decay": 0.01,
        "epochs": [1, 2, 4, 8, 16, 32],
    },
    ("sft", "protein-epochs"): {
        "lora": lora(128, 0.0),
        "learning_rate": 1e-4,
        "weight_decay": 0.01,
        "epochs": [1, 2, 4, 8, 16, 32],
        "fraction": 0.2,
    },
    ("rl", "dna"): {
        "lora": lora(32, 0.05),
        "learning_rate": 1e-5,
        "num_generations": 8,
        "max_completion_length": 800,
        "temperature": 1.0,
        "top_p": 0.95,
        "top_k": 20,
        "beta": 1e-4,
        "epochs": [1, 2, 4, 8],
    },
    ("rl", "protein"): {
        "learning_rate": 3e-5,
        "num_generations": 2,
        "max_completion_length": 256,
        "temperature": 1.0,
        "top_p": 1.0,
        "beta": 1e-4,
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "epochs": [1, 2, 4, 8],
        "examples": 4000,
    },
}


@pytest.mark.parametrize(("kind", "name"), PUBLISHED)
def test_recipes_of_the_paper_have_the_published_values(paper: study.Study, kind: str, name: str) -> None:
    recipe = paper.recipe(kind, name)
    for key, value in PUBLISHED[kind, name].items():
        found = {part: recipe[key][part] for part in value} if isinstance(value, dict) else recipe[key]
        assert found == value, key


def test_sweeps_of_the_paper_have_the_published_values(paper: study.Study) -> None:
    def values(sweep: str, kind: str, key: str, task: str) -> set[Any]:
        models = (paper.model(path) for path in paper.sweeps[sweep])
        return {
            paper.recipe(kind, str(model.recipe))[key] for model in models if model.kind == kind and model.task == task
        }

    recipes = paper.config["recipes"]
    cpt = {(recipe["learning_rate"], recipe["gradient_accumulation_steps"]) for recipe in recipes["cpt"].values()}
    assert cpt == {(rate, steps) for rate in (1e-5, 3e-4) for steps in (64, 128)}
    assert paper.documents("biology") == {"skip_documents": 5000, "train_documents": 200_000, "heldout_documents": 5000}
    ranks = {
        (model.backbone, recipes["sft"][str(model.sft)]["lora"]["r"], recipes["rl"][str(model.rl)]["lora"]["r"])
        for model in (paper.model(path) for path in paper.sweeps["ranks"])
        if model.kind == "rl" and (model.sft_epochs, model.rl_epochs) == (4, 4)
    }
    both = ("qwen3-1.7b", "qwen3-4b")
    assert ranks == {(backbone, sft, rl) for backbone in both for sft in (16, 64, 256) for rl in (4, 16, 64)}
    assert values("kl", "rl", "beta", "go-terms") == {1e-4, 1e-3}
    fractions = {0.2, 0.4, 0.6, 0.8, 1.0}
    assert values("sft-data", "sft", "fraction", "kegg") == fractions
    assert values("sft-data", "sft", "fraction", "go-terms") == fractions
    prompts = {20_000 * share for share in fractions}
    assert (
        values("rl-data", "rl", "examples", "go-terms") | values("rl-epochs", "rl", "examples", "go-terms") == prompts
    )


def test_rl_of_the_paper_on_a_part_of_the_data_starts_from_sft_on_the_same_part(paper: study.Study) -> None:
    found = set()
    for model in (paper.model(path) for path in paper.sweeps["rl-data"]):
        if model.kind == "rl" and model.task == "kegg":
            parts = paper.recipe("sft", str(model.sft))["fraction"], paper.recipe("rl", str(model.rl))["fraction"]
            assert parts[0] == parts[1]
            found.add((model.backbone, parts[0], model.sft_epochs, model.rl_epochs))
    assert found == {(name, part, 4, 2) for name in ("qwen3-1.7b", "qwen3-4b") for part in (0.2, 0.4, 0.6, 0.8, 1.0)}


def test_sft_and_rl_of_the_paper_above_cpt_are_ladders_from_the_best_of_each_backbone(paper: study.Study) -> None:
    above = [model for model in paper.models if model.cpt and model.task == "kegg" and model.sft != "budget"]
    above = [model for model in above if model.rl != "dna-budget"]
    assert {(model.backbone, model.cpt) for model in above} == {
        ("qwen3-1.7b", "lr3e-4-acc128"),
        ("qwen3-4b", "lr1e-5-acc64"),
    }
    for backbone in ("qwen3-1.7b", "qwen3-4b"):
        mine = [model for model in above if model.backbone == backbone]
        assert {model.sft_epochs for model in mine if model.kind == "sft"} == {1, 2, 4, 8, 16, 32}
        assert {model.rl_epochs for model in mine if model.kind == "rl"} == {1, 2, 4, 8}
    budgets = {(model.backbone, model.cpt) for model in map(paper.model, paper.sweeps["budget-epochs"]) if model.task}
    assert budgets == {("qwen3-1.7b", "lr3e-4-acc128")}


def test_budgets_of_the_paper_are_spent_in_full(paper: study.Study) -> None:
    def spent(sweep: str, of: str) -> set[tuple[float, float]]:
        found = set()
        for model in (paper.model(path) for path in paper.sweeps[sweep]):
            amounts = [0.0, 0.0]
            for index, (kind, name, epochs) in enumerate(
                (("sft", model.sft, model.sft_epochs), ("rl", model.rl, model.rl_epochs))
            ):
                if name:
                    amounts[index] = epochs * (paper.recipe(kind, name)["examples"] if of == "examples" else 1)
            found.add((amounts[0], amounts[1]))
        return found

    assert {(sft, 8 - sft) for sft in range(9)} <= spent("budget-epochs", "epochs")
    assert {(sft, 20_000 - sft) for sft in range(0, 20_001, 5_000)} <= spent("budget-examples", "examples")


def test_a_second_file_changes_only_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text("tasks: {cells: {file: elsewhere/cells.h5ad}}\nresources: {sft: {gpu: 4}}\n")
    before, after = study.read(PAPER), study.read(PAPER, tmp_path / "lab.yaml")
    assert [model.path for model in after.models] == [model.path for model in before.models]
    assert after.sources("cells") == ["elsewhere/cells.h5ad"]
    assert after.resources("sft") == before.resources("sft") | {"gpu": 4}
    assert plan.plan(after, tmp_path) == plan.plan(before, tmp_path)


def test_a_second_file_replaces_the_hub_by_files_and_a_drawn_split_by_a_list(tmp_path: Path) -> None:
    files = ["train.csv", "id.csv", "ood.csv"]
    (tmp_path / "lab.yaml").write_text(
        f"tasks: {{kegg: {{hub: null, file: [{', '.join(files)}]}}, cells: {{split: null, ood: [lupus]}}}}\n"
        "backbones: {gemma-4-e2b: {pretrained: data/gemma, dtype: null}}\n"
    )
    found = study.read(PAPER, tmp_path / "lab.yaml")
    assert found.sources("kegg") == files
    assert "hub" not in found.spec("kegg")
    assert found.sources("kegg-nt") == []
    assert (found.spec("cells")["ood"], "split" in found.spec("cells")) == (["lupus"], False)
    assert found.config["backbones"]["gemma-4-e2b"]["dtype"] == "float32"  # the default


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tasks: {cells: {file: [\n", "lab.yaml:"),
        ("tasks: {}\ntasks: {}\n", "{folder}/lab.yaml:2: tasks: "),
        ("tasks: {cells: {flie: x}}\n", "{folder}/lab.yaml:1: tasks.cells.flie: "),
        ("[1]\n", "{folder}/lab.yaml: "),
    ],
)
def test_a_mistake_in_a_second_file_is_told_with_its_name(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        study.read(PAPER, tmp_path / "lab.yaml")
    assert said.format(folder=tmp_path) in str(caught.value)


# --- The same axes on the data that ship ---


def test_mini_study_has_the_sweeps_of_the_paper_with_three_seeds_of_every_modality(paper: study.Study) -> None:
    mini = study.read(MINI)
    trained = [model for model in mini.models if model.kind != "base"]
    assert len(trained) >= 120
    assert set(mini.sweeps) == set(paper.sweeps)
    assert {model.seed for model in trained if model.kind != "cpt"} == {0, 1, 2}
    modalities = {"promoter-expression": "dna", "splice-donor": "rna", "cell-type": "rna", "protein-fitness": "protein"}
    for kind in ("sft", "rl"):
        assert {modalities[str(model.task)] for model in trained if model.kind == kind} == {"dna", "rna", "protein"}
    assert not [model.path for model in trained if model.kind == "rl" and model.sft is None]  # nothing to learn from


# --- Budgets in examples ---


def budget(split: list[list[int]], **recipes: Any) -> dict[str, Any]:
    sft, rl = CONFIG["recipes"]["sft"]["short"], CONFIG["recipes"]["rl"]["grpo"]
    config = edited(
        recipes__sft={"few": sft | {"epochs": [1], "examples": 8}, "many": sft | {"epochs": [1, 2], "examples": 16}},
        recipes__rl={"few": rl | {"epochs": [1, 3], "examples": 8}},
    )
    config["lineages"] = [
        {
            "tasks": ["hairpin"],
            "sft": ["few", "many"],
            "rl": [{"recipe": "few"}],
            "budget": {"examples": 32, "split": split},
        }
    ]
    return config


def test_recipes_that_spend_the_examples_of_a_split_are_taken() -> None:
    found = study.load(budget([[8, 24], [32, 0]]))
    paths = {model.path.partition("/hairpin/")[2] for model in found.models if model.kind in ("sft", "rl")}
    seed = f"s{CONFIG.get('seeds', [0])[0]}"
    assert paths == {
        f"{seed}/{tail}"
        for tail in ("sft-few/e1", "sft-few/e1/rl-few/e1", "sft-few/e1/rl-few/e3", "sft-many/e1", "sft-many/e2")
    }


def test_split_that_no_recipe_spends_is_refused_with_those_there_are() -> None:
    message = refused(budget([[12, 20]]))
    assert "split[0][0]: " in message
    assert "(8, 16, 32)" in message


# --- Parts of the data ---


@given(st.integers(1, 300), st.lists(st.one_of(st.integers(1, 400), st.floats(0.001, 1.0)), min_size=2, max_size=4))
def test_smaller_parts_lie_in_larger_ones_for_sft_and_rl(rows: int, parts: list[float]) -> None:
    frame = pd.DataFrame({"id": range(rows)})
    recipes = [{"examples": part} if isinstance(part, int) else {"fraction": part} for part in parts]
    found = sorted((list(head(frame, recipe)["id"]) for recipe in recipes), key=len)
    assert all(found[-1][: len(part)] == part for part in found)
    assert [len(head(frame, recipe)) for recipe in recipes] == [
        min(rows, workload.rows_used(recipe, rows)) for recipe in recipes
    ]


# --- Several encoders ---


def test_task_with_two_encoders_has_models_and_a_bank_of_each() -> None:
    config = edited(encoders__other={"pretrained": "some/encoder"})
    forms = {"sequences": ["tokens", "features"], "encoder": ["tiny-esm", "other"]}
    config["tasks"]["splice-donor"] = config["tasks"]["splice-donor"] | forms
    found = study.load(config)
    assert {("tiny-esm", "splice-donor"), ("other", "splice-donor")} == set(found.banks)
    used = {(model.sequences, model.encoder) for model in found.models if model.task == "splice-donor"}
    assert used == {("tokens", None), ("features", "tiny-esm"), ("features", "other")}
