"""The `cisterna` command: reads the arguments, runs one command of `cli.commands`, returns the exit code.

Exit codes: 0 done, 2 a mistake of the user's (one short message, no traceback), 143 stopped by SIGTERM with the state
saved, anything else a bug.
"""

import argparse
import atexit
import io
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from cisterna import __version__
from cisterna.artifacts.shutdown import EXIT_CODE, Stopped
from cisterna.cli import commands, registry  # noqa: F401  (commands puts them into the registry)
from cisterna.errors import UserError, explain, printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Without `arguments` it is the process's own and ends the process."""
    if arguments is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # a name may have letters that the terminal does not know
        _leave(_run(sys.argv[1:]))
    return _run(list(arguments))


@registry.command(registry.path("socket"), by_rule=True)
def fork_server(socket: Path) -> None:
    """Import the heavy libraries once for all jobs of a local run (the Snakefile starts this)."""
    from cisterna.runtime import fork_server

    fork_server.serve(socket, main)


def _run(words: list[str]) -> int:
    options = vars(_parser().parse_args(words))
    command = registry.COMMANDS[options.pop("command")]
    if command.heavy:
        from cisterna.runtime import fork_server

        code = fork_server.run(words)
        if code is not None:
            return code
    else:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # no traceback from `cisterna plan | head`
    try:
        command.run(**options)
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"stopped: {stopped}", file=sys.stderr)
        return EXIT_CODE
    except Exception as error:
        message = explain(error, command.name, options.get("output") or Path.cwd())
        if message is None:
            raise
        with suppress(OSError):  # the log may be on the disk that is full
            print(f"error: {printable(message)}", file=sys.stderr, flush=True)
        return 2
    return 0


def _leave(code: int) -> NoReturn:
    """End the process without the destructors of native libraries.

    Arrow's thread pool sometimes aborts or hangs there, after all work is done
    (https://github.com/apache/arrow/issues/34314, https://github.com/apache/arrow/issues/50482).
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def _parser() -> argparse.ArgumentParser:
    listing = ["commands:", *_summaries(False), "", "commands that the rules of the workflow run:", *_summaries(True)]
    parser = argparse.ArgumentParser(
        prog="cisterna",
        usage="cisterna COMMAND ...\n       cisterna COMMAND --help",
        epilog="\n".join(listing),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cisterna {__version__}")
    parsers = parser.add_subparsers(
        dest="command", required=True, prog="cisterna", metavar="COMMAND", help=argparse.SUPPRESS
    )
    for command in registry.COMMANDS.values():
        by_hand = " By hand, `cisterna train PATH` takes all options from the study." if command.by_rule else ""
        added = parsers.add_parser(command.name, description=command.help + by_hand)
        for flag, settings in command.options:
            added.add_argument(flag, **settings)
    return parser


def _summaries(by_rule: bool) -> list[str]:
    chosen = (command for command in registry.COMMANDS.values() if command.by_rule == by_rule)
    return [f"  {command.name:<13}{command.help.rstrip('.')}" for command in chosen]
