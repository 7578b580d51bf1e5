"""`cisterna verify` names all that is broken; `cisterna clean` removes what is of no use and nothing else."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cisterna import models, study
from cisterna.artifacts import checkpoint, files
from cisterna.cli import main
from cisterna.data import corpus
from cisterna.evaluation import evaluate
from cisterna.sequences import feature_bank
from clones import CONFIG, Clone, Config, edited, environment, make
from runs import SFT, Run
from tiny import READING, ROOT, adapted, backbone, publish

BASE = Path("models/tiny/base/checkpoint")
CHILD = Path("models/tiny/base/splice-donor/s0/sft-a/e1/checkpoint")
GRANDCHILDREN = [CHILD.parent / f"rl-{name}" / "e1" / "checkpoint" for name in ("a", "b")]
ENCODER = Path("encoders/tiny-esm/checkpoint")
BANK = Path("features/tiny-esm/splice-donor")
DATA = Path("data/splice-donor")
TOKENS = Path("tokens/tiny/rna")
EVALUATION = Path("models/tiny/base/splice-donor/eval")
OPTIONS = {"max_new_tokens": 2, "batch_size": 64, "bootstrap": 10}


@pytest.fixture(scope="module")
def whole(base: Path, esm: Path, splice: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder results/ with a lineage of four checkpoints, an encoder, its bank, data, tokens, an evaluation."""
    root = tmp_path_factory.mktemp("integrity") / "results"
    shutil.copytree(base, root / BASE)
    shutil.copytree(esm, root / ENCODER)
    shutil.copytree(splice, root / DATA)
    publish(root / BASE, root / CHILD, adapted(root / BASE).save_pretrained)
    for seed, folder in enumerate(GRANDCHILDREN):
        publish(root / CHILD, root / folder, adapted(root / CHILD, seed).save_pretrained, "rl")
    feature_bank.build_for_task(root / ENCODER, root / DATA, READING, root / ".work" / BANK, root / BANK)
    corpus.tokenize(ROOT / "resources" / "corpora" / "rna.fasta.gz", "rna", root / BASE, root / TOKENS)
    evaluate.evaluate(root / BASE, root / DATA, root / EVALUATION, OPTIONS)
    for folder in (root / BASE, root / BANK):  # as Snakemake leaves folders
        (folder / ".snakemake_timestamp").touch()
    return root


@pytest.fixture
def results(whole: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return shutil.copytree(whole, tmp_path / "results")


@pytest.fixture
def broken(results: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Verify what must be broken: the lines on standard error, without the results' own path, and the summary last."""

    def verify(path: Path = results) -> list[str]:
        capsys.readouterr()
        assert main(["verify", str(path)]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        lines = output.err.replace(f"{results}/", "").splitlines()
        assert lines[-1].startswith("error: ")
        return lines

    return verify


def flip(path: Path, position: int = -1, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


# --- verify ---


def test_whole_results_are_said_to_be_whole(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(results)]) == 0
    output = capsys.readouterr()
    assert f"6 checkpoints and banks below {results} are whole" in output.out
    assert "3 other folders are complete and readable" in output.out
    assert output.err == ""


def test_one_checkpoint_is_verified_with_all_that_it_descends_from(
    results: Path, broken: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(results / GRANDCHILDREN[0])]) == 0
    assert "1 checkpoints and banks below" in (said := capsys.readouterr().out)
    assert "and the 2 that they descend from" in said
    flip(results / BASE / "model.safetensors")
    first, _ = broken(results / GRANDCHILDREN[0])
    assert first.startswith(f"{BASE}/model.safetensors: its SHA-256 is not the one in the manifest. Delete {BASE}")
    flip(results / GRANDCHILDREN[1] / "adapter_model.safetensors")  # neither asked for nor descended from
    assert broken(results / GRANDCHILDREN[0])[:-1] == [first]


def test_results_that_were_moved_or_linked_are_verified(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.move(results / "models", tmp_path / "big disk")
    (results / "models").symlink_to(tmp_path / "big disk")
    (tmp_path / "big disk" / "around").symlink_to(tmp_path / "big disk")
    monkeypatch.chdir(tmp_path)
    assert main(["verify"]) == 0
    assert "6 checkpoints and banks below results are whole" in capsys.readouterr().out
    flip(results / CHILD / "adapter_model.safetensors")
    assert main(["verify"]) == 2
    assert f"results/{CHILD}/adapter_model.safetensors: its SHA-256" in capsys.readouterr().err


@pytest.fixture(scope="module")
def hashed(whole: Path) -> list[Path]:
    """Every file whose bytes verify knows."""
    manifests = [path.parent for path in whole.rglob("manifest.json")]
    names = [folder / name for folder in manifests for name in checkpoint.read_manifest(folder)["files"]]
    splits = [whole / DATA / f"{split}.parquet" for split in ("train", "validation", "id", "ood")]
    return sorted(
        path.relative_to(whole) for path in [*names, *splits, *(folder / "manifest.json" for folder in manifests)]
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_any_flipped_bit_is_found_and_its_file_named(
    whole: Path, hashed: list[Path], capsys: pytest.CaptureFixture[str], draw: st.DataObject
) -> None:
    path = draw.draw(st.sampled_from(hashed))
    content = (whole / path).read_bytes()
    position = draw.draw(st.integers(0, len(content) - 1))
    capsys.readouterr()
    try:
        flip(whole / path, position, draw.draw(st.integers(0, 7)))
        assert main(["verify", str(whole)]) == 2
    finally:
        (whole / path).write_bytes(content)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"{whole / path}: ")
    assert len({line.split(": ")[0] for line in lines[:-1]}) == 1
    assert " rerun" in lines[0]
    assert lines[-1].startswith("error: 1 of ")


def test_everything_that_is_broken_is_listed_at_once(results: Path, broken: Callable[..., list[str]]) -> None:
    flip(results / GRANDCHILDREN[0] / "adapter_model.safetensors")
    (results / GRANDCHILDREN[1] / "notes.txt").write_text("x")
    (results / CHILD / "adapter_config.json").unlink()
    manifest = results / ENCODER / "manifest.json"
    files.write_json(manifest, files.read_json(manifest) | {"seed": 7})
    (results / BANK / "index.arrow").write_bytes((results / BANK / "index.arrow").read_bytes()[:-1])
    (results / DATA / "ood.parquet").write_bytes((results / DATA / "ood.parquet").read_bytes()[:-9])
    (results / EVALUATION / "id.parquet").unlink()
    (results / EVALUATION / "metrics.json").write_text("{")
    (results / TOKENS / "train.npy").write_bytes((results / TOKENS / "train.npy").read_bytes()[:-4])
    expected = {
        DATA / "ood.parquet": "cannot be read",
        ENCODER / "manifest.json": "edited after it was written",
        BANK / "index.arrow": "its SHA-256",
        CHILD / "adapter_config.json": "missing; the manifest lists it",
        GRANDCHILDREN[0] / "adapter_model.safetensors": "its SHA-256",
        GRANDCHILDREN[1] / "notes.txt": "the manifest does not list it",
        EVALUATION / "id.parquet": "missing",
        EVALUATION / "metrics.json": "cannot be read",
        TOKENS / "train.npy": "cannot be read",
    }
    *lines, summary = broken()
    for path, what in expected.items():
        assert len([line for line in lines if line.startswith(f"{path}: {what}")]) == 1, path
    assert len(lines) == len(expected)
    assert all(re.search(r"[Dd]elete \S+ and rerun|Move it elsewhere", line) for line in lines)
    assert summary == "error: 8 of 9 checkpoints, banks and other folders are broken"


def test_broken_parent_is_said_once_with_how_many_descend_from_it(
    results: Path, broken: Callable[..., list[str]]
) -> None:
    (results / BASE / "manifest.json").write_text("[")
    line, _ = broken()
    assert line.startswith(f"{BASE}/manifest.json: not valid JSON")
    assert line.endswith("(3 descend from it)")
    (results / BASE / "manifest.json").unlink()
    line, _ = broken()
    assert line == f"{BASE}: has no manifest.json. Delete it and rerun (3 descend from it)"
    shutil.rmtree(results / BASE)
    line, _ = broken()
    assert line.startswith(f"{BASE}: missing. Put it back, or build it with: snakemake --cores 1 ")
    assert line.endswith("(3 descend from it)")


def test_child_of_a_parent_made_anew_is_named_and_its_own_children_only_counted(
    results: Path, broken: Callable[..., list[str]]
) -> None:
    models.make_base(backbone(seed=1), results / BASE)
    line, _ = broken()
    assert line.startswith(f"{CHILD}: trained from another version of {BASE} (identity ")
    assert line.endswith(f"Delete {CHILD} and rerun (2 descend from it)")


def test_folder_in_place_of_a_checkpoint_is_named_also_if_it_is_empty(
    results: Path, broken: Callable[..., list[str]]
) -> None:
    shutil.rmtree(results / GRANDCHILDREN[0])
    (results / GRANDCHILDREN[0]).mkdir()
    (results / BANK / "manifest.json").unlink()
    *lines, _ = broken()
    assert lines == [
        f"{folder}: has no manifest.json. Delete it and rerun" for folder in sorted([BANK, GRANDCHILDREN[0]])
    ]


def test_what_a_killed_process_left_is_not_verified(results: Path) -> None:
    shutil.copytree(results / CHILD, results / CHILD.parent / ".checkpoint.abcdefgh")
    (results / CHILD.parent / ".checkpoint.abcdefgh" / "manifest.json").write_text("{")
    assert main(["verify", str(results)]) == 0


def test_evaluation_of_other_counts_than_its_table_is_named(results: Path, broken: Callable[..., list[str]]) -> None:
    shutil.copy(results / DATA / "train.parquet", results / EVALUATION / "id.parquet")
    line, _ = broken()
    assert line.startswith(f"{EVALUATION}/id.parquet: holds 64 rows, expected 24.")


@pytest.mark.parametrize("what", ["nothing", "README.md"])
def test_path_without_anything_to_verify_is_refused(
    results: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    (results / "README.md").write_text("x")
    assert main(["verify", str(results / what)]) == 2
    assert f"{results / what}: no such folder" in capsys.readouterr().err
    (results / "empty").mkdir()
    assert main(["verify", str(results / "empty")]) == 2
    assert f"{results / 'empty'}: no checkpoints" in capsys.readouterr().err


def test_progress_is_shown_on_a_terminal_alone(results: Path) -> None:
    command = [sys.executable, "-m", "cisterna", "verify", str(results)]
    assert subprocess.run(command, capture_output=True, env=environment(), check=True).stderr == b""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment(), check=True)
    os.set_blocking(ours, False)
    assert b"B/s]" in os.read(ours, 4096)
    os.close(theirs)
    os.close(ours)


# --- A broken checkpoint is not loaded ---


def stray_weights(results: Path) -> Path:
    return shutil.copy(results / BASE / "model.safetensors", results / CHILD / "model.safetensors")


def stray_file(results: Path) -> Path:
    path = results / CHILD / "generation_config.json"  # which a library would read
    path.write_text("{}")
    return path


def flipped_ancestor(results: Path) -> Path:
    flip(results / BASE / "model.safetensors")
    return results / BASE / "model.safetensors"


def edited_manifest(results: Path) -> Path:
    path = results / CHILD / "manifest.json"
    files.write_json(path, files.read_json(path) | {"seed": 1})
    return path


BREAK = [stray_weights, stray_file, flipped_ancestor, edited_manifest]


@pytest.mark.parametrize("spoil", BREAK, ids=lambda spoil: spoil.__name__)
def test_evaluate_refuses_a_broken_checkpoint(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], Path]
) -> None:
    path = spoil(results)
    arguments = ["--checkpoint", str(results / CHILD), "--data", str(results / DATA), "--options", json.dumps(OPTIONS)]
    assert main(["evaluate", *arguments, "--output", str(tmp_path / "eval")]) == 2
    assert f"error: {path}: " in capsys.readouterr().err
    assert not (tmp_path / "eval").exists()


@pytest.mark.parametrize("spoil", BREAK, ids=lambda spoil: spoil.__name__)
def test_sft_refuses_a_broken_parent(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], Path]
) -> None:
    path = spoil(results)
    run = Run("sft", results / CHILD, results / DATA, tmp_path / "sft-b", SFT)
    assert main(run.command()[3:]) == 2
    assert f"error: {path}: " in capsys.readouterr().err
    assert not run.output.exists()


# --- clean ---


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """The folder of the tiny study, before anything is run; the tests work in it."""
    clone = make(tmp_path / "study")
    monkeypatch.chdir(clone.folder)
    return clone


def made(config: Config) -> set[str]:
    """What the jobs of a study write, without what is inside of folders; relative to results/."""
    expanded = study.load(config)
    jobs = {f"data/{task}/{name}" for task in expanded.tasks for name in ("train.parquet", "card.json")}
    jobs |= {f"baselines/{task}/metrics.json" for task in expanded.tasks}
    jobs |= {f"tokens/{backbone}/{corpus}/train.npy" for backbone, corpus in expanded.tokenized}
    jobs |= {f"encoders/{encoder}/checkpoint/manifest.json" for encoder in expanded.encoders}
    jobs |= {f"features/{encoder}/{task}/manifest.json" for encoder, task in expanded.banks}
    jobs |= {f"studies/{expanded.name}/{name}" for name in ("metrics.parquet", "figures/table.html", "findings.json")}
    for model in expanded.models:
        jobs |= {f"{model.path}/checkpoint/manifest.json", f"logs/{model.path}.log", f"benchmarks/{model.path}.tsv"}
        jobs |= {f"{model.path}/perplexity.json"} if model.task is None else set()
    for folder, _, _ in expanded.evaluations():
        jobs |= {f"{folder}/metrics.json", f"logs/{folder}.log", f"benchmarks/{folder}.tsv"}
    return jobs


def write(clone: Clone, names: Iterable[str]) -> None:
    for name in names:
        path = clone.results / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


def there(clone: Clone) -> set[str]:
    return {str(path.relative_to(clone.results)) for path in clone.results.rglob("*") if path.is_file()}


def save(clone: Clone, work: str, state: str = "checkpoint-16/model.safetensors", rungs: str = "[16]") -> set[str]:
    """State as a stage leaves it in its work folder, and in which steps its published rungs ended; the files."""
    names = {f".work/{work}/{name}" for name in (state, "rungs.json", ".lock")}
    write(clone, names)
    (clone.results / ".work" / work / "rungs.json").write_text(rungs)
    return names


def clean(*arguments: str, code: int = 0) -> None:
    assert main(["clean", *arguments]) == code


def test_study_of_the_config_is_kept_whole(clone: Clone, capsys: pytest.CaptureFixture[str]) -> None:
    write(clone, made(CONFIG))
    clean("--yes", "--finished")
    assert there(clone) == made(CONFIG)
    assert "nothing to remove" in (said := capsys.readouterr().out)
    assert "configs: config/config.yaml (study tiny)" in said


@st.composite
def studies(draw: st.DrawFn) -> Config:
    """The tiny study with fewer lineages, rungs, recipes or forms."""
    config = edited(study=draw(st.sampled_from(["tiny", "other"])))
    config["lineages"] = draw(st.lists(st.sampled_from(CONFIG["lineages"]), min_size=1, max_size=2, unique_by=id))
    config["recipes"]["sft"]["brief"]["epochs"] = draw(st.sampled_from([[1, 2, 4], [1, 2], [2, 4], [2]]))
    config["tasks"]["splice-donor"]["sequences"] = draw(st.sampled_from([["tokens"], ["features"], ["tokens", "both"]]))
    config["seeds"] = draw(st.sampled_from([[0], [0, 1], [1]]))
    return config


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ours=studies(), theirs=studies())
def test_what_no_given_config_refers_to_goes_and_nothing_else(clone: Clone, ours: Config, theirs: Config) -> None:
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
    assert "no config refers to it\n   2.00MB  results/models/tiny/base/hairpin/s0/sft-old\n" in (
        said := capsys.readouterr().out
    )
    assert said.endswith("\n1 entry, 2.00MB may go; --yes removes them\n")
    assert old.is_dir()


def test_files_of_the_users_own_stay(clone: Clone) -> None:
    clone.write(edited(corpora__rna__file="results/models/ours/rna.fasta"))
    shutil.copy(clone.folder / "tables" / "some rna.fasta", clone.folder / "rna.fasta")
    own = {"notes.txt", "mine/table.csv", "models/notes.md", "models/ours/rna.fasta", "logs/slurm/1.log", "report.html"}
    write(clone, made(CONFIG) | own | {"models/ours/base/checkpoint/manifest.json"})
    clean("--yes", "--finished")
    assert there(clone) == made(CONFIG) | own


def test_config_that_is_not_valid_removes_nothing(clone: Clone, capsys: pytest.CaptureFixture[str]) -> None:
    write(clone, {"models/old/base/checkpoint/manifest.json"})
    (clone.folder / "bad.yaml").write_text("study: x\n")
    for config in ("bad.yaml", "missing.yaml"):
        clean("--config", "config/config.yaml", config, "--yes", code=2)
        assert config in capsys.readouterr().err
    assert there(clone) == {"models/old/base/checkpoint/manifest.json"}


def test_without_results_it_says_where_to_run(clone: Clone, capsys: pytest.CaptureFixture[str]) -> None:
    clean(code=2)
    assert "results: no such folder here" in capsys.readouterr().err


# State


HAIRPIN = "models/tiny/base/hairpin/s0/sft-brief"
CPT = "models/tiny/cpt-bio"


def test_state_of_a_ladder_goes_only_when_told_that_it_is_finished(
    clone: Clone, capsys: pytest.CaptureFixture[str]
) -> None:
    state = save(clone, HAIRPIN)
    write(clone, made(CONFIG))
    (clone.results / ".work" / HAIRPIN / "e4").mkdir()  # where an evaluation was under way
    clean("--yes")
    assert there(clone) == made(CONFIG) | state
    assert "of use only to add rungs (stays without --finished)" in (said := capsys.readouterr().out)
    assert "1 entry, 8.00B more with --finished" in said
    clean("--yes", "--finished")
    assert there(clone) == made(CONFIG)
    assert not (clone.results / ".work").exists()


def test_state_of_a_ladder_with_a_rung_to_come_stays(clone: Clone) -> None:
    state = save(clone, HAIRPIN)
    write(clone, made(CONFIG))
    clone.write(edited(recipes__sft__brief__epochs=[1, 2, 4, 8]))
    clean("--yes", "--finished")
    assert state <= there(clone)


def test_state_of_a_finished_stage_without_rungs_goes(clone: Clone) -> None:
    save(clone, CPT)
    left = ("features/tiny-esm/splice-donor/features-00000.safetensors", f"{CPT}/hairpin/eval/id/000000.json")
    write(clone, {f".work/{name}" for name in (*left, *(f"{Path(name).parent}/.lock" for name in left))})
    write(clone, {f".work/{CPT}/hairpin/eval/.lock"})
    write(clone, made(CONFIG))
    clean("--yes")
    assert there(clone) == made(CONFIG)


def test_state_of_a_stage_that_is_not_published_stays(clone: Clone) -> None:
    state = save(clone, CPT) | save(clone, HAIRPIN) | save(clone, f"{HAIRPIN}/e2/rl-grpo")
    state |= save(clone, "features/tiny-esm/splice-donor", "features-00000.safetensors", rungs="[]")
    state |= save(clone, "encoders/tiny-esm") | save(clone, f"{CPT}/hairpin/eval", "id/0.parquet", rungs="[]")
    write(clone, {"data/hairpin/card.json"})
    clean("--yes", "--finished")
    assert state <= there(clone)


def test_state_of_no_published_rung_is_of_a_run_under_way_and_stays(clone: Clone) -> None:
    write(clone, made(CONFIG))
    state = save(clone, CPT, "checkpoint-20/model.safetensors") | save(
        clone, HAIRPIN, "checkpoint-20/model.safetensors"
    )
    clean("--yes", "--finished")
    assert there(clone) == made(CONFIG) | state


def test_state_of_a_stage_that_no_config_refers_to_goes_without_what_lies_below_it(clone: Clone) -> None:
    """The work folder of an RL stage lies below that of the SFT stage that it starts from."""
    write(clone, made(CONFIG))
    kept = save(clone, f"{HAIRPIN}/e2/rl-grpo", "checkpoint-20/model.safetensors")
    save(clone, f"{HAIRPIN}/e2/rl-grpo/old")
    save(clone, "models/tiny/base/hairpin/s9/sft-brief")
    save(clone, f"{HAIRPIN}/e4")  # of a schedule under which a rung is a run of its own
    save(clone, HAIRPIN)
    clean("--yes", "--finished")
    assert there(clone) == made(CONFIG) | kept


# Left by killed processes


def test_what_a_process_killed_while_publishing_left_goes_once_it_is_quiet(clone: Clone) -> None:
    write(clone, made(CONFIG))
    target = clone.results / HAIRPIN / "e2" / "checkpoint"
    program = (
        "import sys, time; from pathlib import Path; from cisterna.artifacts import files\n"
        "with files.new_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'model.safetensors').write_bytes(b'x' * 1000); print('written', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(target)], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        process.kill()
    (left,) = target.parent.glob(".checkpoint.*")
    os.replace(shutil.copytree(target, left.with_name(f"{left.name}.copy")), f"{left}.earlier")
    (target.parent / ".metrics.json.4711").write_text("{")
    clean("--yes")
    assert left.is_dir()
    for path in (left, *left.iterdir(), *target.parent.glob(".*")):
        os.utime(path, (time.time() - 3600,) * 2)
    for path in Path(f"{left}.earlier").iterdir():
        os.utime(path, (time.time() - 3600,) * 2)
    clean("--yes")
    assert there(clone) == made(CONFIG)


# Links


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


# Never while something runs


def test_nothing_is_removed_while_a_stage_runs(clone: Clone, capsys: pytest.CaptureFixture[str]) -> None:
    old = {"models/old/base/checkpoint/manifest.json"}
    write(clone, made(CONFIG) | old)
    state = save(clone, "models/old/cpt-bio")
    program = (
        "import sys, time; from pathlib import Path; from cisterna.artifacts import files\n"
        "with files.lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    work = Path("results/.work/models/old/cpt-bio")
    with subprocess.Popen([sys.executable, "-c", program, str(work)], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        clean("--yes", code=2)
        assert f"nothing is removed while something runs here: the stage of {work}" in capsys.readouterr().err
        assert there(clone) == made(CONFIG) | old | state
        clean()
        assert f"running here: the stage of {work}" in capsys.readouterr().out
        process.kill()
    clean("--yes")
    assert there(clone) == made(CONFIG)
