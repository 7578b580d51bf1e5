"""Tokenized corpora: a corpus file becomes a memory-mapped stream of token ids.

A tokenized corpus is a folder:

    train.npy      uint32, shape (tokens,): documents one after the other, each with the backbone's
                   start tokens before it and its end-of-text token after it
    starts.npy     int64, shape (documents,): where each document of train.npy starts
    heldout.npy, heldout_starts.npy     the same for the documents that are held out for perplexity
    card.json      exact counts

Documents are read, tokenized and written a batch at a time. Training cuts blocks from the stream
(`cisterna.data.blocks`), so the block size is a choice of the recipe and not of the file.
"""

import array
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cisterna.artifacts import files
from cisterna.data.corpus import select_documents
from cisterna.errors import UserError
from cisterna.sequences import conventions, letters, tokenization

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 1_000_000  # characters that are tokenized at a time


def tokenize_corpus(
    source: Path, modality: str, base: Path, output: Path, options: Mapping[str, Any] | None = None
) -> dict[str, object]:
    """Tokenize the corpus file `source` with the tokenizer of the checkpoint `base` into the folder `output`.

    Returns the card. `options` as in `cisterna.data.corpus.select_documents`. Documents are converted in batches
    of BATCH characters, sequences by one table look-up a batch; memory holds at most one batch, or one document. Raises
    UserError as `select_documents` does, for a letter outside the modality, and for a part without documents; then
    nothing is written.
    """
    encode = _encoder(tokenization.load(base), modality)
    options = dict(options or {})
    card: dict[str, object] = {"modality": modality, "source": source.name}
    if options:
        card["options"] = options
    files.remove_leftovers(output)
    with files.new_folder(output) as folder, contextlib.ExitStack() as stack:
        names = {False: "train", True: "heldout"}
        streams = {heldout: stack.enter_context(_Stream(folder / f"{name}.npy")) for heldout, name in names.items()}
        reader = None if modality == "text" else letters.Reader(modality, options.get("unusual_letters"))
        for batch in _batches(select_documents(source, modality, options, reader)):
            for heldout, stream in streams.items():
                if documents := [document for document, part in batch if part is heldout]:
                    stream.add(*encode(documents))
        for heldout, name in names.items():
            lengths = np.asarray(streams[heldout].lengths)
            if not len(lengths):
                count = sum(len(stream.lengths) for stream in streams.values())
                raise UserError(f"{source}: no document falls into the {name} part; the corpus has only {count}")
            prefix = "heldout_" if heldout else ""
            np.save(folder / f"{prefix}starts.npy", np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64))
            card[name] = {"documents": len(lengths), "tokens": int(lengths.sum()), "longest": int(lengths.max())}
        if reader and reader.report():
            card["letters"] = reader.report()
        card["source_sha256"] = files.sha256(source)
        files.write_json(folder / "card.json", card)
    return card


def _encoder(
    tokenizer: "PreTrainedTokenizerBase", modality: str
) -> Callable[[list[str]], tuple[list[int], np.ndarray]]:
    """A function from documents to the length of each in tokens, and the token ids of all of them in one array."""
    start, end = conventions.start_ids(tokenizer), [tokenizer.eos_token_id]

    def encode_text(documents: list[str]) -> tuple[list[int], np.ndarray]:
        rows = [[*start, *ids, *end] for ids in tokenization.encode_text(tokenizer, documents)]
        return list(map(len, rows)), np.concatenate(rows)

    if modality == "text":
        return encode_text
    opening, closing = tokenizer.convert_tokens_to_ids([f"<{modality}>", f"</{modality}>"])
    around = [*start, opening, closing, *end]
    table = tokenization.residue_table(tokenizer, modality)
    table[: len(around)] = around  # control characters, which no sequence has, stand for these tokens
    marks = "".join(map(chr, range(len(around))))
    before, after = marks[: len(start) + 1], marks[len(start) + 1 :]

    def encode_sequences(documents: list[str]) -> tuple[list[int], np.ndarray]:
        text = before + (after + before).join(documents) + after
        ids = tokenization.residue_ids(table, text.encode(), modality)
        return [len(document) + len(around) for document in documents], ids

    return encode_sequences


def _batches(documents: Iterable[tuple[int, str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    """Documents, and whether they are held out, in batches of at least BATCH characters, or of what is left."""
    batch: list[tuple[str, bool]] = []
    size = 0
    for _, document, heldout in documents:
        batch.append((document, heldout))
        size += len(document)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    yield batch


class _Stream:
    """A .npy file of uint32, shape (tokens,), that grows by documents; the same bytes as `numpy.save` of the whole.

    The header has room for any length, so that the true length can be written at the end.
    """

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")
        self.lengths = array.array("q")  # of the documents, in tokens
        self._header(0)

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, error: object, *details: object) -> None:
        """Write the true length, unless there was an error, and close the file."""
        try:
            if error is None:
                self.file.seek(0)
                self._header(sum(self.lengths))
        finally:
            with contextlib.suppress(OSError) if error else contextlib.nullcontext():  # flushing fails on a full disk
                self.file.close()

    def _header(self, length: int) -> None:
        header = {"descr": "<u4", "fortran_order": False, "shape": (length,)}
        np.lib.format.write_array_header_1_0(self.file, header)

    def add(self, lengths: Iterable[int], ids: np.ndarray) -> None:
        """Append documents of so many tokens each, whose token ids follow each other."""
        self.file.write(ids.astype("<u4", copy=False).data)
        self.lengths.extend(lengths)
