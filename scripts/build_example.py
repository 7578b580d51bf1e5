#!/usr/bin/env python3
"""Rebuild docs/own-data/donors.csv, the table of the own-data example, from resources/corpora/rna.fasta.gz.

    python scripts/build_example.py [OUTPUT]

Each human 5' splice donor of the RNA corpus gives two rows. Both have nine bases: three before a GU, the GU, and four
after it; this is what U1 snRNA pairs with. One row is the donor itself (`donor`); it is left out if the donor is not a
GU. The other (`decoy`) is the GU in the same 200 bases that is nearest to their middle, among those at least 20 bases
from the donor whose nine bases are not those of any donor. If nine bases occur twice, only the first row is kept.
`trace` compares the bases with the consensus CAG|GURAGU.
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
MIDDLE = 100  # index of the donor in the 200 bases of a record
APART = 20  # bases between a donor and its decoy, at least


def rows(corpus: Path) -> Iterator[dict[str, str]]:
    """Rows of the table, donors and decoys alternately, as column -> text."""
    with gzip.open(corpus, "rt", encoding="ascii") as stream:
        records = [(record.id, str(record.seq)) for record in SeqIO.parse(stream, "fasta") if "|donor:" in record.id]
    real = {window(piece, MIDDLE) for _, piece in records}
    seen: set[str] = set()
    for name, piece in records:
        gene = name.split("|")[1]
        others = [match.start() for match in re.finditer("GU", piece) if abs(match.start() - MIDDLE) >= APART]
        decoys = [at for at in others if len(window(piece, at)) == len(PLACES) and window(piece, at) not in real]
        sites = {"donor": MIDDLE if piece[MIDDLE : MIDDLE + 2] == "GU" else None}
        sites["decoy"] = min(decoys, key=lambda at: (abs(at - MIDDLE), at), default=None)
        for label, at in sites.items():
            bases = "" if at is None else window(piece, at)
            if bases and bases not in seen:
                seen.add(bases)
                yield dict(zip(COLUMNS, (f"{name}:{label}", bases, label, gene, trace(bases)), strict=True))


def window(piece: str, at: int) -> str:
    """Three bases before the GU at index `at`, the GU, and four bases after it; fewer at an end of `piece`."""
    return piece[max(at - 3, 0) : at + 6]


def trace(bases: str) -> str:
    """Match or miss at each position of the consensus, and the number of matches."""
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
