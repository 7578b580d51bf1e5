"""The documentation: every link leads somewhere, and every command works.

A block `sh` has commands for the reader. They are checked as far as it takes seconds: `cisterna` by its own parser, and
its paths by the study; `snakemake` by a dry run in a fresh clone; `make` and `python` by the targets and files that
there are. `<!-- needs: REASON -->` above a block says what a test does not have (NEEDS): of such a block only the
options are checked. A block `yaml NAME` is a file that the reader writes; the commands of all pages find it.
"""

import ast
import contextlib
import itertools
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
import snakemake.cli
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from cisterna import study
from cisterna.cli import _parser
from cisterna.cli.registry import COMMANDS, read_study
from cisterna.study import jobs
from cisterna.study.config.shape import Config
from clones import Clone
from tiny import ROOT

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "config/*.md", "benchmarks/*.md", "resources/*.md", "results/README.md")
    for path in ROOT.glob(pattern)
)
COMMANDED = [page for page in PAGES if page != "CHANGELOG.md"]  # whose commands are those of today
LANGUAGES = {"sh", "yaml", "python", "snakemake", "dockerfile", "text"}
NEEDS = {
    "cluster": "Slurm or Kubernetes",
    "files": "files of the reader's own",
    "network": "a package index or a model hub",
    "storage": "a storage server",
}
SHELL = {
    "cd",
    "export",
    "source",
    "tail",
}  # commands without which a page could not be followed, and that need no check
STUDIES = (["config/config.yaml"], ["docs/own-data/study.yaml"])  # those of the examples
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
REFERS = re.compile(r"\b(?:docs|config|results|benchmarks|resources)/[\w./-]*\.md\b")


class Block(NamedTuple):
    """A fenced block; `place` is its page and line, `name` what follows the language."""

    place: str
    language: str
    name: str
    needs: str
    text: str


@cache
def tokens(page: str) -> list[Token]:
    return MarkdownIt().enable("table").parse((ROOT / page).read_text())


def inline(page: str) -> Iterator[Token]:
    """Links, images and code within text."""
    for token in tokens(page):
        yield from token.children or ()


@cache
def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    made = set()
    for opened, content in itertools.pairwise(tokens(page)):
        if opened.type == "heading_open":
            text = "".join(part.content for part in content.children or ())
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            made.add(f"{slug}-{found[slug]}" if slug in found else slug)
            found[slug] = found.get(slug, 0) + 1
    return made


@cache
def blocks(page: str) -> list[Block]:
    made, marker = [], ""
    for token in tokens(page):
        if token.type == "fence":
            language, _, name = token.info.partition(" ")
            made.append(Block(f"{page}:{token.map[0] + 1}", language, name, marker, token.content))
        marked = re.fullmatch(r"<!-- needs: (.*) -->\n", token.content) if token.type == "html_block" else None
        marker = marked[1] if marked else ""
    return made


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command, without the variables before it."""
    for line in block.text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if word.strip("&|;"):
                command.append(word)
            else:
                while command and re.match(r"[A-Z_]+=", command[0]):
                    command.pop(0)
                if command:
                    yield command
                command = []


SHELL_BLOCKS = [block for page in COMMANDED for block in blocks(page) if block.language == "sh"]
DRY_RUNS = {
    shlex.join(command): command
    for block in SHELL_BLOCKS
    for command in commands(block)
    if command[0] == "snakemake" and not block.needs and not {"--report", "--unlock"} & set(command)
}


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone without results, with the files that the pages let the reader write."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("Snakefile", "config", "docs", "profiles", "resources", "workflow"):
        (folder / name).symlink_to(ROOT / name)
    for page in COMMANDED:
        for block in blocks(page):
            if block.language == "yaml" and block.name:
                assert not (folder / block.name).exists(), f"{block.place}: {block.name} is on two pages"
                (folder / block.name).write_text(block.text)
    return Clone(folder)


def parsed(words: list[str], place: str) -> dict[str, Any]:
    """The options of a command of Cisterna."""
    try:
        return vars(_parser().parse_args(words))
    except SystemExit:
        raise AssertionError(f"{place}: cisterna {shlex.join(words)}") from None


@cache
def made_by(*config: str) -> set[str]:
    """What a study makes, and the folders in which it is."""
    made = jobs.jobs(read_study(list(config)))
    paths = {Path("results") / output for job in made for output in job.outputs}
    return {str(path) for output in paths for path in (output, *output.parents)}


@pytest.mark.parametrize("page", PAGES)
def test_links_and_anchors_of_the_documentation_lead_somewhere(page: str) -> None:
    broken = []
    for token in inline(page):
        target = str(token.attrGet("href") or token.attrGet("src") or "")
        path, _, anchor = target.partition("#")
        if not target or "://" in target:
            continue
        place = (ROOT / page).parent / path if path else ROOT / page
        place = place / "README.md" if anchor and place.is_dir() else place
        if not place.exists() or (anchor and anchor not in anchors(place.resolve().relative_to(ROOT).as_posix())):
            broken.append(target)
    assert not broken


def test_pages_that_code_and_configs_name_exist() -> None:
    folders = ("src", "scripts", "config", "workflow", "profiles", "benchmarks", "tests")
    files = [
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".yaml", ".smk", ".j2"}
    ]
    named = {(page, path) for path in [*files, ROOT / "Makefile"] for page in REFERS.findall(path.read_text())}
    assert not [f"{path}: {page}" for page, path in named if not (ROOT / page).exists()]


@pytest.mark.parametrize("page", COMMANDED)
def test_blocks_of_the_documentation_can_be_read(page: str) -> None:
    assert not [token for token in tokens(page) if token.type == "code_block"], "indented code: write a fenced block"
    for block in blocks(page):
        assert block.language in LANGUAGES, block.place
        assert not block.needs or block.needs in NEEDS, block.place
        if block.language == "python":
            ast.parse(block.text)
        elif block.language == "yaml":
            yaml.safe_load(block.text)


@pytest.mark.parametrize("page", COMMANDED)
def test_parts_of_a_study_are_valid_as_a_second_config(page: str, tmp_path: Path) -> None:
    for block in blocks(page):
        if block.language == "yaml" and yaml.safe_load(block.text).keys() & Config.model_fields:  # else a profile
            (tmp_path / "part.yaml").write_text(block.text)
            study.read(ROOT / "config" / "config.yaml", tmp_path / "part.yaml")


@pytest.mark.parametrize("page", COMMANDED)
def test_commands_within_text_have_the_options_that_they_name(page: str) -> None:
    for token in inline(page):
        program, *words = token.content.split() if token.type == "code_inline" and token.content.strip() else [""]
        if program == "cisterna" and words and words[0].isidentifier() and words[0].islower():
            options = {flag for flag, _ in COMMANDS[words[0]].options}
            assert {word for word in words if word.startswith("--")} <= options, token.content
        elif program == "snakemake" and words:
            with contextlib.chdir(ROOT):  # where the profiles are
                snakemake.cli.parse_args(words)
        elif program == "make" and words:
            assert words[0] in TARGETS, token.content


@pytest.mark.parametrize("block", SHELL_BLOCKS, ids=lambda block: block.place)
def test_commands_of_the_documentation_can_be_given(block: Block, reader: Clone) -> None:
    for command in commands(block):
        program, words = command[0].removeprefix(".venv/bin/"), command[1:]
        if program == "cisterna":
            options = parsed(words, block.place)
            named = {str(options[key]) for key in ("path", "checkpoint", "data") if options.get(key)}
            if not block.needs:
                with contextlib.chdir(reader.folder):
                    studies = [options["config"]] if options.get("config") else STUDIES
                    assert named <= set().union(*(made_by(*config) for config in studies)), shlex.join(words)
        elif program == "snakemake":
            with contextlib.chdir(ROOT):
                snakemake.cli.parse_args(words)
        elif program == "make":
            assert {word for word in words if "=" not in word} <= TARGETS, shlex.join(words)
        elif program == "python" and words[0] != "-c":
            assert (ROOT / words[0]).is_file(), shlex.join(words)
        elif program == "python":
            ast.parse(words[1])
        else:
            assert block.needs or program in SHELL, f"{block.place}: {program} (mark what it needs: {', '.join(NEEDS)})"


@pytest.mark.snakemake
@pytest.mark.parametrize("command", DRY_RUNS.values(), ids=DRY_RUNS)
def test_workflow_accepts_the_command_of_the_documentation(command: list[str], reader: Clone) -> None:
    reader.run(*command, "--dry-run")


def test_code_that_compares_studies_and_models_runs(tmp_path: Path, monkeypatch, capsys) -> None:
    for name, folder in {"default": "default-study", "mini": "mini-study"}.items():
        (tmp_path / "results" / "studies").mkdir(parents=True, exist_ok=True)
        (tmp_path / "results" / "studies" / name).symlink_to(ROOT / "docs" / folder)
    for rung, predicted in {"e2": ["spliced", "spliced", None], "e8": ["spliced", "skipped", "skipped"]}.items():
        folder = tmp_path / "results" / "models" / "nano" / "base" / "splice-donor" / "s0" / "sft-brief" / rung / "eval"
        folder.mkdir(parents=True)
        answers = {"id": ["a", "b", "c"], "answer": ["spliced", "skipped", "skipped"], "predicted": predicted}
        pd.DataFrame(answers).to_parquet(folder / "ood.parquet")
    monkeypatch.chdir(tmp_path)
    studies, models = (block for block in blocks("docs/comparing.md") if block.language == "python")
    exec(studies.text, {})
    assert re.search(r"baseline/knn +0\.\d\d +0\.\d\d", capsys.readouterr().out)
    exec(models.text, {})
    assert "'value': 0.5" in capsys.readouterr().out
