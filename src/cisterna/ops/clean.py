"""`cisterna clean`: results that no config refers to, and what killed processes left behind.

    cisterna clean --config config/config.yaml config/other.yaml
    cisterna clean --yes

It lists them with their sizes, and with --yes removes them. It keeps the results of the studies of all given configs,
and all state that a stage of these studies can still resume from. Links are neither followed nor removed.

Not for results that are out of date because an input changed: Snakemake makes these again.
"""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from cisterna import study as studies
from cisterna.artifacts import files, work_folder
from cisterna.errors import UserError
from cisterna.study import Study
from cisterna.study.jobs import ANSWERS, Job, jobs

RESULTS = Path("results")
# The folders of results/ that jobs write to. Everything else in results/ belongs to the user.
FOLDERS = ("data", "baselines", "tokens", "encoders", "features", "models", "studies")
LOG_FOLDERS = ("logs", "benchmarks")  # have a file for each job
PARTIAL = ("partial",)  # the rule of a partial report, which is no job of a study
# Names of the temporary files and folders of `files.new_folder` and `files.replacing`.
TEMPORARY = re.compile(r"\..+\.([a-z0-9_]{8}(\.earlier)?|\d+)")
QUIET = 600  # seconds without a change after which no running command can own a temporary file

UNREFERENCED = "no config refers to it"
UNREFERENCED_LOG = "files of jobs that no config refers to"
UNREFERENCED_STATE = "state of a stage that no config refers to"
LEFTOVER = "left by a killed process"
FINISHED_STAGE = "state of a finished stage, which has no rungs to add"
FINISHED_LADDER = "state of a finished ladder, or answers of a finished group: of use only to add rungs"


@dataclass(frozen=True)
class Removable:
    """A file or folder that can be removed; if it has `parts`, only these of its files and folders."""

    path: Path
    reason: str
    size: int  # bytes
    parts: tuple[Path, ...] = ()


def clean(configs: Sequence[Path], *, yes: bool = False, finished: bool = False) -> None:
    """Print what can be removed; with `yes` remove it; with `finished` also the state of finished ladders.

    Raises UserError if a config is not valid, and with `yes` if something is running here.
    """
    kept = [studies.read(path) for path in configs]
    print("configs: " + ", ".join(f"{path} (study {study.name})" for path, study in zip(configs, kept, strict=True)))
    if not RESULTS.is_dir():
        raise UserError(f"{RESULTS}: no such folder here; run this where the study runs")
    running = _running()
    if yes and running:
        raise UserError(f"nothing is removed while something runs here: {'; '.join(running)}")
    removable = list(_unreferenced(kept))
    removable += [*_leftovers(removable), *_unneeded_state(kept)]
    chosen = [item for item in removable if finished or item.reason != FINISHED_LADDER]
    ladders = [item for item in removable if item not in chosen]
    for reason in dict.fromkeys(item.reason for item in removable):
        print(f"\n{reason}{'' if finished or reason != FINISHED_LADDER else ' (stays without --finished)'}")
        for item in removable:
            if item.reason == reason:
                count = f" ({len(item.parts)})" if reason == UNREFERENCED_LOG else ""
                print(f"  {_readable_size(item.size):>7}  {item.path}{count}")
    print()
    for what in running:
        print(f"running here: {what}")
    if yes:
        for item in chosen:
            _remove(item)
        print(f"removed {_total(chosen)}" if chosen else "nothing to remove")
    else:
        print(f"{_total(chosen)} can be removed, with --yes" if chosen else "nothing to remove")
    if ladders:
        print(f"{_total(ladders)} more with --finished")


def _running() -> list[str]:
    """What works on the results now: Snakemake, and stages that have the lock of their work folder."""
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


# --- What can be removed ---


def _unreferenced(kept: Sequence[Study]) -> Iterator[Removable]:
    """Results and logs that belong to no study of `kept`. A folder is listed once, without the folders inside it."""
    all_jobs = [job for study in kept for job in jobs(study)]
    inputs = {path for study in kept for path in _results_in(study.config)}
    outputs = {output for job in all_jobs for output in job.outputs}
    referenced = outputs | inputs | {f"studies/{study.name}" for study in kept}
    parents = {str(parent) for path in referenced for parent in PurePosixPath(path).parents}

    def unreferenced_in(folder: Path) -> Iterator[Path]:
        for entry in _entries(folder):
            path = entry.relative_to(RESULTS).as_posix()
            if entry.name.startswith(".") or path in referenced:
                continue
            if path in parents and entry.is_dir():
                yield from unreferenced_in(entry)
            elif entry.is_dir() or entry.name in ("perplexity.json", ANSWERS):  # all other single files are the user's
                yield entry

    for place in _existing(FOLDERS):
        for folder in unreferenced_in(place):
            yield Removable(folder, UNREFERENCED, _size(folder))

    logs = {job.log.removeprefix("logs/").removesuffix(".log") for job in all_jobs}
    logs |= {path.removesuffix("/checkpoint") for path in inputs}
    logs |= {f"studies/{study.name}/{rule}" for study in kept for rule in PARTIAL}
    for place in _existing(LOG_FOLDERS):
        of_jobs = [path for folder in _entries(place) if folder.name in FOLDERS for path in _files(folder)]
        parts = tuple(path for path in of_jobs if path.relative_to(place).with_suffix("").as_posix() not in logs)
        if parts:
            yield Removable(place, UNREFERENCED_LOG, sum(map(_size, parts)), parts)


def _results_in(config: Any) -> Iterator[str]:
    """The paths below results/ that a config has as values: a table, a corpus or a pretrained model."""
    if isinstance(config, dict | list):
        for value in config.values() if isinstance(config, dict) else config:
            yield from _results_in(value)
    elif isinstance(config, str):
        path = Path(os.path.relpath(os.path.realpath(config), os.path.realpath(RESULTS)))
        if path.parts and path.parts[0] != "..":
            yield path.as_posix()


def _leftovers(others: Sequence[Removable]) -> Iterator[Removable]:
    """Temporary files and folders of killed processes, except those inside a folder of `others`."""
    removed = {item.path for item in others}
    for top in _existing((*FOLDERS, *LOG_FOLDERS)):
        for walked, subfolders, names in os.walk(top):
            folder = Path(walked)
            for path in (folder / name for name in sorted([*subfolders, *names]) if TEMPORARY.fullmatch(name)):
                if not path.is_symlink() and _last_change(path) < time.time() - QUIET:
                    yield Removable(path, LEFTOVER, _size(path))
            subfolders[:] = [name for name in subfolders if not name.startswith(".") and folder / name not in removed]


def _unneeded_state(kept: Sequence[Study]) -> Iterator[Removable]:
    """State that no stage will resume from, and the state of finished ladders."""
    owners: dict[Path, list[Job]] = {}
    for job in (job for study in kept for job in jobs(study) if job.work):
        owners.setdefault(RESULTS / str(job.work), []).append(job)
    folders = set(_work_folders())
    occupied = {parent for folder in folders for parent in (folder, *folder.parents)}
    for work in sorted(folders):
        users = owners.get(work, [])
        if not users:
            reason = UNREFERENCED_STATE
        elif _is_under_way(work) or not all((RESULTS / job.proof).is_file() for job in users):
            continue
        else:
            reason = FINISHED_LADDER if any(job.ladder for job in users) else FINISHED_STAGE
        parts = tuple(entry for entry in _entries(work) if entry not in occupied)
        size = sum(map(_size, parts))
        if size:
            yield Removable(work, reason, size, parts)


def _is_under_way(work: Path) -> bool:
    """Whether a work folder has a trainer state later than those of the published rungs."""
    path = work / "rungs.json"
    published = {f"checkpoint-{step}" for step in files.read_json(path)} if path.is_file() else set()
    return any(state.name not in published for state in work.glob("checkpoint-*"))


def _remove(item: Removable) -> None:
    """Remove it, and the folders that are empty then."""
    paths = item.parts or (item.path,)
    lock = item.path / ".lock"
    with work_folder.locked(item.path) if lock in paths else nullcontext():
        for path in sorted(paths, key=lambda path: path == lock):  # the lock last
            if path.is_dir():  # renamed first, so that no stage sees it half removed
                temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
                os.replace(path, temporary)
                shutil.rmtree(temporary)
            else:
                path.unlink()
    for path in paths:
        for folder in path.parents:
            if folder == RESULTS or (folder.is_dir() and any(folder.iterdir())):
                break
            if folder.is_dir():
                folder.rmdir()


# --- Files and folders ---


def _existing(names: Iterable[str]) -> list[Path]:
    """Those of these folders of results/ that exist."""
    return [entry for entry in _entries(RESULTS) if entry.name in names]


def _work_folders() -> list[Path]:
    """Every folder in which a stage keeps state. Work folders can be inside each other: a path is a lineage."""
    return [Path(place) for top in _existing([".work"]) for place, _, names in os.walk(top) if ".lock" in names]


def _entries(folder: Path) -> list[Path]:
    """The files and folders in a folder, without links."""
    return sorted(entry for entry in folder.iterdir() if not entry.is_symlink()) if folder.is_dir() else []


def _files(path: Path) -> list[Path]:
    """The file itself, or all files below a folder."""
    if not path.is_dir():
        return [path]
    return [Path(place) / name for place, _, names in os.walk(path) for name in sorted(names)]


def _size(path: Path) -> int:
    """The size of a file, or of all files below a folder, in bytes."""
    return sum(file.lstat().st_size for file in _files(path))


def _last_change(path: Path) -> float:
    """The time of the last change of a file, or of a folder and the files below it. Unix time."""
    return max(file.lstat().st_mtime for file in [path, *_files(path)])


def _total(items: Sequence[Removable]) -> str:
    size = _readable_size(sum(item.size for item in items))
    return f"{len(items)} {'entry' if len(items) == 1 else 'entries'}, {size}"


def _readable_size(size: int) -> str:
    return tqdm.format_sizeof(size, "B")
