"""A checkpoint that was touched, or whose parent is another one, is refused by name."""

import json
import shutil
from pathlib import Path

import pytest

from cisterna import cli, models
from cisterna.artifacts import checkpoint, files
from cisterna.errors import UserError
from tiny import adapted, backbone, publish

PARENT = "tiny/base/checkpoint"
CHILD = "tiny/base/task/s0/sft-a/e1/checkpoint"


@pytest.fixture(scope="module")
def lineage(base, tmp_path_factory):
    """A base and an adapter trained from it, below one folder, as results/models is laid out. Read only."""
    root = tmp_path_factory.mktemp("lineage") / "models"
    parent = Path(shutil.copytree(base, root / PARENT))
    publish(parent, root / CHILD, adapted(parent).save_pretrained)
    return root


@pytest.fixture
def checkpoints(lineage, tmp_path):
    """A copy of the lineage to break: the base's folder and the child's."""
    root = shutil.copytree(lineage, tmp_path / "models")
    return root / PARENT, root / CHILD


def refused(folder, message):
    with pytest.raises(UserError, match=message) as caught:
        checkpoint.verify(folder)
    with pytest.raises(UserError) as composed:
        models.compose(folder)
    assert str(composed.value) == str(caught.value)
    return str(caught.value)


def test_a_whole_lineage_is_verified_also_after_it_was_moved(checkpoints, tmp_path, monkeypatch):
    parent, child = checkpoints
    assert [path for path, _ in checkpoint.lineage(child)] == [parent, child]
    shutil.move(tmp_path / "models", tmp_path / "elsewhere")
    moved = tmp_path / "elsewhere" / child.relative_to(tmp_path / "models")
    assert [manifest["kind"] for _, manifest in checkpoint.lineage(moved)] == ["base", "sft"]
    monkeypatch.chdir(moved.parents[1])
    assert len(checkpoint.lineage(moved.relative_to(moved.parents[1]))) == 2
    assert models.base_of(moved) == tmp_path / "elsewhere" / parent.relative_to(tmp_path / "models")


def test_a_manifest_lists_every_file_with_its_hash(checkpoints):
    for folder in checkpoints:
        manifest = checkpoint.read_manifest(folder)
        assert set(manifest["files"]) == {path.name for path in folder.iterdir()} - {"manifest.json"}
        assert manifest["files"] == {name: files.sha256(folder / name) for name in manifest["files"]}
        assert set(manifest["provenance"]["packages"]) >= {"torch", "transformers", "trl", "peft", "cisterna"}


def test_only_safetensors_hold_weights(checkpoints):
    for folder in checkpoints:
        suffixes = {path.suffix for path in folder.iterdir()}
        assert ".safetensors" in suffixes
        assert suffixes <= {".safetensors", ".json", ".md", ".jinja"}


@pytest.mark.parametrize("which", [0, 1], ids=["base", "adapter"])
def test_each_flipped_byte_truncated_or_missing_file_is_named(checkpoints, which):
    folder = checkpoints[which]
    for name in checkpoint.read_manifest(folder)["files"]:
        path = folder / name
        whole = path.read_bytes()
        for broken in (whole[:-1], whole + b"\0", bytes([whole[0] ^ 1]) + whole[1:]):
            path.write_bytes(broken)
            assert str(path) in refused(folder, "SHA-256 is not the one in the manifest")
        path.unlink()
        assert str(path) in refused(folder, "missing; the manifest lists it")
        path.write_bytes(whole)
    checkpoint.verify(folder)


def test_a_broken_ancestor_is_found_from_its_child(checkpoints):
    parent, child = checkpoints
    (parent / "model.safetensors").write_bytes((parent / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(UserError, match=str(parent / "model.safetensors")):
        models.compose(child)


@pytest.mark.parametrize("name", ["model.safetensors", "generation_config.json", ".hidden", "templates/chat.jinja"])
def test_files_that_the_manifest_does_not_list_are_refused(checkpoints, name):
    stray = checkpoints[1] / name
    stray.parent.mkdir(exist_ok=True)
    shutil.copy(checkpoints[0] / "config.json", stray)
    assert str(checkpoints[1] / name.split("/")[0]) in refused(checkpoints[1], "the manifest does not list")


def test_folders_that_a_library_writes_are_part_of_the_checkpoint(base, tmp_path):
    def save(folder):
        (folder / "templates").mkdir()
        (folder / "templates" / "chat.jinja").write_text("a")

    child = publish(base, tmp_path / "child", save)
    assert set(checkpoint.verify(child)["files"]) == {"templates/chat.jinja"}
    (child / "templates" / "chat.jinja").write_text("b")
    with pytest.raises(UserError, match=str(child / "templates" / "chat.jinja")):
        checkpoint.verify(child)


def test_what_snakemake_puts_into_a_checkpoint_is_no_stray_file(checkpoints):
    for folder in checkpoints:
        (folder / ".snakemake_timestamp").touch()
    assert len(checkpoint.lineage(checkpoints[1])) == 2


@pytest.mark.parametrize(
    "edit",
    [
        {"seed": 1},
        {"recipe": {"learning_rate": 0.5}},
        {"parent": None},
        {"files": {}},
        {"trained": {"steps": 2}},
        {"data": {}},
        {"kind": "rl"},
        {"identity": "0" * 64},
        {"measured": {"seconds": 2.0}},
        {"provenance": {}},
        {"seal": "0" * 64},
        {"note": "x"},
    ],
    ids=lambda edit: next(iter(edit)),
)
def test_an_edited_manifest_is_refused(checkpoints, edit):
    path = checkpoints[1] / "manifest.json"
    files.write_json(path, json.loads(path.read_text()) | edit)
    assert str(path) in refused(checkpoints[1], "edited after it was written")


@pytest.mark.parametrize("change", ["new-seal", "other-bytes", "nan"])
def test_a_manifest_edited_with_care_is_refused(checkpoints, change):
    path = checkpoints[1] / "manifest.json"
    manifest = json.loads(path.read_text())
    if change == "new-seal":
        edited = manifest | {"seed": 1}
        del edited["seal"]
        files.write_json(path, edited | {"seal": files.digest(edited)})
    elif change == "other-bytes":
        path.write_text(path.read_text() + "\n")
    else:
        path.write_text(json.dumps(manifest | {"measured": {"seconds": float("nan")}}, indent=1, sort_keys=True) + "\n")
    assert str(path) in refused(checkpoints[1], "edited after it was written")


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_manifest_that_is_no_manifest_is_refused(checkpoints, content):
    (checkpoints[1] / "manifest.json").write_text(content)
    refused(checkpoints[1], r"manifest\.json: not")


def test_a_folder_without_a_manifest_is_no_checkpoint(checkpoints):
    (checkpoints[1] / "manifest.json").unlink()
    refused(checkpoints[1], "not a checkpoint")


def test_a_parent_made_anew_in_another_version_is_refused(checkpoints):
    parent, child = checkpoints
    models.make_base(backbone(seed=1), parent)
    assert str(parent) in refused(child, "trained from another version of")


def test_a_missing_parent_is_named(checkpoints):
    parent, child = checkpoints
    identity = checkpoint.read_manifest(parent)["identity"]
    shutil.rmtree(parent)
    assert f"expected the checkpoint {parent} (identity {identity[:12]})" in refused(child, "its parent is missing")


def test_a_checkpoint_that_was_copied_alone_says_which_parent_it_needs(checkpoints, tmp_path, capsys):
    alone = shutil.copytree(checkpoints[1], tmp_path / "alone" / "checkpoint")
    (tmp_path / "new.csv").write_text("sequence\nACGGUACGU\n")
    words = ["predict", str(alone), "--input", str(tmp_path / "new.csv"), "--output", str(tmp_path / "out.csv")]
    files.write_json(alone / "inputs.json", {"encoder": None, "task": "splice-donor", "spec": {}, "labels": ["a", "b"]})
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {alone}: its parent is missing")
    assert "cisterna export" in error
    assert len(error.splitlines()) == 1


def test_identity_leaves_out_what_was_measured_and_nothing_else(base, tmp_path):
    facts = {"kind": "sft", "parent": base, "recipe": {"a": 1}, "seed": 0, "data": {"train": "1"}}
    facts |= {"trained": {"steps": 1}, "measured": {"seconds": 1.0}}

    def identity(content="weights", **changes):
        with files.new_folder(tmp_path / "child") as folder:
            (folder / "adapter_model.safetensors").write_text(content)
            return checkpoint.write_manifest(folder, published=tmp_path / "child", **facts | changes)["identity"]

    first = identity()
    assert identity(measured={"seconds": 2.0}) == first
    changes = {"content": "other", "kind": "rl", "parent": None, "recipe": {"a": 2}, "seed": 1}
    changes |= {"data": {"train": "2"}, "trained": {"steps": 2}}
    assert len({first, *(identity(**{name: value}) for name, value in changes.items())}) == 8
