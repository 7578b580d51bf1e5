"""Time SFT and GRPO on the GPU, or on the CPU if there is none.

    python benchmarks/gpu.py --output benchmarks/RESULTS.md        # defaults for the device
    python benchmarks/gpu.py --stages sft --length 4096 --lora 0   # full fine-tuning

SFT is `trl.SFTTrainer` on packed blocks; GRPO is `trl.GRPOTrainer` with generation by transformers. Both train the
backbone that the workflow makes from a config (config/config.yaml on a CPU, config/gpu.yaml on a GPU), in bf16 if the
GPU supports it, on text from resources/corpora. The first steps are for warm-up and are not counted. The weights are
random, so the numbers say nothing about quality. benchmarks/README.md defines every column.

Not for several processes or GPUs: it times one.
"""

import argparse
import resource
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback, set_seed
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from cisterna import models
from cisterna.sequences import tokenization
from shared import ROOT, TEXT, backbone, device_name

# Peak dense bf16 rate in FLOP/s, by the name that the driver reports; the first key that is part of the name counts.
# Sources: NVIDIA's data sheets. Those of the H200, the H100 (SXM, NVL, PCIe), the L40S and the L4 give rates with
# sparsity, so the values here are half of them; those of the A100 and the A10 give rates without. For the RTX 4090,
# "NVIDIA Ada GPU Architecture" (accumulation in fp32, no sparsity).
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

# Defaults of the command line: small on a CPU, a realistic load for one data-centre GPU.
DEFAULTS = {
    "cpu": {"config": ROOT / "config" / "config.yaml", "steps": 5, "batch": 8, "length": 256}
    | {"groups": 4, "prompt_length": 64, "completion_length": 96},
    "cuda": {"config": ROOT / "config" / "gpu.yaml", "steps": 20, "batch": 16, "length": 2048}
    | {"groups": 8, "prompt_length": 256, "completion_length": 512},
}


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(
        description="Time SFT and GRPO on the GPU, or on the CPU if there is none; print rows of a Markdown table.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--stages", nargs="+", choices=["sft", "grpo"], default=["sft", "grpo"])
    add("--config", type=Path, help="config whose backbone is timed")
    add("--backbone", help="name of a backbone of the config; by default the first")
    add("--steps", type=int, help="optimizer steps that are timed")
    add("--warmup", type=int, default=2, help="optimizer steps before the timed ones")
    add("--batch", type=int, help="SFT: packed blocks per step")
    add("--length", type=int, help="SFT: tokens per packed block")
    add("--lora", type=int, default=64, help="SFT: LoRA rank, 0 for full fine-tuning")
    add("--rl-lora", type=int, default=8, help="GRPO: LoRA rank, 0 for full fine-tuning")
    add("--groups", type=int, help="GRPO: prompts per step")
    add("--group-size", type=int, default=8, help="GRPO: completions per prompt")
    add("--prompt-length", type=int, help="GRPO: tokens per prompt")
    add("--completion-length", type=int, help="GRPO: maximum tokens per completion")
    add("--attention", default="sdpa", help="attention implementation of transformers")
    add("--checkpointing", action="store_true", help="recompute activations to save memory")
    add("--output", type=Path, help="also add the rows to the table in this file")
    parser.set_defaults(**DEFAULTS[device])
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        name, spec = backbone(options.config, options.backbone)
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


@dataclass
class Clock(TrainerCallback):
    """Seconds of every optimizer step, from fetching its batch to the end of its update."""

    seconds: list[float] = field(default_factory=list)
    started: float = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.started = now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(now() - self.started)


class TimedGRPOTrainer(GRPOTrainer):
    """GRPOTrainer that records for every generation the seconds, the prompt tokens and the completion tokens."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.rollouts: list[tuple[float, int, int]] = []
        super().__init__(*arguments, **options)

    def _generate_single_turn(self, prompt_ids: Any, *arguments: Any, **options: Any) -> Any:
        started = now()
        completion_ids, logprobs = super()._generate_single_turn(prompt_ids, *arguments, **options)
        self.rollouts.append((now() - started, sum(map(len, prompt_ids)), sum(map(len, completion_ids))))
        return completion_ids, logprobs


def measure_sft(model: Any, tokenizer: Any, options: argparse.Namespace, folder: Path) -> dict[str, str]:
    """Tokens per second and MFU of packed SFT with the loss on every token."""
    steps = options.warmup + options.steps
    ids = text_ids(tokenizer, steps * options.batch * options.length)
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
        processing_class=tokenizer,
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


def measure_grpo(model: Any, tokenizer: Any, options: argparse.Namespace, folder: Path) -> dict[str, str]:
    """Rollout speed (completion tokens per second of generation) and update speed.

    The update is everything in a step that is not generation: reward, log-probabilities, loss, backward pass and
    optimizer. Its tokens are prompts and completions together.
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
        train_dataset=Dataset.from_dict({"prompt": prompts(tokenizer, steps * options.groups, options.prompt_length)}),
        processing_class=tokenizer,
        peft_config=lora(options.rl_lora),
        callbacks=[clock],
    )
    trainer.train()
    step_seconds = sum(clock.seconds[options.warmup :])
    rollout_seconds, prompt_tokens, completion_tokens = map(sum, zip(*trainer.rollouts[options.warmup :], strict=True))
    all_tokens = prompt_tokens + completion_tokens
    lengths = f"({options.prompt_length} + {options.completion_length})"
    return describe(trainer.model) | {
        "batch x length": f"{options.groups} x {options.group_size} x {lengths}",
        "steps": str(options.steps),
        "s/step": f"{step_seconds / options.steps:.3f}",
        "tokens/s": f"{all_tokens / step_seconds:,.0f}",
        "rollout tokens/s": f"{completion_tokens / rollout_seconds:,.0f}",
        "update tokens/s": f"{all_tokens / (step_seconds - rollout_seconds):,.0f}",
    }


def common_options(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Options of both trainers: nothing is saved, and bf16 is used if the GPU supports it."""
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


def text_ids(tokenizer: Any, count: int) -> list[int]:
    """The first `count` token ids of the shipped text, repeated if it is too short."""
    lines = [line for line in TEXT.read_text().splitlines() if line.strip()]
    ids = [token_id for line_ids in tokenizer(lines)["input_ids"] for token_id in line_ids]
    return (ids * (count // len(ids) + 1))[:count]


def prompts(tokenizer: Any, count: int, length: int) -> list[str]:
    """`count` prompts of about `length` tokens each, cut from the shipped text."""
    ids = text_ids(tokenizer, count * length)
    return tokenizer.batch_decode([ids[i : i + length] for i in range(0, len(ids), length)])


def distinct_words(completions: list[str], **_: Any) -> list[float]:
    """A reward that differs between completions, so that every group of completions has a gradient."""
    return [float(len(set(text.split()))) for text in completions]


def matrix_parameters(model: Any) -> tuple[int, int]:
    """Numbers of parameters in matrix products, as (all, trained).

    The input embedding is a look-up and does not count, unless it is tied to the output projection.
    """
    embedding = model.get_input_embeddings().weight
    output = model.get_output_embeddings()
    tied = output is not None and output.weight is embedding
    weights = [weight for weight in model.parameters() if tied or weight is not embedding]
    return sum(w.numel() for w in weights), sum(w.numel() for w in weights if w.requires_grad)


def flops_per_token(model: Any, length: int) -> float:
    """Floating-point operations to train on one token of a causal block of `length` tokens.

    A trained parameter takes 6 operations: 2 in the forward pass, 2 for the gradient of its input and 2 for its own
    gradient (Kaplan et al., arXiv:2001.08361, section 2.1). A frozen one takes 4. Attention adds 12 L H Q T (PaLM,
    arXiv:2204.02311, appendix B: L layers, H heads of width Q, T tokens); a causal mask halves this. What activation
    checkpointing computes a second time is not counted.
    """
    config = model.config
    all_parameters, trained = matrix_parameters(model)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 6 * config.num_hidden_layers * config.num_attention_heads * head * length
    return 6 * trained + 4 * (all_parameters - trained) + attention


def utilization(rate: float) -> str:
    """`rate` (FLOP/s) as a share of the peak of the device, or n/a if the peak is not in PEAK_BF16."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        for part, peak in PEAK_BF16.items():
            if part in name:
                return f"{rate / peak:.1%}"
    return "MFU n/a"


def describe(model: Any) -> dict[str, str]:
    """The numbers of all parameters and of the trained ones, in millions."""
    total = sum(weight.numel() for weight in model.parameters())
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return {"parameters": f"{total / 1e6:.1f} M", "trained": f"{trained / 1e6:.1f} M"}


def now() -> float:
    """The time in seconds, after the GPU has finished everything that is queued."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory() -> str:
    """The most memory allocated on the GPU in this stage; on a CPU, the most memory of the whole process."""
    if torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    unit = 1 if sys.platform == "darwin" else 2**10
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.1f} GiB"


def versions() -> str:
    names = ("torch", "transformers", "trl")
    return ", ".join(f"{name} {version(name)}" for name in names)


def header() -> list[str]:
    return ["| " + " | ".join(COLUMNS) + " |", "| " + " | ".join("---" for _ in COLUMNS) + " |"]


def append(path: Path, lines: list[str]) -> None:
    """Add rows to the table with these columns, which a file without it gets at its end."""
    text = path.read_text() if path.is_file() else "# Measured speeds\n"
    if header()[-1] not in text:
        text += "\n" + "\n".join(header()) + "\n"
    end = text.find("\n\n", text.index(header()[-1]))
    end = len(text) - 1 if end < 0 else end
    path.write_text(text[:end] + "\n" + "\n".join(lines) + text[end:])


if __name__ == "__main__":
    main()
