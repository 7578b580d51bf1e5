"""Few-shot answers: a model that was not trained on a task sees some examples of train before each question.

The examples are the same for all questions, and come as turns of a conversation, with reasoning and answer as SFT
teaches them, or where there is no chat template one after the other. With a template that leaves out the thoughts of
earlier turns (Qwen3) they have answers alone. Not for answers without examples, which every evaluation has.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from cisterna.evaluation import scores
from cisterna.scoring import answers, lenient
from cisterna.scoring.answers import AnswerSpace
from cisterna.sequences import conventions, tokenization

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SUFFIX = "_few_shot"
METRICS = ("accuracy", "balanced_accuracy", "mcc", "f1_micro", *lenient.METRICS.values())


def choose(train: pd.DataFrame, labels: Sequence[str], number: int) -> pd.DataFrame:
    """The first rows of train, in its order: as many of each label as there can be, of sets of terms just the first."""
    if not labels:
        return train.head(number)
    turn = train.groupby("answer", sort=False).cumcount()  # the first of each label, then the second of each, ...
    return train.loc[turn.sort_values(kind="stable").index[:number]].sort_index()


def encode(tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], shots: pd.DataFrame) -> list[list[int]]:
    """Token ids of prompts after the examples `shots` (prompt, reasoning, answer). Sequences are tokens."""
    asked, reasoning, given = (
        [tokenization.expand(text) for text in tokenization.escape(tokenizer, list(shots[column]))]
        for column in ("prompt", "reasoning", "answer")
    )
    completions = [
        conventions.written(tokenizer, answers.completion(*pair)) for pair in zip(reasoning, given, strict=True)
    ]
    questions = [tokenization.expand(text) for text in tokenization.escape(tokenizer, prompts)]
    if getattr(tokenizer, "chat_template", None):
        texts = conventions.render(tokenizer, questions, list(zip(asked, completions, strict=True)))
    else:
        end = conventions.of(tokenizer).turn_end
        before = "".join(
            f"{question}{completion}{end}" for question, completion in zip(asked, completions, strict=True)
        )
        texts = [before + question for question in questions]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [conventions.started(tokenizer, ids) for ids in encoded]


def score(table: pd.DataFrame, space: AnswerSpace, seed: int, resamples: int) -> Mapping[str, Any]:
    """The metrics of few-shot answers, each called as usual with `_few_shot` at its end.

    `table` has answer, predicted and predicted_lenient.
    """
    gold = table["answer"].tolist()
    found = dict(space.score(gold, scores.texts(table["predicted"]), seed, resamples))
    found |= lenient.score(gold, scores.texts(table["predicted_lenient"]), space, seed, resamples)
    return {f"{name}{SUFFIX}": found[name] for name in METRICS if name in found}
