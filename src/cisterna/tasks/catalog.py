"""The built-in tasks and the adapters as plain data: what each reads, what it may answer, where its raw table lies.

Imports nothing heavy, so that `cisterna.study` can check a config without pandas. Prompts, traces
and labels are made in the module of each task, not here.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

MODALITIES: dict[str, str] = {
    "splice-donor": "rna",
    "protein-fitness": "protein",
    "promoter-expression": "dna",
    "cell-type": "rna",
}

# The answer space of each task. `Answer: X` with any other X is a wrong answer.
LABELS: dict[str, tuple[str, ...]] = {
    "splice-donor": ("spliced", "skipped"),
    "protein-fitness": ("functional", "impaired"),
    "promoter-expression": ("high", "low"),
    "cell-type": ("b-cell", "t-cell", "cytotoxic", "monocyte", "dendritic"),
}

# Tasks that give no residues, so that an encoder of sequences has nothing to read: cell-type lists genes.
WITHOUT_RESIDUES = {"cell-type"}

# Raw tables, relative to the root of the clone, from which all commands are run.
SOURCES: dict[str, str] = {name: f"resources/tasks/{name}.parquet" for name in LABELS}


class Option(NamedTuple):
    """One of the options of an adapter. `kind` is a type in the words of `cisterna.study.config` (int, float, str,
    bool, `str | null`) or the list of the values there are.
    """

    kind: str | list[str | None]
    default: Any
    meaning: str
    least: float | None = None  # the smallest number allowed
    file: bool = False  # whether it is the path of a file that the task is made from
    words: tuple[str, ...] = ()  # values that are no path


REQUIRED = object()  # the default of an option that has to be given


class Adapter(NamedTuple):
    """How data of one published form become a task: by `cisterna.tasks.<module>`.task(name, spec)."""

    module: str
    modality: str
    meaning: str  # of the rows, in a few words
    options: Mapping[str, Option]
    files: tuple[int, ...]  # how many files it may be given; any number if there is none here
    hub: bool  # whether it may be a data set of the Hugging Face hub
    splits: bool  # whether the data come with train, id and ood; else `ood` lists groups, or there is `split`
    residues: bool  # whether its prompts hold residues, which an encoder can read


FLANK = {"flank": Option("int", 1024, "bases that are kept on each side of the variant", 1)}

ADAPTERS: dict[str, Adapter] = {
    "kegg": Adapter(
        module="kegg",
        modality="dna",
        meaning="disease of a variant, reasoned along a KEGG pathway",
        options=FLANK,
        files=(1, 3),
        hub=True,
        splits=True,
        residues=True,
    ),
    "variant-effect-coding": Adapter(
        module="variant_effect",
        modality="dna",
        meaning="effect of a coding variant",
        options=FLANK,
        files=(1, 2, 3),
        hub=True,
        splits=True,
        residues=True,
    ),
    "variant-effect-non-snv": Adapter(
        module="variant_effect",
        modality="dna",
        meaning="effect of a variant that is not a single substitution",
        options=FLANK,
        files=(1, 2, 3),
        hub=True,
        splits=True,
        residues=True,
    ),
    "go-terms": Adapter(
        module="go_terms",
        modality="protein",
        meaning="Gene Ontology terms of a protein",
        options={
            "ontology": Option("str", REQUIRED, "the ontology, a file in OBO format such as go-basic.obo", file=True),
            "group": Option("str", "organism", "column of the groups that `ood` holds out"),
            "weights": Option(
                "str | null",
                None,
                "weights of the terms: a file, one term and its weight a line; `train`, information accretion of the "
                "training proteins; or null, all equal",
                file=True,
                words=("train",),
            ),
            "residues": Option("int", 2000, "residues of a protein that are kept, from the first", 1),
            "id": Option("str", "protein_id", "column of the name of a protein"),
            "sequence": Option("str", "sequence", "column of the sequence"),
            "organism": Option("str", "organism", "column of the organism"),
            "interpro": Option("str", "interpro_formatted", "column of the InterPro text"),
            "predictions": Option("str", "go_pred", "column of the terms that GO-GPT predicts"),
            "reasoning": Option("str", "reasoning", "column of the reasoning"),
            "mf": Option("str", "go_mf", "column of the terms of molecular function"),
            "bp": Option("str", "go_bp", "column of the terms of biological process"),
            "cc": Option("str", "go_cc", "column of the terms of cellular component"),
        },
        files=(),
        hub=True,
        splits=False,
        residues=True,
    ),
    "cells": Adapter(
        module="cells",
        modality="rna",
        meaning="label of a cell, from its genes in the order of their expression",
        options={
            "label": Option("str", REQUIRED, "column of `obs` that is the answer"),
            "group": Option("str", REQUIRED, "column of `obs` with the groups that `ood` holds out"),
            "genes": Option("int", 100, "genes of a cell sentence", 1),
            "question": Option("str", "Which cell type?", "what opens every prompt"),
            "layer": Option("str | null", None, "layer with the expression; `raw.X`, or null for `X`"),
            "names": Option("str | null", None, "column of `var` with the names of the genes; null is its index"),
            "sample": Option("int | null", None, "how many cells are read, the same ones for the same seed", 1),
        },
        files=(1,),
        hub=False,
        splits=False,
        residues=False,
    ),
}


def modality(name: str, spec: Mapping[str, Any]) -> str:
    """The modality of the task `name`, whose entry in the config is `spec`."""
    if spec.get("adapter"):
        return ADAPTERS[spec["adapter"]].modality
    return str(spec["modality"]) if "modality" in spec else MODALITIES[name]


def residues(name: str, spec: Mapping[str, Any]) -> bool:
    """Whether the prompts of a task hold residues that an encoder can read."""
    adapter = ADAPTERS.get(str(spec.get("adapter")))
    return adapter.residues if adapter else "file" in spec or name not in WITHOUT_RESIDUES


def of_terms(spec: Mapping[str, Any]) -> bool:
    """Whether the answers of a task are sets of terms and not labels."""
    return spec.get("adapter") == "go-terms"


def sources(name: str, spec: Mapping[str, Any]) -> list[str]:
    """The local files that a task is made from: the user's, or the one that ships; none for data on the hub."""
    adapter = ADAPTERS.get(str(spec.get("adapter")))
    if adapter is None and "file" not in spec:
        return [SOURCES[name]]
    given = spec.get("file", [])
    options = spec.get("options", {})
    named = [
        options[option]
        for option, entry in (adapter.options if adapter else {}).items()
        if entry.file and options.get(option) and options[option] not in entry.words
    ]
    return [*([given] if isinstance(given, str) else given), *named]
