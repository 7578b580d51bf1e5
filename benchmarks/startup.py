"""What sharing the import of the heavy libraries saves: the same small job, cold and warm, in one run.

    .venv/bin/python benchmarks/startup.py [--repeats 5]

Needs the default study's results (the job measures the base model's perplexity on one corpus). Cold jobs import torch,
transformers and the rest by themselves; warm jobs are forks of a server that did (`cisterna.runtime.fork_server`).
Printed: the median wall seconds of both and their ratio, and from the study's own benchmark files the seconds that all
its jobs took, with
what they would have taken cold. Not for the speed of training: see `gpu.py`.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    corpus = next((options.results / "tokens" / "nano").iterdir())
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "cisterna", "perplexity", "--tokens", str(corpus)]
        command += ["--checkpoint", str(options.results / "models/nano/base/checkpoint")]
        command += ["--output", f"{folder}/perplexity.json"]
        socket = Path(folder) / "socket"
        started = time.perf_counter()
        server = subprocess.Popen([sys.executable, "-m", "cisterna", "fork-server", str(socket)])
        while not socket.exists():
            time.sleep(0.05)
        warm_environment = os.environ | {"CISTERNA_FORK_SERVER": str(socket), "OMP_NUM_THREADS": "1"}
        cold_environment = {key: value for key, value in warm_environment.items() if key != "CISTERNA_FORK_SERVER"}
        seconds(command, warm_environment)  # waits for the server's own imports
        imports = time.perf_counter() - started
        cold, warm = [], []
        for _ in range(options.repeats):  # alternating, so that a busy moment of the machine meets both
            cold.append(seconds(command, cold_environment))
            warm.append(seconds(command, warm_environment))
        server.terminate()
        server.wait()
    slow, fast = statistics.median(cold), statistics.median(warm)
    print(f"one job, median of {len(cold)}: cold {slow:.2f} s, warm {fast:.2f} s, ratio {slow / fast:.1f}")
    saved = slow - fast
    jobs = heavy_jobs(options.results / "benchmarks")
    print(f"the study in {options.results}: {len(jobs)} jobs that import, {sum(jobs):.0f} s of them in all")
    print(f"imports: {imports:.0f} s once = {imports / (imports + sum(jobs)):.1%} of job time")
    print(f"cold it would be {saved * len(jobs):.0f} s = {saved * len(jobs) / (saved * len(jobs) + sum(jobs)):.1%}")


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """Wall seconds of a command."""
    started = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def heavy_jobs(folder: Path) -> list[float]:
    """Wall seconds of every job that imports the heavy libraries, from Snakemake's benchmark files."""
    files = [path for kind in ("models", "tokens", "baselines") for path in (folder / kind).rglob("*.tsv")]
    return [float(next(csv.DictReader(path.open(), delimiter="\t"))["s"]) for path in files]


if __name__ == "__main__":
    main()
