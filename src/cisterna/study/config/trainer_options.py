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

# Why a recipe may not set some library options, or what to use instead. A name ending in * is a prefix.
_REASONS = {
    "the path of a checkpoint is its lineage": "output_dir",
    "use the top-level key `seeds`": "seed data_seed",
    "use Cisterna's `epochs`, the rungs of the ladder": "num_train_epochs",
    "use the length in epochs: `epochs`, or num_train_epochs of a CPT recipe": "max_steps",
    "Cisterna saves the state of a running stage and publishes its checkpoint": "save_*",
    "Cisterna saves the state of a running stage": "enable_jit_checkpoint",
    "an interrupted stage resumes by itself": "resume_from_checkpoint restore_callback_states_from_checkpoint",
    "a resumed stage continues at the example where it stopped": "ignore_data_skip",
    "use per_device_train_batch_size: a result must not depend on free memory": "auto_find_batch_size",
    "no checkpoint is chosen by a score": "load_best_model_at_end metric_for_best_model greater_is_better",
    "evaluation is a stage of its own (top-level key `evaluation`)": "eval_*",
    "training and evaluation are stages of the workflow": "do_*",
    "checkpoints are published under results/models": "push_to_hub hub_* log_completions_hub_repo",
    "use Cisterna's `processes`": "local_rank",
    "use Cisterna's `processes` and `deepspeed`": "parallelism_config fsdp fsdp_config",
    "Cisterna prepares the columns": "remove_unused_columns label_names dataset_text_field dataset_kwargs",
    "a loss that is not finite ends the stage": "logging_nan_inf_filter",
    "a result must not depend on the number of ranks": "average_tokens_across_devices",
    "the order of the data is shuffled by seed and epoch, so that runs resume": "train_sampling_strategy",
    "the loss is always on the completion only": "completion_only_loss assistant_only_loss",
    "use the keys of the backbone (`backbones`)": "model_init_kwargs chat_template_path chat_template_kwargs "
    "eos_token pad_token",
    "use Cisterna's `rewards`": "reward_weights",
    "a backbone's code is that of transformers (of an encoder: `encoders`)": "trust_remote_code",
    "use the environment variable CISTERNA_REPORT_TO (docs/watching.md)": "report_to",
    "a run is called by the path of its model": "run_name",
    "use the environment variable WANDB_PROJECT (docs/watching.md)": "project",
    "vLLM runs in the processes that train": "vllm_server_* vllm_group_port",
    "use Trackio's environment variables, such as TRACKIO_SPACE_ID (docs/watching.md)": "trackio_*",
}
REFUSED = {name: reason for reason, names in _REASONS.items() for name in names.split()}
# What options have to be in an RL recipe with use_vllm, and why. The first value is the library's default.
_WHOLE = "the probabilities of engine and trainer are compared, in the whole distribution"
WITH_VLLM: dict[str, tuple[tuple[Any, ...], str]] = {
    "vllm_mode": (("colocate",), "it runs in the processes that train"),
    "vllm_tensor_parallel_size": ((1,), "each rank has an engine of its own"),
    "vllm_model_impl": (("vllm", "auto"), "weights are handed over by the names of vLLM's own models"),
    "vllm_max_model_length": ((None,), "it is set to the longest prompt and max_completion_length"),
    "vllm_structured_outputs_regex": ((None,), "the engine has no tokenizer"),
    "use_transformers_continuous_batching": ((False,), "one engine generates"),
    "generation_kwargs": ((None,), _WHOLE),
    "repetition_penalty": ((1.0,), _WHOLE),
    "top_p": ((1.0,), _WHOLE),
    "top_k": ((0,), _WHOLE),
    "min_p": ((None, 0.0), _WHOLE),
}
ALLOWED = {"cpt": {"num_train_epochs"}}  # a CPT recipe is one run and has no rungs


@cache
def known() -> dict[str, Any]:
    """The content of library_options.json."""
    return json.loads(OPTIONS.read_text(encoding="utf-8"))


def check_recipe(key: Key, kind: str, own: Iterable[str], recipe: Mapping[str, Any], problems: Problems) -> None:
    """The keys of a recipe that are not Cisterna's `own`: options of the library that trains stages of `kind`."""
    types, classes = known()["options"][kind], known()["classes"]
    options = {name: value for name, value in recipe.items() if name not in own}
    for name in list(options):
        if reason := _refused(kind, name):
            problems.add((*key, name), f"not supported in a recipe: {reason}")
            del options[name]
    if "warmup_ratio" in options:
        del options["warmup_ratio"]
        message = "transformers has removed this option; use warmup_steps: a number of steps, or below 1 a share"
        problems.add((*key, "warmup_ratio"), message)
    valid = [*own, *(name for name in types if not _refused(kind, name))]
    source = f"a key of Cisterna ({', '.join(sorted(own))}) or an option of {classes[kind]}"
    check(key, options, types, source, problems, valid)
    length = options.get("num_train_epochs")
    if isinstance(length, int | float) and length <= 0:
        problems.expected((*key, "num_train_epochs"), length, "a number > 0")


@cache
def _refused(kind: str, name: str) -> str | None:
    """Why a recipe may not set an option; None if it may."""
    if name in ALLOWED.get(kind, ()):
        return None
    for pattern, reason in REFUSED.items():
        if name == pattern or (pattern[-1] == "*" and name.startswith(pattern[:-1])):
            return reason
    return None


def check(
    key: Key,
    options: Mapping[str, Any],
    types: Mapping[str, Any],
    source: str,
    problems: Problems,
    valid: Iterable[str] | None = None,
) -> None:
    """Options against their types: unknown names and values of another type are problems; names in `valid` are
    suggested for unknown ones.
    """
    for name, value in options.items():
        if name not in types:
            problems.unknown((*key, name), source, list(types if valid is None else valid))
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
