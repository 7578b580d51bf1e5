"""The wheel: what `pip install` gives to someone who has no clone."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import yaml

import tiny

PACKAGES = tiny.ROOT / "src"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the package from a wheel, which was built of a copy of the sources."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(tiny.ROOT / name, source)
    shutil.copytree(PACKAGES, source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_every_file_of_the_package_is_in_the_wheel(installed):
    for package in (path.parent for path in PACKAGES.glob("*/__init__.py")):
        files = {path.relative_to(PACKAGES) for path in package.rglob("*") if path.is_file()}
        missing = {path for path in files if "__pycache__" not in path.parts and not (installed / path).is_file()}
        assert files
        assert not missing


def test_without_a_clone_a_study_is_planned_and_trained_and_its_model_answers(installed, tmp_path):
    def cisterna(*words: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
        call = [sys.executable, "-m", "cisterna", *words]
        done = subprocess.run(call, cwd=tmp_path, env=environment, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    rows = pd.read_csv(tiny.ROOT / "docs" / "own-data" / "donors.csv").head(200)
    rows.to_csv(tmp_path / "donors.csv", index=False)
    (tmp_path / "text.txt").write_text("Is this GU a splice donor?\nmiss match of 9\n" * 20)
    study = yaml.safe_load((tiny.ROOT / "docs" / "own-data" / "study.yaml").read_text())
    study["tasks"]["donor-site"] |= {"file": "donors.csv", "train": 40, "validation": 8, "id": 20}
    study["backbones"] = {"nano": tiny.backbone() | {"tokenizer": {"vocab_size": 300, "files": ["text.txt"]}}}
    study["recipes"]["sft"]["ladder"]["epochs"] = [1]
    study["lineages"] = [{"sft": ["ladder"]}]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))

    assert "donors" in cisterna("plan", "--config", "study.yaml")
    task = json.dumps(study["tasks"]["donor-site"])
    cisterna("data", "--task", "donor-site", "--spec", task, "--output", "results/data/donor-site")
    model = "results/models/nano/base/donor-site/s0/sft-ladder/e1/checkpoint"
    for checkpoint in ("results/models/nano/base/checkpoint", model):
        cisterna("train", checkpoint, "--config", "study.yaml")
    cisterna("predict", model, "--input", "donors.csv", "--output", "answers.csv", "--columns", "id", "predicted")
    assert len(pd.read_csv(tmp_path / "answers.csv")) == len(rows)
