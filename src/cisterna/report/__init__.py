"""The report of a study: tables of its results, then figures, a page of results and the findings.

    gather      the files of all jobs -> four tables
    figures     the tables -> figures (.svg, .png)
    results     the tables -> the page of all results
    findings    the answers of all models -> a verdict on each claim of the paper
    quotes      the outputs of all models -> a page that quotes them, for a few examples
    advice      the same answers -> how to spend a budget of training

This module has the names of the files, and nothing that is slow to import: the workflow reads it.
"""

METRICS_TABLE = "metrics.parquet"
GAINS_TABLE = "rl_gains.parquet"
REWARDS_TABLE = "rl_rewards.parquet"
CELLS_TABLE = "cells.parquet"
RESULTS_PAGE = "table.html"
QUOTES_PAGE = "quotes.html"

FIGURES = {
    "sft_accuracy": ("Supervised fine-tuning", "accuracy against epochs"),
    "sft_balanced_accuracy": ("Supervised fine-tuning", "balanced accuracy against epochs"),
    "rl_gain": ("Reinforcement learning", "what RL adds"),
    "rl_reward": ("Reinforcement learning", "reward while training"),
    "generalization_gap": ("Generalization", "ID minus OOD"),
    "label_prior": ("Generalization", "answers against truth"),
    "sequences": ("Sequences", "tokens against features"),
    "sweeps": ("Study", "every sweep"),
    "lineage": ("Study", "family tree"),
}
"""Name of each figure -> its category and its label in Snakemake's report.

``cisterna.report.figures`` draws each as NAME.svg and NAME.png; its caption is ``workflow/report/NAME.rst``.
"""
