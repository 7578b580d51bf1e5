"""The config agrees with the libraries, and the files that are made from its models are up to date."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

from cisterna.scoring import rewards
from cisterna.study.config import recipes, trainer_options

ROOT = Path(__file__).resolve().parents[2]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_options_are_those_of_the_installed_libraries():
    built = json.loads(script("build_options").build())
    assert trainer_options.known() == built, "run python scripts/build_options.py"


def test_key_tables_and_schema_are_those_of_the_models():
    build = script("build_config")
    assert build.README.read_text() == build.readme(), "run python scripts/build_config.py"
    assert build.SCHEMA.read_text() == build.schema(), "run python scripts/build_config.py"


def test_refused_options_exist_in_a_library():
    known = {name for options in trainer_options.known()["options"].values() for name in options}
    for pattern in trainer_options.REFUSED:
        assert any(re.fullmatch(pattern.replace("*", ".*"), name) for name in known), pattern


def test_rewards_of_the_config_are_those_of_the_code():
    assert set(recipes.Rewards.keys()) == set(rewards.REWARDS)
