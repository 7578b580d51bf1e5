"""Precomputed features: those that an encoder made elsewhere, joined to the examples of a task by their ids.

    encoders:
      transcriptformer: {features: data/embeddings.h5ad, key: embeddings, ids: cell}

The features of an example are those of its `id` in the splits (results/data/TASK/*.parquet). Where the stretches of a
prompt are of several sequences, each has features of its own: `ID/NAME` with the names of the sequences that the task
gives (`row-7/reference`), and otherwise `ID/1`, `ID/2` in the order of the prompt.

`per` says what the features of an id are: with `example` they all stand between the tags, one row of numbers or
several; with `residue` there is one row for each residue of the whole sequence, of which a prompt shows those of its
stretch, and `pool` makes means of them.

A network that reads cells and not their sentences (`package: transcriptformer`) gives features by id too, here and now:
`CellTable` runs it on the `.h5ad` file of the task.

Not for reading files (`cisterna.sequences.feature_files`), and not for networks that read sequences
(`cisterna.sequences.encoders`).
"""

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cisterna.artifacts import checkpoint, files
from cisterna.errors import UserError
from cisterna.sequences import encoders, feature_files

NAMED = 3  # ids that a message names
LOST = 0.01  # share of a row that its type on disk may change: bfloat16 rounds to 0.004


def by_id(reading: Mapping[str, Any]) -> bool:
    """Whether features that are read so belong to ids, and not to sequences."""
    return "per" in reading


def sequence_names(segments: Iterable[Sequence[Mapping[str, Any]]], named: Sequence[str]) -> tuple[str, ...]:
    """What is behind the slash in the ids of the stretches of a task; nothing if all are of the example's one sequence.

    `segments` are those of all its examples, `named` the names of its sequences that its card has.
    """
    if len(named) > 1:
        return tuple(named)
    most = 0
    for stretches in segments:
        if len({stretch["sequence"] for stretch in stretches}) > 1:
            most = max(most, len(stretches))
    return tuple(str(place) for place in range(1, most + 1))


def ids_of(identifier: str, count: int, names: Sequence[str]) -> list[str]:
    """The ids of the features of the `count` stretches of an example; `names` as `sequence_names` returns them."""
    return [f"{identifier}/{name}" for name in names[:count]] if names else [identifier] * count


def wanted(ids: Iterable[str], segments: Iterable[Sequence[Mapping[str, Any]]], names: Sequence[str]) -> dict[str, int]:
    """The ids of the features that examples with these ids and segments need, with the residues of their sequences."""
    return {
        name: len(stretch["sequence"])
        for identifier, stretches in zip(ids, segments, strict=True)
        for name, stretch in zip(ids_of(identifier, len(stretches), names), stretches, strict=True)
    }


def rows_of(place: tuple[int, int], stretch: str, segment: Mapping[str, Any], reading: Mapping[str, Any]) -> range:
    """The rows of a stretch of a prompt, whose id has the rows `place` (the first, their number)."""
    first, count = place
    if reading["per"] == "example":
        return range(first, first + count)
    window, start = reading.get("pool") or 1, segment["start"]
    return range(first + start // window, first + encoders.rows(start + len(stretch), window))


def row_count(residues: int, reading: Mapping[str, Any]) -> int | None:
    """The number of rows of an id whose sequence has so many residues; None if any number will do."""
    return encoders.rows(residues, reading.get("pool")) if reading["per"] == "residue" else None


def check_known(missing: Sequence[str], count: int, where: object, advice: str) -> None:
    """UserError if some of `count` ids are `missing`."""
    if missing:
        named = ", ".join(map(repr, missing[:NAMED]))
        raise UserError(f"{where}: no features of {len(missing)} of {count} ids (first: {named}). {advice}")


class FeatureTable:
    """The features in files; each id is in one of them once.

    Raises UserError for a file that cannot be read (`feature_files.open_file`) and an id that is there twice.
    """

    def __init__(self, paths: Sequence[Path], key: str | None, ids: str | None) -> None:
        self.name = ", ".join(map(str, paths))
        self.opened = [feature_files.open_file(path, key, ids) for path in paths]
        self._places: dict[str, tuple[int, int]] = {}
        repeated: dict[str, str] = {}
        for number, file in enumerate(self.opened):
            for row, name in enumerate(file.ids):
                if name in self._places:
                    repeated.setdefault(name, f"in {file.path} and {self.opened[self._places[name][0]].path}")
                self._places[name] = number, row
        if repeated:
            name, where = next(iter(repeated.items()))
            where = "twice" if len(paths) == 1 else where
            raise UserError(
                f"{self.name}: {len(repeated)} ids have more than one entry (first: {name!r}, {where}). Keep one of "
                "each."
            )

    def __len__(self) -> int:
        return len(self._places)

    def check(self, needed: Mapping[str, int]) -> None:
        """UserError if features of a needed id are missing."""
        own = ", ".join(map(repr, list(self._places)[:NAMED]))
        advice = f"Expected the ids of the task, the column `id` of its splits; the files have {own}, ... (see `ids`)."
        check_known([name for name in needed if name not in self._places], len(needed), self.name, advice)

    def ordered(self, needed: Mapping[str, int]) -> list[str]:
        """The needed ids in the order of the files. UserError if one is missing."""
        self.check(needed)
        return sorted(needed, key=self._places.__getitem__)

    def width(self) -> int:
        """The number of features in a row. UserError if there is none."""
        for file in self.opened:
            for array in file.arrays([0] if file.ids else []):
                return int(array.shape[1])
        raise UserError(f"{self.name}: has no features.")

    def read(self, needed: Mapping[str, int], reading: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
        """(id, features) for all `needed` ids, in the order of the files; features are (rows, width) in `storage`.

        `needed` is as `wanted` returns it. UserError for ids that are missing, another width than that of the others,
        a number of rows that is not that of the residues, and a value that is not finite.
        """
        self.check(needed)
        width = None
        of_file: list[list[tuple[int, str]]] = [[] for _ in self.opened]
        for name in needed:
            number, row = self._places[name]
            of_file[number].append((row, name))
        for file, chosen in zip(self.opened, of_file, strict=True):
            chosen.sort()
            for (_, name), array in zip(chosen, file.arrays([row for row, _ in chosen]), strict=True):
                where = f"{file.path}: features of {name!r}"
                if 0 in array.shape:
                    raise UserError(f"{where} are empty, of shape {array.shape}.")
                width = width or array.shape[1]
                if array.shape[1] != width:
                    raise UserError(f"{where} have the width {array.shape[1]}, those before {width}. Write them again.")
                if reading["per"] == "residue" and len(array) != needed[name]:
                    raise UserError(
                        f"{where} have {len(array)} rows, but the sequence has {needed[name]} residues in the task. "
                        "Expected one row a residue, without rows of start and end tokens; or set `per: example`."
                    )
                yield name, _stored(torch.from_numpy(array.astype("float64")), reading, where)


class CellTable:
    """What an encoder of cells makes of those in `.h5ad` files. It has the interface of FeatureTable."""

    def __init__(self, paths: Sequence[Path], spec: Mapping[str, Any], reading: Mapping[str, Any]) -> None:
        if not paths:
            raise UserError(
                f"encoder {spec['pretrained']}: reads cells, and there is no file with their counts. Name their bank "
                "(--bank), or for new cells an .h5ad file (--features)"
            )
        self.name = ", ".join(map(str, paths))
        adapter = importlib.import_module(f"cisterna.sequences.encoders.{spec['package']}")
        network = adapter.load(spec, reading["batch_size"], encoders.own_device())
        self.opened = [adapter.CellFile(path, network, spec.get("counts"), spec.get("genes")) for path in paths]
        self._width = int(network.module.model_config.embed_dim)
        self._places = {
            name: place for number, file in enumerate(self.opened) for name, place in _numbered(file, number)
        }

    def __len__(self) -> int:
        return len(self._places)

    def ordered(self, needed: Mapping[str, int]) -> list[str]:
        """As `FeatureTable.ordered`."""
        missing = [name for name in needed if name not in self._places]
        check_known(missing, len(needed), self.name, "Ids are the obs_names of the cells.")
        return sorted(needed, key=self._places.__getitem__)

    def width(self) -> int:
        """The number of features in a row."""
        return self._width

    def read(self, needed: Mapping[str, int], reading: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
        """As `FeatureTable.read`."""
        ordered = self.ordered(needed)
        for number, file in enumerate(self.opened):
            chosen = [name for name in ordered if self._places[name][0] == number]
            for name, row in zip(chosen, file.embeddings([self._places[name][1] for name in chosen]), strict=True):
                yield name, _stored(row[None], reading, f"{file.path}: features of {name!r}")


def _numbered(file: Any, number: int) -> Iterator[tuple[str, tuple[int, int]]]:
    return ((name, (number, row)) for row, name in enumerate(file.ids))


def _stored(rows: torch.Tensor, reading: Mapping[str, Any], where: str) -> torch.Tensor:
    """Rows, or their means, in the type `storage`. UserError if a value is not finite."""
    if not torch.isfinite(rows).all():
        raise UserError(f"{where} have values that are not finite. Remove or compute them again.")
    whole = encoders.pool(rows, reading.get("pool"))
    stored = whole.to(getattr(torch, reading["storage"]))
    # what is too small becomes 0, and no error
    lost = (whole - stored).abs().amax(dim=1) > LOST * whole.abs().amax(dim=1)
    if not torch.isfinite(stored).all() or lost.any():
        advice = "Scale them" if reading["storage"] == "float32" else "Set `storage: float32`, or scale them"
        raise UserError(f"{where} are too large or too small for {reading['storage']}. {advice}.")
    return stored


def opened(encoder: Path, reading: Mapping[str, Any], paths: Sequence[Path] = ()) -> FeatureTable | CellTable:
    """The features of a published encoder (`cisterna.sequences.encoders.refer`).

    They are in its own files, or in `paths`, files like these. An encoder of cells has no such files, and reads the
    cells in `paths`. UserError if a file has changed since the encoder was published.
    """
    manifest = checkpoint.verify(encoder)
    spec = manifest["recipe"]
    if "features" not in spec:
        encoders.check_sources(encoder, manifest)
        return CellTable(paths, spec, reading)
    if not paths:
        encoders.check_sources(encoder, manifest)
    return FeatureTable(paths or list(map(files.locate, spec["features"])), spec["key"], spec["ids"])


class FileFeatures:
    """Has the interface of a `cisterna.sequences.feature_bank.Bank` of ids, and reads from files when it is asked.

    Reads the files of an encoder, or `paths`; `names` are those of the bank that the model was trained with.
    """

    def __init__(
        self, encoder: Path, reading: Mapping[str, Any], names: Sequence[str], paths: Sequence[Path] = ()
    ) -> None:
        self.reading, self.names = reading, tuple(names)
        self._table = opened(encoder, reading, paths)
        self._rows: list[torch.Tensor] = []
        self._places: dict[str, tuple[int, int]] = {}
        self.width = self._table.width()

    def prepare(self, needed: Mapping[str, int]) -> None:
        """Read the features of these ids (`wanted`)."""
        new = {name: residues for name, residues in needed.items() if name not in self._places}
        end = sum(map(len, self._rows))
        for name, rows in self._table.read(new, self.reading):
            self._places[name] = end, len(rows)
            self._rows.append(rows)
            end += len(rows)
        self._rows = [torch.cat(self._rows)] if self._rows else []

    def place(self, name: str, residues: int) -> tuple[int, int]:
        """First row and number of rows of an id that `prepare` has read."""
        return self._places[name]

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Features of rows: (n,) int64 to (n, width)."""
        return self._rows[0][index]
