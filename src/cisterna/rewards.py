"""Verifiable rewards: functions of a completion and the gold answer, each in [0, 1]. Weights are the recipe's.

Every reward reads the completion through `cisterna.answers.parse`, the same strict reader that evaluation uses, so
that what is rewarded is what is scored.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cisterna import answers, tokenizer
from cisterna.errors import UserError


def correct(output: str, answer: str, labels: Sequence[str]) -> float:
    """1 if the parsed answer is the gold answer, else 0."""
    return float(answers.parse(output, labels) == answer)


def well_formed(output: str, answer: str, labels: Sequence[str]) -> float:
    """1 if the output ends in exactly one answer of the answer space, right or wrong, else 0."""
    return float(answers.parse(output, labels) is not None)


REWARDS: dict[str, Callable[[str, str, Sequence[str]], float]] = {"correct": correct, "well_formed": well_formed}


def trl_functions(
    weights: Mapping[str, float], labels: Sequence[str], tokens: Any
) -> tuple[list[Callable], list[float]]:
    """TRL reward functions and their weights, in the order of `weights`. UserError for a reward that does not exist.

    Completions are read from their ids with the tokenizer `tokens`, as in evaluation: TRL's text leaves control tokens
    out. A completion without the end-of-text token was cut off; it is unfinished and earns nothing.
    """
    unknown = sorted(set(weights) - set(REWARDS))
    if unknown:
        raise UserError(f"rewards {unknown} do not exist; there are {sorted(REWARDS)}")

    def wrap(name: str) -> Callable:
        def reward(completion_ids: list[list[int]], answer: list[str], **_: object) -> list[float]:
            read = (tokenizer.written(tokens, ids) for ids in completion_ids)
            return [
                REWARDS[name](text, gold, labels) if finished else 0.0
                for (text, finished), gold in zip(read, answer, strict=True)
            ]

        reward.__name__ = name
        return reward

    return [wrap(name) for name in weights], [float(weight) for weight in weights.values()]
