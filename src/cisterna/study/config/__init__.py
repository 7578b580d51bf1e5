"""The config: read, checked and filled in. `cisterna.study` expands the result.

Whatever can be known to be wrong without opening a data file is an error here, before any job is queued, with the file,
the line and the key, and all mistakes at once. Needs neither torch nor pandas.

- yaml_lines: reads YAML and keeps the line of every key
- types, and one module a section: the keys with their types, defaults and descriptions. From them
  scripts/build_config.py makes the key tables of config/README.md and workflow/schemas/config.schema.yaml.
- library: options of the libraries, checked against their own dataclasses
- shape: a config against the models of its sections
- rules: what needs more than one key
- problems: what is wrong, collected

Pydantic takes a while to import, so that only functions import the modules with models.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from cisterna.study.config.problems import Key, Problems, show

__all__ = ["check", "evaluation_keys", "evaluation_options", "recipe_defaults", "recipe_keys"]

NULLABLE = ("backbones", "encoders", "corpora", "tasks")  # in recipes null is a value of some options


def check(config: Mapping[str, Any], problems: Problems) -> dict[str, Any]:
    """A copy of a valid config in plain dicts and lists, with its defaults; else UserError with all its problems.

    In an entry of NULLABLE a key with null is as if it were not there, so that a second file can take it away.
    Numbers in scientific notation without a dot (`1e-3`), which YAML 1.1 parsers read as text, count as numbers
    wherever a real number is expected.
    """
    from cisterna.study.config import rules, shape

    before = len(problems.entries)
    written = _without_nulls(_plain(config, (), problems))
    if len(problems.entries) > before:
        problems.stop()  # what is below a name that is not text would be reported twice
    filled = shape.read(written, problems)
    rules.check(written, filled, problems)
    problems.stop()
    return filled


def _without_nulls(config: dict[str, Any]) -> dict[str, Any]:
    for section in NULLABLE:
        entries = config.get(section)
        if isinstance(entries, dict):
            for entry in filter(lambda entry: isinstance(entry, dict), entries.values()):
                for key in [key for key, value in entry.items() if value is None]:
                    del entry[key]
    return config


def _plain(value: object, key: Key, problems: Problems) -> Any:
    """A deep copy in dicts and lists; keys that are not text are problems."""
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                problems.add((*key, str(name)), f"YAML reads this name as {show(name)}; expected a text, in quotes")
        return {str(name): _plain(entry, (*key, str(name)), problems) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry, (*key, index), problems) for index, entry in enumerate(value)]
    return value


@cache
def recipe_keys(kind: str) -> frozenset[str]:
    """Cisterna's own keys of a recipe (cpt, sft, rl) or of an encoder's training (encoder).

    Every other key is an option of the library that trains.
    """
    return frozenset(_recipe(kind).keys())


def recipe_defaults(kind: str) -> dict[str, Any]:
    """The defaults of `recipe_keys`, and those of the library's options that are not the library's own."""
    return _recipe(kind).defaults()


def _recipe(kind: str) -> Any:
    from cisterna.study.config.encoders import EncoderTraining
    from cisterna.study.config.rules import RECIPES

    return EncoderTraining if kind == "encoder" else RECIPES[kind]


def evaluation_options(options: Mapping[str, Any], where: str = "--options") -> dict[str, Any]:
    """The options of an evaluation, by hand or by the workflow, with their defaults; UserError if one is wrong."""
    from cisterna.study.config import evaluation, shape

    return shape.options(evaluation.EvaluationOptions, options, where)


@cache
def evaluation_keys() -> frozenset[str]:
    """The keys of an evaluation that are not options of transformers.GenerationConfig."""
    from cisterna.study.config.evaluation import EvaluationOptions

    return frozenset(EvaluationOptions.keys()) - {"max_new_tokens"}
