"""Files of the true schemas of the paper's data, of the smallest size: what a miniature of its study is made from."""

import json
import random
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from terms import OBO

SPLITS = ("train", "id", "ood")
SIZES = {"train": 24, "id": 8, "ood": 8}
DISEASES = ("Parkinson's disease", "Amyotrophic lateral sclerosis (ALS)", "Gastric cancer")
WIDTH = 2048  # of TranscriptFormer's embeddings of cells


def write(folder: Path) -> None:
    """Write all of them."""
    draw = random.Random(0)
    for split in SPLITS:
        rows = [kegg(draw, number, split) for number in range(SIZES[split])]
        pd.DataFrame(rows).to_parquet(folder / f"kegg-{split}.parquet", index=False)
        rows = [coding(draw, number, split) for number in range(SIZES[split])]
        pd.DataFrame(rows).to_csv(folder / f"coding-{split}.csv", index=False)
        rows = [non_snv(draw, number, split) for number in range(SIZES[split])]
        pd.DataFrame(rows).to_parquet(folder / f"non-snv-{split}.parquet", index=False)
    proteins = pd.DataFrame([protein(draw, number) for number in range(60)])
    proteins.to_parquet(folder / "proteins.parquet", index=False)
    rng = np.random.default_rng(0)
    features = {
        name: rng.normal(size=(len(sequence), 8)).astype(np.float32)
        for name, sequence in zip(proteins["protein_id"], proteins["sequence"], strict=True)
    }
    save_file(features, folder / "proteins.safetensors")
    (folder / "go-basic.obo").write_text(OBO)
    cells(folder / "cells.h5ad", folder / "cells-embeddings.h5ad")
    texts = (" ".join(f"Gene {number * part} makes protein {part}." for part in range(25)) for number in range(60))
    (folder / "biology.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))


def bases(draw: random.Random, count: int) -> str:
    return "".join(draw.choices("ACGT", k=count))


def changed(sequence: str, place: int, length: int = 1) -> str:
    """The sequence with other bases at a place."""
    new = "".join({"A": "C", "C": "G", "G": "T", "T": "A"}[base] for base in sequence[place : place + length])
    return sequence[:place] + new + sequence[place + length :]


def kegg(draw: random.Random, number: int, split: str) -> dict[str, object]:
    """A row of `wanglab/kegg`, whose reasoning is a list of steps, as in BioReason's notebook."""
    disease = number % len(DISEASES)
    reference = bases(draw, 60)
    return {
        "question": f"Network of the {split} pathway {number}: GENE{disease}* -> apoptosis. Which disease?",
        "answer": f"{DISEASES[disease]}; H{disease:05}",
        "reasoning": [f"Step 1: GENE{disease} changes.", "Step 2: cells die."],
        "reference_sequence": reference,
        "variant_sequence": changed(reference, 30),
    }


def coding(draw: random.Random, number: int, split: str) -> dict[str, object]:
    """A row of `wanglab/variant_effect_coding`."""
    reference = bases(draw, 60)
    return {
        "ID": f"{split}-{number}",
        "question": f"A coding variant of gene {number} on chromosome {number % 22 + 1}. What is its effect?",
        "answer": "Pathogenic; ['Some_disease']" if number % 2 else "Benign",
        "reference_sequence": reference,
        "variant_sequence": changed(reference, 30),
    }


def non_snv(draw: random.Random, number: int, split: str) -> dict[str, object]:
    """A row of `wanglab/variant_effect_non_snv`."""
    reference = bases(draw, 60)
    label = "pathogenic" if number % 2 else "benign"
    return {
        "question": f"A deletion in gene {number} on chromosome {number % 22 + 1} ({split}). What is its effect?",
        "answer": f"{label}; ['Disease_{number}', 'not_provided']" if number % 4 else label,
        "reference_sequence": reference,
        "mutated_sequence": changed(reference, 30, 3),
        "cleaned_pathogenicity": label,
        "__index_level_0__": number,
    }


def protein(draw: random.Random, number: int) -> dict[str, object]:
    """A row of the reasoning data of BioReason-Pro; every tenth protein is a fish's."""
    kinase = number % 2 == 0
    return {
        "protein_id": f"P{number:05}",
        "sequence": "M" + "".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=20)),
        "organism": "Danio rerio" if number % 10 == 9 else "Homo sapiens",
        "interpro_formatted": "IPR000719: Protein kinase domain (3-9)" if kinase else "",
        "go_pred": "GO:0000005" if kinase else "GO:0000025",
        "reasoning": "A kinase domain." if kinase else "A pore.",
        "go_mf": ["GO:0000005"] if kinase else [],
        "go_bp": [],
        "go_cc": [] if kinase else ["GO:0000025"],
    }


def cells(path: Path, embeddings: Path, count: int = 48) -> None:
    """Cells of two types in three diseases, and their embeddings as TranscriptFormer's command writes them.

    Its file keeps the columns of `obs` but not the names of the cells.
    """
    rng = np.random.default_rng(0)
    kinds = np.arange(count) % 2
    expression = rng.poisson(1.0, (count, 12)).astype(np.float32)
    expression[np.arange(count), kinds] += 9
    data = anndata.AnnData(expression)
    data.obs_names = [f"cell-{number}" for number in range(count)]
    data.var_names = [f"GENE{number}" for number in range(12)]
    data.obs["cell"] = data.obs_names
    data.obs["cell_type"] = pd.Categorical(np.where(kinds, "T cell", "monocyte"))
    data.obs["disease"] = pd.Categorical(np.array(["normal", "lupus", "covid-19"])[np.arange(count) // 2 % 3])
    data.write_h5ad(path)
    data.obs_names = [str(number) for number in range(count)]
    data.obsm["embeddings"] = (rng.normal(size=(count, WIDTH)) + kinds[:, None]).astype(np.float32)
    data.write_h5ad(embeddings)
