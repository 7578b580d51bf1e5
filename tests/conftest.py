"""What many tests start from: a tiny base model, a small task, an encoder and its bank. Read only."""

import contextlib
import os
from pathlib import Path

import pytest

from runs import Run, solver
from tiny import READING, ROOT, SIZES, backbone, encoder

# Before torch is imported: one thread, so that float results do not depend on the machine, and no network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# No Slurm but that of tests/cluster: where one is installed and does not answer, every start of Snakemake waits for it.
os.environ["SLURM_CONF"] = os.devnull
# Set inside a Snakemake run: a test must not hand its commands to that run's server.
os.environ.pop("CISTERNA_WARM", None)


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
    from cisterna.sequences import inputs

    root = tmp_path_factory.mktemp("results")
    folder = root / "features" / "tiny-esm" / "splice-donor"
    inputs.build_bank(esm, splice, READING, root / ".work", folder)
    return folder


@pytest.fixture(scope="session")
def featured(base, splice, bank, tmp_path_factory) -> Run:
    """SFT of the small task with features, from which RL can start. Read only."""
    return solver(base, splice, tmp_path_factory.mktemp("featured"), {"sequences": "features", "bank": bank})
