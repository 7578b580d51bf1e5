"""The command line as a user meets it: exit codes, what is imported, and what a mistake is answered with."""

import copy
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cisterna import __version__
from cisterna.cli.commands import COMMANDS
from clones import CONFIG, Clone, Config, make
from tiny import ROOT

TABLE = CONFIG["tasks"]["hairpin"]["file"]


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return make(tmp_path / "clone")


def listing(clone: Clone) -> dict[str, bytes]:
    """Every file of the clone with its content, and every folder, but for Snakemake's own log of its run."""
    return {
        str(path.relative_to(clone.folder)): path.read_bytes() if path.is_file() else b""
        for path in clone.folder.rglob("*")
        if ".snakemake" not in path.parts
    }


def data(clone: Clone, code: int = 0, **changes: object) -> str:
    """`cisterna data` on the user's table, as its rule calls it."""
    spec = json.dumps({**CONFIG["tasks"]["hairpin"], **changes})
    return clone.run(
        "cisterna", "data", "--task", "hairpin", "--spec", spec, "--output", "results/data/hairpin", code=code
    )


# --- Exit codes and imports ---


def test_help_and_version_succeed(clone: Clone) -> None:
    assert "train" in clone.run("cisterna", "--help")
    assert clone.run("cisterna", "--version").strip() == f"cisterna {__version__}"
    for command in COMMANDS:
        assert f"usage: cisterna {command}" in clone.run("cisterna", command, "--help")


def test_reader_that_stops_reading_gets_no_traceback(clone: Clone) -> None:
    shown = clone.run("bash", "-c", "cisterna plan | head -n 1; sleep 0.1")
    assert shown.startswith("Study tiny: ")
    assert len(shown.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["trane"],
        ["train"],
        ["train", "results/models/tiny/base/hairpin/s0/sft-brief/e3/checkpoint"],
        ["train", "results/models/tiny/base/hairpin/s0/sft-brief/e2/checkpoint"],
        ["evaluate"],
        ["gather", "--config", "{broken", "--output", "results/x"],
        ["plan", "--confg", "x"],
        ["plan", "--config", "nowhere.yaml"],
        ["verify", "nowhere"],
        ["predict", "nowhere", "--input", "x.csv", "--output", "results/x.parquet"],
        ["features", "--encoder", "nowhere", "--data", "nowhere"],
        ["encoder", "--spec", "[]", "--work", "results/w", "--output", "results/x"],
        ["audit", "nowhere"],
        ["data", "--task", "splice-donor", "--spec", "{broken", "--output", "results/data/x"],
        ["data", "--task", "splice-doner", "--spec", "{}", "--output", "results/data/x"],
        ["data", "--task", "splice-donor", "--spec", "[]", "--output", "results/data/x"],
    ],
    ids=lambda arguments: " ".join(arguments[:3]) or "nothing",
)
def test_mistake_on_the_command_line_exits_with_2(clone: Clone, arguments: list[str]) -> None:
    before = listing(clone)
    message = clone.run("cisterna", *arguments, code=2)
    assert "error: " in message
    assert "Traceback" not in message
    assert listing(clone) == before


@pytest.mark.parametrize(
    ("command", "heavy"),
    [
        (["-m", "cisterna", "--help"], {"torch", "transformers", "trl", "pandas", "numpy", "yaml", "pydantic"}),
        (["-m", "cisterna", "plan"], {"torch", "transformers", "trl", "peft", "pandas", "numpy", "pyarrow"}),
        (
            ["-m", "cisterna", "status"],
            {"torch", "transformers", "datasets", "pandas", "numpy", "snakemake", "sklearn"},
        ),
        (["-m", "snakemake", "--dry-run", "--quiet", "--snakefile", "SNAKEFILE"], {"torch", "transformers", "trl"}),
    ],
    ids=["help", "plan", "status", "dry run"],
)
def test_nothing_heavy_is_imported(clone: Clone, command: list[str], heavy: set[str]) -> None:
    words = [str(ROOT / "Snakefile") if word == "SNAKEFILE" else word for word in command]
    output = clone.run(sys.executable, "-X", "importtime", *words)
    imported = set(re.findall(r"^import time: .*\| +([\w.]+)$", output, re.MULTILINE))
    assert "cisterna" in imported
    assert imported & heavy == set()


# --- Ten kinds of bad input ---

CONFIG_MISTAKES: dict[str, tuple[Callable[[Config], object], list[str]]] = {
    "unknown key": (lambda config: config["evaluation"].update(batchsize=3), ["evaluation.batchsize", "batch_size"]),
    "unsafe name": (
        lambda config: config["tasks"].update({"../x": config["tasks"].pop("splice-donor")}),
        ["tasks", "../x"],
    ),
    "recipe that does not exist": (
        lambda config: config["lineages"][0].update(sft=["breif"]),
        ["lineages[0].sft", "breif", "Did you mean brief?"],
    ),
    "option that does not exist": (
        lambda config: config["recipes"]["sft"]["brief"].update(learning_rat=1.0),
        ["recipes.sft.brief.learning_rat", "Did you mean learning_rate?"],
    ),
    "rungs not ascending": (
        lambda config: config["recipes"]["sft"]["brief"].update(epochs=[2, 1]),
        ["recipes.sft.brief.epochs", "[2, 1]"],
    ),
}


@pytest.mark.parametrize("by", ["plan", pytest.param("snakemake", marks=pytest.mark.snakemake)])
@pytest.mark.parametrize("mistake", CONFIG_MISTAKES)
def test_mistake_in_the_config_is_named_and_nothing_is_written(clone: Clone, mistake: str, by: str) -> None:
    break_it, expected = CONFIG_MISTAKES[mistake]
    config = copy.deepcopy(CONFIG)
    break_it(config)
    clone.write(config)
    refused(clone, by, [*expected, r"re:config/config\.yaml:\d+: "])


@pytest.mark.parametrize("by", ["plan", pytest.param("snakemake", marks=pytest.mark.snakemake)])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("study: a\n  tasks: [\n", ["config/config.yaml:2:", "broken YAML"]),
        ("study: a\nstudy: b\n", ["config/config.yaml:2: study:", "line 1"]),
        ("- a\n", ["config/config.yaml", "list"]),
        ("", ["config/config.yaml", "nothing"]),
    ],
    ids=["broken", "key twice", "no mapping", "empty"],
)
def test_file_that_is_no_config_is_named(clone: Clone, text: str, expected: list[str], by: str) -> None:
    (clone.folder / "config" / "config.yaml").write_text(text)
    refused(clone, by, expected)


@pytest.mark.snakemake
def test_study_given_to_snakemake_is_named_in_its_mistakes(clone: Clone) -> None:
    path = clone.folder / "other.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "sedes": [1]}, sort_keys=False))
    before = listing(clone)
    message = clone.snakemake("--configfile", "other.yaml", code=1)
    assert re.search(r"other\.yaml:\d+: sedes: .*Did you mean seeds\?", message)
    assert listing(clone) == before


def refused(clone: Clone, by: str, expected: list[str]) -> None:
    before = listing(clone)
    message = clone.run("cisterna", "plan", code=2) if by == "plan" else clone.snakemake(code=1)
    for part in expected:
        assert re.search(part[3:], message) if part.startswith("re:") else part in message, message
    assert "Traceback" not in message
    assert len(message.splitlines()) <= 8  # with three lines of Snakemake's
    assert listing(clone) == before


def edit(before: str, after: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert before in text
        return text.replace(before, after, 1)

    return change


def row(number: int, column: int, value: str) -> Callable[[str], str]:
    """Another value in one cell; rows and columns count from 1, without the header."""

    def change(text: str) -> str:
        lines = text.splitlines()
        cells = lines[number].split(",")
        cells[column - 1] = value
        lines[number] = ",".join(cells)
        return "\n".join(lines) + "\n"

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (edit("name,seq", "name,sequence"), ["no column 'seq'", "columns.sequence"]),
        (row(7, 3, "medium"), ["row 7", "'medium'", "low, high"]),
        (row(9, 2, "ACGXU"), ["row 9", "'X'", "rna"]),
        (row(5, 1, "h1"), ["row 2", "row 5", "'h1'"]),
        (row(3, 3, ""), ["row 3", "'class'"]),
        (lambda text: text.splitlines()[0] + "\n", ["no rows"]),
    ],
    ids=["missing column", "label outside", "not a nucleotide", "id twice", "no label", "no rows"],
)
def test_mistake_in_a_table_is_named_with_its_row(
    clone: Clone, change: Callable[[str], str], expected: list[str]
) -> None:
    path = clone.folder / TABLE
    path.write_text(change(path.read_text()))
    before = listing(clone)
    message = data(clone, code=2)
    for part in [f"error: {TABLE}: ", *expected]:
        assert part in message
    assert len(message.splitlines()) <= 2
    assert listing(clone) == before


@pytest.mark.parametrize("kind", ["bytes", "folder", "absent"])
def test_table_that_cannot_be_read_is_named(clone: Clone, kind: str) -> None:
    path = clone.folder / TABLE
    path.unlink()
    if kind == "bytes":
        path.write_bytes(bytes(range(128, 256)) * 10)
    elif kind == "folder":
        path.mkdir()
    before = listing(clone)
    message = data(clone, code=2)
    assert message.startswith(f"error: {TABLE}: ")
    assert "Traceback" not in message
    assert listing(clone) == before


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"train": 1000}, "tasks.hairpin.train"), ({"id": 0}, "tasks.hairpin.id"), ({"ood": ["fungal"]}, "'fungal'")],
    ids=["more than there is", "nothing asked for", "group that no row has"],
)
def test_split_that_would_be_empty_is_named(clone: Clone, changes: Config, expected: str) -> None:
    before = listing(clone)
    message = data(clone, code=2, **changes)
    assert expected in message
    assert "Traceback" not in message
    assert listing(clone) == before


@pytest.mark.snakemake
def test_mistake_in_a_table_fails_its_job_alone_and_is_shown(clone: Clone) -> None:
    path = clone.folder / TABLE
    path.write_text(row(7, 3, "medium")(path.read_text()))
    output = clone.snakemake("results/data/hairpin", "results/data/splice-donor", code=1)
    log = (clone.results / "logs" / "data" / "hairpin.log").read_text()
    assert log.startswith(f"error: {TABLE}: row 7: ")
    assert log.strip() in output
    assert {path.name for path in (clone.results / "data").iterdir()} == {"splice-donor"}
