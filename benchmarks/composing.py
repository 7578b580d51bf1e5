"""How much of a trained update a composed model has, and what composing costs: adapters merged or kept beside weights.

    .venv/bin/python benchmarks/composing.py                # 10 minutes on one core
    .venv/bin/python benchmarks/composing.py --only share   # or: cost

Merged is what Cisterna did before: every adapter is merged in the dtype of the base, and the result cast. Composed is
`cisterna.models.compose`. The bases have random weights of the size that pretrained ones have (standard deviation 0.02)
and are stored in bfloat16, as on the hub. For the shares, a LoRA is trained for `--steps` steps on the text corpus. For
the cost, four LoRA adapters of random numbers follow each other; every measurement is a process of its own. Prints
rows for benchmarks/RESULTS.md; benchmarks/README.md defines the columns.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.utils import logging

from cisterna import models, updates
from cisterna.artifacts import checkpoint, files
from cisterna.sequences import tokenization

ROOT = Path(__file__).resolve().parents[1]
TEXT = ROOT / "resources" / "corpora" / "text.txt"
RANKS, RATES = (4, 16, 64), (1e-5, 1e-6)
LINEAGE = (64, 16, 16, 8)  # ranks of the four adapters
SHAPES = {  # hidden size, layers; of Qwen3, with three times the hidden size in the MLP
    "small": (256, 4),
    "100M": (768, 14),
}
COLUMNS = "model, parameters, base, cast to, way, composing, peak memory, forward, generated token".split(", ")
# The base's dtype, and the dtype that the model is cast to, as for evaluation on a GPU.
DTYPES = (("bfloat16", None), ("float32", None), ("float32", torch.bfloat16))


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compare merged adapters with those kept beside weights of lower precision.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=50, help="steps of training for the shares")
    parser.add_argument("--repeats", type=int, default=5, help="processes for each cost; the median is shown")
    parser.add_argument("--only", choices=("share", "cost"), help="one of the two tables")
    parser.add_argument("--measure", nargs=3, metavar=("FOLDER", "WAY", "DTYPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    if options.measure:
        folder, way, dtype = options.measure
        print(json.dumps(measure(Path(folder), WAYS[way], getattr(torch, dtype, None))))
        return
    print(f"torch {torch.__version__}, one thread\n", flush=True)
    with tempfile.TemporaryDirectory() as root:
        if options.only != "cost":
            shares(Path(root) / "share", options.steps)
        if options.only != "share":
            costs(Path(root) / "cost", options.repeats)


def make(folder: Path, shape: str) -> dict[str, Path]:
    """The bases over one random model in bfloat16, by dtype."""
    hidden, layers = SHAPES[shape]
    architecture = {"model_type": "qwen3", "hidden_size": hidden, "intermediate_size": 3 * hidden}
    architecture |= {"num_hidden_layers": layers, "num_attention_heads": hidden // 64, "head_dim": 64}
    architecture |= {"num_key_value_heads": hidden // 128, "max_position_embeddings": 512}
    tokenizer = {"vocab_size": 1000, "files": [str(TEXT)]}
    models.make_base({"architecture": architecture, "tokenizer": tokenizer, "seed": 0}, folder / "made")
    models.compose(folder / "made").to(torch.bfloat16).save_pretrained(folder / "elsewhere")
    tokenization.load(folder / "made").save_pretrained(folder / "elsewhere")
    for dtype in ("bfloat16", "float32"):
        models.make_base({"pretrained": str(folder / "elsewhere"), "dtype": dtype}, folder / dtype)
    return {dtype: folder / dtype for dtype in ("bfloat16", "float32")}


def publish(parent: Path, output: Path, save: Callable[[Path], Any]) -> Path:
    with files.new_folder(output) as folder:
        save(folder)
        facts: dict[str, Any] = {"recipe": {}, "data": {}, "trained": {}, "measured": {}}
        checkpoint.write_manifest(folder, published=output, kind="rl", parent=parent, seed=0, **facts)
    return output


def merged(folder: Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model of a checkpoint as it was composed before."""
    (base, manifest), *descendants = checkpoint.lineage(folder)
    model = models._load_base(base, manifest)
    for path, _ in descendants:
        model = models.attach(model, path).merge_and_unload()
    return (model.to(dtype) if dtype else model).eval()


WAYS = {"merged": merged, "composed": models.compose}


# --- Shares ---


def shares(folder: Path, steps: int) -> None:
    bases = make(folder, "small")
    print("| base | cast to | learning rate | rank | share, merged | unchanged, merged | share, composed |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for rate in RATES:
        for rank in RANKS:
            trained = {
                dtype: publish(base, folder / f"{dtype}-{rate}-{rank}", train(base, rank, rate, steps).save_pretrained)
                for dtype, base in bases.items()
            }
            for dtype, cast in DTYPES:
                old, unchanged = kept(bases[dtype], trained[dtype], merged, cast)
                new, _ = kept(bases[dtype], trained[dtype], models.compose, cast)
                name = str(cast).removeprefix("torch.") if cast else "-"
                print(
                    f"| {dtype} | {name} | {rate:.0e} | {rank} | {old:.3f} | {unchanged:.1%} | {new:.5f} |", flush=True
                )


def train(base: Path, rank: int, rate: float, steps: int) -> Any:
    """The model of a base with a LoRA that was trained on text: batches of 8 times 64 tokens."""
    torch.manual_seed(0)
    ids = torch.tensor(tokenization.load(base).encode(TEXT.read_text()[:200_000]))
    model = get_peft_model(models.compose(base).train(), models.lora_config({"r": rank, "lora_alpha": 2 * rank}))
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=rate, weight_decay=0.0)
    for _ in range(steps):
        starts = torch.randint(0, len(ids) - 64, (8,))
        batch = torch.stack([ids[start : start + 64] for start in starts])
        model(batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def kept(base: Path, child: Path, way: Callable[..., PreTrainedModel], cast: torch.dtype | None) -> tuple[float, float]:
    """The share of the trained update that the model has, and the share of adapted weights that did not change."""
    before, after = (updates.weights(way(folder, cast)) for folder in (base, child))
    stored, scale = load_file(child / models.ADAPTER), 2
    there = trained = same = count = 0.0
    for name, up in stored.items():
        if "lora_B" in name:
            delta = scale * up @ stored[name.replace("lora_B", "lora_A")]
            weight = name.removeprefix(updates.PREFIX).replace(".lora_B", "")
            got = after[weight] - before[weight]
            there, trained = there + float((got * delta).sum()), trained + float((delta * delta).sum())
            same, count = same + float((got == 0).sum()), count + got.numel()
    return there / trained, same / count


# --- Costs ---


def costs(folder: Path, repeats: int) -> None:
    print(f"\n| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    for shape in SHAPES:
        ends = {}
        for dtype, base in make(folder / shape, shape).items():
            end = base
            for number, rank in enumerate(LINEAGE):
                model = get_peft_model(models.compose(base), models.lora_config({"r": rank, "lora_alpha": 2 * rank}))
                torch.manual_seed(number)
                with torch.no_grad():
                    for name, parameter in model.named_parameters():
                        if "lora_B" in name:
                            parameter.normal_(std=1e-4)
                end = publish(end, folder / shape / f"{dtype}-{number}", model.save_pretrained)
            ends[dtype] = end
        parameters = sum(one.numel() for one in models.compose(ends["float32"]).parameters())
        for dtype, cast in DTYPES:
            name = str(cast).removeprefix("torch.") if cast else "-"
            for way in WAYS:
                command = [sys.executable, __file__, "--measure", str(ends[dtype]), way, name]
                runs = [json.loads(subprocess.check_output(command, stderr=subprocess.DEVNULL)) for _ in range(repeats)]
                seconds, peak, forward, token = (median(column) for column in zip(*runs, strict=True))
                print(
                    f"| {shape} | {parameters / 1e6:.1f} M | {dtype} | {name} | {way} | {seconds:.2f} s | "
                    f"{peak:.0f} MiB | {forward:.3f} s | {token * 1000:.1f} ms |",
                    flush=True,
                )


def measure(folder: Path, way: Callable[..., PreTrainedModel], cast: torch.dtype | None) -> list[float]:
    """CPU seconds of composing, MiB that it adds to the peak, CPU seconds of a forward pass and a generated token."""
    before = peak_memory()
    begun = time.process_time()
    model = way(folder, cast)
    seconds = time.process_time() - begun
    peak = peak_memory() - before
    ids = torch.randint(0, 1000, (4, 256), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        times = [clock(lambda: model(ids, use_cache=False)) for _ in range(3)]
        options = {"min_new_tokens": 16, "max_new_tokens": 16, "do_sample": False}
        token = clock(lambda: model.generate(ids[:, :64], **options)) / 16
    return [seconds, peak, min(times), token]


def peak_memory() -> float:
    """The most memory of this process so far, in MiB. Not `getrusage`: Linux counts that of the parent there."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def clock(work: Callable[[], Any]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


if __name__ == "__main__":
    main()
