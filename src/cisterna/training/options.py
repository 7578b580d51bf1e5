"""From a recipe to the config object of the trainer (TrainingArguments, SFTConfig or GRPOConfig).

A recipe holds Cisterna's own keys (`cisterna.study.config.recipe_keys`) and options of the library under the library's
names. The options are passed on as they are, with those that Cisterna sets for every run.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from cisterna.errors import UserError
from cisterna.study.config import recipe_keys
from cisterna.training import trackers
from cisterna.training.arguments import StageArguments

DEEPSPEED = Path(__file__).parents[3] / "config" / "deepspeed"


def library_options(arguments: StageArguments) -> dict[str, Any]:
    """Options for the library's config class: those of the recipe, and those that Cisterna sets for every run.

    Sets the environment variables that DeepSpeed and the trackers read.
    """
    own = recipe_keys(arguments.kind) | {"architecture"}  # the recipe of an encoder holds its architecture too
    options = {key: value for key, value in arguments.recipe.items() if key not in own}
    gpu = torch.cuda.is_available()
    options.setdefault("logging_steps", 10)
    options |= trackers.options(arguments.output, arguments.recipe, arguments.seed)
    native = gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    options.setdefault("bf16", native and not options.get("fp16", False))
    options.setdefault("dataloader_pin_memory", gpu)
    if arguments.recipe.get("deepspeed"):
        options["deepspeed"] = _deepspeed(arguments.recipe["deepspeed"], gpu)
    return options | {
        "output_dir": str(arguments.work),
        "num_train_epochs": arguments.epochs,
        "seed": arguments.seed,
        "save_strategy": "no",  # `callback.StageCallback` asks for saves, by time and at the end
        "logging_nan_inf_filter": False,  # its default replaces a loss that is not finite with a made-up number
        "use_cpu": not gpu,
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }


def _deepspeed(name: str, gpu: bool) -> str:
    """The DeepSpeed configuration file called `name` (zero1, zero2, ...)."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if gpu else "cpu")
    import deepspeed.ops

    if not gpu:  # otherwise it spends minutes compiling, into the home folder, an operation for inference on CPUs
        deepspeed.ops.__compatible_ops__ = {}
    return str(DEEPSPEED / f"{name}.json")


def configure(config: type[transformers.TrainingArguments], options: Mapping[str, Any]) -> Any:
    """The library's config object. UserError where it refuses an option or a combination of options.

    Under ZeRO-3, models that are created after this call are created partitioned, so compose the model first.
    """
    try:
        return config(**options)
    except (TypeError, ValueError) as error:
        raise UserError(f"recipe: {config.__name__} refuses it: {error}") from None
