"""The feature bank (an embedding cache): an encoder's features of all sequences of a task, computed once.

    cisterna features --encoder results/encoders/nano-esm/checkpoint --data results/data/protein-fitness \
        --reading '{...}' --work results/.work/features/... --output results/features/nano-esm/protein-fitness

A bank is a folder:

    features-00000.safetensors ...   tensor "features" (rows, width) of type `storage`; a sequence is in one shard
    index.arrow                      one row a sequence: sha256 of its text, residues, first row, number of rows
                                     (of precomputed features, cisterna.sequences.precomputed: sha256 of its id)
    manifest.json                    parent: the encoder; recipe: how it was read; data: hashes of the splits

Features are read from a memory map. Rows are numbered through all shards. A sequence is found by the hash of its text,
so the order of a bank has no meaning; a sequence that is not in it, or has another number of residues or rows, is an
error. `cisterna.sequences.source.LiveEncoder` has the same interface without a bank.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cisterna.artifacts import checkpoint, files, shutdown, work_folder
from cisterna.artifacts.progress import Progress
from cisterna.artifacts.work_folder import SAVE_MINUTES
from cisterna.constants import SPLITS
from cisterna.errors import UserError
from cisterna.sequences import encoders, precomputed
from cisterna.sequences.windows import tagged_stretches, window_of

INDEX = "index.arrow"
SHARD_BYTES = 2**30
CELLS = 2048  # cells of a shard that a network makes
PART = ".part"
HASH = ".sha256"
FIELDS = pa.schema([("sha256", pa.binary(32)), ("residues", pa.int32()), ("row", pa.int64()), ("rows", pa.int32())])


class Bank:
    """An opened bank: files verified, index in memory, features memory-mapped.

    Raises UserError if a file is missing, changed or not in the manifest, or if index and shards do not agree.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = checkpoint.verify(folder)
        if self.manifest["kind"] != "features":
            raise UserError(f"{folder}: not a feature bank, this is a checkpoint of kind {self.manifest['kind']}")
        self.reading, self.modality = self.manifest["recipe"], self.manifest["trained"]["modality"]
        self.names = tuple(self.manifest["trained"].get("names", ()))  # of the sequences, where features belong to ids
        self.encoder = checkpoint.parent_of(folder, self.manifest)
        self._shards = [
            safe_open(path, framework="pt").get_tensor("features") for path in sorted(folder.glob("*.safetensors"))
        ]
        self.width = self._shards[0].shape[1]
        self._ends = np.cumsum([len(shard) for shard in self._shards])
        with pa.memory_map(str(folder / INDEX)) as stream:
            index = pa.ipc.open_file(stream).read_all()
        sizes = index["rows"].to_numpy()
        if index.schema != FIELDS or not np.array_equal(index["row"].to_numpy(), np.cumsum(sizes) - sizes):
            raise UserError(f"{folder / INDEX}: not the index of a bank. Delete {folder} and rerun")
        if sizes.sum() != self._ends[-1] or any(shard.shape[1] != self.width for shard in self._shards):
            raise UserError(
                f"{folder}: its index has {sizes.sum()} rows, its shards {self._ends[-1]}. Delete {folder} and rerun"
            )
        columns = (index[name].to_pylist() for name in ("residues", "row", "rows"))
        self._places = dict(zip(index["sha256"].to_pylist(), zip(*columns, strict=True), strict=True))

    def locate(self, text: str) -> tuple[int, int]:
        """First row and number of rows of a sequence. UserError if it is not in the bank, or not completely."""
        residues = encoders.residues(text)
        return self._place(text, residues, encoders.rows(residues, self.reading["pool"]))

    def prepare(self, needed: Mapping[str, int]) -> None:
        """UserError if the bank does not have all of these ids (`precomputed.wanted`)."""
        missing = [name for name in needed if _digest(name) not in self._places]
        advice = f"It is the bank of other data. Delete {self.folder} and rerun"
        precomputed.check_known(missing, len(needed), self.folder, advice)

    def place(self, name: str, residues: int) -> tuple[int, int]:
        """First row and number of rows of an id, whose sequence has so many residues."""
        return self._place(name, residues, precomputed.row_count(residues, self.reading))

    def _place(self, text: str, residues: int, rows: int | None) -> tuple[int, int]:
        place = self._places.get(_digest(text))
        if place is None:
            raise UserError(
                f"{self.folder}: no features of {text[:40]} ({residues} residues); it is the bank of other data. "
                f"Delete {self.folder} and rerun"
            )
        if place[0] != residues or rows not in (None, place[2]):
            raise UserError(
                f"{self.folder}: {place[2]} rows of {place[0]} residues for {text[:40]}, which has {residues}. "
                f"Delete {self.folder} and rerun"
            )
        return place[1], place[2]

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Features of rows: (n,) int64 to (n, width). UserError for a row that the bank does not have."""
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < self._ends[-1]:
            raise UserError(f"{self.folder}: no row {int(index.max())}; it has {self._ends[-1]} rows")
        if len(self._shards) == 1:
            return self._shards[0][index]
        features = torch.empty(len(index), self.width, dtype=self._shards[0].dtype)
        shards = np.searchsorted(self._ends, index.numpy(), side="right")
        for shard in np.unique(shards):
            chosen = torch.from_numpy(shards == shard)
            features[chosen] = self._shards[shard][index[chosen] - int(self._ends[shard] - len(self._shards[shard]))]
        return features


def build_for_task(
    encoder: Path, data: Path, reading: Mapping[str, Any], work: Path, output: Path,
    save_minutes: float = SAVE_MINUTES,
) -> dict[str, Any]:  # fmt: skip
    """Publish the bank of the task in the folder `data`: the windows of all segments of all its splits."""
    import pandas as pd

    if precomputed.by_id(reading):
        return build_by_id(encoder, data, reading, work, output)
    texts: set[str] = set()
    for split in SPLITS:
        frame = pd.read_parquet(data / f"{split}.parquet", columns=["prompt", "segments"])
        for prompt, segments in zip(frame["prompt"], frame["segments"], strict=True):
            for stretch, context in zip(tagged_stretches(prompt), segments, strict=True):
                texts.add(window_of(stretch, context, reading["flank"]).text)
    if not texts:
        raise UserError(f"{data}: its prompts have no residues for an encoder to read")
    modality = files.read_json(data / "card.json")["modality"]
    hashed = {f"{split}.parquet": files.sha256(data / f"{split}.parquet") for split in SPLITS}
    return build(encoder, texts, modality, reading, hashed, work, output, save_minutes=save_minutes)


def build(
    encoder: Path, texts: Iterable[str], modality: str, reading: Mapping[str, Any], data: Mapping[str, str],
    work: Path, output: Path, shard_bytes: int = SHARD_BYTES, save_minutes: float = SAVE_MINUTES,
) -> dict[str, Any]:  # fmt: skip
    """Publish the bank of `texts`, read by the encoder in the folder `encoder`. Returns the manifest.

    Each text is encoded once. `data` are the hashes of the files that the texts are from, `reading` how they are read
    (config key `encoders`). Shards are written to the work folder one by one, and parts of a shard every
    `save_minutes`, so that a killed run resumes there, with the same bytes at the end. Raises Stopped after SIGTERM,
    UserError if `work` is in use.
    """
    started = time.perf_counter()
    unique = sorted(set(texts), key=lambda text: (encoders.residues(text), text))
    facts = {
        "encoder": checkpoint.read_manifest(encoder)["identity"],
        "modality": modality,
        "reading": dict(reading),
        "texts": hashlib.sha256("\n".join(unique).encode()).hexdigest(),
        "shard_bytes": shard_bytes,
        "packages": checkpoint.packages(),
    }
    with work_folder.folder(work, output, facts):
        network = encoders.load(encoder, reading["layer"])
        counts = [encoders.rows(encoders.residues(text), reading["pool"]) for text in unique]
        shards = list(_shards(counts, shard_bytes // (2 * network.width)))
        progress = Progress(work, output, "features")
        for number, (begin, end) in enumerate(shards):
            path = work / _name(number)
            if _is_whole(path):
                print(f"shard {number + 1}/{len(shards)} is done already", flush=True)
                continue
            rows: list[torch.Tensor] = []
            for done, stopping in _encode(network, unique[begin:end], modality, reading, path, 60 * save_minutes, rows):
                progress.update(begin + done, len(unique), "sequences")
                if stopping:
                    raise shutdown.Stopped(
                        f"{output}: by SIGTERM after {begin + done} of {len(unique)} sequences; their features are "
                        f"saved in {work}: rerun the same command to resume"
                    )
            _save(torch.cat(rows), path, hashed=True)
            for part in _parts(path):
                part.unlink()
            print(f"shard {number + 1}/{len(shards)}: {end}/{len(unique)} sequences", flush=True)
        paths = [work / _name(number) for number in range(len(shards))]
        measured = {"seconds": round(time.perf_counter() - started, 3)}
        return publish(output, encoder, modality, reading, data, unique, counts, paths, measured)


def build_by_id(
    encoder: Path, data: Path, reading: Mapping[str, Any], work: Path, output: Path, shard_bytes: int = SHARD_BYTES
) -> dict[str, Any]:
    """Publish the bank of features by id for the task in the folder `data`: those of all ids of all its splits.

    Precomputed features are read from the files of the encoder; an encoder of cells reads the file of the task. Raises
    UserError for features that are missing or do not fit (`precomputed.FeatureTable`), Stopped after SIGTERM.
    """
    import pandas as pd

    started = time.perf_counter()
    paths = {split: data / f"{split}.parquet" for split in SPLITS}
    frames = pd.concat([pd.read_parquet(path, columns=["id", "segments"]) for path in paths.values()])
    card = files.read_json(data / "card.json")
    names = precomputed.sequence_names(frames["segments"], card.get("sequences", ()))
    needed = precomputed.wanted(frames["id"], frames["segments"], names)
    if not needed:
        raise UserError(
            f"{data}: its prompts have no place for features; those of cells had none in earlier versions of Cisterna. "
            f"Delete {data} and rerun"
        )
    cells = [] if "features" in checkpoint.read_manifest(encoder)["recipe"] else _cell_files(card)
    facts = {"encoder": checkpoint.read_manifest(encoder)["identity"], "reading": dict(reading), "ids": list(needed)}
    facts |= {"cells": card["source"], "packages": checkpoint.packages()}
    with work_folder.folder(work, output, {"facts": files.digest(facts)}):
        table = precomputed.opened(encoder, reading, cells)
        ordered = table.ordered(needed)
        size = CELLS if cells else len(ordered)  # a network is slow, and each finished shard is kept
        progress = Progress(work, output, "features")
        shards: list[Path] = []
        counts: list[int] = []
        for begin in range(0, len(ordered), size):
            part = ordered[begin : begin + size]
            if cells and _is_whole(work / _name(len(shards))):
                shards.append(work / _name(len(shards)))
                counts += [1] * len(part)
                continue
            rows: list[torch.Tensor] = []
            room = shard_bytes
            for _, features in table.read({name: needed[name] for name in part}, reading):
                if rows and features.nbytes > room:
                    shards.append(_save_shard(work, len(shards), rows))
                    rows, room = [], shard_bytes
                room -= features.nbytes
                rows.append(features)
                counts.append(len(features))
                progress.update(len(counts), len(ordered), "examples")
                if shutdown.requested():
                    raise shutdown.Stopped(
                        f"{output}: by SIGTERM after {len(counts)} of {len(ordered)} examples: rerun the same command"
                    )
            shards.append(_save_shard(work, len(shards), rows))
        unused = len(table) - len(needed)
        print(f"features of {len(needed)} ids; {unused} more ids of {table.name} are not in the task", flush=True)
        hashed = {path.name: files.sha256(path) for path in paths.values()}
        measured = {"seconds": round(time.perf_counter() - started, 3)}
        sizes = [needed[name] for name in ordered]
        more = {"unused": unused} | ({"names": list(names)} if names else {})
        modality = card["modality"]
        return publish(output, encoder, modality, reading, hashed, ordered, counts, shards, measured, sizes, more)


def _cell_files(card: Mapping[str, Any]) -> list[Path]:
    """The `.h5ad` files of the task with this card. UserError if they are not those that its data were made from."""
    found = []
    for name, digest in card["source"].items():
        path = files.locate(name)
        if not path.is_file() or files.sha256(path) != digest:
            raise UserError(f"{name}: not the file that the data of {card['task']} were made from. Restore it")
        found.append(path)
    return found


def _save_shard(work: Path, number: int, rows: Sequence[torch.Tensor]) -> Path:
    path = work / _name(number)
    _save(torch.cat(list(rows)), path, hashed=True)
    return path


def publish(
    output: Path, encoder: Path, modality: str, reading: Mapping[str, Any], data: Mapping[str, str],
    texts: Sequence[str], counts: Sequence[int], shards: Sequence[Path], measured: Mapping[str, Any],
    residues: Sequence[int] | None = None, trained: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Publish a bank of finished shards, which have the rows of `texts` in order; `counts` are their numbers.

    Where the texts are ids, `residues` are those of their sequences, and `trained` is more for the manifest.
    """
    if residues is None:
        residues = [encoders.residues(text) for text in texts]
    with files.new_folder(output) as folder:
        for number, path in enumerate(shards):
            _link(path, folder / _name(number))
        columns = [
            pa.array([_digest(text) for text in texts], pa.binary(32)),
            pa.array(residues, pa.int32()),
            pa.array(np.cumsum(counts) - np.asarray(counts), pa.int64()),
            pa.array(counts, pa.int32()),
        ]
        with pa.OSFile(str(folder / INDEX), "wb") as stream, pa.ipc.new_file(stream, FIELDS) as writer:
            writer.write_table(pa.table(columns, schema=FIELDS))
        return checkpoint.write_manifest(
            folder,
            published=output,
            kind="features",
            parent=encoder,
            recipe=reading,
            seed=0,
            data=data,
            trained={"modality": modality, "sequences": len(texts), "rows": int(sum(counts))} | dict(trained or {}),
            measured=dict(measured) | {"bytes": sum(path.stat().st_size for path in folder.iterdir())},
        )


def _encode(
    network: encoders.Encoder, texts: Sequence[str], modality: str, reading: Mapping[str, Any], path: Path,
    seconds: float, rows: list[torch.Tensor],
) -> Iterator[tuple[int, bool]]:  # fmt: skip
    """Fill `rows` with the features of the texts, which are sorted by length.

    Yields after each batch how many texts are done, and whether SIGTERM has come. After SIGTERM, and every so many
    `seconds`, new rows are saved as a part of `path` before the yield. Parts that were saved before are read and not
    encoded again.
    """
    parts = _parts(path)
    rows += [load_file(part)["features"] for part in parts]
    first = int(parts[-1].suffix.removeprefix(PART)) if parts else 0
    if first:
        print(f"{first} sequences are done already", flush=True)
    saved_rows = len(rows)
    saved_at = time.monotonic()
    for batch in encoders.batches([encoders.residues(text) for text in texts], reading["batch_tokens"]):
        if batch[0] < first:
            continue
        rows += encoders.encode(network, [texts[index] for index in batch], modality, reading)
        stopping = shutdown.requested()  # asked once: a SIGTERM after this line finds nothing saved
        if stopping or time.monotonic() - saved_at >= seconds:
            _save(torch.cat(rows[saved_rows:]), path.with_suffix(f"{PART}{batch[-1] + 1:09}"))
            saved_rows, saved_at = len(rows), time.monotonic()
        yield batch[-1] + 1, stopping


def _parts(path: Path) -> list[Path]:
    """The saved parts of an unfinished shard, in order; a part's name has the number of texts done after it."""
    return sorted(path.parent.glob(f"{path.stem}{PART}*"))


def _is_whole(path: Path) -> bool:
    """Whether a shard is complete and unchanged; its file is also linked into a bank, where it may have changed."""
    recorded = path.with_suffix(HASH)
    return path.is_file() and recorded.is_file() and recorded.read_text() == files.sha256(path)


def _save(rows: torch.Tensor, path: Path, *, hashed: bool = False) -> None:
    with files.replacing(path) as temporary:
        save_file({"features": rows.contiguous()}, temporary)
        temporary.chmod(0o644)  # the library makes it readable by its owner only
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        if hashed:
            path.with_suffix(HASH).write_text(files.sha256(temporary))


def _shards(counts: Sequence[int], max_rows: int) -> Iterable[tuple[int, int]]:
    """Ranges of sequences with at most `max_rows` rows together; a longer sequence is a range of its own."""
    begin = total = 0
    for index, count in enumerate(counts):
        if index > begin and total + count > max_rows:
            yield begin, index
            begin, total = index, 0
        total += count
    yield begin, len(counts)


def _link(source: Path, target: Path) -> None:
    """A hard link to a file, or a copy if the file system has no hard links."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def _name(number: int) -> str:
    return f"features-{number:05}.safetensors"


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
