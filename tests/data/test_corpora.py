"""The shipped corpora: their letters, their counts, and that no task's assay is among them."""

import gzip
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from cisterna.data import corpus

ROOT = Path(__file__).resolve().parents[2]
CORPORA = ROOT / "resources" / "corpora"
LETTERS = {"dna": "ACGT", "rna": "ACGU", "protein": "ACDEFGHIKLMNPQRSTVWY"}

# Wild types of the assays, written down again here so that a slip in the script cannot hide itself.
GB1 = "MTYKLILNGKTLKGETTTEAVDAATAEKVFKQYANDNGVDGEWTYDDATKTFTVTE"
LAC = "AATTAATGTGAGTTAGCTCACTCATTAGGCACCCCAGGCTTTACACTTTATGCTTCCGGCTCGTATGTTGTGTGG"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_corpora", ROOT / "scripts" / "build_corpora.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shipped() -> dict[str, list[str]]:
    return {modality: list(corpus.documents(CORPORA / f"{modality}.fasta.gz", modality)) for modality in LETTERS} | {
        "text": list(corpus.documents(CORPORA / "text.txt", "text"))
    }


def records(modality: str) -> list[tuple[str, str]]:
    """(name, sequence) of a shipped FASTA file, whose sequences take one line each."""
    lines = gzip.decompress((CORPORA / f"{modality}.fasta.gz").read_bytes()).decode().splitlines()
    return [(name[1:], sequence) for name, sequence in zip(lines[::2], lines[1::2], strict=True)]


def words(sequences: list[str], size: int) -> set[str]:
    return {text[i : i + size] for text in sequences for i in range(len(text) - size + 1)}


def both_strands(sequences: list[str]) -> list[str]:
    complement = str.maketrans("ACGT", "TGCA")
    return sequences + [sequence.translate(complement)[::-1] for sequence in sequences]


@pytest.mark.parametrize("modality", LETTERS)
def test_sequences_hold_only_the_letters_of_their_modality(shipped, modality):
    assert set("".join(shipped[modality])) == set(LETTERS[modality])


@pytest.mark.parametrize("modality", LETTERS)
def test_no_document_and_no_name_occurs_twice(modality):
    names, sequences = zip(*records(modality), strict=True)
    assert len(set(names)) == len(names)
    assert len(set(sequences)) == len(sequences)


def test_document_lengths_are_as_the_datasheet_says(shipped):
    assert {60 <= len(text) <= 400 for kind in ("dna", "rna") for text in shipped[kind]} == {True}
    assert {50 <= len(text) <= 400 for text in shipped["protein"]} == {True}
    assert {40 <= len(text) <= 1000 for text in shipped["text"]} == {True}


def test_dna_and_rna_share_no_entry():
    entries = [{re.split(r"[:|]", name)[0] for name, _ in records(kind)} for kind in ("dna", "rna")]
    assert not entries[0] & entries[1]


def test_precursor_windows_have_the_splice_site_in_the_middle():
    windows = [sequence for name, sequence in records("rna") if name.endswith("precursor")]
    assert {len(window) for window in windows} == {200}
    assert sum(window[100:102] == "GU" for window in windows) > 0.98 * len(windows)


def test_text_is_plain_distinct_and_free_of_the_answer_format(shipped):
    text = shipped["text"]
    assert all(line.isascii() for line in text)
    assert len({line.split(": ", 1)[1] for line in text}) == len(text)
    assert not any(re.search(r"</?(think|dna|rna|protein)>|Answer:|<\|", line) for line in text)


def test_counts_are_those_of_the_card_and_the_datasheet(script, shipped):
    card = json.loads((CORPORA / "card.json").read_text())["files"]
    sheet = (ROOT / "resources" / "DATASHEET.md").read_text()
    assert set(card) == {path.name for path in CORPORA.iterdir()} - {"card.json"}
    for kind, documents in shipped.items():
        name = "text.txt" if kind == "text" else f"{kind}.fasta.gz"
        data = script.unpacked((CORPORA / name).read_bytes())
        unit = "words" if kind == "text" else "residues"
        size = sum(len(text.split() if kind == "text" else text) for text in documents)
        assert card[name] == {
            "documents": len(documents),
            unit: size,
            "unpacked_sha256": script.hashlib.sha256(data).hexdigest(),
        }
        assert f"| `{name}` | {len(documents):,} | {size:,} {unit} |" in sheet


def test_datasheet_names_every_package_with_its_version(script):
    sheet = (ROOT / "resources" / "DATASHEET.md").read_text()
    packages = json.loads((CORPORA / "card.json").read_text())["packages"]
    for name, version, file, digest in script.PACKAGES:
        assert f"| `{name}` | {version} |" in sheet
        assert packages[file] == digest


def test_no_assay_wild_type_is_in_a_corpus(shipped):
    assert not words([GB1], 8) & words(shipped["protein"], 8)
    promoter = words(both_strands([LAC]), 15)
    assert not promoter & words(shipped["dna"], 15)
    assert not promoter & words([text.replace("U", "T") for text in shipped["rna"]], 15)


def test_no_sequence_of_the_task_tables_is_in_a_corpus(shipped):
    tasks = ROOT / "resources" / "tasks"
    proteins = pd.read_parquet(tasks / "protein-fitness.parquet")["sequence"].tolist()
    assert not words(proteins, 12) & words(shipped["protein"], 12)
    promoters = pd.read_parquet(tasks / "promoter-expression.parquet")["sequence"].tolist()
    mutants = words(both_strands(promoters), 25)
    assert not mutants & words(shipped["dna"], 25)
    assert not mutants & words([text.replace("U", "T") for text in shipped["rna"]], 25)
    cells = pd.read_parquet(tasks / "cell-type.parquet")["genes"]
    openings = {" ".join(cell.split()[:3]) for cell in cells}
    text = "\n".join(shipped["text"])
    assert not any(opening in text for opening in openings)


def test_datasheet_says_how_many_splice_donor_sequences_are_natural_sites_of_the_corpus():
    sites = {sequence[97:106] for name, sequence in records("rna") if name.endswith("precursor")}
    task = pd.read_parquet(ROOT / "resources" / "tasks" / "splice-donor.parquet")["sequence"]
    sheet = (ROOT / "resources" / "DATASHEET.md").read_text()
    assert f"{task.isin(sites).sum()} of the task's {len(task):,} sequences" in sheet


def test_cleaning_drops_assays_near_repeats_and_other_letters(script):
    real = records("dna")
    (_, first), (_, second) = real[0], real[1]
    repeat = first[: len(first) * 3 // 4] + second[: len(first) // 4]
    documents = [
        ("first", first),
        ("repeat", repeat),
        ("promoter", second[:100] + LAC[20:40] + second[100:]),
        ("antisense", second[:100] + both_strands([LAC])[1][20:40] + second[100:]),
        ("unknown base", "N" + second),
        ("second", second),
    ]
    assert [name for name, _ in script.clean(documents, "dna")] == ["first", "second"]
    protein = records("protein")[0][1]
    documents = [("assay", protein[:60] + GB1[20:30]), ("protein", protein)]
    assert [name for name, _ in script.clean(documents, "protein")] == ["protein"]


@pytest.mark.parametrize("modality", LETTERS)
def test_the_script_would_drop_nothing_from_what_it_shipped(script, modality):
    assert list(script.clean(records(modality), modality)) == records(modality)


def test_packing_is_deterministic_and_check_tells_contents_from_compression(script, tmp_path):
    documents = records("dna")[:20]
    packed = script.fasta(documents)
    assert packed == script.fasta(documents)
    assert packed[3:8] == bytes(5)  # no file name, no time stamp
    path = tmp_path / "dna.fasta.gz"
    assert script.compare(path, packed) == "MISSING"
    path.write_bytes(packed)
    assert script.compare(path, packed) == "same"
    path.write_bytes(gzip.compress(script.unpacked(packed), 1))
    assert script.compare(path, packed) == "same contents, packed by another zlib"
    path.write_bytes(script.fasta(documents[1:]))
    assert script.compare(path, packed) == "DIFFERENT"


def test_a_tampered_package_is_refused_before_it_is_read(script, tmp_path):
    for _, _, file, _ in script.PACKAGES:
        (tmp_path / file).write_bytes(b"not the package")
    with pytest.raises(SystemExit, match=r"emboss-test.*SHA-256 is .*, expected ea22a043"):
        script.fetch(tmp_path)
