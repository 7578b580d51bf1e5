"""What Snakemake's own process costs while jobs run, by the timespan over which it counts them.

    python benchmarks/scheduler.py [--jobs 700] [--seconds 60]

Jobs of one second, two at a time, all ready from the beginning, each with five inputs, for so many seconds; the CPU
seconds of the process that schedules, from the end of its first job on. One run for Snakemake's default (100/1s), one
for profiles/default, in turn, twice; the ratio is of the sums. Prints a table for RESULTS.md.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).parent.parent
SNAKEFILE = """
rule all:
    input: [f"out/{number}" for number in range(JOBS)]

rule one:
    input: [f"in/{number}" for number in range(5)]
    output: "out/{number}"
    shell: "sleep 1; touch {output}"
"""


def spent(timespan: str, jobs: int, seconds: float) -> float:
    """CPU seconds of Snakemake's process in `seconds` after its first job ended."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "Snakefile").write_text(f"JOBS = {jobs}\n{SNAKEFILE}")
        (folder / "in").mkdir()
        for number in range(5):
            (folder / "in" / str(number)).touch()
        command = [sys.executable, "-m", "snakemake", "--cores", "2", "--max-jobs-per-timespan", timespan]
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            watched = psutil.Process(process.pid)
            while not list(folder.glob("out/*")):
                time.sleep(0.05)
            before = sum(watched.cpu_times()[:2])
            time.sleep(seconds)
            found = sum(watched.cpu_times()[:2]) - before
            process.kill()
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=700)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    ours = yaml.safe_load((ROOT / "profiles" / "default" / "config.yaml").read_text())["max-jobs-per-timespan"]
    found: dict[str, list[float]] = {"100/1s": [], ours: []}
    for _ in range(2):
        for timespan, values in found.items():
            values.append(spent(timespan, options.jobs, options.seconds))
    print(f"| max-jobs-per-timespan | CPU s in {options.seconds:.0f} s, {options.jobs} ready jobs | share of a core |")
    print("| --- | --- | --- |")
    for timespan, values in found.items():
        share = sum(values) / (len(values) * options.seconds)
        print(f"| {timespan} | {', '.join(f'{value:.1f}' for value in values)} | {share:.1%} |")
    print(f"\nRatio: {sum(found['100/1s']) / sum(found[ours]):.1f}")


if __name__ == "__main__":
    main()
