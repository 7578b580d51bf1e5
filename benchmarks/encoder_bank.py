"""What the feature bank saves: the same SFT and GRPO, with features from a bank and from the encoder in every step.

    .venv/bin/python benchmarks/encoder_bank.py              # 4 minutes on one core
    .venv/bin/python benchmarks/encoder_bank.py --widths 64  # an encoder of another size

The study is the default one's `protein-fitness` with its backbone and its recipes, and encoders of 30 layers. For each
encoder every stage is trained twice: from the bank, and live (`bank: false`). GRPO, 8 completions a prompt, starts both
times from the SFT that read the bank. Each run is one `cisterna` command in a process of its own, in which the forward
passes of the encoder are counted by a hook. Printed are rows for benchmarks/RESULTS.md, and whether the losses agree;
where those of SFT differ by more than `--tolerance` the exit code is 1. benchmarks/README.md defines every column.

The encoders are as good as untrained, so the numbers are speeds and differences, never qualities.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from math import hypot, prod, sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml
from safetensors import safe_open

from cisterna import study
from cisterna.artifacts import files

# Nothing here may import torch: Linux counts the memory of the process that starts a run as memory of the run.

ROOT = Path(__file__).resolve().parents[1]
TASK = "protein-fitness"
LAYERS = 30  # as ESM-2 150M and 650M have, or nearly
WARMUP = 2  # steps of a run that are not timed
MODES = ("bank", "live")
COLUMNS = (
    "encoder, encoder / backbone, stage, features, encoder calls, sequences encoded, steps, s/step, tokens/s, "
    "peak memory"
).split(", ")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Train the same recipes from a feature bank and with the encoder in every step; compare.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--widths", type=int, nargs="+", default=[32, 192], help=f"of the encoders, each of {LAYERS} layers")
    add("--examples", type=int, default=400, help="SFT: examples of an epoch")
    add("--epochs", type=int, default=2, help="SFT: epochs; GRPO needs a model that solves some of the examples")
    add("--prompts", type=int, default=64, help="GRPO: prompts, 4 in a step, each with 8 completions")
    add("--flank", type=int, default=1024, help="residues that the encoder reads on each side of a mutation")
    add("--tolerance", type=float, default=1e-3, help="largest difference of the SFT losses of a step, in nats")
    options = parser.parse_args()
    os.chdir(ROOT)  # the files named in a config are relative to the clone

    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number, width in enumerate(options.widths):
            plan = describe(width, options)
            place = Path(folder) / f"{width}"
            made = prepare(plan, place)
            runs = {}
            for stage in ("sft", "rl"):
                for mode in MODES if number % 2 == 0 else MODES[::-1]:  # so that being first favours neither
                    runs[stage, mode] = train(plan, place, stage, mode)
            if number == 0:
                print(f"{made.device}; {made.versions}\n", flush=True)
            print(report(made, runs), flush=True)
            worst = max(worst, largest([abs(a - b) for a, b in pairs(runs, "sft", "loss")])[0])
    if not worst <= options.tolerance:
        sys.exit(
            f"error: the SFT losses of bank and live differ by {worst:.2g}; the tolerance is {options.tolerance:g}"
        )


def describe(width: int, options: argparse.Namespace) -> study.Study:
    """The study of one encoder: the default study's task, backbone and recipes, of the sizes asked for."""
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    sizes = {"train": options.examples, "validation": 100, "id": 200, "ood": 200}
    config["encoders"] = {"deep": encoder(width) | {"flank": options.flank}}
    config["tasks"] = {TASK: config["tasks"][TASK] | sizes | {"sequences": ["features"], "encoder": "deep"}}
    config["recipes"]["sft"]["brief"] |= {"epochs": [options.epochs], "logging_steps": 1}
    config["recipes"]["rl"]["grpo"] |= {"epochs": [1], "examples": options.prompts, "logging_steps": 1}
    config["lineages"] = [
        {"tasks": [TASK], "sft": ["brief"], "rl": [{"recipe": "grpo", "from": [options.epochs]}], "backbones": ["nano"]}
    ]
    return study.load(config)


def encoder(width: int) -> dict[str, Any]:
    """An encoder of the shape of ESM-2 at this width; three steps of training make it, as random weights would do."""
    return {
        "architecture": {
            "model_type": "esm",
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": max(1, width // 32),
            "max_position_embeddings": 514,
            "position_embedding_type": "rotary",
            "token_dropout": False,
        },
        "training": {"corpora": ["rna"], "block_size": 64, "num_train_epochs": 0.01, "max_grad_norm": 1.0},
    }


@dataclass(frozen=True)
class Made:
    """What is made once for an encoder, and what the bank of it cost."""

    encoder: int  # parameters
    backbone: int  # parameters
    bank: dict[str, Any]  # manifest
    calls: int
    sequences: int
    device: str
    versions: str


@dataclass(frozen=True)
class Run:
    """One training run. `calls` and `sequences` are forward passes of the encoder, in all of the run."""

    calls: int
    sequences: int
    steps: int
    seconds: float  # a step, mean
    error: float  # of that mean, from the spread of the steps
    rate: float  # tokens a second
    memory: int  # bytes
    history: list[dict[str, float]]


def prepare(plan: study.Study, place: Path) -> Made:
    """Backbone, data, encoder and bank, by the commands that the workflow runs."""
    corpora = {name: plan.config["corpora"][name] for name in plan.encoder("deep")["training"]["corpora"]}
    seed = plan.config["tasks"][TASK]["seed"]
    cisterna("base", spec=plan.config["backbones"]["nano"], output=place / "base")
    cisterna("data", task=TASK, spec=plan.spec(TASK), seed=seed, output=place / "data")
    cisterna(
        "encoder", spec=plan.encoder("deep"), corpora=corpora, work=place / "work" / "encoder", output=place / "encoder"
    )
    counts = cisterna(
        "features",
        encoder=place / "encoder",
        data=place / "data",
        reading=plan.reading("deep"),
        work=place / "work" / "features",
        output=place / "bank",
    )
    with safe_open(place / "base" / "model.safetensors", framework="np") as tensors:
        backbone = sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118 (no mapping)
    return Made(
        encoder=counts["parameters"],
        backbone=backbone,
        bank=files.read_json(place / "bank" / "manifest.json"),
        calls=counts["calls"],
        sequences=counts["sequences"],
        device=counts["device"],
        versions=counts["versions"],
    )


def train(plan: study.Study, place: Path, stage: str, mode: str) -> Run:
    """Train a stage with features from the bank, or from the live encoder, and read what it left."""
    model = next(model for model in plan.models if model.kind == stage)
    source = {"bank": place / "bank"}
    if mode == "live":
        source = {"encoder": place / "encoder", "reading": plan.reading("deep")}
    output = place / stage / mode
    counts = cisterna(
        stage,
        parent=place / ("base" if stage == "sft" else "sft/bank"),
        data=place / "data",
        sequences="features",
        **source,
        recipe=plan.stage(model),
        seed=model.seed,
        epochs=model.epochs,
        work=place / "work" / stage / mode,
        output=output,
    )
    manifest = files.read_json(output / "manifest.json")
    steps, measured = manifest["trained"]["steps"], manifest["measured"]
    timed = counts["seconds"][WARMUP:]
    if len(timed) < 2:
        sys.exit(f"error: {steps} steps of {stage} are too few to be timed; use more --examples or --prompts")
    seconds = mean(timed)
    return Run(
        calls=counts["calls"],
        sequences=counts["sequences"],
        steps=steps,
        seconds=seconds,
        error=stdev(timed) / sqrt(len(timed)),
        rate=manifest["trained"]["tokens"] / steps / seconds,
        memory=measured["peak_gpu_memory_bytes"] or measured["peak_memory_bytes"],
        history=[entry for entry in files.read_json(output / "history.json") if "loss" in entry],
    )


def cisterna(command: str, **options: Any) -> dict[str, Any]:
    """Run a `cisterna` command in a process of its own; returns what `counted` noted of it."""
    words = [command]
    for name, value in options.items():
        words += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    print(f"cisterna {command} for {options['output']}", file=sys.stderr, flush=True)
    environment = {"OMP_NUM_THREADS": "1"} | os.environ  # as many threads as a job of the default study has
    environment.pop("CISTERNA_FORK_SERVER", None)
    with tempfile.NamedTemporaryFile() as counts:
        call = [sys.executable, __file__, "counted", counts.name, *words]
        done = subprocess.run(call, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode:
            sys.exit(f"{done.stdout}\nerror: cisterna {command} failed, see above")
        return json.loads(Path(counts.name).read_text())


def counted(path: Path, words: list[str]) -> int:
    """Run a `cisterna` command in this process, noting in `path` the passes of the encoder and the seconds of steps."""
    import transformers

    from cisterna import cli
    from cisterna.sequences import encoders
    from gpu import Clock, device_name, versions

    counts = {"calls": 0, "sequences": 0, "parameters": 0}
    load = encoders.load

    def note(module: Any, arguments: Any, options: dict[str, Any], output: Any) -> None:
        counts["calls"] += 1
        counts["sequences"] += len(options["input_ids"])

    def counting(*arguments: Any, **options: Any) -> encoders.Encoder:
        loaded = load(*arguments, **options)
        counts["parameters"] = sum(weight.numel() for weight in loaded.module.parameters())
        loaded.module.register_forward_hook(note, with_kwargs=True)
        return loaded

    encoders.load = counting
    clock = Clock()
    transformers.trainer.DEFAULT_CALLBACKS.append(clock)
    code = cli.main(words)
    noted = counts | {"seconds": clock.seconds, "device": device_name(), "versions": versions()}
    path.write_text(json.dumps(noted))
    return code


def report(made: Made, runs: dict[tuple[str, str], Run]) -> str:
    """Rows of the table, then what the bank cost and saved, then whether the losses agree."""
    rows = []
    for (stage, mode), run in sorted(runs.items(), key=lambda item: (item[0][0] == "rl", item[0][1])):
        values = {
            "encoder": f"{LAYERS} layers, {made.encoder / 1e6:.1f} M",
            "encoder / backbone": f"{made.encoder / made.backbone:.1f}",
            "stage": stage,
            "features": mode,
            "encoder calls": f"{run.calls:,}",
            "sequences encoded": f"{run.sequences:,}",
            "steps": str(run.steps),
            "s/step": f"{run.seconds:.4f} ± {run.error:.4f}",
            "tokens/s": f"{run.rate:,.0f}",
            "peak memory": f"{run.memory / 2**20:,.0f} MiB",
        }
        rows.append("| " + " | ".join(values[column] for column in COLUMNS) + " |")
    build, size, held = made.bank["measured"]["seconds"], made.bank["measured"]["bytes"], made.bank["trained"]
    lines = [
        "| " + " | ".join(COLUMNS) + " |",
        "| " + " | ".join("---" for _ in COLUMNS) + " |",
        *rows,
        "",
        f"- The bank: {held['sequences']:,} sequences, {held['rows']:,} rows, {size / 1e6:.1f} MB on disk, built in "
        f"{build:.1f} s with {made.calls} encoder calls on {made.sequences:,} sequences.",
    ]
    for stage in ("sft", "rl"):
        bank, live = runs[stage, "bank"], runs[stage, "live"]
        saved = live.seconds - bank.seconds
        beyond = saved > 2 * hypot(live.error, bank.error)
        paid = f"has paid for itself after {build / saved:,.0f} steps" if beyond else "saves no time beyond the noise"
        lines.append(
            f"- {stage}: live takes {live.seconds / bank.seconds:.2f} times the seconds and "
            f"{live.memory / bank.memory:.2f} times the memory of the bank, which {paid}."
        )
    lines += [f"- {stage}: {agreement(runs, stage)}" for stage in ("sft", "rl")]
    return "\n".join(lines) + "\n"


def agreement(runs: dict[tuple[str, str], Run], stage: str) -> str:
    """How far bank and live differ in the logged losses of a stage, and for GRPO in the rewards and completions."""
    losses = pairs(runs, stage, "loss")
    difference, step = largest([abs(a - b) for a, b in losses])
    said = f"the loss goes from {losses[0][0]:.3f} to {losses[-1][0]:.3f}, "
    said += f"live differs by at most {difference:.1e} (step {step})" if difference else "live the same to the last bit"
    if stage == "sft":
        return said
    rewards, lengths = pairs(runs, stage, "reward"), pairs(runs, stage, "completions/mean_length")
    flipped = [
        step
        for step, (reward, length) in enumerate(zip(rewards, lengths, strict=True), 1)
        if reward[0] != reward[1] or length[0] != length[1]
    ]
    difference, _ = largest([abs(a - b) for a, b in rewards])
    same = f"other completions from step {flipped[0]} on" if flipped else "the same completions in every step"
    bank, live = (mean(values) for values in zip(*rewards, strict=True))
    return (
        f"{said}; {same}; mean reward {bank:.3f} (bank) and {live:.3f} (live), in a step they differ by at most "
        f"{difference:.1e}"
    )


def pairs(runs: dict[tuple[str, str], Run], stage: str, key: str) -> list[tuple[float, float]]:
    """A logged value of every step of a stage: from the bank, and live."""
    bank, live = (runs[stage, mode].history for mode in MODES)
    return [(a[key], b[key]) for a, b in zip(bank, live, strict=True)]


def largest(values: list[float]) -> tuple[float, int]:
    """The largest of some values, and at which step, counted from 1."""
    step = max(range(len(values)), key=values.__getitem__)
    return values[step], step + 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["counted"]:
        sys.exit(counted(Path(sys.argv[2]), sys.argv[3:]))
    main()
