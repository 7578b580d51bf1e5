"""Atomic writing and hashing of files and folders, whatever their content."""

import codecs
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cisterna.errors import UserError

CLONE = Path(__file__).resolve().parents[3]  # which this package is installed from
DEFAULT_CONFIG = Path("config/config.yaml")


def locate(path: str | Path) -> Path:
    """A file that a study names. It is in the working directory, or in the clone if it is below resources/.

    Everything below resources/ ships with Cisterna, so a study may run in any folder.
    """
    path = Path(path)
    ships = path.parts[:1] == ("resources",)
    return CLONE / path if ships and not path.exists() and (CLONE / path).exists() else path


def default_config(option: str) -> Path:
    """DEFAULT_CONFIG. UserError if it is not in the working directory; `option` is the one that names another file."""
    if not DEFAULT_CONFIG.exists():
        raise UserError(f"no {DEFAULT_CONFIG} in {Path.cwd()}; name a study with {option} FILE, or run in its folder")
    return DEFAULT_CONFIG


def not_unicode(lines: Iterable[bytes]) -> str:
    """Which line of a text file is not UTF-8, what it may be, and what to do."""
    for number, line in enumerate(lines, 1):
        if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "line 1: cannot be read, it is UTF-16 text. Save the file as UTF-8"
        try:
            line.decode()
        except UnicodeDecodeError as error:
            byte = f"byte 0x{line[error.start]:02x}"
            return f"line {number}: cannot be read, {byte} is not UTF-8 (Latin-1, perhaps). Save the file as UTF-8"
    return "cannot be read, it does not end with a whole letter of UTF-8. Copy it again"


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hexadecimal text."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest(value: Any) -> str:
    """The SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, with sorted keys (the same value gives the same bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json_text(value))


def json_text(value: Any) -> str:
    """The text that `write_json` writes."""
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Read a JSON file that Cisterna wrote."""
    return json.loads(path.read_text())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; when the block ends well, that file replaces `path` by a rename.

    If the block raises, the temporary file is removed and an earlier `path` is untouched. The folder has to exist.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # the error that led here says more
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `target`; when the block ends well, it replaces `target` by renames.

    If the block raises, the temporary folder is removed and an earlier `target` is untouched. No other process ever
    sees a `target` half written or half deleted, even if this process is killed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    temporary.chmod(0o755)
    earlier = temporary.with_name(f"{temporary.name}.earlier")
    try:
        yield temporary
        sync(temporary)
        if target.is_dir():
            os.replace(target, earlier)
        os.replace(temporary, target)
        _sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(earlier, ignore_errors=True)


def remove_leftovers(target: Path) -> None:
    """Remove what killed processes left of `new_folder(target)`. Only for a process that alone makes `target`."""
    random = "?" * 8  # as `tempfile.mkdtemp` adds; "*" would match the folders of a target `{target.name}.more`
    for ending in (random, f"{random}.earlier"):
        for path in target.parent.glob(glob.escape(f".{target.name}.") + ending):
            shutil.rmtree(path, ignore_errors=True)


def sync(folder: Path) -> None:
    """Wait until every file of a folder is on the disk, so that a power failure after the rename cannot damage it."""
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
