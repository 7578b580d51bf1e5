"""The built-in tasks and the adapters as plain data: modality, answer space, options, files.

Imports nothing heavy, so that `cisterna.study` can check a config without pandas. Not for prompts, traces and labels:
they are made in the module of each task.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

MODALITIES: dict[str, str] = {
    "splice-donor": "rna",
    "protein-fitness": "protein",
    "promoter-expression": "dna",
    "cell-type": "rna",
}

# The answer space of each task. Any other answer is wrong.
LABELS: dict[str, tuple[str, ...]] = {
    "splice-donor": ("spliced", "skipped"),
    "protein-fitness": ("functional", "impaired"),
    "promoter-expression": ("high", "low"),
    "cell-type": ("b-cell", "t-cell", "cytotoxic", "monocyte", "dendritic"),
}

# Tasks whose prompts have no residues for an encoder to read: cell-type lists genes.
WITHOUT_RESIDUES = {"cell-type"}

# Raw tables, which ship with Cisterna (cisterna.artifacts.files.locate).
SOURCES: dict[str, str] = {name: f"resources/tasks/{name}.parquet" for name in LABELS}


class Option(NamedTuple):
    """An option of an adapter. `kind` is a type (int, float, str, bool, `str | null`) or the list of allowed values."""

    kind: str | list[str | None]
    default: Any
    meaning: str
    least: float | None = None  # the smallest number allowed
    file: bool = False  # whether it is the path of a file that the task is made from
    words: tuple[str, ...] = ()  # values of such an option that are not paths
    before: Any = (
        None  # what holds where a card or checkpoint of an earlier version lacks the option; None: the default
    )


REQUIRED = object()  # the default of an option that has none
ANSWER_FORM = Option("bool", True, "say in the prompt how an answer is written", before=False)


class Adapter(NamedTuple):
    """A reader of published data: `cisterna.tasks.adapters.<module>`.task(name, spec) makes the task."""

    module: str
    modality: str
    meaning: str  # of the rows, in a few words
    options: Mapping[str, Option]
    files: tuple[int, ...]  # how many files it may have; empty: any number
    hub: bool  # whether it may be a data set of the Hugging Face hub
    splits: bool  # whether the data may come with splits
    groups: bool  # whether `ood` or `split` may divide the data
    residues: bool  # whether its prompts hold residues, which an encoder can read


def _variants(module: str, meaning: str, files: tuple[int, ...], more: Mapping[str, Option] | None = None) -> Adapter:
    options = {
        "flank": Option("int | null", 1024, "bases that are kept on each side of the variant; null cuts nothing", 1),
        "trim_ends": Option(
            "int", 0, "bases that are first removed from each end of a sequence, if it is longer than twice that + 8", 0
        ),
        "bases": Option("int | null", None, "bases of a sequence that are kept in the end, from the first", 1),
        "sequences_first": Option("bool", False, "put the sequences before the question, not after it"),
        "answer_form": ANSWER_FORM,
    } | dict(more or {})
    return Adapter(module, "dna", meaning, options, files, hub=True, splits=True, groups=False, residues=True)


ADAPTERS: dict[str, Adapter] = {
    "kegg": _variants("kegg", "disease of a variant, reasoned along a KEGG pathway", (1, 3)),
    "variant-effect-coding": _variants("variant_effect", "effect of a coding variant", (1, 2, 3)),
    "variant-effect-non-snv": _variants(
        "variant_effect",
        "effect of a variant that is not a single substitution",
        (1, 2, 3),
        {
            "target": Option(
                ["pathogenicity", "disease"],
                "pathogenicity",
                "what is asked: what an answer says before `;`, or the disease after it",
            )
        },
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
            "pool": Option("bool", False, "let `ood` or `split` divide the rows of all files, or splits, as one table"),
            "answer_form": ANSWER_FORM,
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
        splits=True,
        groups=True,
        residues=True,
    ),
    "cells": Adapter(
        module="cells",
        modality="rna",
        meaning="label of a cell, from its genes in the order of their expression",
        options={
            "label": Option("str", REQUIRED, "column of `obs` that is the answer: cell type, disease, or any other"),
            "group": Option(
                "str | null",
                None,
                "column of `obs` with the groups (donor, tissue, disease, perturbation, ...) that `ood` as a list, or "
                "`split`, holds out; required there. Not with several columns: `ood: {tissue: [lung], disease: [MS]}`, "
                "or `split.column` as a list",
            ),
            "genes": Option("int", 100, "genes of a cell sentence", 1),
            "question": Option("str", "Which cell type?", "what opens every prompt"),
            "reasoning": Option(
                "str | null",
                "genes",
                "reasoning to learn before the answer: `genes` names the first five of the sentence (refused for the "
                "form `features`, which does not show them); null answers at once; else a column of `obs`",
            ),
            "layer": Option("str | null", None, "layer with the expression; `raw.X`, or null for `X`"),
            "names": Option("str | null", None, "column of `var` with the names of the genes; null is its index"),
            "sample": Option("int | null", None, "how many cells are read, the same ones for the same seed", 1),
            "answer_form": ANSWER_FORM,
        },
        files=(1,),
        hub=False,
        splits=False,
        groups=True,
        residues=False,
    ),
}


def modality(name: str, spec: Mapping[str, Any]) -> str:
    """The modality of the task `name`, whose entry in the config is `spec`."""
    if spec.get("adapter"):
        return ADAPTERS[spec["adapter"]].modality
    if "modality" not in spec:
        return MODALITIES[name]
    return "+".join(sorted(set(sequences(spec).values()))) or "text"


def options(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a task that an adapter reads, whose entry in the config is `spec`.

    A config is filled with the defaults before it comes here. Where an option is missing, `spec` is of a data card or a
    checkpoint of an earlier version, and what was done then still holds (`Option.before`).
    """
    known = ADAPTERS[spec["adapter"]].options
    old = {name: option.default if option.before is None else option.before for name, option in known.items()}
    return old | dict(spec.get("options") or {})


def sequences(spec: Mapping[str, Any]) -> dict[str, str]:
    """The modality of each sequence in the prompts of a user's table, by its name there."""
    entry, kinds = spec["columns"].get("sequence"), spec["modality"]
    names = list(entry) if isinstance(entry, Mapping) else ["sequence"] if entry else []
    return {name: str(kinds.get(name)) if isinstance(kinds, Mapping) else str(kinds) for name in names}


def residues(name: str, spec: Mapping[str, Any]) -> bool:
    """Whether the prompts of a task hold residues that an encoder can read, all of one modality."""
    adapter = ADAPTERS.get(str(spec.get("adapter")))
    if adapter:
        return adapter.residues
    return len(set(sequences(spec).values())) == 1 if "file" in spec else name not in WITHOUT_RESIDUES


def cells(spec: Mapping[str, Any]) -> bool:
    """Whether the prompts of a task hold cells: words in place of residues, or the features of a cell by its id."""
    return spec.get("adapter") == "cells"


def of_terms(spec: Mapping[str, Any]) -> bool:
    """Whether the answers of a task are sets of terms and not labels."""
    return spec.get("adapter") == "go-terms"


def held_out(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """The groups that the key `ood` lists; none if it is the size of a split."""
    return tuple(map(str, spec["ood"])) if isinstance(spec.get("ood"), list | tuple) else ()


def divided(spec: Mapping[str, Any]) -> bool:
    """Whether `ood` (groups, not the size of a split) or `split` says what is out of domain, and not the data."""
    return bool(spec.get("split")) or isinstance(spec.get("ood"), list | tuple | Mapping)


def files(spec: Mapping[str, Any]) -> list[str]:
    """The paths of the key `file`, which is one path or a list of them; none without the key."""
    paths = spec.get("file", [])
    return [paths] if isinstance(paths, str) else list(paths)


def sources(name: str, spec: Mapping[str, Any]) -> list[str]:
    """The local files that a task is made from: the user's, or the one that ships; none for data on the hub."""
    adapter = ADAPTERS.get(str(spec.get("adapter")))
    if adapter is None and "file" not in spec:
        return [SOURCES[name]]
    options = spec.get("options", {})
    return files(spec) + [
        options[option]
        for option, entry in (adapter.options if adapter else {}).items()
        if entry.file and options.get(option) and options[option] not in entry.words
    ]
