"""The workflow from a folder that is not the clone, as a module of another workflow, and inside another program."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from clones import CONFIG, Clone, edited, environment, snakemake
from tiny import ROOT

TEXT = "resources/corpora/text.txt"
BASE = "results/models/tiny/base/checkpoint"
MODULE = f"""
module cisterna:
    snakefile: "{ROOT / "Snakefile"}"
    config: CONFIG

use rule * from cisterna
"""


def shipped() -> dict:
    """A study whose task and corpora all ship: its files are in the clone."""
    config = edited(**{"tasks__splice-donor__sequences": ["tokens"]})
    config["tasks"] = {"splice-donor": config["tasks"]["splice-donor"]}
    config["backbones"]["tiny"]["tokenizer"]["files"] = [TEXT]
    config["corpora"]["rna"]["file"] = "resources/corpora/rna.fasta.gz"
    config["lineages"] = [{"tasks": ["splice-donor"], "cpt": ["bio"], "sft": ["short"]}]
    return config


def lines(output: str, start: str) -> list[str]:
    return re.findall(rf"^ *{start}: (.*)$", output, re.MULTILINE)


def test_study_in_another_folder_takes_what_ships_from_the_clone_and_writes_results_there(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(shipped()))
    clone = Clone(tmp_path)
    output = clone.snakemake("--configfile", "mine.yaml", "--printshellcmds", BASE, "results/tokens/tiny/rna")
    assert str(ROOT / "resources/corpora/rna.fasta.gz") in output
    assert {path.name for path in tmp_path.iterdir()} == {"mine.yaml", "results", ".snakemake"}
    clone.run("cisterna", "verify")
    # A result is identified by the paths of the config, wherever the clone is.
    assert list(json.loads((tmp_path / BASE / "manifest.json").read_text())["data"]) == [TEXT]


def test_folder_without_a_config_runs_no_study(tmp_path: Path) -> None:
    """Only in the clone is the default study the one that is meant."""
    (tmp_path / "seeds.yaml").write_text("seeds: [0, 1]\n")
    clone = Clone(tmp_path)
    for files in ([], ["--configfile", "seeds.yaml"]):  # that file alone is no study
        output = clone.snakemake("--dry-run", *files, code=1)
        assert re.search(r"^no config/config\.yaml in .*--configfile FILE", output, re.MULTILINE), output
    assert re.match(r"error: no config/config\.yaml in .*--config FILE", clone.run("cisterna", "plan", code=2))
    assert {path.name for path in tmp_path.iterdir()} <= {"seeds.yaml", ".snakemake"}


@pytest.mark.parametrize(
    ("name", "key"),
    [("config/config.yaml", None), ("config/config.yaml", "cisterna"), ("settings/mine.yml", None)],
    ids=["config.yaml", "below a key", "another file"],
)
def test_workflow_is_a_module_of_another(untouched: Clone, name: str, key: str | None) -> None:
    """With a study of the user's own, whose table is relative to the folder of the run."""
    (untouched.folder / "config" / "config.yaml").unlink()
    path = untouched.folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump({key: CONFIG, "other": 1} if key else CONFIG))
    text = MODULE.replace("CONFIG", f"config[{key!r}]" if key else "config")
    (untouched.folder / "Snakefile").write_text(f'configfile: "{name}"\n{text}')
    output = untouched.run("snakemake", "--cores", "1", "--dry-run", "--printshellcmds")
    assert "tables/our hairpins.csv" in lines(output, "input")
    assert BASE in lines(output, "output")
    # Shell lines have no prefix: the other workflow would get it too.
    shells = {line.split()[0] for line in lines(output, "Shell command")}
    assert shells == {"cisterna", "exec", "None"}  # None: of rule all


def module(clone: Clone, *changes: tuple[str, str], after: str = "") -> None:
    """Write a workflow that uses this one, with changes of the text of MODULE."""
    text = MODULE.replace("CONFIG", "config")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (clone.folder / "Snakefile").write_text(f'configfile: "config/config.yaml"\n{text}\n{after}')


def test_rules_of_a_module_may_have_other_names_and_a_config_on_top(untouched: Clone) -> None:
    after = "rule all:\n    default_target: True\n    input: rules.cisterna_all.input\n"
    module(untouched, ("from cisterna", "from cisterna as cisterna_*"), after=after)
    (untouched.folder / "more.yaml").write_text("study: renamed\n")
    output = untouched.run("snakemake", "--cores", "1", "--dry-run", "--configfile", "more.yaml")
    assert re.search(r"^(local)?rule cisterna_sft:$", output, re.MULTILINE)
    assert "results/studies/renamed/findings.json" in output


@pytest.mark.parametrize("line", ['prefix: "deep"', 'replace_prefix: {"results/": "out/"}'])
def test_prefix_of_a_module_is_refused(untouched: Clone, line: str) -> None:
    """Snakemake would change the paths of inputs and outputs, but not those that the commands get."""
    module(untouched, ("    config: config\n", f"    config: config\n    {line}\n"))
    message = untouched.run("snakemake", "--cores", "1", "--dry-run", code=1)
    assert "StudyError:\nprefix and replace_prefix of a module are not supported" in message
    assert "Traceback" not in message


@pytest.mark.snakemake
def test_report_of_a_module_with_its_config_below_a_key(clone: Clone) -> None:
    module(clone, ("config: config", 'config: config["cisterna"]'))
    clone.write({"cisterna": CONFIG, "study": "of the other workflow"})
    assert "WARNING/" not in clone.run("snakemake", "--cores", "1", "--report", "report.html")
    report = (clone.folder / "report.html").read_text()
    assert ">How continued pre-training (CPT)" in report


def test_mistake_in_the_config_of_a_module_is_named(untouched: Clone) -> None:
    (untouched.folder / "config" / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "sedes": [1]}))
    (untouched.folder / "Snakefile").write_text(
        'configfile: "config/config.yaml"\n' + MODULE.replace("CONFIG", "config")
    )
    message = untouched.run("snakemake", "--cores", "1", "--dry-run", code=1)
    assert "sedes" in message
    assert "Traceback" not in message


EMBEDDING = """
import sys
from snakemake.cli import main
try:
    main(sys.argv[1:])
except SystemExit as error:
    print("back with", error.code)
"""


def test_program_that_embeds_snakemake_survives_a_mistake_in_the_config(untouched: Clone) -> None:
    untouched.write({**CONFIG, "sedes": [1]})
    command = [sys.executable, "-c", EMBEDDING, *snakemake("--dry-run")[1:]]
    output = untouched.run(*command)
    assert output.endswith("back with 1\n")
    assert re.search(r"config\.yaml:\d+: sedes", output)


def test_snakedeploy_makes_a_project_that_runs(tmp_path: Path) -> None:
    """As the workflow catalogue says, but from a folder: of a folder snakedeploy writes a path without the folder."""
    source, project = tmp_path / "source", tmp_path / "project"
    for name in ("Snakefile", "LICENSE"):
        source.mkdir(exist_ok=True)
        (source / name).symlink_to(ROOT / name)
    for name in ("config", "profiles", "workflow"):
        shutil.copytree(ROOT / name, source / name)
    (source / "resources").symlink_to(ROOT / "resources")
    deploy = [Path(sys.executable).with_name("snakedeploy"), "deploy-workflow", source, project, "--branch", "main"]
    subprocess.run(deploy, check=True)

    snakefile = project / "workflow" / "Snakefile"
    (line,) = re.findall(r'^ +"Snakefile"$', snakefile.read_text(), re.MULTILINE)
    snakefile.write_text(snakefile.read_text().replace(line, f'        "{source / "Snakefile"}"'))
    call = ["snakemake", "--cores", "2"]
    dry = subprocess.run([*call, "--dry-run"], cwd=project, env=environment(), text=True, capture_output=True)
    assert re.search(r"^evaluate +70$", dry.stdout, re.MULTILINE), dry.stdout + dry.stderr
    subprocess.run([*call, "results/data/cell-type"], cwd=project, env=environment(), check=True)
    assert (project / "results" / "data" / "cell-type" / "card.json").is_file()
