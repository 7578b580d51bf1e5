import functools
import json
import os
import re
import shutil
import signal
import time

import pandas as pd
import pytest

from cisterna import cli
from cisterna.artifacts import files
from cisterna.sequences import feature_bank
from cisterna.training.callback import StageCallback
from cisterna.training.state import COMPLETE
from runs import CPT, RL, SFT, Run, published
from tiny import READING

# `save_minutes: 0` saves at every step. Long enough to be killed in the middle, more than one epoch.
LONG = {
    "cpt": (CPT | {"save_minutes": 0, "lora": {"r": 4, "lora_dropout": 0.1}}, 0.25),
    "sft": (SFT | {"save_minutes": 0, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}, 6),
    "rl": (RL | {"save_minutes": 0, "num_iterations": 2, "examples": 8}, 4),
}


@pytest.fixture(scope="module")
def parents(base, splice, dna, solved):
    """For each stage the parent and the data."""
    return {"cpt": (base, dna), "sft": (base, splice), "rl": (solved.output, splice)}


def states(asked: Run) -> list[int]:
    """Steps of the complete trainer states."""
    return sorted(int(path.parent.name.split("-")[1]) for path in asked.work.glob(f"checkpoint-*/{COMPLETE}"))


def wait(asked: Run, process, step: int) -> None:
    """Until a state at `step` or later is saved."""
    end = time.monotonic() + 180
    while not (states(asked) and states(asked)[-1] >= step):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end, "the run does not save"
        time.sleep(0.002)


def kill(process) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(60)


def reached(process, log, step: int) -> None:
    """Until a step at `step` or later is logged."""
    end = time.monotonic() + 180
    while not any(int(found) >= step for found in re.findall(r"^step (\d+)/", log.read_text(), re.MULTILINE)):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, "the run does not log"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def undisturbed_runs(parents, tmp_path_factory):
    """The run of LONG that nothing interrupts, by kind."""

    @functools.cache
    def run(kind: str) -> Run:
        recipe, epochs = LONG[kind]
        return Run(kind, *parents[kind], tmp_path_factory.mktemp("undisturbed"), recipe, epochs).here()

    return run


@pytest.mark.parametrize("kind", ["cpt", "sft", "rl"])
def test_killed_run_resumes_to_identical_weights(parents, undisturbed_runs, tmp_path, kind):
    parent, data = parents[kind]
    recipe, epochs = LONG[kind]
    undisturbed = undisturbed_runs(kind)
    asked = Run(kind, parent, data, tmp_path / "killed", recipe, epochs)
    process = asked.start(tmp_path / "killed.log")
    steps = undisturbed.manifest["trained"]["steps"]
    wait(asked, process, steps // 3)
    kill(process)
    saved = states(asked)[-1]
    assert steps // 3 <= saved < steps
    assert not published(tmp_path / "killed")

    asked.there(tmp_path / "again.log")
    assert f"resuming from step {saved} of {steps}" in (tmp_path / "again.log").read_text()
    for fact in ("files", "trained"):
        assert asked.manifest[fact] == undisturbed.manifest[fact]
    assert states(asked) == [steps]


@pytest.mark.parametrize("kind", ["cpt", "sft", "rl"])
def test_sigterm_saves_the_state_and_the_same_command_goes_on(parents, undisturbed_runs, tmp_path, kind):
    """With the default `save_minutes` nothing else would have saved."""
    parent, data = parents[kind]
    recipe, epochs = LONG[kind]
    asked = Run(kind, parent, data, tmp_path / "stopped", recipe | {"save_minutes": 10}, epochs)
    log = tmp_path / "stopped.log"
    process = asked.start(log)
    reached(process, log, 3)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    (step,) = states(asked)
    said = log.read_text()
    assert f"stopped: {asked.output}: by SIGTERM at step {step} of" in said
    assert "Traceback" not in said
    assert not published(tmp_path / "stopped")

    asked.there(tmp_path / "again.log")
    assert f"resuming from step {step} of" in (tmp_path / "again.log").read_text()
    undisturbed = undisturbed_runs(kind)
    assert asked.manifest["files"] == undisturbed.manifest["files"]


# --- The same in this process, where the kill is an exception after a save ---


class Killed(BaseException):
    pass


def interrupt(asked: Run, saves: int) -> None:
    """Train until a number of states is saved."""
    left = [saves]
    original = StageCallback.on_save

    def on_save(self, *args, **options):
        original(self, *args, **options)
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageCallback, "on_save", on_save)
        with pytest.raises(Killed):
            asked.here()


@pytest.fixture
def interrupted(base, splice, tmp_path) -> Run:
    asked = Run("sft", base, splice, tmp_path / "run", SFT | {"save_minutes": 0}, 2)
    interrupt(asked, 10)
    assert states(asked) == [10]  # between the logs of steps 9 and 12
    return asked


@pytest.fixture(scope="module")
def undisturbed(base, splice, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("undisturbed")
    return Run("sft", base, splice, folder / "run", SFT | {"save_minutes": 0}, 2).here()


def test_interrupted_run_resumes(interrupted, undisturbed, capsys):
    interrupted.here()
    assert "resuming from step 10 of 16" in capsys.readouterr().out
    assert interrupted.manifest["files"] == undisturbed.manifest["files"]


@pytest.mark.parametrize("damage", ["unmarked", "truncated", "file-missing"])
def test_half_written_state_is_not_resumed_from(interrupted, undisturbed, capsys, damage):
    state = interrupted.work / "checkpoint-10"
    if damage == "unmarked":
        (state / COMPLETE).unlink()
    elif damage == "truncated":
        os.truncate(state / "optimizer.pt", 1000)
    else:
        (state / "scheduler.pt").unlink()
    interrupted.here()
    assert "resuming" not in capsys.readouterr().out
    assert interrupted.manifest["files"] == undisturbed.manifest["files"]


def test_state_is_saved_only_where_the_run_can_go_on_from(parents, tmp_path):
    """Each batch of completions serves 3 x 2 steps, logged every 2: a state in between would have lost the batch."""
    parent, data = parents["rl"]
    recipe = RL | {"num_iterations": 2, "steps_per_generation": 3, "per_device_train_batch_size": 8}
    recipe |= {"save_minutes": 0, "logging_steps": 2, "examples": 12}
    straight = Run("rl", parent, data, tmp_path / "straight", recipe, 1).here()
    asked = Run("rl", parent, data, tmp_path / "interrupted", recipe, 1)
    interrupt(asked, 1)
    assert states(asked) == [6]
    asked.here()
    assert asked.manifest["identity"] == straight.manifest["identity"]


def test_interrupted_run_with_features_resumes_but_not_with_those_of_another_reading(
    base, splice, esm, bank, tmp_path, capsys
):
    def asked(folder, bank):
        recipe = SFT | {"save_minutes": 0}
        return Run("sft", base, splice, folder, recipe, 2, reads={"sequences": "features", "bank": bank})

    straight = asked(tmp_path / "straight", bank).here()
    for name in ("same", "other"):
        interrupt(asked(tmp_path / name, bank), 10)
    capsys.readouterr()
    again = asked(tmp_path / "same", bank).here()
    assert "resuming from step 10 of 16" in capsys.readouterr().out
    assert again.manifest["identity"] == straight.manifest["identity"]
    feature_bank.build_for_task(esm, splice, READING | {"layer": 1}, tmp_path / "w", tmp_path / "bank")
    asked(tmp_path / "other", tmp_path / "bank").here()
    said = capsys.readouterr().out
    assert "(data changed)" in said
    assert "resuming" not in said


@pytest.mark.parametrize("changed", ["recipe", "data", "seed"])
def test_state_of_another_run_is_discarded_and_the_log_says_why(interrupted, splice, tmp_path, capsys, changed):
    if changed == "recipe":
        interrupted.recipe = interrupted.recipe | {"learning_rate": 1e-3}
    elif changed == "seed":
        interrupted.seed = 1
    else:
        interrupted.data = tmp_path / "data"
        shutil.copytree(splice, interrupted.data)
        table = pd.read_parquet(splice / "train.parquet")
        table[::-1].to_parquet(interrupted.data / "train.parquet")
        card = files.read_json(interrupted.data / "card.json")
        card["files"]["train.parquet"] = files.sha256(interrupted.data / "train.parquet")
        files.write_json(interrupted.data / "card.json", card)
    capsys.readouterr()
    interrupted.here()
    said = capsys.readouterr().out
    assert f"({changed} changed)" in said
    assert "resuming" not in said


def test_more_frequent_saving_is_no_other_run(interrupted, capsys):
    interrupted.recipe = interrupted.recipe | {"save_minutes": 10}
    interrupted.here()
    assert "resuming from step 10 of 16" in capsys.readouterr().out


def test_stage_that_is_already_running_is_refused(parents, tmp_path, capsys):
    recipe, epochs = LONG["sft"]
    asked = Run("sft", *parents["sft"], tmp_path, recipe, epochs * 10)
    process = asked.start(tmp_path / "first.log")
    try:
        wait(asked, process, 1)
        command = asked.command()
        assert cli.main(command[command.index("cisterna") + 1 :]) == 2
        assert "another process is working on this stage" in capsys.readouterr().err
        assert process.poll() is None
    finally:
        kill(process)
    assert json.loads((asked.work / "fingerprint.json").read_text())["kind"] == "sft"
