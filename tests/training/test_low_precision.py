"""Stages over a backbone in bfloat16: what they train is in float32, is published, and is what the next stage gets."""

import pytest
import torch
from safetensors.torch import load_file
from test_training import climb, same

from cisterna import models, updates
from cisterna.errors import UserError
from cisterna.sequences import tokenization
from cisterna.training import run
from runs import RL, SFT, Run, published

RATE = 1.0e-5
LORA = SFT | {"learning_rate": RATE}
SAVED = {"r": 4, "lora_alpha": 8, "modules_to_save": ["embed_tokens", "lm_head"]}


@pytest.fixture(scope="module")
def answering(solved, base, tmp_path_factory):
    """A base in bfloat16 that can do the task, as on the hub."""
    folder = tmp_path_factory.mktemp("answering")
    models.compose(solved.output).to(torch.bfloat16).save_pretrained(folder / "model")
    tokenization.load(base).save_pretrained(folder / "model")
    models.make_base({"pretrained": str(folder / "model"), "dtype": "bfloat16"}, folder / "base")
    return folder / "base"


@pytest.fixture(scope="module")
def tuned(answering, splice, tmp_path_factory):
    """SFT over it, with a small learning rate, of the layers and the embeddings."""
    return Run("sft", answering, splice, tmp_path_factory.mktemp("tuned"), LORA | {"lora": SAVED}, 1).here()


def test_what_a_small_learning_rate_trains_is_published_and_composed(answering, tuned):
    stored = load_file(tuned.weights)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert {name.split(".")[-2] for name in stored} == {"lora_A", "lora_B", "embed_tokens", "lm_head"}
    assert 0 < tuned.manifest["trained"]["largest_weight_change"] < 8 * 2 * RATE
    assert tuned.manifest["measured"]["update_kept"] == {"composed": pytest.approx(1, abs=1e-4)}
    before, after = (updates.weights(models.compose(folder)) for folder in (answering, tuned.output))
    for name in ("lm_head", "model.embed_tokens"):
        assert torch.equal(after[f"{name}.weight"], stored[f"base_model.model.{name}.weight"])
        moved = (after[f"{name}.weight"] - before[f"{name}.weight"]).abs()
        assert 0.5 * RATE < moved.max() < 8 * 2 * RATE  # bfloat16 has no such steps


def test_rl_above_trains_its_own_adapter_against_the_parent_with_all_it_has(answering, tuned, splice, tmp_path):
    """At the first step the policy is the parent: its distance from the reference is 0 only if that is the parent."""
    recipe = RL | {"beta": 0.1, "activation_checkpointing": True, "bf16": True}
    made = Run("rl", tuned.output, splice, tmp_path, recipe, 1).here()
    assert made.history[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert made.history[-1]["kl"] > 1e-6
    stored = load_file(made.weights)
    assert all("lora_" in name for name in stored)
    assert {tensor.shape[0] for name, tensor in stored.items() if "lora_A" in name} == {2}
    layer = models.compose(made.output).model.layers[0].self_attn.q_proj
    assert (layer.weight.dtype, len(layer.update_down)) == (torch.bfloat16, 4 + 2)


def test_ladder_above_kept_updates_gives_the_weights_of_a_straight_run(tuned, splice, tmp_path):
    ladder = climb("sft", tuned.output, splice, tmp_path / "ladder", LORA, [1, 2])
    assert same(ladder[-1], Run("sft", tuned.output, splice, tmp_path / "straight", LORA, 2).here())


def test_computing_in_bfloat16_leaves_the_updates_of_a_float32_lineage_unmerged(solved, splice, tmp_path):
    parents = []

    def compose(folder, *arguments, **options):
        parents.append(original(folder, *arguments, **options))
        return parents[-1]

    original = models.compose
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "compose", compose)
        Run("sft", solved.output, splice, tmp_path / "bf16", LORA | {"bf16": True, "fraction": 0.2}, 1).here()
        Run("sft", solved.output, splice, tmp_path / "float32", LORA | {"fraction": 0.2}, 1).here()
    bf16, _, float32, _ = parents  # the second of each run measures what it publishes
    kept, merged = (model.model.layers[0].self_attn.q_proj.base_layer for model in (bf16, float32))
    assert len(kept.update_down) == 8
    assert not hasattr(merged, "update_down")


@pytest.mark.parametrize("lora", [LORA["lora"], None], ids=["lora", "full"])
def test_bridge_over_bfloat16_is_float32_in_every_stage(answering, splice, bank, tmp_path, lora):
    reads = {"sequences": "features", "bank": bank}
    sft = Run("sft", answering, splice, tmp_path / "sft", LORA | {"lora": lora, "fraction": 0.2}, 1, reads=reads).here()
    again = Run("sft", sft.output, splice, tmp_path / "again", LORA | {"fraction": 0.2}, 1, reads=reads).here()
    stored = [load_file(made.weights) for made in (sft, again)]
    (first,), (second,) = ([one[name] for name in one if "bridge.weight" in name] for one in stored)
    assert first.dtype == second.dtype == torch.float32
    assert 0 < (second - first).abs().max() < 8 * RATE
    assert torch.equal(models.compose(again.output, torch.bfloat16).bridge.weight, second)


def test_full_weights_over_bfloat16_are_trained_in_float32_and_not_cast_in_silence(tuned, splice, tmp_path):
    full = Run("sft", tuned.output, splice, tmp_path / "full", LORA | {"lora": None, "fraction": 0.2}, 1).here()
    assert {tensor.dtype for tensor in load_file(full.weights).values()} == {torch.float32}
    kept = full.manifest["measured"]["update_kept"]
    assert kept["composed"] == 1
    assert kept["bfloat16"] < kept["float16"] < 0.9
    assert {weight.dtype for weight in models.compose(full.output).parameters()} == {torch.float32}
    refused = Run("rl", full.output, splice, tmp_path / "rl", RL | {"bf16": True}, 1)
    with pytest.raises(UserError, match=rf"{full.output}: .*bfloat16.* keeps 0\.\d\d of .* bf16: false"):
        refused.here()
    assert not published(tmp_path / "rl")
    Run("rl", full.output, splice, tmp_path / "rl", RL, 1).here()


def test_checkpoint_that_the_composed_model_would_not_have_is_not_published(answering, splice, tmp_path):
    with pytest.MonkeyPatch.context() as patch:  # by the rules of `compose` it cannot happen
        patch.setattr(run.models, "update_kept", lambda parent, folder: 0.41)
        with pytest.raises(UserError, match=r"composed model has 0.41 of the update"):
            Run("sft", answering, splice, tmp_path, LORA | {"fraction": 0.2}, 1).here()
    assert not published(tmp_path)


def test_generation_that_casts_what_is_trained_is_refused(answering, splice, tmp_path):
    recipe = RL | {"use_transformers_continuous_batching": True, "bf16": True}
    with pytest.raises(UserError, match=r"use_transformers_continuous_batching .* expected false, or bf16: false"):
        Run("rl", answering, splice, tmp_path, recipe, 1).here()
