"""`cisterna verify`: whether the results below a folder are complete and unchanged.

It reads every file and lists everything that is wrong, with what to do:

1. Checkpoints, encoders and feature banks: the SHA-256 of each file and of the manifest, files that the manifest does
   not list, and the identity of the parent. The ancestors of a checkpoint are checked even if they are outside the
   folder, because the checkpoint cannot be loaded without them. Each file is hashed once.
2. Data: the SHA-256 of the splits, and their numbers of rows.
3. Everything else (tokenized corpora, evaluations, tables) has no hashes: all files must exist, be readable and have
   the counts that their JSON says.

Not for results that are out of date because an input changed: use `snakemake --dry-run`.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from cisterna.artifacts import checkpoint, files
from cisterna.constants import SPLITS, TEST_SPLITS
from cisterna.errors import UserError, one_line

THREADS = min(16, os.cpu_count() or 1)  # hashing releases Python's lock; more would overload a shared login node
WEIGHTS = (".safetensors", ".arrow")  # only checkpoints and feature banks have such files
# The files that are published together in a folder without a manifest.
DATA = frozenset({"card.json", *(f"{split}.parquet" for split in SPLITS)})
TOKENS = frozenset({"card.json", "train.npy", "starts.npy", "heldout.npy", "heldout_starts.npy"})
EVALUATION = frozenset({"metrics.json", "id.parquet", "ood.parquet"})


class Problem(NamedTuple):
    """Something that is wrong with a folder, as a line for the user."""

    folder: Path
    line: str


class Check(NamedTuple):
    """A check of a folder: `run` returns a line for each problem. `size` is what it reads, in bytes."""

    folder: Path
    size: int
    run: Callable[[], list[str]]


def verify(top: Path) -> str:
    """Check everything at and below `top`; returns a line that says what was checked.

    Prints each problem to standard error, and then raises a UserError with the number of broken folders.
    """
    top = Path(os.path.normpath(top))
    if not top.is_dir():
        raise UserError(f"{top}: no such folder; expected results, or a folder below it")
    artifacts, others, problems = _find(top)
    if not artifacts and not others:
        raise UserError(f"{top}: no checkpoints, banks, data or evaluations below it")
    manifests, unreadable = _manifests(artifacts)
    hashed = [check for folder, manifest in manifests.items() for check in _file_checks(folder, manifest)]
    problems += [*unreadable, *_changed_parents(manifests), *_run_checks([*hashed, *others])]
    if problems:
        for line in _messages(problems, manifests):
            print(line, file=sys.stderr)
        broken = {problem.folder for problem in problems}
        checked = {*artifacts, *manifests, *broken, *(check.folder for check in others)}
        raise UserError(f"{len(broken)} of {len(checked)} checkpoints, banks and other folders are broken")
    ancestors = sum(not folder.is_relative_to(top) for folder in manifests)
    size = tqdm.format_sizeof(sum(check.size for check in hashed), "B")
    return (
        f"{len(artifacts)} checkpoints and banks below {top} are whole"
        f"{f', and the {ancestors} that they descend from' if ancestors else ''} ({len(hashed)} files, {size}); "
        f"{len(others)} other folders are complete and readable"
    )


def _find(top: Path) -> tuple[list[Path], list[Check], list[Problem]]:
    """The folders of checkpoints and banks, checks of all other folders, and folders that cannot be read.

    Follows links, each target once. Skips names that begin with a dot: work folders and unfinished temporary files.
    """
    artifacts: list[Path] = []
    others: list[Check] = []
    unreadable: list[Problem] = []
    visited = {os.path.realpath(top)}

    def record(error: OSError) -> None:
        unreadable.append(Problem(Path(error.filename), f"{error.filename}: cannot be read ({error.strerror})"))

    for walked, subfolders, names in os.walk(top, followlinks=True, onerror=record):
        folder = Path(walked)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        has_weights = any(name.endswith(WEIGHTS) for name in names)
        if checkpoint.MANIFEST in names or has_weights or (folder.name == "checkpoint" and not subfolders):
            artifacts.append(folder)
            subfolders.clear()
            continue
        readable = sorted(name for name in names if not name.startswith(".") and Path(name).suffix in READERS)
        if readable:
            size = sum(_size(folder / name) for name in readable)
            others.append(Check(folder, size, partial(_check_readable, folder, readable)))
        targets = {name: os.path.realpath(folder / name) for name in subfolders}
        subfolders[:] = [name for name in subfolders if targets[name] not in visited]
        visited.update(targets.values())
    return artifacts, others, unreadable


def _manifests(folders: Iterable[Path]) -> tuple[dict[Path, dict[str, Any]], list[Problem]]:
    """The manifests of these folders and of all their ancestors, and the problems of those that cannot be read."""
    manifests: dict[Path, dict[str, Any]] = {}
    problems: dict[Path, str] = {}
    pending = list(folders)
    while pending:
        folder = pending.pop()
        if folder in manifests or folder in problems:
            continue
        if not folder.is_dir():
            problems[folder] = f"{folder}: missing. Put it back, or build it with: snakemake --cores 1 {folder}"
        elif not (folder / checkpoint.MANIFEST).is_file():
            problems[folder] = f"{folder}: has no {checkpoint.MANIFEST}. Delete it and rerun"
        else:
            try:
                manifests[folder] = checkpoint.read_manifest(folder)
            except (UserError, OSError) as error:
                problems[folder] = str(error)
            else:
                if manifests[folder]["parent"]:
                    pending.append(checkpoint.parent_of(folder, manifests[folder]))
    return manifests, [Problem(folder, line) for folder, line in problems.items()]


def _changed_parents(manifests: dict[Path, dict[str, Any]]) -> Iterator[Problem]:
    """Checkpoints that were trained from another version of their parent. `_manifests` lists unreadable parents."""
    for folder, manifest in manifests.items():
        parent = manifests.get(checkpoint.parent_of(folder, manifest)) if manifest["parent"] else None
        line = checkpoint.other_parent(folder, manifest, parent) if parent else None
        if line:
            yield Problem(folder, line)


def _file_checks(folder: Path, manifest: dict[str, Any]) -> Iterator[Check]:
    """Checks of a folder's files against its manifest."""

    def changed(name: str, digest: str) -> list[str]:
        line = checkpoint.changed_file(folder, name, digest)
        return [line] if line else []

    for name, digest in manifest["files"].items():
        yield Check(folder, _size(folder / name), partial(changed, name, digest))
    yield Check(folder, 0, partial(checkpoint.strays, folder, manifest))


def _run_checks(checks: Sequence[Check]) -> list[Problem]:
    """Run checks in parallel, the biggest first, with a progress bar if standard error is a terminal."""

    def run(check: Check) -> tuple[Check, list[str]]:
        try:
            return check, check.run()
        except OSError as error:  # a disk that fails
            return check, [f"{error.filename or check.folder}: cannot be read ({error.strerror})"]

    problems = []
    total = sum(check.size for check in checks)
    with ThreadPool(THREADS) as pool, tqdm(total=total, unit="B", unit_scale=True, leave=False, disable=None) as bar:
        for check, lines in pool.imap_unordered(run, sorted(checks, key=lambda check: -check.size)):
            problems += [Problem(check.folder, line) for line in lines]
            bar.update(check.size)
    return problems


def _messages(problems: Iterable[Problem], manifests: dict[Path, dict[str, Any]]) -> Iterator[str]:
    """The problems in order; the first of each broken checkpoint says how many others descend from it."""
    children: dict[Path, list[Path]] = {}
    for folder, manifest in manifests.items():
        if manifest["parent"]:
            children.setdefault(checkpoint.parent_of(folder, manifest), []).append(folder)

    def descendants(folder: Path) -> int:
        return sum(1 + descendants(child) for child in children.get(folder, []))

    counted: set[Path] = set()
    for folder, line in sorted(problems):
        count = 0 if folder in counted else descendants(folder)
        counted.add(folder)
        yield f"{line} ({count} descend{'s' if count == 1 else ''} from it)" if count else line


# --- Folders without a manifest ---


def _check_readable(folder: Path, names: Sequence[str]) -> list[str]:
    """What is wrong with a folder that has no manifest: files that are missing, unreadable or of another length."""
    contents: dict[str, Any] = {}  # a JSON value, or the length of a table or an array
    lines = []
    for name in names:
        try:
            contents[name] = READERS[Path(name).suffix](folder / name)
        except (OSError, ValueError, EOFError) as error:
            lines.append(f"{folder / name}: cannot be read ({one_line(error)}). Delete {folder} and rerun")
    expected = _published_with(names)
    lines += [f"{folder / name}: missing. Delete {folder} and rerun" for name in sorted(expected - set(names))]
    try:
        if expected == EVALUATION and "metrics.json" in contents:
            lines += _compare_lengths(folder, contents, _evaluation_lengths(contents["metrics.json"]))
        elif "card.json" in contents:
            card = contents["card.json"]
            lines += _compare_lengths(folder, contents, _card_lengths(card, expected))
            for name, digest in card["files"].items() if expected == DATA else ():
                if name in contents and files.sha256(folder / name) != digest:
                    lines.append(f"{folder / name}: its SHA-256 is not the one in the card. Delete {folder} and rerun")
    except (KeyError, TypeError, AttributeError):
        lines.append(f"{folder}: its JSON is not what Cisterna writes there. Delete {folder} and rerun")
    return lines


def _published_with(names: Iterable[str]) -> frozenset[str]:
    """The files that a folder with these files must have: those of data, tokens or an evaluation; else none."""
    found = frozenset(names)
    if found & (TOKENS - DATA):
        return TOKENS
    if found & (DATA - EVALUATION):
        return DATA
    return EVALUATION if found & EVALUATION else frozenset()


def _card_lengths(card: Any, expected: frozenset[str]) -> dict[str, int]:
    """Rows of the splits of a task, or tokens and documents of a corpus, as their card says."""
    if expected == DATA:
        return {f"{split}.parquet": card["splits"][split]["rows"] for split in SPLITS}
    train, heldout = card["train"], card["heldout"]
    return {
        "train.npy": train["tokens"],
        "heldout.npy": heldout["tokens"],
        "starts.npy": train["documents"],
        "heldout_starts.npy": heldout["documents"],
    }


def _evaluation_lengths(metrics: Any) -> dict[str, int]:
    """Examples of each split; nothing for baselines, whose metrics are by the name of the baseline."""
    return {f"{split}.parquet": metrics[split]["accuracy"]["n"] for split in TEST_SPLITS if split in metrics}


def _compare_lengths(folder: Path, contents: dict[str, Any], expected: dict[str, int]) -> Iterator[str]:
    for name, count in expected.items():
        if name in contents and contents[name] != count:
            yield f"{folder / name}: has {contents[name]} rows, expected {count}. Delete {folder} and rerun"


def _parquet_rows(path: Path) -> int:
    """The number of rows, after reading all of them."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as table:
        return sum(batch.num_rows for batch in table.iter_batches())


def _npy_length(path: Path) -> int:
    """The length of an array. ValueError if the file is shorter or longer than the array."""
    import numpy as np

    array = np.lib.format.open_memmap(path, mode="r")
    if array.offset + array.nbytes != _size(path):
        raise ValueError(f"{_size(path)} bytes, expected {array.offset + array.nbytes}")
    return len(array)


READERS: dict[str, Callable[[Path], Any]] = {".json": files.read_json, ".parquet": _parquet_rows, ".npy": _npy_length}


def _size(path: Path) -> int:
    """The size of a file in bytes; 0 if there is none."""
    return path.stat().st_size if path.is_file() else 0
