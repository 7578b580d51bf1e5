"""Trackers: the numbers of a run also go to TensorBoard, and change nothing."""

import importlib.util
import os
from pathlib import Path

import pytest

from cisterna.errors import UserError
from cisterna.training import trackers
from clones import edited, make
from runs import SFT, Run
from tiny import ROOT

SNAKEMAKE = ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "1"]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Trackers read the process's environment, and `options` writes it."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in [name for name in os.environ if name.startswith(("CISTERNA_REPORT", "WANDB_", "TENSORBOARD_"))]:
        del os.environ[name]


def test_off_by_default(tmp_path):
    assert trackers.options(tmp_path / "checkpoint", {}, 0) == {"report_to": "none"}


def test_a_run_is_called_by_the_path_of_its_model(tmp_path):
    os.environ[trackers.VARIABLE] = "tensorboard"
    for root in ("results", f"{tmp_path}/results", ".snakemake/storage/s3/bucket/results"):
        options = trackers.options(Path(root) / "models/nano/base/t/s0/sft-x/e1/checkpoint", {}, 0)
        assert options["run_name"] == "models/nano/base/t/s0/sft-x/e1"
        assert os.environ["TENSORBOARD_LOGGING_DIR"] == f"results/logs/tensorboard/{options['run_name']}"


def test_a_resumed_run_is_the_same_to_wandb_and_an_edited_one_is_another():
    os.environ[trackers.VARIABLE] = "tensorboard"
    runs = []
    for recipe, seed in (({"a": 1}, 0), ({"a": 1}, 0), ({"a": 2}, 0), ({"a": 1}, 1)):
        trackers.options(Path("results/models/nano/checkpoint"), recipe, seed)
        runs.append(os.environ["WANDB_RUN_ID"])
    assert runs[0] == runs[1]
    assert len(set(runs)) == 3


def test_a_tracker_that_is_not_installed_is_an_error_that_says_how_to_install_it(monkeypatch):
    os.environ[trackers.VARIABLE] = "tensorboard, wandb"
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    with pytest.raises(UserError, match=r"wandb is not installed; run `pip install wandb`"):
        trackers.chosen()


def test_an_unknown_tracker_ends_snakemake_before_any_job(tmp_path):
    clone = make(tmp_path)
    output = clone.run(*SNAKEMAKE, code=1, CISTERNA_REPORT_TO="comet")
    assert "CISTERNA_REPORT_TO: 'comet'" in output.splitlines()[-1]
    assert "Traceback" not in output
    assert not clone.results.exists()


def test_a_recipe_cannot_name_a_tracker(tmp_path):
    clone = make(tmp_path, edited(recipes__sft__short__report_to="wandb"))
    assert "the environment variable CISTERNA_REPORT_TO" in clone.run("cisterna", "plan", code=2)


def test_a_tracker_is_no_parameter_of_a_job(tmp_path):
    """Snakemake would run a job again whose shell line changed."""
    clone, dry = make(tmp_path), [*SNAKEMAKE, "--dry-run", "--printshellcmds"]
    jobs = [
        sorted(line for line in clone.run(*dry, **variables).splitlines() if "cisterna " in line)
        for variables in ({}, {"CISTERNA_REPORT_TO": "tensorboard"})
    ]
    assert len(jobs[0]) == 38
    assert jobs[0] == jobs[1]


def test_tensorboard_gets_the_losses_and_the_checkpoint_is_the_same(base, splice, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    plain = Run("sft", base, splice, tmp_path / "plain" / "results" / "models" / "sft-x", SFT).here()
    assert not (tmp_path / "results").exists()
    os.environ[trackers.VARIABLE] = "tensorboard"
    watched = Run("sft", base, splice, tmp_path / "watched" / "results" / "models" / "sft-x", SFT).here()

    assert watched.weights.read_bytes() == plain.weights.read_bytes()
    assert watched.manifest["identity"] == plain.manifest["identity"]
    assert (watched.work / "fingerprint.json").read_bytes() == (plain.work / "fingerprint.json").read_bytes()
    (events,) = (tmp_path / "results" / "logs" / "tensorboard" / "models" / "sft-x" / "e1").iterdir()
    written = EventAccumulator(str(events)).Reload().Scalars("train/loss")
    logged = [entry for entry in watched.history if "loss" in entry]
    assert len(logged) >= 2
    assert [event.step for event in written] == [entry["step"] for entry in logged]
    assert [event.value for event in written] == pytest.approx([entry["loss"] for entry in logged])
