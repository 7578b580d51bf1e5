"""A reward for cold starts: the right answer, also in another form than SFT teaches (config/pretrained.yaml).

A model that was never shown `<think>` cannot write it, so that the strict rewards would pay nothing and teach nothing.
The lenient reader of evaluation (`cisterna.scoring.lenient`) gives nothing for an output that names several labels.
"""

from collections.abc import Sequence

from cisterna.scoring import lenient
from cisterna.scoring.answers import Labels


def correct(output: str, answer: str, labels: Sequence[str]) -> float:
    """1 if what a fair person reads in the output is the answer."""
    return float(lenient.read(output, Labels(tuple(labels)), finished=True) == answer)
