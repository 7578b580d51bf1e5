"""How much work a killed stage loses: each stage is killed many times, rerun with the same command, and compared.

    .venv/bin/python benchmarks/faults.py [--kills 20] [--terms 3]

Prints a Markdown table; benchmarks/README.md defines its columns. The exit code is 1 if the result of a killed stage
differs from that of an undisturbed run. Stages, kills and comparison are in tests/kills.py. Not for faults of Slurm,
which are in tests/cluster.
"""

import argparse
import contextlib
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Set before torch is imported: one thread and no GPU, so that results are bit-identical; no network.
os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import kills

PUBLISHING = ("sft", "features", "evaluate")  # CPT, SFT and RL publish with the same code
HEAD = ("fault", "stage", "tried", "recovered", "identical", "resumed", "lost, mean", "lost, most", "run")


@dataclass
class Fault:
    """A row of the table: what happened after each fault of one kind."""

    name: str
    stage: str
    seconds: float  # of the undisturbed run
    recovered: list[bool] = field(default_factory=list)
    identical: list[bool] = field(default_factory=list)
    resumed: list[bool] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)  # seconds

    def finish(self, stage: kills.Stage, folder: Path, expected: dict[str, Any], lost: float | None) -> None:
        """Run the same command again and record the outcome; `lost` is in seconds, None if no work was under way."""
        all_or_nothing = stage.contents(folder) in (None, expected)
        self.recovered.append(stage.run(folder) == 0)
        self.identical.append(all_or_nothing and stage.contents(folder) == expected and not stage.leftovers(folder))
        self.resumed.append(bool(kills.RESUMED.search(kills.log(folder))))
        if lost is not None:
            self.lost.append(lost)

    def __str__(self) -> str:
        tried = len(self.recovered)
        lost = [f"{sum(self.lost) / tried:.2f} s", f"{max(self.lost):.2f} s"] if self.lost else ["-", "-"]
        counts = [str(sum(outcomes)) for outcomes in (self.recovered, self.identical, self.resumed)]
        return row(self.name, self.stage, str(tried), *counts, *lost, f"{self.seconds:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="of each stage, at random moments (default: %(default)s)")
    parser.add_argument("--terms", type=int, default=3, help="SIGTERMs sent to each stage (default: %(default)s)")
    options = parser.parse_args()
    print(row(*HEAD), row(*["---"] * len(HEAD)), sep="\n", flush=True)
    all_good = True
    with tempfile.TemporaryDirectory() as folder:
        for fault in faults(Path(folder), options.kills, options.terms):
            print(fault, flush=True)
            all_good = all_good and all(fault.recovered) and all(fault.identical)
    sys.exit(not all_good)


def faults(root: Path, moments: int, terms: int) -> Iterator[Fault]:
    """Try SIGKILL at random moments, SIGTERM, and SIGKILL before each file-system change of publishing."""
    with contextlib.redirect_stdout(sys.stderr):  # of the training of the model that RL starts from
        stages = kills.prepare(root / "inputs")
    draw = random.Random(0)
    expected: dict[str, dict[str, Any]] = {}
    seconds: dict[str, float] = {}
    for name, stage in stages.items():
        kills.undisturbed(stage, root / f"{name}-first")  # the first run of a stage is slower
        expected[name], seconds[name] = kills.undisturbed(stage, root / f"{name}-undisturbed")
        fault = Fault("kill -9 at a random moment", name, seconds[name])
        for number in range(moments):
            folder = root / f"{name}-kill-{number}"
            lost = kills.killed(stage, folder, draw.random() * seconds[name])
            fault.finish(stage, folder, expected[name], lost)
        yield fault
    for name, stage in stages.items():
        fault = Fault("SIGTERM at work", name, seconds[name])
        for number in range(terms):
            folder = root / f"{name}-term-{number}"
            _, lost = kills.terminated(stage, folder, draw.random() * seconds[name] / 8)
            fault.finish(stage, folder, expected[name], lost)
        yield fault
    for name in PUBLISHING:
        stage, folder = stages[name], root / f"{name}-publishing"
        fault = Fault("kill -9 before each file-system change of publishing", name, seconds[name])
        for _ in kills.crashes(stage, folder):
            fault.finish(stage, folder, expected[name], None)
        yield fault


def row(*cells: str) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
