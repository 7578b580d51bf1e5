"""promoter-expression (dna): is this mutated lac promoter strong or weak?

The 75 bases upstream of the transcription start of the E. coli lac promoter, about 12% of them mutated; cells were
sorted by fluorescence into gates. The label is the gate of the cell; the trace compares the binding sites of CRP and
RNA polymerase with their published consensus. It does not use the gate, and no weight is fitted.

    id        lac-10831
    sequence  AATTAATCTGAGTTAGCTGACTCACTAGGCACTCCAGGCTTGACACTTTTTGCTTCCGGCTCGTATGTTATATGG
    gate      9
    prompt    Is this lac promoter high or low?
              68<dna>C</dna>57<dna>G</dna>51<dna>C</dna>43<dna>T</dna>34<dna>G</dna>26<dna>T</dna>6<dna>A</dna>4<dna>A</dna>
    trace     left 68 loss keeps 4, right 57 loss keeps 3, box35 34 gain keeps 6, box10 keeps 4
    answer    high

Source: Kinney, Murugan, Callan and Cox, PNAS 107:9158 (2010), as shipped in MAVE-NN 1.1.4. CRP
consensus TGTGA-N6-TCACA: Berg and von Hippel, J. Mol. Biol. 200:709 (1988). Sigma-70 consensus
TTGACA and TATAAT: Hawley and McClure, Nucleic Acids Research 11:2237 (1983).
"""

from typing import Any

import pandas as pd

from cisterna.tasks.base import segment

WILD_TYPE = "AATTAATGTGAGTTAGCTCACTCATTAGGCACCCCAGGCTTTACACTTTATGCTTCCGGCTCGTATGTTGTGTGG"
LENGTH = len(WILD_TYPE)
START = LENGTH  # the last base lies 1 upstream of the transcription start, the first one 75
# Element: distance upstream of its first base, consensus.
ELEMENTS = {
    "left": (69, "TGTGA"),  # left half site of CRP
    "right": (58, "TCACA"),  # right half site of CRP
    "box35": (36, "TTGACA"),
    "box10": (12, "TATAAT"),
}
LOW = frozenset({1, 2})  # the two dimmest gates
HIGH = frozenset({8, 9})  # the two brightest gates
LIGHT = range(1, 9)  # mutations of a variant in domain
HEAVY = range(12, 15)  # mutations of a variant out of domain

MEANING = "high: sorted into the two brightest gates (8, 9); low: into the two dimmest (1, 2); others are left out"
RULE = f"out of domain: {HEAVY[0]} to {HEAVY[-1]} mutations; train, validation and id have {LIGHT[0]} to {LIGHT[-1]}"


def label(gate: int) -> str | None:
    """The class of one variant from the gate of its cell; None for the gates between."""
    if gate in HIGH:
        return "high"
    return "low" if gate in LOW else None


def mutations(sequence: str) -> list[tuple[int, str, str]]:
    """Distance upstream of the start, wild-type base and new base of each mutation, the farthest first."""
    return [
        (START - index, old, new)
        for index, (old, new) in enumerate(zip(WILD_TYPE, sequence, strict=True))
        if old != new
    ]


def prompt(sequence: str) -> str:
    """The question about one variant, as its mutations: distance upstream of the start, new base."""
    changes = "".join(f"{site}<dna>{new}</dna>" for site, _, new in mutations(sequence))
    return f"Is this lac promoter high or low? {changes}\n"


def segments(sequence: str) -> list[dict[str, Any]]:
    """Each mutated base in the variant."""
    return [segment(sequence, START - site) for site, _, _ in mutations(sequence)]


def reasoning(sequence: str) -> str:
    """For each binding site its mutations, whether each loses or gains a consensus base, and the matches left."""
    hits = mutations(sequence)
    steps = []
    for name, (first, consensus) in ELEMENTS.items():
        words = [name]
        for site, old, new in hits:
            if first - len(consensus) < site <= first:
                wanted = consensus[first - site]
                words.append(f"{site} {'loss' if old == wanted else 'gain' if new == wanted else 'other'}")
        site_bases = sequence[START - first : START - first + len(consensus)]
        matches = sum(a == b for a, b in zip(site_bases, consensus, strict=True))
        steps.append(f"{' '.join(words)} keeps {matches}")
    return ", ".join(steps)


def examples(raw: pd.DataFrame) -> pd.DataFrame:
    """Raw rows (id, sequence, gate 1-9) as examples; the group is the number of mutations."""
    sequence = raw["sequence"].astype(str)
    load = sequence.map(lambda s: len(mutations(s)))
    return pd.DataFrame(
        {
            "answer": raw["gate"].map(label),
            "sequence": sequence,
            "group": load.astype(str),
            "ood": load.isin(list(HEAVY)),
        }
    )
