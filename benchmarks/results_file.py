"""The file of measured speeds, RESULTS.md: a section a benchmark."""

import re
from pathlib import Path


def write_section(path: Path, text: str) -> None:
    """Replace the section of the file that has the title of `text` (its first line), or add `text` at the end."""
    before = path.read_text() if path.is_file() else "# Measured speeds\n"
    title = text.partition("\n")[0]
    kept = re.sub(rf"^{re.escape(title)}\n(?:(?!## ).*\n?)*", "", before, flags=re.MULTILINE).rstrip("\n")
    path.write_text(f"{kept}\n\n{text}")
