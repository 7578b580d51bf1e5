"""The report of a study: numbers in one table (``gather``), then pictures of it (``figures``).

Not for judging what the numbers mean, and not for the pages around them, which
``snakemake --report`` makes.
"""

METRICS = "metrics.parquet"
GAINS = "rl_gains.parquet"

FIGURES = (
    "sft_accuracy",
    "sft_balanced_accuracy",
    "rl_gain",
    "generalization_gap",
    "label_prior",
    "lineage",
)
"""Names of the figures; each is written as .svg and .png."""

TABLE = "table.html"
