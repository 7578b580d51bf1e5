"""Trouble of the machine and of the data: each ends in a message that says what to do, and the same command resumes.

The disks are real: small ones in memory, mounted where only the processes of the test see them. Where the system
refuses that, the tests that need it are skipped; limits on the size of files work everywhere.
"""

import contextlib
import errno
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import psutil
import pytest
import torch

import cisterna
from cisterna.artifacts import checkpoint, files
from cisterna.data import splits
from cisterna.errors import UserError, explain
from cisterna.evaluation import evaluate
from cisterna.training import guards
from clones import CONFIG, TRAINING, Clone, Config, environment, make, snakemake
from runs import CPT, RL, SFT, Run, published
from tiny import READING, ROOT, SIZES, TEXTS, backbone
from waiting import PATIENCE, wait_until

# Full fine-tuning, so that a state is of several files of some size; one is saved after every step.
FULL = {key: value for key, value in SFT.items() if key != "lora"} | {"save_minutes": 0}
EVALUATION = {"max_new_tokens": 8, "batch_size": 16, "bootstrap": 20}


class Room:
    """A shell and a fork server in a mount namespace of their own, in which `disk` is a small disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = Path(tempfile.mkdtemp(prefix="room-")) / "socket"  # its path has to be shorter than pytest's
        self.disk = folder / "disk"
        self.disk.mkdir()
        namespace = ["unshare", "--user", "--map-root-user", "--mount"]
        mount = [*namespace, "mount", "-t", "tmpfs", "none", str(self.disk)]
        tried = subprocess.run(mount, check=False, capture_output=True, text=True)
        self.refused = f"{tried.stderr.strip()} ({tried.returncode})" if tried.returncode else ""
        self.shell = subprocess.Popen(
            [*([] if self.refused else namespace), "sh"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=environment({"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(cisterna.__file__).parents[1])}),
        )
        if not self.refused:
            self.do(f"mount -t tmpfs none '{self.disk}'")
        self.do(f"'{sys.executable}' -m cisterna fork-server '{self.socket}' >'{folder / 'fork_server.log'}' 2>&1 &")
        wait_until(self.socket.exists, "the socket of the fork server")
        (self.server,) = psutil.Process(self.shell.pid).children()

    def do(self, command: str, code: int = 0) -> str:
        """Run a command of the shell; what it prints."""
        assert self.shell.stdin and self.shell.stdout  # noqa: PT018
        self.shell.stdin.write(f"{command}\nprintf '\\nstatus %s\\n' $?\n")
        self.shell.stdin.flush()
        output = ""
        while not (status := re.search(r"\nstatus (\d+)\n$", output)):
            line = self.shell.stdout.readline()
            assert line, f"the shell ended: {output}"
            output += line
        assert int(status[1]) == code, output
        return output[: status.start()]

    def close(self) -> None:
        self.server.kill()
        self.shell.communicate()
        shutil.rmtree(self.socket.parent)

    def inside(self, path: Path) -> Path:
        """A path on the disk, as seen from here."""
        return path if self.refused else Path(f"/proc/{self.shell.pid}/root{path}")

    def command(self, arguments: Sequence[object]) -> str:
        """The shell's words for a command of Cisterna that the fork server runs."""
        python = ["env", f"CISTERNA_FORK_SERVER={self.socket}", sys.executable, "-m", "cisterna"]
        return shlex.join([*python, *map(str, arguments)])

    def fails(self, arguments: Sequence[object], why: str) -> str:
        """The message of a command that fails by trouble of the machine: one line, and no traceback."""
        output = self.do(self.command(arguments), code=2)
        assert "Traceback" not in output
        message = output.rstrip("\n").splitlines()[-1]
        assert re.match(rf"error: .*({why}).* the same command", message), output
        return message

    @contextlib.contextmanager
    def limit(self, name: int, most: int) -> Iterator[None]:
        """A limit of the system (resource.RLIMIT_...) on the commands that run in the block."""
        earlier = resource.prlimit(self.server.pid, name)
        resource.prlimit(self.server.pid, name, (most, earlier[1]))
        try:
            yield
        finally:
            resource.prlimit(self.server.pid, name, earlier)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    made = Room(tmp_path_factory.mktemp("room"))
    yield made
    made.close()


@pytest.fixture
def remount(room: Room) -> Iterator[Callable[[str], str]]:
    """Make the room's disk small or read-only, by options of `mount`."""
    if room.refused:
        pytest.skip(f"a disk cannot be mounted here: {room.refused}")

    def remount(options: str) -> str:
        return room.do(f"mount -o remount,{options} '{room.disk}'")

    yield remount
    remount("rw,size=100m")
    room.do(f"find '{room.disk}' -mindepth 1 -delete")


@pytest.fixture(scope="module")
def undisturbed(base: Path, splice: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run("sft", base, splice, tmp_path_factory.mktemp("undisturbed") / "sft", FULL, 2).here()


# --- Disk full, and other refusals of the system ---


def test_training_on_a_full_disk_goes_on_to_the_same_weights_when_there_is_space(
    room: Room, remount: Callable[[str], str], base: Path, splice: Path, undisturbed: Run
) -> None:
    """The disk is full at the first write, within each kind of file, and at last when the checkpoint is published."""
    run = Run("sft", base, splice, room.disk / "sft", FULL, 2)
    output, work = room.inside(run.output), room.inside(run.work)
    messages, resumed = set(), 0
    for size in (4, 200, 400, 1000, 1300):
        remount(f"size={size}k")
        message = room.fails(run.arguments, "the disk is full")
        assert str(room.disk) in message
        messages.add(re.sub(r".*(the disk is full[^;]*).*", r"\1", message))
        assert not output.exists()
        assert not published(output.parent)
        resumed += any(work.glob("checkpoint-*/complete.json"))
    remount("size=100m")
    assert "resuming from step" in room.do(room.command(run.arguments))
    assert messages == {"the disk is full", "the disk is full, or a quota or limit is reached"}
    assert resumed > 1
    assert checkpoint.read_manifest(output)["files"] == undisturbed.manifest["files"]


@pytest.mark.parametrize("stage", ["features", "evaluate", "data", "base", "tokenize"])
def test_stage_on_a_full_or_read_only_disk_publishes_nothing_until_it_can(
    room: Room, remount: Callable[[str], str], base: Path, splice: Path, esm: Path, stage: str
) -> None:
    options: dict[str, tuple[object, ...]] = {
        "features": ("--encoder", esm, "--data", splice, "--reading", json.dumps(READING), "--work", room.disk / "w"),
        "evaluate": (
            *("--checkpoint", base, "--data", splice, "--options", json.dumps(EVALUATION)),
            *("--work", room.disk / "w"),
        ),
        "data": ("--task", "splice-donor", "--spec", json.dumps(SIZES)),
        "base": ("--spec", json.dumps(backbone())),
        "tokenize": ("--corpus", TEXTS[1], "--modality", "text", "--base", base),
    }
    command = [stage, *options[stage], "--output", room.disk / stage]
    output = room.inside(room.disk / stage)
    remount("size=4k")
    assert str(room.disk) in room.fails(command, "the disk is full")
    remount("ro,size=100m")
    assert str(room.disk) in room.fails(command, "the file system is read-only")
    assert not output.exists()
    remount("rw,size=100m")
    room.do(room.command(command))
    assert any(output.iterdir())
    assert not list(output.parent.glob(f".{output.name}.*"))


def test_training_under_a_limit_on_file_sizes_goes_on_to_the_same_weights(
    room: Room, base: Path, splice: Path, undisturbed: Run, tmp_path: Path
) -> None:
    """The full disk of a machine where no disk can be mounted: writing ends in the middle of a file."""
    run = Run("sft", base, splice, tmp_path, FULL, 2)
    weights = undisturbed.weights.stat().st_size
    with room.limit(resource.RLIMIT_FSIZE, weights // 2):
        assert "a file would be larger than is allowed here" in room.fails(run.arguments, "limit")
    with room.limit(resource.RLIMIT_FSIZE, weights * 3 // 2):  # Adam's state is twice the weights
        assert "a file could not be written to its end" in room.fails(run.arguments, "limit")
    assert list(run.work.glob("checkpoint-*"))
    assert not list(run.work.glob("checkpoint-*/complete.json"))
    assert not published(run.output.parent)
    assert "resuming" not in room.do(room.command(run.arguments))
    assert run.manifest["files"] == undisturbed.manifest["files"]


def test_log_on_a_full_disk_ends_the_stage_and_no_other(room: Room, base: Path, splice: Path, tmp_path: Path) -> None:
    run = Run("sft", base, splice, tmp_path, FULL, 0.25)
    output = room.do(f"{room.command(run.arguments)} >/dev/full", code=2)
    assert re.search("error: .*the disk is full", output)
    assert "Traceback" not in output
    room.do(f"{room.command(run.arguments)} >/dev/full 2>&1", code=2)
    assert room.socket.exists()
    assert not published(tmp_path)
    room.do(room.command(run.arguments))
    assert run.manifest["kind"] == "sft"


def test_output_that_cannot_be_printed_is_an_error() -> None:
    ended = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m cisterna plan >/dev/full"],
        check=False,
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert re.fullmatch(r"error: .*: the disk is full.*\n", ended.stderr)


def test_folder_without_permission_is_named(tmp_path: Path) -> None:
    """Root may write anywhere unless it gives that right up."""
    unable = ["setpriv", "--bounding-set", "-dac_override"] if os.getuid() == 0 else []
    folder = tmp_path / "of others"
    folder.mkdir(mode=0o555)
    command = ["-m", "cisterna", "data", "--task", "splice-donor", "--spec", json.dumps(SIZES), "--output"]
    ended = subprocess.run(
        [*unable, sys.executable, *command, str(folder / "data")],
        check=False,
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2, ended.stderr
    assert re.fullmatch(rf"error: {re.escape(str(folder))}/.*: no permission.*\n", ended.stderr)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "out: your quota"),
        (OSError(errno.EIO, "Input/output error", "a"), "a: the disk or the file server failed"),
        (OSError(errno.ENOSPC, "No space left on device", "source", None, "target"), "target: the disk is full"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out: out of memory"),
        (MemoryError(), "out: out of memory (MemoryError)"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"), "(CUDA out of memory. Tried to"),
    ],
)
def test_trouble_that_cannot_be_made_here_is_recognised_by_its_error(error: Exception, words: str) -> None:
    message = explain(error, "sft", "out")
    assert message
    assert words in message
    assert "the same command" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "a"),
        PermissionError(errno.EPERM, "Operation not permitted"),  # without a file: a signal to another user's process
        OSError("something else"),
        RuntimeError("shapes do not fit"),
        ValueError("out of memory is only named"),
    ],
)
def test_bug_is_no_trouble_of_the_machine(error: Exception) -> None:
    assert explain(error, "sft", "out") is None


# --- Out of memory, and killed ---


def test_training_without_memory_names_the_keys_that_need_less(
    room: Room, base: Path, dna: Path, tmp_path: Path
) -> None:
    recipe = CPT | {"block_size": 256, "per_device_train_batch_size": 128}
    run = Run("cpt", base, dna, tmp_path, recipe, 0.01)
    with room.limit(resource.RLIMIT_AS, room.server.memory_info().vms + 200 * 2**20):
        message = room.fails(run.arguments, r"out of memory \(.*can't allocate memory")
    assert "mem_mb" in message
    assert "per_device_train_batch_size" in message
    room.do(room.command(run.arguments))
    assert run.manifest["kind"] == "cpt"


def test_killed_stage_says_so_in_its_log_and_goes_on(room: Room, base: Path, splice: Path, tmp_path: Path) -> None:
    """What the system does when memory runs out."""
    run = Run("sft", base, splice, tmp_path, FULL, 4)
    log = tmp_path / "log"
    with log.open("w") as stream:
        job = subprocess.Popen(shlex.split(room.command(run.arguments)), stdout=stream, stderr=stream)
    wait_until(lambda: list(run.work.glob("checkpoint-*/complete.json")), "a saved state", job)
    (fork,) = room.server.children()
    fork.kill()
    assert job.wait(PATIENCE) == 137
    assert re.match("error: cisterna sft was killed.* memory .*the same command", log.read_text().splitlines()[-1])
    assert not published(run.output.parent)
    assert "resuming from step" in room.do(room.command(run.arguments))


# --- Losses and rewards ---


def losses(*values: float, every: int = 10) -> list[dict[str, float]]:
    return [{"loss": value, "step": (index + 1) * every} for index, value in enumerate(values)]


def test_loss_that_stays_far_above_its_beginning_has_exploded() -> None:
    with pytest.raises(UserError, match=r"exploded: 2 at step 10, 7 at step 30, 8 at step 40, 9 at step 50"):
        guards.check("sft", losses(2, 1.5, 7, 8, 9))


@pytest.mark.parametrize(
    "values",
    [
        [2, 1, 100, 90, 1.5],  # a spike, from which it recovers
        [2, 1, 7, 8, 5.9, 9],  # never above for three logs in a row
        [0.02, 0.3, 0.4, 0.5],  # a loss that begins near zero has room to rise
        [2, 7, 8],  # too early to tell
    ],
)
def test_loss_that_may_come_back_is_left_alone(values: list[float]) -> None:
    for end in range(1, len(values) + 1):
        guards.check("sft", losses(*values)[:end])


def test_run_that_ends_far_above_its_beginning_is_not_published() -> None:
    with pytest.raises(UserError, match=r"exploded: 2 at step 10, 7 at step 30"):
        guards.check("sft", losses(2, 1, 7), ended=True)
    guards.check("sft", losses(2, 100, 1), ended=True)
    guards.check("sft", losses(2), ended=True)


@pytest.mark.parametrize("kind", ["cpt", "sft", "rl", "encoder"])
@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_ends_a_stage_of_any_kind(kind: str, loss: float) -> None:
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at step 20"):
        guards.check(kind, losses(1, loss))


def test_loss_of_reinforcement_learning_has_no_scale_to_explode_on() -> None:
    guards.check("rl", [entry | {"frac_reward_zero_std": 0.0, "reward": 0.0} for entry in losses(1e-8, 5, 6, 7)])


def rewards(*rates: float, every: int = 10) -> list[dict[str, float]]:
    return [
        {"frac_reward_zero_std": rate, "reward": 0.25, "loss": 0.0, "step": (index + 1) * every}
        for index, rate in enumerate(rates)
    ]


def test_rewards_that_never_vary_end_the_run_early_with_the_numbers() -> None:
    guards.check("rl", rewards(1, 1, 1, 1))
    with pytest.raises(UserError, match=r"no group .* variance \(mean reward 0.25 at step 10, 0.25 at step 50\)"):
        guards.check("rl", rewards(1, 1, 1, 1, 1))
    with pytest.raises(UserError, match=r"0.25 at step 20\)"):
        guards.check("rl", rewards(1, 1), ended=True)
    with pytest.raises(UserError, match="not logged"):
        guards.check("rl", losses(1.0), ended=True)


def test_rewards_that_varied_once_let_the_run_go_on() -> None:
    guards.check("rl", rewards(1, 0.9875, 1, 1, 1, 1, 1), ended=True)
    guards.check("rl", rewards(0), ended=True)


def test_exploding_run_ends_at_the_same_step_with_the_same_words_when_rerun(
    base: Path, splice: Path, tmp_path: Path
) -> None:
    """The second time it resumes from a state that was saved on the way."""
    run = Run("sft", base, splice, tmp_path, FULL | {"learning_rate": 5.0, "logging_steps": 1}, 2)
    messages = set()
    for _ in range(2):
        with pytest.raises(UserError, match="the loss has exploded") as caught:
            run.here()
        messages.add(str(caught.value))
    assert len(messages) == 1
    assert list(run.work.glob("checkpoint-*/complete.json"))
    assert not published(tmp_path)


# --- Data ---


def test_table_changed_by_hand_is_no_longer_the_one_of_its_card(
    base: Path, splice: Path, undisturbed: Run, tmp_path: Path
) -> None:
    shutil.copytree(splice, tmp_path / "data")
    for split in ("train", "id"):
        path = tmp_path / "data" / f"{split}.parquet"
        pd.read_parquet(path).iloc[::-1].to_parquet(path, index=False)
    for kind, parent, recipe in (("sft", base, SFT), ("rl", undisturbed.output, RL)):
        with pytest.raises(UserError, match=r"train\.parquet: its SHA-256 is"):
            Run(kind, parent, tmp_path / "data", tmp_path / kind, recipe).here()
    with pytest.raises(UserError, match=r"id\.parquet: its SHA-256 is"):
        evaluate.evaluate(undisturbed.output, tmp_path / "data", tmp_path / "eval", EVALUATION)
    assert not published(tmp_path)


def test_data_drawn_anew_are_not_those_that_the_parent_was_trained_on(undisturbed: Run, tmp_path: Path) -> None:
    """The new test examples may be among those that the parent was trained on."""
    with contextlib.chdir(ROOT):
        splits.prepare("splice-donor", SIZES, 1, tmp_path / "data")
    expected = rf"{re.escape(str(undisturbed.output))}: trained on another train\.parquet of splice-donor"
    with pytest.raises(UserError, match=expected):
        Run("rl", undisturbed.output, tmp_path / "data", tmp_path / "rl", RL).here()
    with pytest.raises(UserError, match=expected):
        evaluate.evaluate(undisturbed.output, tmp_path / "data", tmp_path / "eval", EVALUATION)
    assert not published(tmp_path)


# --- A study in trouble ---

BASE = "models/tiny/base"
MODELS = f"{BASE}/hairpin/s0"
FULL_TUNING = TRAINING | {"epochs": [1], "lora": None}
GRPO = CONFIG["recipes"]["rl"]["grpo"]
DULL = {"rewards": {"correct": 1.0}, "max_completion_length": 2, "epochs": [1]}


def study() -> Config:
    """Three lineages: one succeeds; in the others the loss becomes NaN, or the reward never varies."""
    recipes = {
        "sft": {
            "well": FULL_TUNING | {"learning_rate": 5.0e-3, "epochs": [2]},
            "nan": FULL_TUNING | {"learning_rate": 1.0e30, "max_grad_norm": 1.0e30, "logging_steps": 1},
        },
        "rl": {"dull": GRPO | DULL, "grpo": GRPO},
    }
    return {key: value for key, value in CONFIG.items() if key not in ("corpora", "encoders")} | {
        "tasks": {"hairpin": CONFIG["tasks"]["hairpin"]},
        "recipes": recipes,
        "lineages": [{"sft": ["well", "nan"]}, {"rl": [{"recipe": "dull", "from": ["cold"]}]}],
    }


class Finished(NamedTuple):
    """A study that was run, the output of its Snakemake, and that of a second Snakemake started meanwhile."""

    clone: Clone
    first: str
    second: str


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    clone = make(tmp_path_factory.mktemp("troubled") / "study", study())
    log = clone.folder.parent / "log"
    with log.open("w") as stream:
        first = subprocess.Popen(snakemake(), cwd=clone.folder, env=environment(), stdout=stream, stderr=stream)
    wait_until((clone.results / "logs" / "fork_server.log").exists, "the fork server", first)
    second = clone.snakemake(code=1)
    assert first.wait(PATIENCE) == 1
    return Finished(clone, log.read_text(), second)


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Clone:
    """A copy of the study, times of files included."""
    shutil.copytree(finished.clone.folder, tmp_path / "study", symlinks=True)
    return Clone(tmp_path / "study")


def test_broken_lineages_say_why_in_the_terminal_and_the_others_go_on(finished: Finished) -> None:
    assert "error: the loss is nan at step" in finished.first
    assert "no group of completions ever had reward variance" in finished.first
    assert "Traceback" not in finished.first
    checkpoints = {path.parent.name for path in (finished.clone.results / MODELS).glob("*/e*/checkpoint")}
    assert checkpoints == {"e2"}  # that of `well`
    assert (finished.clone.results / MODELS / "sft-well" / "e2" / "eval" / "metrics.json").is_file()
    assert len(list((finished.clone.results / MODELS).glob("*/e*/eval"))) == 1


def test_second_snakemake_on_a_folder_is_refused_and_harms_nothing(finished: Finished) -> None:
    assert "Directory cannot be locked" in finished.second
    assert str(finished.clone.folder) in finished.second


def test_times_of_files_that_jumped_cost_no_training(copied: Clone) -> None:
    target = f"results/{MODELS}/sft-well/e2/checkpoint"
    weights = copied.folder / target / "model.safetensors"
    before = files.sha256(weights)
    copied.run("find", "results", "-exec", "touch", "-h", "-d", "2001-01-01", "{}", "+")  # a clock that was behind
    assert copied.todo(target) == []
    # A clock that is ahead.
    copied.run("find", f"results/{BASE}/checkpoint", "-exec", "touch", "-h", "-d", "2 days", "{}", "+")
    assert "has older modification time" in copied.snakemake(target, code=1)
    assert not weights.exists()
    copied.run("find", "results", "-newermt", "now", "-exec", "touch", "-h", "{}", "+")
    copied.snakemake(target)
    assert files.sha256(weights) == before
    assert "resuming from step 32 of 32" in (copied.results / "logs" / MODELS / "sft-well" / "e2.log").read_text()


def test_data_changed_by_hand_between_stages_is_refused_until_it_is_made_again(copied: Clone) -> None:
    config = study()
    config["lineages"] = [{"sft": ["well"], "rl": [{"recipe": "grpo", "from": [2]}]}]
    copied.write(config)
    sft = f"results/{MODELS}/sft-well/e2"
    weights, path = copied.folder / sft / "checkpoint/model.safetensors", copied.results / "data/hairpin/train.parquet"
    before = files.sha256(weights)
    pd.read_parquet(path).iloc[::-1].to_parquet(path, index=False)
    output = copied.snakemake(f"{sft}/rl-grpo/e1/checkpoint", code=1)
    assert "error: results/data/hairpin/train.parquet: its SHA-256 is" in output
    assert "Traceback" not in output
    copied.run("rm", "-r", "results/data/hairpin")
    copied.snakemake(f"{sft}/checkpoint")
    assert files.sha256(weights) == before
