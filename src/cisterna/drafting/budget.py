"""How much a drafted study trains: sizes of the splits and epochs that take about ten minutes on two cores.

The time is that of `cisterna plan --calibrate` (`cisterna.ops.timing`), with rates that were measured once and not on
this machine, so that it is known at once. Not for the hours of any other study: `--calibrate` measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from cisterna import study as studies
from cisterna.ops import timing
from cisterna.ops.timing import Lengths, Timing
from cisterna.ops.workload import Workload
from cisterna.study.jobs import asked_as, jobs

MINUTES = 10.0
CORES = 2
# Seconds of a unit of each job with the nano backbone, as `cisterna plan --config docs/own-data/study.yaml --calibrate`
# measured them on a core of an AMD EPYC; quotes are assumed to be like findings. START: of each job, and of Snakemake.
SECONDS = {
    ("sft", "token"): 1 / 7100,
    ("rl", "token"): 1 / 3900,
    ("evaluate", "scores"): 0.2,
    ("evaluate", "prompt token"): 1 / 31000,
    ("evaluate", "new token"): 1 / 16000,
    ("evaluate", "label"): 1 / 900,
    ("baselines", "row"): 1 / 600,
    ("gather", "row"): 1 / 2300,
    ("figures", "evaluation"): 0.6,
    ("findings", "row"): 1 / 2700,
    ("quotes", "row"): 1 / 2700,
}
START = 2.0
LETTERS = 2.5  # letters a token of English text with a vocabulary of 1,280; names take more tokens
# Above this length attention costs as much as the weights of nano: 4 length x width x layers FLOPs against 2 x weights.
LONG = 1000
TRAIN = (2000, 1500, 1000, 800, 600, 400, 300, 200, 150, 100, 70, 50, 30, 20)
LADDERS = ([1, 2, 4, 8], [1, 2, 4], [1, 2])
FEW, MORE_EPOCHS = 1000, [1, 2, 4, 8, 16]  # examples of train up to which the ladder has a rung more
TESTED = 200  # the most rows of id and of ood: the 95% interval of an accuracy is then about 0.14 wide at most
VALIDATED = 100
SEEDS = 3
PROMPTS = (96, 64, 32, 16)  # of RL: whole generation batches of 16 prompts


class Size(NamedTuple):
    """Tokens of the examples of a table: the most that a prompt and a completion may take, and their means."""

    longest_prompt: int
    longest_completion: int
    prompt: float
    completion: float


def measure(examples: pd.DataFrame, texts: Mapping[str, Sequence[str]], labels: Sequence[str]) -> Size:
    """The size of examples. A residue is a token; of other text a token is at most a byte, and LETTERS on average."""
    residues = [sum(map(len, row)) for row in zip(*texts.values(), strict=True)] if texts else [0] * len(examples)
    other = [len(prompt.encode()) - count for prompt, count in zip(examples["prompt"], residues, strict=True)]
    answer = max(len(label.encode()) for label in labels)
    reasoning = [len(text.encode()) for text in examples["reasoning"]]
    return Size(
        max(map(sum, zip(residues, other, strict=True))),
        16 + answer + math.ceil(max(reasoning) / 2),
        sum(residues) / len(examples) + sum(other) / len(examples) / LETTERS,
        10 + answer / LETTERS + sum(reasoning) / len(examples) / LETTERS,
    )


def rounded(tokens: float, to: int) -> int:
    """A number of tokens, rounded up to a multiple."""
    return math.ceil(tokens / to) * to


def sizes(inside: int, outside: int, train: int) -> dict[str, int]:
    """The rows of each split, of so many rows in domain and out of it, with at most so many of train."""
    tested = max(1, min(TESTED, inside // 5))
    validated = max(1, min(VALIDATED, inside // 10))
    left = max(1, min(train, inside - tested - validated))
    return {"train": left, "validation": validated, "id": tested, "ood": max(1, min(TESTED, outside))}


def choices(rows: int) -> Iterator[tuple[int, list[int]]]:
    """Examples of train with epochs, from much to little, for so many rows that are left for train."""
    for shorter in LADDERS:
        for train in dict.fromkeys(min(rows, size) for size in TRAIN):
            yield train, MORE_EPOCHS if train <= FEW and shorter is LADDERS[0] else shorter


def seconds(config: Mapping[str, Any], task: str, size: Size) -> float:
    """How long a study with one task would take on CORES cores, from start to end."""
    study = studies.load(config)
    rows = {(task, split): count for split, count in _rows(config["tasks"][task]).items()}
    work = Workload(study, rows, {}, {}, [], [])
    lengths = Lengths(size.prompt, size.completion, size.longest_completion, len(config["tasks"][task]["labels"]))
    timed = Timing(study, work, {(backbone, task): lengths for backbone in study.backbones}, {})
    slower = 1 + size.longest_prompt / LONG if size.longest_prompt > LONG / 4 else 1.0
    every = jobs(study)
    taken = [(job, START + slower * _seconds(timed.parts(job))) for job in every]
    uses = {job.kind: (study.resources(asked_as(job.kind))["threads"], 0) for job in every}
    return timing.makespan(taken, CORES, 0, uses)


def seeds(config: Mapping[str, Any], task: str, size: Size) -> tuple[list[int], float]:
    """As many seeds as fit, up to SEEDS, and the seconds of the study with them; one, if none fits."""
    for count in range(SEEDS, 0, -1):
        chosen = list(range(count))
        spent = seconds({**config, "seeds": chosen}, task, size)
        if spent <= MINUTES * 60:
            break
    return chosen, spent


def _rows(task: Mapping[str, Any]) -> dict[str, int]:
    return {split: task[split] for split in ("train", "validation", "id", "ood")}


def _seconds(parts: Mapping[timing.Part, float]) -> float:
    return sum(units * SECONDS[part[0], part[-1]] for part, units in parts.items() if part[-1] != timing.START)


def fitting(
    rows: int, build: Callable[[int, list[int]], Mapping[str, Any]], task: str, size: Size
) -> tuple[int, list[int]]:
    """The largest choice of train and epochs whose study, as `build` writes it, fits; the smallest, if none fits."""
    for train, epochs in choices(rows):
        if seconds(build(train, epochs), task, size) <= MINUTES * 60:
            break
    return train, epochs
