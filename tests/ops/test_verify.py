"""`cisterna verify` names everything that is broken, and stages refuse a broken checkpoint."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cisterna import models
from cisterna.artifacts import checkpoint, files
from cisterna.cli import main
from cisterna.data.tokenized import tokenize_corpus
from cisterna.evaluation import evaluate
from cisterna.sequences import feature_bank
from clones import environment
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
    root = tmp_path_factory.mktemp("whole") / "results"
    shutil.copytree(base, root / BASE)
    shutil.copytree(esm, root / ENCODER)
    shutil.copytree(splice, root / DATA)
    publish(root / BASE, root / CHILD, adapted(root / BASE).save_pretrained)
    for seed, folder in enumerate(GRANDCHILDREN):
        publish(root / CHILD, root / folder, adapted(root / CHILD, seed).save_pretrained, "rl")
    feature_bank.build_for_task(root / ENCODER, root / DATA, READING, root / ".work" / BANK, root / BANK)
    tokenize_corpus(ROOT / "resources" / "corpora" / "rna.fasta.gz", "rna", root / BASE, root / TOKENS)
    evaluate.evaluate(root / BASE, root / DATA, root / EVALUATION, OPTIONS)
    for folder in (root / BASE, root / BANK):  # as Snakemake leaves folders
        (folder / ".snakemake_timestamp").touch()
    return root


@pytest.fixture
def results(whole: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return shutil.copytree(whole, tmp_path / "results")


@pytest.fixture
def broken(results: Path, capsys: pytest.CaptureFixture[str]) -> Callable:
    """Verify what must be broken: the lines on standard error, with paths relative to results/; the summary is last."""

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


def test_unbroken_results_pass_and_are_counted(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(whole)]) == 0
    output = capsys.readouterr()
    assert f"6 checkpoints and banks below {whole} " in output.out
    assert "3 other folders" in output.out
    assert output.err == ""


def test_one_checkpoint_is_verified_with_its_ancestors_and_no_others(
    results: Path, broken: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(results / GRANDCHILDREN[0])]) == 0
    assert "1 checkpoints and banks below" in (output := capsys.readouterr().out)
    assert "the 2 that they descend from" in output
    flip(results / BASE / "model.safetensors")
    first, _ = broken(results / GRANDCHILDREN[0])
    assert first.startswith(f"{BASE}/model.safetensors: its SHA-256")
    flip(results / GRANDCHILDREN[1] / "adapter_model.safetensors")  # not an ancestor
    assert broken(results / GRANDCHILDREN[0])[:-1] == [first]


def test_results_that_were_moved_or_linked_are_verified(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.move(results / "models", tmp_path / "big disk")
    (results / "models").symlink_to(tmp_path / "big disk")
    (tmp_path / "big disk" / "around").symlink_to(tmp_path / "big disk")
    monkeypatch.chdir(tmp_path)
    assert main(["verify"]) == 0
    assert "6 checkpoints and banks below results " in capsys.readouterr().out
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


@settings(max_examples=60)
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


def test_everything_that_is_broken_is_listed_at_once(results: Path, broken: Callable) -> None:
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


def test_broken_parent_is_named_once_with_the_number_of_its_descendants(results: Path, broken: Callable) -> None:
    manifest = results / BASE / "manifest.json"
    for spoil, start in (
        (lambda: manifest.write_text("["), f"{manifest.relative_to(results)}: "),
        (manifest.unlink, f"{BASE}: has no manifest.json"),
        (lambda: shutil.rmtree(results / BASE), f"{BASE}: missing. "),
    ):
        spoil()
        line, _ = broken()
        assert line.startswith(start)
        assert "(3 descend from it)" in line


def test_child_is_named_if_its_parent_was_made_again_and_its_own_children_are_counted(
    results: Path, broken: Callable
) -> None:
    models.make_base(backbone(seed=1), results / BASE)
    line, _ = broken()
    assert line.startswith(f"{CHILD}: trained from another version of {BASE} ")
    assert f"Delete {CHILD} and rerun (2 descend from it)" in line


def test_folder_without_a_manifest_is_named_even_if_it_is_empty(results: Path, broken: Callable) -> None:
    shutil.rmtree(results / GRANDCHILDREN[0])
    (results / GRANDCHILDREN[0]).mkdir()
    (results / BANK / "manifest.json").unlink()
    *lines, _ = broken()
    assert [line.split(" manifest.json")[0] for line in lines] == [f"{BANK}: has no", f"{GRANDCHILDREN[0]}: has no"]


def test_unfinished_checkpoint_of_a_killed_process_is_not_verified(results: Path) -> None:
    shutil.copytree(results / CHILD, results / CHILD.parent / ".checkpoint.abcdefgh")
    (results / CHILD.parent / ".checkpoint.abcdefgh" / "manifest.json").write_text("{")
    assert main(["verify", str(results)]) == 0


def test_table_of_another_length_than_the_metrics_say_is_named(results: Path, broken: Callable) -> None:
    shutil.copy(results / DATA / "train.parquet", results / EVALUATION / "id.parquet")
    line, _ = broken()
    assert line.startswith(f"{EVALUATION}/id.parquet: ")
    assert "64 rows, expected 24" in line


@pytest.mark.parametrize("name", ["nothing", "README.md", "empty"])
def test_path_without_anything_to_verify_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "README.md").write_text("x")
    (tmp_path / "empty").mkdir()
    assert main(["verify", str(tmp_path / name)]) == 2
    assert f"error: {tmp_path / name}: no " in capsys.readouterr().err


def test_progress_is_shown_on_a_terminal(whole: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    command = [sys.executable, "-m", "cisterna", "verify", str(whole)]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment(), check=True)
    os.set_blocking(ours, False)
    assert b"B/s]" in os.read(ours, 4096)
    os.close(theirs)
    os.close(ours)


# --- A broken checkpoint is not loaded ---


@pytest.mark.parametrize("command", ["evaluate", "sft"])
def test_checkpoint_with_a_broken_ancestor_is_not_loaded(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """What else is refused: tests/artifacts/test_checkpoint.py."""
    flip(results / BASE / "model.safetensors")
    run = Run("sft", results / CHILD, results / DATA, tmp_path / "sft-b", SFT)
    paths = ["--checkpoint", str(results / CHILD), "--data", str(results / DATA), "--output", str(run.output)]
    evaluation = ["evaluate", *paths, "--options", json.dumps(OPTIONS)]
    assert main(evaluation if command == "evaluate" else run.arguments) == 2
    assert f"error: {results / BASE / 'model.safetensors'}: " in capsys.readouterr().err
    assert not run.output.exists()
