"""The config as one model, and what pydantic finds wrong with a mapping put into the words of a problem."""

import copy
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from cisterna.study.config.backbones import Backbone
from cisterna.study.config.corpora import Corpus
from cisterna.study.config.encoders import Encoder
from cisterna.study.config.evaluation import JOBS, Evaluation, JobName, Report, Resources
from cisterna.study.config.lineages import Lineage
from cisterna.study.config.problems import Key, Problems, one_of
from cisterna.study.config.recipes import Recipes
from cisterna.study.config.tasks import AnyTask
from cisterna.study.config.types import (
    UNIQUE,
    Expected,
    ListRule,
    Name,
    Natural,
    Section,
    Some,
    default,
    plain,
    required,
)

SeedList = Annotated[list[Natural], Some, UNIQUE]


class Config(Section):
    """A study."""

    study: Name = required(
        "folder of the study's table and figures, `results/studies/NAME`. Models do not belong to a study: two studies "
        "that share a stage share its checkpoint."
    )
    seeds: SeedList = default([0], "every SFT and RL stage is trained once with each.")
    backbones: dict[Name, Backbone] = required("the causal language models, by name.")
    encoders: dict[Name, Encoder] = default({}, "the encoders, by name.")
    corpora: dict[Name, Corpus] = default({}, "sequences or text for continued pre-training and for encoders, by name.")
    tasks: dict[Name, AnyTask] = required("the tasks, by name.")
    recipes: Recipes = default(Recipes, "how to train, by stage and name.", "no recipe")
    evaluation: Evaluation = default(Evaluation, "how every checkpoint is tested on `id` and `ood`.", "as below")
    report: Report = default(Report, "what the report has beside the study's own numbers.", "nothing")
    resources: dict[JobName, Resources] = default({}, "by kind of job.", "every job as below")
    lineages: list[Lineage] = required("what to train.")

    def filled(self) -> dict[str, Any]:
        """See `Section.filled`."""
        keys = super().filled()
        keys["resources"] = {job: plain(self.resources.get(job) or Resources()) for job in JOBS}
        for lineage in keys["lineages"]:
            for section in ("tasks", "backbones"):
                if lineage[section] == "all":
                    lineage[section] = list(keys[section])
        return keys


# Pydantic's types of errors that are not this package's own (`Expected`, `rule`): what was expected.
EXPECTED = {
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "list_type": "a list",
    "string_type": "a text",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
}


def read(config: dict[str, Any], problems: Problems) -> dict[str, Any]:
    """The config with its defaults, as far as its shape is right; what is wrong with the rest goes into `problems`.

    Without keys that are not supported, and without entries (a task, a recipe, ...) that are wrong otherwise. A wrong
    lineage is replaced by an empty one, so that the others keep their numbers.
    """
    if errors := _errors(Config, config):
        config = copy.deepcopy(config)
        for error in errors:
            _explain(Config, config, error, problems)
        for error in errors:
            if error["type"] == "extra_forbidden":
                _remove(config, _key(error))
        for error in _errors(Config, config):
            _remove(config, _entry(_key(error)))
    placeholders = {"study": "study", "backbones": {}, "tasks": {}, "lineages": []}
    return Config.model_validate(placeholders | config).filled()


def options(model: type[Section], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options of one section with their defaults. UserError with everything that is wrong with them."""
    problems = Problems(where)
    for error in _errors(model, given):
        _explain(model, given, error, problems)
    problems.stop()
    return model.model_validate(given).filled()


def _errors(model: type[Section], given: object) -> list[ErrorDetails]:
    try:
        model.model_validate(given)
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def _explain(root: type[Section], given: Mapping[str, Any], error: ErrorDetails, problems: Problems) -> None:
    """Add the problem that an error of pydantic means."""
    key, kind, value = _key(error), error["type"], error["input"]
    if kind == "extra_forbidden":
        model = _model(root, error["loc"][:-1])
        problems.unknown(key, one_of(model.keys()), model.keys(), f" of {_title(model)}")
    elif kind == "missing":
        model = _model(root, error["loc"][:-1])
        field = model.keys()[str(key[-1])]
        problems.missing(key, _article(words(field.annotation, field.metadata)), f" in {_title(model)}")
    else:
        expected = error["msg"].removeprefix("Input should be ")
        if kind == "expected":
            near = expected.split("`")[1::2]
            quote = expected in ("text", "path", "name") and isinstance(value, bool | int | float)
            expected = _article(expected) + (" (put it in quotes)" if quote else "")
        else:
            near = []
            expected = EXPECTED.get(kind, expected).format(**error.get("ctx", {}))
        problems.expected(_written(given, key), value, expected, near)


def _key(error: ErrorDetails) -> Key:
    """The key of an error: its location without the tags of models and the mark of a mapping's key."""
    return tuple(part for part in error["loc"] if isinstance(part, int) or part[:1] not in ("<", "["))


def _written(given: Any, key: Key) -> Key:
    """The part of a key that the config has: an entry may be written without its list (`OneOrMore`)."""
    for depth, part in enumerate(key):
        if not isinstance(given, dict | list):
            return key[:depth]
        given = _at(given, part)
    return key


def _at(given: Any, part: int | str) -> Any:
    return given[int(part)] if isinstance(given, list) else given.get(part)


def _entry(key: Key) -> Key:
    """The entry that a key belongs to: backbones.NAME, recipes.sft.NAME, lineages[0], seeds, ..."""
    depth = {"recipes": 3, "seeds": 1, "evaluation": 1}.get(str(key[0]), 2)
    return key[:depth]


def _remove(config: Any, key: Key) -> None:
    for part in key[:-1]:
        config = _at(config, part)
    if isinstance(config, list):
        config[int(key[-1])] = {}
    elif isinstance(config, dict):
        config.pop(key[-1], None)


def _model(root: type[Section], location: tuple[int | str, ...]) -> type[Section]:
    """The model at a location, which has a tag (`types.OneModel`) where an entry may be one of several."""
    models = [(0, root)]
    for part in location:
        if isinstance(part, str) and part.startswith("<"):
            models = [(depth, model) for depth, model in models if f"<{model.__name__}>" == part]
        elif models[0][0]:  # an entry of a list or a mapping
            models = [(depth - 1, model) for depth, model in models]
        else:
            models = list(_models(models[0][1].keys()[str(part)].annotation))
    return models[0][1]


def _models(annotation: Any, depth: int = 0) -> Iterator[tuple[int, type[Section]]]:
    """The models in a type, each with the number of lists and mappings that it is in."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield depth, annotation
    else:
        depth += get_origin(annotation) in (dict, list)
        for argument in get_args(annotation):
            yield from _models(argument, depth)


# --- Types in words ---


def words(annotation: Any, metadata: list[Any] | None = None) -> str:
    """A type in words: integer >= 1, list of names, text or null, mapping."""
    for note in reversed(metadata or []):
        if isinstance(note, Expected):
            return note.describe(annotation)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return words(arguments[0], list(arguments[1:]))
    if origin is list:
        first, _, rest = words(arguments[0]).partition(" ")
        inner = f"{first}s {rest}".strip() if first.isalpha() and rest[:1] != "(" else f"{first} {rest}".strip()
        return "".join(note.prefix for note in metadata or [] if isinstance(note, ListRule)) + f"list of {inner}"
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, Section)):
        return "mapping"
    if annotation is type(None):
        return "null"
    return " or ".join(words(argument) for argument in arguments) if arguments else str(annotation)


def _article(text: str) -> str:
    """Words of a type with an article, where they begin with a noun."""
    if not text.split()[0].isalpha() or text.startswith(("true", "one ")):
        return text
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def _title(model: type[Section]) -> str:
    """The first line of a model's docstring, as part of a sentence."""
    text = (model.__doc__ or "").partition("\n")[0].rstrip(".")
    return text[:1].lower() + text[1:]
