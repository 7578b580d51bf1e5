"""One rule for the letters of sequences, wherever they are read."""

import json

import pandas as pd
import pytest

from cisterna import tasks
from cisterna.data.splits import prepare
from cisterna.data.tokenized import tokenize_corpus
from cisterna.errors import UserError
from cisterna.sequences import letters, tokenization
from studies import OWN_TABLE

UNUSUAL = [("protein", "MKBJOUZV", "MKXXXXXV"), ("dna", "ACRYSWKMBDHVN", "ACNNNNNNNNNNN"), ("rna", "ACRU", "ACNU")]


@pytest.mark.parametrize(("modality", "sequence", "masked"), UNUSUAL)
def test_unusual_letters_are_masked_kept_or_refused(modality, sequence, masked):
    mask, keep = letters.Reader(modality, "mask"), letters.Reader(modality, "keep")
    assert mask.read(sequence, "here") == masked
    assert keep.read(sequence, "here") == sequence
    counts = {letter: 1 for letter in sequence if letter in tokenization.UNUSUAL[modality]}
    for reader, word in ((mask, "mask"), (keep, "keep")):
        assert reader.report()["unusual"] == counts
        assert reader.report()["sequences"] == 1
        assert reader.report()["rule"].startswith(word)
    first = next(iter(counts))
    message = f"here: letter '{first}' at position 3 .*unusual_letters: mask"
    with pytest.raises(UserError, match=message):
        letters.Reader(modality, "refuse").read(sequence, "here")


def test_without_a_rule_proteins_are_masked_and_nucleotides_refused():
    assert letters.Reader("protein").read("MKU", "here") == "MKX"
    for modality in ("dna", "rna"):
        with pytest.raises(UserError, match="letter 'R'"):
            letters.Reader(modality).read("ACR", "here")


@pytest.mark.parametrize("rule", ["refuse", "mask", "keep"])
@pytest.mark.parametrize(
    ("modality", "sequence", "message"),
    [
        ("protein", "MKV*", r"letter '\*' at position 4 is a stop"),
        ("protein", "M-KV", "letter '-' at position 2 is a gap"),
        ("dna", "AC.GT", "letter '.' at position 3 is a gap"),
        ("dna", "ACGU", "letter 'U' at position 4 is not a letter of dna, but a base of RNA"),
        ("rna", "ACGT", "letter 'T' at position 4 is not a letter of rna, but a base of DNA"),
        ("dna", "AC GT", "letter ' ' at position 3 is not a letter of dna"),
        ("dna", "ACIGT", "letter 'I'"),
        ("protein", "MK\u0131", "letter '\u0131'"),  # upper() would make the I of isoleucine of it
        ("protein", "MK\ufb01", "letter"),  # and two residues of this
    ],
)
def test_what_is_no_residue_is_named_under_every_rule(rule, modality, sequence, message):
    with pytest.raises(UserError, match=f"here: {message}"):
        letters.Reader(modality, rule).read(sequence, "here")


def test_lower_case_is_read_as_upper_case_and_counted():
    reader = letters.Reader("dna")
    assert [reader.read(text, "here") for text in ("acGT", "ACGT", "acgt")] == ["ACGT"] * 3
    assert reader.report() == {"lower_case": 2}
    assert letters.Reader("dna").report() == {}


def test_a_kept_letter_has_the_token_of_the_unknown_residue():
    assert tokenization.expand("<protein>MU</protein>") == tokenization.expand("<protein>MX</protein>")
    with pytest.raises(UserError, match=r"\['\*'\] not in the protein alphabet"):
        tokenization.expand("<protein>M*</protein>")


def own_table(folder, sequence):
    """A table with one protein that has a rare residue."""
    residues = tokenization.ALPHABETS["protein"][:-1]
    frame = pd.DataFrame(
        {
            "variant": [f"v{number}" for number in range(60)],
            "seq": [f"MK{residues[number % 20]}{residues[number // 20]}V" for number in range(60)],
            "class": ["low", "high"] * 30,
            "family": ["kinase" if number % 3 == 0 else "gpcr" for number in range(60)],
        }
    )
    frame.loc[4, "seq"] = sequence
    frame.to_csv(folder / "t.csv", index=False)
    return OWN_TABLE | {"file": str(folder / "t.csv"), "train": 20, "validation": 5, "id": 10}


def test_a_table_and_new_rows_for_it_are_read_by_one_rule_and_the_card_counts(tmp_path):
    spec = own_table(tmp_path, "mkUUZ")
    (tmp_path / "new.csv").write_text("seq\nMKU\n")
    for rule, said in ((None, "MKXXX"), ("mask", "MKXXX"), ("keep", "MKUUZ")):
        asked = spec | ({"unusual_letters": rule} if rule else {})
        task = tasks.load("own", asked)
        assert tasks.read(task)["sequence"][4] == said
        assert tasks.questions(task, tmp_path / "new.csv")["sequence"][0] == f"MK{said[-1].replace('Z', 'U')}"
        prepare("own", asked, 0, tmp_path / "data")
        card = json.loads((tmp_path / "data" / "card.json").read_text())
        assert card["letters"]["unusual"] == {"U": 2, "Z": 1}
        assert (card["letters"]["sequences"], card["letters"]["lower_case"]) == (1, 1)
    with pytest.raises(UserError, match="row 5: column 'seq': letter 'U' at position 3"):
        tasks.read(tasks.load("own", spec | {"unusual_letters": "refuse"}))


def test_a_corpus_is_read_by_the_same_rule_and_its_card_counts(base, tmp_path):
    path = tmp_path / "a.fasta"
    proteins = [f"MK{residue}{other}" for residue in "ACDEFGHIKL" for other in "ACDEFGHIKL"]
    path.write_text("".join(f">p\n{text}\n" for text in [*proteins, "MKUO", "mkvl"]))
    card = tokenize_corpus(path, "protein", base, tmp_path / "tokens")
    assert card["letters"] == {"rule": "mask: read as X", "unusual": {"O": 1, "U": 1}, "sequences": 1, "lower_case": 1}
    with pytest.raises(UserError, match=r"a\.fasta, record 101: letter 'U' at position 3"):
        tokenize_corpus(path, "protein", base, tmp_path / "other", {"unusual_letters": "refuse"})
