"""What a study will take: passes that sharing saves, GPU-hours and disk, for `cisterna plan`.

Estimates before anything is trained, good to a factor of two or three; every assumption is a constant here and is
printed with the numbers. What is measured stands in the manifests. Not for scheduling: `resources` in the config say
what a job asks for. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cisterna.constants import SPLITS
from cisterna.study import Model, Study

PEAK = 989e12  # FLOP/s of one H100 SXM in bfloat16 without sparsity (NVIDIA's data sheet)
TRAINING = 0.30  # share of it that training reaches
GENERATION = 0.03  # and generation, which waits for memory
PASS, STEP = (
    2,
    6,
)  # FLOPs per parameter and token: forward alone; forward and backward (Kaplan et al., arXiv:2001.08361)
ASPECT = 80  # width / layers where only the number of parameters is known, about that of Qwen3
ADAPTED = 1.6  # of LoRA on all linear layers: parameters / (rank / width x parameters of the model)
BYTES = 4  # of a parameter of an adapter, a bridge or weights trained in float32
HOUR = 3600.0

Size = Callable[[str, str], int]  # rows of a split of a task


@dataclass(frozen=True)
class Passes:
    """Work counted three ways: as planned, without ladders or banks, and without sharing any stage."""

    what: str
    planned: float
    alone: float
    unshared: float


def passes(study: Study, size: Size) -> list[Passes]:
    """Epochs of SFT and RL and passes of encoders, with and without what the study shares.

    alone: every rung is a run of its own from its parent, as with a schedule that depends on the length. unshared:
    every checkpoint also trains its own parents anew. For encoders, planned is one pass for each sequence of a bank
    (all rows of a task), alone one for each example of each step, rollout and test, as where the encoder is part of the
    model; encoders without a bank are counted alike in all.
    """
    found = []
    for kind in ("sft", "rl"):
        models = [model for model in study.models if model.kind == kind]
        if models:
            planned = sum(added(study, model) for model in models)
            above = [model for model in study.models if model.kind == "rl"] if kind == "sft" else []
            again = sum(_sft_below(study, model) for model in above)
            alone = sum(model.epochs for model in models)
            found.append(Passes(f"{kind} epochs", planned, alone, alone + again))
    cpt = [model for model in study.models if model.kind == "cpt"]
    if cpt:
        lengths = {model.path: study.recipe("cpt", str(model.cpt))["num_train_epochs"] for model in cpt}
        uses = [path for model in study.models for path in study.lineage(model) if path in lengths]
        planned = sum(lengths.values())
        found.append(Passes("cpt epochs", planned, planned, planned + sum(lengths[path] for path in uses)))
    if study.encoders:
        found.append(_encoder_passes(study, size))
    return found


def added(study: Study, model: Model) -> int:
    """Epochs of a rung beyond the rung before."""
    return model.epochs - (study.model(model.previous).epochs if model.previous else 0)


def _sft_below(study: Study, model: Model) -> int:
    """Epochs of the SFT that an RL model starts from; 0 from cold."""
    below = study.model(str(model.parent))
    return below.epochs if below.kind == "sft" else 0


def _encoder_passes(study: Study, size: Size) -> Passes:
    planned = alone = unshared = 0.0
    for _, task in study.banks:
        planned += sum(size(task, split) for split in SPLITS)
    for model in study.models:
        if model.encoder is None:
            continue
        recipe, task = study.recipe(model.kind, str(model.recipe)), str(model.task)
        seen = used(recipe, size(task, "train"))
        times = 1 if model.kind == "sft" else 2 * (recipe.get("num_generations") or 8)  # a rollout and its step
        tested = size(task, "id") + size(task, "ood")
        steps, whole = added(study, model) * seen * times, model.epochs * seen * times
        again = 0
        if model.kind == "rl" and _sft_below(study, model):
            again = _sft_below(study, model) * used(study.recipe("sft", str(model.sft)), size(task, "train"))
        alone += steps + tested
        unshared += whole + again + tested
        planned += 0 if study.bank(model) else steps + tested
    return Passes("encoder passes", planned, alone, unshared)


def used(recipe: Mapping[str, Any], size: int) -> int:
    """Rows of train that a recipe uses, as the stages do (`cisterna.training.run.head`)."""
    return int(recipe.get("examples") or -int(-size * recipe.get("fraction", 1.0) // 1))


def parameters(model: Mapping[str, Any]) -> float | None:
    """Parameters of a backbone or encoder of the config: from its architecture, or from a size in its name such as
    1.7B or 500m; None if neither says.
    """
    shape = model.get("architecture")
    if shape:
        width, layers = shape["hidden_size"], shape["num_hidden_layers"]
        heads = shape.get("num_attention_heads", 1)
        head = shape.get("head_dim") or width // heads
        keys = shape.get("num_key_value_heads") or heads
        attention = 2 * width * head * (heads + keys)
        inner = shape.get("intermediate_size", 4 * width)
        feed = (2 if shape.get("model_type") == "esm" else 3) * width * inner
        vocabulary = model.get("tokenizer", {}).get("vocab_size", 0)
        tied = 1 if shape.get("tie_word_embeddings", True) else 2
        return float(layers * (attention + feed) + tied * vocabulary * width)
    sizes = re.findall(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", str(model.get("pretrained", "")).lower())
    return float(sizes[-1][0]) * {"b": 1e9, "m": 1e6}[sizes[-1][1]] if sizes else None


def width(model: Mapping[str, Any], size: float) -> float:
    """Hidden size of a backbone: as its architecture says, else of a model of `size` parameters of the usual shape."""
    shape = model.get("architecture")
    return float(shape["hidden_size"]) if shape else float((size * ASPECT / 12) ** (1 / 3))


@dataclass(frozen=True)
class Estimate:
    """GPU-hours on one H100, and GB on disk, of one kind of work."""

    what: str
    hours: float
    gigabytes: float


def estimates(
    study: Study, work: Callable[[Model], tuple[float, float]], tested: Callable[[str], float]
) -> list[Estimate]:
    """What CPT, SFT, RL and evaluation will take. `work` gives (examples, tokens) of a model, `tested` the tokens of
    one evaluation of a task. Models whose number of parameters is not known count nothing (`unknown` lists them).
    """
    hours = dict.fromkeys(("cpt", "sft", "rl", "evaluate"), 0.0)
    disk = dict.fromkeys(("base", *hours), 0.0)
    for model in study.models:
        backbone = study.config["backbones"][model.backbone]
        size = parameters(backbone)
        if size is None:
            continue
        if model.kind == "base":
            disk["base"] += size * (BYTES if "architecture" in backbone else 2)
            continue
        tokens = work(model)[1]
        flops = tokens * size * STEP / (PEAK * TRAINING)
        if model.kind == "rl":  # sampled once, then learned from
            flops += tokens * size * PASS / (PEAK * GENERATION)
        hours[model.kind] += flops / HOUR
        lora = study.recipe(model.kind, str(model.recipe))["lora"]
        disk[model.kind] += BYTES * size * (min(1.0, ADAPTED * lora["r"] / width(backbone, size)) if lora else 1.0)
    for _, path, task in study.evaluations():
        size = parameters(study.config["backbones"][study.model(path).backbone])
        hours["evaluate"] += tested(task) * (size or 0.0) * PASS / (PEAK * GENERATION) / HOUR
    return [Estimate(what, hours.get(what, 0.0), disk[what] / 1e9) for what in disk]


def unknown(study: Study) -> list[str]:
    """Backbones in use whose number of parameters neither their architecture nor their name says."""
    return [name for name in study.backbones if parameters(study.config["backbones"][name]) is None]


def assumptions(study: Study) -> list[str]:
    """The sentences that go with the numbers."""
    lines = [
        f"GPU-hours: of one H100 ({PEAK / 1e12:.0f} TFLOP/s in bfloat16), {TRAINING:.0%} of it in training and "
        f"{GENERATION:.0%} in generation;",
        f"  {STEP} FLOPs a parameter and token trained on, {PASS} generated; without encoders and start-up.",
        f"disk: published weights alone, {BYTES} bytes a parameter (2 of a pretrained base); LoRA of rank r on all",
        f"  linear layers of width w has {ADAPTED} r / w of the model's parameters. Trainer state: up to 3 times that.",
    ]
    if any("pretrained" in study.config["backbones"][name] for name in study.backbones):
        lines.append("parameters of a pretrained backbone: as its name says (1.7B)")
    if unknown(study):
        lines.append(f"not counted: backbones of unknown size: {', '.join(unknown(study))}")
    return lines
