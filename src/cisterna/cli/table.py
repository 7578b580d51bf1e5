"""The table of the commands of `cisterna`: each is a function with its options, which `command` puts into the table."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cisterna.artifacts import files
from cisterna.errors import UserError

if TYPE_CHECKING:
    from cisterna.study import Study

Option = tuple[tuple[str, ...], dict[str, Any]]  # of argparse's add_argument


class Command(NamedTuple):
    """A command. `run` takes its options by name; it imports what it needs itself, so that `--help` imports nothing.

    `by_rule`: whether a rule of the workflow runs it. `heavy`: whether it imports torch and such, so that a job of the
    workflow is a fork of the fork server.
    """

    name: str
    help: str
    options: tuple[Option, ...]
    run: Callable[..., None]
    by_rule: bool
    heavy: bool


COMMANDS: dict[str, Command] = {}


def command(
    *options: Option, by_rule: bool = False, heavy: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Put the decorated function into the table, under its name, with its docstring as the help."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        name = function.__name__.replace("_", "-")
        COMMANDS[name] = Command(name, str(function.__doc__), options, function, by_rule, heavy)
        return function

    return add


def option(*flags: str, **settings: Any) -> Option:
    """An option, as argparse's `add_argument` takes it."""
    return flags, settings


def path(*flags: str, **settings: Any) -> Option:
    """An option that is a path."""
    return flags, {"type": Path, **settings}


def mapping(*flags: str, **settings: Any) -> Option:
    """An option that is a JSON object."""
    return flags, {"type": _json, "metavar": "JSON", **settings}


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("expected a JSON object, {...}")
    return value


CONFIG = option(
    "--config",
    nargs="+",
    action="extend",
    metavar="FILE",
    help=f"the study (default: {files.DEFAULT_CONFIG}); each further file changes the keys that it names",
)


def config_files(config: list[str] | None) -> list[Path]:
    """The files of CONFIG."""
    return [Path(file) for file in config] if config else [files.default_config("--config")]


def read_study(config: list[str] | None) -> "Study":
    """The study of CONFIG. The rules give it as one word that holds the whole config (cisterna.study.inputs.pack)."""
    from cisterna import study
    from cisterna.study import inputs

    if config and config[0].startswith(("{", inputs.PACKED)):
        try:
            return study.load(inputs.unpack(config[0]))
        except ValueError as error:
            raise UserError(f"--config: not JSON: {error}") from None
    return study.read(*config_files(config))
