"""The tiny study of `clones`, run once for all tests of the workflow."""

import shutil
from pathlib import Path

import pytest

from clones import Clone, make


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The tiny study, run once. Read only: a test that changes anything takes `clone`."""
    clone = make(tmp_path_factory.mktemp("with a blank") / "study")
    clone.snakemake()
    return clone


@pytest.fixture
def clone(finished: Clone, tmp_path: Path) -> Clone:
    """A copy of the finished study, times of files included."""
    shutil.copytree(finished.folder, tmp_path / "study", symlinks=True)
    return Clone(tmp_path / "study")


@pytest.fixture
def untouched(tmp_path: Path) -> Clone:
    """The tiny study before anything is run."""
    return make(tmp_path / "study")
