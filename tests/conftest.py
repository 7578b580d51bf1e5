"""What many tests start from: a tiny base model and a small task, both made by Cisterna's own commands."""

import contextlib
import os
from pathlib import Path

import pytest

from tiny import ROOT, SIZES, backbone

# Before torch is imported: one thread, so that float results do not depend on the machine, and no network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
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
    from cisterna import data

    folder = tmp_path_factory.mktemp("results") / "data" / "splice-donor"
    with contextlib.chdir(ROOT):  # the table that ships is named relative to the repository
        data.prepare("splice-donor", SIZES, 0, folder)
    return folder
