"""`cisterna clean` removes what no config refers to and what nothing resumes from, and nothing else."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cisterna import study
from cisterna.cli import main
from cisterna.study.jobs import jobs
from clones import CONFIG, Clone, Config, edited, make

CPT = "models/tiny/cpt-bio"
LADDER = "models/tiny/base/hairpin/s0/sft-brief"
LATER = "checkpoint-20/model.safetensors"  # a state after that of the published rung


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """The folder of the tiny study, before anything is run; the tests work in it."""
    clone = make(tmp_path / "study")
    monkeypatch.chdir(clone.folder)
    return clone


def made(config: Config) -> set[str]:
    """Files that the jobs of a study write, relative to results/: of each a result, a log and a benchmark."""
    found = set()
    for job in jobs(study.load(config)):
        found |= {job.proof, job.log, job.log.replace("logs/", "benchmarks/").replace(".log", ".tsv")}
    return found


def write(clone: Clone, names: Iterable[str]) -> None:
    for name in names:
        path = clone.results / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


def there(clone: Clone) -> set[str]:
    return {str(path.relative_to(clone.results)) for path in clone.results.rglob("*") if path.is_file()}


def save(clone: Clone, work: str, state: str = "checkpoint-16/model.safetensors", rungs: str = "[16]") -> set[str]:
    """Write the state of a stage into its work folder, with the steps of its published rungs; returns the files."""
    names = {f".work/{work}/{name}" for name in (state, "rungs.json", ".lock")}
    write(clone, names)
    (clone.results / ".work" / work / "rungs.json").write_text(rungs)
    return names


def clean(*arguments: str, code: int = 0) -> None:
    assert main(["clean", *arguments]) == code


# --- What no config refers to ---


def test_study_of_the_config_is_kept_whole(clone: Clone, capsys: pytest.CaptureFixture[str]) -> None:
    write(clone, made(CONFIG))
    clean("--yes", "--finished")
    assert there(clone) == made(CONFIG)
    assert "config/config.yaml (study tiny)" in capsys.readouterr().out


@st.composite
def studies(draw: st.DrawFn) -> Config:
    """The tiny study with fewer lineages, rungs, recipes or forms."""
    config = edited(study=draw(st.sampled_from(["tiny", "other"])))
    config["lineages"] = draw(st.lists(st.sampled_from(CONFIG["lineages"]), min_size=1, max_size=2, unique_by=id))
    config["recipes"]["sft"]["brief"]["epochs"] = draw(st.sampled_from([[1, 2, 4], [1, 2], [2, 4], [2]]))
    config["tasks"]["splice-donor"]["sequences"] = draw(st.sampled_from([["tokens"], ["features"], ["tokens", "both"]]))
    config["seeds"] = draw(st.sampled_from([[0], [0, 1], [1]]))
    return config


@settings(max_examples=8)
@given(ours=studies(), theirs=studies())
def test_results_that_no_given_config_refers_to_are_removed_and_no_others(
    clone: Clone, ours: Config, theirs: Config
) -> None:
    shutil.rmtree(clone.results, ignore_errors=True)
    clone.write(ours)
    (clone.folder / "theirs.yaml").write_text(yaml.safe_dump(theirs))
    write(clone, made(ours) | made(theirs))
    clean("--config", "config/config.yaml", "theirs.yaml", "--yes", "--finished")
    clean("--config", "theirs.yaml", "--config", "config/config.yaml", "--yes", "--finished")
    assert there(clone) == made(ours) | made(theirs)
    clean("--finished")
    assert there(clone) == made(ours) | made(theirs)
    clean("--yes")
    assert there(clone) == made(ours)
    assert all(any(path.iterdir()) for path in clone.results.rglob("*") if path.is_dir())


def test_listing_names_each_folder_once_with_its_size(clone: Clone, capsys: pytest.CaptureFixture[str]) -> None:
    write(clone, made(CONFIG))
    old = clone.results / "models/tiny/base/hairpin/s0/sft-old"
    for rung in ("e1", "e2"):
        (old / rung / "checkpoint").mkdir(parents=True)
        (old / rung / "checkpoint" / "model.safetensors").write_bytes(bytes(1_000_000))
    clean()
    output = capsys.readouterr().out
    assert re.findall(r"2\.00MB +(results\S+)", output) == ["results/models/tiny/base/hairpin/s0/sft-old"]
    assert "1 entry, 2.00MB" in output
    assert "--yes" in output
    assert old.is_dir()


def test_files_of_the_users_own_stay(clone: Clone) -> None:
    clone.write(edited(corpora__rna__file="results/models/ours/rna.fasta"))
    shutil.copy(clone.folder / "tables" / "some rna.fasta", clone.folder / "rna.fasta")
    own = {"notes.txt", "mine/table.csv", "models/notes.md", "models/ours/rna.fasta", "logs/slurm/1.log", "report.html"}
    write(clone, made(CONFIG) | own | {"models/ours/base/checkpoint/manifest.json"})
    clean("--yes", "--finished")
    assert there(clone) == made(CONFIG) | own


@pytest.mark.parametrize("config", ["bad.yaml", "missing.yaml"])
def test_config_that_is_not_valid_removes_nothing(
    clone: Clone, capsys: pytest.CaptureFixture[str], config: str
) -> None:
    write(clone, {"models/old/base/checkpoint/manifest.json"})
    (clone.folder / "bad.yaml").write_text("study: x\n")
    clean("--config", "config/config.yaml", config, "--yes", code=2)
    assert config in capsys.readouterr().err
    assert there(clone) == {"models/old/base/checkpoint/manifest.json"}


def test_folder_without_results_is_refused(clone: Clone, capsys: pytest.CaptureFixture[str]) -> None:
    clean(code=2)
    assert "error: results: no such folder" in capsys.readouterr().err


# --- State of stages ---


def test_state_of_a_finished_ladder_is_removed_only_with_the_option(
    clone: Clone, capsys: pytest.CaptureFixture[str]
) -> None:
    state = save(clone, LADDER)
    write(clone, made(CONFIG))
    (clone.results / ".work" / LADDER / "e4").mkdir()  # left by an evaluation
    clean("--yes")
    assert there(clone) == made(CONFIG) | state
    assert "1 entry, 8.00B more with --finished" in capsys.readouterr().out
    clean("--yes", "--finished")
    assert there(clone) == made(CONFIG)
    assert not (clone.results / ".work").exists()


def test_state_of_a_ladder_stays_while_a_rung_is_not_published(clone: Clone) -> None:
    state = save(clone, LADDER)
    write(clone, made(CONFIG))
    clone.write(edited(recipes__sft__brief__epochs=[1, 2, 4, 8]))
    clean("--yes", "--finished")
    assert state <= there(clone)


def test_state_of_a_finished_job_without_rungs_is_removed(clone: Clone) -> None:
    save(clone, CPT)
    left = ("features/tiny-esm/splice-donor/features-00000.safetensors", f"{CPT}/hairpin/eval/id/000000.json")
    write(clone, {f".work/{name}" for name in (*left, *(f"{Path(name).parent}/.lock" for name in left))})
    write(clone, {f".work/{CPT}/hairpin/eval/.lock"})
    write(clone, made(CONFIG))
    clean("--yes")
    assert there(clone) == made(CONFIG)


def test_state_of_a_job_that_is_not_published_stays(clone: Clone) -> None:
    state = save(clone, CPT) | save(clone, LADDER) | save(clone, f"{LADDER}/e2/rl-grpo")
    state |= save(clone, "features/tiny-esm/splice-donor", "features-00000.safetensors", rungs="[]")
    state |= save(clone, "encoders/tiny-esm") | save(clone, f"{CPT}/hairpin/eval", "id/0.parquet", rungs="[]")
    write(clone, {"data/hairpin/card.json"})
    clean("--yes", "--finished")
    assert state <= there(clone)


def test_state_after_the_last_published_rung_belongs_to_an_unfinished_run_and_stays(clone: Clone) -> None:
    write(clone, made(CONFIG))
    state = save(clone, CPT, LATER) | save(clone, LADDER, LATER)
    clean("--yes", "--finished")
    assert there(clone) == made(CONFIG) | state


def test_state_that_no_config_refers_to_is_removed_without_the_work_folders_inside_it(clone: Clone) -> None:
    """The work folder of an RL stage is inside that of the SFT stage that it starts from."""
    write(clone, made(CONFIG))
    kept = save(clone, f"{LADDER}/e2/rl-grpo", LATER)
    save(clone, f"{LADDER}/e2/rl-grpo/old")
    save(clone, "models/tiny/base/hairpin/s9/sft-brief")
    save(clone, f"{LADDER}/e4")  # of a schedule under which a rung is a run of its own
    save(clone, LADDER)
    clean("--yes", "--finished")
    assert there(clone) == made(CONFIG) | kept


# --- Temporary files, links, running processes ---


def test_temporary_files_of_a_killed_process_are_removed_after_a_while(clone: Clone) -> None:
    write(clone, made(CONFIG))
    target = clone.results / LADDER / "e2" / "checkpoint"
    program = (
        "import os, signal, sys; from pathlib import Path; from cisterna.artifacts import files\n"
        "with files.new_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'model.safetensors').write_bytes(b'x' * 1000); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program, str(target)], check=False)
    (left,) = target.parent.glob(".checkpoint.*")
    shutil.copytree(target, f"{left}.earlier")
    (target.parent / ".metrics.json.4711").write_text("{")
    clean("--yes")
    assert left.is_dir()
    for path in target.parent.glob(".*"):
        for old in (path, *path.rglob("*")):
            os.utime(old, (time.time() - 3600,) * 2)
    clean("--yes")
    assert there(clone) == made(CONFIG)


def test_links_are_not_followed_out_of_results(clone: Clone, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    for place in ("checkpoint", "base/checkpoint", "sft-old", ".work", ".checkpoint.abcdefgh"):
        (outside / place).mkdir(parents=True)
        (outside / place / "manifest.json").write_text("{}")
        (outside / place / ".lock").touch()
    everything = sorted(outside.rglob("*"))
    write(clone, made(CONFIG))
    (clone.results / "models" / "old").symlink_to(outside)
    (clone.results / "encoders" / "old").mkdir()
    (clone.results / "encoders" / "old" / "checkpoint").symlink_to(outside / "checkpoint")
    (clone.results / "models" / "tiny" / ".checkpoint.abcdefgh").symlink_to(outside / ".checkpoint.abcdefgh")
    (clone.results / "features" / "tiny-esm" / "new").symlink_to(outside)
    (clone.results / ".work").symlink_to(outside)
    shutil.rmtree(clone.results / "logs")
    (clone.results / "logs").symlink_to(outside)
    for path in (outside, *everything):
        os.utime(path, (0, 0))
    clean("--yes", "--finished")
    assert sorted(outside.rglob("*")) == everything
    assert (clone.results / "models" / "old").is_symlink()
    assert not (clone.results / "encoders" / "old").exists()


def test_results_on_another_disk_are_cleaned_through_their_link(clone: Clone, tmp_path: Path) -> None:
    write(clone, made(CONFIG) | {"models/old/base/checkpoint/manifest.json"})
    shutil.move(clone.results, tmp_path / "disk")
    clone.results.symlink_to(tmp_path / "disk")
    clean("--yes")
    assert there(Clone(clone.folder)) == made(CONFIG)
    assert clone.results.is_symlink()


def test_nothing_is_removed_while_a_stage_runs(clone: Clone, capsys: pytest.CaptureFixture[str]) -> None:
    old = {"models/old/base/checkpoint/manifest.json"}
    write(clone, made(CONFIG) | old)
    state = save(clone, "models/old/cpt-bio")
    program = (
        "import sys; from pathlib import Path; from cisterna.artifacts import work_folder\n"
        "with work_folder.locked(Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
    )
    work = Path("results/.work/models/old/cpt-bio")
    command = [sys.executable, "-c", program, str(work)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        clean("--yes", code=2)
        assert f"the stage of {work}" in capsys.readouterr().err
        assert there(clone) == made(CONFIG) | old | state
        clean()
        assert f"running here: the stage of {work}" in capsys.readouterr().out
        process.kill()
    clean("--yes")
    assert there(clone) == made(CONFIG)
