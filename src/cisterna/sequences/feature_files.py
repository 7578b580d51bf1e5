"""Files of features that were computed elsewhere: an array for each id, from AnnData, Parquet, NumPy or safetensors.

    .h5ad          a matrix of `obsm`, the key `key`; ids are the `obs_names`, or a column of `obs`
    .parquet       a column `key` of lists of numbers, or of lists of such lists; ids are the column `ids` ("id")
    .npz           an array `key` with one entry an id, and an array `ids` ("ids"); or an array for each id, by its name
    .safetensors   a tensor for each id, by its name
    .h5            an array for each id, by its name, as UniProt publishes embeddings of proteins

The features of an id are one row of numbers, or several: a matrix (rows, width). Only the ids of a file are read when
it is opened, and later only the rows that are asked for. Nothing in a file is run: no pickles.

Not for which ids are needed and whether their features fit a task (`cisterna.sequences.precomputed`).
"""

import contextlib
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cisterna.errors import UserError, one_line

NAMES = "obs_names"  # the value of `ids` for the index of `obs`
PIECE = 64 * 2**20  # bytes of a matrix that are read at a time
Arrays = Iterator[np.ndarray[Any, Any]]


class FeatureFile(NamedTuple):
    """An opened file: its ids, and a function that yields the features of some rows (ascending), each (rows, width)."""

    path: Path
    ids: list[str]
    arrays: Callable[[Sequence[int]], Arrays]


def open_file(path: Path, key: str | None = None, ids: str | None = None) -> FeatureFile:
    """Open a file of features; its ending says what it is.

    UserError if there is no such file, if it cannot be read, if there is no `key` or more than one that it could be, if
    the ids are missing, and for a `key` or `ids` that this kind of file does not have.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: not a file of features. Use one of {', '.join(READERS)}.")
    if not path.is_file():
        raise UserError(f"{path}: no such file. Paths are relative to the folder where the command runs.")
    with _readable(path):
        file = reader(path, key, ids)

    def arrays(rows: Sequence[int]) -> Arrays:
        with _readable(path):
            yield from file.arrays(rows)

    return file._replace(arrays=arrays)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """UserError in place of what h5py, pyarrow, NumPy and safetensors raise for a damaged file."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, SafetensorError) as error:
        suffix = path.suffix.lower()
        raise UserError(f"{path}: cannot be read as {suffix} ({one_line(error)}). Write it again.") from error


def _open_h5ad(path: Path, key: str | None, ids: str | None) -> FeatureFile:
    import h5py
    from anndata.io import read_elem

    with h5py.File(path, "r") as file:
        if "obs" not in file or "_index" not in file["obs"].attrs:
            raise UserError(f"{path}: no table 'obs' as AnnData 0.7 and later write it. Write it with write_h5ad.")
        obs, obsm = file["obs"], file.get("obsm", {})
        index = obs.attrs["_index"]
        columns = [name for name in obs if name not in (index, "__categories")]
        if ids not in (None, NAMES, *columns):
            raise UserError(f"{path}: no column {ids!r} in obs for `ids`. It has: {_shown(columns)}.")
        names = _texts(read_elem(obs[index if ids in (None, NAMES) else ids]), path, ids or NAMES)
        if ids is None and names == [str(row) for row in range(len(names))]:
            raise UserError(
                f"{path}: its obs_names are the numbers of the rows and name no cell: `transcriptformer inference` "
                "drops the names. Set `ids` to a column of obs with the ids of the task "
                f"({_shown(columns) or 'there is none'}), or to {NAMES} if these numbers are the ids."
            )
        name = _chosen(path, key, list(obsm), "in obsm", "key of obsm")
        stored = obsm[name]
        matrix = stored if isinstance(stored, h5py.Dataset) else _dense(read_elem(stored))
        _check_matrix(matrix, len(names), f"{path}: obsm[{name!r}]")
        dense = None if isinstance(matrix, h5py.Dataset) else matrix

    def arrays(rows: Sequence[int]) -> Arrays:
        if dense is not None:
            yield from _of_matrix(dense, rows)
            return
        with h5py.File(path, "r") as opened:
            yield from _of_matrix(opened["obsm"][name], rows)

    return FeatureFile(path, names, arrays)


def _open_parquet(path: Path, key: str | None, ids: str | None) -> FeatureFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(path)
    column = ids or "id"
    if column not in schema.names:
        raise UserError(f"{path}: no column {column!r} with the ids; name it in `ids`. It has: {_shown(schema.names)}.")

    def depth(kind: Any) -> int:
        """How many lists are around the numbers of a type; -1 if there are no numbers in it."""
        if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            inner = depth(kind.value_type)
            return inner if inner < 0 else inner + 1
        return 0 if pa.types.is_floating(kind) or pa.types.is_integer(kind) else -1

    lists = [name for name in schema.names if depth(schema.field(name).type) in (1, 2)]
    name = _chosen(path, key, lists, "of lists of numbers", "column")
    names = _texts(pq.read_table(path, columns=[column])[column].to_pylist(), path, column)
    nested = depth(schema.field(name).type) == 2

    def arrays(rows: Sequence[int]) -> Arrays:
        wanted, begin = iter(rows), 0
        row = next(wanted, None)
        for batch in pq.ParquetFile(path).iter_batches(batch_size=1024, columns=[name]):
            values = batch.column(0)
            while row is not None and row < begin + len(values):
                cell = values[row - begin]
                if not cell.is_valid:
                    yield np.full((1, 1), np.nan)  # refused as not finite
                elif nested:
                    parts = [_numbers(part.values) if part.is_valid else np.array([np.nan]) for part in cell]
                    yield _stacked(parts, path, names[row])
                else:
                    yield _numbers(cell.values)[None]
                row = next(wanted, None)
            begin += len(values)

    return FeatureFile(path, names, arrays)


def _open_npz(path: Path, key: str | None, ids: str | None) -> FeatureFile:
    if not zipfile.is_zipfile(path):  # np.load would also take a .npy file of this name
        raise UserError(f"{path}: cannot be read as .npz (not an archive, as np.savez writes it). Write it again.")
    with np.load(path, allow_pickle=False) as file:
        parts = list(file.files)
        column = ids or "ids"
        if column in parts:
            names = _texts(file[column].tolist(), path, column)
            name = _chosen(path, key, [part for part in parts if part != column], "with the features", "array")
            matrix = file[name]
            _check_matrix(matrix, len(names), f"{path}: {name!r}")
            return FeatureFile(path, names, lambda rows: _of_matrix(matrix, rows))
    if ids or key:
        missing = f"array {column!r} with the ids" if ids or key not in parts else "array 'ids'; name it in `ids`"
        raise UserError(f"{path}: no {missing}. It has: {_shown(parts)}.")

    def arrays(rows: Sequence[int]) -> Arrays:
        with np.load(path, allow_pickle=False) as opened:
            yield from (_as_rows(opened[parts[row]], path, parts[row]) for row in rows)

    return FeatureFile(path, parts, arrays)


def _open_safetensors(path: Path, key: str | None, ids: str | None) -> FeatureFile:
    import torch
    from safetensors import safe_open

    _refuse_choice(path, key, ids)
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())

    def arrays(rows: Sequence[int]) -> Arrays:
        with safe_open(path, framework="pt") as opened:
            for row in rows:
                tensor = opened.get_tensor(names[row])
                tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor  # which NumPy does not have
                yield _as_rows(tensor.numpy(), path, names[row])

    return FeatureFile(path, names, arrays)


def _open_hdf5(path: Path, key: str | None, ids: str | None) -> FeatureFile:
    import h5py

    _refuse_choice(path, key, ids)
    with h5py.File(path, "r") as file:
        names = [name for name, part in file.items() if isinstance(part, h5py.Dataset)]
        if len(names) < len(file) or not names:
            raise UserError(f"{path}: expected an array for each id, and no groups. AnnData's files end in .h5ad.")

    def arrays(rows: Sequence[int]) -> Arrays:
        with h5py.File(path, "r") as opened:
            for row in rows:
                yield _as_rows(opened[names[row]][...], path, names[row])

    return FeatureFile(path, names, arrays)


def _refuse_choice(path: Path, key: str | None, ids: str | None) -> None:
    if key or ids:
        given = "key" if key else "ids"
        raise UserError(f"{path}: `{given}` is not supported for {path.suffix}, which has an array for each id.")


READERS: dict[str, Callable[[Path, str | None, str | None], FeatureFile]] = {
    ".h5ad": _open_h5ad,
    ".parquet": _open_parquet,
    ".npz": _open_npz,
    ".safetensors": _open_safetensors,
    ".h5": _open_hdf5,
}


def _shown(names: Iterable[object]) -> str:
    listed = list(map(str, names))
    return ", ".join(listed[:10]) + (f" and {len(listed) - 10} more" if len(listed) > 10 else "")


def _chosen(path: Path, key: str | None, choices: list[str], where: str, what: str) -> str:
    """The key itself, or the only choice there is without one."""
    if key is None and len(choices) == 1:
        return choices[0]
    if key in choices:
        return str(key)
    problem = f"no {what} {key!r} {where}" if key else f"{'several' if choices else 'no'} {what}s {where}"
    raise UserError(f"{path}: {problem}. Set `key` to one of: {_shown(choices) or 'there is none'}.")


def _texts(values: Iterable[Any], path: Path, what: str) -> list[str]:
    """Ids as texts. UserError, naming the row, for one that is missing or a fraction."""
    names = []
    for row, value in enumerate(values, 1):
        text = value.decode() if isinstance(value, bytes) else str(value)
        if pd.api.types.is_list_like(value):
            raise UserError(
                f"{path}: row {row}: {text[:40]} in {what} is not one id. Expected one text or number a row."
            )
        if pd.isna(value) or isinstance(value, float | np.floating) or not text.strip():
            raise UserError(f"{path}: row {row}: {value!r} in {what} is not an id. Expected texts or whole numbers.")
        names.append(text.strip())
    return names


def _dense(element: Any) -> np.ndarray[Any, Any]:
    """A matrix of obsm that AnnData has as a table or as a sparse matrix."""
    return np.asarray(element.toarray() if hasattr(element, "toarray") else element)


def _check_matrix(matrix: Any, count: int, what: str) -> None:
    if matrix.dtype.kind not in "fiu" or len(matrix.shape) not in (2, 3):
        raise UserError(
            f"{what} has the shape {tuple(matrix.shape)} and the type {matrix.dtype}; expected numbers, (ids, width) "
            "or (ids, rows, width)."
        )
    if matrix.shape[0] != count:
        raise UserError(f"{what} has {matrix.shape[0]} entries, but there are {count} ids. Write the file again.")


def _of_matrix(matrix: Any, rows: Sequence[int]) -> Arrays:
    """Ascending rows of a matrix, which may be on disk, each as (rows, width)."""
    step = max(1, PIECE // (int(np.prod(matrix.shape[1:])) * matrix.dtype.itemsize or 1))
    wanted = np.asarray(rows, dtype=np.int64)
    while len(wanted):
        begin = int(wanted[0])
        count = int(np.searchsorted(wanted, begin + step))
        piece = matrix[begin : int(wanted[count - 1]) + 1]
        yield from (entry if entry.ndim == 2 else entry[None] for entry in piece[wanted[:count] - begin])
        wanted = wanted[count:]


def _numbers(values: Any) -> np.ndarray[Any, Any]:
    """Numbers of an Arrow array; a missing one is NaN."""
    return np.asarray(values.to_numpy(zero_copy_only=False))


def _stacked(parts: list[np.ndarray[Any, Any]], path: Path, name: str) -> np.ndarray[Any, Any]:
    widths = sorted({len(part) for part in parts})
    if len(widths) != 1:
        raise UserError(f"{path}: the rows of {name!r} have different widths: {_shown(widths)}. Write the file again.")
    return np.stack(parts)


def _as_rows(array: np.ndarray[Any, Any], path: Path, name: str) -> np.ndarray[Any, Any]:
    if array.dtype.kind not in "fiu" or array.ndim not in (1, 2):
        raise UserError(
            f"{path}: {name!r} has the shape {array.shape} and the type {array.dtype}; expected numbers, (width) or "
            "(rows, width)."
        )
    return array if array.ndim == 2 else array[None]
