"""Studies whose answers are simulated, so that the truth about every claim is known."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from cisterna.report.statistics import Sheet, columns, sheet
from cisterna.study import Model, Study
from tiny import ROOT

LABELS = {"splice-donor": ("skipped", "used"), "cell-type": ("b-cell", "t-cell", "monocyte")}
Ability = Callable[[Model, str], float]  # log odds of a right answer on an example of average difficulty, by split


def config(seeds: Sequence[int] = (0, 1, 2), tasks: Sequence[str] = tuple(LABELS)) -> dict[str, Any]:
    """Every axis of the claims: CPT, rungs of SFT, RL from early, last and cold, RL with CPT, four splits of 8 epochs,
    two ranks of each stage, and a larger backbone.
    """
    content = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    content |= {"study": "simulated", "seeds": list(seeds)}
    nano = content["backbones"]["nano"]
    content["backbones"]["mini"] = nano | {"architecture": nano["architecture"] | {"num_hidden_layers": 12}}
    brief = content["recipes"]["sft"]["brief"]
    content["recipes"]["sft"]["thin"] = brief | {"epochs": [8], "lora": brief["lora"] | {"r": 4, "lora_alpha": 8}}
    low = content["recipes"]["rl"]["grpo"] | {"epochs": [4, 7, 8], "lora": {"r": 4, "lora_alpha": 8}}
    same = low | {"epochs": [4], "lora": {"r": 16, "lora_alpha": 32}}
    content["recipes"]["rl"] = {"low": low, "same": same}
    grid = {"tasks": list(tasks), "sequences": ["tokens"], "backbones": ["nano"], "sft": ["brief"]}
    starts = [{"recipe": "low", "from": [1, 8, "cold"]}, {"recipe": "same", "from": [8]}]
    strong = [{"recipe": "low", "from": [8]}]
    content["lineages"] = [
        grid | {"rl": starts},
        grid | {"cpt": ["bio"], "rl": strong},
        grid | {"sft": ["thin"], "rl": [*strong, starts[1]]},
        grid | {"backbones": ["mini"]},
        grid | {"rl": [{"recipe": "low"}], "budget": {"epochs": 8, "split": [[8, 0], [4, 4], [1, 7], [0, 8]]}},
    ]
    return content


DIFFICULTY = 1.5  # standard deviation of the log odds of examples
MALFORMED = 0.01  # of all answers


@cache
def odds(accuracy: float) -> float:
    """The ability that gives this accuracy over all examples, without luck."""
    abilities = np.linspace(-8, 8, 801)
    examples = DIFFICULTY * np.random.default_rng(0).normal(size=(4001, 1))
    chance = (1 - MALFORMED) * (1 / (1 + np.exp(-(abilities + examples)))).mean(0)
    return float(np.interp(accuracy, chance, abilities))


def flat(model: Model, split: str) -> float:
    """No claim is true: every model is as able as every other."""
    return 0.8


def simulate(
    study: Study, ability: Ability, rng: np.random.Generator, size: int = 200, luck: float = 0.15
) -> dict[tuple[str, str], Sheet]:
    """Answers to ``size`` examples of each split. Hard examples are hard for all models; ``luck`` is the standard
    deviation, between trainings, of a model's log odds, the same on both splits.
    """
    sheets = {}
    for task in study.tasks:
        models = [study.model(path) for _, path, of in study.evaluations() if of == task]
        lucky = luck * rng.normal(size=len(models))
        labels = np.array(LABELS[task])
        share = np.arange(1, len(labels) + 1) / np.arange(1, len(labels) + 1).sum()
        for split in ("id", "ood"):
            gold = rng.choice(len(labels), size, p=share)
            able = np.array([ability(model, split) for model in models]) + lucky
            chance = 1 / (1 + np.exp(-(able[:, None] + DIFFICULTY * rng.normal(size=size))))
            wrong = (gold + rng.integers(1, len(labels), size=(len(models), size))) % len(labels)
            said = labels[np.where(rng.random((len(models), size)) < chance, gold, wrong)].astype(object)
            said[rng.random(said.shape) < MALFORMED] = None
            sheets[task, split] = sheet(
                labels[gold], {model.path: list(row) for model, row in zip(models, said, strict=True)}
            )
    return sheets


def write(study: Study, sheets: dict[tuple[str, str], Sheet], results: Path) -> None:
    """The answers as the files that evaluations write, each in an order of its own."""
    for number, (folder, path, task) in enumerate(study.evaluations()):
        for split in ("id", "ood"):
            of = sheets[task, split]
            labels = np.array([*sorted(LABELS[task]), None], dtype=object)
            frame = pd.DataFrame(
                {
                    "id": [f"{task}-{split}-{row}" for row in range(len(of.gold))],
                    "answer": labels[of.gold],
                    "predicted": labels[of.predicted[columns(of)[path]]],
                }
            ).sample(frac=1, random_state=number)
            (results / folder).mkdir(parents=True, exist_ok=True)
            frame.to_parquet(results / folder / f"{split}.parquet", index=False)
