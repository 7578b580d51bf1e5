"""The tiny study of `clones` for tests that change it."""

import shutil
from pathlib import Path

import pytest

from clones import Clone, make


@pytest.fixture
def clone(finished: Clone, tmp_path: Path) -> Clone:
    """A copy of the finished study, times of files included."""
    shutil.copytree(finished.folder, tmp_path / "study", symlinks=True)
    return Clone(tmp_path / "study")


@pytest.fixture
def untouched(tmp_path: Path) -> Clone:
    """The tiny study before anything is run."""
    return make(tmp_path / "study")
