"""Small valid configs, made anew for every test that changes them."""

import copy
from typing import Any

Config = dict[str, Any]

OWN_TABLE = {
    "file": "data/my-assay.csv",
    "modality": "protein",
    "columns": {"id": "variant", "sequence": "seq", "label": "class", "group": "family"},
    "labels": ["low", "high"],
    "question": "Is this variant active?",
    "ood": ["kinase"],
}


def small() -> Config:
    """A small valid config, written anew for every test that breaks it."""
    return {
        "study": "small",
        "seeds": [0],
        "backbones": {
            "nano": {
                "architecture": {"model_type": "qwen3", "max_position_embeddings": 512},
                "tokenizer": {"vocab_size": 512, "files": ["text.txt"]},
            }
        },
        "corpora": {"text": {"file": "text.txt", "modality": "text"}},
        "tasks": {"splice-donor": {}, "cell-type": {"train": 300}},
        "recipes": {
            "cpt": {"bio": {"corpora": ["text"]}},
            "sft": {"brief": {"epochs": [1, 2, 4, 8]}, "long": {"epochs": [8, 16]}},
            "rl": {"grpo": {"epochs": [1, 2, 4, 8]}},
        },
        "lineages": [{"cpt": ["none", "bio"], "sft": ["brief"], "rl": [{"recipe": "grpo", "from": [1]}]}],
    }


def featured() -> Config:
    """`small` with two encoders, one made here and one pretrained, and splice-donor in two forms."""
    given = small()
    given["corpora"]["rna"] = {"file": "rna.fasta", "modality": "rna"}
    given["encoders"] = {
        "esm2": {"pretrained": "facebook/esm2_t30_150M_UR50D", "letters": {"U": "T"}, "bank": False},
        "nano-esm": {
            "architecture": {"model_type": "esm", "hidden_size": 8, "num_hidden_layers": 4},
            "training": {"corpora": ["rna"]},
        },
    }
    given["tasks"]["splice-donor"] = {"sequences": ["tokens", "features"], "encoder": "nano-esm"}
    return given


def adapted() -> Config:
    """`featured` with a task of each kind of data."""
    config = featured()
    table = copy.deepcopy(OWN_TABLE)
    del table["ood"], table["columns"]["group"]
    cells = {"adapter": "cells", "file": "data/blood.h5ad", "options": {"label": "cell_type", "group": "donor"}}
    config["tasks"] |= {
        "pathways": {"adapter": "kegg", "hub": "wanglab/kegg", "validation": 100, "revision": "main", "train": 50},
        "files": {"adapter": "kegg", "file": ["a.csv", "b.csv", "c.csv"], "options": {"flank": 9}},
        "blood": cells | {"ood": ["donor-3"]},
        "donors": cells | {"ood": 50, "split": {"by": "group", "ood": 0.2}},
        "functions": {
            "adapter": "go-terms",
            "file": ["a.csv", "b.csv"],
            "ood": ["mouse"],
            "options": {"ontology": "go.obo", "pool": True},
            "sequences": "both",
            "encoder": "esm2",
        },
        "mine": table | {"split": {"by": "similarity", "ood": 0.2, "threshold": 0.4}},
        "dated": table | {"split": {"by": "time", "column": "day", "after": "2020-01-31"}, "ood": 30},
        "asked": table | {"split": {"by": "group", "column": "kind", "ood": 0.2}},
    }
    del config["tasks"]["asked"]["question"]
    config["tasks"]["asked"]["prompt"] = "Is {variant} active? {sequence} Say {options}."
    return copy.deepcopy(config)  # entries share parts so far
