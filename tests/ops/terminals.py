"""Commands whose output is a terminal, and what a person sees on it."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from pathlib import Path

from clones import environment


class Terminal:
    """A command whose output is a terminal of 24 lines and by default 80 columns."""

    def __init__(self, folder: Path, *command: str, columns: int = 80) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        variables = environment({"TERM": "xterm-256color"})
        streams = {"stdin": slave, "stdout": slave, "stderr": slave}
        # If the tests run in the background, Ctrl-C is ignored, and the command would inherit that.
        earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.process = subprocess.Popen(command, cwd=folder, env=variables, start_new_session=True, **streams)
        signal.signal(signal.SIGINT, earlier)
        os.close(slave)
        self.text = ""

    def read(self, until: str | None = None) -> str:
        """Everything it has written, once that contains the text `until`, or once it has ended."""
        while until is None or until not in self.text:
            try:
                self.text += os.read(self.master, 65_536).decode(errors="replace")
            except OSError:  # on Linux: the other side is closed
                assert until is None, self.text
                os.close(self.master)
                break
        return self.text


def screen(text: str) -> list[str]:
    """The lines that stay on a terminal to which `text` was written, those that have scrolled away included.

    It knows what rich's Live uses: erase a line, go up, start of line.
    """
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r?\n|\r|[^\x1b\r\n]+", text):
        if part.endswith("\n"):
            row += 1
            lines += [""] * (row == len(lines))
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part.startswith("\x1b") and part.endswith("A"):
            row -= int(part[2:-1])
        elif part != "\r" and not part.startswith("\x1b"):
            lines[row] += part
    return [line.rstrip() for line in lines]
