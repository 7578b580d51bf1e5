"""The config: read, checked and filled in; `cisterna.study` expands the result.

`parse` reads YAML and keeps the line of every key. `check` collects every violation and raises one
UserError that gives, for each, the file, the line where it is known, the key, what was found and
what was expected. Whatever can be known to be wrong without opening a data file is an error here,
before any job is queued.

The JSON schema (workflow/schemas/config.schema.yaml) holds the shape; the rules here are those that
need more than one key. The schema is found from the source tree: Cisterna is a clone with an
editable install (`pip install --editable .`), and whatever else checks a config, such as an editor,
reads the same file. Which options the libraries have is in options.json, written by
scripts/build_options.py. Not for anything that needs torch or pandas.
"""

from __future__ import annotations

import copy
import datetime
import difflib
import json
import math
import re
import string
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cisterna.constants import FORMS, STAGES, TERM_REWARDS
from cisterna.errors import UserError
from cisterna.tasks import catalog
from cisterna.tasks.catalog import ADAPTERS
from cisterna.tasks.catalog import LABELS as BUILTIN

ROOT = Path(__file__).resolve().parents[3]
SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.yaml"
OPTIONS = Path(__file__).with_name("library_options.json")

# All that Cisterna fills in when a key is absent. Other options keep the default of their library.
DEFAULTS: dict[str, Any] = {
    "seeds": [0],
    "corpora": {},
    "architecture": {"seed": 0},  # a backbone made here
    "pretrained": {"revision": None, "dtype": "float32"},  # a backbone from the hub or a folder
    "encoder": {  # how its features are read
        "layer": -1,
        "pool": None,
        "flank": 1024,
        "letters": {},
        "storage": "float16",
        "batch_tokens": 4096,
        "bank": True,
        "trained": False,
    },
    "encoder training": {  # an encoder made here
        "block_size": 256,
        "mlm_probability": 0.15,
        "seed": 0,
        "save_minutes": 10.0,
        "num_train_epochs": 1.0,
    },
    "encoder pretrained": {
        "revision": None,
        "trust_remote_code": False,
        "package": "transformers",
        "dtype": "float32",
    },
    "task": {"train": 1000, "validation": 150, "id": 400, "seed": 0, "sequences": ["tokens"], "encoder": None},
    "builtin": {"ood": 400},  # a table of the user's own names its OOD groups instead
    "split": {"ood": "all"},  # a table whose OOD rows are chosen here
    "adapter": {"options": {}},
    "given": {"train": "all", "id": "all", "ood": "all"},  # an adapter of data that come with splits
    "hub": {"revision": None},
    "lora": {
        "lora_dropout": 0.0,
        "target_modules": "all-linear",
        "modules_to_save": None,
        "use_rslora": False,
    },
    "recipe": {"lora": None, "deepspeed": None, "processes": 1, "nodes": 1, "save_minutes": 10.0},
    "cpt": {"block_size": 256, "seed": 0, "num_train_epochs": 1.0},
    "sft": {"fraction": 1.0, "lr_scheduler_type": "constant", "bridge": "linear"},
    "rl": {
        "examples": None,  # all of train
        "rewards": {"correct": 1.0, "well_formed": 0.1},
        "lr_scheduler_type": "constant",
        "bridge": "linear",
        "train_bridge": True,
    },
    "evaluation": {
        "max_new_tokens": 96,
        "batch_size": 200,
        "bootstrap": 2000,
        "samples": 0,
        "sample_temperature": 1.0,
        "calibration": True,
    },
    "resources": {"threads": 1, "mem_mb": 3000, "runtime": 60, "gpu": 0},  # MB, minutes
    "lineage": {"tasks": "all", "sequences": "all", "backbones": "all", "cpt": ["none"], "sft": [], "rl": []},
}

# The kinds of jobs: keys of `resources`.
JOBS = ("data", "baselines", "tokenize", "encoder", "features", "base", "cpt", "sft", "rl", "evaluate", "report")

# Names become folders, so they must not look like the folders that Cisterna makes beside them.
RESERVED = {"all", "base", "checkpoint", "cold", "eval", "manifest.json", "none", "perplexity.json"}

# Library options that a recipe may not set, with what to do instead. A key ending in * is a prefix.
REFUSED = {
    "output_dir": "no value: the path of a checkpoint is its lineage",
    "seed": "the top-level key `seeds`",
    "data_seed": "the top-level key `seeds`",
    "num_train_epochs": "Cisterna's `epochs`, the rungs of the ladder",
    "max_steps": "the length in epochs: `epochs`, or num_train_epochs of a CPT recipe",
    "save_*": "no value: Cisterna saves the state of a running stage and publishes its checkpoint",
    "enable_jit_checkpoint": "no value: Cisterna saves the state of a running stage",
    "resume_from_checkpoint": "no value: an interrupted stage resumes by itself",
    "restore_callback_states_from_checkpoint": "no value: an interrupted stage resumes by itself",
    "ignore_data_skip": "no value: a resumed stage continues at the example where it stopped",
    "auto_find_batch_size": "per_device_train_batch_size: a result must not depend on free memory",
    "load_best_model_at_end": "no value: no checkpoint is chosen by a score",
    "metric_for_best_model": "no value: no checkpoint is chosen by a score",
    "greater_is_better": "no value: no checkpoint is chosen by a score",
    "eval_*": "no value: evaluation is a stage of its own (top-level key `evaluation`)",
    "do_*": "no value: training and evaluation are stages of the workflow",
    "push_to_hub": "no value: checkpoints are published under results/models",
    "hub_*": "no value: checkpoints are published under results/models",
    "log_completions_hub_repo": "no value: checkpoints are published under results/models",
    "local_rank": "Cisterna's `processes`",
    "parallelism_config": "Cisterna's `processes` and `deepspeed`",
    "fsdp": "Cisterna's `processes` and `deepspeed`",
    "fsdp_config": "Cisterna's `processes` and `deepspeed`",
    "remove_unused_columns": "no value: Cisterna prepares the columns",
    "logging_nan_inf_filter": "no value: a loss that is not finite ends the stage",
    "average_tokens_across_devices": "no value: a result must not depend on the number of ranks",
    "train_sampling_strategy": "no value: the order of the data is shuffled by seed and epoch, so that runs resume",
    "label_names": "no value: Cisterna prepares the columns",
    "dataset_text_field": "no value: Cisterna prepares the columns",
    "dataset_kwargs": "no value: Cisterna prepares the columns",
    "completion_only_loss": "no value: the loss is always on the completion only",
    "assistant_only_loss": "no value: the loss is always on the completion only",
    "model_init_kwargs": "the keys of the backbone (`backbones`)",
    "chat_template_path": "the keys of the backbone (`backbones`)",
    "eos_token": "the keys of the backbone (`backbones`)",
    "pad_token": "the keys of the backbone (`backbones`)",
    "reward_weights": "Cisterna's `rewards`",
    "trust_remote_code": "no value: a backbone's code is that of transformers (of an encoder: `encoders`)",
    "report_to": "the environment variable CISTERNA_REPORT_TO (docs/watching.md): who watches is no part of a recipe",
    "run_name": "no value: a run is called by the path of its model",
    "project": "the environment variable WANDB_PROJECT (docs/watching.md)",
    "trackio_*": "Trackio's environment variables, such as TRACKIO_SPACE_ID (docs/watching.md)",
}
ALLOWED = {"cpt": {"num_train_epochs"}}  # a CPT recipe is one run and no ladder

Key = tuple[str | int, ...]

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C where PyYAML has it


def check(config: object, problems: Problems, lines: Mapping[Key, int]) -> dict[str, Any]:
    """A copy of a valid config with the defaults filled in; else UserError with every violation.

    Numbers in scientific notation without a dot (`1e-3`), which YAML 1.1 parsers hand over as
    text, count as numbers wherever a real number is expected.
    """
    problems.lines = lines
    if not isinstance(config, Mapping):
        expected = "a mapping with the keys study, backbones, tasks, lineages"
        problems.add((), _show(config), expected)
        problems.stop()
    before = len(problems.found)
    plain = _plain(config, (), problems)
    if len(problems.found) > before:
        problems.stop()  # what hangs below a name that is not text would be reported twice
    _coerce(plain)
    _check_shape(plain, problems)
    _check_rules(plain, problems)
    problems.stop()
    return _fill(plain)


# --- Errors ---


class Problems:
    """Collects violations, so that the user sees all of them at once."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.lines: Mapping[Key, int] = {}
        self.found: dict[tuple[Key, str], int | None] = {}

    def add(
        self,
        key: Key,
        found: str,
        expected: str,
        near: Iterable[str] = (),
        name: str | None = None,
        line: int | None = None,
    ) -> None:
        """One violation. Of the names `near`, the nearest to `name` (or the key) is suggested."""
        hint = suggest(name or str(key[-1]), near) if key else ""
        message = f"found {found}; expected {expected}.{hint}"
        self.found.setdefault((key, message), line or self._line(key))

    def stop(self) -> None:
        """Raise a UserError with everything found so far, if there is anything."""
        if not self.found:
            return
        entries = sorted(self.found.items(), key=lambda entry: entry[1] or 0)
        blocks = []
        for (key, message), line in entries:
            place = f"{self.where}:{line}" if line else self.where
            blocks.append(f"{place}: {_dotted(key)}: {message}" if key else f"{place}: {message}")
        if len(blocks) > 1:
            blocks.insert(0, f"{len(blocks)} problems in {self.where}")
        raise UserError("\n".join(blocks))

    def _line(self, key: Key) -> int | None:
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key)


def _dotted(key: Key) -> str:
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def suggest(name: str, valid: Iterable[str]) -> str:
    """A sentence like " Did you mean X?", with the nearest of the valid names, or nothing."""
    nearest = difflib.get_close_matches(name, list(valid), n=1)
    return f" Did you mean {nearest[0]}?" if nearest else ""


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _show(value: object) -> str:
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, str):
        return f"the text {_quote(value)}"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return f"the list {json.dumps(value, default=str)}"
    return f"the {type(value).__name__} {value}"


def _one_of(names: Iterable[str]) -> str:
    names = list(names)
    if not names:
        return "a name that is defined, and none is"
    return f"one of {', '.join(map(str, names))}" if len(names) > 1 else str(names[0])


# --- YAML ---


def parse(path: Path) -> tuple[object, dict[Key, int], Problems]:
    """The document in a YAML file, the line of every key, and the keys that are given twice.

    PyYAML by itself would keep the last of them in silence. UserError if the file cannot be read or
    is not YAML, with line and column.
    """
    where = str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{where}: cannot read the config: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text: {error.reason} at byte {error.start}") from None
    problems = Problems(where)
    try:
        loader = LOADER(text)  # checks the characters
        try:
            node = loader.get_single_node()
            keys = _keys(node, where)  # before construction, which writes the keys of a merge (<<) into the node
            config = loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        raise UserError(f"{place}: broken YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{where}: broken YAML: {reason}") from None
    lines: dict[Key, int] = {}
    for key, line in keys:
        if key in lines:
            found = f"the key again (first in line {lines[key]})"
            problems.add(key, found, "each key once", line=line)
        lines.setdefault(key, line)
    return config, lines, problems


def _keys(node: yaml.Node | None, where: str) -> list[tuple[Key, int]]:
    try:
        return list(_key_lines(node, ()))
    except RecursionError:
        raise UserError(f"{where}: broken YAML: an alias contains itself") from None


def _key_lines(node: yaml.Node | None, key: Key) -> Iterator[tuple[Key, int]]:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if name.tag == "tag:yaml.org,2002:merge" or not isinstance(name, yaml.ScalarNode):
                continue
            yield (*key, name.value), name.start_mark.line + 1
            yield from _key_lines(value, (*key, name.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*key, index), value.start_mark.line + 1
            yield from _key_lines(value, (*key, index))


def _plain(value: object, key: Key, problems: Problems) -> Any:
    """A deep copy of dicts and lists; keys that are not text are problems."""
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                problems.add(
                    (*key, str(name)),
                    f"a name that YAML reads as {_show(name)}",
                    "a text, in quotes",
                )
        return {str(name): _plain(entry, (*key, str(name)), problems) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry, (*key, index), problems) for index, entry in enumerate(value)]
    return value


SCIENTIFIC = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
OWN_REALS = {"fraction": "float", "save_minutes": "float", "mlm_probability": "float"}


def _coerce(config: dict[str, Any]) -> None:
    """Turn "1e-3" into 0.001 where a real number is expected: YAML 1.1 reads it as text."""

    def convert(mapping: object, types: Mapping[str, object]) -> None:
        if isinstance(mapping, dict):
            for name, value in mapping.items():
                real = str(types.get(name)).startswith("float")
                if real and isinstance(value, str) and SCIENTIFIC.fullmatch(value):
                    mapping[name] = float(value)

    for kind in STAGES:
        for recipe in _mapping(_mapping(config.get("recipes")).get(kind)).values():
            convert(recipe, {**_options()["options"][kind], **OWN_REALS})
            convert(_mapping(recipe).get("lora"), {"lora_dropout": "float"})
            rewards = _mapping(_mapping(recipe).get("rewards"))
            convert(rewards, dict.fromkeys(rewards, "float"))
    for task in _mapping(config.get("tasks")).values():
        split = _mapping(_mapping(task).get("split"))
        if isinstance(split.get("after"), datetime.date):  # YAML's own type, which JSON does not have
            split["after"] = split["after"].isoformat()
    for group, known in (("backbones", "architectures"), ("encoders", "encoders")):
        for model in _mapping(config.get(group)).values():
            architecture = _mapping(_mapping(model).get("architecture"))
            convert(architecture, _options()[known].get(str(architecture.get("model_type")), {}))
            convert(_mapping(model).get("training"), {**_options()["options"]["cpt"], **OWN_REALS})


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# --- The shape: JSON schema ---


@cache
def _schema() -> dict[str, Any]:
    try:
        text = SCHEMA.read_text(encoding="utf-8")
    except OSError:
        message = f"{SCHEMA} is missing: run Cisterna from its clone (pip install --editable .)"
        raise UserError(message) from None
    return yaml.load(text, Loader=LOADER)  # noqa: S506 (a safe loader)


@cache
def _options() -> dict[str, Any]:
    return json.loads(OPTIONS.read_text(encoding="utf-8"))


@cache
def recipe_keys(kind: str) -> frozenset[str]:
    """Cisterna's own keys of a recipe (cpt, sft, rl) or of an encoder's training; every other key is the library's."""
    keys = _schema()["properties"]
    if kind == "encoder":
        return frozenset(keys["encoders"]["additionalProperties"]["properties"]["training"]["properties"])
    return frozenset(keys["recipes"]["properties"][kind]["additionalProperties"]["properties"])


KINDS = {
    "object": "a mapping",
    "array": "a list",
    "string": "a text",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}
BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
NAME_RULE = 'a name of at most 64 lower-case letters, digits, "." and "-", starting with a letter or digit'


def _check_shape(config: dict[str, Any], problems: Problems) -> None:
    import jsonschema  # 0.15 s, and whoever only imports this module does not need it

    base = jsonschema.Draft202012Validator
    # JSON schema takes 1.0 for an integer, but it would be folder e1.0.
    strict = base.TYPE_CHECKER.redefine("integer", lambda _, value: _is_int(value))
    validator = jsonschema.validators.extend(base, type_checker=strict)(_schema())
    for error in validator.iter_errors(config):
        _explain(error, problems)


def _explain(error: Any, problems: Problems) -> None:
    """Add the problem that one jsonschema.ValidationError means."""
    key: Key = tuple(error.absolute_path)
    rule, limit, found = error.validator, error.validator_value, _show(error.instance)
    if "propertyNames" in error.absolute_schema_path:
        expected = error.schema.get("description", NAME_RULE)
        problems.add((*key, error.instance), f"the name {_quote(error.instance)}", expected)
    elif error.schema == _schema()["$defs"]["name"] and isinstance(error.instance, str):
        problems.add(key, f"the name {_quote(error.instance)}", NAME_RULE)
    elif rule == "additionalProperties":
        valid = error.schema["properties"]
        patterns = error.schema.get("patternProperties", {})
        own = ", or PATH.py:FUNCTION, a function of your own" if key[-1:] == ("rewards",) else ""
        for name in error.instance:
            if name not in valid and not any(re.search(pattern, name) for pattern in patterns):
                problems.add((*key, name), "an unknown key", _one_of(valid) + own, valid)
    elif rule == "required":
        for name in limit:
            if name not in error.instance:
                problems.add((*key, name), "no such key", "it to be given")
    elif rule == "type":
        kinds = [limit] if isinstance(limit, str) else limit
        expected = " or ".join(KINDS[kind] for kind in kinds)
        quoted = "string" in kinds and isinstance(error.instance, bool | int | float)
        problems.add(key, found, expected + (" (put it in quotes)" if quoted else ""))
    elif rule == "enum":
        names = ["null" if name is None else str(name) for name in limit]
        problems.add(key, found, _one_of(names), names, name=str(error.instance))
    elif rule in BOUNDS:
        problems.add(key, found, f"a number {BOUNDS[rule]} {limit}")
    elif rule in ("minItems", "minProperties"):
        problems.add(key, found, f"at least {limit} {'entries' if limit > 1 else 'entry'}")
    elif rule == "maxItems":
        problems.add(key, found, f"at most {limit} entries")
    elif rule == "uniqueItems":
        problems.add(key, found, "no entry twice")
    elif rule == "minLength":
        problems.add(key, found, "a text that is not empty")
    elif rule == "pattern":
        problems.add(key, found, error.schema["description"])
    else:
        problems.add(key, found, f"{rule}: {limit}")


# --- The rules that need more than one key ---
# All problems are reported together, so the config may have the wrong shape here.


def _check_rules(config: dict[str, Any], problems: Problems) -> None:
    _check_names(config, problems)
    _check_paths(config, problems)
    _check_secrets((), config, problems)
    for name, backbone in _mapping(config.get("backbones")).items():
        _check_backbone(("backbones", name), _mapping(backbone), problems)
    for name, encoder in _mapping(config.get("encoders")).items():
        _check_encoder(("encoders", name), _mapping(encoder), config, problems)
    for name, task in _mapping(config.get("tasks")).items():
        _check_task(("tasks", name), name, _mapping(task), problems)
        _check_forms(("tasks", name), name, _mapping(task), config, problems)
    for name, corpus in _mapping(config.get("corpora")).items():
        _check_corpus(("corpora", name), _mapping(corpus), problems)
    recipes = _mapping(config.get("recipes"))
    for kind in STAGES:
        for name, recipe in _mapping(recipes.get(kind)).items():
            _check_recipe(("recipes", kind, name), kind, _mapping(recipe), config, problems)
    for index, lineage in enumerate(_list(config.get("lineages"))):
        _check_lineage(("lineages", index), _mapping(lineage), config, problems)


def _check_names(config: dict[str, Any], problems: Problems) -> None:
    recipes = _mapping(config.get("recipes"))
    tops = ("backbones", "encoders", "corpora", "tasks")
    groups: list[tuple[Key, object]] = [((name,), config.get(name)) for name in tops]
    groups += [(("recipes", kind), recipes.get(kind)) for kind in STAGES]
    names: list[tuple[Key, str]] = [((*key, name), name) for key, group in groups for name in _mapping(group)]
    study = config.get("study")
    names += [(("study",), study)] if isinstance(study, str) else []
    for key, name in names:
        if not NAME.fullmatch(name):
            problems.add(key, f"the name {_quote(name)}", NAME_RULE)
        elif ".." in name:
            problems.add(key, f"the name {_quote(name)}", 'a name without ".."')
        elif name in RESERVED:
            problems.add(
                key,
                f"the name {_quote(name)}",
                "another name: it is a folder or a word that Cisterna uses itself",
            )


def _check_paths(config: dict[str, Any], problems: Problems) -> None:
    """Paths that Snakemake would not take as they are: braces are wildcards, its report is a web page."""
    paths: list[tuple[Key, object]] = []
    for group in ("tasks", "corpora"):
        for name, entry in _mapping(config.get(group)).items():
            file = _mapping(entry).get("file")
            paths.append(((group, name, "file"), file))
            paths += [((group, name, "file", index), path) for index, path in enumerate(_list(file))]
            options = _mapping(_mapping(entry).get("options"))
            paths += [((group, name, "options", option), path) for option, path in options.items()]
    for name, backbone in _mapping(config.get("backbones")).items():
        files = _list(_mapping(_mapping(backbone).get("tokenizer")).get("files"))
        paths += [(("backbones", name, "tokenizer", "files", index), file) for index, file in enumerate(files)]
    for name, recipe in _mapping(_mapping(config.get("recipes")).get("rl")).items():
        for reward in _mapping(_mapping(recipe).get("rewards")):
            if ":" in reward:
                paths.append((("recipes", "rl", name, "rewards", reward), reward.rpartition(":")[0]))
    for key, path in paths:
        if isinstance(path, str) and (not path.isprintable() or set("{}<>") & set(path) or path.startswith("-")):
            expected = "a path without braces, < and >, line breaks and other control characters, not starting with -"
            problems.add(key, f"the path {_quote(path)}", expected)


# User and password in an address; tokens of the Hugging Face Hub, GitHub and AWS.
SECRET = re.compile(
    r"\w://[^/\s@]+@|\bhf_[A-Za-z0-9]{20}|\bgh[a-z]_[A-Za-z0-9]{20}|\bgithub_pat_|\bA(KI|SI)A[A-Z0-9]{16}\b"
)


def _check_secrets(key: Key, value: object, problems: Problems) -> None:
    """A config is copied into manifests and reports, so that it is no place for a secret; which is not shown either."""
    if isinstance(value, dict):
        for name, entry in value.items():
            _check_secrets((*key, name), entry, problems)
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            _check_secrets((*key, index), entry, problems)
    elif isinstance(value, str) and SECRET.search(value):
        expected = "no secret: a config is copied into manifests and reports. Set it in the environment (HF_TOKEN, ...)"
        problems.add(key, "what looks like a password or an access token", expected)


def _check_backbone(key: Key, backbone: dict[str, Any], problems: Problems) -> None:
    made = "architecture" in backbone
    if made == ("pretrained" in backbone):
        found = "both architecture and pretrained" if made else "neither architecture nor pretrained"
        problems.add(key, found, "architecture (a backbone made here) or pretrained (a hub id or a folder)")
    elif made:
        if "tokenizer" not in backbone:
            problems.add((*key, "tokenizer"), "no such key", "it to be given: vocab_size and files")
        for name in ("revision", "dtype"):
            if name in backbone:
                problems.add((*key, name), "a key of pretrained backbones", "no such key beside architecture")
    else:
        for name in ("tokenizer", "seed"):
            if name in backbone:
                problems.add((*key, name), "a key of backbones made here", "no such key beside pretrained")
    _check_architecture(key, backbone, _options()["architectures"], problems)


def _check_architecture(key: Key, model: dict[str, Any], known: dict[str, Any], problems: Problems) -> None:
    """Keys of `architecture` against those of the transformers config; `known` has them by model_type."""
    architecture = _mapping(model.get("architecture"))
    model_type = architecture.get("model_type")
    if isinstance(model_type, str):
        if model_type not in known:
            place = (*key, "architecture", "model_type")
            problems.add(place, _show(model_type), _one_of(known), known, name=model_type)
            return
        options = {name: value for name, value in architecture.items() if name != "model_type"}
        source = f"a key of the transformers config of {model_type}"
        _check_options((*key, "architecture"), options, known[model_type], source, problems)


def _check_encoder(key: Key, encoder: dict[str, Any], config: dict[str, Any], problems: Problems) -> None:
    made = "architecture" in encoder
    if made == ("pretrained" in encoder):
        found = "both architecture and pretrained" if made else "neither architecture nor pretrained"
        problems.add(key, found, "architecture and training (an encoder made here) or pretrained")
    elif made:
        if "training" not in encoder:
            problems.add((*key, "training"), "no such key", "it to be given: corpora and options of the training")
        for name in DEFAULTS["encoder pretrained"]:
            if name in encoder:
                problems.add((*key, name), "a key of pretrained encoders", "no such key beside architecture")
    elif "training" in encoder:
        problems.add((*key, "training"), "a key of encoders made here", "no such key beside pretrained")
    _check_architecture(key, encoder, _options()["encoders"], problems)
    _check_encoder_training((*key, "training"), _mapping(encoder.get("training")), config, problems)
    if encoder.get("trust_remote_code") is True and encoder.get("revision") is None:
        expected = "the commit whose code you have read, beside trust_remote_code: true"
        problems.add((*key, "revision"), "no revision", expected)
    if encoder.get("trained") is True and encoder.get("bank", True) is True:
        expected = "bank: false beside it: a bank holds the features of a frozen encoder"
        problems.add((*key, "trained"), _show(True), expected)
    package = encoder.get("package", "transformers")
    if encoder.get("trained") is True and package != "transformers":
        found = f"{_show(True)} with package {package}"
        problems.add((*key, "trained"), found, "no such key: only encoders of transformers can be trained")
    layer: Any = encoder.get("layer")
    layers: Any = _mapping(encoder.get("architecture")).get("num_hidden_layers")
    if _is_int(layer) and _is_int(layers) and not -layers - 1 <= layer <= layers:
        expected = f"0 (embeddings) to {layers} (the last of num_hidden_layers), or -1 (the last) to {-layers - 1}"
        problems.add((*key, "layer"), _show(layer), expected)


def _check_encoder_training(key: Key, training: dict[str, Any], config: dict[str, Any], problems: Problems) -> None:
    if "deepspeed" in training:
        expected = "no such key: an encoder is made by one process"
        problems.add((*key, "deepspeed"), "an option that Cisterna sets itself", expected)
    given = {name: value for name, value in training.items() if name != "deepspeed"}
    _check_library(key, "cpt", recipe_keys("encoder"), given, problems)
    corpora = _mapping(config.get("corpora"))
    _check_known((*key, "corpora"), training.get("corpora"), corpora, problems)
    for index, name in enumerate(_list(training.get("corpora"))):
        if isinstance(name, str) and _mapping(corpora.get(name)).get("modality") == "text":
            problems.add((*key, "corpora", index), f"{_quote(name)}, a corpus of text", "a corpus of sequences")


def _check_forms(key: Key, name: str, task: dict[str, Any], config: dict[str, Any], problems: Problems) -> None:
    """A task's forms, and the encoder that they need."""
    forms = [form for form in _forms(task) if form in FORMS and form != "tokens"]
    encoder, encoders = task.get("encoder"), _mapping(config.get("encoders"))
    for index, given in enumerate(encoders_of(task)):
        if isinstance(given, str) and given not in encoders:
            place = (*key, "encoder", index) if isinstance(encoder, list) else (*key, "encoder")
            problems.add(place, _show(given), _one_of(encoders), encoders, name=given)
    if forms and not catalog.residues(name, task):
        found = f"{' and '.join(forms)} of a task without residues"
        problems.add((*key, "sequences"), found, "tokens: an encoder has nothing to read")
    elif forms and encoder is None:
        problems.add((*key, "encoder"), "no encoder", f"a name of `encoders` for {' and '.join(forms)}")


def encoders_of(task: Mapping[str, Any]) -> list[str]:
    """The encoders that a task lists: `encoder` is one, a list of them, or null."""
    given = task.get("encoder")
    return given if isinstance(given, list) else [given] if given is not None else []


def _forms(task: Mapping[str, Any]) -> list[Any]:
    """The forms that a task lists: `sequences` is one, or a list of them."""
    forms = task.get("sequences", DEFAULTS["task"]["sequences"])
    return forms if isinstance(forms, list) else [forms]


# Keys of a task that only some kinds of tasks have.
_OF_TABLES = ("modality", "columns", "labels", "question", "prompt", "split")
_OF_ADAPTERS = ("hub", "revision", "options")


# Endings of GenBank and EMBL flat files, which hold sequences.
FLAT = (".gb", ".gbk", ".gbff", ".genbank", ".embl")


def _check_corpus(key: Key, corpus: dict[str, Any], problems: Problems) -> None:
    """What the ending of a corpus's file rules out."""
    file = str(corpus.get("file", "")).lower().removesuffix(".gz").removesuffix(".zst")
    if "field" in corpus and not file.endswith(".jsonl"):
        problems.add((*key, "field"), "it beside a file that is not .jsonl", "no such key: only JSON lines have fields")
    if file.endswith(FLAT) and corpus.get("modality") == "text":
        problems.add((*key, "modality"), '"text" of a GenBank or EMBL file', "dna, rna or protein")


def _check_task(key: Key, name: str, task: dict[str, Any], problems: Problems) -> None:
    if "adapter" in task:
        _check_adapter(key, name, task, problems)
        return
    for entry in _OF_ADAPTERS:
        if entry in task:
            problems.add((*key, entry), "a key of adapters", f"`adapter` beside it ({_one_of(ADAPTERS)})")
    if "file" not in task:
        if name not in BUILTIN:
            names = ", ".join(BUILTIN)
            expected = f"a built-in task ({names}), or the key `file` with a table of your own, or the key `adapter`"
            problems.add(key, f"the task {_quote(name)} without a file", expected, BUILTIN)
        else:
            for entry in _OF_TABLES:
                if entry in task:
                    problems.add(
                        (*key, entry),
                        "a key of tables of your own",
                        f"no such key: {name} is built in",
                    )
            if isinstance(task.get("ood"), list):
                problems.add((*key, "ood"), _show(task["ood"]), "the number of OOD examples, an integer")
            for split in ("id", "ood"):
                if task.get(split) == "all":
                    problems.add((*key, split), _show("all"), "a number of rows")
        return
    if name in BUILTIN:
        problems.add(
            key,
            f"the name {_quote(name)}",
            "another name for a table of your own: this one is a built-in task",
        )
    _check_table(key, task, problems)


def _check_adapter(key: Key, name: str, task: dict[str, Any], problems: Problems) -> None:
    """The keys of a task whose data an adapter reads."""
    if name in BUILTIN:
        problems.add(key, f"the name {_quote(name)}", "another name: this one is a built-in task")
    adapter = ADAPTERS.get(str(task["adapter"]))
    if adapter is None:
        if isinstance(task["adapter"], str):
            known = list(ADAPTERS)
            problems.add((*key, "adapter"), _show(task["adapter"]), _one_of(known), known, name=task["adapter"])
        return
    for entry in _OF_TABLES:
        if entry in task and (entry != "split" or adapter.splits):
            expected = f"no such key: the adapter {task['adapter']} knows its data"
            problems.add((*key, entry), "a key of tables of your own", expected)
    counts = " or ".join(map(str, adapter.files)) or "1 or more"
    files = f"`file`, {counts} file{'s' if counts != '1' else ''}"
    if adapter.hub and ("file" in task) == ("hub" in task):
        found = "both file and hub" if "hub" in task else "neither file nor hub"
        problems.add(key, found, f"{files}, or `hub`, a data set of the Hugging Face hub")
    elif not adapter.hub:
        if "file" not in task:
            problems.add((*key, "file"), "no such key", f"it to be given: {files}")
        if "hub" in task:
            problems.add((*key, "hub"), "it", f"no such key: the adapter {task['adapter']} reads {files}")
    if "revision" in task and "hub" not in task:
        problems.add((*key, "revision"), "it without hub", "no such key beside file")
    given = [task["file"]] if isinstance(task.get("file"), str) else _list(task.get("file"))
    if given and adapter.files and len(given) not in adapter.files:
        problems.add((*key, "file"), f"{len(given)} files", counts)
    if not adapter.splits:
        _check_held_out(key, task, problems)
        _check_split((*key, "split"), _mapping(task.get("split")), False, problems)
    if adapter.splits and isinstance(task.get("ood"), list):
        problems.add((*key, "ood"), _show(task["ood"]), "a number of rows, or all: these data come with splits")
    _check_adapter_options((*key, "options"), adapter, task.get("options", {}), problems)


def _check_adapter_options(key: Key, adapter: catalog.Adapter, options: object, problems: Problems) -> None:
    if not isinstance(options, dict):
        return
    types = {name: option.kind for name, option in adapter.options.items()}
    source = f"an option of this adapter ({', '.join(types) or 'it has none'})"
    _check_options(key, options, types, source, problems)
    for name, option in adapter.options.items():
        if name not in options and option.default is catalog.REQUIRED:
            problems.add((*key, name), "no such key", f"it to be given: {option.meaning}")
        value: Any = options.get(name)
        numeric = isinstance(value, int | float) and _fits(option.kind, value)
        if numeric and option.least is not None and value < option.least:
            problems.add((*key, name), _show(value), f"a number >= {option.least}")
        if option.kind == "str" and value == "":
            problems.add((*key, name), _show(value), "a text that is not empty")


def _check_table(key: Key, task: dict[str, Any], problems: Problems) -> None:
    """The keys of a table of the user's own."""
    made = "split" in task
    for entry in ("modality", "columns", "labels"):
        if entry not in task:
            problems.add((*key, entry), "no such key", "it to be given beside file")
    if "question" not in task and "prompt" not in task:
        problems.add((*key, "question"), "no such key", "it to be given beside file, or `prompt`, a whole template")
    if "question" in task and "prompt" in task:
        problems.add((*key, "prompt"), "it beside question", "one of the two")
    if isinstance(task.get("file"), list):
        problems.add((*key, "file"), _show(task["file"]), "one path: a task without an adapter reads one table")
    _check_held_out(key, task, problems)
    columns = _mapping(task.get("columns"))
    if made and "group" in columns:
        expected = "no such key: `split` says what is held out (with `by: group` its `column`)"
        problems.add((*key, "columns", "group"), "it beside split", expected)
    if not made and columns and "group" not in columns:
        problems.add((*key, "columns", "group"), "no such key", "it to be given: what `ood` holds out, or `split`")
    for index, label in enumerate(_list(task.get("labels"))):
        if isinstance(label, str) and label and (label != label.strip() or "<" in label or not label.isprintable()):
            found = f"the label {_quote(label)}"
            expected = "one line without < and without spaces at its ends: answers are parsed strictly"
            problems.add((*key, "labels", index), found, expected)
    if isinstance(task.get("prompt"), str):
        _check_template((*key, "prompt"), task["prompt"], columns, problems)
    _check_split((*key, "split"), _mapping(task.get("split")), True, problems)


def _check_held_out(key: Key, task: dict[str, Any], problems: Problems) -> None:
    """`ood` lists groups, or `split` says what is held out and `ood` how many rows of it are tested."""
    expected = "the list of groups that are held out, e.g. [kinase, gpcr], or `split`"
    if "split" in task:
        if isinstance(task.get("ood"), list):
            problems.add((*key, "ood"), _show(task["ood"]), "a number of rows, or all: `split` says what is held out")
    elif "ood" not in task:
        problems.add((*key, "ood"), "no such key", f"it to be given beside file: {expected}")
    elif _is_int(task["ood"]) or task["ood"] == "all":
        problems.add((*key, "ood"), _show(task["ood"]), expected)
    if task.get("id") == "all":
        problems.add((*key, "id"), _show("all"), "a number of rows: only data that come with splits have all")


def _check_template(key: Key, template: str, columns: dict[str, Any], problems: Problems) -> None:
    """A prompt with names of columns in braces: only names, the sequence once, and not the answer."""
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as error:
        problems.add(key, f"a template that cannot be read ({error})", "names of columns in braces; {{ for a brace")
        return
    names = [name for _, name, _, _ in fields if name is not None]
    for _, name, form, conversion in fields:
        if name is not None and (not name or form or conversion or set(name) & set(".[]") or name.isdigit()):
            problems.add(key, f"the field {_quote(name)} with more than a name", "names of columns in braces alone")
    if names.count("sequence") != 1:
        problems.add(key, f"{{sequence}} {names.count('sequence')} times", "it once: there the sequence stands")
    for role in ("label", "reasoning"):
        if columns.get(role) in names and columns[role] not in ("sequence", "options"):
            problems.add(key, f"{{{columns[role]}}}, the column of the {role}", "a prompt that does not give it away")


def _check_split(key: Key, split: dict[str, Any], names_column: bool, problems: Problems) -> None:
    """How OOD rows are chosen: keys that a way needs, and those that it does not have.

    An adapter knows the column of groups (its option `group`); a table names it.
    """
    column = ("column",) if names_column else ()
    needs = {"group": column, "time": column, "similarity": ("threshold",)}
    way = split.get("by")
    if not isinstance(way, str) or way not in needs:
        return
    for entry in needs[way]:
        if entry not in split:
            problems.add((*key, entry), "no such key", f"it to be given with `by: {way}`")
    for entry in ("column", "threshold", "after"):
        if entry in split and entry not in needs[way] and not (entry == "after" and way == "time"):
            problems.add((*key, entry), f"it with `by: {way}`", "no such key")
    if ("ood" in split) == ("after" in split) and way == "time":
        found = "both ood and after" if "ood" in split else "neither ood nor after"
        problems.add(key, found, "ood (the share of the latest rows) or after (a date)")
    elif way != "time" and "ood" not in split:
        problems.add((*key, "ood"), "no such key", "the share of the rows that is held out, e.g. 0.2")
    if isinstance(split.get("after"), str):
        try:
            datetime.datetime.fromisoformat(split["after"])
        except ValueError:
            problems.add((*key, "after"), _show(split["after"]), "a date as in ISO 8601, e.g. 2020-01-31")


def _check_recipe(key: Key, kind: str, recipe: dict[str, Any], config: dict[str, Any], problems: Problems) -> None:
    _check_library(key, kind, recipe_keys(kind), recipe, problems)
    if kind == "cpt":
        corpora = _mapping(config.get("corpora"))
        _check_known((*key, "corpora"), recipe.get("corpora"), corpora, problems)
    else:
        _check_rungs(key, recipe, problems)
    _check_nodes(key, kind, recipe, config, problems)
    if kind == "rl":
        _check_groups(key, recipe, problems)


def _check_library(key: Key, kind: str, own: Iterable[str], recipe: dict[str, Any], problems: Problems) -> None:
    """The keys of a recipe that are not Cisterna's `own`: options of the library that trains stages of `kind`."""
    types = _options()["options"][kind]
    library = _options()["classes"][kind]
    source = f"a key of Cisterna ({', '.join(sorted(own))}) or an option of {library}"
    options = {}
    for name, value in recipe.items():
        refusal = _refusal(kind, name)
        if name in own:
            continue
        if refusal:
            problems.add((*key, name), "an option that Cisterna sets itself", refusal)
        elif name == "warmup_ratio":
            expected = "warmup_steps: a number of steps, or below 1 a share of all steps"
            problems.add((*key, name), "an option that transformers has removed", expected)
        else:
            options[name] = value
    valid = [name for name in types if not _refusal(kind, name)]
    _check_options(key, options, types, source, problems, [*own, *valid])
    length = options.get("num_train_epochs")
    if isinstance(length, int | float) and length <= 0:
        problems.add((*key, "num_train_epochs"), _show(length), "a number > 0")


def _refusal(kind: str, name: str) -> str | None:
    """What to use instead of an option that Cisterna sets itself; None if the option is free."""
    if name in ALLOWED.get(kind, ()):
        return None
    for pattern, instead in REFUSED.items():
        if name == pattern or (pattern[-1] == "*" and name.startswith(pattern[:-1])):
            return instead
    return None


def _check_options(
    key: Key,
    options: dict[str, Any],
    types: Mapping[str, Any],
    source: str,
    problems: Problems,
    valid: Iterable[str] | None = None,
) -> None:
    valid = list(types if valid is None else valid)
    for name, value in options.items():
        if name not in types:
            problems.add((*key, name), "an unknown key", source, valid)
        elif not _fits(types[name], value):
            near = types[name] if isinstance(types[name], list) else ()
            problems.add(
                (*key, name),
                _show(value),
                _type_words(types[name]),
                filter(None, near),
                name=str(value),
            )


def _fits(kind: str | list[str | None], value: object) -> bool:
    """Whether a value has a type of options.json (the types: scripts/build_options.py)."""
    if isinstance(kind, list):
        return value in kind
    kind, _, null = kind.partition(" | ")
    if kind == "other" or (value is None and null):
        return True
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "int":
        return _is_int(value)
    if kind == "float":
        return _is_int(value) or (isinstance(value, float) and math.isfinite(value))
    return isinstance(value, str)


def _type_words(kind: str | list[str | None]) -> str:
    if isinstance(kind, list):
        return _one_of("null" if name is None else name for name in kind)
    words = {
        "bool": "true or false",
        "int": "an integer",
        "float": "a number",
        "str": "a text",
        "null": "null",
    }
    return " or ".join(words[part] for part in kind.split(" | "))


def _check_known(key: Key, names: object, valid: Mapping[str, Any], problems: Problems) -> None:
    for index, name in enumerate(_list(names)):
        if isinstance(name, str) and name not in valid:
            problems.add((*key, index), _show(name), _one_of(valid), valid, name=name)


def _rungs(recipe: object) -> list[int]:
    return [epoch for epoch in _list(_mapping(recipe).get("epochs")) if _is_int(epoch)]


def _check_rungs(key: Key, recipe: dict[str, Any], problems: Problems) -> None:
    epochs = _rungs(recipe)
    if epochs != sorted(set(epochs)):
        problems.add((*key, "epochs"), _show(epochs), "each number once, ascending, e.g. [1, 2, 4, 8]")
    schedule = recipe.get("lr_scheduler_type", DEFAULTS["sft"]["lr_scheduler_type"])
    warmup: Any = recipe.get("warmup_steps")
    if schedule == "constant" and isinstance(warmup, int | float) and warmup:
        expected = "lr_scheduler_type: constant_with_warmup beside it; constant has no warm-up"
        problems.add((*key, "warmup_steps"), _show(warmup), expected)
    if schedule == "constant_with_warmup" and not (_is_int(warmup) and warmup >= 1):
        found = "no such key" if warmup is None else _show(warmup)
        expected = "an integer >= 1: a share of the run would differ from rung to rung of the ladder"
        problems.add((*key, "warmup_steps"), found, expected)


def _check_nodes(key: Key, kind: str, recipe: dict[str, Any], config: dict[str, Any], problems: Problems) -> None:
    """Every node has the same number of ranks and of GPUs."""
    nodes: Any = recipe.get("nodes")
    if not _is_int(nodes) or nodes < 1:
        return
    processes = recipe.get("processes", DEFAULTS["recipe"]["processes"])
    if _is_int(processes) and processes % nodes:
        problems.add((*key, "nodes"), _show(nodes), f"a divisor of processes ({processes}, the ranks on all nodes)")
    gpu = _mapping(_mapping(config.get("resources")).get(kind)).get("gpu", DEFAULTS["resources"]["gpu"])
    if _is_int(gpu) and gpu % nodes:
        problems.add((*key, "nodes"), _show(nodes), f"a divisor of resources.{kind}.gpu ({gpu}, the GPUs on all nodes)")


def _check_groups(key: Key, recipe: dict[str, Any], problems: Problems) -> None:
    """GRPO's arithmetic, as trl.GRPOConfig.__post_init__ has it, before any job is queued."""
    if "generation_batch_size" in recipe and "steps_per_generation" in recipe:
        problems.add((*key, "steps_per_generation"), "it beside generation_batch_size", "one of the two")
        return
    names = (
        "num_generations",
        "per_device_train_batch_size",
        "processes",
        "gradient_accumulation_steps",
    )
    standard = {"processes": 1, "gradient_accumulation_steps": 1}
    group, rows, processes, steps = (recipe.get(name, standard.get(name, 8)) for name in names)
    steps = recipe.get("steps_per_generation", steps)
    if not all(_is_int(value) for value in (group, rows, processes, steps)):
        return
    for name in (*names, "steps_per_generation", "generation_batch_size"):
        least = 2 if name == "num_generations" else 1
        if _is_int(recipe.get(name)) and recipe[name] < least:
            why = " (a group of one has no variance, so no gradient)" if least == 2 else ""
            problems.add((*key, name), _show(recipe[name]), f"a number >= {least}{why}")
            return
    batch = recipe.get("generation_batch_size", rows * processes * steps)
    if not _is_int(batch):
        return
    if batch % (rows * processes):
        expected = f"a multiple of per_device_train_batch_size x processes = {rows * processes}"
        problems.add((*key, "generation_batch_size"), _show(batch), expected)
    if batch % group:
        found = f"{group}, which does not divide the generation batch of {batch}"
        steps_key = "steps_per_generation (or gradient_accumulation_steps)"
        product = f"per_device_train_batch_size x processes x {steps_key}"
        made = "generation_batch_size" if "generation_batch_size" in recipe else product
        problems.add((*key, "num_generations"), found, f"a divisor of {made}")
    rewards = _mapping(recipe.get("rewards"))
    if rewards and all(value == 0 for value in rewards.values()):
        problems.add((*key, "rewards"), "only zeros", "at least one reward above 0")


def _check_lineage(key: Key, lineage: dict[str, Any], config: dict[str, Any], problems: Problems) -> None:
    recipes = _mapping(config.get("recipes"))
    cpt, sft, rl = (_mapping(recipes.get(kind)) for kind in STAGES)
    _check_known((*key, "tasks"), lineage.get("tasks"), _mapping(config.get("tasks")), problems)
    _check_known((*key, "backbones"), lineage.get("backbones"), _mapping(config.get("backbones")), problems)
    _check_known((*key, "cpt"), lineage.get("cpt"), {"none": None, **cpt}, problems)
    _check_known((*key, "sft"), lineage.get("sft"), sft, problems)
    _check_room(key, lineage, config, problems)
    reads = _check_lineage_forms(key, lineage, config, problems)
    chosen = [name for name in _list(lineage.get("sft")) if isinstance(name, str) and name in sft]
    for sized in chosen:
        _check_examples("sft", sized, lineage, config, problems)
    budget = lineage.get("budget")
    for index, entry in enumerate(_list(lineage.get("rl"))):
        place = (*key, "rl", index)
        name = _mapping(entry).get("recipe")
        if isinstance(name, str) and name not in rl:
            problems.add((*place, "recipe"), _show(name), _one_of(rl), rl, name=name)
        if budget is not None:
            if "from" in _mapping(entry):
                problems.add(
                    (*place, "from"),
                    "it beside budget",
                    "no such key: the budget's split says the rungs",
                )
        elif "from" not in _mapping(entry):
            expected = "the SFT rungs to start from, e.g. [1, 8], or [cold]: the base or CPT model"
            problems.add((*place, "from"), "no such key", expected)
        for position, start in enumerate(_list(_mapping(entry).get("from"))):
            _check_start((*place, "from", position), start, chosen, lineage, sft, problems)
        _check_examples("rl", name, lineage, config, problems)
        _check_rewards(_mapping(entry), lineage, config, problems)
        if reads and isinstance(name, str):
            _check_features(name, _mapping(rl.get(name)), _is_cold(_mapping(entry), budget), problems)
    if isinstance(budget, dict):
        _check_budget(key, lineage, budget, chosen, config, problems)


def _check_lineage_forms(key: Key, lineage: dict[str, Any], config: dict[str, Any], problems: Problems) -> bool:
    """Check a lineage's choice of forms against its tasks. Whether any of its models reads features."""
    tasks = _mapping(config.get("tasks"))
    chosen = lineage.get("sequences", "all")
    reads = False
    for task in _chosen(lineage.get("tasks", "all"), tasks):
        forms = _forms(_mapping(tasks[task]))
        for index, form in enumerate(_list(chosen)):
            if form in FORMS and form not in forms:
                expected = f"a form that tasks.{task}.sequences lists ({', '.join(map(str, forms))})"
                problems.add((*key, "sequences", index), _show(form), expected)
        picked = forms if chosen == "all" else _list(chosen)
        reads = reads or any(form in ("features", "both") for form in picked)
    return reads


def _is_cold(entry: dict[str, Any], budget: object) -> bool:
    """Whether an RL entry of a lineage starts from a base or CPT model."""
    splits = [pair for pair in _list(_mapping(budget).get("split")) if isinstance(pair, list) and len(pair) == 2]
    return "cold" in _list(entry.get("from")) or any(pair[0] == 0 and pair[1] != 0 for pair in splits)


def _check_features(name: str, recipe: dict[str, Any], cold: bool, problems: Problems) -> None:
    """What an RL recipe may not ask for where sequences are features."""
    key: Key = ("recipes", "rl", name)
    where = "in a lineage with sequences as features"
    if recipe.get("use_vllm") is True:
        problems.add((*key, "use_vllm"), f"true {where}", "false: vLLM has no bridge")
    penalty = recipe.get("repetition_penalty", 1.0)
    if isinstance(penalty, int | float) and penalty != 1.0:
        expected = "1.0: a penalty on tokens of the prompt has no meaning for features"
        problems.add((*key, "repetition_penalty"), f"{penalty} {where}", expected)
    beta = recipe.get("beta", 0.0)
    if recipe.get("lora") is None and isinstance(beta, int | float) and beta != 0:
        expected = "0.0, or `lora`: without an adapter the reference model would be loaded without the bridge"
        problems.add((*key, "beta"), f"{beta} with all weights trained, {where}", expected)
    if cold and recipe.get("train_bridge") is False:
        expected = "true: a start from cold has no bridge yet, and one of random weights would stay so"
        problems.add((*key, "train_bridge"), f"false with a start from cold, {where}", expected)


def _check_start(
    key: Key,
    start: object,
    chosen: list[str],
    lineage: dict[str, Any],
    sft: Mapping[str, Any],
    problems: Problems,
) -> None:
    if start == "cold":
        return
    if not _is_int(start):
        if isinstance(start, str):
            problems.add(key, _show(start), "the number of a rung, or cold", ["cold"], name=start)
        return
    if not lineage.get("sft"):
        problems.add(
            key,
            f"{_show(start)}, a rung of SFT",
            "a parent: the lineage lists no sft recipe (cold needs none)",
        )
    for name in chosen:
        if start not in _rungs(sft[name]):
            rungs = ", ".join(map(str, _rungs(sft[name])))
            problems.add(key, _show(start), f"a rung of the SFT recipe {name} ({rungs}), or cold")


def _check_examples(
    kind: str, name: object, lineage: dict[str, Any], config: dict[str, Any], problems: Problems
) -> None:
    """More examples than a task has would be fewer than the config says."""
    recipe = _mapping(_mapping(_mapping(config.get("recipes")).get(kind)).get(str(name)))
    wanted = recipe.get("examples")
    if wanted is not None and "fraction" in recipe:
        problems.add(("recipes", kind, str(name), "examples"), f"{_show(wanted)} beside fraction", "one of the two")
    tasks = _mapping(config.get("tasks"))
    for task in _chosen(lineage.get("tasks", "all"), tasks):
        available = _mapping(tasks[task]).get("train", DEFAULTS["task"]["train"])
        if _is_int(wanted) and _is_int(available) and wanted > available:
            expected = f"at most {available}, the size of tasks.{task}.train"
            problems.add(("recipes", kind, str(name), "examples"), _show(wanted), expected)


def _check_rewards(
    entry: dict[str, Any],
    lineage: dict[str, Any],
    config: dict[str, Any],
    problems: Problems,
) -> None:
    """A reward that compares sets of terms has nothing to compare where answers are labels."""
    name = str(entry.get("recipe"))
    recipe = _mapping(_mapping(_mapping(config.get("recipes")).get("rl")).get(name))
    tasks = _mapping(config.get("tasks"))
    for task in _chosen(lineage.get("tasks", "all"), tasks):
        if not catalog.of_terms(_mapping(tasks[task])):
            for reward in TERM_REWARDS & _mapping(recipe.get("rewards")).keys():
                found = f"it in a lineage with the task {task}, whose answers are labels"
                problems.add(("recipes", "rl", name, "rewards", reward), found, "correct, or a recipe of its own")


def _chosen(names: object, valid: Mapping[str, Any]) -> list[str]:
    if names == "all":
        return list(valid)
    return [name for name in _list(names) if isinstance(name, str) and name in valid]


def _check_room(key: Key, lineage: dict[str, Any], config: dict[str, Any], problems: Problems) -> None:
    """A CPT block must fit the positions of the backbone."""
    backbones = _mapping(config.get("backbones"))
    recipes = _mapping(_mapping(config.get("recipes")).get("cpt"))
    for backbone in _chosen(lineage.get("backbones", "all"), backbones):
        room = _mapping(_mapping(backbones[backbone]).get("architecture")).get("max_position_embeddings")
        for name in _chosen(lineage.get("cpt"), recipes):
            size = _mapping(recipes[name]).get("block_size", DEFAULTS["cpt"]["block_size"])
            if _is_int(room) and _is_int(size) and size > room:
                expected = f"at most {room}, the max_position_embeddings of the backbone {backbone}"
                problems.add(("recipes", "cpt", name, "block_size"), _show(size), expected)


def _check_budget(
    key: Key,
    lineage: dict[str, Any],
    budget: dict[str, Any],
    chosen: list[str],
    config: dict[str, Any],
    problems: Problems,
) -> None:
    recipes = _mapping(config.get("recipes"))
    starts = [_mapping(entry).get("recipe") for entry in _list(lineage.get("rl"))]
    for name in ("sft", "rl"):
        if not lineage.get(name):
            problems.add((*key, name), "no such key", f"the {name} recipes that share the budget")
    given = [name for name in ("epochs", "examples") if name in budget]
    if len(given) != 1:
        problems.add((*key, "budget"), " and ".join(given) or "neither epochs nor examples", "one of them")
        return
    total = budget[given[0]]
    for index, pair in enumerate(_list(budget.get("split"))):
        place = (*key, "budget", "split", index)
        if not (isinstance(pair, list) and len(pair) == 2 and all(_is_int(part) for part in pair)):
            continue
        if _is_int(total) and sum(pair) != total:
            problems.add(
                place,
                f"{pair[0]} + {pair[1]} = {sum(pair)}",
                f"[SFT, RL] {given[0]} that add up to {total}",
            )
        for part, kind, names in ((0, "sft", chosen), (1, "rl", starts)):
            known = {str(name): _mapping(_mapping(recipes.get(kind)).get(str(name))) for name in names}
            if given[0] == "epochs":
                for name, recipe in known.items():
                    if recipe and pair[part] not in (0, *_rungs(recipe)):
                        rungs = ", ".join(map(str, _rungs(recipe)))
                        expected = f"0 or a rung of {kind} recipe {name} ({rungs})"
                        problems.add((*place, part), _show(pair[part]), expected)
            elif pair[part] and not spending(known, list(known), pair[part], "examples"):
                sums = sorted({rung * recipe["examples"] for recipe in known.values() for rung in _sized(recipe)})
                expected = f"0, or epochs x examples of a {kind} recipe of this lineage ({', '.join(map(str, sums))})"
                problems.add((*place, part), _show(pair[part]), expected)


def unit(budget: Mapping[str, Any]) -> str:
    """What a lineage's budget counts: epochs or examples."""
    return "examples" if "examples" in budget else "epochs"


def spending(recipes: Mapping[str, Any], names: Iterable[str], amount: int, unit: str) -> list[tuple[str, int]]:
    """(recipe, rung) of those of `names` that spend this amount: so many epochs, or epochs x examples."""
    if unit == "epochs":
        return [(name, amount) for name in names]
    sizes = [(name, rung, rung * recipes[name]["examples"]) for name in names for rung in _sized(recipes[name])]
    return [(name, rung) for name, rung, size in sizes if size == amount]


def _sized(recipe: dict[str, Any]) -> list[int]:
    """The rungs of a recipe that says its number of examples; none if it does not."""
    return _rungs(recipe) if _is_int(recipe.get("examples")) else []


# --- Defaults ---


def _parts(task: Mapping[str, Any]) -> list[str]:
    """The parts of DEFAULTS that hold for a task."""
    if "adapter" in task:
        given = ["given"] if ADAPTERS[task["adapter"]].splits else ["split"] if "split" in task else []
        return ["task", "adapter", *given, *(["hub"] if "hub" in task else [])]
    if "split" in task:
        return ["task", "split"]
    return ["task"] if "file" in task else ["task", "builtin"]


def _fill(config: dict[str, Any]) -> dict[str, Any]:
    """The config with every key of Cisterna given (DEFAULTS). Library options stay as they are."""

    def fill(given: Mapping[str, Any], *parts: str) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for part in parts:
            merged.update(copy.deepcopy(DEFAULTS[part]))
        return {**merged, **given}

    recipes = {}
    for kind in STAGES:
        recipes[kind] = {
            name: fill(recipe, "recipe", kind) for name, recipe in config.get("recipes", {}).get(kind, {}).items()
        }
        for recipe in recipes[kind].values():
            if recipe["lora"] is not None:
                recipe["lora"] = fill(recipe["lora"], "lora")
    backbones = config["backbones"]
    encoders = {}
    for name, encoder in config.get("encoders", {}).items():
        if "training" in encoder:
            training = fill(encoder["training"], "encoder training")
            encoders[name] = fill({**encoder, "training": training}, "encoder")
        else:
            encoders[name] = fill(encoder, "encoder pretrained", "encoder")
    tasks = {name: fill(task, *_parts(task)) for name, task in config["tasks"].items()}
    for task in tasks.values():
        if "adapter" in task:
            options = ADAPTERS[task["adapter"]].options
            task["options"] = {name: option.default for name, option in options.items()} | task["options"]
        task["sequences"] = _forms(task)
    resources = config.get("resources", {})
    lineages = [fill(lineage, "lineage") for lineage in config["lineages"]]
    for lineage in lineages:
        for group in ("tasks", "backbones"):
            if lineage[group] == "all":
                lineage[group] = list(config[group])
    return {
        "study": config["study"],
        "seeds": config.get("seeds", DEFAULTS["seeds"]),
        "backbones": {
            name: fill(backbone, "architecture" if "architecture" in backbone else "pretrained")
            for name, backbone in backbones.items()
        },
        "encoders": encoders,
        "corpora": config.get("corpora", {}),
        "tasks": tasks,
        "recipes": recipes,
        "evaluation": fill(config.get("evaluation", {}), "evaluation"),
        "resources": {job: fill(resources.get(job, {}), "resources") for job in JOBS},
        "lineages": lineages,
    }
