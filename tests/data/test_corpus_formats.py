"""Corpora from JSON lines, GenBank and EMBL, packed or not; caps on documents; memory that does not grow with them."""

import gzip
import io
import json
import tracemalloc

import numpy as np
import pyarrow
import pytest
import yaml
from Bio import SeqIO
from Bio.Seq import Seq
from Bio.SeqRecord import SeqRecord
from test_corpus import parts

from cisterna import cli, study
from cisterna.data import corpus, tokenized
from cisterna.data.tokenized import tokenize_corpus
from cisterna.errors import UserError
from cisterna.sequences import tokenization
from cisterna.study.config import rules
from cisterna.training import encoder
from tiny import ROOT

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
    tokens = tokenization.load(base)
    found = [tokens.decode(row[:-1]) for rows in parts(tmp_path / "tokens").values() for row in rows]
    assert sorted(found) == sorted(TEXTS)


def test_the_field_is_named_and_may_hold_sequences(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines([sequence.lower() for sequence in SEQUENCES], "content"))
    assert list(corpus.documents(path, "dna", "content")) == SEQUENCES


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
    tokens = tokenization.build_for_encoder()
    training, heldout = encoder.read(tokens, path, "dna", 10**6, entry)
    letters = ["".join(tokens.convert_ids_to_tokens(int(at))[-3] for at in piece[1:-1]) for piece in training]
    assert letters == [sequence for sequence in SEQUENCES if not corpus.is_heldout(sequence)][:20]
    assert len(heldout) == sum(map(corpus.is_heldout, SEQUENCES))


def config_with(tmp_path, **corpus):
    """The default config with one more corpus, which a recipe reads."""
    given = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    given["corpora"]["more"] = corpus
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(given))
    return tmp_path / "config.yaml"


def test_the_config_names_the_documents_of_a_corpus(tmp_path):
    options = {"field": "content", "train_documents": 200_000, "heldout_documents": 5000}
    found = study.read(config_with(tmp_path, file="a.jsonl.zst", modality="text", **options))
    assert found.documents("more") == options
    assert found.documents("text") == {}


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"file": "a.fasta", "modality": "dna", "field": "text"}, "corpora.more.field"),
        ({"file": "a.GB.gz", "modality": "text"}, "corpora.more.modality"),
        ({"file": "a.jsonl", "modality": "text", "train_documents": 0}, "corpora.more.train_documents"),
        ({"file": "a.jsonl", "modality": "text", "heldout_documents": "all"}, "corpora.more.heldout_documents"),
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


@pytest.mark.parametrize("modality", ["text", "dna"])
def test_memory_does_not_grow_with_the_number_of_documents(base, tmp_path, monkeypatch, modality):
    monkeypatch.setattr(tokenized, "BATCH", 20_000)
    tokenization.load(base)
    peaks = []
    for count in (500, 5000):
        path = tmp_path / f"{count}.jsonl"
        letters = (f"{'ACGT' * 50}{'G' * (number % 97)}" for number in range(count))
        path.write_bytes(json_lines(letters))
        tracemalloc.start()
        try:
            tokenize_corpus(path, modality, base, tmp_path / f"tokens-{count}")
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + 300_000, peaks


GENBANK = flat("genbank", SEQUENCES[:3])
EMBL = flat("embl", SEQUENCES[:3])


def without_sequence(content):
    """The second record names the contigs that it is made of instead of its sequence."""
    first, second, third = content.split(b"//\n")[:3]
    return b"//\n".join([first, second[: second.index(b"ORIGIN")] + b"CONTIG      join(AB1:1..9)\n", third, b""])


@pytest.mark.parametrize(
    ("name", "modality", "content", "message"),
    [
        ("a.jsonl", "text", b'{"text": "a"}\n{"text": \n', "line 2: not JSON"),
        ("a.jsonl", "text", b'{"text": "a"}\n["text"]\n', "line 2: .*JSON object"),
        (
            "a.jsonl",
            "text",
            b'{"text": "a"}\n\n{"content": "b", "id": 1}\n',
            "line 3: no key 'text'; it has: content, id",
        ),
        ("a.jsonl", "text", b'{"text": ["a"]}\n', r"line 1: the value of 'text' is \[\"a\"\]; expected a text"),
        ("a.jsonl", "text", b'{"text": null}\n', "line 1: the value of 'text' is null"),
        ("a.jsonl", "text", b'{"text": "\\ud800"}\n', "line 1: 'text' is not Unicode text"),
        ("a.jsonl", "text", b"[" * 100_000 + b"\n", "line 1: not JSON"),
        ("a.jsonl", "text", b'{"text": "caf\xe9"}\n', "cannot be read"),
        ("a.jsonl", "text", b'{"text": " "}\n', "no documents; expected JSON objects with the key 'text'"),
        ("a.jsonl.zst", "text", packed("a.zst", json_lines(TEXTS))[:-9], "cannot be read"),
        ("a.jsonl.zst", "text", b"plain", "cannot be read"),
        ("a.jsonl.gz", "text", b"plain", "cannot be read"),
        ("a.jsonl.zst", "text", None, "cannot be read"),
        ("a.gb", "text", GENBANK, "GenBank.*`modality`"),
        ("a.gb", "dna", b">a\nACGT\n", "no documents; expected GenBank records"),
        ("a.gb", "dna", GENBANK[: GENBANK.rindex(b"//")], "record 3: no GenBank record: Premature end"),
        ("a.gb", "dna", GENBANK.replace(b"gttg", b"g"), "record 1: no GenBank record: Expected sequence length 24"),
        ("a.gb", "dna", GENBANK[: GENBANK.rindex(b"FEATURES")], "record 3: no GenBank record"),
        ("a.gb", "dna", without_sequence(GENBANK), r"record 2 \(AB0001.1\): has no sequence"),
        ("a.gb", "rna", GENBANK, "record 1: letter 'T' at position 4 is not in the rna alphabet"),
        ("a.embl", "dna", GENBANK, "no documents; expected EMBL records"),
        ("a.embl", "dna", EMBL[: EMBL.rindex(b"//")], "record 3: no EMBL record: Premature end"),
        ("a.embl", "dna", b"ID   nothing that is known\n" + EMBL, "record 1: no EMBL record"),
        ("a.embl", "dna", EMBL.replace(b" BP.", b" BP. more", 1), "record 1: no EMBL record: Invalid sequence length"),
        ("a.embl", "dna", None, "cannot be read"),
    ],
)
def test_a_broken_file_is_named_with_line_or_record_and_nothing_is_written(
    base, tmp_path, name, modality, content, message
):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        tokenize_corpus(path, modality, base, tmp_path / "out" / "tokens")
    assert str(path) in str(caught.value)
    assert not list((tmp_path / "out").glob("*"))
