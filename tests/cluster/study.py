"""A study of two tasks on a real Slurm, through profiles/cluster, with each fault that a cluster may have.

To see what happens: python tests/cluster/study.py (its output is kept in docs/cluster-run.txt).
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from slurm import Slurm, missing

import clones
from tiny import ROOT
from waiting import wait_until

RL = clones.CONFIG["recipes"]["rl"]["grpo"]
# Stages that run long enough to be interrupted, and save their state about every second.
BRISK = {"save_minutes": 0.02, "lora": None, **clones.TRAINING, "learning_rate": 3.0e-3}
CONFIG = {
    **{key: clones.CONFIG[key] for key in ("study", "seeds", "backbones", "evaluation")},
    "tasks": {
        "hairpin": clones.CONFIG["tasks"]["hairpin"],
        "splice-donor": {"train": 64, "validation": 16, "id": 24, "ood": 24},
    },
    "recipes": {
        "sft": {
            "alone": {"epochs": [40], **BRISK},
            "pair": {
                "epochs": [12],
                **BRISK,
                "processes": 2,
                "nodes": 2,
                "deepspeed": "zero2",
                "per_device_train_batch_size": 2,
            },
        },
        "rl": {"grpo": {**RL, "epochs": [12], "save_minutes": 0.02}},
    },
    "resources": {
        "data": {"runtime": 20},
        "sft": {"mem_mb": 2000, "runtime": 30, "gpu": 2},
        "rl": {"mem_mb": 2000, "runtime": 30, "gpu": 1},
        "evaluate": {"mem_mb": 2000, "runtime": 10},
    },
    "lineages": [
        {"tasks": ["hairpin"], "sft": ["alone"], "rl": [{"recipe": "grpo", "from": [40]}]},
        {"tasks": ["splice-donor"], "sft": ["pair"]},
    ],
}
ALONE = "models/tiny/base/hairpin/s0/sft-alone"
PAIR = "models/tiny/base/splice-donor/s0/sft-pair"
GRPO = f"{ALONE}/e40/rl-grpo"


class Run:
    """The study while Snakemake runs it on Slurm, and a list of what was done to it."""

    def __init__(self, slurm: Slurm, clone: clones.Clone, process: subprocess.Popen[bytes]) -> None:
        self.slurm, self.clone, self.process = slurm, clone, process
        self.began = time.monotonic()
        self.events: list[str] = []

    def say(self, text: str) -> None:
        self.events.append(text)
        print(f"{time.monotonic() - self.began:5.0f} s  {text}", flush=True)

    def middle(self, stage: str, job: str | None = None) -> str:
        """Wait until a stage has saved a state and trains on, in another job than `job`; the number of its job."""

        def now() -> str | None:
            try:
                progress = json.loads((self.clone.results / ".work" / stage / "progress.json").read_text())
            except (OSError, ValueError):
                return None
            saved = list((self.clone.results / ".work" / stage).glob("checkpoint-*"))
            trains = progress["done"] > progress["begun_at"] and progress["done"] < progress["total"] * 0.9
            ours = progress["slurm_job"] if saved and trains and progress["slurm_job"] != job else None
            if ours:
                self.say(f"{stage.rpartition('/')[2]}: job {ours} is at step {progress['done']} of {progress['total']}")
            assert self.process.poll() is None, self.terminal()
            return ours

        return wait_until(now, f"{stage} under way")

    def job(self, number: str) -> dict[str, str]:
        return next(job for job in self.slurm.jobs() if job["JobId"] == number)

    def requeued(self, number: str) -> None:
        """Wait until Slurm has requeued a job, and let it start at once (Slurm waits two minutes)."""
        wait_until(lambda: self.job(number)["JobState"] == "PENDING", f"job {number} requeued", pause=0.1)
        self.slurm.run("scontrol", "update", f"JobId={number}", "StartTime=now")

    def terminal(self) -> str:
        """What Snakemake has written to its terminal."""
        return (self.clone.folder / "terminal.txt").read_text()

    def log(self) -> str:
        """Snakemake's own log."""
        return max((self.clone.folder / ".snakemake" / "log").iterdir(), key=lambda path: path.name).read_text()


def profile(clone: clones.Clone) -> Path:
    """A copy of profiles/cluster for this Slurm: it has no accounting database, and shows new files at once."""
    text = (ROOT / "profiles" / "cluster" / "config.yaml").read_text()
    for line, ours in (
        ("latency-wait: 60", "latency-wait: 5"),
        ("jobs: 100", "slurm-status-command: squeue\njobs: 100"),
    ):
        assert text.count(line) == 1, line
        text = text.replace(line, ours)
    folder = clone.folder / "profile"
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(text)
    return folder


@contextmanager
def started(slurm: Slurm, clone: clones.Clone, *options: str) -> Iterator[Run]:
    """The study, started on Slurm, with Cisterna's view of the run."""
    prompt = str(Path(__file__).with_name("prompt.py"))
    folder = str(profile(clone))
    command = [sys.executable, prompt, "--snakefile", str(ROOT / "Snakefile"), "--profile", folder, "--logger=cisterna"]
    with (clone.folder / "terminal.txt").open("wb") as log:
        process = subprocess.Popen(
            [*command, *options], cwd=clone.folder, env=slurm.environment, stdout=log, stderr=log
        )
    try:
        yield Run(slurm, clone, process)
    finally:
        process.kill()
        process.wait()


def disturb(run: Run) -> None:
    """Cause each fault in the middle of a stage, then wait until the study is complete."""
    slurm, say = run.slurm, run.say
    say("snakemake --profile profiles/cluster")
    with ThreadPoolExecutor() as pool:
        pair = pool.submit(limit, run)

        job = run.middle(ALONE)
        say(f"scancel --signal=KILL {job}")
        slurm.run("scancel", "--signal=KILL", job)

        job = run.middle(ALONE, job)
        say(f"scontrol requeue {job}")
        slurm.run("scontrol", "requeue", job)
        run.requeued(job)

        pair.result()

    job = run.middle(GRPO)
    node = run.job(job)["NodeList"]
    say(f"{node}, which runs job {job}, loses power: kill -9 of its slurmd and of all processes of its jobs")
    slurm.kill_node(node)
    wait_until(lambda: "State=DOWN" in slurm.run("scontrol", "show", "node", node), f"{node} down", pause=0.1)
    run.requeued(job)
    wait_until(lambda: run.job(job)["JobState"] == "RUNNING", f"job {job} on the other node", pause=0.1)
    say(f"Slurm marks {node} as down, and job {job} starts on {run.job(job)['NodeList']}; {node} starts again")
    slurm.start_node(node)

    run.process.wait(400)
    say(f"snakemake ends with exit code {run.process.returncode}")
    for each in slurm.jobs():
        again = f", requeued {each['Restarts']} time" if each["Restarts"] != "0" else ""
        say(f"job {each['JobId']:>2}  {each['JobState'].lower():<9}  {each['Comment']}{again}")


def limit(run: Run) -> None:
    """Let the stage on two nodes come near its time limit; its next job completes it."""
    job = run.middle(PAIR)
    minutes = int(run.job(job)["RunTime"].split(":")[1]) + 2  # whole ones: 60 to 120 s from now
    run.say(f"scontrol update JobId={job} TimeLimit={minutes}; it runs on two nodes")
    # Its ranks are stopped, so that they still run when Slurm checks time limits: twice a minute.
    run.slurm.run("scancel", "--signal=STOP", job)
    run.slurm.run("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
    published = run.clone.results / PAIR / "e12" / "checkpoint" / "manifest.json"
    wait_until(lambda: published.exists() or run.process.poll() is not None, f"{PAIR} published")


def results(clone: clones.Clone) -> dict[str, str]:
    """The SHA-256 of all weights, metrics and histories, by path."""
    names = ("*.safetensors", "metrics.json", "history.json", "metrics.parquet")
    paths = [path for name in names for path in (clone.results).rglob(name) if ".work" not in path.parts]
    return {
        str(path.relative_to(clone.results)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)
    }


def undisturbed(folder: Path) -> clones.Clone:
    """Every stage of the same study, and the last evaluation, on one machine without Slurm."""
    config: dict[str, Any] = json.loads(json.dumps(CONFIG))
    config["recipes"]["sft"]["pair"]["nodes"] = 1
    clone = clones.make(folder, config)
    clone.snakemake(f"results/{GRPO}/e12/eval", f"results/{PAIR}/e12/checkpoint", "--resources", "gpu=2")
    return clone


def main() -> None:
    """Print what happens."""
    if missing():
        sys.exit(f"error: not installed: {', '.join(missing())}; apt-get install slurm-wlm munge")
    with tempfile.TemporaryDirectory() as folder, Slurm(Path(folder) / "slurm") as slurm:
        clone = clones.make(Path(folder) / "clone", CONFIG)
        with started(slurm, clone) as run:
            disturb(run)
        made, expected = results(clone), results(undisturbed(Path(folder) / "undisturbed"))
        same = sum(made.get(path) == value for path, value in expected.items())
        run.say(f"{same} of {len(expected)} weights, histories and metrics equal those of an undisturbed run")


if __name__ == "__main__":
    main()
