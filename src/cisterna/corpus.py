"""Corpora for continued pre-training: from FASTA or text to a memory-mapped stream of tokens.

A tokenized corpus is a folder:

    train.npy      uint32, shape (tokens,): documents one after the other, each ended by the end-of-text token
    starts.npy     int64, shape (documents,): where each document of train.npy starts
    heldout.npy, heldout_starts.npy     the same for the documents kept back to measure perplexity
    card.json      exact counts

Blocks are cut from the stream without padding when training reads it (`Blocks`), so the block size is a choice of the
recipe and not of the file. Positions restart at each document, and the models' attention does not cross a document
boundary (transformers reads the boundary off the restarted positions); no loss is taken for a document's first token.
"""

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Dataset

from cisterna import files, tokenizer
from cisterna.errors import UserError

if TYPE_CHECKING:
    pass

HELDOUT_SHARE = 0.05  # of documents, chosen by a hash of their content


def documents(path: Path, modality: str) -> Iterator[str]:
    """Documents of a corpus file: FASTA records (`dna`, `rna`, `protein`), or lines (`text`). `.gz` is unpacked.

    Raises UserError for an unreadable or empty file, and for FASTA without a header line.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    found = False
    try:
        with opener(path, "rt", encoding="utf-8") as stream:
            for document in _fasta(stream, path) if modality != "text" else (line.strip() for line in stream):
                if document:
                    found = True
                    yield document
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read as a {modality} corpus: {error}") from None
    if not found:
        raise UserError(f"{path}: no documents; expected {'lines of text' if modality == 'text' else 'FASTA records'}")


def _fasta(stream: Iterator[str], path: Path) -> Iterator[str]:
    parts: list[str] | None = None
    for number, line in enumerate(stream, 1):
        if line.startswith(">"):
            if parts:
                yield "".join(parts)
            parts = []
        elif line.strip():
            if parts is None:
                raise UserError(f"{path}, line {number}: FASTA has to begin with a header line ('>name')")
            parts.append(line.strip().upper())
    if parts:
        yield "".join(parts)


def tokenize(source: Path, modality: str, base: Path, output: Path) -> dict[str, object]:
    """Tokenize the corpus file `source` with the tokenizer of the checkpoint `base` into the folder `output`.

    Returns the card. Whole sequences are converted by one table look-up, text by one batched call.
    """
    tokens = tokenizer.load(base)
    everything = list(documents(source, modality))
    heldout = [is_heldout(document) for document in everything]
    if modality == "text":
        ids = [np.asarray(row, dtype=np.uint32) for row in tokenizer.encode(tokens, everything)]
    else:
        opening, closing = tokens.convert_tokens_to_ids([f"<{modality}>", f"</{modality}>"])
        ids = []
        for number, document in enumerate(everything, 1):
            try:
                residues = tokenizer.residue_ids(tokens, document.encode(), modality)
            except UserError as error:
                raise UserError(f"{source}, record {number}: {error}") from None
            ids.append(np.concatenate([[opening], residues, [closing]]).astype(np.uint32))
    card: dict[str, object] = {"modality": modality, "source": source.name, "source_sha256": files.sha256(source)}
    with files.new_folder(output) as folder:
        for name, flag in (("train", False), ("heldout", True)):
            chosen = [row for row, is_heldout in zip(ids, heldout, strict=True) if is_heldout is flag]
            if not chosen:
                raise UserError(f"{source}: no document falls into the {name} part; the corpus has only {len(ids)}")
            end = np.asarray([tokens.eos_token_id], dtype=np.uint32)
            lengths = np.asarray([len(row) + 1 for row in chosen])
            np.save(folder / f"{name}.npy", np.concatenate([part for row in chosen for part in (row, end)]))
            prefix = "" if name == "train" else "heldout_"
            np.save(folder / f"{prefix}starts.npy", np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64))
            card[name] = {"documents": len(chosen), "tokens": int(lengths.sum()), "longest": int(lengths.max())}
        files.write_json(folder / "card.json", card)
    return card


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
