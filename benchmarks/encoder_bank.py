"""How much time the feature bank (embedding cache) saves: the same SFT and GRPO with a bank and with a live encoder.

    .venv/bin/python benchmarks/encoder_bank.py              # 4 minutes on one core
    .venv/bin/python benchmarks/encoder_bank.py --widths 64  # an encoder of another size

The study is `protein-fitness` of the default study, with its backbone and recipes and with encoders of 30 layers. For
each encoder every stage is trained twice: from the bank, and with the encoder in every step (live, `bank: false`).
GRPO, with 8 completions per prompt, starts both times from the SFT that read the bank. Each run is one `cisterna`
command in its own process, where a hook counts the forward passes of the encoder. Prints rows for
benchmarks/RESULTS.md, and whether the losses agree; the exit code is 1 if those of SFT differ by more than
`--tolerance`. benchmarks/README.md defines every column.

The encoders are practically untrained, so the numbers say nothing about quality.
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

from cisterna.artifacts import files
from cisterna.study import Study, load

# This module must not import torch: Linux counts the memory of the process that starts a run as memory of the run.

ROOT = Path(__file__).resolve().parents[1]
TASK = "protein-fitness"
LAYERS = 30  # about as many as ESM-2 150M and 650M
WARMUP = 2  # first steps of a run, which are not timed
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
    add(
        "--widths",
        type=int,
        nargs="+",
        default=[32, 192],
        help=f"hidden sizes of the encoders, each of {LAYERS} layers",
    )
    add("--examples", type=int, default=400, help="SFT: examples per epoch")
    add(
        "--epochs",
        type=int,
        default=2,
        help="SFT: epochs; enough that GRPO starts from a model that solves some examples",
    )
    add("--prompts", type=int, default=64, help="GRPO: prompts; a step has 4, each with 8 completions")
    add("--flank", type=int, default=1024, help="residues that the encoder reads on each side of a mutation")
    add(
        "--tolerance",
        type=float,
        default=1e-3,
        help="largest difference allowed between the SFT losses of a step, in nats",
    )
    options = parser.parse_args()
    os.chdir(ROOT)  # the paths in a config are relative to the clone

    difference = 0.0
    with tempfile.TemporaryDirectory() as root:
        for number, width in enumerate(options.widths):
            study = make_study(width, options)
            folder = Path(root) / f"{width}"
            prepared = prepare(study, folder)
            runs = {}
            for stage in ("sft", "rl"):
                for mode in MODES if number % 2 == 0 else MODES[::-1]:  # so that neither gains from being first
                    runs[stage, mode] = train(study, folder, stage, mode)
            if number == 0:
                print(f"{prepared.device}; {prepared.versions}\n", flush=True)
            print(report(prepared, runs), flush=True)
            difference = max(difference, largest([abs(a - b) for a, b in pairs(runs, "sft", "loss")])[0])
    if not difference <= options.tolerance:
        sys.exit(
            f"error: the SFT losses of bank and live differ by {difference:.2g}; the tolerance is {options.tolerance:g}"
        )


def make_study(width: int, options: argparse.Namespace) -> Study:
    """The study of one encoder: task, backbone and recipes of the default study, with the sizes of the command line."""
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    sizes = {"train": options.examples, "validation": 100, "id": 200, "ood": 200}
    config["encoders"] = {"deep": encoder(width) | {"flank": options.flank}}
    config["tasks"] = {TASK: config["tasks"][TASK] | sizes | {"sequences": ["features"], "encoder": "deep"}}
    config["recipes"]["sft"]["brief"] |= {"epochs": [options.epochs], "logging_steps": 1}
    config["recipes"]["rl"]["grpo"] |= {"epochs": [1], "examples": options.prompts, "logging_steps": 1}
    config["lineages"] = [
        {"tasks": [TASK], "sft": ["brief"], "rl": [{"recipe": "grpo", "from": [options.epochs]}], "backbones": ["nano"]}
    ]
    return load(config)


def encoder(width: int) -> dict[str, Any]:
    """An encoder with the architecture of ESM-2 at this width, trained for three steps: random weights would do."""
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
class Prepared:
    """What is made once for an encoder, and what its bank cost."""

    encoder: int  # parameters
    backbone: int  # parameters
    bank: dict[str, Any]  # manifest
    calls: int  # forward passes of the encoder
    sequences: int  # in these passes
    device: str
    versions: str


@dataclass(frozen=True)
class Run:
    """One training run."""

    calls: int  # forward passes of the encoder in the whole run
    sequences: int  # in these passes
    steps: int
    seconds: float  # mean of a step
    error: float  # standard error of that mean
    rate: float  # tokens per second
    memory: int  # bytes
    history: list[dict[str, float]]


def prepare(study: Study, folder: Path) -> Prepared:
    """Make backbone, data, encoder and bank with the commands that the workflow runs."""
    corpora = {name: study.config["corpora"][name] for name in study.encoder("deep")["training"]["corpora"]}
    seed = study.config["tasks"][TASK]["seed"]
    cisterna("base", spec=study.config["backbones"]["nano"], output=folder / "base")
    cisterna("data", task=TASK, spec=study.spec(TASK), seed=seed, output=folder / "data")
    cisterna(
        "encoder",
        spec=study.encoder("deep"),
        corpora=corpora,
        work=folder / "work" / "encoder",
        output=folder / "encoder",
    )
    counts = cisterna(
        "features",
        encoder=folder / "encoder",
        data=folder / "data",
        reading=study.reading("deep"),
        work=folder / "work" / "features",
        output=folder / "bank",
    )
    with safe_open(folder / "base" / "model.safetensors", framework="np") as tensors:
        backbone = sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118 (no mapping)
    return Prepared(
        encoder=counts["parameters"],
        backbone=backbone,
        bank=files.read_json(folder / "bank" / "manifest.json"),
        calls=counts["calls"],
        sequences=counts["sequences"],
        device=counts["device"],
        versions=counts["versions"],
    )


def train(study: Study, folder: Path, stage: str, mode: str) -> Run:
    """Train a stage with features from the bank or from the live encoder, and read its manifest and history."""
    model = next(model for model in study.models if model.kind == stage)
    source: dict[str, Any] = {"bank": folder / "bank"}
    if mode == "live":
        source = {"encoder": folder / "encoder", "reading": study.reading("deep")}
    output = folder / stage / mode
    counts = cisterna(
        stage,
        parent=folder / ("base" if stage == "sft" else "sft/bank"),
        data=folder / "data",
        sequences="features",
        **source,
        recipe=study.stage(model),
        seed=model.seed,
        epochs=model.epochs,
        work=folder / "work" / stage / mode,
        output=output,
    )
    manifest = files.read_json(output / "manifest.json")
    steps, measured = manifest["trained"]["steps"], manifest["measured"]
    timed = counts["seconds"][WARMUP:]
    if len(timed) < 2:
        sys.exit(f"error: {steps} steps of {stage} are too few to time; use more --examples or --prompts")
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
    """Run a `cisterna` command in its own process; returns what `counted` recorded."""
    words = [command]
    for name, value in options.items():
        words += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    print(f"cisterna {command} for {options['output']}", file=sys.stderr, flush=True)
    environment = {"OMP_NUM_THREADS": "1"} | os.environ  # as in a job of the default study
    environment.pop("CISTERNA_FORK_SERVER", None)
    with tempfile.NamedTemporaryFile() as counts:
        call = [sys.executable, __file__, "counted", counts.name, *words]
        done = subprocess.run(call, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode:
            sys.exit(f"{done.stdout}\nerror: cisterna {command} failed, see above")
        return json.loads(Path(counts.name).read_text())


def counted(path: Path, words: list[str]) -> int:
    """Run a `cisterna` command in this process; write the encoder's passes and the seconds of each step to `path`."""
    import transformers

    from cisterna import cli
    from cisterna.sequences import encoders
    from gpu import Clock
    from shared import device_name, versions

    counts = {"calls": 0, "sequences": 0, "parameters": 0}
    load_encoder = encoders.load

    def count(module: Any, arguments: Any, options: dict[str, Any], output: Any) -> None:
        counts["calls"] += 1
        counts["sequences"] += len(options["input_ids"])

    def load_counting(*arguments: Any, **options: Any) -> encoders.Encoder:
        loaded = load_encoder(*arguments, **options)
        counts["parameters"] = sum(weight.numel() for weight in loaded.module.parameters())
        loaded.module.register_forward_hook(count, with_kwargs=True)
        return loaded

    encoders.load = load_counting
    clock = Clock()
    transformers.trainer.DEFAULT_CALLBACKS.append(clock)
    code = cli.main(words)
    path.write_text(json.dumps(counts | {"seconds": clock.seconds, "device": device_name(), "versions": versions()}))
    return code


def report(prepared: Prepared, runs: dict[tuple[str, str], Run]) -> str:
    """The table, then what the bank cost and saved, then whether the losses agree."""
    rows = []
    for (stage, mode), run in sorted(runs.items(), key=lambda item: (item[0][0] == "rl", item[0][1])):
        values = {
            "encoder": f"{LAYERS} layers, {prepared.encoder / 1e6:.1f} M",
            "encoder / backbone": f"{prepared.encoder / prepared.backbone:.1f}",
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
    measured, contents = prepared.bank["measured"], prepared.bank["trained"]
    lines = [
        "| " + " | ".join(COLUMNS) + " |",
        "| " + " | ".join("---" for _ in COLUMNS) + " |",
        *rows,
        "",
        f"- The bank: {contents['sequences']:,} sequences, {contents['rows']:,} rows, {measured['bytes'] / 1e6:.1f} MB "
        f"on disk, built in {measured['seconds']:.1f} s with {prepared.calls} encoder calls on {prepared.sequences:,} "
        "sequences.",
    ]
    for stage in ("sft", "rl"):
        bank, live = runs[stage, "bank"], runs[stage, "live"]
        saved = live.seconds - bank.seconds
        significant = saved > 2 * hypot(live.error, bank.error)
        steps = f"after {measured['seconds'] / saved:,.0f} steps the bank has saved the time of its building"
        lines.append(
            f"- {stage}: live takes {live.seconds / bank.seconds:.2f} times the seconds and "
            f"{live.memory / bank.memory:.2f} times the memory of the bank; "
            f"{steps if significant else 'the bank saves no time beyond the noise'}."
        )
    lines += [f"- {stage}: {agreement(runs, stage)}" for stage in ("sft", "rl")]
    return "\n".join(lines) + "\n"


def agreement(runs: dict[tuple[str, str], Run], stage: str) -> str:
    """How far bank and live differ in the logged losses of a stage, and for GRPO in the rewards and completions."""
    losses = pairs(runs, stage, "loss")
    difference, step = largest([abs(a - b) for a, b in losses])
    text = f"the loss goes from {losses[0][0]:.3f} to {losses[-1][0]:.3f}; live losses "
    text += f"differ by at most {difference:.1e} (step {step})" if difference else "are bit-identical"
    if stage == "sft":
        return text
    rewards, lengths = pairs(runs, stage, "reward"), pairs(runs, stage, "completions/mean_length")
    different = [
        step
        for step, (reward, length) in enumerate(zip(rewards, lengths, strict=True), 1)
        if reward[0] != reward[1] or length[0] != length[1]
    ]
    difference, _ = largest([abs(a - b) for a, b in rewards])
    same = f"different completions from step {different[0]} on" if different else "the same completions in every step"
    bank, live = (mean(values) for values in zip(*rewards, strict=True))
    return (
        f"{text}; {same}; mean reward {bank:.3f} (bank) and {live:.3f} (live), with a difference of at most "
        f"{difference:.1e} in a step"
    )


def pairs(runs: dict[tuple[str, str], Run], stage: str, key: str) -> list[tuple[float, float]]:
    """The value logged at every step of a stage, as (bank, live)."""
    bank, live = (runs[stage, mode].history for mode in MODES)
    return [(a[key], b[key]) for a, b in zip(bank, live, strict=True)]


def largest(values: list[float]) -> tuple[float, int]:
    """The largest value and its step, counted from 1."""
    step = max(range(len(values)), key=values.__getitem__)
    return values[step], step + 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["counted"]:
        sys.exit(counted(Path(sys.argv[2]), sys.argv[3:]))
    main()
