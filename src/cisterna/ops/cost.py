"""What a study will take, for `cisterna plan`: GPU-hours, disk, and how much work is saved by sharing.

Estimates before anything is trained, good to a factor of two or three. Every assumption is a constant here and is
printed with the numbers. What a run really took is in the manifests. Not for scheduling: a job asks for the
`resources` in the config. Imports no torch.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cisterna.constants import SPLITS, TEST_SPLITS
from cisterna.ops.workload import NUM_GENERATIONS, Workload, epochs_added, rows_used
from cisterna.study import Model, Study

PEAK = 989e12  # FLOP/s of one H100 SXM in bfloat16 without sparsity (NVIDIA's data sheet)
TRAINING = 0.30  # share of PEAK that training reaches
GENERATION = 0.03  # share of PEAK that generation reaches: it waits for memory
# FLOPs per parameter and token of a forward pass, and of forward and backward (Kaplan et al., arXiv:2001.08361)
FORWARD, STEP = 2, 6
ASPECT = 80  # width / layers, if only the number of parameters is known: about that of Qwen3
ADAPTED = 1.6  # of LoRA on all linear layers: parameters / (rank / width x parameters of the model)
BYTES = 4  # of a parameter of an adapter, a bridge or weights trained in float32
HOUR = 3600.0

Size = Callable[[str, str], int]  # rows of a split of a task


class Passes(NamedTuple):
    """An amount of work, counted three ways.

    planned: as the study does it. alone: without ladders and banks, so that every rung is a run of its own from its
    parent, as with a schedule that depends on the length. unshared: every checkpoint also trains its own parents again.
    """

    what: str
    planned: float
    alone: float
    unshared: float


def passes(study: Study, size: Size) -> list[Passes]:
    """Epochs of SFT, RL and CPT, and forward passes of encoders, with and without what the study shares."""
    rows = []
    sft, rl, cpt = ([model for model in study.models if model.kind == kind] for kind in ("sft", "rl", "cpt"))
    if sft:
        alone = sum(model.epochs for model in sft)
        planned = sum(epochs_added(study, model) for model in sft)
        rows.append(Passes("sft epochs", planned, alone, alone + sum(_sft_epochs_below(study, model) for model in rl)))
    if rl:
        alone = sum(model.epochs for model in rl)
        rows.append(Passes("rl epochs", sum(epochs_added(study, model) for model in rl), alone, alone))
    if cpt:
        epochs = {model.path: study.recipe("cpt", str(model.cpt))["num_train_epochs"] for model in cpt}
        planned = sum(epochs.values())
        again = sum(epochs.get(path, 0) for model in study.models for path in study.lineage(model))
        rows.append(Passes("cpt epochs", planned, planned, planned + again))
    if any(_runs(study, encoder) for encoder in study.encoders):
        rows.append(_encoder_passes(study, size))
    return rows


def _sft_epochs_below(study: Study, model: Model) -> int:
    """Epochs of the SFT that an RL model starts from; 0 if it starts from a base or CPT model."""
    parent = study.model(str(model.parent))
    return parent.epochs if parent.kind == "sft" else 0


def _runs(study: Study, encoder: str) -> bool:
    """Whether an encoder runs here: precomputed features cost no passes."""
    return "features" not in study.config["encoders"][encoder]


def _encoder_passes(study: Study, size: Size) -> Passes:
    """Sequences that encoders read.

    planned: for a bank each row of its task once, without a bank as in alone. alone: each example of each step, rollout
    and test, as if the encoder were part of the model.
    """
    banks = [task for encoder, task in study.banks if _runs(study, encoder)]
    planned = float(sum(size(task, split) for task in banks for split in SPLITS))
    alone = unshared = 0.0
    for model in study.models:
        if model.encoder is None or not _runs(study, model.encoder):
            continue
        recipe, task = study.recipe(model.kind, str(model.recipe)), str(model.task)
        rows = rows_used(recipe, size(task, "train"))
        if model.kind == "rl":  # each completion in the rollout and in the step
            rows *= 2 * (recipe.get("num_generations") or NUM_GENERATIONS)
        tested = sum(size(task, split) for split in TEST_SPLITS)
        read_live = epochs_added(study, model) * rows + tested
        alone += read_live
        planned += 0 if study.bank(model) else read_live
        unshared += model.epochs * rows + tested
        sft_epochs = _sft_epochs_below(study, model) if model.kind == "rl" else 0
        if sft_epochs:
            unshared += sft_epochs * rows_used(study.recipe("sft", str(model.sft)), size(task, "train"))
    return Passes("encoder passes", planned, alone, unshared)


def parameters(model: Mapping[str, Any]) -> float | None:
    """The number of parameters of a backbone or encoder of the config: from its architecture, or from a size in its
    name such as 1.7B, 500m or E2B (the effective size of a Gemma); None if neither says it.
    """
    architecture = model.get("architecture")
    if architecture:
        width, layers = _hidden_size(architecture), architecture.get("num_hidden_layers") or architecture.get("n_layer")
        if width is None or layers is None:
            return None
        heads = architecture.get("num_attention_heads") or architecture.get("n_head") or 1
        head_dim = architecture.get("head_dim") or width // heads
        key_value_heads = architecture.get("num_key_value_heads") or heads
        attention = 2 * width * head_dim * (heads + key_value_heads)
        intermediate = architecture.get("intermediate_size") or architecture.get("n_inner") or 4 * width
        feed_forward = (2 if architecture.get("model_type") in ("esm", "gpt2") else 3) * width * intermediate
        vocabulary = model.get("tokenizer", {}).get("vocab_size", 0)
        embeddings = 1 if architecture.get("tie_word_embeddings", True) else 2  # of the input, and of the output
        return float(layers * (attention + feed_forward) + embeddings * vocabulary * width)
    sizes = re.findall(r"(?<![a-z0-9.])e?(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", str(model.get("pretrained", "")).lower())
    return float(sizes[-1][0]) * {"b": 1e9, "m": 1e6}[sizes[-1][1]] if sizes else None


def width(model: Mapping[str, Any], size: float) -> float:
    """Hidden size of a backbone: from its architecture, or of a usual model with `size` parameters."""
    architecture = model.get("architecture")
    known = _hidden_size(architecture) if architecture else None
    return float(known) if known else float((size * ASPECT / 12) ** (1 / 3))


def _hidden_size(architecture: Mapping[str, Any]) -> int | None:
    """By either of the names that transformers configs have for it."""
    return architecture.get("hidden_size") or architecture.get("n_embd")


class Estimate(NamedTuple):
    """GPU-hours on one H100, and GB on disk, of all jobs of a kind."""

    what: str
    hours: float
    gigabytes: float


def estimates(work: Workload) -> list[Estimate]:
    """What CPT, SFT, RL and evaluation will take. Models with an unknown number of parameters count as nothing
    (`unknown` lists their backbones).
    """
    study = work.study
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
        tokens = work.of(model).tokens
        flops = tokens * size * STEP / (PEAK * TRAINING)
        if model.kind == "rl":  # each completion is generated, then trained on
            flops += tokens * size * FORWARD / (PEAK * GENERATION)
        hours[model.kind] += flops / HOUR
        lora = study.recipe(model.kind, str(model.recipe))["lora"]
        disk[model.kind] += BYTES * size * (min(1.0, ADAPTED * lora["r"] / width(backbone, size)) if lora else 1.0)
    for _, path, task in study.evaluations():
        size = parameters(study.config["backbones"][study.model(path).backbone])
        hours["evaluate"] += work.tokens_tested(task) * (size or 0.0) * FORWARD / (PEAK * GENERATION) / HOUR
    return [Estimate(what, hours.get(what, 0.0), disk[what] / 1e9) for what in disk]


def unknown(study: Study) -> list[str]:
    """Backbones in use whose number of parameters is in neither their architecture nor their name."""
    return [name for name in study.backbones if parameters(study.config["backbones"][name]) is None]


def assumptions(study: Study) -> list[str]:
    """The assumptions, as lines to print with the numbers."""
    lines = [
        f"GPU-hours: of one H100 ({PEAK / 1e12:.0f} TFLOP/s in bfloat16), {TRAINING:.0%} of it in training and "
        f"{GENERATION:.0%} in generation;",
        f"  {STEP} FLOPs a parameter and token trained on, {FORWARD} generated; without encoders and start-up.",
        f"disk: published weights alone, {BYTES} bytes a parameter (2 of a pretrained base); LoRA of rank r on all",
        f"  linear layers of width w has {ADAPTED} r / w of the model's parameters. Trainer state: up to 3 times that.",
    ]
    if any("pretrained" in study.config["backbones"][name] for name in study.backbones):
        lines.append("parameters of a pretrained backbone: as its name says (1.7B, E2B)")
    if unknown(study):
        lines.append(f"not counted: backbones of unknown size: {', '.join(unknown(study))}")
    return lines
