"""The report of a study: numbers in tables (``gather``), then pictures of them (``figures``).

Not for judging what the numbers mean, and not for the pages around them, which
``snakemake --report`` makes.
"""

METRICS = "metrics.parquet"
GAINS = "rl_gains.parquet"
REWARDS = "rl_rewards.parquet"
CELLS = "cells.parquet"

FIGURES = (
    "sft_accuracy",
    "sft_balanced_accuracy",
    "rl_gain",
    "rl_reward",
    "generalization_gap",
    "label_prior",
    "sequences",
    "sweeps",
    "lineage",
)
"""Names of the figures; each is written as .svg and .png."""

TABLE = "table.html"
