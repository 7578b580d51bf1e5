"""protein-fitness (protein): does this double mutant of protein G domain B1 still fold and bind IgG?

GB1 has 56 residues; the deep mutational scan has nearly all double mutants. The label is the enrichment on IgG-Fc beads
relative to the wild type; the trace says where each mutation lies in the published structure and how the side chain
changes. It does not use the enrichment, and no weight is fitted.

    id          gb1-D22P-W43E
    sequence    QYKLILNGKTLKGETTTEAVPAATAEKVFKQYANDNGVDGEETYDDATKTFTVTE
    enrichment  -8.173
    prompt      Is this mutant of protein G functional or impaired?
                <protein>D</protein>22<protein>P</protein> surface and
                <protein>W</protein>43<protein>E</protein> core contact
    trace       22 surface negative to proline similar, 43 core contact aromatic to negative
                smaller, core 1 contact 1
    answer      impaired

Source: Olson, Wu and Sun, Current Biology 24:2643 (2014), as shipped in MAVE-NN 1.1.4 (residues
2-56). Secondary structure: Gronenborn et al., Science 253:657 (1991). Core: Dahiyat and Mayo, PNAS
94:10172 (1997). Contacts with Fc: Sauer-Eriksson et al., Structure 3:265 (1995). Volumes:
Zamyatnin, Prog. Biophys. Mol. Biol. 24:107 (1972).
"""

from typing import Any

import pandas as pd

from cisterna.tasks.base import segment

WILD_TYPE = "QYKLILNGKTLKGETTTEAVDAATAEKVFKQYANDNGVDGEWTYDDATKTFTVTE"
LENGTH = len(WILD_TYPE)
FIRST = 2  # number of the first residue of WILD_TYPE
FUNCTIONAL = -1.0  # log2 enrichment over wild type: at least half of it
IMPAIRED = -3.0  # log2 enrichment over wild type: at most an eighth

HELIX = range(23, 37)  # residues 23-36
CORE = frozenset({3, 5, 7, 20, 26, 30, 34, 39, 43, 52, 54})
CONTACTS = frozenset({27, 28, 31, 32, 35, 40, 42, 43})
RESIDUE_CLASSES = {
    **dict.fromkeys("AVLIMC", "greasy"),
    **dict.fromkeys("FWY", "aromatic"),
    **dict.fromkeys("STNQ", "polar"),
    **dict.fromkeys("KRH", "positive"),
    **dict.fromkeys("DE", "negative"),
    "G": "glycine",
    "P": "proline",
}
# Cubic angstrom.
VOLUMES = {
    "G": 60.1, "A": 88.6, "S": 89.0, "C": 108.5, "D": 111.1, "P": 112.7, "N": 114.1, "T": 116.1,
    "E": 138.4, "V": 140.0, "Q": 143.8, "H": 153.2, "M": 162.9, "I": 166.7, "L": 166.7, "K": 168.6,
    "R": 173.4, "F": 189.9, "Y": 193.6, "W": 227.8,
}  # fmt: skip
SAME_SIZE = 20.0  # cubic angstrom; a smaller difference counts as no change

MEANING = (
    f"functional: log2 enrichment over wild type >= {FUNCTIONAL:g} (half of the wild type or more); "
    f"impaired: <= {IMPAIRED:g} (an eighth or less); variants between are left out"
)
RULE = (
    "out of domain: both mutations in the alpha helix (residues 23-36), where no mutation lies in train, validation "
    "or id; variants with one mutation in the helix are left out"
)


def label(enrichment: float) -> str | None:
    """The class of one variant from its log2 enrichment over wild type; None if ambiguous."""
    if enrichment >= FUNCTIONAL:
        return "functional"
    if enrichment <= IMPAIRED:
        return "impaired"
    return None


def mutations(sequence: str) -> list[tuple[int, str, str]]:
    """Site (GB1 numbering), wild-type residue and new residue of each mutation, in order."""
    return [
        (site, old, new) for site, (old, new) in enumerate(zip(WILD_TYPE, sequence, strict=True), FIRST) if old != new
    ]


def place(site: int) -> str:
    """`core` or `surface`, and `contact` for residues that touch IgG-Fc."""
    return f"{'core' if site in CORE else 'surface'}{' contact' if site in CONTACTS else ''}"


def size(old: str, new: str) -> str:
    """How the side chain's volume changes: `larger`, `smaller` or `similar`."""
    change = VOLUMES[new] - VOLUMES[old]
    if abs(change) < SAME_SIZE:
        return "similar"
    return "larger" if change > 0 else "smaller"


def prompt(sequence: str) -> str:
    """The question about one variant, as its mutations and where each lies."""
    changes = " and ".join(
        f"<protein>{old}</protein>{site}<protein>{new}</protein> {place(site)}"
        for site, old, new in mutations(sequence)
    )
    return f"Is this mutant of protein G functional or impaired? {changes}\n"


def segments(sequence: str) -> list[dict[str, Any]]:
    """For each mutation, the residue in the wild type and the one in the variant."""
    return [segment(whole, site - FIRST) for site, _, _ in mutations(sequence) for whole in (WILD_TYPE, sequence)]


def reasoning(sequence: str) -> str:
    """What each mutation changes and where, then how many lie in the core and in contact with Fc."""
    hits = mutations(sequence)
    steps = [
        f"{site} {place(site)} {RESIDUE_CLASSES[old]} to {RESIDUE_CLASSES[new]} {size(old, new)}"
        for site, old, new in hits
    ]
    core = sum(site in CORE for site, _, _ in hits)
    contacts = sum(site in CONTACTS for site, _, _ in hits)
    return f"{', '.join(steps)}, core {core} contact {contacts}"


def examples(raw: pd.DataFrame) -> pd.DataFrame:
    """Raw rows (id, sequence, log2 enrichment over wild type) as examples; the group is where the mutations lie."""
    sequence = raw["sequence"].astype(str)
    sites = [[site in HELIX for site, _, _ in mutations(s)] for s in sequence]
    group = ["helix" if all(s) else "outside" if not any(s) else "mixed" for s in sites]
    return pd.DataFrame(
        {
            "answer": raw["enrichment"].map(label),
            "sequence": sequence,
            "group": group,
            "ood": [g == "helix" for g in group],
        }
    )
