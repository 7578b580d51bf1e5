"""The parent of a stage: its tokenizer, its model ready to be trained, and the adapter that a recipe puts on it."""

from functools import partial
from pathlib import Path

import transformers
from peft import LoraConfig

from cisterna import models
from cisterna.errors import UserError
from cisterna.sequences import tokenization
from cisterna.sequences.source import TOKENS, SequenceSource, connect
from cisterna.training.arguments import StageArguments


def parent_of(arguments: StageArguments) -> Path:
    """The parent's checkpoint folder, for a stage that has one."""
    assert arguments.parent is not None
    return arguments.parent


def load_tokenizer(arguments: StageArguments) -> transformers.PreTrainedTokenizerBase:
    """The tokenizer of the lineage."""
    return tokenization.load(models.base_of(parent_of(arguments)))


def load_model(arguments: StageArguments, source: SequenceSource = TOKENS) -> transformers.PreTrainedModel:
    """The model of the parent, connected to `source`. All weights are trainable, except a bridge that is to stay."""
    # Merging an adapter leaves the weights below it frozen.
    model = models.compose(parent_of(arguments)).train().requires_grad_(True)
    # By default some weights, those of ESM among them, are saved under names of an older release, which `compose` does
    # not know.
    model.save_pretrained = partial(model.save_pretrained, save_original_format=False)
    frozen = source.features is not None and not _trains_bridge(arguments)
    if frozen and not hasattr(model, "bridge"):
        raise UserError(
            f"{arguments.parent}: the model has no bridge, and with train_bridge: false it would get a random one. Set "
            "train_bridge: true in the RL recipe, or start from SFT with features"
        )
    connect(model, source, arguments.recipe.get("bridge", "linear"))
    if frozen:
        model.bridge.requires_grad_(False)
    return model


def adapter(arguments: StageArguments, source: SequenceSource = TOKENS) -> LoraConfig | None:
    """The LoRA of a recipe, None where all weights are trained. A bridge that is trained is saved with the adapter."""
    options = arguments.recipe.get("lora")
    if not options:
        return None
    if source.features is not None and _trains_bridge(arguments):
        options = options | {"modules_to_save": [*(options.get("modules_to_save") or []), "bridge"]}
    return models.lora_config(options)


def _trains_bridge(arguments: StageArguments) -> bool:
    return arguments.recipe.get("train_bridge", True)
