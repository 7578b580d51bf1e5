"""`cisterna train PATH` runs what the rule of that path runs: the commands are those of the golden shell lines."""

import shlex

import pytest

import goldens
from cisterna import study
from cisterna.errors import UserError
from cisterna.runtime import commands
from cisterna.study import inputs, jobs

MODEL = "results/models/nano/base/splice-donor/s0/sft-brief/e2"


@pytest.fixture
def default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return study.read(goldens.CONFIGS["default"])


@pytest.mark.parametrize("name", goldens.CONFIGS)
def test_commands_are_those_of_the_rules(name):
    loaded = study.read(goldens.CONFIGS[name])
    shells = [
        job["shell"].partition(" > results/logs/")[0] for job in goldens.load(name)["jobs"] if job["rule"] != "all"
    ]
    printed = [shlex.split(shell.replace(" --study ", " --config ")) for shell in shells]
    made = [commands.command(loaded, job) for job in jobs.jobs(loaded)]
    for words in (*made, *printed):
        if "--config" in words:  # a rule gives the config as the user wrote it, without the defaults
            place = words.index("--config") + 1
            words[place] = " ".join(sorted(job.output for job in jobs.jobs(study.load(inputs.unpack(words[place])))))
    assert sorted(made) == sorted(printed)


@pytest.mark.parametrize("path", [MODEL, f"{MODEL}/checkpoint/", f"./{MODEL}"])
def test_checkpoint_is_named_by_its_folder_or_by_that_of_its_model(default, path):
    assert commands.find(default, path, *commands.TRAINING).output == f"{MODEL}/checkpoint".removeprefix("results/")


def test_path_of_no_job_is_refused_with_the_nearest(default):
    with pytest.raises(UserError, match=r"e3.*Did you mean models/nano/base/splice-donor/s0/sft-brief/e\d"):
        commands.find(default, f"{MODEL[:-1]}3/checkpoint", *commands.TRAINING)
    with pytest.raises(UserError, match="eval"):
        commands.find(default, f"{MODEL}/eval", *commands.TRAINING)


def test_job_runs_only_if_its_inputs_are_there_and_its_result_is_not(default, tmp_path):
    with pytest.raises(UserError, match="`snakemake results/data/splice-donor` makes it"):
        commands.run(default, MODEL, *commands.TRAINING)
    (tmp_path / MODEL / "checkpoint").mkdir(parents=True)
    (tmp_path / MODEL / "checkpoint" / "manifest.json").touch()
    with pytest.raises(UserError, match=f"rm -r {MODEL}/checkpoint"):
        commands.run(default, MODEL, *commands.TRAINING)
