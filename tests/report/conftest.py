"""Studies that the tests of tables, figures and pages share; a test that changes files works on a copy."""

import shutil
from pathlib import Path

import pytest
from planted import Planted, config, forms, terms


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Two tasks in one form, with and without CPT, SFT and RL."""
    return Planted.of(config(), tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="session")
def formed(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """One task as tokens and as features, and one as tokens alone."""
    return Planted.of(forms("tokens", "features"), tmp_path_factory.mktemp("formed"))


@pytest.fixture(scope="session")
def of_terms(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """A task of labels and one whose answers are sets of terms."""
    return Planted.of(terms(), tmp_path_factory.mktemp("terms"))


@pytest.fixture(scope="session")
def _small(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    study = config(cpt=["none"], tasks=["splice-donor"])
    study["recipes"]["rl"]["grpo"]["epochs"] = [1, 2]
    return Planted.of(study, tmp_path_factory.mktemp("small"), size=40)


@pytest.fixture
def small(_small: Planted, tmp_path: Path) -> Planted:
    """One task without CPT, in a copy that the test may change."""
    return Planted(_small.study, shutil.copytree(_small.results, tmp_path / "results"))
