"""Corpora: every format, exact counts, documents that stay apart, errors that name file and record, bounded memory."""

import gzip
import io
import itertools
import json
import random
import re
import tracemalloc

import numpy as np
import pyarrow
import pytest
import torch
import yaml
from Bio import SeqIO
from Bio.Seq import Seq
from Bio.SeqRecord import SeqRecord
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cisterna import cli, models, study
from cisterna.artifacts import files
from cisterna.data import corpus, tokenized
from cisterna.data.blocks import Blocks
from cisterna.data.tokenized import tokenize_corpus
from cisterna.errors import UserError
from cisterna.sequences import tokenization
from cisterna.study.config import rules
from cisterna.training import encoder
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
    tokenizer = tokenization.load(base)
    expected = sorted(
        [*tokenizer(tokenization.expand(f"<dna>{s}</dna>"))["input_ids"], tokenizer.eos_token_id] for s in sequences
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
    tokenizer = tokenization.load(base)
    found = [tokenizer.decode(row[:-1]) for rows in parts(tmp_path / "tokens").values() for row in rows]
    assert sorted(found) == sorted(line.strip() for line in lines)
    assert card["train"]["documents"] + card["heldout"]["documents"] == len(lines)


@pytest.mark.parametrize(("name", "text"), [("a.fasta", ">a\nACGT\n" * 99), ("a.txt", "one\ntwo\n")])
def test_a_byte_order_mark_is_no_part_of_a_document(tmp_path, name, text):
    documents = []
    for mark in ("", "\ufeff"):
        (tmp_path / name).write_bytes((mark + text).encode())
        modality = "dna" if name == "a.fasta" else "text"
        documents.append([document for _, document, _ in corpus.select_documents(tmp_path / name, modality, {})])
    assert documents[0] == documents[1] != []


def by_lines(text):
    """The records of a FASTA file, read as slowly and plainly as possible."""
    found = []
    for line in re.split("\r\n|\r|\n", text):
        if line.startswith(">"):
            found.append("")
        elif line.strip():
            found[-1] += line.strip()
    return [sequence for sequence in found if sequence]


FASTA_LINES = st.sampled_from(
    [">", ">a >b", "> c", "ACGT", "acgtn" * 9, " AC", "AC \t", "A C", "A>", " >", "", "  ", "é"]
)


@given(st.lists(st.tuples(FASTA_LINES, st.sampled_from(["\n", "\r\n", "\r"])), max_size=20), st.integers(1, 50))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_fasta_file_has_the_same_records_whatever_the_size_of_a_block(tmp_path, lines, size):
    text = ">first\nA\n" + "".join(map("".join, lines))
    (tmp_path / "a.fasta").write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "BLOCK", size)
        assert list(corpus.documents(tmp_path / "a.fasta", "dna")) == by_lines(text)


def test_text_cannot_write_a_token_of_structure(base, tmp_path):
    spelled = ("<|dna:A|>", "<|endoftext|>", "<think>", "<|pad|>", "\x00", "<dna>ACGT</dna>", "<dna>acgt</dna>")
    lines = [f"{token} and line {number}" for number in range(60) for token in spelled]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    tokenize_corpus(tmp_path / "text.txt", "text", base, tmp_path / "tokens")
    tokenizer = tokenization.load(base)
    structure = set(tokenizer.get_added_vocab().values())
    for rows in parts(tmp_path / "tokens").values():
        for row in rows:
            assert row[-1] == tokenizer.eos_token_id
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


def test_a_block_larger_than_the_corpus_is_refused(dna):
    with pytest.raises(UserError, match="do not fill one block of 100000; use a smaller block_size"):
        Blocks(dna[0], 100_000)


# --- Formats, and caps on documents ---

TEXTS = [f"Document {number} tells of gene {number * 7}.\nIt has two lines." for number in range(80)]
SEQUENCES = ["ACGTTGCA" * (3 + number % 5) + "ACGT"[number % 4] * number for number in range(60)]


def packed(name, content):
    """The bytes of a file of this name."""
    if name.endswith(".gz"):
        return gzip.compress(content)
    if name.endswith(".zst"):
        return pyarrow.compress(content, codec="zstd", asbytes=True)
    return content


def json_lines(texts, field="text"):
    return "".join(json.dumps({"url": "http://a", field: text, "score": 0.5}) + "\n\n" for text in texts).encode()


def flat(form, sequences=SEQUENCES):
    """Records as Biopython writes them, in lower case as these files have them."""
    records = []
    for number, sequence in enumerate(sequences):
        record = SeqRecord(Seq(sequence), id=f"AB{number:04}.1", name=f"AB{number:04}", description=f"record {number}")
        record.annotations["molecule_type"] = "DNA"
        records.append(record)
    text = io.StringIO()
    SeqIO.write(records, text, form)
    return text.getvalue().encode()


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "A.JSONL"])
def test_a_json_object_is_a_document_with_all_its_lines(base, tmp_path, name):
    (tmp_path / name).write_bytes(packed(name, json_lines(TEXTS)))
    assert list(corpus.documents(tmp_path / name, "text")) == TEXTS
    tokenize_corpus(tmp_path / name, "text", base, tmp_path / "tokens")
    tokenizer = tokenization.load(base)
    found = [tokenizer.decode(row[:-1]) for rows in parts(tmp_path / "tokens").values() for row in rows]
    assert sorted(found) == sorted(TEXTS)


def test_the_field_is_named_and_may_hold_sequences(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines([sequence.lower() for sequence in SEQUENCES], "content"))
    chosen = corpus.select_documents(path, "dna", {"field": "content"})
    assert [document for _, document, _ in chosen] == SEQUENCES


@pytest.mark.parametrize(
    ("name", "form"),
    [("a.gb", "genbank"), ("a.gbk", "genbank"), ("a.gbff.gz", "genbank"), ("a.embl", "embl"), ("a.embl.zst", "embl")],
)
def test_a_record_of_genbank_or_embl_is_a_document_in_upper_case(base, tmp_path, name, form):
    content = flat(form)
    assert b"acgttgca" in content
    (tmp_path / name).write_bytes(packed(name, content))
    assert list(corpus.documents(tmp_path / name, "dna")) == SEQUENCES
    (tmp_path / "a.fasta").write_text("".join(f">{number}\n{s}\n" for number, s in enumerate(SEQUENCES)))
    for source in (name, "a.fasta"):
        tokenize_corpus(tmp_path / source, "dna", base, tmp_path / f"tokens-{source}")
    for array in ("train", "starts", "heldout", "heldout_starts"):
        found, expected = (tmp_path / f"tokens-{source}" / f"{array}.npy" for source in (name, "a.fasta"))
        assert found.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("name", ["a.fasta.zst", "a.txt.zst"])
def test_files_of_lines_may_be_packed_by_zstandard(tmp_path, name):
    fasta = name == "a.fasta.zst"
    content = "".join(f">{number}\n{s}\n" for number, s in enumerate(SEQUENCES)) if fasta else "\n".join(SEQUENCES)
    (tmp_path / name).write_bytes(packed(name, content.encode()))
    assert list(corpus.documents(tmp_path / name, "dna" if fasta else "text")) == SEQUENCES


def test_files_are_byte_for_byte_what_numpy_saves(base, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json_lines(TEXTS))
    tokenize_corpus(tmp_path / "a.jsonl", "text", base, tmp_path / "tokens")
    for name in ("train", "heldout"):
        stream = np.load(tmp_path / "tokens" / f"{name}.npy")
        assert stream.dtype == np.uint32
        np.save(tmp_path / "saved.npy", stream)
        assert (tmp_path / "saved.npy").read_bytes() == (tmp_path / "tokens" / f"{name}.npy").read_bytes()


def test_the_size_of_a_batch_changes_nothing(base, tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_bytes(json_lines(TEXTS))
    for size in (1, 300, 10**9):
        monkeypatch.setattr(tokenized, "BATCH", size)
        tokenize_corpus(tmp_path / "a.jsonl", "text", base, tmp_path / f"{size}")
    for path in (tmp_path / "1").iterdir():
        assert path.read_bytes() == (tmp_path / "300" / path.name).read_bytes()
        assert path.read_bytes() == (tmp_path / str(10**9) / path.name).read_bytes()


def test_caps_take_the_first_documents_of_each_part(base, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json_lines(TEXTS * 3))
    tokenize_corpus(tmp_path / "a.jsonl", "text", base, tmp_path / "all")
    options = {"train_documents": 50, "heldout_documents": 2}
    card = tokenize_corpus(tmp_path / "a.jsonl", "text", base, tmp_path / "some", options)
    everything, some = parts(tmp_path / "all"), parts(tmp_path / "some")
    assert some == {"train": everything["train"][:50], "heldout": everything["heldout"][:2]}
    assert (card["train"]["documents"], card["heldout"]["documents"]) == (50, 2)
    assert card["options"] == options
    tokenize_corpus(tmp_path / "a.jsonl", "text", base, tmp_path / "train", {"train_documents": 50})
    assert parts(tmp_path / "train") == {"train": everything["train"][:50], "heldout": everything["heldout"]}


def test_skipped_documents_are_the_first_of_the_file_in_both_parts(base, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(TEXTS * 3))
    everything = list(corpus.select_documents(path, "text", {}))
    skipped = list(corpus.select_documents(path, "text", {"skip_documents": 100}))
    assert {heldout for *_, heldout in everything[:100]} == {heldout for *_, heldout in skipped} == {True, False}
    assert skipped == everything[100:]
    options = {"skip_documents": 100, "train_documents": 5}
    card = tokenize_corpus(path, "text", base, tmp_path / "tokens", options)
    assert (card["train"]["documents"], card["options"]) == (5, options)


def test_skipping_more_than_the_file_has_is_refused(base, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json_lines(TEXTS))
    for options, said in (
        ({"skip_documents": len(TEXTS)}, f"skip_documents leaves out {len(TEXTS)} documents, and the file has"),
        ({"skip_documents": 10, "train_documents": 1000}, "such documents after the first 10 "),
    ):
        with pytest.raises(UserError, match=said):
            tokenize_corpus(tmp_path / "a.jsonl", "text", base, tmp_path / "out" / "tokens", options)
    assert not list((tmp_path / "out").glob("*"))


def test_no_more_is_read_than_fills_both_caps(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(TEXTS * 3) + b"not JSON\n")
    options = {"train_documents": 50, "heldout_documents": 2}
    assert len(list(corpus.select_documents(path, "text", options))) == 52
    with pytest.raises(UserError, match="line 481: not JSON"):
        list(corpus.select_documents(path, "text", {}))


def test_the_command_takes_the_documents_that_the_config_names(base, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(TEXTS * 3, "content"))
    options = {"field": "content", "train_documents": 50, "heldout_documents": 2}
    words = ["--corpus", path, "--modality", "text", "--options", json.dumps(options), "--base", base]
    assert cli.main(["tokenize", *map(str, words), "--output", str(tmp_path / "command")]) == 0
    tokenize_corpus(path, "text", base, tmp_path / "function", options)
    assert parts(tmp_path / "command") == parts(tmp_path / "function")


def test_an_encoder_is_trained_on_the_documents_that_the_config_names(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(SEQUENCES, "content"))
    entry = {"file": str(path), "modality": "dna", "field": "content", "train_documents": 20}
    tokenizer = tokenization.build_for_encoder()
    training, heldout = encoder.read(tokenizer, path, "dna", 10**6, entry)
    letters = ["".join(tokenizer.convert_ids_to_tokens(int(at))[-3] for at in piece[1:-1]) for piece in training]
    assert letters == [sequence for sequence in SEQUENCES if not corpus.is_heldout(sequence)][:20]
    assert len(heldout) == sum(map(corpus.is_heldout, SEQUENCES))


def config_with(tmp_path, **corpus):
    """The default config with one more corpus, which a recipe reads."""
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    config["corpora"]["more"] = corpus
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "config.yaml"


def test_the_config_names_the_documents_of_a_corpus(tmp_path):
    options = {"field": "content", "skip_documents": 5000, "train_documents": 200_000, "heldout_documents": 5000}
    found = study.read(config_with(tmp_path, file="a.jsonl.zst", modality="text", **options))
    assert found.documents("more") == options
    assert found.documents("text") == {}


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"file": "a.fasta", "modality": "dna", "field": "text"}, "corpora.more.field"),
        ({"file": "a.GB.gz", "modality": "text"}, "corpora.more.modality"),
        ({"file": "a.jsonl", "modality": "text", "train_documents": 0}, "corpora.more.train_documents"),
        ({"file": "a.jsonl", "modality": "text", "skip_documents": -1}, "corpora.more.skip_documents"),
        ({"file": "a.jsonl", "modality": "text", "documents": 5}, "corpora.more.documents"),
    ],
)
def test_a_mistake_about_a_corpus_is_found_before_anything_runs(tmp_path, given, key):
    with pytest.raises(UserError, match=key):
        study.read(config_with(tmp_path, **given))


def test_the_config_knows_the_endings_that_hold_sequences():
    assert set(rules.FLAT) == set(corpus.FLAT_FILES)


@pytest.mark.parametrize("cap", ["train_documents", "heldout_documents"])
def test_a_cap_that_the_file_cannot_fill_is_refused(base, tmp_path, cap):
    (tmp_path / "a.jsonl").write_bytes(json_lines(TEXTS))
    with pytest.raises(UserError, match=f"a.jsonl: {cap} asks for 1000, and the file has"):
        tokenize_corpus(tmp_path / "a.jsonl", "text", base, tmp_path / "out" / "tokens", {cap: 1000})
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(("modality", "ending"), [("text", "jsonl"), ("dna", "jsonl"), ("dna", "fasta")])
def test_memory_does_not_grow_with_the_number_of_documents(base, tmp_path, monkeypatch, modality, ending):
    monkeypatch.setattr(tokenized, "BATCH", 20_000)
    tokenization.load(base)
    peaks = []
    for count in (500, 5000):
        path = tmp_path / f"{count}.{ending}"
        letters = (f"{'ACGT' * 50}{'G' * (number % 97)}" for number in range(count))
        write = json_lines if ending == "jsonl" else lambda rows: "".join(f">a\n{row}\n" for row in rows).encode()
        path.write_bytes(write(letters))
        tracemalloc.start()
        try:
            tokenize_corpus(path, modality, base, tmp_path / f"tokens-{count}")
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + 300_000, peaks


# --- Files that cannot be read ---

TRUNCATED = gzip.compress(b">a\nACGT\n" * 500)[:-20]
GARBLED = gzip.compress(b"", mtime=0)[:10] + b"\xff" * 60  # a good header, then no deflate stream
GENBANK = flat("genbank", SEQUENCES[:3])
EMBL = flat("embl", SEQUENCES[:3])


def without_sequence(content):
    """The second record names the contigs that it is made of instead of its sequence."""
    first, second, third = content.split(b"//\n")[:3]
    return b"//\n".join([first, second[: second.index(b"ORIGIN")] + b"CONTIG      join(AB1:1..9)\n", third, b""])


@pytest.mark.parametrize(
    ("name", "modality", "content", "message"),
    [
        ("a.fasta", "dna", b">only\n>headers\n", "no documents"),
        ("a.fasta", "dna", b"ACGT\n>late\nACGT\n", "line 1: .*header"),
        ("a.fasta", "dna", b">a\nACGT\n>b\nACGUA\n", "record 2: letter 'U' at position 4"),
        ("a.fasta", "dna", b">a\nACGT\n", "no document falls into the heldout part"),
        ("a.fasta.gz", "dna", b">a\nACGT\n", "cannot be read"),
        ("a.fasta.gz", "dna", TRUNCATED, "cannot be read"),
        ("a.fasta.gz", "dna", GARBLED, "cannot be read"),
        ("a.txt", "text", b"\n \n", "no documents"),
        ("a.txt", "text", b"cafe\ncaf\xe9\n", "line 2: cannot be read.*0xe9"),
        ("a.fasta", "dna", ">a\nACGT\n".encode("utf-16"), "line 1: cannot be read.*UTF-16"),
        ("absent.fasta", "dna", None, "cannot be read"),
        ("a.jsonl", "text", b'{"text": "a"}\n{"text": \n', "line 2: not JSON"),
        ("a.jsonl", "text", b'{"text": "a"}\n["text"]\n', "line 2: .*JSON object"),
        ("a.jsonl", "text", b'{"text": "a"}\n\n{"content": "b", "id": 1}\n', "line 3: no key 'text'.*content, id"),
        ("a.jsonl", "text", b'{"text": ["a"]}\n', r"line 1: .*'text' is \[\"a\"\]"),
        ("a.jsonl", "text", b'{"text": "\\ud800"}\n', "line 1: 'text' .*Unicode"),
        ("a.jsonl", "text", b"[" * 100_000 + b"\n", "line 1: not JSON"),
        ("a.jsonl", "text", b'{"text": " "}\n', "no documents.*'text'"),
        ("a.jsonl.zst", "text", packed("a.zst", json_lines(TEXTS))[:-9], "cannot be read"),
        ("a.jsonl.zst", "text", b"plain", "cannot be read"),
        ("a.jsonl.zst", "text", None, "cannot be read"),
        ("a.gb", "text", GENBANK, "GenBank.*`modality`"),
        ("a.gb", "dna", b">a\nACGT\n", "no documents.*GenBank"),
        ("a.gb", "dna", GENBANK[: GENBANK.rindex(b"//")], "record 3: no GenBank record"),
        ("a.gb", "dna", GENBANK.replace(b"gttg", b"g"), "record 1: no GenBank record"),
        ("a.gb", "dna", GENBANK[: GENBANK.rindex(b"FEATURES")], "record 3: no GenBank record"),
        ("a.gb", "dna", without_sequence(GENBANK), r"record 2 \(AB0001.1\): has no sequence"),
        ("a.embl", "dna", EMBL[: EMBL.rindex(b"//")], "record 3: no EMBL record"),
        ("a.embl", "dna", b"ID   nothing that is known\n" + EMBL, "record 1: no EMBL record"),
        ("a.embl", "dna", EMBL.replace(b" BP.", b" BP. more", 1), "record 1: no EMBL record"),
    ],
)
def test_a_broken_corpus_is_named_with_line_or_record_and_nothing_is_written(
    base, tmp_path, name, modality, content, message
):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        tokenize_corpus(path, modality, base, tmp_path / "out" / "tokens")
    assert str(path) in str(caught.value)
    assert not list((tmp_path / "out").glob("*"))
