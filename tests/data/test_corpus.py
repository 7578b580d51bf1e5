"""Corpora: exact counts, documents that stay apart, errors that name the file and the record."""

import gzip
import itertools
import random

import numpy as np
import pytest
import torch

from cisterna import models
from cisterna.artifacts import files
from cisterna.data import corpus
from cisterna.data.blocks import Blocks
from cisterna.data.tokenized import tokenize_corpus
from cisterna.errors import UserError
from cisterna.sequences import tokenization
from tiny import ROOT

RECORDS = 60


def fasta(path, count=RECORDS, letters="ACGT"):
    """Records of 5 to 60 letters over lines of 20, lower case in places; returns the sequences."""
    draw = random.Random(1)
    sequences = ["".join(draw.choices(letters, k=draw.randint(5, 60))) for _ in range(count)]
    lines = []
    for number, sequence in enumerate(sequences):
        lines += [f">record{number}", *(sequence[at : at + 20].lower() for at in range(0, len(sequence), 20)), ""]
    path.write_text("\n".join(lines))
    return sequences


@pytest.fixture(scope="module")
def dna(base, tmp_path_factory):
    """A tokenized FASTA file: folder, sequences, card."""
    folder = tmp_path_factory.mktemp("dna")
    sequences = fasta(folder / "dna.fasta")
    card = tokenize_corpus(folder / "dna.fasta", "dna", base, folder / "tokens")
    return folder / "tokens", sequences, card


def parts(folder):
    """The documents of both parts, as lists of token ids."""
    found = {}
    for name, starts in (("train", "starts"), ("heldout", "heldout_starts")):
        stream = np.load(folder / f"{name}.npy")
        found[name] = [row.tolist() for row in np.split(stream, np.load(folder / f"{starts}.npy")[1:])]
    return found


def test_every_document_is_there_once_and_the_card_counts_exactly(base, dna):
    folder, sequences, card = dna
    tokens = tokenization.load(base)
    expected = sorted(
        [*tokens(tokenization.expand(f"<dna>{s}</dna>"))["input_ids"], tokens.eos_token_id] for s in sequences
    )
    found = parts(folder)
    assert sorted(found["train"] + found["heldout"]) == expected
    for name, rows in found.items():
        assert card[name] == {"documents": len(rows), "tokens": sum(map(len, rows)), "longest": max(map(len, rows))}
    assert card["train"]["tokens"] + card["heldout"]["tokens"] == sum(map(len, sequences)) + 3 * RECORDS
    assert files.read_json(folder / "card.json") == card


def test_text_is_one_document_a_line_and_loses_nothing(base, tmp_path):
    lines = [line for line in (ROOT / "resources/corpora/text.txt").read_text().splitlines() if line.strip()][:200]
    (tmp_path / "text.txt").write_text("\n\n".join(lines))
    card = tokenize_corpus(tmp_path / "text.txt", "text", base, tmp_path / "tokens")
    tokens = tokenization.load(base)
    found = [tokens.decode(row[:-1]) for rows in parts(tmp_path / "tokens").values() for row in rows]
    assert sorted(found) == sorted(line.strip() for line in lines)
    assert card["train"]["documents"] + card["heldout"]["documents"] == len(lines)


def test_text_cannot_write_a_token_of_structure(base, tmp_path):
    spelled = ("<|dna:A|>", "<|endoftext|>", "<think>", "<|pad|>", "\x00", "<dna>ACGT</dna>", "<dna>acgt</dna>")
    lines = [f"{token} and line {number}" for number in range(60) for token in spelled]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    tokenize_corpus(tmp_path / "text.txt", "text", base, tmp_path / "tokens")
    tokens = tokenization.load(base)
    structure = set(tokens.get_added_vocab().values())
    for rows in parts(tmp_path / "tokens").values():
        for row in rows:
            assert row[-1] == tokens.eos_token_id
            assert not structure & set(row[:-1])


def test_a_twentieth_of_documents_is_held_out_by_their_content():
    documents = [f"document {number}" for number in range(4000)]
    found = [corpus.is_heldout(document) for document in documents]
    assert found == [corpus.is_heldout(document) for document in documents]
    assert 0.04 < sum(found) / len(found) < 0.06


def test_held_out_documents_are_not_in_train_even_when_a_document_occurs_twice(base, tmp_path):
    sequences = fasta(tmp_path / "once.fasta")
    (tmp_path / "twice.fasta").write_text("".join(f">{at}\n{s}\n" for at, s in enumerate(sequences + sequences[::-1])))
    tokenize_corpus(tmp_path / "twice.fasta", "dna", base, tmp_path / "tokens")
    found = {name: {tuple(row) for row in rows} for name, rows in parts(tmp_path / "tokens").items()}
    assert found["heldout"]
    assert not found["train"] & found["heldout"]


def test_tokenizing_twice_or_from_gzip_gives_identical_streams(base, dna, tmp_path):
    fasta(tmp_path / "dna.fasta")
    (tmp_path / "dna.fasta.gz").write_bytes(gzip.compress((tmp_path / "dna.fasta").read_bytes()))
    for name in ("dna.fasta", "dna.fasta.gz"):
        tokenize_corpus(tmp_path / name, "dna", base, tmp_path / "tokens")
        for array in dna[0].glob("*.npy"):
            assert (tmp_path / "tokens" / array.name).read_bytes() == array.read_bytes()


def test_blocks_are_memory_mapped_and_cut_the_stream_without_padding(dna):
    blocks = Blocks(dna[0], 64)
    assert isinstance(blocks.stream, np.memmap)
    assert isinstance(blocks.starts, np.memmap)
    stream = np.load(dna[0] / "train.npy")
    assert len(blocks) == len(stream) // 64
    ids = np.concatenate([blocks[at]["input_ids"] for at in range(len(blocks))])
    assert ids.dtype == np.int64
    assert (ids == stream[: len(ids)]).all()


@pytest.mark.parametrize("size", [7, 64, 256])
def test_positions_restart_and_no_loss_is_taken_where_a_document_starts(dna, size):
    starts = set(np.load(dna[0] / "starts.npy").tolist())
    blocks = Blocks(dna[0], size)
    for index in range(len(blocks)):
        block = blocks[index]
        position = 0
        for at in range(size):
            is_start = index * size + at in starts or at == 0
            position = 0 if is_start else position + 1
            assert block["position_ids"][at] == position
            assert block["labels"][at] == (-100 if is_start else block["input_ids"][at])


def test_a_document_in_a_packed_block_is_read_as_if_it_stood_alone(base, dna):
    model = models.compose(base)
    blocks = Blocks(dna[0], 200)
    # Two blocks in one batch: boundaries at different places in each row.
    batch = {
        key: torch.stack([torch.from_numpy(blocks[at][key]) for at in (0, 1)]) for key in ("input_ids", "position_ids")
    }
    compared = 0
    with torch.inference_mode():
        packed = model(**batch, use_cache=False).logits
        for row in (0, 1):
            bounds = [*torch.nonzero(batch["position_ids"][row] == 0).flatten().tolist(), 200]
            assert len(bounds) > 4
            for begin, end in itertools.pairwise(bounds):
                ids = batch["input_ids"][row : row + 1, begin:end]
                alone = model(ids, use_cache=False).logits[0]
                # Rotary positions are relative: where a cut document's positions begin makes no difference.
                shifted = model(ids, position_ids=torch.arange(17, 17 + end - begin)[None], use_cache=False).logits[0]
                # float32; sums over 200 keys or over the document's own differ in their last bits
                torch.testing.assert_close(packed[row, begin:end], alone, atol=1e-5, rtol=0)
                torch.testing.assert_close(shifted, alone, atol=1e-5, rtol=0)
                compared += end - begin
    assert compared == 400
    # The comparison can fail: without restarted positions the documents do see each other.
    crossed = model(batch["input_ids"], use_cache=False).logits
    assert (crossed - packed).abs().max() > 1e-3


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


TRUNCATED = gzip.compress(b">a\nACGT\n" * 500)[:-20]
GARBLED = gzip.compress(b"", mtime=0)[:10] + b"\xff" * 60  # a good header, then no deflate stream


@pytest.mark.parametrize(
    ("name", "modality", "content", "message"),
    [
        ("a.fasta", "dna", "", "no documents"),
        ("a.fasta", "dna", ">only\n>headers\n", "no documents"),
        ("a.txt", "text", "\n \n", "no documents"),
        ("a.fasta", "dna", "ACGT\n>late\nACGT\n", "line 1: FASTA has to begin with a header line"),
        ("a.fasta", "dna", ">a\nACGT\n>b\nACGUA\n", "record 2: letter 'U' at position 4"),
        ("a.fasta", "rna", ">a\nACGT\n", "record 1: letter 'T' at position 4"),
        ("a.fasta", "protein", ">a\nMKV*\n", "record 1: letter '\\*' at position 4"),
        ("a.fasta", "dna", ">a\nACGT\n", "no document falls into the heldout part"),
        ("a.fasta.gz", "dna", ">a\nACGT\n", "cannot be read"),
        ("a.fasta.gz", "dna", TRUNCATED, "cannot be read"),
        ("a.fasta.gz", "dna", GARBLED, "cannot be read"),
        ("a.txt", "text", b"caf\xe9\n", "cannot be read"),
        ("absent.fasta", "dna", None, "cannot be read"),
    ],
    ids=(
        "empty only-headers blank-lines no-header rna-in-dna dna-in-rna stop-codon one-record "
        "not-gzip cut-gzip garbled-gzip not-utf8 absent"
    ).split(),
)
def test_a_broken_corpus_is_named_and_nothing_is_written(base, tmp_path, name, modality, content, message):
    path = tmp_path / name
    if content is not None:
        write(path, content)
    with pytest.raises(UserError, match=message) as caught:
        tokenize_corpus(path, modality, base, tmp_path / "out" / "tokens")
    assert str(path) in str(caught.value)
    assert not list((tmp_path / "out").glob("*"))


def test_a_block_larger_than_the_corpus_is_refused(dna):
    with pytest.raises(UserError, match="do not fill one block of 100000; use a smaller block_size"):
        Blocks(dna[0], 100_000)
