"""The structure of the package: imports run one way, between modules and between folders, and no module is too long."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tiny import ROOT

PACKAGE = ROOT / "src" / "cisterna"
LONGEST = 500  # lines


def modules() -> dict[str, Path]:
    """Dotted name below cisterna -> file; a package is called by its folder."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(path: Path) -> Iterator[str]:
    """The modules of Cisterna that a file imports, also inside its functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "cisterna":
            inside = node.module.removeprefix("cisterna").removeprefix(".")
            for alias in node.names:
                full = f"{inside}.{alias.name}".removeprefix(".")
                yield full if full in MODULES else inside
        elif isinstance(node, ast.Import):
            names = (alias.name.removeprefix("cisterna").removeprefix(".") for alias in node.names)
            yield from (name for name in names if name in MODULES)


def folder(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("between", ["modules", "folders"])
def test_imports_run_one_way(between):
    graph: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        targets = {target for target in imported(path) if target != module}
        if between == "folders":
            module, targets = folder(module), {folder(target) for target in targets} - {folder(module)}
        graph.setdefault(module, set()).update(targets)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_no_module_is_too_long():
    lengths = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}
    assert not {module: length for module, length in lengths.items() if length > LONGEST}


def test_tests_mirror_the_package():
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert {name for name in folders if not any((ROOT / "tests" / name).glob("test_*.py"))} == set()


def test_files_of_tests_have_different_names():
    """Pytest imports them by their names alone."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert {name for name in names if names.count(name) > 1} == set()
