"""Whether what a study has made is whole (`cisterna verify`), and what of it may go (`cisterna clean`).

    cisterna verify results/models/nano
    cisterna clean --config config/config.yaml config/other.yaml
    cisterna clean --yes

`verify` reads every file below a folder and says all that is wrong, with what to do:

1. Checkpoints, encoders and banks: each file by its SHA-256, the manifest by its own hashes, nothing beside them, and
   the parent's identity. What a checkpoint descends from is checked too where it lies outside the folder, because
   without it the checkpoint cannot be loaded. A file is hashed once, however many children its checkpoint has.
2. Data: the hashes of the splits, and their numbers of rows.
3. All else (tokens, evaluations, tables) has no hashes: it must be complete and readable, and agree with its counts.

`clean` lists what no config refers to and what killed processes left behind, and removes it only when told to. It keeps
what the studies of the given configs are made of, and all state that one of their stages may still go on from.

Not for what a run would do again because an input changed: ask `snakemake --dry-run`.
"""

import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from tqdm import tqdm

from cisterna import study as studies
from cisterna.artifacts import checkpoint, files
from cisterna.constants import SPLITS, TEST_SPLITS
from cisterna.errors import UserError
from cisterna.study import Study

RESULTS = Path("results")

# --- verify ---

THREADS = min(16, os.cpu_count() or 1)  # hashing leaves Python's lock; more would only crowd a shared login node
WEIGHTS = (".safetensors", ".arrow")  # only a checkpoint or a bank has such files
# Files that are published together, and those that tell them from what follows.
DATA = frozenset({"card.json", *(f"{split}.parquet" for split in SPLITS)})
TOKENS = frozenset({"card.json", "train.npy", "starts.npy", "heldout.npy", "heldout_starts.npy"})
EVALUATION = frozenset({"metrics.json", "id.parquet", "ood.parquet"})
KINDS = ((TOKENS, TOKENS - DATA), (DATA, DATA - EVALUATION), (EVALUATION, EVALUATION))


class Check(NamedTuple):
    """One thing to look at: what `look` returns is wrong with `folder`. `size` is what there is to read, in bytes."""

    folder: Path
    size: int
    look: Callable[[], list[str]]


def verify(top: Path) -> str:
    """Check everything at and below `top`; returns a line that says what was checked.

    Prints all that is broken to standard error, a line each, and raises UserError with the number.
    """
    top = Path(os.path.normpath(top))
    if not top.is_dir():
        raise UserError(f"{top}: no such folder; expected {RESULTS}, or a folder below it")
    folders, others, problems = _find(top)
    manifests, unread = _read(folders)
    problems += unread + _other_parents(manifests)
    if not folders and not others:
        raise UserError(f"{top}: no checkpoints, banks, data or evaluations below it")
    hashed = [check for folder, manifest in manifests.items() for check in _contents(folder, manifest)]
    problems += _run([*hashed, *others])
    if problems:
        for line in _lines(problems, manifests):
            print(line, file=sys.stderr)
        broken = {folder for folder, _ in problems}
        checked = {*folders, *manifests, *broken, *(check.folder for check in others)}
        raise UserError(f"{len(broken)} of {len(checked)} checkpoints, banks and other folders are broken")
    origins = sum(not folder.is_relative_to(top) for folder in manifests)
    size = tqdm.format_sizeof(sum(check.size for check in hashed), "B")
    return (
        f"{len(folders)} checkpoints and banks below {top} are whole"
        f"{f', and the {origins} that they descend from' if origins else ''} ({len(hashed)} files, {size}); "
        f"{len(others)} other folders are complete and readable"
    )


def _find(top: Path) -> tuple[list[Path], list[Check], list[tuple[Path, str]]]:
    """Folders of checkpoints and banks, checks of the others, and what cannot be read. Links are followed, once each.

    Names that begin with a dot are left out: work folders, and what killed processes were about to publish.
    """
    folders: list[Path] = []
    others: list[Check] = []
    unread: list[tuple[Path, str]] = []
    seen = {os.path.realpath(top)}

    def note(error: OSError) -> None:
        unread.append((Path(error.filename), f"{error.filename}: cannot be read ({error.strerror})"))

    for place, below, names in os.walk(top, followlinks=True, onerror=note):
        folder = Path(place)
        below[:] = sorted(name for name in below if not name.startswith("."))
        made = any(name.endswith(WEIGHTS) for name in names) or (folder.name == "checkpoint" and not below)
        if made or checkpoint.MANIFEST in names:
            folders.append(folder)
            below.clear()
            continue
        known = sorted(name for name in names if not name.startswith(".") and Path(name).suffix in READERS)
        if known:
            size = sum(_size(folder / name) for name in known)
            others.append(Check(folder, size, partial(_readable, folder, known)))
        places = {name: os.path.realpath(folder / name) for name in below}
        below[:] = [name for name in below if places[name] not in seen]
        seen.update(places.values())
    return folders, others, unread


def _read(folders: Iterable[Path]) -> tuple[dict[Path, dict[str, Any]], list[tuple[Path, str]]]:
    """The manifests of checkpoints and of all that they descend from, and what is wrong with those that have none."""
    manifests: dict[Path, dict[str, Any]] = {}
    problems: dict[Path, str] = {}
    todo = list(folders)
    while todo:
        folder = todo.pop()
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
                    todo.append(checkpoint.parent_of(folder, manifests[folder]))
    return manifests, list(problems.items())


def _other_parents(manifests: dict[Path, dict[str, Any]]) -> list[tuple[Path, str]]:
    """Checkpoints that were trained from another version of their parent. A parent that is not read says so itself."""
    problems = []
    for folder, manifest in manifests.items():
        parent = manifests.get(checkpoint.parent_of(folder, manifest)) if manifest["parent"] else None
        problem = checkpoint.other_parent(folder, manifest, parent) if parent else None
        if problem:
            problems.append((folder, problem))
    return problems


def _contents(folder: Path, manifest: dict[str, Any]) -> Iterator[Check]:
    """Checks of a checkpoint's files against its manifest."""

    def changed(name: str, digest: str) -> list[str]:
        problem = checkpoint.changed_file(folder, name, digest)
        return [problem] if problem else []

    for name, digest in manifest["files"].items():
        yield Check(folder, _size(folder / name), partial(changed, name, digest))
    yield Check(folder, 0, partial(checkpoint.strays, folder, manifest))


def _run(checks: Sequence[Check]) -> list[tuple[Path, str]]:
    """All that is wrong, found in parallel, with a bar where standard error is a terminal."""
    ordered = sorted(checks, key=lambda check: -check.size)

    def look(check: Check) -> tuple[Check, list[str]]:
        try:
            return check, check.look()
        except OSError as error:  # a disk that fails
            return check, [f"{error.filename or check.folder}: cannot be read ({error.strerror})"]

    problems = []
    total = sum(check.size for check in checks)
    with ThreadPool(THREADS) as pool, tqdm(total=total, unit="B", unit_scale=True, leave=False, disable=None) as bar:
        for check, found in pool.imap_unordered(look, ordered):
            problems += [(check.folder, problem) for problem in found]
            bar.update(check.size)
    return problems


def _lines(problems: list[tuple[Path, str]], manifests: dict[Path, dict[str, Any]]) -> list[str]:
    """What is wrong, a line each, sorted; and once for each broken checkpoint how many others descend from it."""
    children: dict[Path, list[Path]] = {}
    for folder, manifest in manifests.items():
        if manifest["parent"]:
            children.setdefault(checkpoint.parent_of(folder, manifest), []).append(folder)

    def descendants(folder: Path) -> int:
        return sum(1 + descendants(child) for child in children.get(folder, []))

    lines = []
    told: set[Path] = set()
    for folder, problem in sorted(problems):
        count = 0 if folder in told else descendants(folder)
        told.add(folder)
        lines.append(f"{problem} ({count} descend{'s' if count == 1 else ''} from it)" if count else problem)
    return lines


def _readable(folder: Path, names: Sequence[str]) -> list[str]:
    """What is wrong with a folder that has no manifest: files that are not there, not readable, or of another size."""
    read: dict[str, Any] = {}
    problems = []
    for name in names:
        try:
            read[name] = READERS[Path(name).suffix](folder / name)
        except (OSError, ValueError, EOFError) as error:
            reason = str(error).splitlines()[0]
            problems.append(f"{folder / name}: cannot be read ({reason}). Delete {folder} and rerun")
    together = next((kind for kind, sign in KINDS if sign & set(names)), frozenset())
    problems += [f"{folder / name}: missing. Delete {folder} and rerun" for name in sorted(together - set(names))]
    head = next((read[name] for name in ("card.json", "metrics.json") if name in read), None)
    if together and head is not None:
        try:
            problems += list(_disagreeing(folder, together, head, read))
        except (KeyError, TypeError, AttributeError):
            problems.append(f"{folder}: its JSON is not what Cisterna writes there. Delete {folder} and rerun")
    return problems


def _disagreeing(folder: Path, together: frozenset[str], head: Any, read: dict[str, Any]) -> Iterator[str]:
    """Files whose content is not what the card or the metrics beside them say."""
    if together == DATA:
        counts = {f"{split}.parquet": head["splits"][split]["rows"] for split in SPLITS}
    elif together == TOKENS:
        counts = {f"{part}.npy": head[part]["tokens"] for part in ("train", "heldout")}
        counts |= {"starts.npy": head["train"]["documents"], "heldout_starts.npy": head["heldout"]["documents"]}
    else:  # the metrics of baselines have another shape
        counts = {f"{split}.parquet": head[split]["accuracy"]["n"] for split in TEST_SPLITS if split in head}
    for name, count in counts.items():
        if name in read and read[name] != count:
            yield f"{folder / name}: holds {read[name]} rows, expected {count}. Delete {folder} and rerun"
    for name, digest in head["files"].items() if together == DATA else ():
        if name in read and files.sha256(folder / name) != digest:
            yield f"{folder / name}: its SHA-256 is not the one in the card. Delete {folder} and rerun"


def _json(path: Path) -> Any:
    return files.read_json(path)


def _parquet(path: Path) -> int:
    """The number of rows, all of them read."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as table:
        return sum(batch.num_rows for batch in table.iter_batches())


def _npy(path: Path) -> int:
    """The length of an array, whose file has to hold all of it and nothing more."""
    import numpy as np

    array = np.lib.format.open_memmap(path, mode="r")
    if array.offset + array.nbytes != _size(path):
        raise ValueError(f"{_size(path)} bytes, expected {array.offset + array.nbytes}")
    return len(array)


READERS: dict[str, Callable[[Path], Any]] = {".json": _json, ".parquet": _parquet, ".npy": _npy}


def _size(path: Path) -> int:
    """The size of a file, or of all files below a folder; 0 where there is nothing."""
    if path.is_dir() and not path.is_symlink():
        return sum(_size(entry) for entry in path.iterdir())
    return path.lstat().st_size if path.is_symlink() or path.exists() else 0


# --- clean ---

# Folders of results/ that stages write to. What else lies there is the user's.
PLACES = ("data", "baselines", "tokens", "encoders", "features", "models", "studies")
REPORTS = ("gather", "figures", "findings", "gather_partial", "partial")  # jobs that write to the folder of a study
LOGS = ("logs", "benchmarks")  # below them a file for each job, at the path of what the job makes
TEMPORARY = re.compile(r"\..+\.([a-z0-9_]{8}(\.earlier)?|\d+)")  # of `files.new_folder` and `files.write_json`
QUIET = 600  # seconds without a change after which a temporary file is no longer one of a running command

UNREFERRED = "no config refers to it"
UNREFERRED_LOG = "files of jobs that no config refers to"
UNREFERRED_STATE = "state of a stage that no config refers to"
LEFT = "left by a killed process"
USELESS = "state of a finished stage, which has no rungs to add"
FINISHED = "state of a finished ladder: of use only to add rungs"


@dataclass(frozen=True)
class Removable:
    """A file or a folder that may go. Where there are `parts`, only these go: below it lies what belongs to others."""

    path: Path
    reason: str
    size: int
    parts: tuple[Path, ...] = ()


class Stage(NamedTuple):
    """Where a stage keeps its state, what says that it is published, and whether its state serves a later rung."""

    work: Path
    proof: Path
    ladder: bool


def clean(configs: Sequence[Path], *, yes: bool = False, finished: bool = False) -> None:
    """Print what may go; with `yes` remove it, with `finished` also the state of finished ladders.

    Raises UserError where a config is not valid; with `yes` also where something runs on the folder.
    """
    given = [studies.read(path) for path in configs]
    print("configs: " + ", ".join(f"{path} (study {study.name})" for path, study in zip(configs, given, strict=True)))
    if not RESULTS.is_dir():
        raise UserError(f"{RESULTS}: no such folder here; run this where the study runs")
    running = _running()
    if yes and running:
        raise UserError(f"nothing is removed while something runs here: {'; '.join(running)}")
    found = list(_unreferred(given))
    found += [*_left(found), *_state(given)]
    chosen = [item for item in found if finished or item.reason != FINISHED]
    later = [item for item in found if item not in chosen]
    for reason in dict.fromkeys(item.reason for item in found):
        items = [item for item in found if item.reason == reason]
        print(f"\n{reason}{'' if finished or reason != FINISHED else ' (stays without --finished)'}")
        for item in items:
            count = f" ({len(item.parts)})" if item.reason == UNREFERRED_LOG else ""
            print(f"  {_bytes(item.size):>7}  {item.path}{count}")
    print()
    for what in running:
        print(f"running here: {what}")
    if yes:
        for item in chosen:
            _remove(item)
        print(f"removed {_sum(chosen)}" if chosen else "nothing to remove")
    else:
        print(f"{_sum(chosen)} may go; --yes removes them" if chosen else "nothing to remove")
    if later:
        print(f"{_sum(later)} more with --finished")


def _sum(items: Sequence[Removable]) -> str:
    return f"{len(items)} {'entry' if len(items) == 1 else 'entries'}, {_bytes(sum(item.size for item in items))}"


def _bytes(size: int) -> str:
    return tqdm.format_sizeof(size, "B")


def _running() -> list[str]:
    """What is at work on the results: Snakemake, and stages that hold the lock of their work folder."""
    from filelock import FileLock, Timeout

    running = []
    if any((RESULTS.parent / ".snakemake" / "locks").glob("*.lock")):
        running.append("Snakemake (if it was killed and no job of it runs: snakemake --unlock)")
    for work in _work_folders():
        try:
            with FileLock(work / ".lock", timeout=0):
                pass
        except Timeout:
            running.append(f"the stage of {work}")
    return running


def _work_folders() -> list[Path]:
    """Every folder in which a stage keeps state. They may lie in each other: a path is a lineage."""
    return [Path(place) for top in _places([".work"]) for place, _, names in os.walk(top) if ".lock" in names]


def _made_of(study: Study) -> set[str]:
    """Everything that a study is made of, relative to results/."""
    paths = {f"studies/{study.name}"}
    paths |= {f"{place}/{task}" for place in ("data", "baselines") for task in study.tasks}
    paths |= {f"tokens/{backbone}/{corpus}" for backbone, corpus in study.tokenized}
    paths |= {f"encoders/{encoder}/checkpoint" for encoder in study.encoders}
    paths |= {f"features/{encoder}/{task}" for encoder, task in study.banks}
    paths |= {f"{model.path}/checkpoint" for model in study.models}
    paths |= {f"{model.path}/perplexity.json" for model in study.models if model.task is None}
    return paths | {folder for folder, _, _ in study.evaluations()} | set(_read_by(study.config))


def _read_by(value: Any) -> Iterator[str]:
    """Files below results/ that a config names, as a table, a corpus or a pretrained model."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _read_by(part)
    elif isinstance(value, str):
        path = Path(os.path.relpath(os.path.realpath(value), os.path.realpath(RESULTS)))
        if path.parts and path.parts[0] != "..":
            yield path.as_posix()


def _unreferred(given: Sequence[Study]) -> Iterator[Removable]:
    """What stands in results/ and is part of no study: each folder whose parent holds something that is."""
    kept = {path for study in given for path in _made_of(study)}
    levels = {str(parent) for path in kept for parent in PurePosixPath(path).parents}

    def below(folder: Path) -> Iterator[Path]:
        for entry in _entries(folder):
            path = entry.relative_to(RESULTS).as_posix()
            if entry.name.startswith(".") or path in kept:
                continue
            if path in levels and entry.is_dir():
                yield from below(entry)
            elif entry.is_dir():  # loose files are the user's
                yield entry

    for place in _places(PLACES):
        for path in below(place):
            yield Removable(path, UNREFERRED, _size(path))

    jobs = {path.removesuffix(".json").removesuffix("/checkpoint") for path in kept}
    jobs |= {f"studies/{study.name}/{job}" for study in given for job in REPORTS}
    for place in _places(LOGS):
        tops = [top for top in _entries(place) if top.name in PLACES]
        logs = [path for top in tops for path in _files(top)]
        gone = tuple(path for path in logs if path.relative_to(place).with_suffix("").as_posix() not in jobs)
        if gone:
            yield Removable(place, UNREFERRED_LOG, sum(map(_size, gone)), gone)


def _left(given: Sequence[Removable]) -> Iterator[Removable]:
    """Temporary files and folders beside what they should have become, but for those inside of what is given."""
    gone = {item.path for item in given}
    for place, below, names in (found for top in _places((*PLACES, *LOGS)) for found in os.walk(top)):
        folder = Path(place)
        for path in (folder / name for name in sorted([*below, *names]) if TEMPORARY.fullmatch(name)):
            if not path.is_symlink() and _newest([path, *_files(path)]) < time.time() - QUIET:
                yield Removable(path, LEFT, _size(path))
        below[:] = [name for name in below if not name.startswith(".") and folder / name not in gone]


def _stages(study: Study) -> Iterator[Stage]:
    """Every stage of a study that keeps state."""
    work = RESULTS / ".work"
    for model in study.models:
        proof = RESULTS / model.path / "checkpoint" / checkpoint.MANIFEST
        if model.kind == "cpt":
            yield Stage(work / model.path, proof, False)
        elif model.kind != "base":
            yield Stage(Path(study.work(model)), proof, study.is_rung(model))
    for encoder in study.encoders:
        proof = RESULTS / "encoders" / encoder / "checkpoint" / checkpoint.MANIFEST
        yield Stage(work / "encoders" / encoder, proof, False)
    for encoder, task in study.banks:
        place = Path("features") / encoder / task
        yield Stage(work / place, RESULTS / place / checkpoint.MANIFEST, False)
    for folder, _, _ in study.evaluations():
        yield Stage(work / folder, RESULTS / folder / "metrics.json", False)


def _state(given: Sequence[Study]) -> Iterator[Removable]:
    """State that no stage goes on from, and that of finished ladders."""
    stages: dict[Path, set[Stage]] = {}
    for study in given:
        for stage in _stages(study):
            stages.setdefault(stage.work, set()).add(stage)
    folders = set(_work_folders())
    holders = {parent for folder in folders for parent in (folder, *folder.parents)}
    for work in sorted(folders):
        parts = tuple(entry for entry in _entries(work) if entry not in holders)
        known = stages.get(work, set())
        if not known:
            reason = UNREFERRED_STATE
        elif _is_under_way(work) or not all(stage.proof.is_file() for stage in known):
            continue
        else:
            reason = FINISHED if any(stage.ladder for stage in known) else USELESS
        size = sum(_size(part) for part in parts)
        if size:
            yield Removable(work, reason, size, parts)


def _is_under_way(work: Path) -> bool:
    """Whether a work folder holds trainer states other than those in which published rungs ended."""
    path = work / "rungs.json"
    ended = {f"checkpoint-{step}" for step in files.read_json(path)} if path.is_file() else set()
    return any(state.name not in ended for state in work.glob("checkpoint-*"))


def _newest(paths: Iterable[Path]) -> float:
    """The time of the last change of any of the paths, in seconds."""
    return max((path.lstat().st_mtime for path in paths), default=0.0)


def _places(names: Iterable[str]) -> list[Path]:
    """Those of the folders of results/ that are there."""
    return [entry for entry in _entries(RESULTS) if entry.name in names]


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, without links: where they lead is not ours."""
    return sorted(entry for entry in folder.iterdir() if not entry.is_symlink()) if folder.is_dir() else []


def _files(path: Path) -> list[Path]:
    """The file itself, or all files below a folder."""
    if not path.is_dir():
        return [path]
    return [Path(place) / name for place, _, names in os.walk(path) for name in sorted(names)]


def _remove(item: Removable) -> None:
    """Remove it, and the folders that it leaves empty."""
    lock = item.path / ".lock"
    with files.lock(item.path) if lock in item.parts else nullcontext():
        for path in sorted(item.parts or [item.path], key=lambda path: path == lock):  # the lock last
            if path.is_dir():  # first it gets a name that no stage reads
                temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
                os.replace(path, temporary)
                shutil.rmtree(temporary)
            else:
                path.unlink()
    for path in item.parts or [item.path]:
        for folder in path.parents:
            if folder == RESULTS or (folder.is_dir() and any(folder.iterdir())):
                break
            if folder.is_dir():
                folder.rmdir()
