"""How the tests run, and what many of them start from: a tiny base model, a small task, an encoder and its bank."""

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

from clones import Clone, make
from runs import Run, solver
from tiny import READING, ROOT, SIZES, backbone, encoder

# nohup, and shells for jobs in the background, ignore signals that tests send to the processes that they start.
for _number, _default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _default)

# Modules that the tests of a folder share.
sys.path.extend(str(folder) for folder in sorted((ROOT / "tests").iterdir()) if folder.is_dir())

# Before torch is imported: one thread, so that float results do not depend on the machine, and no network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# No Slurm but that of tests/cluster: where one is installed and does not answer, every start of Snakemake waits for it.
os.environ["SLURM_CONF"] = os.devnull
# Set inside a Snakemake run: a test must not hand its commands to that run's server.
os.environ.pop("CISTERNA_FORK_SERVER", None)

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
    "test_families.py": ["slow"],
    "runtime": ["slow"],
    "report/test_figures.py": ["slow"],  # draws every figure, of many studies
    "report/test_missing.py": ["slow"],
    "report/test_findings.py": ["slow"],  # simulates many studies
}
TRAINED = {"trained", "solved", "featured", "finished"}  # fixtures that train


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a value that has no short text by its argument: workers have to collect the same names.

    Text of an object may hold its address, and bytes may hold the time at which they were packed.
    """
    return None if isinstance(val, str | int | float | type | None) else argname


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their place and fixtures, skip those for which there is no GPU, and put the long files first."""
    order = {}
    for item in items:
        path = item.path.relative_to(ROOT / "tests")
        place = next((place for place in MARKS if path.is_relative_to(place)), None)
        order[item] = [*MARKS, None].index(place)
        for mark in MARKS.get(place, []):
            item.add_marker(mark)
        if TRAINED & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
        if item.get_closest_marker("gpu") and not _cuda():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
    items.sort(key=order.__getitem__)


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def shared(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that `make` fills once for all workers of the run."""
    worker = factory.getbasetemp()
    folder = (worker.parent if "PYTEST_XDIST_WORKER" in os.environ else worker) / "shared" / name
    folder.parent.mkdir(exist_ok=True)
    done = folder.with_name(f"{name}.done")
    with FileLock(folder.with_name(f"{name}.lock")):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """The base checkpoint .../models/tiny/base/checkpoint. Read only: a test that trains publishes elsewhere."""
    from cisterna import models

    place = Path("models", "tiny", "base", "checkpoint")
    return shared(tmp_path_factory, "base", lambda folder: models.make_base(backbone(), folder / place)) / place


@pytest.fixture(scope="session")
def splice(tmp_path_factory) -> Path:
    """The prepared task .../data/splice-donor, with the sizes SIZES. Read only."""
    from cisterna.data import splits

    def make(folder: Path) -> None:
        with contextlib.chdir(ROOT):  # the table that ships is named relative to the repository
            splits.prepare("splice-donor", SIZES, 0, folder / "data" / "splice-donor")

    return shared(tmp_path_factory, "splice", make) / "data" / "splice-donor"


@pytest.fixture(scope="session")
def esm(tmp_path_factory) -> Path:
    """The encoder .../encoders/tiny-esm/checkpoint, with random weights. Read only."""
    place = Path("encoders", "tiny-esm", "checkpoint")
    return shared(tmp_path_factory, "esm", lambda folder: encoder(folder / place)) / place


@pytest.fixture(scope="session")
def bank(esm, splice, tmp_path_factory) -> Path:
    """The bank .../features/tiny-esm/splice-donor of the small task. Read only."""
    from cisterna.sequences import feature_bank

    place = Path("features", "tiny-esm", "splice-donor")

    def make(folder: Path) -> None:
        feature_bank.build_for_task(esm, splice, READING, folder / ".work", folder / place)

    return shared(tmp_path_factory, "bank", make) / place


@pytest.fixture(scope="session")
def dna(base, tmp_path_factory) -> Path:
    """The DNA that ships, as blocks of tokens for the tiny model. Read only."""
    from cisterna.data.tokenized import tokenize_corpus

    source = ROOT / "resources" / "corpora" / "dna.fasta.gz"
    return shared(tmp_path_factory, "dna", lambda folder: tokenize_corpus(source, "dna", base, folder / "dna")) / "dna"


@pytest.fixture(scope="session")
def solved(base, splice, tmp_path_factory) -> Run:
    """SFT of the small task, from which RL can start: its completions differ in reward. Read only."""
    folder = shared(tmp_path_factory, "solved", lambda folder: solver(base, splice, folder).here())
    return solver(base, splice, folder)


@pytest.fixture(scope="session")
def featured(base, splice, bank, tmp_path_factory) -> Run:
    """The same with features. Read only."""
    reads = {"sequences": "features", "bank": bank}
    folder = shared(tmp_path_factory, "featured", lambda folder: solver(base, splice, folder, reads).here())
    return solver(base, splice, folder, reads)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Clone:
    """The tiny study of `clones`, run once. Read only: a test that changes anything takes `clone`."""
    folder = shared(tmp_path_factory, "with a blank", lambda folder: make(folder / "study").snakemake())
    return Clone(folder / "study")
