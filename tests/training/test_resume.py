"""An interrupted training resumes to the bytes of one that was not interrupted, and only from a state of its own.

Here an interruption is an exception, or a SIGTERM to this process, at a chosen step; `test_kills.py` kills processes.
"""

import dataclasses
import os
import shutil
import signal

import pytest

from cisterna import cli
from cisterna.artifacts import files, work_folder
from cisterna.artifacts.shutdown import Stopped
from cisterna.artifacts.work_folder import FINGERPRINT
from cisterna.sequences import feature_bank
from cisterna.training import state
from cisterna.training.callback import StageCallback
from cisterna.training.stage import StageArguments
from runs import RL, SFT, Run, published
from tiny import READING

OFTEN = SFT | {"save_minutes": 0}  # saves at every step


class Killed(BaseException):
    pass


def kill(*_):
    raise Killed


def terminate(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)  # twice: Slurm sends one to every process, and torchrun sends its own on


def interrupt(asked: Run, event: str, number: int, how=kill) -> None:
    """Train until the callback has had `number` events (on_save, on_step_end), and interrupt it there."""
    original = getattr(StageCallback, event)
    left = [number]

    def intercepted(self, *args, **options):
        left[0] -= 1
        if left[0] == 0 and how is terminate:
            terminate()
        answer = original(self, *args, **options)
        if left[0] == 0 and how is kill:
            kill()
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageCallback, event, intercepted)
        with pytest.raises(Killed if how is kill else Stopped) as ended:
            asked.here()
    assert how is kill or f"{asked.output}: by SIGTERM at step {number} of" in str(ended.value)
    assert not published(asked.output.parent)


def states(asked: Run) -> list[int]:
    """Steps of the complete trainer states."""
    return sorted(state.step_of(path) for path in asked.work.glob(state.STATES) if state.is_complete(path))


@pytest.fixture(scope="module")
def undisturbed(base, splice, tmp_path_factory) -> Run:
    return Run("sft", base, splice, tmp_path_factory.mktemp("undisturbed") / "run", OFTEN, 2).here()


@pytest.mark.parametrize("damaged", [False, True], ids=["whole", "half-written"])
def test_killed_run_resumes_unless_its_state_is_half_written(base, splice, undisturbed, tmp_path, capsys, damaged):
    asked = Run("sft", base, splice, tmp_path / "run", OFTEN, 2)
    interrupt(asked, "on_save", 10)
    assert states(asked) == [10]  # between the logs of steps 9 and 12
    if damaged:
        (asked.work / "checkpoint-10" / state.COMPLETE).unlink()
    asked.here()
    assert ("resuming from step 10 of 16" in capsys.readouterr().out) is not damaged
    for fact in ("files", "trained"):
        assert asked.manifest[fact] == undisturbed.manifest[fact]
    assert states(asked) == [16]


def test_sigterm_saves_the_state_and_the_same_command_resumes(base, splice, undisturbed, tmp_path, capsys):
    """With the default `save_minutes` nothing else would have saved."""
    asked = Run("sft", base, splice, tmp_path / "run", SFT, 2)
    interrupt(asked, "on_step_end", 3, terminate)
    assert states(asked) == [3]
    asked.here()
    assert "resuming from step 3 of 16" in capsys.readouterr().out
    assert asked.manifest["files"] == undisturbed.manifest["files"]


def test_state_is_saved_only_where_the_run_can_resume(solved, splice, tmp_path):
    """Each batch of completions serves 3 x 2 steps, logged every 2: a state in between would have lost the batch."""
    recipe = RL | {"num_iterations": 2, "steps_per_generation": 3, "per_device_train_batch_size": 8}
    recipe |= {"save_minutes": 0, "logging_steps": 2, "examples": 12}
    straight = Run("rl", solved.output, splice, tmp_path / "straight", recipe, 1).here()
    asked = Run("rl", solved.output, splice, tmp_path / "interrupted", recipe, 1)
    interrupt(asked, "on_save", 1)
    assert states(asked) == [6]
    asked.here()
    assert asked.manifest["identity"] == straight.manifest["identity"]


def test_run_with_features_resumes_but_not_with_those_of_another_reading(base, splice, esm, bank, tmp_path, capsys):
    def asked(folder, bank):
        return Run("sft", base, splice, folder, OFTEN, 1, reads={"sequences": "features", "bank": bank})

    straight = asked(tmp_path / "straight", bank).here()
    interrupt(asked(tmp_path / "killed", bank), "on_save", 5)
    again = asked(tmp_path / "killed", bank).here()
    assert "resuming from step 5 of 8" in capsys.readouterr().out
    assert again.manifest["identity"] == straight.manifest["identity"]
    feature_bank.build_for_task(esm, splice, READING | {"layer": 1}, tmp_path / "w", tmp_path / "bank")
    asked(tmp_path / "killed", tmp_path / "bank").here()
    log = capsys.readouterr().out
    assert "(data changed)" in log
    assert "resuming" not in log


def test_stage_that_is_already_running_is_refused(base, splice, tmp_path, capsys):
    asked = Run("sft", base, splice, tmp_path, SFT)
    with work_folder.locked(asked.work):
        assert cli.main(asked.arguments) == 2
    assert str(asked.work) in capsys.readouterr().err
    assert not published(tmp_path)


# --- Which states count ---


@pytest.fixture
def work(tmp_path):
    """A work folder with a complete state of step 7."""
    folder = tmp_path / "work" / "checkpoint-7"
    (folder / "global_step7").mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "global_step7/rank0.pt"):
        (folder / name).write_text(name)
    state.mark_complete(folder)
    return tmp_path / "work"


def test_latest_state_is_the_last_that_is_whole_and_not_after_the_end(work):
    shutil.copytree(work / "checkpoint-7", work / "checkpoint-10")
    assert state.latest(work, 100) == work / "checkpoint-10"
    assert state.latest(work, 9) == work / "checkpoint-7"
    assert state.latest(work, 6) is None
    (work / "checkpoint-10" / "optimizer.pt").write_text("half")
    assert state.latest(work, 100) == work / "checkpoint-7"
    (work / "checkpoint-7" / "global_step7" / "rank0.pt").unlink()
    assert state.latest(work, 100) is None


DATA = {"train.parquet": "1" * 64}


@pytest.fixture
def asked(base, work):
    """The arguments of the run that made the state in `work`."""
    arguments = StageArguments("sft", base, work / "output", work, SFT, seed=0, epochs=2)
    shutil.move(work / "checkpoint-7", work / "kept")  # a state without a fingerprint would be discarded
    state.discard_stale(arguments, DATA, 1)
    shutil.move(work / "kept", work / "checkpoint-7")
    return arguments


@pytest.mark.parametrize("changed", ["recipe", "data", "seed", "kind", "processes", "engine"])
def test_state_of_another_run_is_discarded_and_the_log_says_why(asked, work, capsys, changed):
    edits = {"recipe": SFT | {"learning_rate": 1e-3}, "seed": 1, "kind": "rl"}
    arguments = dataclasses.replace(asked, **{changed: edits[changed]}) if changed in edits else asked
    data = {"train.parquet": "2" * 64} if changed == "data" else DATA
    engine = {"name": "vllm", "version": "0.32.0"} if changed == "engine" else None
    state.discard_stale(arguments, data, 2 if changed == "processes" else 1, engine)
    assert f"({changed} changed)" in capsys.readouterr().out
    assert state.latest(work, 100) is None
    assert files.read_json(work / FINGERPRINT)["data"] == data


def test_state_is_kept_for_more_epochs_and_more_frequent_saving(asked, work, capsys):
    state.discard_stale(dataclasses.replace(asked, epochs=4, recipe=SFT | {"save_minutes": 1}), DATA, 1)
    assert state.latest(work, 100) == work / "checkpoint-7"
    assert capsys.readouterr().out == ""


def test_half_written_states_are_removed(asked, work):
    (work / "checkpoint-5").mkdir()
    (work / "checkpoint-5" / "model.safetensors").write_text("half")
    state.discard_stale(asked, DATA, 1)
    assert sorted(path.name for path in work.glob(state.STATES)) == ["checkpoint-7"]
