"""Stages on two CPU ranks (gloo) with DeepSpeed ZeRO, against one process at the same global batch.

Tolerance: the ranks average their gradients in another order than one process sums them, so every step differs by float
rounding (1e-7 relative), and AdamW, which divides by the gradient's own size, passes that on at the scale of a step.
Measured: at most 4e-7 after 8 to 27 steps, and there are fewer here. TOLERANCE is 1% of one step (the learning rate),
2e-5. With a loss that is normalised on each rank alone (average_tokens_across_devices: false) the difference would be
1.5e-4 to 4e-3, since completions in a batch differ in length.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import families
from cisterna import models, updates
from cisterna.artifacts import checkpoint
from cisterna.training import state
from runs import CPT, RL, SFT, Run, published
from tiny import hub_model
from waiting import wait_until

RATE = 2.0e-3
TOLERANCE = 0.01 * RATE
LOW_RATE = 1.0e-5
LORA = SFT | {"lora": {"r": 4, "lora_alpha": 8}, "fraction": 0.5, "learning_rate": RATE}  # 4 steps an epoch
# Each level of ZeRO, and LoRA, full fine-tuning, features and packed blocks: each once, of their products a few.
STAGES = {
    "cpt-zero1": ("cpt", CPT | {"learning_rate": RATE}, 0.03),
    "sft-zero2": ("sft", LORA, 1),
    "sft-zero3-offload": ("sft", LORA, 1),
    "full-zero3": ("sft", LORA | {"lora": None}, 1),
    "features-zero3": ("sft", LORA, 1),
    "gemma4-features-zero3": ("sft", LORA, 1),
}


def on_ranks(recipe: dict, zero: str) -> dict:
    """The recipe for two ranks, with the same global batch."""
    batch = recipe["per_device_train_batch_size"] // 2
    return recipe | {"per_device_train_batch_size": batch, "deepspeed": zero, "processes": 2}


def torchrun(commands: list[list[str]], folder: Path) -> str:
    """Run commands one after the other in two ranks; their output."""
    (folder / "commands.json").write_text(json.dumps(commands))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = [str(Path(__file__).with_name("stages.py")), str(folder / "commands.json")]
    done = subprocess.run([*launcher, *script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


@pytest.fixture(scope="module")
def features(bank) -> dict[str, object]:
    """How a stage reads its sequences as features."""
    return {"sequences": "features", "bank": bank}


def zero_of(name: str) -> str:
    """The level of ZeRO of a stage."""
    return name[name.index("zero") :]


def stages(folder: Path, bases: dict, splice: Path, dna: Path, features: dict, ranks: bool) -> dict[str, Run]:
    """The runs of STAGES, on two ranks or in one process."""
    return {
        name: Run(
            kind,
            bases["gemma4" if name.startswith("gemma4") else "tiny"],
            dna if kind == "cpt" else splice,
            folder / name,
            on_ranks(recipe, zero_of(name)) if ranks else recipe,
            epochs,
            ladder=name == "sft-zero2",
            reads=features if "features" in name else None,
        )
        for name, (kind, recipe, epochs) in STAGES.items()
    }


@pytest.fixture(scope="module")
def narrow(tmp_path_factory) -> Path:
    """A base in bfloat16 with tied embeddings."""
    folder = tmp_path_factory.mktemp("narrow")
    hub_model(folder / "elsewhere", tie=True, spare=0)[0].to(torch.bfloat16).save_pretrained(folder / "elsewhere")
    models.make_base({"pretrained": str(folder / "elsewhere"), "dtype": "bfloat16"}, folder / "base")
    return folder / "base"


@pytest.fixture(scope="module")
def bases(base, tmp_path_factory) -> dict[str, Path]:
    """The base that most stages start from, and one with per-layer embeddings."""
    folder = tmp_path_factory.mktemp("gemma4")
    # With the large weights of the other tests, the rounding of the first step grows to that of a step in the fourth.
    families.make("gemma4", folder / "elsewhere", initializer_range=0.02)
    models.make_base({"pretrained": str(folder / "elsewhere")}, folder / "base")
    return {"tiny": base, "gemma4": folder / "base"}


@pytest.fixture(scope="module")
def made(base, bases, narrow, splice, dna, features, solved, featured, tmp_path_factory) -> dict[str, Run]:
    """Every stage of STAGES, a rung above the one with ZeRO-2, RL, and some in bfloat16; one start of two ranks."""
    folder = tmp_path_factory.mktemp("zero")
    runs = stages(folder, bases, splice, dna, features, ranks=True)
    zero2 = on_ranks(LORA, "zero2")
    runs["e2"] = Run("sft", base, splice, folder / "sft-zero2", zero2, 2, previous=runs["sft-zero2"])
    runs["straight"] = Run("sft", base, splice, folder / "straight", zero2, 2)
    runs["rl"] = Run("rl", solved.output, splice, folder / "rl", on_ranks(RL, "zero2"), 1)
    runs["rl-features"] = Run(
        "rl", featured.output, splice, folder / "rl-features", on_ranks(RL, "zero3"), 1, reads=features
    )
    low = LORA | {"learning_rate": LOW_RATE, "bf16": True}
    saved = {"r": 4, "lora_alpha": 8, "modules_to_save": ["embed_tokens", "lm_head"]}
    runs["low-lora"] = Run("sft", narrow, splice, folder / "low-lora", on_ranks(low | {"lora": saved}, "zero2"), 1)
    runs["low-above"] = Run("sft", runs["low-lora"].output, splice, folder / "above", on_ranks(low, "zero3"), 1)
    runs["low-full"] = Run("sft", narrow, splice, folder / "low-full", on_ranks(low | {"lora": None}, "zero2"), 1)
    commands = [run.arguments for run in runs.values()]
    (folder / "log").write_text(torchrun(commands, folder))
    return runs


@pytest.fixture(scope="module")
def alone(bases, splice, dna, features, tmp_path_factory) -> dict[str, Run]:
    """The same stages, each in one process."""
    runs = stages(tmp_path_factory.mktemp("alone"), bases, splice, dna, features, ranks=False)
    return {name: run.here() for name, run in runs.items() if name != "sft-zero3-offload"}


@pytest.mark.parametrize("name", STAGES)
def test_two_ranks_publish_what_one_process_publishes(made, alone, name):
    zero = made[name]
    one = alone["sft-zero2" if name == "sft-zero3-offload" else name]
    expected, found = load_file(one.weights), load_file(zero.weights)
    assert expected.keys() == found.keys()
    furthest = max((expected[key] - found[key]).abs().max().item() for key in expected)
    assert furthest < TOLERANCE
    assert one.manifest["trained"]["largest_weight_change"] > 2 * RATE > 100 * TOLERANCE
    for key in ("steps", "epochs", "tokens"):
        assert zero.manifest["trained"][key] == one.manifest["trained"][key]
    assert zero.history[-1]["loss"] == pytest.approx(one.history[-1]["loss"], rel=1e-4)


@pytest.mark.parametrize("name", STAGES)
def test_checkpoint_of_two_ranks_is_whole_and_loads(made, name):
    assert made[name].manifest["recipe"]["deepspeed"] == zero_of(name)
    model = models.compose(made[name].output)
    with torch.no_grad():
        assert torch.isfinite(model(torch.arange(5)[None]).logits).all()
    assert len(published(made[name].output.parent)) == 1


def test_optimizer_state_is_split_over_the_ranks(made):
    folder = made["sft-zero2"].work / "checkpoint-4" / "global_step4"
    assert len(list(folder.glob("*zero_pp_rank_*_optim_states.pt"))) == 2


def test_zero_ladder_resumes_its_state_to_the_weights_of_a_straight_run(made):
    log = (made["rl"].output.parents[2] / "log").read_text()
    assert log.count("resuming from step 4 of 8") == 1  # and said by one rank only
    assert made["e2"].manifest["files"] == made["straight"].manifest["files"]
    assert made["e2"].manifest["identity"] == made["straight"].manifest["identity"]


@pytest.mark.parametrize("name", ["rl", "rl-features"])
def test_rl_on_two_ranks_learns_and_publishes(made, name):
    assert any(entry["frac_reward_zero_std"] < 1 for entry in made[name].history)
    assert made[name].manifest["trained"]["largest_weight_change"] > 0
    models.compose(made[name].output)


@pytest.mark.parametrize("name", ["low-lora", "low-above", "low-full"])
def test_steps_that_bfloat16_does_not_have_are_published_and_composed(made, name):
    """DeepSpeed casts the model to bfloat16 and trains a float32 copy of the weights."""
    stored = load_file(made[name].weights)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert made[name].manifest["measured"]["update_kept"]["composed"] == pytest.approx(1, abs=1e-4)
    folders = checkpoint.parent_of(made[name].output, made[name].manifest), made[name].output
    before, after = (updates.weights(models.compose(folder)) for folder in folders)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert ("lm_head.weight" in moved, "model.layers.0.self_attn.q_proj.weight" in moved) == (name != "low-above", True)
    for key in moved:
        assert (after[key] - before[key]).abs().max() < 8 * 2 * LOW_RATE  # 4 steps, and an adapter is scaled by 2
    if name == "low-full":
        assert {(after[key] != before[key]).float().mean().item() for key in before} == {1.0}


@pytest.mark.parametrize("name", ["features-zero3", "gemma4-features-zero3", "rl-features"])
def test_bridge_is_trained_on_two_ranks(made, name):
    trained = load_file(made[name].weights)
    before = models.compose(checkpoint.parent_of(made[name].output, made[name].manifest))
    bridge = {key: tensor for key, tensor in trained.items() if ".bridge." in key}
    assert len(bridge) == 2
    if hasattr(before, "bridge"):
        assert not torch.equal(before.bridge.weight, bridge["base_model.model.bridge.weight"])


def test_error_in_a_stage_ends_every_rank(base, splice, tmp_path):
    asked = Run("sft", base, splice, tmp_path, on_ranks(LORA, "zero2") | {"learning_rate": 0.0}, 1)
    process = asked.start_ranks(tmp_path / "log", 2)  # rank 0 alone finds that nothing moved; rank 1 waits for it
    assert process.wait(200) != 0
    assert "error: " in (tmp_path / "log").read_text()
    assert "no trained weight moved" in (tmp_path / "log").read_text()
    assert not published(tmp_path)


def test_sigterm_to_every_process_of_two_ranks_saves_the_state_of_both(base, splice, tmp_path):
    """Slurm sends it to torchrun and to every rank, and torchrun sends it on."""
    asked = Run("sft", base, splice, tmp_path / "stopped", on_ranks(LORA | {"logging_steps": 1}, "zero2"), 60)
    process = asked.start_ranks(tmp_path / "log", 2)
    wait_until(lambda: "step 3/" in (tmp_path / "log").read_text(), f"step 3 in {tmp_path / 'log'}", process)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) != 0
    saved = state.latest(asked.work, 240)
    assert (
        f"stopped: {asked.output}: by SIGTERM at step {state.step_of(saved)} of 240" in (tmp_path / "log").read_text()
    )
    assert len(list(saved.rglob("*zero_pp_rank_*_optim_states.pt"))) == len(list(saved.glob("log-*.json"))) == 2
    assert not published(tmp_path)
