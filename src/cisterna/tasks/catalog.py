"""The built-in tasks as plain data: what each reads, what it may answer, where its raw table lies.

Imports nothing, so that `cisterna.study` can check a config without pandas. Prompts, traces and
labels are made in the module of each task, not here.
"""

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

# Raw tables, relative to the root of the clone, from which all commands are run.
SOURCES: dict[str, str] = {name: f"resources/tasks/{name}.parquet" for name in LABELS}
