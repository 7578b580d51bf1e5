"""variant-effect-coding, variant-effect-non-snv (dna): what does a variant do?

The variant effect data of BioReason (`wanglab/variant_effect_coding` and
`wanglab/variant_effect_non_snv` on the Hugging Face hub), or files with the same columns: question,
answer, reference_sequence, variant_sequence, and no others but `reasoning`, which may be absent or
empty (one file alone has also `split`). With this entry in the config

    clinvar:
      adapter: variant-effect-coding
      file: [train.csv, test.csv]
      id: 400
      options: {flank: 8}

the row

    question            This variant lies in SOD1 on chromosome 21. What is its effect?
    answer              Pathogenic; amyotrophic_lateral_sclerosis
    reference_sequence  AGTTATGGCGACGAAGGCCGTGTGCGTGC
    variant_sequence    AGTTATGGCGACGAAGGTCGTGTGCGTGC

becomes

    prompt    This variant lies in SOD1 on chromosome 21. What is its effect?
              Reference: <dna>GACGAAGGCCGTGTGCG</dna>
              Variant: <dna>GACGAAGGTCGTGTGCG</dna>
    trace
    answer    pathogenic

Answers are cleaned as BioReason does. Coding: the text before `;`, in lower case. Non-SNV: what is
written as a list of diseases, `['Marfan_syndrome', 'Ectopia_lentis']`, loses its brackets, quotes
and underscores and becomes `marfan syndrome, ectopia lentis`; a `;` stays as it is. The answer space
is all different answers of the data, in order of name. What the splits of the data become, files in
which order: `cisterna.tasks.adapters.published`. Two files are train and ood, id is then drawn from train, and
so it is where the data on the hub are train and test. These data have no reasoning of their own:
where the column is absent the model learns to answer at once.

Source: Fallahpour et al., BioReason, arXiv:2505.23579 (2025). The row above is not of the data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cisterna.tasks.adapters import variants
from cisterna.tasks.base import Task

COLUMNS = ("question", "answer", "reference_sequence", "variant_sequence")
MEANINGS = {
    "variant-effect-coding": "effect of the variant: column 'answer', the text before `;` in lower case",
    "variant-effect-non-snv": (
        "effect of the variant: column 'answer' without brackets, quotes and underscores, in lower case"
    ),
}


def task(name: str, spec: Mapping[str, Any]) -> Task:
    """The task of variant effect data; `spec` is its entry in the config. `cisterna.tasks.read` opens the data."""
    adapter = spec["adapter"]
    clean = variants.before_semicolon if adapter == "variant-effect-coding" else clean_diseases
    return variants.task(name, spec, clean, MEANINGS[adapter], COLUMNS, ("reasoning",))


def clean_diseases(answer: str) -> str:
    """A list of diseases without its brackets, its quotes and underscores, in lower case.

    An apostrophe between two letters (`Wilson's`) is no quote.
    """
    text = re.sub(r"[\[\]\"]|(?<![A-Za-z])'|'(?![A-Za-z])", "", answer).replace("_", " ")
    return " ".join(text.split()).lower()
