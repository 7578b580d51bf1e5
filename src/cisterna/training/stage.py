"""What a stage is made from: its arguments, the config of its trainer, its parent, and the examples of its task.

A recipe has Cisterna's own keys (`cisterna.study.config.recipe_keys`) and options of the library under the library's
names, which are passed on as they are.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from peft import LoraConfig

from cisterna import models, updates
from cisterna.data import splits
from cisterna.errors import UserError, one_line
from cisterna.scoring import answers
from cisterna.scoring.answers import AnswerSpace
from cisterna.sequences import conventions, inputs_file, tokenization
from cisterna.sequences.source import TOKENS, SequenceSource, connect
from cisterna.study.config import recipe_keys
from cisterna.study.config.recipes import Lora
from cisterna.training import trackers

DEEPSPEED = Path(__file__).parent / "deepspeed"


@dataclass(frozen=True)
class StageArguments:
    """The arguments of `cisterna cpt`, `sft` and `rl`, and of the training of an encoder, which alone has no `parent`.

    `kind` is cpt, sft, rl or encoder. `parent`, `output` and `previous` (the rung below, None for the first) are
    checkpoint folders; `work` is the work folder.
    """

    kind: str
    parent: Path | None
    output: Path
    work: Path
    recipe: Mapping[str, Any]
    seed: int
    epochs: float
    previous: Path | None = None


def configure(config: type[transformers.TrainingArguments], arguments: StageArguments, **more: Any) -> Any:
    """The config of a trainer: options of the recipe, those that Cisterna sets for every run, and `more`.

    Sets the environment variables that DeepSpeed and the trackers read. UserError where the library refuses an option
    or a combination of options. Under ZeRO-3, models that are created after this call are created partitioned, so load
    the parent first.
    """
    recipe, gpu = arguments.recipe, torch.cuda.is_available()
    own = recipe_keys(arguments.kind) | {"architecture"}  # of an encoder
    options: dict[str, Any] = {
        "logging_steps": 10,
        "bf16": computes_in(recipe) == torch.bfloat16,
        "dataloader_pin_memory": gpu,
    }
    options |= {key: value for key, value in recipe.items() if key not in own}
    options |= trackers.options(arguments.output, recipe, arguments.seed)
    if recipe.get("deepspeed"):
        options["deepspeed"] = _deepspeed(recipe["deepspeed"], gpu)
    options |= {
        "output_dir": str(arguments.work),
        "num_train_epochs": arguments.epochs,
        "seed": arguments.seed,
        "save_strategy": "no",  # `callback.StageCallback` asks for saves, by time and at the end
        "logging_nan_inf_filter": False,  # its default replaces a loss that is not finite with a made-up number
        "use_cpu": not gpu,
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }
    try:
        return config(**options | more)
    except (TypeError, ValueError) as error:
        raise UserError(f"recipe: {config.__name__} refuses it: {error}") from None


def computes_in(recipe: Mapping[str, Any]) -> torch.dtype:
    """What the matrices of a forward pass are cast to: bfloat16 on a GPU that has it, if the recipe says nothing."""
    if recipe.get("fp16", False):
        return torch.float16
    default = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if recipe.get("bf16", default) else torch.float32


def set_attention(model: transformers.PreTrainedModel, recipe: Mapping[str, Any]) -> None:
    """Let a model compute attention as the recipe says, if it says anything.

    UserError where the library refuses it, or would take another implementation in its place.
    """
    name = recipe.get("attn_implementation")
    if name is None:
        return
    os.environ["FLASH_ATTENTION_DETERMINISTIC"] = "1"  # a resumed run gives the same weights
    place, advice = f"recipe: attn_implementation {name}", "Install what it needs, or leave it out of the recipe"
    try:
        model.set_attn_implementation(name)
    except (ImportError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"{place}: cannot be used here: {one_line(error)} {advice}") from None
    if model.config._attn_implementation != name:
        taken = model.config._attn_implementation
        raise UserError(f"{place}: {type(model).__name__} would use {taken} in its place. Write what is to be used")


def _deepspeed(name: str, gpu: bool) -> str:
    """The DeepSpeed configuration file called `name` (zero1, zero2, ...)."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if gpu else "cpu")
    import deepspeed.ops

    if not gpu:  # otherwise it spends minutes compiling, into the home folder, an operation for inference on CPUs
        deepspeed.ops.__compatible_ops__ = {}
    return str(DEEPSPEED / f"{name}.json")


def load_parent(
    arguments: StageArguments, source: SequenceSource = TOKENS
) -> tuple[transformers.PreTrainedTokenizerBase, transformers.PreTrainedModel]:
    """The tokenizer of the lineage, and the parent's model connected to `source`.

    All weights are trainable, except those of a bridge with `train_bridge: false`. What will be trained is in float32:
    all of the model without `lora`, and with it the modules to save (PEFT makes the adapter float32). Otherwise an
    optimizer would round small steps away. UserError if full weights of the lineage would lose their update in the
    precision in which this stage computes.
    """
    assert arguments.parent is not None
    tokenizer = tokenization.load(models.base_of(arguments.parent))
    model = _compose_parent(arguments, arguments.parent).train()
    model.requires_grad_(True)  # merging leaves the weights below frozen
    # By default some weights, those of ESM among them, are saved under names of an older release, which `compose` does
    # not know.
    model.save_pretrained = partial(model.save_pretrained, save_original_format=False)
    frozen = source.features is not None and not arguments.recipe.get("train_bridge", True)
    if frozen and not hasattr(model, "bridge"):
        raise UserError(
            f"{arguments.parent}: the model has no bridge, and with train_bridge: false it would get a random one. Set "
            "train_bridge: true in the RL recipe, or start from SFT with features"
        )
    connect(model, source, arguments.recipe.get("bridge", "linear"))
    if hasattr(model, "bridge") and (frozen or source.features is None):
        model.bridge.requires_grad_(False)
    return tokenizer, model


def _compose_parent(arguments: StageArguments, parent: Path) -> transformers.PreTrainedModel:
    recipe = arguments.recipe
    adapter, precision = recipe.get("lora") or {}, computes_in(recipe)
    if precision != torch.float32 and (adapter or recipe.get("deepspeed")):  # these cast the weights of the parent
        stage, kept = models.rounded_stage(parent, precision) or (parent, None)
        if kept is not None:
            raise UserError(
                f"{stage}: all weights were trained, and {precision}, in which this stage would compute, keeps "
                f"{kept:.2f} of that change; expected at least {updates.KEPT}. Put bf16: false and fp16: false into "
                "this recipe"
            )
    if not adapter or not adapter.keys() <= Lora.model_fields.keys():  # DoRA and the like read the whole weights
        return models.compose(parent, torch.float32)
    model = models.compose(parent, merged=precision == torch.float32)
    for name, module in list(model.named_modules()):
        if any(name.endswith(saved) for saved in adapter.get("modules_to_save") or ()):  # as PEFT finds them
            updates.widen(model, module)
    return model


def lora(arguments: StageArguments, source: SequenceSource = TOKENS) -> LoraConfig | None:
    """The LoRA of a recipe, None where all weights are trained. A bridge that is trained is saved with the adapter."""
    options = arguments.recipe.get("lora")
    if not options:
        return None
    if source.features is not None and arguments.recipe.get("train_bridge", True):
        options = options | {"modules_to_save": [*(options.get("modules_to_save") or []), "bridge"]}
    return models.lora_config(options)


@dataclass(frozen=True)
class Examples:
    """Rows of train that a recipe uses, the file that they are from with its SHA-256, the card, the answer space."""

    frame: pd.DataFrame
    path: Path
    hashes: dict[str, str]
    card: dict[str, Any]
    space: AnswerSpace


def load_examples(arguments: StageArguments, data: Path, split: str = "train") -> Examples:
    """The examples of a split in the folder `data`; of train those that the recipe uses.

    UserError if the file is not the one of the card, or if the parent was trained on other splits of the task.
    """
    assert arguments.parent is not None
    card = splits.read_card(data)
    path = splits.check(data, split, card)
    hashes = {path.name: card["files"][path.name]}
    frame = pd.read_parquet(path)
    if split == "train":
        inputs_file.check_data(arguments.parent, card["task"], hashes)
        frame = head(frame, arguments.recipe)
    return Examples(frame, path, hashes, card, answers.load_space(card, data))


def check_examples(
    tokenizer: transformers.PreTrainedTokenizerBase,
    model: transformers.PreTrainedModel,
    rows: list[list[int]],
    examples: Examples,
    more: int,
) -> None:
    """UserError for examples that the backbone cannot read or answer in full.

    `rows` are the token ids of the examples, after which the model writes up to `more`.
    """
    names, source = examples.frame["id"].astype(str).tolist(), examples.path
    lists = examples.frame["sequence"][examples.frame["sequence"].str.contains(" ", regex=False, na=False)]
    answers.check_written(examples.space, examples.frame["answer"], tokenizer, source)
    tokenization.check_words(tokenizer, (word for words in lists for word in words.split()), source)  # genes of cells
    tokenization.check_known(tokenizer, rows, names, source)
    advice = "Lower max_completion_length in the recipe, shorten the prompts, or use another backbone"
    conventions.check_positions(model, list(map(len, rows)), names, more, str(source), advice)


def head(frame: pd.DataFrame, recipe: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of train that a recipe uses: the first `examples`, or the first `fraction` of them, rounded up.

    Rows are in the order in which the split was drawn, so a smaller part is contained in every larger one, for SFT and
    RL alike.
    """
    return frame.head(recipe.get("examples") or math.ceil(len(frame) * float(recipe.get("fraction", 1.0))))
