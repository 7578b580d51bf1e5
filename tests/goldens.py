"""What studies expand to and what their jobs run, as text that a test compares with the files in golden/.

    python tests/goldens.py [RESULTS]    # renew the files (CONTRIBUTING.md says how)

A file is JSON, gzipped: the models of a study, the recipe of each stage as its job gets it, and every job with inputs,
outputs and shell line. A shell line that differs makes Snakemake run finished jobs again, so a change here belongs in
CHANGELOG.md. Two changes of the next version are undone here, so that the files stay as they were: a leading `exec`,
and `--config` in place of `--study`.
"""

import dataclasses
import gzip
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cisterna import study

HERE = Path(__file__).resolve().parent / "golden"
EXACT = re.compile(r"(data|tokens|models/tiny/base/checkpoint)/|.*/inputs\.json$")
ROOT = HERE.parents[1]
CONFIGS = {
    "default": ROOT / "config" / "config.yaml",
    "mini": ROOT / "config" / "mini.yaml",
    "paper": ROOT / "config" / "paper.yaml",
    "gpu": ROOT / "config" / "gpu.yaml",
    "own-data": ROOT / "docs" / "own-data" / "study.yaml",
}


def models(config: Path) -> list[dict[str, Any]]:
    """The models of a study in their order, each with the recipe of its stage as its job gets it."""
    loaded = study.read(config)
    return [
        dataclasses.asdict(model) | {"stage": loaded.stage(model) if model.recipe else None} for model in loaded.models
    ]


def jobs(config: Path, folder: Path) -> list[dict[str, str]]:
    """Every job of a study, sorted by output: rule, input, output, log and shell line, as a dry run prints them.

    Of rule all its inputs, which are what a study is made of. Runs in `folder`, a clone without results, where files
    that the config names and nobody ships are made, empty.
    """
    for name in ("config", "resources", "docs"):
        (folder / name).symlink_to(ROOT / name)
    for path in re.findall(r"\bdata/[\w./-]+", config.read_text()):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    command = ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"]
    command += ["--dry-run", "--forceall", "--printshellcmds", "--configfile", str(config)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PATH": path}, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return parse(done.stdout + done.stderr)


def parse(output: str) -> list[dict[str, str]]:
    """The jobs that a dry run printed."""
    found = []
    for block in re.split(r"\n\n", output):
        match = re.search(r"^(?:local)?rule (\w+):\n((?:    .*\n)*)Shell command: (.*)", block + "\n", re.MULTILINE)
        if match:
            parts = dict(line.strip().split(": ", 1) for line in match[2].splitlines() if ": " in line)
            kept = {key: parts[key].replace(str(ROOT), "ROOT") for key in ("input", "output", "log") if key in parts}
            # Inputs are a set to a job: the order in which Snakemake prints them says nothing.
            kept |= {"input": ", ".join(sorted(kept.get("input", "").split(", ")))}
            shell = match[3].replace(str(ROOT), "ROOT").removeprefix("exec ").replace(" --config '{", " --study '{")
            found.append({"rule": match[1], **kept, "shell": shell})
    return sorted(found, key=lambda job: (job["rule"], job.get("output", "")))


def dump(name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return {"models": models(CONFIGS[name]), "jobs": jobs(CONFIGS[name], Path(folder))}


def hashes(results: Path, root: Path = ROOT) -> dict[str, str]:
    """What a study published, by path below its results: the hash of each file, of a manifest without what differs.

    A manifest differs in what was measured, and in the folder of the repository, which the tiny study's paths name.
    """
    found = {}
    for path in sorted(results.rglob("*")):
        name = path.relative_to(results).as_posix()
        if not path.is_file() or any(part.startswith(".") for part in path.parts[len(results.parts) :]):
            continue
        if path.name == "manifest.json":
            manifest = json.loads(path.read_text().replace(str(root), "."))
            if manifest["parent"]:
                del manifest["parent"]["identity"]  # it depends on where the clone is, and README.md names it
                manifest["files"].pop("README.md", None)
            facts = {key: manifest[key] for key in ("kind", "recipe", "seed", "parent", "data", "trained", "files")}
            found[name] = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        elif path.suffix in (".parquet", ".safetensors", ".npy", ".arrow") or path.name in (
            "metrics.json", "history.json", "card.json", "inputs.json", "perplexity.json", "masked.json",
        ):  # fmt: skip
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def exact(found: dict[str, str]) -> dict[str, str]:
    """The hashes of those files that are the same on every machine: no trained number is in them."""
    return {path: value for path, value in found.items() if EXACT.match(path) and "/features-" not in path}


def machine() -> str:
    """What trained numbers depend on beside the pinned packages: the libraries choose their kernels by it."""
    import torch

    cpu: dict[str, str] = {}
    if (path := Path("/proc/cpuinfo")).exists():
        lines = (line.partition(":") for line in path.read_text().split("\n\n")[0].splitlines())
        cpu = {key.strip(): value.strip() for key, _, value in lines}
    kind = [cpu.get(key, "?") for key in ("vendor_id", "cpu family", "model", "stepping")]
    return " ".join([platform.machine(), torch.backends.cpu.get_cpu_capability(), *kind])


def load(name: str) -> dict[str, Any]:
    return json.loads(gzip.decompress((HERE / f"{name}.json.gz").read_bytes()))


if __name__ == "__main__":
    for name in CONFIGS:
        text = json.dumps(dump(name), indent=0, sort_keys=True)
        (HERE / f"{name}.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    if sys.argv[1:]:  # the results folder of the tiny study of tests/clones.py
        made = {"machine": machine(), "files": hashes(Path(sys.argv[1]))}
        (HERE / "tiny-study.json").write_text(json.dumps(made, indent=1, sort_keys=True) + "\n")
