"""Corpus files for continued pre-training: reading documents, and choosing those that are held out.

The ending of a file says how it is read; `.gz` and `.zst` after it are unpacked on the way.

    .jsonl                           one JSON object a line, its document in the key `field` (`{"text": "..."}`)
    .gb .gbk .gbff .genbank          GenBank flat file, a record a document
    .embl                            EMBL flat file, a record a document
    any other                        FASTA, a record a document; for text, a line a document

Documents are read one at a time, so that memory depends on the longest document and not on the corpus.
"""

import contextlib
import gzip
import hashlib
import io
import itertools
import json
import warnings
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from cisterna.artifacts import files
from cisterna.errors import UserError
from cisterna.sequences import letters

HELDOUT_SHARE = 0.05  # of documents, chosen by a hash of their content
HELDOUT_BELOW = int(HELDOUT_SHARE * 2**64).to_bytes(8, "big")  # the first bytes of their hashes
BLOCK = 2**16  # characters of FASTA that are read at a time
FIELD = "text"  # the key of a JSON object with the document
FLAT_FILES = {".gb": "GenBank", ".gbk": "GenBank", ".gbff": "GenBank", ".genbank": "GenBank", ".embl": "EMBL"}
LIMITS = {False: "train_documents", True: "heldout_documents"}  # option, by whether a document is held out


def documents(path: Path, modality: str, field: str = FIELD) -> Generator[str]:
    """Documents of a corpus file, one at a time, without empty ones, as they are written.

    Raises UserError for an unreadable or empty file, and, naming line or record, for one that is not in its format.
    """
    ending = _endings(path)[0]
    form = FLAT_FILES.get(ending)
    if form and modality == "text":
        raise UserError(f"{path}: a {form} file has sequences, not text. Correct the corpus's `modality`.")
    read: Callable[[IO[str]], Iterable[str]]
    if ending == ".jsonl":
        expected, read = f"JSON objects with the key {field!r}", lambda stream: _json_lines(stream, path, field)
    elif form:
        expected, read = f"{form} records", lambda stream: _flat_file(stream, path, form)
    elif modality == "text":
        expected, read = "lines of text", lambda stream: (line.strip() for line in stream)
    else:
        expected, read = "FASTA records", lambda stream: _fasta(stream, path)
    empty = True
    try:
        with _unpacked(path) as unpacked, io.TextIOWrapper(unpacked, encoding="utf-8-sig") as stream:
            for document in filter(None, read(stream)):
                empty = False
                yield document
    except UnicodeDecodeError:
        with _unpacked(path) as unpacked:
            raise UserError(f"{path}, {files.not_unicode(unpacked)}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read as a {modality} corpus: {error}") from None
    if empty:
        raise UserError(f"{path}: no documents; expected {expected}")


def select_documents(
    path: Path, modality: str, options: Mapping[str, Any], reader: letters.Reader | None = None
) -> Iterator[tuple[int, str, bool]]:
    """The documents of a corpus: number in the file (from 1), document, whether it is held out.

    Sequences (dna, rna, protein) are in upper case, and have the letters of their modality only: `reader` reads them,
    by default one with the option `unusual_letters`.

    `options` are keys of the corpus in the config. The first `skip_documents` of the file are left out. With
    `train_documents` and `heldout_documents` only the first so many documents of each part are returned, and the file
    is read only as far as needed. Raises UserError as `documents` does, naming the record for a letter that is refused,
    and if the file has fewer documents than these options ask for.
    """
    if reader is None and modality != "text":
        reader = letters.Reader(modality, options.get("unusual_letters"))
    limits = {heldout: options.get(option) for heldout, option in LIMITS.items()}
    counts = dict.fromkeys(LIMITS, 0)
    skipped, number = options.get("skip_documents", 0), 0
    with contextlib.closing(documents(path, modality, options.get("field", FIELD))) as everything:
        for number, document in enumerate(everything, 1):
            if number <= skipped:
                continue
            as_written = reader is None or reader.is_usual(document)  # nearly all: they are not copied
            heldout = is_heldout(document if as_written else document.upper())
            if counts[heldout] == limits[heldout]:
                continue
            counts[heldout] += 1
            if reader and not as_written:
                document = reader.read(document, f"{path}, record {number}")
            yield number, document, heldout
            if counts == limits:
                return
    if skipped >= number:
        raise UserError(f"{path}: skip_documents leaves out {skipped} documents, and the file has {number}; skip fewer")
    rest = f" after the first {skipped}" if skipped else ""
    for heldout, option in LIMITS.items():
        limit = limits[heldout]
        if limit is not None and counts[heldout] < limit:
            raise UserError(
                f"{path}: {option} asks for {limit}, and the file has {counts[heldout]} such documents{rest} (one in "
                "twenty is held out, by its content). Ask for fewer."
            )


def is_heldout(document: str) -> bool:
    """Whether a document is held out for perplexity: HELDOUT_SHARE of all documents, by a hash of the content."""
    return hashlib.sha256(document.encode()).digest() < HELDOUT_BELOW


def _endings(path: Path) -> tuple[str, str]:
    """The ending for the format of a file, and the one for its compression (`.gz`, `.zst`, or none)."""
    packing = path.suffix.lower()
    if packing in (".gz", ".zst"):
        return path.with_suffix("").suffix.lower(), packing
    return packing, ""


@contextlib.contextmanager
def _unpacked(path: Path) -> Iterator[Any]:
    """The bytes of a file as a binary stream, unpacked as they are read."""
    packing = _endings(path)[1]
    if packing == ".zst":
        import pyarrow

        with pyarrow.input_stream(str(path), compression="zstd") as stream:
            yield io.BufferedReader(stream)
    else:
        with (gzip.open if packing else open)(path, "rb") as stream:
            yield stream


def _fasta(stream: IO[str], path: Path) -> Iterator[str]:
    """Sequences of FASTA records; read in blocks of whole lines, because line by line is much slower."""
    for number, line in enumerate(stream, 1):
        if line.startswith(">"):
            break
        if line.strip():
            raise UserError(f"{path}, line {number}: FASTA has to begin with a header line ('>name')")
    parts: list[str] = []
    while block := stream.read(BLOCK) + stream.readline():
        rest, *records = f"\n{block}".split(">")  # much faster than "\n>", which a header seldom needs
        if not all(part.endswith("\n") for part in (rest, *records)):
            rest, *records = f"\n{block}".split("\n>")
        parts.append(_joined_lines(rest))
        for record in records:
            yield "".join(parts)
            parts = [_joined_lines(record.partition("\n")[2])]
    yield "".join(parts)


def _joined_lines(text: str) -> str:
    joined = text.replace("\n", "")
    if joined.isascii() and " " not in joined and "\t" not in joined:
        return joined
    return "".join(line.strip() for line in text.split("\n"))  # blanks inside a line stay, to be refused


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


def _flat_file(stream: IO[str], path: Path, form: str) -> Iterator[str]:
    """Sequences of a GenBank or EMBL flat file."""
    from Bio import BiopythonParserWarning, SeqIO
    from Bio.Seq import UndefinedSequenceError

    records = SeqIO.parse(stream, form.lower())
    refused = (ValueError, IndexError, AssertionError, BiopythonParserWarning)  # what Biopython raises for a bad record
    for number in itertools.count(1):
        try:
            with warnings.catch_warnings():  # Biopython only warns about a record that is cut off
                message = "Premature end of file|Expected sequence length"
                warnings.filterwarnings("error", message, BiopythonParserWarning)
                record = next(records, None)
        except refused as error:
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
