"""kegg (dna): which disease does a variant contribute to, reasoned along a KEGG pathway?

The KEGG reasoning data of BioReason (`wanglab/kegg` on the Hugging Face hub), or files with the same columns: question,
answer, reasoning, reference_sequence, variant_sequence. A column `id` or `ID` is the id; others are not read, and the
data card lists them. With this entry in the config

    kegg:
      adapter: kegg
      file: [train.csv, id.csv, ood.csv]
      options: {flank: 8}

the row

    question            Network of the pathway: SOD1* -> apoptosis. What does this allele contribute to?
    answer              Amyotrophic lateral sclerosis (ALS); H00058
    reasoning           ['The variant replaces alanine 4 of SOD1.', 'SOD1 then aggregates.']
    reference_sequence  AGTTATGGCGACGAAGGCCGTGTGCGTGC
    variant_sequence    AGTTATGGCGACGAAGGTCGTGTGCGTGC

becomes

    prompt    Network of the pathway: SOD1* -> apoptosis. What does this allele contribute to?
              Reference: <dna>GACGAAGGCCGTGTGCG</dna>
              Variant: <dna>GACGAAGGTCGTGTGCG</dna>
              End with the line "Answer: X", where X is the name of the disease in lower case.
    trace     The variant replaces alanine 4 of SOD1.
              SOD1 then aggregates.
    answer    amyotrophic lateral sclerosis (als)

`reasoning` is a text, or a list of texts (in Parquet or JSON, or as Python or JSON writes it), which is joined by line
breaks. The answer is the text before `;`, in lower case; the answer space is all different answers of the data, in
order of name. What the splits of the data become, files in which order: `cisterna.tasks.adapters.published`.

By default 1,024 bases are kept on each side of the variant, so that the variant is always in the prompt, and the
question comes first, as in the other tasks with a question here. The paper's code does otherwise: it *removes* 1,024
bases from each end of a sequence that is longer than 2,056, keeps at most 2,048 tokens of the rest (bases, for Evo 2),
and puts the sequences before the question. For that write

    options: {flank: null, trim_ends: 1024, bases: 2048, sequences_first: true}

and give the encoder a `flank` of 2048 too, because it cuts its input around the variant.

Source: Fallahpour et al., BioReason, arXiv:2505.23579 (2025); truncation: `truncate_dna` of BioReason's code, which the
paper's code calls. The row above is not of the data.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from cisterna.tasks.adapters import variants
from cisterna.tasks.base import Task

COLUMNS = ("question", "answer", "reasoning", "reference_sequence", "variant_sequence")
MEANING = "disease that the variant contributes to: column 'answer', the text before `;` in lower case"
ANSWER = "the name of the disease in lower case"


def task(name: str, spec: Mapping[str, Any]) -> Task:
    """The task of KEGG reasoning data; `spec` is its entry in the config. `cisterna.tasks.read` opens the data."""
    read = functools.partial(variants.with_answers, clean=variants.before_semicolon)
    return variants.task(name, spec, read, MEANING, ANSWER, COLUMNS)
