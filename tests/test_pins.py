"""pyproject.toml, requirements.lock and the conda environment install the same versions."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = sorted((ROOT / "workflow" / "envs").glob("*.yaml"))


def pins(requirements: list[str]) -> dict[str, str]:
    """Name (as the package index normalises it) to version; fails on anything but NAME==VERSION."""
    found = {}
    for requirement in requirements:
        name, separator, number = requirement.partition("==")
        assert separator, f"{requirement!r} is not an exact pin"
        assert re.fullmatch(r"[0-9][0-9a-z.]*", number), f"{requirement!r} is not an exact pin"
        found[re.sub(r"[-_.]+", "-", name).lower()] = number
    return found


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def lock() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return pins([line for line in lines if line and not line.startswith("#")])


def test_lock_holds_every_direct_dependency_at_its_pin(project, lock):
    direct = pins(project["dependencies"] + project["optional-dependencies"]["dev"])
    assert {name: lock.get(name) for name in direct} == direct


def test_lock_names_no_cuda_packages(lock):
    cuda = ("nvidia", "triton", "cuda", "cupti", "cudnn")
    assert [name for name in lock if name.startswith(cuda)] == []


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.stem)
def test_conda_environment_repeats_the_pins(path, project):
    dependencies = yaml.safe_load(path.read_text())["dependencies"]
    (listed,) = [item["pip"] for item in dependencies if isinstance(item, dict)]
    assert pins(listed) == pins(project["dependencies"])


def test_these_tests_run_with_the_locked_versions(lock):
    # The local part of a version (torch's +cpu, +cu130) is the build, which machines differ in.
    installed = {name: version(name).partition("+")[0] for name in lock}
    assert installed == lock
