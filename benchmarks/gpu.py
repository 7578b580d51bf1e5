"""Times the two trainers that a study spends its hours in, on the device found here.

    python benchmarks/gpu.py --output benchmarks/RESULTS.md        # defaults for the device
    python benchmarks/gpu.py --stages sft --length 4096 --lora 0   # full fine-tuning

SFT is `trl.SFTTrainer` on packed blocks, GRPO is `trl.GRPOTrainer` with generation by transformers.
Both get the backbone that the workflow itself makes from a config (config/config.yaml on a CPU,
config/gpu.yaml on a GPU), bf16 where the GPU has it, and biological text from the clone. The first
steps warm up and are not counted. The weights are random, so the numbers are speeds, never
qualities. benchmarks/README.md defines every column.

Not for several processes or GPUs: it times one.
"""

import argparse
import os
import platform
import resource
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from transformers import TrainerCallback, set_seed
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from cisterna import models
from cisterna.sequences import tokenization

ROOT = Path(__file__).resolve().parents[1]
TEXT = ROOT / "resources" / "corpora" / "text.txt"

# Peak dense bf16 rate in FLOP/s by the driver's name of the device; the first key that occurs in it
# counts. Sources: NVIDIA's data sheets of the H200, the H100 (SXM, NVL, PCIe), the L40S and the L4,
# whose figures are with sparsity, so half of them stand here; of the A100 and the A10, without; and
# "NVIDIA Ada GPU Architecture" for the RTX 4090 (accumulation in fp32, no sparsity).
PEAK_BF16 = {
    "H200": 989.5e12,
    "H100 NVL": 835.5e12,
    "H100 PCIe": 756.5e12,
    "H100": 989.5e12,
    "A100": 312e12,
    "L40S": 362.05e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165.2e12,
}

COLUMNS = (
    "device, versions, stage, backbone, parameters, trained, attention, batch x length, steps, "
    "checkpointing, s/step, tokens/s, rollout tokens/s, update tokens/s, MFU, peak memory"
).split(", ")

# Where the command line says nothing: small on a CPU, a fair load for one data-centre GPU.
DEFAULTS = {
    "cpu": {"config": "config/config.yaml", "steps": 5, "batch": 8, "length": 256}
    | {"groups": 4, "prompt_length": 64, "completion_length": 96},
    "cuda": {"config": "config/gpu.yaml", "steps": 20, "batch": 16, "length": 2048}
    | {"groups": 8, "prompt_length": 256, "completion_length": 512},
}


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(
        description="Time SFT and GRPO on the device found here; prints rows of a Markdown table.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--stages", nargs="+", choices=["sft", "grpo"], default=["sft", "grpo"])
    add("--config", help="config whose backbone is timed")
    add("--backbone", help="name in the config's `backbones`; by default its first")
    add("--steps", type=int, help="optimizer steps that count")
    add("--warmup", type=int, default=2, help="optimizer steps before them")
    add("--batch", type=int, help="SFT: packed blocks in a step")
    add("--length", type=int, help="SFT: tokens in a packed block")
    add("--lora", type=int, default=64, help="SFT: rank, 0 for full fine-tuning")
    add("--rl-lora", type=int, default=8, help="GRPO: rank, 0 for full fine-tuning")
    add("--groups", type=int, help="GRPO: prompts in a step")
    add("--group-size", type=int, default=8, help="GRPO: completions of a prompt")
    add("--prompt-length", type=int, help="GRPO: tokens of a prompt")
    add("--completion-length", type=int, help="GRPO: most tokens of a completion")
    add("--attention", default="sdpa", help="attention implementation of transformers")
    add("--checkpointing", action="store_true", help="recompute activations to save memory")
    add("--output", type=Path, help="also append the rows to this file")
    parser.set_defaults(**DEFAULTS[device])
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        name, spec = read_backbone(ROOT / options.config, options.backbone)
        models.make_base(spec, base)
        rows = []
        for stage in options.stages:
            set_seed(0)
            model = models.compose(base).train()
            model.set_attn_implementation(options.attention)
            measure = {"sft": measure_sft, "grpo": measure_grpo}[stage]
            row = measure(model, tokenization.load(base), options, Path(folder) / stage)
            rows.append(
                row
                | {"device": device_name(), "versions": versions(), "stage": stage}
                | {"backbone": name, "attention": options.attention}
                | {"checkpointing": "yes" if options.checkpointing else "no"}
                | {"peak memory": peak_memory()}
            )
            del model
            if device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()

    lines = ["| " + " | ".join(row.get(column, "-") for column in COLUMNS) + " |" for row in rows]
    print("\n".join(header() + lines))
    if options.output:
        append(options.output, lines)


def read_backbone(path: Path, name: str | None) -> tuple[str, dict[str, Any]]:
    """Name and value of a backbone of a config, by default its first."""
    os.chdir(ROOT)  # the files named in a config are relative to the clone
    backbones = yaml.safe_load(path.read_text())["backbones"]
    name = name or next(iter(backbones))
    if name not in backbones:
        sys.exit(f"error: {path} has no backbone {name!r}; it has {', '.join(backbones)}")
    return name, backbones[name]


@dataclass
class Clock(TrainerCallback):
    """Seconds of every optimizer step, from its batch to after its update."""

    seconds: list[float] = field(default_factory=list)
    started: float = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.started = now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(now() - self.started)


class TimedGRPOTrainer(GRPOTrainer):
    """GRPOTrainer that notes for every generation its seconds, and the tokens it read and wrote."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.rollouts: list[tuple[float, int, int]] = []
        super().__init__(*arguments, **options)

    def _generate_single_turn(self, prompt_ids: Any, *arguments: Any, **options: Any) -> Any:
        started = now()
        completion_ids, logprobs = super()._generate_single_turn(prompt_ids, *arguments, **options)
        read, written = sum(map(len, prompt_ids)), sum(map(len, completion_ids))
        self.rollouts.append((now() - started, read, written))
        return completion_ids, logprobs


def measure_sft(model: Any, tokens: Any, options: argparse.Namespace, folder: Path) -> dict[str, str]:
    """Tokens per second and MFU of packed SFT with the loss on every token."""
    steps = options.warmup + options.steps
    ids = text_ids(tokens, steps * options.batch * options.length)
    clock = Clock()
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            packing=True,
            packing_strategy="wrapped",  # equal blocks; "bfd" needs flash attention
            max_length=options.length,
            per_device_train_batch_size=options.batch,
            dataloader_drop_last=True,
            learning_rate=1e-4,
            max_steps=steps,
            **common_options(folder, options),
        ),
        train_dataset=Dataset.from_dict({"input_ids": [ids]}),
        processing_class=tokens,
        peft_config=lora(options.lora),
        callbacks=[clock],
    )
    trainer.train()
    seconds = sum(clock.seconds[options.warmup :]) / options.steps
    rate = options.batch * options.length / seconds
    return describe(trainer.model) | {
        "batch x length": f"{options.batch} x {options.length}",
        "steps": str(options.steps),
        "s/step": f"{seconds:.3f}",
        "tokens/s": f"{rate:,.0f}",
        "MFU": utilization(rate * flops_per_token(trainer.model, options.length)),
    }


def measure_grpo(model: Any, tokens: Any, options: argparse.Namespace, folder: Path) -> dict[str, str]:
    """Rollout speed (completion tokens written per second of generation) and update speed.

    The update is everything in a step that is not generation: reward, log-probabilities, loss,
    backward pass, optimizer. Its tokens are prompts and completions together.
    """
    steps = options.warmup + options.steps
    clock = Clock()
    trainer = TimedGRPOTrainer(
        model=model,
        args=GRPOConfig(
            num_generations=options.group_size,
            per_device_train_batch_size=options.groups * options.group_size,
            max_completion_length=options.completion_length,
            temperature=1.0,
            beta=0.0,
            learning_rate=1e-5,
            max_steps=steps,
            **common_options(folder, options),
        ),
        reward_funcs=distinct_words,
        train_dataset=Dataset.from_dict({"prompt": prompts(tokens, steps * options.groups, options.prompt_length)}),
        processing_class=tokens,
        peft_config=lora(options.rl_lora),
        callbacks=[clock],
    )
    trainer.train()
    counted = trainer.rollouts[options.warmup :]
    step_seconds = sum(clock.seconds[options.warmup :])
    rollout_seconds = sum(seconds for seconds, _, _ in counted)
    read, written = sum(read for _, read, _ in counted), sum(written for _, _, written in counted)
    update_seconds = step_seconds - rollout_seconds
    lengths = f"({options.prompt_length} + {options.completion_length})"
    return describe(trainer.model) | {
        "batch x length": f"{options.groups} x {options.group_size} x {lengths}",
        "steps": str(options.steps),
        "s/step": f"{step_seconds / options.steps:.3f}",
        "tokens/s": f"{(read + written) / step_seconds:,.0f}",
        "rollout tokens/s": f"{written / rollout_seconds:,.0f}",
        "update tokens/s": f"{(read + written) / update_seconds:,.0f}",
    }


def common_options(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Options of both trainers; nothing is saved, and bf16 is used where a GPU has it."""
    gpu = torch.cuda.is_available()
    return {
        "output_dir": str(folder),
        "use_cpu": not gpu,
        "bf16": gpu and torch.cuda.is_bf16_supported(),
        "activation_checkpointing": options.checkpointing,
        "dataloader_pin_memory": gpu,
        "logging_steps": 1_000_000,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
    }


def lora(rank: int) -> Any:
    """The adapter of a recipe with this rank (alpha is twice the rank); None for rank 0."""
    return models.lora_config({"r": rank, "lora_alpha": 2 * rank}) if rank else None


def text_ids(tokens: Any, count: int) -> list[int]:
    """The first `count` token ids of the shipped text, which begins again where it ends."""
    lines = [line for line in TEXT.read_text().splitlines() if line.strip()]
    ids = [token for line in tokens(lines)["input_ids"] for token in line]
    return (ids * (count // len(ids) + 1))[:count]


def prompts(tokens: Any, count: int, length: int) -> list[str]:
    """`count` prompts of about `length` tokens each, cut from the shipped text."""
    ids = text_ids(tokens, count * length)
    return tokens.batch_decode([ids[i : i + length] for i in range(0, len(ids), length)])


def distinct_words(completions: list[str], **_: Any) -> list[float]:
    """A reward that differs between completions, so that every group has a gradient."""
    return [float(len(set(text.split()))) for text in completions]


def matrix_parameters(model: Any) -> tuple[int, int]:
    """Parameters that a token is multiplied with, as (all, trained).

    The input embedding is a look-up and does not count, unless it is tied to the output projection.
    """
    looked_up = model.get_input_embeddings().weight
    output = model.get_output_embeddings()
    tied = output is not None and output.weight is looked_up
    every = [weight for weight in model.parameters() if tied or weight is not looked_up]
    return sum(w.numel() for w in every), sum(w.numel() for w in every if w.requires_grad)


def flops_per_token(model: Any, length: int) -> float:
    """Floating-point operations to train on one token of a causal block of `length` tokens.

    A trained parameter takes 6 (2 forward, 2 for the gradient of its input, 2 for its own), a
    frozen one 4 (Kaplan et al., arXiv:2001.08361, section 2.1, which counts the first 6). Attention
    adds 12 L H Q T (PaLM, arXiv:2204.02311, appendix B: L layers, H heads of width Q, T tokens), of
    which a causal mask leaves half. What checkpointing computes twice is not counted.
    """
    config = model.config
    every, trained = matrix_parameters(model)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 6 * config.num_hidden_layers * config.num_attention_heads * head * length
    return 6 * trained + 4 * (every - trained) + attention


def utilization(rate: float) -> str:
    """`rate` (FLOP/s) as a share of the device's peak, or n/a where that is not in the table."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        for part, peak in PEAK_BF16.items():
            if part in name:
                return f"{rate / peak:.1%}"
    return "MFU n/a"


def describe(model: Any) -> dict[str, str]:
    every = sum(weight.numel() for weight in model.parameters())
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return {"parameters": f"{every / 1e6:.1f} M", "trained": f"{trained / 1e6:.1f} M"}


def now() -> float:
    """Seconds, after everything queued on the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory() -> str:
    """Of the GPU's allocator for the stage, or of the whole process on a CPU."""
    if torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    unit = 1 if sys.platform == "darwin" else 2**10
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.1f} GiB"


def device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.is_file() else []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = found[0] if found else platform.machine()
    return f"CPU ({name}, {torch.get_num_threads()} threads), no GPU found"


def versions() -> str:
    names = ("torch", "transformers", "trl")
    return ", ".join(f"{name} {version(name)}" for name in names)


def header() -> list[str]:
    return ["| " + " | ".join(COLUMNS) + " |", "| " + " | ".join("---" for _ in COLUMNS) + " |"]


def append(path: Path, lines: list[str]) -> None:
    """Add rows at the end of the file, which is its table; a new file starts with the header."""
    start = [] if path.is_file() else ["# Measured speeds", "", *header()]
    with path.open("a") as file:
        file.write("\n".join([*start, *lines]) + "\n")


if __name__ == "__main__":
    main()
