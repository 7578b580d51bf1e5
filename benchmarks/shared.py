"""What the benchmarks share: their options, the backbones that they time, and the file of results, RESULTS.md.

Not for torch at the top: Linux counts the memory of the process that starts a run as memory of the run.
"""

import argparse
import os
import platform
import re
import sys
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
TEXT = ROOT / "resources" / "corpora" / "text.txt"
# 26 million parameters, where most of the time is in the matrix products, also on a CPU
LARGER = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8}
LARGER |= {"num_key_value_heads": 4, "head_dim": 64}


def parser(description: str) -> argparse.ArgumentParser:
    """A parser of the command line with the option that all benchmarks have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    text = "Markdown file to write the section into; without it only print"
    made.add_argument("--output", type=lambda name: Path(name).absolute(), help=text)
    return made


def backbone(config: Path = ROOT / "config" / "config.yaml", name: str | None = None, **shape: Any) -> tuple[str, Any]:
    """Name and spec of a backbone of a config (by default the first), with other values of its architecture."""
    backbones = yaml.safe_load(config.read_text())["backbones"]
    name = name or next(iter(backbones))
    if name not in backbones:
        sys.exit(f"error: {config} has no backbone {name!r}; it has {', '.join(backbones)}")
    spec = backbones[name]
    if "architecture" in spec:
        tokenizer = spec["tokenizer"] | {"files": [str(ROOT / file) for file in spec["tokenizer"]["files"]]}
        spec |= {"architecture": spec["architecture"] | shape, "tokenizer": tokenizer}
    return name, spec


def section(title: str, about: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *lines: str) -> str:
    """A section of RESULTS.md: its title, what was measured where and when, a table, and lines below it."""
    table = [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)]
    return "\n".join([f"## {title}", "", about, "", *table, "", *lines])


def setting(*packages: str) -> str:
    """Date, device, how busy the machine was, and versions of packages."""
    cores, load = os.cpu_count(), os.getloadavg()[0]
    return f"{time.strftime('%Y-%m-%d')}, {device_name()}, load {load:.1f} on {cores} cores; {versions(*packages)}"


def versions(*packages: str) -> str:
    return ", ".join(f"{name} {version(name)}" for name in packages or ("torch", "transformers", "trl"))


def device_name() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    threads = torch.get_num_threads()
    return f"CPU ({names[0] if names else platform.machine()}, {threads} thread{'s' * (threads > 1)}), no GPU found"


def write_section(path: Path, text: str) -> None:
    """Replace the section of the file that has the title of `text` (its first line), or add `text` at the end."""
    before = path.read_text() if path.is_file() else "# Measured speeds\n"
    title = text.partition("\n")[0]
    kept = re.sub(rf"^{re.escape(title)}\n(?:(?!## ).*\n?)*", "", before, flags=re.MULTILINE).rstrip("\n")
    path.write_text(f"{kept}\n\n{text}")


def publish(text: str, output: Path | None) -> None:
    """Print a section, and write it into the file `output`, if there is one."""
    print(text)
    if output:
        write_section(output, text)
