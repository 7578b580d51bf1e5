"""What sharing saves, and how big models are."""

from pathlib import Path
from typing import Any

import pytest

from cisterna import study
from cisterna.ops import cost
from clones import CONFIG, edited
from studies import featured
from tiny import backbone


def test_passes_are_those_of_a_study_counted_by_hand() -> None:
    """Two seeds of one ladder of 1, 2 and 4 epochs, RL of 2 epochs from its first and its last rung."""
    sft, rl = CONFIG["recipes"]["sft"]["short"], CONFIG["recipes"]["rl"]["grpo"]
    config = edited(
        seeds=[0, 1],
        recipes__sft={"short": sft | {"epochs": [1, 2, 4]}},
        recipes__rl={"grpo": rl | {"epochs": [2]}},
        lineages=[{"tasks": ["hairpin"], "sft": ["short"], "rl": [{"recipe": "grpo", "from": [1, 4]}]}],
    )
    found = {row.what: (row.planned, row.alone, row.unshared) for row in cost.passes(study.load(config), lambda *_: 10)}
    assert found["sft epochs"] == (2 * 4, 2 * 7, 2 * (7 + 1 + 4))
    assert found["rl epochs"] == (2 * 4, 2 * 4, 2 * 4)


def test_precomputed_features_cost_no_passes_of_an_encoder() -> None:
    config = featured()
    assert "encoder passes" in {row.what for row in cost.passes(study.load(config), lambda *_: 10)}
    config["encoders"]["nano-esm"] = {"features": "features.npz"}
    assert "encoder passes" not in {row.what for row in cost.passes(study.load(config), lambda *_: 10)}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"pretrained": "Qwen/Qwen3-1.7B"}, 1.7e9),
        ({"pretrained": "Qwen/Qwen3-4B-Thinking-2507"}, 4e9),
        ({"pretrained": "InstaDeepAI/nucleotide-transformer-500m-human-ref"}, 5e8),
        ({"pretrained": "google/gemma-4-E2B-it"}, 2e9),
        ({"pretrained": "some/model"}, None),
    ],
)
def test_parameters_of_a_pretrained_model_are_those_of_its_name(model: dict[str, Any], expected: float | None) -> None:
    assert cost.parameters(model) == expected


def test_parameters_of_a_gpt2_are_counted_and_those_of_an_architecture_without_a_width_are_unknown() -> None:
    gpt2 = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12}
    assert cost.parameters({"architecture": gpt2, "tokenizer": {"vocab_size": 50257}}) == pytest.approx(124e6, rel=0.01)
    assert cost.width({"architecture": gpt2}, 124e6) == 768
    assert cost.parameters({"architecture": {"model_type": "other", "d_model": 64}}) is None


def test_parameters_of_a_model_made_here_are_those_it_has(base: Path) -> None:
    from cisterna import models

    real = sum(weights.numel() for weights in models.compose(base).parameters())
    assert cost.parameters(backbone()) == pytest.approx(real, rel=0.25)
