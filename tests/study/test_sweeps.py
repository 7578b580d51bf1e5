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


def test_paper_has_more_than_a_hundred_models_on_every_axis(paper: study.Study) -> None:
    trained = [model for model in paper.models if model.kind != "base"]
    assert len(trained) > 100
    assert set(paper.backbones) == {"qwen3-1.7b", "qwen3-4b", "qwen3-4b-thinking"}
    assert set(paper.encoders) == {"evo2", "nucleotide-transformer", "esm3"}
    assert {model.sft_epochs for model in trained if model.sft == "r64"} == {1, 2, 4, 8, 16, 32}
    assert {model.rl_epochs for model in trained if model.rl == "dna"} == {1, 2, 4, 8}
    recipes = paper.config["recipes"]
    ranks = {
        (recipes["sft"][str(model.sft)]["lora"]["r"], recipes["rl"][str(model.rl)]["lora"]["r"])
        for model in (paper.model(path) for path in paper.sweeps["ranks"])
        if model.kind == "rl"
    }
    assert ranks == {(sft, rl) for sft in (16, 64, 256) for rl in (4, 16, 64)}
    kl = (paper.model(path) for path in paper.sweeps["kl"])
    assert {recipes["rl"][str(model.rl)]["beta"] for model in kl if model.kind == "rl"} == {1e-4, 1e-3}
    cpt = {(recipe["learning_rate"], recipe["gradient_accumulation_steps"]) for recipe in recipes["cpt"].values()}
    assert cpt == {(rate, steps) for rate in (1e-5, 3e-4) for steps in (64, 128)}


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
