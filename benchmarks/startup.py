"""How much time the fork server saves: the same small job with its own imports (cold) and as a fork (warm).

    .venv/bin/python benchmarks/startup.py [--repeats 5]

Needs the results of the default study; the job measures the base model's perplexity on one corpus. A cold job imports
torch, transformers and the rest itself; a warm job is a fork of a server that has imported them
(`cisterna.runtime.fork_server`). Prints the median wall seconds of both and their ratio. From the benchmark files of
the study it prints the seconds that all jobs took, and what they would have taken cold. Not for the speed of training:
see `gpu.py`.
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
    parser.add_argument("--repeats", type=int, default=5, help="runs of each (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="results folder of the default study")
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
        seconds(command, warm_environment)  # waits until the server has imported the libraries
        imports = time.perf_counter() - started
        cold, warm = [], []
        for _ in range(options.repeats):  # alternating, so that a busy moment of the machine affects both
            cold.append(seconds(command, cold_environment))
            warm.append(seconds(command, warm_environment))
        server.terminate()
        server.wait()
    cold_job, warm_job = statistics.median(cold), statistics.median(warm)
    print(
        f"one job, median of {len(cold)}: cold {cold_job:.2f} s, warm {warm_job:.2f} s, ratio {cold_job / warm_job:.1f}"
    )
    jobs = heavy_jobs(options.results / "benchmarks")
    total = sum(jobs)
    print(f"the study in {options.results}: {len(jobs)} jobs that need the libraries, {total:.0f} s in all")
    print(f"imports, warm: {imports:.0f} s once = {imports / (imports + total):.1%} of job time")
    saved = (cold_job - warm_job) * len(jobs)
    print(f"imports, if each job had imported: {saved:.0f} s = {saved / (saved + total):.1%}")


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """Wall seconds of a command."""
    started = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def heavy_jobs(folder: Path) -> list[float]:
    """Wall seconds of every job that needs the heavy libraries, from Snakemake's benchmark files."""
    files = [path for name in ("models", "tokens", "baselines") for path in (folder / name).rglob("*.tsv")]
    return [float(next(csv.DictReader(path.open(), delimiter="\t"))["s"]) for path in files]


if __name__ == "__main__":
    main()
