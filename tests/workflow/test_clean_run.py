"""`cisterna clean` on a study that Snakemake ran: what it leaves is whole, and there is nothing to do again."""

import os
import signal
import subprocess
import time
from pathlib import Path

from cisterna import study
from clones import CONFIG, Clone, Job, Stage, edited, environment, snakemake

LADDER = "models/tiny/base/hairpin/s0/sft-brief"


def checkpoints(clone: Clone) -> set[str]:
    manifests = (clone.results / "models").rglob("checkpoint/manifest.json")
    return {str(path.parents[1].relative_to(clone.results)) for path in manifests}


def below(folder: Path) -> set[Path]:
    """All files below a folder."""
    return {path for path in folder.rglob("*") if path.is_file()}


def test_finished_study_has_nothing_to_be_done_after_its_state_is_gone(clone: Clone) -> None:
    before = {path for path in below(clone.results) if ".work" not in path.parts}
    assert (clone.results / ".work" / LADDER / "rungs.json").is_file()
    assert f"results/.work/{LADDER}\n" in clone.run("cisterna", "clean")
    clone.run("cisterna", "clean", "--yes", "--finished")
    assert below(clone.results) == before
    assert "Nothing to be done" in clone.snakemake()


def test_models_that_an_edit_removes_from_a_study_are_cleaned_and_the_rest_needs_no_rerun(clone: Clone) -> None:
    config = edited(recipes__sft__brief__epochs=[1, 2], **{"tasks__splice-donor__sequences": ["tokens"]})
    config["lineages"][0]["cpt"] = ["none"]
    clone.write(config)
    clone.snakemake()
    everything = checkpoints(clone)
    wanted = {model.path for model in study.load(config).models}
    assert wanted < everything

    (clone.folder / "before.yaml").write_text((clone.folder / "config" / "config.yaml").read_text())
    both = clone.run("cisterna", "clean", "--config", "config/config.yaml", "before.yaml")
    assert "models" in both
    clone.run("cisterna", "clean")
    assert checkpoints(clone) == everything

    clone.run("cisterna", "clean", "--yes", "--finished")
    assert checkpoints(clone) == wanted
    for gone in ("features", "encoders", "models/tiny/cpt-bio", f"{LADDER}/e4", f"logs/{LADDER}/e4.log"):
        assert not (clone.results / gone).exists(), gone
    assert below(clone.results / ".work") == set()
    assert "Nothing to be done" in clone.snakemake()
    assert "are whole" in clone.run("cisterna", "verify")


def test_nothing_is_removed_while_snakemake_runs_or_before_it_is_unlocked(clone: Clone) -> None:
    """What a killed run was working on stays: the same command resumes it."""
    short = {**CONFIG["recipes"]["sft"]["short"], "epochs": [64], "save_minutes": 0.005}
    clone.write(edited(recipes__sft__short=short))
    model = "models/tiny/base/splice-donor/s0/sft-short"
    command = snakemake(f"results/{model}/e64/checkpoint")
    stage = Stage(clone, model)
    nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=clone.folder, env=environment(), start_new_session=True, **nowhere) as run:
        stage.wait_for_state(16, run)  # the last state of the finished study is that of step 16
        refused = clone.run("cisterna", "clean", "--yes", code=2)
        assert "nothing is removed while something runs here: Snakemake" in refused
        assert f"the stage of results/.work/{model}" in refused
        os.killpg(run.pid, signal.SIGKILL)
    assert "snakemake --unlock" in clone.run("cisterna", "clean", "--yes", code=2)
    clone.snakemake("--unlock")
    deadline = time.monotonic() + 60
    while "the stage of" in clone.run("cisterna", "clean"):  # it ends with the fork server that started it
        assert time.monotonic() < deadline
    assert f"results/{model}/e1\n" in clone.run("cisterna", "clean", "--yes", "--finished")
    assert any(int(path.name.split("-")[1]) > 16 for path in stage.work.glob("checkpoint-*"))
    assert clone.todo(f"results/{model}/e64/checkpoint") == [Job("sft", f"{model}/e64/checkpoint")]
