"""Time SFT, evaluation and GRPO on the GPU with one command, or in a small form on the CPU if there is no GPU.

    python benchmarks/gpu.py --output benchmarks/RESULTS.md        # sizes for the device
    python benchmarks/gpu.py --stages sft --length 4096 --lora 0   # full fine-tuning

SFT is `trl.SFTTrainer` on packed blocks of text from resources/corpora, with the share of the device's peak (MFU). What
generates, evaluation of several checkpoints and steps of GRPO, is that of benchmarks/generation.py. All use the
backbone that the workflow makes from a config (config/config.yaml on a CPU, config/gpu.yaml on a GPU), in bf16 if the
GPU supports it. The weights are random, so the numbers say nothing about quality. benchmarks/README.md defines every
column.

Not for several processes or GPUs: it times one.
"""

import argparse
import resource
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

import generation
from cisterna import models
from cisterna.sequences import tokenization
from shared import ROOT, TEXT, backbone, device_name, parser, publish, section, setting

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
    "backbone, parameters, trained, attention, batch x length, steps, checkpointing, s/step, tokens/s, MFU, peak memory"
).split(", ")

# Defaults of the command line: on a CPU they show that everything runs; on a GPU they are a realistic load.
CONFIG = ROOT / "config"
CPU = {"config": CONFIG / "config.yaml", "steps": 5, "batch": 8, "length": 256}
CPU_GENERATION = {"examples": 4, "answer_length": 8, "checkpoints": 2, "jobs": 1, "groups": 2, "rl_steps": 2}
GPU = {"config": CONFIG / "gpu.yaml", "steps": 20, "batch": 16, "length": 2048}
GPU_GENERATION = {"examples": 16, "answer_length": 64, "checkpoints": 8, "jobs": 1, "groups": 8, "rl_steps": 5}


def main() -> None:
    gpu = torch.cuda.is_available()
    arguments = parser("Time SFT, evaluation and GRPO on the GPU, or on the CPU if there is none.")
    add = arguments.add_argument
    add("--stages", nargs="+", choices=["sft", "generation"], default=["sft", "generation"])
    add("--config", type=Path, help="config whose backbone is timed")
    add("--backbone", help="name of a backbone of the config; by default the first")
    add("--steps", type=int, help="SFT: optimizer steps that are timed")
    add("--warmup", type=int, default=2, help="SFT: optimizer steps before the timed ones")
    add("--batch", type=int, help="SFT: packed blocks per step")
    add("--length", type=int, help="SFT: tokens per packed block")
    add("--lora", type=int, default=64, help="SFT: LoRA rank, 0 for full fine-tuning")
    add("--attention", default="sdpa", help="SFT: attention implementation of transformers")
    add("--checkpointing", action="store_true", help="SFT: recompute activations to save memory")
    generation.add_options(arguments, parts=["evaluations", "grpo"], sequences=["features"])
    arguments.set_defaults(**(GPU | GPU_GENERATION if gpu else CPU | CPU_GENERATION))
    options = arguments.parse_args()
    # vLLM refuses the nano backbone's heads of 24 on a CPU
    name, spec = backbone(options.config, options.backbone, **({} if gpu else {"head_dim": 32}))
    device = device_name()
    if "sft" in options.stages:
        row = measure_sft(name, spec, options)
        title, about = f"gpu.py on {device}: SFT", setting("torch", "transformers", "trl")
        publish(section(title, about, COLUMNS, [[row[column] for column in COLUMNS]]), options.output)
    if "generation" in options.stages:
        for text in generation.sections({name: spec}, options, f"gpu.py on {device}"):
            publish(text, options.output)


@dataclass
class Clock(TrainerCallback):
    """Seconds of every optimizer step, from fetching its batch to the end of its update."""

    seconds: list[float] = field(default_factory=list)
    started: float = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.started = now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(now() - self.started)


def measure_sft(backbone: str, spec: dict[str, Any], options: argparse.Namespace) -> dict[str, str]:
    """Tokens per second and MFU of packed SFT with the loss on every token."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models.make_base(spec, folder / "base")
        set_seed(0)
        model = models.compose(folder / "base").train()
        model.set_attn_implementation(options.attention)
        trained = time_sft(model, tokenization.load(folder / "base"), options, folder / "sft")
    return trained | {
        "backbone": backbone,
        "attention": options.attention,
        "checkpointing": "yes" if options.checkpointing else "no",
        "peak memory": peak_memory(),
    }


def time_sft(model: Any, tokenizer: Any, options: argparse.Namespace, folder: Path) -> dict[str, str]:
    steps = options.warmup + options.steps
    ids = text_ids(tokenizer, steps * options.batch * options.length)
    clock = Clock()
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            packing=True,
            packing_strategy="wrapped",  # equal blocks, so that every step has as many tokens
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


if __name__ == "__main__":
    main()
