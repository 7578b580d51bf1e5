"""kegg (dna): which disease does a variant contribute to, reasoned along a KEGG pathway?

The KEGG reasoning data of BioReason (`wanglab/kegg` on the Hugging Face hub), or files with the
same columns: question, answer, reasoning, reference_sequence, variant_sequence, and no others (one
file alone has also `split`). With this entry in the config

    kegg:
      adapter: kegg
      file: [train.csv, id.csv, ood.csv]
      options: {flank: 8}

the row

    question            Network of the pathway: SOD1* -> apoptosis. What does this allele contribute to?
    answer              Amyotrophic lateral sclerosis (ALS); H00058
    reasoning           The variant replaces alanine 4 of SOD1, which then aggregates.
    reference_sequence  AGTTATGGCGACGAAGGCCGTGTGCGTGC
    variant_sequence    AGTTATGGCGACGAAGGTCGTGTGCGTGC

becomes

    prompt    Network of the pathway: SOD1* -> apoptosis. What does this allele contribute to?
              Reference: <dna>GACGAAGGCCGTGTGCG</dna>
              Variant: <dna>GACGAAGGTCGTGTGCG</dna>
    trace     The variant replaces alanine 4 of SOD1, which then aggregates.
    answer    amyotrophic lateral sclerosis (als)

Answers are cleaned as BioReason does: the text before `;`, in lower case. The answer space is all
different answers of the data, in order of name. `flank` is 1024 by default, as in the paper. What
the splits of the data become, files in which order: `cisterna.tasks.adapters.published`.

Source: Fallahpour et al., BioReason, arXiv:2505.23579 (2025). The row above is not of the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cisterna.tasks.adapters import variants
from cisterna.tasks.base import Task

COLUMNS = ("question", "answer", "reasoning", "reference_sequence", "variant_sequence")
MEANING = "disease that the variant contributes to: column 'answer', the text before `;` in lower case"


def task(name: str, spec: Mapping[str, Any]) -> Task:
    """The task of KEGG reasoning data; `spec` is its entry in the config. `cisterna.tasks.read` opens the data."""
    return variants.task(name, spec, variants.before_semicolon, MEANING, COLUMNS)
