"""Files and folders are whole or absent, whatever ends the process that writes them."""

import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cisterna.artifacts import files

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
WRITER = """
import os, signal, sys
from pathlib import Path
from cisterna.artifacts import files
with files.new_folder(Path(sys.argv[1])) as folder:
    (folder / "first").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_only_when_its_block_ends_well(tmp_path):
    path = tmp_path / "a.txt"
    for text in ("old", "new"):
        with files.replacing(path) as temporary:
            assert temporary.parent == path.parent  # the same file system, so that the rename is one step
            temporary.write_text(text)
    with pytest.raises(KeyError), files.replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise KeyError
    assert names(tmp_path) == ["a.txt"]
    assert path.read_text() == "new"


def test_a_new_folder_appears_or_replaces_the_earlier_one_only_when_its_block_has_ended(tmp_path):
    target = tmp_path / "deep" / "target"
    for name, earlier in (("old", []), ("new", ["old"])):
        with files.new_folder(target) as folder:
            (folder / name).write_text(name)
            assert (names(target) if target.exists() else []) == earlier
            assert folder.parent == target.parent  # the same file system, so that the rename is one step
        assert names(target) == [name]
        assert names(target.parent) == ["target"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_block_that_raises_leaves_nothing_and_keeps_the_earlier_folder(tmp_path, error):
    with files.new_folder(tmp_path / "target") as folder:
        (folder / "old").write_text("old")
    for target in ("target", "other"):
        with pytest.raises(error), files.new_folder(tmp_path / target) as folder:  # noqa: PT012
            (folder / "new").write_text("half")
            raise error
    assert names(tmp_path) == ["target"]
    assert names(tmp_path / "target") == ["old"]


def test_a_killed_writer_leaves_the_earlier_folder(tmp_path):
    with files.new_folder(tmp_path / "target") as folder:
        (folder / "old").write_text("old")
    ended = subprocess.run([sys.executable, "-c", WRITER, str(tmp_path / "target")], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert names(tmp_path / "target") == ["old"]


def test_leftovers_of_a_killed_process_are_removed_and_those_of_another_folder_are_not(tmp_path):
    for name in ("target", "target.more"):
        killed = subprocess.run([sys.executable, "-c", WRITER, str(tmp_path / name)], check=False)
        assert killed.returncode == -signal.SIGKILL
    left, others = sorted(names(tmp_path), key=len)
    (tmp_path / f"{left}.earlier").mkdir()
    (tmp_path / "target").mkdir()
    files.remove_leftovers(tmp_path / "target")
    assert names(tmp_path) == sorted([others, "target"])


def test_a_file_in_the_place_of_a_folder_is_kept(tmp_path):
    (tmp_path / "target").write_text("mine")
    with pytest.raises(OSError), files.new_folder(tmp_path / "target"):  # noqa: PT011
        pass
    assert names(tmp_path) == ["target"]
    assert (tmp_path / "target").read_text() == "mine"


def test_json_that_cannot_be_written_keeps_the_earlier_file(tmp_path):
    path = tmp_path / "deep" / "a.json"
    files.write_json(path, {"b": 1, "a": [1.5, None]})
    for broken in (float("nan"), {1, 2}):
        with pytest.raises((ValueError, TypeError)):
            files.write_json(path, {"broken": broken})
    assert files.read_json(path) == {"b": 1, "a": [1.5, None]}
    assert names(path.parent) == ["a.json"]


@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=4))
def test_a_digest_is_of_the_value_and_not_of_the_order_of_its_keys(value):
    assert files.digest(value) == files.digest(dict(reversed(value.items())))
    assert files.digest(value) != files.digest(value | {"one more": 1})


def test_a_sha256_is_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")  # the example of FIPS 180-2, appendix B.1
    assert files.sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
