"""No value of a config runs as a command, no pickle is opened that a user was handed, and no secret is written."""

import copy
import json
import os
import pickle
import random
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from cisterna import study
from cisterna.errors import UserError
from clones import CONFIG, Clone, Config, make, snakemake
from tiny import encoder

# Every way in which a shell would run `touch canary`, where a word is not quoted, or quoted in one way only.
HOSTILE = 'it\'s "a" $(touch canary) `touch canary`; touch canary & touch canary | touch canary #'
SCRIPT = "</script><script>alert(1)</script>"  # ends a script of a page that holds it, and begins another
SECRETS = {
    "HF_TOKEN": "hf_canary0of0the0hub0token0000000000",
    "WANDB_API_KEY": "canary0of0the0tracker0key000000000000000",
    "AWS_SECRET_ACCESS_KEY": "canary0of0the0cloud0key0000000000000000",
    "SNAKEMAKE_STORAGE_S3_SECRET_KEY": "canary0of0the0storage0key00000000000000",
}


def hostile() -> Config:
    """A small study in which every value that is free text tries to run a command."""
    config = copy.deepcopy(CONFIG)
    table = config["tasks"]["hairpin"]
    table["file"] = f"tables/../tables/{HOSTILE}.csv"
    table["columns"] = {key: f"{name} {HOSTILE}" for key, name in table["columns"].items()}
    table["labels"] = ["low; touch canary", f"high {HOSTILE}"]
    table["question"] = f"Is {{this}} {SCRIPT} {HOSTILE}\n$(touch canary)\n?"
    table["ood"] = [f"viral {HOSTILE} {SCRIPT}"]
    config["corpora"]["rna"]["file"] = f"tables/{HOSTILE}.fasta"
    config["tasks"] = {"hairpin": table}
    config["recipes"]["sft"]["brief"]["epochs"] = [1]
    config["lineages"] = [{"cpt": ["bio"], "sft": ["brief"]}]
    del config["encoders"]
    return config


def write(clone: Clone, config: Config) -> list[str]:
    """Write the hostile study and its files, the config under a hostile name; the options that choose it."""
    table = config["tasks"]["hairpin"]
    lines = (clone.folder / CONFIG["tasks"]["hairpin"]["file"]).read_text().splitlines()
    rows = [line.split(",") for line in lines]
    names = {name: table["columns"][key] for key, name in CONFIG["tasks"]["hairpin"]["columns"].items()}
    words = dict(zip(("low", "high"), table["labels"], strict=True)) | {"viral": table["ood"][0]}
    rows = [[names.get(cell, cell) for cell in rows[0]], *[[words.get(cell, cell) for cell in row] for row in rows[1:]]]
    quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    (clone.folder / table["file"]).write_text("\n".join(quoted) + "\n")
    shutil.copy(clone.folder / CONFIG["corpora"]["rna"]["file"], clone.folder / config["corpora"]["rna"]["file"])
    path = Path("config") / f"{HOSTILE}.yaml"
    (clone.folder / path).write_text(yaml.safe_dump(config, sort_keys=False))
    return ["--configfile", str(path)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The hostile study, run from table to report by Snakemake, with secrets in the environment."""
    clone = make(tmp_path_factory.mktemp("$(touch canary) it's") / "study")
    options = write(clone, hostile())
    clone.run(*snakemake("--printshellcmds", *options), **SECRETS)
    clone.run(*snakemake("--report", "results/report.html", *options), **SECRETS)
    return clone


def canaries(folder: Path) -> list[Path]:
    """Files that a command in a value would have made, wherever it ran."""
    return [path for path in folder.rglob("*") if path.name.startswith("canary")]


# --- Shell ---


def test_hostile_names_and_texts_go_from_table_to_report_and_run_nothing(finished: Clone) -> None:
    assert (finished.results / "studies" / "tiny" / "metrics.parquet").is_file()
    card = json.loads((finished.results / "data" / "hairpin" / "card.json").read_text())
    assert card["labels"] == hostile()["tasks"]["hairpin"]["labels"]
    assert canaries(finished.folder) == []


def test_report_escapes_texts_of_the_config(finished: Clone) -> None:
    pages = list(finished.results.rglob("*.html"))
    assert len(pages) >= 2
    for page in pages:
        assert "<script>alert(1)" not in page.read_text()


@pytest.mark.snakemake
@pytest.mark.parametrize(
    "text", [HOSTILE, "two\nlines $(touch canary)", "{input} {params.recipe} {{x}} {wildcards.seed}"]
)
def test_texts_of_recipes_and_backbones_reach_a_command_as_one_word(tmp_path: Path, text: str) -> None:
    clone = make(tmp_path / "clone")
    config = hostile()
    options = write(clone, config)
    config["backbones"]["tiny"] = {"pretrained": text}
    config["recipes"]["sft"]["brief"]["lora"] = {"r": 1, "lora_alpha": 1, "target_modules": [text]}
    write(clone, config)
    argv = recorded(clone, "base", "results/models/tiny/base/checkpoint", options)
    assert json.loads(argv[argv.index("--spec") + 1])["pretrained"] == text
    argv = recorded(clone, "sft", "results/models/tiny/cpt-bio/hairpin/s0/sft-brief/e1/checkpoint", options)
    assert json.loads(argv[argv.index("--recipe") + 1])["lora"]["target_modules"] == [text]
    assert canaries(clone.folder) == []


def recorded(clone: Clone, rule: str, target: str, options: list[str]) -> list[str]:
    """The words that a rule's command hands to `cisterna`, from a program of that name in its place."""
    shown = clone.snakemake("--dry-run", "--printshellcmds", *options, "--", target)
    log = f"results/logs/{target.removeprefix('results/').removesuffix('/checkpoint')}.log"
    (command,) = (
        line.removeprefix("Shell command: ")
        for line in shown.splitlines()
        if f"cisterna {rule} " in line and f"--output {target} " in line
    )
    tools = clone.folder / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "cisterna").write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
    (tools / "cisterna").chmod(0o755)
    (clone.folder / log).parent.mkdir(parents=True, exist_ok=True)
    clone.run("bash", "-c", f"PATH={shlex.quote(str(tools))}:$PATH; {command}")
    return (clone.folder / log).read_text().split("\0")


@pytest.mark.snakemake
@pytest.mark.parametrize(
    "target",
    [
        "results/models/$(touch canary)/base/checkpoint",
        "results/models/tiny/base/`touch canary`/eval",
        "results/tokens/tiny/x; touch canary",
        "results/data/../../outside",
    ],
)
def test_hostile_targets_are_refused(tmp_path: Path, target: str) -> None:
    clone = make(tmp_path / "clone")
    output = clone.snakemake("--", target, code=1)
    assert "canary" in output or "outside" in output
    assert canaries(tmp_path) == []
    assert not (tmp_path / "outside").exists()
    assert not list(clone.folder.glob("results/[!l]*"))


@pytest.mark.parametrize("name", ["$(touch canary)", "../../outside", "a/b", "a b", "it's", "a\nb", "<b>"])
@pytest.mark.parametrize("group", ["study", "backbones", "corpora", "tasks", "sft"])
def test_names_that_become_folders_are_letters_digits_dots_and_dashes(group: str, name: str) -> None:
    config = copy.deepcopy(CONFIG)
    if group == "study":
        config["study"] = name
    else:
        place = config["recipes"] if group == "sft" else config
        place[group][name] = next(iter(place[group].values()))
    with pytest.raises(UserError, match="lower-case letters"):
        study.load(config)


@pytest.mark.parametrize("path", ["tables/{task}.csv", "tables/a\nb.csv", "x</script><script>.csv", "-rf"])
def test_paths_that_would_be_read_as_something_else_are_refused(path: str) -> None:
    for group, name in (("tasks", "hairpin"), ("corpora", "rna")):
        config = copy.deepcopy(CONFIG)
        config[group][name]["file"] = path
        with pytest.raises(UserError, match=rf"{group}\.{name}\.file: .*without braces"):
            study.load(config)


# --- Pickles ---


class Trap:
    """An object whose unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Trap]:
    """A trap that works, and must not have been sprung when the test ends."""
    tried = Trap(tmp_path / "tried")
    pickle.loads(pickle.dumps(tried))
    assert tried.path.exists()
    laid = Trap(tmp_path / "sprung")
    yield laid
    assert not laid.path.exists()


def test_backbone_with_pickled_weights_is_refused_unopened(base: Path, tmp_path: Path, trap: Trap) -> None:
    from cisterna import models

    folder = tmp_path / "handed over"
    shutil.copytree(base, folder)
    models.make_base({"pretrained": str(folder)}, tmp_path / "whole")
    (folder / "model.safetensors").unlink()
    torch.save({"weight": trap}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        models.make_base({"pretrained": str(folder)}, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_encoder_with_pickled_weights_is_refused_unopened(tmp_path: Path, trap: Trap) -> None:
    from cisterna.sequences import encoders

    made = encoder(tmp_path / "handed over")
    (made / "manifest.json").unlink()
    encoders.load(refer(made, tmp_path / "whole"), -1)
    (made / "model.safetensors").unlink()
    torch.save({"weight": trap}, made / "pytorch_model.bin")
    checkpoint = refer(made, tmp_path / "made")
    with pytest.raises(UserError, match="safetensors"):
        encoders.load(checkpoint, -1)


def refer(folder: Path, output: Path) -> Path:
    """The checkpoint of an encoder in a local folder."""
    from cisterna.sequences import encoders

    encoders.refer({"pretrained": str(folder), "dtype": "float32"}, output)
    return output


def test_pickles_beside_the_weights_are_never_opened(base: Path, tmp_path: Path, trap: Trap) -> None:
    from cisterna import models

    folder = tmp_path / "handed over"
    shutil.copytree(base, folder)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "pytorch_model.bin"):
        torch.save(trap, folder / name)
    models.make_base({"pretrained": str(folder)}, tmp_path / "made")
    models.compose(tmp_path / "made")


def test_stream_of_a_corpus_that_holds_objects_is_refused_unopened(base: Path, tmp_path: Path, trap: Trap) -> None:
    from cisterna.data.blocks import Blocks
    from cisterna.data.tokenized import tokenize_corpus

    draw = random.Random(0)
    sequences = ("".join(draw.choices("ACGU", k=80)) for _ in range(100))
    (tmp_path / "corpus.fasta").write_text("".join(f">a\n{sequence}\n" for sequence in sequences))
    tokenize_corpus(tmp_path / "corpus.fasta", "rna", base, tmp_path / "tokens")
    Blocks(tmp_path / "tokens", 64)
    np.save(tmp_path / "tokens" / "train.npy", np.array([trap], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects"):
        Blocks(tmp_path / "tokens", 64)


# --- Secrets ---


def test_secrets_of_the_environment_are_in_no_file_of_a_run(finished: Clone) -> None:
    files = [path for path in finished.folder.rglob("*") if path.is_file() and "resources" not in path.parts]
    names = {path.name for path in files}
    assert {"manifest.json", "report.html", "metrics.parquet", "eval.log"} <= names
    found = [path for path in files for value in SECRETS.values() if value.encode() in path.read_bytes()]
    assert found == []


@pytest.mark.parametrize(
    "secret", ["https://me:pass4711word@hub.example/model", "hf_pass4711wordAbcdefghijklmnop", "AKIAPASS4711WORDABCD"]
)
def test_secrets_in_a_config_are_refused_and_not_shown(secret: str) -> None:
    config = copy.deepcopy(CONFIG)
    config["backbones"]["tiny"] = {"pretrained": secret}
    with pytest.raises(UserError, match=r"backbones\.tiny\.pretrained: looks like a password") as caught:
        study.load(config)
    assert "4711" not in str(caught.value)


@pytest.mark.parametrize("option", ["hub_token", "push_to_hub", "hub_model_id", "trust_remote_code"])
@pytest.mark.parametrize("kind", ["sft", "rl"])
def test_recipes_have_no_options_that_publish_or_hold_tokens(kind: str, option: str) -> None:
    config = copy.deepcopy(CONFIG)
    recipe = next(iter(config["recipes"][kind].values()))
    recipe[option] = "pass4711word"
    with pytest.raises(UserError, match=rf"recipes\.{kind}\..*{option}: not supported") as caught:
        study.load(config)
    assert "4711" not in str(caught.value)
