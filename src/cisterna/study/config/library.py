"""Options of the libraries in a config: which there are, which Cisterna sets itself, and whether values fit.

What the libraries' own dataclasses say is in library_options.json, written by scripts/build_options.py: importing
transformers and trl takes seconds.
"""

import json
import math
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from cisterna.study.config.problems import Key, Problems, one_of

OPTIONS = Path(__file__).parents[1] / "library_options.json"

# Library options that a recipe may not set, with the reason or what to use. A key ending in * is a prefix.
REFUSED = {
    "output_dir": "the path of a checkpoint is its lineage",
    "seed": "use the top-level key `seeds`",
    "data_seed": "use the top-level key `seeds`",
    "num_train_epochs": "use Cisterna's `epochs`, the rungs of the ladder",
    "max_steps": "use the length in epochs: `epochs`, or num_train_epochs of a CPT recipe",
    "save_*": "Cisterna saves the state of a running stage and publishes its checkpoint",
    "enable_jit_checkpoint": "Cisterna saves the state of a running stage",
    "resume_from_checkpoint": "an interrupted stage resumes by itself",
    "restore_callback_states_from_checkpoint": "an interrupted stage resumes by itself",
    "ignore_data_skip": "a resumed stage continues at the example where it stopped",
    "auto_find_batch_size": "use per_device_train_batch_size: a result must not depend on free memory",
    "load_best_model_at_end": "no checkpoint is chosen by a score",
    "metric_for_best_model": "no checkpoint is chosen by a score",
    "greater_is_better": "no checkpoint is chosen by a score",
    "eval_*": "evaluation is a stage of its own (top-level key `evaluation`)",
    "do_*": "training and evaluation are stages of the workflow",
    "push_to_hub": "checkpoints are published under results/models",
    "hub_*": "checkpoints are published under results/models",
    "log_completions_hub_repo": "checkpoints are published under results/models",
    "local_rank": "use Cisterna's `processes`",
    "parallelism_config": "use Cisterna's `processes` and `deepspeed`",
    "fsdp": "use Cisterna's `processes` and `deepspeed`",
    "fsdp_config": "use Cisterna's `processes` and `deepspeed`",
    "remove_unused_columns": "Cisterna prepares the columns",
    "logging_nan_inf_filter": "a loss that is not finite ends the stage",
    "average_tokens_across_devices": "a result must not depend on the number of ranks",
    "train_sampling_strategy": "the order of the data is shuffled by seed and epoch, so that runs resume",
    "label_names": "Cisterna prepares the columns",
    "dataset_text_field": "Cisterna prepares the columns",
    "dataset_kwargs": "Cisterna prepares the columns",
    "completion_only_loss": "the loss is always on the completion only",
    "assistant_only_loss": "the loss is always on the completion only",
    "model_init_kwargs": "use the keys of the backbone (`backbones`)",
    "chat_template_path": "use the keys of the backbone (`backbones`)",
    "eos_token": "use the keys of the backbone (`backbones`)",
    "pad_token": "use the keys of the backbone (`backbones`)",
    "reward_weights": "use Cisterna's `rewards`",
    "trust_remote_code": "a backbone's code is that of transformers (of an encoder: `encoders`)",
    "report_to": "use the environment variable CISTERNA_REPORT_TO (docs/watching.md)",
    "run_name": "a run is called by the path of its model",
    "project": "use the environment variable WANDB_PROJECT (docs/watching.md)",
    "trackio_*": "use Trackio's environment variables, such as TRACKIO_SPACE_ID (docs/watching.md)",
}
ALLOWED = {"cpt": {"num_train_epochs"}}  # a CPT recipe is one run and has no rungs


@cache
def known() -> dict[str, Any]:
    """The content of library_options.json."""
    return json.loads(OPTIONS.read_text(encoding="utf-8"))


def check_recipe(key: Key, kind: str, own: Iterable[str], recipe: Mapping[str, Any], problems: Problems) -> None:
    """The keys of a recipe that are not Cisterna's `own`: options of the library that trains stages of `kind`."""
    types = known()["options"][kind]
    options = {}
    for name, value in recipe.items():
        instead = _instead(kind, name)
        if name in own:
            continue
        if instead:
            problems.add((*key, name), f"not supported in a recipe: {instead}")
        elif name == "warmup_ratio":
            problems.add(
                (*key, name),
                "transformers has removed this option; use warmup_steps: a number of steps, or below 1 a share",
            )
        else:
            options[name] = value
    valid = [*own, *(name for name in types if not _instead(kind, name))]
    source = f"a key of Cisterna ({', '.join(sorted(own))}) or an option of {known()['classes'][kind]}"
    check(key, options, types, source, problems, valid)
    length = options.get("num_train_epochs")
    if isinstance(length, int | float) and length <= 0:
        problems.expected((*key, "num_train_epochs"), length, "a number > 0")


def _instead(kind: str, name: str) -> str | None:
    """What to use instead of an option that Cisterna sets itself; None if the option is free."""
    if name in ALLOWED.get(kind, ()):
        return None
    for pattern, instead in REFUSED.items():
        if name == pattern or (pattern[-1] == "*" and name.startswith(pattern[:-1])):
            return instead
    return None


def check(
    key: Key,
    options: Mapping[str, Any],
    types: Mapping[str, Any],
    source: str,
    problems: Problems,
    valid: Iterable[str] | None = None,
) -> None:
    """Options against their types: unknown names and values of another type are problems."""
    valid = list(types if valid is None else valid)
    for name, value in options.items():
        if name not in types:
            problems.unknown((*key, name), source, valid)
        elif not fits(types[name], value):
            near = filter(None, types[name] if isinstance(types[name], list) else ())
            problems.expected((*key, name), value, _words(types[name]), near)


def fits(kind: str | list[str | None], value: object) -> bool:
    """Whether a value has a type of library_options.json (the types: scripts/build_options.py)."""
    if isinstance(kind, list):
        return value in kind
    kind, _, null = kind.partition(" | ")
    if kind == "other" or (value is None and null):
        return True
    if kind == "float":
        return fits("int", value) or (isinstance(value, float) and math.isfinite(value))
    return type(value).__name__ == kind


def _words(kind: str | list[str | None]) -> str:
    if isinstance(kind, list):
        return one_of("null" if name is None else name for name in kind)
    words = {"bool": "true or false", "int": "an integer", "float": "a number", "str": "a text", "null": "null"}
    return " or ".join(words[part] for part in kind.split(" | "))
