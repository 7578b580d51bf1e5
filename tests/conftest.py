"""How the tests run, and what many of them start from: a tiny base model, a small task, an encoder and its bank."""

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from runs import Run, solver
from tiny import READING, ROOT, SIZES, backbone, encoder

# Before torch is imported: one thread, so that float results do not depend on the machine, and no network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# No Slurm but that of tests/cluster: where one is installed and does not answer, every start of Snakemake waits for it.
os.environ["SLURM_CONF"] = os.devnull
# Set inside a Snakemake run: a test must not hand its commands to that run's server.
os.environ.pop("CISTERNA_WARM", None)

# The same examples on every machine, however slow it is. A test may ask for more of them, and for nothing else.
settings.register_profile(
    "cisterna",
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("cisterna")

# Folders and files whose tests all carry marks, in the order in which they run: the long ones first, so that no worker
# begins one when the others have nothing left to do. In other files the tests carry marks of their own.
MARKS = {
    "cluster": ["cluster", "snakemake", "slow"],
    "workflow": ["snakemake", "slow"],
    "distributed": ["slow"],
    "test_trouble.py": ["snakemake", "slow"],
    "training": ["slow"],
    "artifacts/test_work_folder.py": ["slow"],
    "sequences/test_bridge.py": ["slow"],
    "runtime": ["slow"],
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their place, skip those that need a GPU where there is none, and put the long files first."""
    order = {}
    for item in items:
        path = item.path.relative_to(ROOT / "tests")
        place = next((place for place in MARKS if path.is_relative_to(place)), None)
        order[item] = [*MARKS, None].index(place)
        for mark in MARKS.get(place, []):
            item.add_marker(mark)
        if item.get_closest_marker("gpu") and not _cuda():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
    items.sort(key=order.__getitem__)


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """The base checkpoint .../models/tiny/base/checkpoint. Read only: a test that trains publishes elsewhere."""
    from cisterna import models

    folder = tmp_path_factory.mktemp("results") / "models" / "tiny" / "base" / "checkpoint"
    models.make_base(backbone(), folder)
    return folder


@pytest.fixture(scope="session")
def splice(tmp_path_factory) -> Path:
    """The prepared task .../data/splice-donor, with the sizes SIZES. Read only."""
    from cisterna.data import splits

    folder = tmp_path_factory.mktemp("results") / "data" / "splice-donor"
    with contextlib.chdir(ROOT):  # the table that ships is named relative to the repository
        splits.prepare("splice-donor", SIZES, 0, folder)
    return folder


@pytest.fixture(scope="session")
def esm(tmp_path_factory) -> Path:
    """The encoder .../encoders/tiny-esm/checkpoint, with random weights. Read only."""
    return encoder(tmp_path_factory.mktemp("results") / "encoders" / "tiny-esm" / "checkpoint")


@pytest.fixture(scope="session")
def bank(esm, splice, tmp_path_factory) -> Path:
    """The bank .../features/tiny-esm/splice-donor of the small task. Read only."""
    from cisterna.sequences import feature_bank

    root = tmp_path_factory.mktemp("results")
    folder = root / "features" / "tiny-esm" / "splice-donor"
    feature_bank.build_for_task(esm, splice, READING, root / ".work", folder)
    return folder


@pytest.fixture(scope="session")
def featured(base, splice, bank, tmp_path_factory) -> Run:
    """SFT of the small task with features, from which RL can start. Read only."""
    return solver(base, splice, tmp_path_factory.mktemp("featured"), {"sequences": "features", "bank": bank})
