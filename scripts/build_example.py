#!/usr/bin/env python3
"""Rebuild docs/own-data/donors.csv, the table of the example of data of your own, from resources/corpora/rna.fasta.gz.

    python scripts/build_example.py [OUTPUT]

Each human 5' splice donor of the RNA corpus that is a GU gives two rows of nine bases, three before the GU and four
behind it, which is what U1 snRNA pairs with: the site itself (`donor`), and the GU nearest to the middle of the same
200 bases, at least 20 bases from the site, whose nine bases are no donor's of the table (`decoy`). Nine bases that
occur twice are one row, of the gene that comes first. `trace` compares the bases with the consensus CAG|GURAGU.
"""

import csv
import gzip
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from Bio import SeqIO

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs" / "own-data" / "donors.csv"
COLUMNS = ("site", "bases", "class", "gene", "trace")
CONSENSUS = ("C", "A", "G", "G", "U", "AG", "A", "G", "U")
PLACES = (-3, -2, -1, 1, 2, 3, 4, 5, 6)
MIDDLE, APART = 100, 20


def rows(corpus: Path) -> Iterator[dict[str, str]]:
    """Rows of the table, donors and decoys in turn, as texts by column."""
    with gzip.open(corpus, "rt", encoding="ascii") as stream:
        records = [(record.id, str(record.seq)) for record in SeqIO.parse(stream, "fasta") if "|donor:" in record.id]
    real = {window(piece, MIDDLE) for _, piece in records}
    seen: set[str] = set()
    for name, piece in records:
        gene = name.split("|")[1]
        others = [found.start() for found in re.finditer("GU", piece) if abs(found.start() - MIDDLE) >= APART]
        decoys = [at for at in others if len(window(piece, at)) == len(PLACES) and window(piece, at) not in real]
        sites = {"donor": MIDDLE if piece[MIDDLE : MIDDLE + 2] == "GU" else None}
        sites["decoy"] = min(decoys, key=lambda at: (abs(at - MIDDLE), at), default=None)
        for label, at in sites.items():
            bases = "" if at is None else window(piece, at)
            if bases and bases not in seen:
                seen.add(bases)
                yield dict(zip(COLUMNS, (f"{name}:{label}", bases, label, gene, trace(bases)), strict=True))


def window(piece: str, at: int) -> str:
    """Three bases before the GU at ``at``, it, and four behind it; fewer at an end."""
    return piece[max(at - 3, 0) : at + 6]


def trace(bases: str) -> str:
    """The comparison with the consensus, position by position, and how many match."""
    hits = [base in wanted for base, wanted in zip(bases, CONSENSUS, strict=True)]
    words = [f"{place:+d} {'match' if hit else 'miss'}" for place, hit in zip(PLACES, hits, strict=True)]
    return f"{' '.join(words)} {sum(hits)} of {len(hits)}"


def main() -> int:
    """Command line; returns the exit code."""
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else TABLE
    with output.open("w", newline="", encoding="ascii") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows(ROOT / "resources" / "corpora" / "rna.fasta.gz"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
