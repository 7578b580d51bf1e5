"""Corpora for continued pre-training: from files of sequences or text to a memory-mapped stream of tokens.

The ending of a file says how it is read; `.gz` and `.zst` behind it are unpacked on the way.

    .jsonl                           one JSON object a line, its document in the key `field` (`{"text": "..."}`)
    .gb .gbk .gbff .genbank          GenBank flat file, a record a document
    .embl                            EMBL flat file, a record a document
    any other                        FASTA, a record a document; for text, a line a document

A tokenized corpus is a folder:

    train.npy      uint32, shape (tokens,): documents one after the other, each ended by the end-of-text token
    starts.npy     int64, shape (documents,): where each document of train.npy starts
    heldout.npy, heldout_starts.npy     the same for the documents kept back to measure perplexity
    card.json      exact counts

Documents are read, tokenized and written a batch at a time, so the memory that this takes depends on the longest
document and not on the corpus. Blocks are cut from the stream without padding when training reads it (`Blocks`), so the
block size is a choice of the recipe and not of the file. Positions restart at each document, and the models' attention
does not cross a document boundary (transformers reads the boundary off the restarted positions); no loss is taken for a
document's first token.
"""

import array
import contextlib
import gzip
import hashlib
import io
import json
import warnings
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset

from cisterna.artifacts import files
from cisterna.errors import UserError
from cisterna.sequences import tokenization

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HELDOUT_SHARE = 0.05  # of documents, chosen by a hash of their content
FIELD = "text"  # the key of a JSON object that holds the document
FLAT = {".gb": "GenBank", ".gbk": "GenBank", ".gbff": "GenBank", ".genbank": "GenBank", ".embl": "EMBL"}
BATCH = 1_000_000  # characters of text that are tokenized at a time
CAPS = {False: "train_documents", True: "heldout_documents"}  # option, by whether a document is held out


def documents(path: Path, modality: str, field: str = FIELD) -> Generator[str]:
    """Documents of a corpus file, one at a time; sequences (`dna`, `rna`, `protein`) in upper case. Empty ones are left
    out.

    Raises UserError for an unreadable or empty file, and naming line or record for what is not of the file's form.
    """
    ending = _endings(path)[0]
    if ending in FLAT and modality == "text":
        raise UserError(f"{path}: a {FLAT[ending]} file holds sequences, not text. Correct the corpus's `modality`.")
    read: Callable[[IO[str]], Iterable[str]]
    if ending == ".jsonl":
        expected, read = f"JSON objects with the key {field!r}", lambda stream: _json_lines(stream, path, field)
    elif ending in FLAT:
        expected, read = f"{FLAT[ending]} records", lambda stream: _flat(stream, path, FLAT[ending])
    elif modality == "text":
        expected, read = "lines of text", lambda stream: (line.strip() for line in stream)
    else:
        expected, read = "FASTA records", lambda stream: _fasta(stream, path)
    found = False
    try:
        with _unpacked(path) as stream:
            for document in read(stream):
                if document:
                    found = True
                    yield document if modality == "text" else document.upper()
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read as a {modality} corpus: {error}") from None
    if not found:
        raise UserError(f"{path}: no documents; expected {expected}")


def chosen(path: Path, modality: str, options: Mapping[str, Any]) -> Iterator[tuple[int, str, bool]]:
    """The documents that a corpus is made of: number in the file (from 1), document, whether it is held out.

    `options` are keys of the corpus in the config. With `train_documents` and `heldout_documents` it is the first so
    many documents of a part, and of the file no more is read than it takes to fill both. Raises UserError as
    `documents` does, and where the file has fewer than asked for.
    """
    limits = {part: options.get(cap) for part, cap in CAPS.items()}
    counts = dict.fromkeys(CAPS, 0)
    with contextlib.closing(documents(path, modality, options.get("field", FIELD))) as everything:
        for number, document in enumerate(everything, 1):
            part = is_heldout(document)
            if counts[part] == limits[part]:
                continue
            counts[part] += 1
            yield number, document, part
            if counts == limits:
                return
    for part, cap in CAPS.items():
        limit = limits[part]
        if limit is not None and counts[part] < limit:
            raise UserError(
                f"{path}: {cap} asks for {limit}, and the file has {counts[part]} such documents (one in twenty "
                "is held out, by its content). Ask for fewer."
            )


def _endings(path: Path) -> tuple[str, str]:
    """The ending that says what is in a file, and that of its packing (`.gz`, `.zst`, or none)."""
    packing = path.suffix.lower()
    if packing in (".gz", ".zst"):
        return path.with_suffix("").suffix.lower(), packing
    return packing, ""


@contextlib.contextmanager
def _unpacked(path: Path) -> Iterator[IO[str]]:
    """The text of a file, unpacked as it is read."""
    packing = _endings(path)[1]
    if packing == ".zst":
        import pyarrow

        with pyarrow.input_stream(str(path), compression="zstd") as stream:
            yield io.TextIOWrapper(io.BufferedReader(stream), encoding="utf-8")
    else:
        with (gzip.open if packing else open)(path, "rt", encoding="utf-8") as stream:
            yield stream


def _fasta(stream: Iterable[str], path: Path) -> Iterator[str]:
    parts: list[str] | None = None
    for number, line in enumerate(stream, 1):
        if line.startswith(">"):
            if parts:
                yield "".join(parts)
            parts = []
        elif line.strip():
            if parts is None:
                raise UserError(f"{path}, line {number}: FASTA has to begin with a header line ('>name')")
            parts.append(line.strip())
    if parts:
        yield "".join(parts)


def _json_lines(stream: Iterable[str], path: Path, field: str) -> Iterator[str]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error}); expected one object a line") from None
        if not isinstance(record, dict):
            raise UserError(f"{where}: not a JSON object; expected one object a line")
        if field not in record:
            has = ", ".join(list(record)[:10])
            raise UserError(f"{where}: no key {field!r}; it has: {has}. Name the key of the text in `field`")
        document = record[field]
        if not isinstance(document, str):
            raise UserError(f"{where}: the value of {field!r} is {json.dumps(document)[:40]}; expected a text")
        try:
            document.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{where}: {field!r} is not Unicode text: {error.reason} ({error.object[error.start]!r})"
            ) from None
        yield document.strip()


def _flat(stream: IO[str], path: Path, form: str) -> Iterator[str]:
    """Sequences of a GenBank or EMBL flat file."""
    from Bio import BiopythonParserWarning, SeqIO
    from Bio.Seq import UndefinedSequenceError

    records = SeqIO.parse(stream, form.lower())
    number = 0
    while True:
        number += 1
        try:
            with warnings.catch_warnings():  # of a record that is cut Biopython only warns
                warnings.filterwarnings(
                    "error", "Premature end of file|Expected sequence length", BiopythonParserWarning
                )
                record = next(records, None)
        except (
            ValueError,
            IndexError,
            AssertionError,
            BiopythonParserWarning,
        ) as error:  # all are what it raises there
            raise UserError(f"{path}, record {number}: no {form} record: {' '.join(str(error).split())}") from None
        if record is None:
            return
        try:
            sequence = str(record.seq)
        except UndefinedSequenceError:
            sequence = ""
        if not sequence:
            raise UserError(
                f"{path}, record {number} ({record.id}): has no sequence. Download it with its sequence, or remove it"
            )
        yield sequence


def tokenize(
    source: Path, modality: str, base: Path, output: Path, options: Mapping[str, Any] | None = None
) -> dict[str, object]:
    """Tokenize the corpus file `source` with the tokenizer of the checkpoint `base` into the folder `output`.

    `options` as in `chosen`. Returns the card. Sequences are converted by one table look-up each, text by calls of
    BATCH characters; in memory are at most one batch, or one sequence. Raises UserError as `chosen` does, for a letter
    outside the modality, and for a part without documents; then nothing is written.
    """
    tokens = tokenization.load(base)
    options = dict(options or {})
    card: dict[str, object] = {"modality": modality, "source": source.name}
    if options:
        card["options"] = options
    files.remove_leftovers(output)
    with files.new_folder(output) as folder, contextlib.ExitStack() as stack:
        names = {False: "train", True: "heldout"}
        streams = {part: stack.enter_context(_Stream(folder / f"{name}.npy")) for part, name in names.items()}
        for heldout, ids in _encoded(source, modality, tokens, options):
            streams[heldout].add([*ids, np.asarray([tokens.eos_token_id])])
        for part, name in names.items():
            lengths = np.asarray(streams[part].lengths)
            if not len(lengths):
                count = sum(len(stream.lengths) for stream in streams.values())
                raise UserError(f"{source}: no document falls into the {name} part; the corpus has only {count}")
            prefix = "heldout_" if part else ""
            np.save(folder / f"{prefix}starts.npy", np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64))
            card[name] = {"documents": len(lengths), "tokens": int(lengths.sum()), "longest": int(lengths.max())}
        card["source_sha256"] = files.sha256(source)
        files.write_json(folder / "card.json", card)
    return card


def _encoded(
    source: Path, modality: str, tokens: "PreTrainedTokenizerBase", options: Mapping[str, Any]
) -> Iterator[tuple[bool, list[np.ndarray]]]:
    """Whether a document is held out, and its token ids in parts, for each in the order of the file."""
    if modality == "text":
        batch: list[tuple[bool, str]] = []
        size = 0
        for _, document, heldout in chosen(source, modality, options):
            batch.append((heldout, document))
            size += len(document)
            if size >= BATCH:
                yield from _texts(batch, tokens)
                batch, size = [], 0
        yield from _texts(batch, tokens)
        return
    opening, closing = (np.asarray([tokens.convert_tokens_to_ids(f"<{slash}{modality}>")]) for slash in ("", "/"))
    for number, document, heldout in chosen(source, modality, options):
        try:
            residues = tokenization.residue_ids(tokens, document.encode(), modality)
        except UserError as error:
            raise UserError(f"{source}, record {number}: {error}") from None
        yield heldout, [opening, residues, closing]


def _texts(batch: list[tuple[bool, str]], tokens: "PreTrainedTokenizerBase") -> Iterator[tuple[bool, list[np.ndarray]]]:
    rows = tokenization.encode_text(tokens, [document for _, document in batch])
    for (heldout, _), row in zip(batch, rows, strict=True):
        yield heldout, [np.asarray(row)]


class _Stream:
    """A .npy file of uint32, shape (tokens,), that grows by documents; byte for byte as `numpy.save` writes the whole.

    numpy leaves room in the header for any length, so that the true one can be written at the end.
    """

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")
        self.lengths = array.array("q")  # of the documents, in tokens
        self._header(0)

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        """Without an error, with the true length."""
        try:
            if kind is None:
                self.file.seek(0)
                self._header(sum(self.lengths))
        finally:
            with contextlib.suppress(OSError) if kind else contextlib.nullcontext():  # what is left on a full disk
                self.file.close()

    def _header(self, length: int) -> None:
        header = {"descr": "<u4", "fortran_order": False, "shape": (length,)}
        np.lib.format.write_array_header_1_0(self.file, header)

    def add(self, parts: Iterable[np.ndarray]) -> None:
        """Append the token ids of one document, given in parts."""
        length = 0
        for part in parts:
            self.file.write(part.astype("<u4").data)
            length += len(part)
        self.lengths.append(length)


def is_heldout(document: str) -> bool:
    """Whether a document is kept back to measure perplexity: a share of them, by a hash of the content."""
    value = int.from_bytes(hashlib.sha256(document.encode()).digest()[:8], "big")
    return value < HELDOUT_SHARE * 2**64


class Blocks(Dataset):
    """Blocks of `size` tokens, cut without padding from a tokenized corpus; the rest at the end is left out.

    Item: dict of int64 arrays of shape (size,): `input_ids`, `position_ids` (0 at each document's start, and at the
    block's), `labels` (-100 at each document's first token).
    """

    def __init__(self, folder: Path, size: int, part: str = "train") -> None:
        prefix = "" if part == "train" else "heldout_"
        self.stream = np.load(folder / f"{part}.npy", mmap_mode="r")
        self.starts = np.load(folder / f"{prefix}starts.npy", mmap_mode="r")
        self.size = size
        if len(self.stream) < size:
            raise UserError(
                f"{folder}: {len(self.stream)} {part} tokens do not fill one block of {size}; use a smaller block_size"
            )

    def __len__(self) -> int:
        return len(self.stream) // self.size

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        begin = index * self.size
        tokens = np.asarray(self.stream[begin : begin + self.size], dtype=np.int64)
        low, high = np.searchsorted(self.starts, [begin, begin + self.size])
        starts = np.asarray(self.starts[low:high]) - begin
        origin = np.zeros(self.size, dtype=np.int64)
        origin[starts] = starts
        labels = tokens.copy()
        labels[starts] = -100
        labels[0] = -100
        positions = np.arange(self.size, dtype=np.int64) - np.maximum.accumulate(origin)
        return {"input_ids": tokens, "position_ids": positions, "labels": labels}
