"""Write docs/commands.md, the reference of the `cisterna` command, from the options of src/cisterna/cli.

    python scripts/build_commands.py

tests/test_lists.py fails if the page is out of date.
"""

import textwrap
from pathlib import Path
from typing import Any

from cisterna.cli.registry import COMMANDS, CONFIG, Command

PAGE = Path(__file__).resolve().parents[1] / "docs" / "commands.md"
START = """\
# The commands

What `cisterna COMMAND --help` prints; this page is made by `python scripts/build_commands.py`. Exit codes: 0 done, 2 a
mistake that one line of text explains, 143 stopped by SIGTERM with the state saved, anything else a bug.

Snakemake's own options (`--cores`, `--dry-run`, `--configfile`, `--report`, ...) are in
[its documentation](https://snakemake.readthedocs.io/en/stable/executing/cli.html). `--configfile` takes every word up
to the next option, so a target comes before it. `make help` lists the targets of the Makefile.

## Commands for people

`--config` names {config}.

"""
RULES = """
## Commands of the rules

The rules of the workflow call these with all that they need on the command line; by hand, `cisterna train PATH` and
`cisterna evaluate PATH` take it from the study. `cisterna COMMAND --help` has their options.

"""


def page() -> str:
    """docs/commands.md."""
    start = START.format(config=CONFIG[1]["help"])
    people = "".join(_section(command) for command in COMMANDS.values() if not command.by_rule)
    rules = ", ".join(f"`{command.name}`" for command in COMMANDS.values() if command.by_rule)
    return start + people + RULES + textwrap.fill(rules, 120, break_on_hyphens=False) + "\n"


def _section(command: Command) -> str:
    options = [option for option in command.options if option != CONFIG]
    name = f"{command.name} [--config FILE ...]" if CONFIG in command.options else command.name
    return f"- **`{name}`**: {command.help}\n" + "".join(f"  {_item(*option)}" for option in options)


def _item(flag: str, settings: dict[str, Any]) -> str:
    """An option as an item of a list; `settings` are those of argparse's `add_argument`."""
    option = flag if settings.get("action") == "store_true" else settings.get("metavar") or flag.lstrip("-").upper()
    if flag.startswith("--") and option != flag:
        option = f"{flag} {option}"
    option = {"+": f"{option} ...", "?": f"[{option}]"}.get(settings.get("nargs", ""), option)
    effects = ["required"] if settings.get("required") else []
    effects += [f"one of {', '.join(settings['choices'])}"] if "choices" in settings else []
    effects += [settings["help"].replace("%(default)s", str(settings.get("default")))] if "help" in settings else []
    return f"- `{option}`: {'; '.join(effects)}\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE}")
