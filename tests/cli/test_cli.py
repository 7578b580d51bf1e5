"""The command line as a user meets it: exit codes, what is imported, and how mistakes are reported."""

import re
import sys
from pathlib import Path

import pytest
import yaml

from cisterna import __version__
from cisterna.cli.registry import COMMANDS
from clones import CONFIG, Clone, make
from tiny import ROOT

TABLE = CONFIG["tasks"]["hairpin"]["file"]


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return make(tmp_path / "clone")


def refused(clone: Clone, *command: str, code: int = 2) -> str:
    """The few lines with which a command ends that writes nothing but Snakemake's own log."""

    def files() -> dict[Path, bytes | None]:
        paths = (path for path in clone.folder.rglob("*") if ".snakemake" not in path.parts)
        return {path: path.read_bytes() if path.is_file() else None for path in paths}

    before = files()
    message = clone.run(*command, code=code)
    assert "Traceback" not in message
    assert files() == before
    return message


def test_help_and_version_succeed(clone: Clone) -> None:
    assert "train" in clone.run("cisterna", "--help")
    assert clone.run("cisterna", "--version").strip() == f"cisterna {__version__}"
    for command in COMMANDS:
        assert f"usage: cisterna {command}" in clone.run("cisterna", command, "--help")


def test_reader_that_stops_reading_gets_no_traceback(clone: Clone) -> None:
    shown = clone.run("bash", "-c", "cisterna plan | head -n 1; sleep 0.1")
    assert shown.startswith("Study tiny: ")
    assert len(shown.splitlines()) == 1


def test_text_of_the_user_is_shown_on_a_terminal_that_does_not_know_its_letters(clone: Clone) -> None:
    log = clone.results / "logs" / "data" / "hairpin.log"
    log.parent.mkdir(parents=True)
    log.write_text("error: label '中 [bold]\x1b[2J' is not one of low, high\n", encoding="utf-8")
    assert "label '中 [bold] [2J' is not" in clone.run("cisterna", "status", PYTHONIOENCODING="utf-8")
    assert r"label '\u4e2d [bold] [2J' is not" in clone.run("cisterna", "status", PYTHONIOENCODING="ascii")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["trane"],
        ["train", "results/models/tiny/base/hairpin/s0/sft-brief/e3/checkpoint"],  # not of the study
        ["train", "results/models/tiny/base/hairpin/s0/sft-brief/e2/checkpoint"],  # its parent is missing
        ["evaluate"],
        ["gather", "--config", "{broken", "--output", "results/x"],
        ["plan", "--confg", "x"],
        ["plan", "--config", "nowhere.yaml"],
        ["verify", "nowhere"],
        ["predict", "nowhere", "--input", "x.csv", "--output", "results/x.parquet"],
        ["features", "--encoder", "nowhere", "--data", "nowhere"],
        ["audit", "nowhere"],
        ["data", "--task", "splice-donor", "--spec", "{broken", "--output", "results/data/x"],
        ["data", "--task", "splice-doner", "--spec", "{}", "--output", "results/data/x"],
        ["data", "--task", "splice-donor", "--spec", "[]", "--output", "results/data/x"],
        ["data", "--task", "hairpin", "--spec", f'{{"file": "{TABLE}"}}', "--output", "results/data/x"],
    ],
    ids=lambda arguments: " ".join(arguments[:3]) or "nothing",
)
def test_mistake_on_the_command_line_exits_with_2(clone: Clone, arguments: list[str]) -> None:
    assert "error: " in refused(clone, "cisterna", *arguments)


@pytest.mark.parametrize(
    ("command", "heavy"),
    [
        (["-m", "cisterna", "--help"], {"torch", "transformers", "trl", "pandas", "numpy", "yaml", "pydantic"}),
        (["-m", "cisterna", "plan"], {"torch", "transformers", "trl", "peft", "pandas", "numpy", "pyarrow"}),
        (
            ["-m", "cisterna", "status"],
            {"torch", "transformers", "datasets", "pandas", "numpy", "snakemake", "sklearn"},
        ),
        (["-m", "snakemake", "-n", "-s", str(ROOT / "Snakefile")], {"torch", "transformers", "trl"}),
    ],
    ids=["help", "plan", "status", "dry run"],
)
def test_nothing_heavy_is_imported(clone: Clone, command: list[str], heavy: set[str]) -> None:
    output = clone.run(sys.executable, "-X", "importtime", *command)
    imported = set(re.findall(r"^import time: .*\| +([\w.]+)$", output, re.MULTILINE))
    assert "cisterna" in imported
    assert imported & heavy == set()


@pytest.mark.snakemake
@pytest.mark.parametrize(
    ("text", "line"),
    [("study: a\nstudy: b\n", "2: study"), (yaml.safe_dump({"sedes": [1], **CONFIG}, sort_keys=False), "1: sedes")],
    ids=["broken", "unknown key"],
)
def test_mistake_in_the_config_is_named_with_its_line_in_few_lines(clone: Clone, text: str, line: str) -> None:
    (clone.folder / "config" / "config.yaml").write_text(text)
    (clone.folder / "other.yaml").write_text(text)
    for file, code, command in (
        ("config/config.yaml", 2, ["cisterna", "plan"]),
        ("config/config.yaml", 1, ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "1"]),
        ("other.yaml", 1, ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "-c1", "--configfile", "other.yaml"]),
    ):
        message = refused(clone, *command, code=code)
        assert f"{file}:{line}: " in message
        assert len(message.splitlines()) <= 8  # with three lines of Snakemake's


@pytest.mark.snakemake
def test_mistake_in_a_table_fails_its_job_alone_and_is_shown(clone: Clone) -> None:
    path = clone.folder / TABLE
    path.write_text(re.sub("(low|high)", "medium", path.read_text(), count=1))
    output = clone.snakemake("results/data/hairpin", "results/data/splice-donor", code=1)
    log = (clone.results / "logs" / "data" / "hairpin.log").read_text()
    assert log.startswith(f"error: {TABLE}: row 1: ")
    assert log.strip() in output
    assert {path.name for path in (clone.results / "data").iterdir()} == {"splice-donor"}
