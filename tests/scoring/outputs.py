"""A task of two labels, and outputs that answer it."""

from cisterna.scoring.answers import Labels

LABELS = ("spliced", "skipped")
SPACE = Labels(LABELS)
PAPER = {"correct": 2.0, "concise": 0.5, "format": 1.0, "tags": 0.25}  # of config/paper.yaml
THOUGHT = "<think>+1 match +2 match</think>"
HONEST = f"{THOUGHT}Answer: spliced"
NAMES = ("correct", "concise", "format", "tags", "well_formed")
