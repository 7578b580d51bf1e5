"""What a command is, all commands by name, and the options that several have. What each does is in `commands`."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cisterna.artifacts import files
from cisterna.errors import UserError

if TYPE_CHECKING:
    from cisterna.study import Study

JSON = dict[str, Any]
Config = list[str] | None  # the value of CONFIG
Option = tuple[str, dict[str, Any]]  # of argparse's add_argument


class Command(NamedTuple):
    """A command; `run` takes its options by name.

    `by_rule`: whether only a rule of the workflow runs it. `heavy`: whether it imports torch and such, so that a job of
    the workflow is a fork of the fork server.
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
    """Put the decorated function into COMMANDS, under its name, with its docstring as the help."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        name = function.__name__.replace("_", "-")
        COMMANDS[name] = Command(name, str(function.__doc__), options, function, by_rule, heavy)
        return function

    return add


def option(flag: str, **settings: Any) -> Option:
    """An option, as argparse's `add_argument` takes it, but required if it has neither a default nor an action."""
    if flag.startswith("--") and not {"default", "action"} & settings.keys():
        settings["required"] = True
    return flag, settings


def path(flag: str, **settings: Any) -> Option:
    """An option that is a path."""
    return option(flag, type=Path, **settings)


def mapping(flag: str, **settings: Any) -> Option:
    """An option that is a JSON object."""
    return option(flag, type=_json, metavar="JSON", **settings)


def _json(text: str) -> JSON:
    from cisterna.study import inputs

    try:
        value = inputs.unpack(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("expected a JSON object, {...}")
    return value


def config_files(config: Config) -> list[Path]:
    """The files of CONFIG."""
    return [Path(file) for file in config] if config else [files.default_config("--config")]


def read_study(config: Config) -> "Study":
    """The study of CONFIG. The rules give it as one word with the whole config (cisterna.study.inputs.pack)."""
    from cisterna import study
    from cisterna.study import inputs

    if config and config[0].startswith(("{", inputs.PACKED)):
        try:
            return study.load(inputs.unpack(config[0]))
        except ValueError as error:
            raise UserError(f"--config: not JSON: {error}") from None
    return study.read(*config_files(config))


CONFIG = option(
    "--config",
    nargs="+",
    action="extend",
    metavar="FILE",
    help=f"the study (default: {files.DEFAULT_CONFIG}); each further file changes the keys that it names",
)
RESULTS = path("--results", default=Path("results"), help="(default: %(default)s)")
DATA = path("--data", help="folder made by `data`")
EVALUATION = mapping("--options", help="the config's evaluation block")
WORK = path("--work", help="folder for state that a later run resumes from")
OUTPUT = path("--output", help="what to write")
SEED = option("--seed", type=int, default=0)
STAGE = (
    path("--parent", help="checkpoint to start from"),
    mapping("--recipe", help="the recipe's block of the config"),
    SEED,
    option("--epochs", type=float),
    path("--previous", default=None, help="the rung before, in a ladder"),
    WORK,
    OUTPUT,
)
SEQUENCES = (
    DATA,
    option("--sequences", choices=["tokens", "features", "both"], default="tokens"),
    path("--bank", default=None, help="folder made by `features`"),
    path("--encoder", default=None, help="instead of a bank: the encoder, to run in every step"),
    mapping("--reading", default=None, help="with --encoder: how it is read"),
)
