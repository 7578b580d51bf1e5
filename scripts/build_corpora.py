#!/usr/bin/env python3
"""Rebuild resources/corpora/ byte for byte from three version-pinned Debian packages.

    python scripts/build_corpora.py --packages DIR          # rebuild the files in the clone
    python scripts/build_corpora.py --packages DIR --check  # write nothing, compare with the clone

A package that is not in DIR is downloaded with `apt-get download`; every package is checked against its SHA-256 before
it is read. Needs Debian or Ubuntu (`dpkg-deb`), Biopython (EMBL, Swiss-Prot, FASTA) and pronto (OBO); both are in the
project's `dev` extra. resources/DATASHEET.md describes the files, their licences and their limits.

The rules:

1. Sequences are real: cut, spliced or reverse-complemented, never altered or generated. A piece with any letter other
   than ACGT (ACGU, the 20 amino acids) is left out, not repaired.
2. DNA and RNA come from different EMBL entries.
3. Near-repeats are left out: a piece is dropped if more than half of its k-mers (31 bases, 10 residues) were seen in
   pieces kept before it. Otherwise held-out perplexity would measure memorization.
4. Nothing comes from the assays of the tasks: a piece that shares 15 bases (on either strand) with the lac promoter, or
   8 residues with protein GB1, is left out, and so is every E. coli lac operon entry as a whole.

Not for the tables of the tasks: see build_tasks.py.
"""

import argparse
import gzip
import hashlib
import io
import itertools
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from Bio.SeqRecord import SeqRecord

FOLDER = Path(__file__).resolve().parents[1] / "resources" / "corpora"

# Name, version, file, SHA-256 as in Debian 12's Packages index.
PACKAGES = (
    (
        "emboss-test",
        "6.6.0+dfsg-12",
        "emboss-test_6.6.0+dfsg-12_all.deb",
        "ea22a043860d11b072303fcc535c132115cb9c3d32b30d4de70bb522b1096f94",
    ),
    (
        "emboss-data",
        "6.6.0+dfsg-12",
        "emboss-data_6.6.0+dfsg-12_all.deb",
        "0197c365690535b2b419dad1663c0ae07082dfca99807622463647d91565b46a",
    ),
    (
        "prokka",
        "1.14.6+dfsg-4",
        "prokka_1.14.6+dfsg-4_amd64.deb",
        "3abacf9b2a82e6745ac85a3106917b9676846ee2df1a2c304eccc27ba64933d9",
    ),
)

# EMBL divisions of emboss-test with natural sequences: no vectors (syn), no scaffold without bases (condiv).
EMBL = [
    f"usr/share/EMBOSS/test/embl/{name}.dat"
    for name in ("est", "fun", "hum1", "inv", "pln", "pro", "rod", "sts", "vrl", "vrt", "wgs")
]
SWISSPROT = [
    f"usr/share/EMBOSS/test/{name}"
    for name in ("swiss/seq.dat", "swnew/trembl.dat", "data/amir.swiss", "data/uniprotft.sw")
]
# RefSeq proteomes. The third proteome of the package, Escherichia, is not used: it comes from EcoCyc, which has its own
# terms of use.
PROTEOMES = [f"usr/share/prokka/db/genus/{name}" for name in ("Enterococcus", "Staphylococcus")]
ONTOLOGIES = [f"usr/share/EMBOSS/data/OBO/{name}.obo" for name in ("so", "go")]

# Annotated human loci, 6p21.3 and 16p13.3. Their transcripts are part of the RNA corpus.
RNA_ENTRIES = {"BA000025.2", "Z69719.1"}
SAME_LOCUS = {"AF129756.1"}  # part of BA000025.2: in the DNA corpus it would repeat genes of the RNA corpus
LAC_OPERON = {"J01636.1", "X51872.1", "V00294.1", "V00295.1", "V00296.1"}

# Wild types of the tasks' assays: lac promoter positions -75 to -1 (Kinney et al. 2010, PNAS 107:9158) and protein GB1
# (Olson et al. 2014, Curr Biol 24:2643).
LAC_PROMOTER = "AATTAATGTGAGTTAGCTCACTCATTAGGCACCCCAGGCTTTACACTTTATGCTTCCGGCTCGTATGTTGTGTGG"
GB1 = "MQYKLILNGKTLKGETTTEAVDAATAEKVFKQYANDNGVDGEWTYDDATKTFTVTE"

LETTERS = {"dna": set("ACGT"), "rna": set("ACGU"), "protein": set("ACDEFGHIKLMNPQRSTVWY")}
PIECE = 400  # bases in a DNA or mature RNA document
SHORTEST = 60  # bases; shorter pieces are left out
FLANK = 100  # bases of exon, and of intron, around a 5' splice site
PROTEIN_LENGTHS = range(50, 401)  # residues: whole proteins only, none cut
PROTEIN_RESIDUES = 320_000
GO_BYTES = 240_000
GO_PER_OPENING = 40  # definitions that may begin with the same three words ("Catalysis of the", ...)
TEXT_LENGTHS = range(40, 1001)  # characters

Document = tuple[str, str]  # name, sequence


def fetch(folder: Path) -> dict[str, Path]:
    """Package name -> its checked .deb in `folder`, downloaded if it is not there."""
    if shutil.which("dpkg-deb") is None:
        sys.exit("error: dpkg-deb is not installed; run this on Debian or Ubuntu")
    folder.mkdir(parents=True, exist_ok=True)
    debs = {}
    for name, version, file, digest in PACKAGES:
        path = folder / file
        if not path.exists():
            subprocess.run(["apt-get", "download", f"{name}={version}"], cwd=folder, check=False)
        if not path.exists():
            sys.exit(
                f"error: {path} is missing and apt-get has no {name}={version}; "
                f"put the file there (https://snapshot.debian.org keeps every version)"
            )
        actual = hashlib.sha256(path.read_bytes()).hexdigest()
        if actual != digest:
            sys.exit(f"error: {path}: SHA-256 is {actual}, expected {digest}")
        debs[name] = path
    return debs


def unpack(package: Path, members: Iterable[str], folder: Path) -> list[Path]:
    """Extract `members` of a .deb into `folder`; returns their paths in the same order."""
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    wanted = set(members)
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as archive,
    ):
        for item in archive:
            if item.name.removeprefix("./") in wanted:
                archive.extract(item, folder, filter="data")
    return [folder / member for member in members]


def kmers(sequence: str, size: int) -> set[str]:
    """The distinct substrings of `size` letters."""
    return {sequence[i : i + size] for i in range(len(sequence) - size + 1)}


def reverse_complement(sequence: str) -> str:
    """The other strand of a DNA sequence, 5' to 3'."""
    return sequence.translate(str.maketrans("ACGT", "TGCA"))[::-1]


def assay_kmers(modality: str) -> set[str]:
    """The k-mers of the tasks' wild types that no document of `modality` may contain."""
    if modality == "protein":
        return kmers(GB1, 8)
    promoter = kmers(LAC_PROMOTER, 15) | kmers(reverse_complement(LAC_PROMOTER), 15)
    return promoter if modality == "dna" else {word.replace("T", "U") for word in promoter}


def clean(documents: Iterable[Document], modality: str) -> Iterator[Document]:
    """Documents in the modality's letters, without near-repeats and without the tasks' assays.

    The order is kept; the first of several near-repeats stays.
    """
    size = 10 if modality == "protein" else 31
    forbidden = assay_kmers(modality)
    word = len(next(iter(forbidden)))
    seen: set[str] = set()
    for name, sequence in documents:
        if set(sequence) - LETTERS[modality] or kmers(sequence, word) & forbidden:
            continue
        own = kmers(sequence, size)
        if len(own & seen) * 2 > len(own):
            continue
        seen |= own
        yield name, sequence


def pieces(name: str, sequence: str) -> Iterator[Document]:
    """`sequence` in pieces of PIECE letters; a last piece of less than SHORTEST letters is left out."""
    for start in range(0, len(sequence), PIECE):
        piece = sequence[start : start + PIECE]
        if len(piece) >= SHORTEST:
            yield f"{name}:{start + 1}-{start + len(piece)}", piece


def dna(records: Iterable["SeqRecord"]) -> Iterator[Document]:
    """Genomic entries in pieces of 400 bases."""
    for record in records:
        if record.annotations["molecule_type"] != "genomic DNA" or record.id in RNA_ENTRIES | SAME_LOCUS | LAC_OPERON:
            continue
        for name, piece in pieces(record.id, str(record.seq).upper()):
            yield f"{name} {record.annotations['organism']}", piece


def rna(records: Iterable["SeqRecord"]) -> Iterator[Document]:
    """Mature transcripts, then 5' splice sites of their precursors.

    Mature: mRNA entries, and spliced mRNA and CDS features of RNA_ENTRIES. Precursor: FLANK bases of exon and FLANK
    bases of intron around each 5' splice site of those features.
    """
    records = list(records)
    features = [
        (
            record,
            feature,
            feature.qualifiers.get("gene", feature.qualifiers.get("product", ["?"]))[0].split()[0],
        )
        for record in records
        if record.id in RNA_ENTRIES
        for feature_type in ("mRNA", "CDS")
        for feature in record.features
        if feature.type == feature_type
        and "pseudo" not in feature.qualifiers
        and not any(part.ref for part in feature.location.parts)  # exons that lie in another entry
    ]
    for record in records:
        if record.annotations["molecule_type"] == "mRNA":
            for name, piece in pieces(record.id, transcribed(record.seq)):
                yield f"{name} {record.annotations['organism']}, mature", piece
    for number, (record, feature, gene) in enumerate(features, 1):  # isoforms share a gene's name
        transcript = f"{record.id}|{gene}|{feature.type}{number}"
        for name, piece in pieces(transcript, transcribed(feature.extract(record.seq))):
            yield f"{name} {record.annotations['organism']}, mature", piece
    for record, feature, gene in features:
        for exon in feature.location.parts[:-1]:  # parts are in the order of transcription
            forward = exon.strand == 1
            site = int(exon.end if forward else exon.start)
            window = record.seq[site - FLANK : site + FLANK]
            sequence = transcribed(window if forward else window.reverse_complement())
            yield (
                f"{record.id}|{gene}|donor:{site} {record.annotations['organism']}, precursor",
                sequence,
            )


def transcribed(sequence: object) -> str:
    """Upper-case RNA letters of a Biopython Seq."""
    return str(sequence).upper().replace("T", "U")


def by_hash(names: Iterable[str]) -> list[str]:
    """Names in the order of their SHA-256: a fixed shuffle."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def proteins(swissprot: Iterable[Path], proteomes: Iterable[Path]) -> Iterator[Document]:
    """UniProt entries in the order of the files, then RefSeq proteins in the order of a hash of their names."""
    from Bio import SeqIO, SwissProt

    for path in swissprot:
        with path.open() as stream:
            for record in SwissProt.parse(stream):
                yield f"{record.accessions[0]} {record.organism.rstrip('.')}", record.sequence
    refseq = {}
    for path in proteomes:
        for record in SeqIO.parse(path, "fasta"):
            refseq[f"{record.id} {path.name}"] = str(record.seq).upper()
    for name in by_hash(refseq):
        yield name, refseq[name]


def whole_proteins(documents: Iterable[Document]) -> Iterator[Document]:
    """Proteins with a length in PROTEIN_LENGTHS, until there are PROTEIN_RESIDUES residues."""
    total = 0
    for name, sequence in clean((pair for pair in documents if len(pair[1]) in PROTEIN_LENGTHS), "protein"):
        if total >= PROTEIN_RESIDUES:
            return
        total += len(sequence)
        yield name, sequence


def definitions(path: Path) -> dict[str, str]:
    """Term id -> "name: definition" of the terms of an OBO file that are not obsolete."""
    import pronto

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old releases have clauses that pronto warns about and skips
        terms = list(pronto.Ontology(str(path)).terms())
    texts_by_id = {}
    for term in terms:
        text = str(term.definition or "").strip()
        if text and not term.obsolete and not text.upper().startswith("OBSOLETE"):
            texts_by_id[term.id] = f"{(term.name or '').replace('_', ' ')}: {text}"
    return texts_by_id


def texts(ontologies: Iterable[Path]) -> Iterator[str]:
    """All SO definitions, then GO definitions in the order of a hash of their ids, up to GO_BYTES bytes."""
    sequence_ontology, gene_ontology = (definitions(path) for path in ontologies)
    yield from (sequence_ontology[term] for term in sorted(sequence_ontology))
    openings: Counter[str] = Counter()
    size = 0
    for term in by_hash(gene_ontology):
        text = plain(gene_ontology[term])
        opening = " ".join(text.split(": ", 1)[1].split()[:3])
        if size < GO_BYTES and openings[opening] < GO_PER_OPENING and len(text) in TEXT_LENGTHS:
            openings[opening] += 1
            size += len(text) + 1
            yield text


def plain(text: str) -> str:
    """The text on one line, with single spaces."""
    return " ".join(text.split())


def lines(documents: Iterable[str]) -> Iterator[str]:
    """One-line ASCII documents with a length in TEXT_LENGTHS, in order; repeated definitions are left out."""
    seen = set()
    for text in map(plain, documents):
        definition = text.split(": ", 1)[1]
        if len(text) in TEXT_LENGTHS and text.isascii() and definition not in seen:
            seen.add(definition)
            yield text


def fasta(documents: Iterable[Document]) -> bytes:
    """Gzipped FASTA, one line per sequence, without time stamp and file name in the gzip header."""
    stream = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=stream, compresslevel=9, mtime=0) as packed:
        for name, sequence in documents:
            packed.write(f">{name}\n{sequence}\n".encode())
    return stream.getvalue()


def build(packages: Path) -> dict[str, bytes]:
    """File name -> contents, for every file of resources/corpora/."""
    from Bio import BiopythonParserWarning, SeqIO

    debs = fetch(packages)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        entries = unpack(debs["emboss-test"], EMBL + SWISSPROT, root)
        embl, swissprot = entries[: len(EMBL)], entries[len(EMBL) :]
        proteomes = unpack(debs["prokka"], PROTEOMES, root)
        ontologies = unpack(debs["emboss-data"], ONTOLOGIES, root)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BiopythonParserWarning)
            records = list(itertools.chain.from_iterable(SeqIO.parse(path, "embl") for path in embl))
        sequences = {
            "dna": list(clean(dna(records), "dna")),
            "rna": list(clean(rna(records), "rna")),
            "protein": list(whole_proteins(proteins(swissprot, proteomes))),
        }
        text = list(lines(texts(ontologies)))
    contents = {f"{modality}.fasta.gz": fasta(documents) for modality, documents in sequences.items()}
    contents["text.txt"] = "".join(f"{line}\n" for line in text).encode()
    counts = {
        f"{modality}.fasta.gz": {
            "documents": len(documents),
            "residues": sum(len(sequence) for _, sequence in documents),
        }
        for modality, documents in sequences.items()
    }
    counts["text.txt"] = {
        "documents": len(text),
        "words": sum(len(line.split()) for line in text),
    }
    card = {
        "packages": {file: digest for _, _, file, digest in PACKAGES},
        "files": {
            name: counts[name] | {"unpacked_sha256": hashlib.sha256(unpacked(data)).hexdigest()}
            for name, data in contents.items()
        },
    }
    contents["card.json"] = (json.dumps(card, indent=1, sort_keys=True) + "\n").encode()
    return contents


def unpacked(data: bytes) -> bytes:
    """The unpacked bytes of gzipped `data`; other `data` as it is."""
    return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data


def compare(path: Path, data: bytes) -> str:
    """Whether the file at `path` is `data`. Another version of zlib may pack the same contents to other bytes."""
    if not path.is_file():
        return "MISSING"
    shipped = path.read_bytes()
    if shipped == data:
        return "same"
    same = unpacked(shipped) == unpacked(data)
    return "same contents, packed by another zlib" if same else "DIFFERENT"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--packages", type=Path, required=True, help="folder for the .deb files; missing ones are downloaded"
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 if a file in the clone differs"
    )
    arguments = parser.parse_args()
    states = []
    for name, data in build(arguments.packages).items():
        path = FOLDER / name
        if arguments.check:
            states.append(compare(path, data))
            print(f"{states[-1]}  {path}")
        else:
            FOLDER.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            print(f"{len(data):>8} bytes  {path}")
    return 1 if {"MISSING", "DIFFERENT"} & set(states) else 0


if __name__ == "__main__":
    sys.exit(main())
