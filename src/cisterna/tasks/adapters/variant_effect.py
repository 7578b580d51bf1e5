"""variant-effect-coding, variant-effect-non-snv (dna): what does a variant do?

The variant effect data of BioReason (`wanglab/variant_effect_coding` and `wanglab/variant_effect_non_snv` on the
Hugging Face hub), or files with the same columns: question, answer, reference_sequence, and variant_sequence or
mutated_sequence. `ID` or `id` is the id; `reasoning`, which may be empty, and `cleaned_pathogenicity` are read where
they exist. Other columns are not read, and the data card lists them. With this entry in the config

    indels:
      adapter: variant-effect-non-snv
      file: [train.csv, test.csv]
      id: 400
      options: {flank: 8}

the row

    question               This deletion lies in FBN1 on chromosome 15. What is its effect?
    answer                 pathogenic; ['Marfan_syndrome']
    cleaned_pathogenicity  pathogenic
    reference_sequence     AGTTATGGCGACGAAGGCCGTGTGCGTGC
    mutated_sequence       AGTTATGGCGACGAAGGCGTGTGCGTGC

becomes

    prompt    This deletion lies in FBN1 on chromosome 15. What is its effect?
              Reference: <dna>ACGAAGGCCGTGTGCGT</dna>
              Variant: <dna>ACGAAGGCGTGTGCGTG</dna>
              End with the line "Answer: X", where X is the effect of the variant in lower case, such as pathogenic or
              benign.
    trace
    answer    pathogenic

Coding and non-SNV: the answer is the text before `;`, in lower case, without brackets and underscores. Non-SNV answers
of BioReason keep the list of diseases, which makes hundreds of labels of two. With `target: disease` the question is
about the disease instead (the last line says so), and the answer above is `marfan syndrome`. Only rows that name one
disease have one right answer: rows that are benign, that name none (`not_provided`, `not_specified` and texts such as
`nan` are none), or that name several are left out, and the data card counts them (`dropped`).

Where `cleaned_pathogenicity` differs from the text before `;`, it is not clear what the label is: such rows are left
out and counted too. The answer space is all different answers of the data, in order of name. These data have no
reasoning of their own: where the column is absent the model learns to answer at once. What the splits of the data
become, files in which order: `cisterna.tasks.adapters.published`. Two files are train and ood, id is then drawn from
train, and so it is where the data on the hub are train and test. How sequences are cut and where they stand: `kegg`.

Source: Fallahpour et al., BioReason, arXiv:2505.23579 (2025). The row above is not of the data.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import pandas as pd

from cisterna.errors import UserError
from cisterna.tasks import catalog, tables
from cisterna.tasks.adapters import published, variants
from cisterna.tasks.base import Task

COLUMNS = ("question", "answer", "reference_sequence", "variant_sequence")
CHECK = "cleaned_pathogenicity"
OPTIONAL = ("reasoning", CHECK)
PATHOGENICITY, DISEASE = "pathogenicity", "disease"  # values of the option `target`
MEANINGS = {
    PATHOGENICITY: (
        "effect of the variant: column 'answer', the text before `;` in lower case, without brackets and underscores"
    ),
    DISEASE: "disease that the variant causes: column 'answer', the one that is named after `;`, in lower case",
}
ANSWERS = {
    PATHOGENICITY: "the effect of the variant in lower case, such as pathogenic or benign",
    DISEASE: "the name of the disease in lower case",
}
BENIGN = {"benign", "likely benign", "benign/likely benign"}
NO_DISEASE = {"not provided", "not specified", ".", *tables.MISSING}  # what stands where no disease is named


def task(name: str, spec: Mapping[str, Any]) -> Task:
    """The task of variant effect data; `spec` is its entry in the config. `cisterna.tasks.read` opens the data."""
    target = catalog.options(spec).get("target", PATHOGENICITY)
    read = functools.partial(answers, name=name, target=target)
    return variants.task(name, spec, read, MEANINGS[target], ANSWERS[target], COLUMNS, OPTIONAL)


def answers(raw: pd.DataFrame, *, name: str, target: str) -> pd.DataFrame:
    """The raw rows that have one right answer, which is in the column answer. `dropped` of `attrs` lists the others.

    Raises UserError if no row is left, and, naming the row, for a list of diseases without an effect before `;` (for
    PATHOGENICITY) and for an answer that is empty when cleaned.
    """
    reasons = raw["answer"].map(lambda text: _no_disease(text) if target == DISEASE else "")
    if CHECK in raw.columns:
        reasons = reasons.where(~_conflicts(raw), f"{CHECK} is not the effect before `;`")
    left_out = {reason: list(raw["id"][reasons == reason]) for reason in dict.fromkeys(reasons) if reason}
    kept = raw[reasons == ""]
    if kept.empty:
        counts = ", ".join(f"{reason} ({len(ids)})" for reason, ids in left_out.items())
        raise UserError(f"tasks.{name}: no row has an answer. Rows that were left out: {counts}. Check the data.")
    if target == PATHOGENICITY:
        for where, text in zip(kept[published.WHERE], kept["answer"], strict=True):
            if tables.listed(text) is not None:
                raise UserError(
                    f"{where}: column 'answer': {text[:60]!r} is a list of diseases, without an effect before `;`. "
                    "Correct the row, or set options.target to disease."
                )
    clean = variants.clean_label if target == PATHOGENICITY else lambda text: diseases(text)[0]
    found = variants.with_answers(kept, clean)
    dropped = [entry for reason, ids in left_out.items() for entry in tables.dropped(reason, ids)]
    found.attrs = {**raw.attrs, "dropped": dropped}
    return found


def diseases(answer: str) -> list[str]:
    """The different diseases of an answer, cleaned: a list after `;`, or a list alone.

    A text there is one disease, or several with | between them, as in ClinVar.
    """
    text = answer.partition(";")[2].strip()
    named = next((found for found in map(tables.listed, (answer, text)) if found is not None), text.split("|"))
    cleaned = map(variants.clean_text, named)
    return [name for name in dict.fromkeys(cleaned) if name and name not in NO_DISEASE]


def _no_disease(answer: str) -> str:
    """Why an answer does not name one disease; empty if it does."""
    if ";" in answer and variants.clean_label(answer) in BENIGN:
        return "benign, so no disease"
    count = len(diseases(answer))
    return "" if count == 1 else "no disease is named" if count == 0 else "several diseases are named"


def _conflicts(raw: pd.DataFrame) -> pd.Series:
    """Which rows say one effect in the column CHECK and another one before `;` of their answer."""
    checked = raw[CHECK].map(variants.clean_text)
    says_effect = raw["answer"].map(tables.listed).isna()
    return says_effect & (checked != "") & (checked != raw["answer"].map(variants.clean_label))
