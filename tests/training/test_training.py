"""A stage trains what its recipe says, a ladder gives the weights of straight runs, a failed run publishes nothing."""

import json
import os
import re
import shutil
import warnings

import pandas as pd
import pytest
import torch
import transformers
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from cisterna import models
from cisterna.artifacts import files
from cisterna.data.blocks import Blocks
from cisterna.errors import UserError
from cisterna.scoring import answers
from cisterna.sequences import tokenization
from cisterna.training import cpt, rl, sft
from cisterna.training.run import OpenRun
from runs import CPT, RL, SFT, Run, published


def climb(kind, parent, data, folder, recipe, rungs) -> list[Run]:
    ladder: list[Run] = []
    for epochs in rungs:
        previous = ladder[-1] if ladder else None
        ladder.append(Run(kind, parent, data, folder, recipe, epochs, ladder=True, previous=previous).here())
    return ladder


def same(one: Run, other: Run) -> bool:
    """Bit-identical weights and history (the identity hashes the files, the recipe and the steps)."""
    return one.manifest["files"] == other.manifest["files"] and one.manifest["identity"] == other.manifest["identity"]


# --- Ladders ---


WARMUP = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 11}  # into the second rung
ACCUMULATION = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}


def test_sft_ladder_gives_the_weights_and_history_of_a_straight_run(base, splice, tmp_path, capsys):
    recipe = SFT | WARMUP | ACCUMULATION
    ladder = climb("sft", base, splice, tmp_path / "ladder", recipe, [1, 2, 3])
    assert "resuming from step 8 of 16" in capsys.readouterr().out
    straight = Run("sft", base, splice, tmp_path / "straight", recipe, 3).here()
    assert ladder[-1].manifest["trained"]["steps"] == 24
    assert same(ladder[-1], straight)
    assert not same(ladder[0], ladder[1])


def test_full_fine_tuning_ladder_over_cpt_gives_the_weights_of_a_straight_run(base, splice, dna, tmp_path):
    parent = Run("cpt", base, dna, tmp_path / "cpt", CPT, 0.05).here()
    assert parent.manifest["trained"]["tokens"] == round(0.05 * len(Blocks(dna, 64)) * 64)
    recipe = SFT | {"lora": None}
    ladder = climb("sft", parent.output, splice, tmp_path / "ladder", recipe, [1, 2])
    straight = Run("sft", parent.output, splice, tmp_path / "straight", recipe, 2).here()
    assert same(ladder[-1], straight)
    assert straight.weights.name == "model.safetensors"
    models.compose(straight.output)


def test_rl_ladder_gives_the_weights_and_history_of_a_straight_run(solved, splice, tmp_path):
    """Also where a batch of completions serves several steps."""
    recipe = RL | {"num_iterations": 2, "steps_per_generation": 3, "per_device_train_batch_size": 8, "logging_steps": 2}
    recipe |= {"validation": True}
    ladder = climb("rl", solved.output, splice, tmp_path / "ladder", recipe, [1, 2])
    straight = Run("rl", solved.output, splice, tmp_path / "straight", recipe, 2).here()
    assert same(ladder[-1], straight)
    assert [entry["epoch"] for entry in straight.history if "eval_reward" in entry] == [1, 2]


def test_rl_epochs_see_the_prompts_in_different_orders(solved, splice, tmp_path):
    steps = Run("rl", solved.output, splice, tmp_path, RL | {"examples": 64, "temperature": 0.01}, 2)
    trainer = build(steps)
    loader = trainer.get_train_dataloader()
    orders = []
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        orders.append([row["prompt"] for batch in loader for row in batch])
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_deleted_rung_is_published_again_without_training_unless_its_state_is_gone_too(base, splice, tmp_path, capsys):
    lower, upper = climb("sft", base, splice, tmp_path, SFT, [1, 2])
    before = [rung.manifest["identity"] for rung in (lower, upper)]
    shutil.rmtree(lower.output)
    lower.here()
    assert "resuming from step 8 of 8" in capsys.readouterr().out
    shutil.rmtree(upper.work)
    shutil.rmtree(upper.output)
    upper.here()
    assert f"no trainer state of {lower.output}" in capsys.readouterr().out
    assert [rung.manifest["identity"] for rung in (lower, upper)] == before


def test_cosine_makes_each_number_of_epochs_a_run_of_its_own(base, splice, tmp_path, capsys):
    recipe = SFT | {"lr_scheduler_type": "cosine", "logging_steps": 1}
    short = Run("sft", base, splice, tmp_path, recipe, 1).here()
    long = Run("sft", base, splice, tmp_path, recipe, 2).here()
    assert "resuming" not in capsys.readouterr().out
    rate = [{entry["step"]: entry["learning_rate"] for entry in made.history}[8] for made in (short, long)]
    assert rate[0] < 0.05 * SFT["learning_rate"] < 0.5 * SFT["learning_rate"] < rate[1]


# --- What is learned ---


def test_loss_is_the_cross_entropy_of_the_completions(base, splice, tmp_path):
    recipe = SFT | {"lora": {"r": 4}, "fraction": 1.0, "per_device_train_batch_size": 64, "logging_steps": 1}
    made = Run("sft", base, splice, tmp_path, recipe, 1).here()
    tokenizer, model = tokenization.load(base), models.compose(base)
    total = count = 0.0
    for row in pd.read_parquet(splice / "train.parquet").itertuples():
        prompt = tokenizer(tokenization.expand(row.prompt), add_special_tokens=False)["input_ids"]
        text = tokenization.expand(answers.completion(row.reasoning, row.answer)) + tokenizer.eos_token
        completion = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            scores = model(torch.tensor([prompt + completion])).logits[0].log_softmax(dim=-1)
        total -= sum(scores[len(prompt) + at - 1, token].item() for at, token in enumerate(completion))
        count += len(completion)
    assert made.history[0]["loss"] == pytest.approx(total / count, rel=1e-5)


def test_labels_are_the_completion_and_nothing_of_the_prompt(base, splice):
    tokenizer = tokenization.load(base)
    frame = pd.read_parquet(splice / "train.parquet").head(5)
    rows = sft.tokenize(tokenizer, frame)
    for row, ids, labels in zip(frame.itertuples(), rows["input_ids"], rows["labels"], strict=True):
        learned = [label for label in labels if label != -100]
        assert labels == [-100] * (len(ids) - len(learned)) + ids[len(ids) - len(learned) :]
        assert tokenizer.decode(learned) == answers.completion(row.reasoning, row.answer) + tokenizer.eos_token
        assert tokenization.collapse(tokenizer.decode(ids)).startswith(row.prompt)


class Built(BaseException):
    """Raised instead of training; its argument is the trainer."""


def build(asked: Run) -> transformers.Trainer:
    """The trainer of a stage as it is before its first step."""

    def train(run, trainer, **_):
        raise Built(trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OpenRun, "train", train)
        with pytest.raises(Built) as built:
            asked.here()
    return built.value.args[0]


def test_recipe_options_reach_the_library_by_their_names(base, splice, dna, tmp_path):
    shared = {"weight_decay": 0.07, "adam_beta2": 0.97, "max_grad_norm": 0.3}
    own = {"loss_type": "dapo", "epsilon_high": 0.28, "top_k": 20, "scale_rewards": "none"}
    asked = {
        cpt: Run("cpt", base, dna, tmp_path, CPT | shared),
        sft: Run("sft", base, splice, tmp_path, SFT | shared, seed=7),
        rl: Run("rl", base, splice, tmp_path, RL | shared | own),
    }
    for stage, made in asked.items():
        arguments = build(made).args
        for key, value in (shared | (own if stage is rl else {})).items():
            assert getattr(arguments, key) == value
        assert arguments.seed == made.seed
    assert arguments.reward_weights == [1.0, 0.5]


@pytest.fixture(scope="module")
def rewarded(solved, splice, tmp_path_factory):
    """One epoch of RL over SFT."""
    return Run("rl", solved.output, splice, tmp_path_factory.mktemp("rewarded"), RL, 1).here()


def test_rl_rank_is_free_of_the_sft_rank(solved, rewarded):
    for checkpoint, rank in ((solved, 8), (rewarded, 2)):
        assert json.loads((checkpoint.output / "adapter_config.json").read_text())["r"] == rank
        shapes = {tensor.shape[0] for name, tensor in load_file(checkpoint.weights).items() if "lora_A" in name}
        assert shapes == {rank}
    parent, child = (models.compose(checkpoint.output).state_dict() for checkpoint in (solved, rewarded))
    moved = {name for name in parent if not torch.equal(parent[name], child[name])}
    assert any("q_proj" in name for name in moved)
    assert "model.embed_tokens.weight" not in moved


def test_an_adapter_above_another_stage_tells_users_of_peft_that_it_is_not_for_the_base(solved, rewarded, base):
    parent = os.path.relpath(solved.output, rewarded.output)
    for library in (AutoPeftModelForCausalLM, AutoModelForCausalLM):
        with pytest.raises(OSError, match=f"the checkpoint {re.escape(parent)} and not the base: see README.md"):
            library.from_pretrained(rewarded.output)
    with pytest.warns(UserWarning, match="not_an_adapter_of_the_base_see_README"):
        PeftModel.from_pretrained(models.compose(base), rewarded.output)
    text = (rewarded.output / "README.md").read_text()
    assert all(part in text for part in (parent, rewarded.manifest["parent"]["identity"][:12], "cisterna export"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        models.compose(rewarded.output)
    assert json.loads((solved.output / "adapter_config.json").read_text())["base_model_name_or_path"] is None


def test_rl_history_is_the_reward_curve(rewarded):
    assert [entry["step"] for entry in rewarded.history] == [1, 2, 3]
    for entry in rewarded.history:
        parts = entry["rewards/correct/mean"] + 0.5 * entry["rewards/well_formed/mean"]
        assert entry["reward"] == pytest.approx(parts, abs=1e-6)
        assert 0 <= entry["frac_reward_zero_std"] <= 1
    assert rewarded.manifest["trained"]["tokens"] > 0


def test_reward_on_validation_is_that_of_all_batches_and_changes_nothing_in_training(
    solved, rewarded, splice, tmp_path, capsys
):
    made = Run("rl", solved.output, splice, tmp_path, RL | {"validation": True}, 1).here()
    (held_out,) = (entry for entry in made.history if "eval_reward" in entry)
    number = int(re.search(r"reward on validation is that of (\d+) of", capsys.readouterr().out)[1])
    right = held_out["eval_rewards/correct/mean"] * number
    assert right == pytest.approx(round(right))
    assert held_out["eval_reward"] > 0
    assert files.sha256(made.weights) == files.sha256(rewarded.weights)
    assert [entry for entry in made.history if "reward" in entry] == rewarded.history
    assert made.manifest["data"].keys() - rewarded.manifest["data"].keys() == {"validation.parquet"}


def test_rl_starts_cold_from_a_model_that_can_already_answer(solved, splice, base, tmp_path):
    models.compose(solved.output).save_pretrained(tmp_path / "model")
    tokenization.load(base).save_pretrained(tmp_path / "model")
    models.make_base({"pretrained": str(tmp_path / "model")}, tmp_path / "base")
    made = Run("rl", tmp_path / "base", splice, tmp_path / "rl", RL, 1).here()
    assert made.manifest["parent"]["path"] == "../../../base"
    assert any(entry["frac_reward_zero_std"] < 1 for entry in made.history)


def test_full_fine_tuning_over_an_adapter_trains_every_weight(solved, splice, tmp_path):
    made = Run("sft", solved.output, splice, tmp_path, SFT | {"lora": None}, 1).here()
    before, after = models.compose(solved.output).state_dict(), load_file(made.weights)
    assert {name for name in after if torch.equal(before[name], after[name])} == set()


def test_kl_penalty_of_full_fine_tuning_is_against_the_parent(solved, splice, tmp_path):
    recipe = RL | {"lora": None, "beta": 0.1, "learning_rate": 1e-4}
    made = Run("rl", solved.output, splice, tmp_path, recipe, 1).here()
    assert made.history[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert made.history[-1]["kl"] > 1e-6


def test_trainer_state_is_not_published(solved):
    published = {path.name for path in solved.output.iterdir()}
    kept = {"adapter_config.json", "adapter_model.safetensors", "history.json", "inputs.json", "manifest.json"}
    assert published == kept


# --- Guards ---


def test_rl_without_reward_variance_is_an_error_also_when_run_again(base, splice, tmp_path):
    asked = Run("rl", base, splice, tmp_path, RL | {"max_completion_length": 8, "logging_steps": 1000}, 1)
    for _ in range(2):  # the second time the finished trainer state is found in the work folder
        with pytest.raises(UserError, match=r"no group of completions ever had reward variance .*step 3"):
            asked.here()
        assert not published(tmp_path)


def test_learning_rate_of_zero_is_an_error(base, splice, tmp_path):
    asked = Run("sft", base, splice, tmp_path, SFT | {"learning_rate": 0.0}, 1)
    for _ in range(2):
        with pytest.raises(UserError, match="no trained weight moved after 8 steps"):
            asked.here()
        assert not published(tmp_path)


def test_loss_that_is_not_finite_and_logged_at_the_end_alone_is_an_error(base, splice, tmp_path):
    recipe = SFT | {"lora": None, "learning_rate": 1e30, "logging_steps": 1000, "save_minutes": 0}
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at step"):
        Run("sft", base, splice, tmp_path, recipe, 1).here()
    assert not published(tmp_path)


def test_weights_that_are_not_finite_are_an_error(base, splice, tmp_path):
    recipe = SFT | {"lora": None, "learning_rate": 1e38, "per_device_train_batch_size": 64}
    with pytest.raises(UserError, match="trained weights are not finite after 1 steps"):
        Run("sft", base, splice, tmp_path, recipe, 1).here()
    assert not published(tmp_path)


def test_example_longer_than_max_length_is_named(base, splice, tmp_path):
    first = pd.read_parquet(splice / "train.parquet")["id"][0]
    with pytest.raises(UserError, match=rf"58 examples are longer than max_length 16 \(first: {first}\)"):
        Run("sft", base, splice, tmp_path, SFT | {"max_length": 16}, 1).here()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_device_train_batch_size": 6}, "GRPOConfig refuses it: .*divisible"),
        (
            {"per_device_train_batch_size": 128, "examples": 64, "validation": True},
            "validation.parquet: its .* one batch",
        ),
        ({"examples": 3}, "3 prompts do not fill one batch of 4"),
        ({"rewards": {"corect": 1.0}}, "'corect'"),
        ({"rewards": {"go_f1": 1.0}}, "go_f1.*compare sets of GO terms"),
    ],
)
def test_rl_recipe_that_cannot_work_is_refused(base, splice, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        Run("rl", base, splice, tmp_path, RL | options, 1).here()


def test_one_process_uses_one_gpu_unless_told_otherwise(base, splice, tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(UserError):
        Run("sft", base, splice, tmp_path, SFT | {"max_length": 16}, 1).here()
    assert os.environ.pop("CUDA_VISIBLE_DEVICES") == "0"
