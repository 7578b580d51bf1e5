"""`cisterna plan --calibrate` measures real jobs of a tiny study, and leaves nothing behind."""

import re
import sys
import tempfile
from pathlib import Path

import pytest

from cisterna import cli, study
from cisterna.errors import UserError
from cisterna.ops import calibrate, probes, trials
from cisterna.ops.calibrate import Machine
from cisterna.ops.trials import Command, Trials
from cisterna.study.jobs import KINDS
from clones import CONFIG, edited, make

QUIET = Machine(cores=2, gpus=0, took=9.0, load=0.0)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A clone of the tiny study in which the test runs, and a folder for temporary files that nobody else uses."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    changes: dict[str, object] = {"evaluation": CONFIG["evaluation"] | {"calibration": True, "group": "lineage"}}
    for kind, name in (("cpt", "bio"), ("sft", "short")):  # a first step with a learning rate of 0
        warm = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 20}
        changes[f"recipes__{kind}__{name}"] = CONFIG["recipes"][kind][name] | warm
    clone = make(tmp_path / "clone", edited(**changes))
    monkeypatch.chdir(clone.folder)
    return clone


@pytest.mark.slow
def test_tiny_study_is_measured_and_every_kind_of_job_has_a_time(here, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(probes, "SECONDS", 1.0)
    before = sorted(here.folder.rglob("*"))
    made: list[probes.Probes] = []
    run = probes.Probes.run
    monkeypatch.setattr(probes.Probes, "run", lambda self: made.append(self) or run(self))

    assert cli.main(["plan", "--calibrate", "--cores", "2"]) == 0

    text = capsys.readouterr().out
    assert re.match(r"Study tiny on this machine with --cores 2: about \d+ (s|min) from start to end\n", text)
    table = {line.split()[0]: line.split() for line in text.split("\n\n")[1].splitlines()}
    assert table.keys() >= {*KINDS, "total"}
    assert all(int(table[kind][1]) > 0 and table[kind][2] == "0" for kind in KINDS)
    costs = made[0].costs
    assert {part[0] for part in costs} == set(KINDS) - {"answers"}  # those have the parts of evaluations
    assert all(costs[part] > 0 for part in costs if part[0] in ("sft", "rl", "gather") and part[-1] != "start")
    assert {part[-1] for part in costs if part[0] == "evaluate"} == {
        "start", "scores", "prompt token", "new token", "label",
    }  # fmt: skip
    assert sorted(here.folder.rglob("*")) == before
    assert list((tmp_path / "tmp").iterdir()) == []


def test_what_is_done_is_not_measured(here, capsys):
    for job in calibrate.jobs(study.read(Path("config", "config.yaml"))):
        proof = here.results / job.proof
        proof.parent.mkdir(parents=True, exist_ok=True)
        proof.touch()
    assert cli.main(["plan", "--calibrate"]) == 0
    assert re.fullmatch(r"Study tiny: all \d+ jobs are done\n", capsys.readouterr().out)


def test_cores_without_calibration_and_recipes_of_several_nodes_are_refused(here, capsys):
    assert cli.main(["plan", "--cores", "2"]) == 2
    assert "--cores: only with --calibrate" in capsys.readouterr().err
    assert cli.main(["plan", "--calibrate", "--cores", "0"]) == 2
    assert "--cores: expected a whole number above 0, not 0" in capsys.readouterr().err
    recipe = CONFIG["recipes"]["sft"]["short"] | {"processes": 4, "nodes": 2}
    here.write(edited(recipes__sft__short=recipe))
    assert cli.main(["plan", "--calibrate"]) == 2
    assert "recipes.sft.short.nodes is 2" in capsys.readouterr().err


def test_command_that_fails_ends_the_measurement_with_its_error(here, tmp_path):
    command = Command(["cisterna", "baselines", "--data", "nowhere", "--options", "{}", "--output", "x"], 1)
    with pytest.raises(UserError, match=r"`cisterna baselines` failed: .*nowhere"), trials.opened(1, 1) as opened:
        opened.side_by_side([lambda: opened.run(command)], 1)
    assert list((tmp_path / "tmp").iterdir()) == []


# Writes its progress as a stage does: two steps at the start, then one every 0.1 s, and a line when it ends.
STAGE = """
import sys, time
from pathlib import Path
from cisterna.artifacts import progress
progress.INTERVAL = 0.0
shown = progress.Progress(Path("work"), Path("output"), "sft")
for step in range(2, int(sys.argv[1]) + 1):
    shown.update(step, int(sys.argv[1]), "steps")
    time.sleep(0.1)
time.sleep(1.0)
sys.exit(int(sys.argv[2]))
"""


def stage(folder, steps, code=0, **options):
    return Command([sys.executable, "-c", STAGE, str(steps), str(code)], 1, folder / "work", **options)


def test_trial_tells_the_start_the_steps_and_the_end(tmp_path):
    trial = Trials(tmp_path, 1, 1).run(stage(tmp_path, 12))
    assert trial.total == 12
    assert trial.unit >= 0.1
    assert trial.end >= 1.0
    assert trial.start + 10 * trial.unit + trial.end <= trial.seconds  # the first two count as the start here


def test_trial_stops_when_it_has_worked_long_enough(tmp_path):
    trial = Trials(tmp_path, 1, 1).run(stage(tmp_path, 100_000), limit=0.5)
    assert (trial.total, trial.end) == (100_000, 0.0)
    assert trial.unit >= 0.1


def test_failure_after_a_step_counts_unless_it_may_fail(tmp_path):
    assert Trials(tmp_path, 1, 1).run(stage(tmp_path, 4, code=2, may_fail=True)).total == 4
    with pytest.raises(UserError, match="exit code 2"):
        Trials(tmp_path, 1, 1).run(stage(tmp_path, 4, code=2))


def test_page_has_what_is_done_and_what_takes_longest(here):
    loaded = study.read(Path("config", "config.yaml"))
    everything = calibrate.jobs(loaded)
    timed = FixedTiming(loaded, {"sft": 3600.0, "rl": 1800.0})
    todo = [job for job in everything if job.kind in ("sft", "rl")]
    text = calibrate.render(timed, timed.costs, todo, QUIET)
    table = {line.split()[0]: re.split(" {2,}", line) for line in text.split("\n\n")[1].splitlines()}
    sft, rl = (sum(job.kind == kind for job in todo) for kind in ("sft", "rl"))
    assert table["sft"][1:] == [str(sft), "0", f"{sft}.0 h", f"{sft / (sft + rl / 2):.0%}"]
    assert table["data"][1:4] == ["2", "2", "0 s"]
    assert table["total"][1:3] == [str(len(everything)), str(len(everything) - sft - rl)]
    assert "sft" in text.split("\n\n")[2].splitlines()[2]
    assert "busy" not in text
    busy = calibrate.render(timed, timed.costs, todo, Machine(cores=2, gpus=0, took=9.0, load=99.0))
    assert "this machine was busy: its load was 99.0 " in busy


class FixedTiming:
    """A timing in which every job of a kind takes the same time."""

    def __init__(self, loaded, seconds):
        self.study = loaded
        self.costs = {(kind, "start"): each for kind, each in seconds.items()}

    def parts(self, job):
        return {(job.kind, "start"): 1}
