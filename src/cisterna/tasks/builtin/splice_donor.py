"""splice-donor (rna): does the spliceosome use this 5' splice site?

Nine bases of pre-mRNA, three of the exon and six of the intron, measured in a massively parallel splicing assay
(minigene of BRCA2 exon 17, HeLa cells). The label is the assay's percent spliced in (PSI); the trace compares the site
with the consensus CAG|GURAGU, position by position, which is the complement of U1 snRNA. It does not use PSI, and no
weight is fitted.

    id        mpsa-AAGGUAAAU
    sequence  AAGGUAAAU
    psi_1     93.1
    psi_2     106.03
    prompt    Is this 5' splice site spliced or skipped? exon <rna>AAG</rna> intron
              <rna>GUAAAU</rna>
    trace     -3 miss -2 match -1 match +1 match +2 match +3 match +4 match +5 miss +6 match exon 2
              of 3 intron 5 of 6
    answer    spliced

Source: Wong, Kinney and Krainer, Molecular Cell 71:1012 (2018), as shipped in MAVE-NN 1.1.4.
Consensus of human 5' splice sites: Roca, Krainer and Eperon, Genes & Development 27:129 (2013).
"""

from typing import Any

import pandas as pd

from cisterna.tasks.base import segment

CONSENSUS = ("C", "A", "G", "G", "U", "AG", "A", "G", "U")  # R is A or G
LENGTH = len(CONSENSUS)
POSITIONS = ("-3", "-2", "-1", "+1", "+2", "+3", "+4", "+5", "+6")
SPLICED = 10.0  # percent; both replicates at or above
SKIPPED = 5.0  # percent; both replicates below. PSI is bimodal, its trough is from 5 to 40

MEANING = (
    f"spliced: PSI of both replicates >= {SPLICED:g}%; skipped: PSI of both < {SKIPPED:g}%; "
    "sites between, or on which the replicates disagree, are left out"
)
RULE = "out of domain: donors that begin with GC; train, validation and id have GU donors only"


def label(psi_1: float, psi_2: float) -> str | None:
    """The class of one site from the PSI of its two replicates, in percent; None if ambiguous."""
    if min(psi_1, psi_2) >= SPLICED:
        return "spliced"
    if max(psi_1, psi_2) < SKIPPED:
        return "skipped"
    return None


def prompt(sequence: str) -> str:
    """The question about one site of nine bases."""
    return (
        f"Is this 5' splice site spliced or skipped? exon <rna>{sequence[:3]}</rna> intron <rna>{sequence[3:]}</rna>\n"
    )


def segments(sequence: str) -> list[dict[str, Any]]:
    """The three bases of the exon and the six of the intron, each in the whole site."""
    return [segment(sequence), segment(sequence, 3)]


def reasoning(sequence: str) -> str:
    """The comparison with the consensus, then the number of matches in the exon and in the intron."""
    hits = [base in allowed for base, allowed in zip(sequence, CONSENSUS, strict=True)]
    steps = " ".join(f"{position} {'match' if hit else 'miss'}" for position, hit in zip(POSITIONS, hits, strict=True))
    return f"{steps} exon {sum(hits[:3])} of 3 intron {sum(hits[3:])} of 6"


def examples(raw: pd.DataFrame) -> pd.DataFrame:
    """Raw rows (id, sequence, psi_1, psi_2 in percent) as examples; the group is the first two bases of the donor."""
    sequence = raw["sequence"].astype(str)
    group = sequence.str[3:5]
    return pd.DataFrame(
        {
            "answer": [label(a, b) for a, b in zip(raw["psi_1"], raw["psi_2"], strict=True)],
            "sequence": sequence,
            "group": group,
            "ood": group == "GC",
        }
    )
