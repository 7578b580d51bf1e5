"""A tiny study that Snakemake runs for real: a table of the user's own, a task that ships, CPT, SFT, RL, evaluation.

The task that ships is also read as features of an encoder.
"""

import copy
import gzip
import itertools
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import yaml

from forks import Fork
from tiny import ROOT, backbone
from waiting import wait_until

Config = dict[str, Any]
TRAINING = {
    "learning_rate": 1.0e-2,
    "per_device_train_batch_size": 4,
    "lr_scheduler_type": "constant",
    "gradient_checkpointing": False,
}
CONFIG: Config = {
    "study": "tiny",
    "seeds": [0],
    "backbones": {"tiny": backbone()},
    "encoders": {
        "tiny-esm": {
            "architecture": {
                "model_type": "esm",
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "position_embedding_type": "rotary",
            },
            "training": {"corpora": ["rna"], "block_size": 64, "learning_rate": 1.0e-3},
        }
    },
    "corpora": {"rna": {"file": "tables/some rna.fasta", "modality": "rna"}},
    "tasks": {
        "hairpin": {  # a table of the user's own
            "file": "tables/our hairpins.csv",
            "modality": "rna",
            "columns": {"id": "name", "sequence": "seq", "label": "class", "group": "family"},
            "labels": ["low", "high"],
            "question": "Is this cell's RNA stable?",
            "ood": ["viral"],
            "train": 64,
            "validation": 16,
            "id": 24,
        },
        "splice-donor": {
            "train": 64,
            "validation": 16,
            "id": 24,
            "ood": 24,
            "sequences": ["tokens", "features"],
            "encoder": "tiny-esm",
        },
    },
    "recipes": {
        "cpt": {"bio": {"corpora": ["rna"], "block_size": 64, "learning_rate": 1.0e-3}},
        "sft": {
            "brief": {"epochs": [1, 2, 4], "lora": None, **TRAINING, "learning_rate": 5.0e-3},
            "short": {"epochs": [1], "lora": {"r": 8, "lora_alpha": 16}, **TRAINING},
        },
        "rl": {
            "grpo": {
                "epochs": [1],
                "lora": {"r": 4, "lora_alpha": 8},
                "examples": 16,
                "rewards": {"correct": 1.0, "well_formed": 0.5},
                "num_generations": 8,
                "max_completion_length": 12,
                **TRAINING,
                "learning_rate": 1.0e-3,
                "per_device_train_batch_size": 32,
                "logging_steps": 1,
            }
        },
    },
    "evaluation": {"max_new_tokens": 12, "batch_size": 64, "bootstrap": 100},
    "lineages": [
        {"tasks": ["hairpin"], "cpt": ["none", "bio"], "sft": ["brief"], "rl": [{"recipe": "grpo", "from": [2]}]},
        {"tasks": ["splice-donor"], "sft": ["short"]},
    ],
}


class Job(NamedTuple):
    """A job of a dry run: its rule and its first output, without `results/`."""

    rule: str
    output: str


REPORT = [
    Job("figures", "studies/tiny/figures/sft_accuracy.svg"),
    Job("findings", "studies/tiny/findings.json"),
    Job("gather", "studies/tiny/metrics.parquet"),
    Job("quotes", "studies/tiny/quotes.html"),
]


class Clone:
    """A folder where a user works: a config, a table, a corpus, `resources`, and later `results`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results = folder / "results"

    def write(self, config: Config) -> None:
        (self.folder / "config" / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    def run(self, *arguments: str, code: int = 0, **variables: str) -> str:
        """Run a command here; its output, standard error included. Snakemake runs in a fork (`forks`)."""
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            if arguments[0] == "snakemake":
                ended = Fork("snakemake", arguments[1:], log, self.folder, environment(variables)).wait()
            else:
                with log.open("wb") as stream:
                    ended = subprocess.run(
                        arguments, cwd=self.folder, env=environment(variables), stdout=stream, stderr=stream
                    ).returncode
            output = log.read_text()
        assert ended == code, output
        return output

    def snakemake(self, *arguments: str, code: int = 0) -> str:
        return self.run(*snakemake(*arguments), code=code)

    def todo(self, *arguments: str) -> list[Job]:
        """What a dry run would do, sorted, without the target rule."""
        output = self.snakemake("--dry-run", *arguments)
        job = r"^(?:local)?rule (\w+):\n(?:    (?!output).*\n)*    output: (?:\S*/)?results/(\S+?)(?:,| \(|\n)"
        jobs = sorted(Job(*match) for match in re.findall(job, output, re.MULTILINE))
        counts = dict(re.findall(r"^(\w+) +(\d+)$", output, re.MULTILINE))
        assert len(jobs) == int(counts.get("total", 0)) - int(counts.get("all", 0)), output
        return jobs


class Stage:
    """A training stage in a clone that a process started, to be interrupted. `path` is its run, below results/."""

    def __init__(self, clone: Clone, path: str) -> None:
        self.work = clone.results / ".work" / path

    def wait_for_state(self, after: int, started_by: subprocess.Popen[bytes]) -> int:
        """Wait until the stage has saved its state after more than so many steps; its process id."""

        def pid() -> int | None:
            states = self.work.glob("checkpoint-*/complete.json")
            if not any(int(state.parent.name.split("-")[1]) > after for state in states):
                return None
            number = int(json.loads((self.work / "progress.json").read_text())["pid"])
            return number if psutil.pid_exists(number) else None  # else that of an earlier stage

        return wait_until(pid, f"a state after step {after}", started_by)


def snakemake(*arguments: str) -> list[str]:
    return ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2", *arguments]


def environment(variables: dict[str, str] | None = None) -> dict[str, str]:
    """The test's own, with the commands of the Python that runs the tests."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, **(variables or {})}


def make(folder: Path, config: Config = CONFIG) -> Clone:
    """A fresh clone: everything but results."""
    for name in ("config", "tables"):
        (folder / name).mkdir(parents=True)
    (folder / "resources").symlink_to(ROOT / "resources")
    with gzip.open(ROOT / "resources" / "corpora" / "rna.fasta.gz", "rt") as lines:
        (folder / "tables" / "some rna.fasta").write_text("".join(itertools.islice(lines, 200)))
    table(folder / "tables" / "our hairpins.csv")
    clone = Clone(folder)
    clone.write(config)
    return clone


def table(path: Path) -> None:
    """200 RNA sequences, `high` where a stem of G and C begins and ends them; a quarter is of another family."""
    draw = random.Random(0)
    lines = ["name,seq,class,family,note"]
    for number in range(200):
        stable = draw.random() < 0.5
        stem = "".join(draw.choices("GC" if stable else "AU", k=5))
        loop = "".join(draw.choices("ACGU", k=6))
        closing = stem[::-1].translate(str.maketrans("ACGU", "UGCA"))
        family = "viral" if number % 4 == 0 else "bacterial"
        lines.append(f"h{number},{stem}{loop}{closing},{'high' if stable else 'low'},{family},x")
    path.write_text("\n".join(lines) + "\n")


def edited(**changes: Any) -> Config:
    """CONFIG with values changed; a key is a path with `__` between its parts."""
    config = copy.deepcopy(CONFIG)
    for key, value in changes.items():
        *path, last = key.split("__")
        place = config
        for part in path:
            place = place[part]
        place[last] = value
    return config
