"""The `cisterna` command: people run the commands of `cli.people`, the workflow's rules those of `cli.rules`.

Commands import what they need when they run; `cisterna --help` imports no library.
"""

from cisterna.cli import people, rules  # noqa: F401  (they fill the table of commands)
from cisterna.cli.dispatch import main

__all__ = ["main"]
