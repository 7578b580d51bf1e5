"""Supervised fine-tuning: the model learns to reason, then answer.

    cisterna sft --parent results/models/nano/base/checkpoint --data results/data/splice-donor \
        --output .../sft-brief/e2/checkpoint --previous .../sft-brief/e1/checkpoint --work results/.work/... \
        --recipe '{...}' --seed 0 --epochs 2

The loss is on the completion only: `<think>{reasoning}</think>Answer: {answer}` and the end-of-text token. The trainer
is `trl.SFTTrainer`, its options the recipe's. Examples are tokenized here, in batched calls, so that residues become
residue tokens or feature rows; an example longer than `max_length` is an error and is never cut. With features
(`--sequences features --bank ...`) the bridge is trained too.
"""

import math
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from cisterna import models
from cisterna.errors import UserError
from cisterna.scoring import answers
from cisterna.sequences import inputs_file, tokenization
from cisterna.sequences.prompt import encode_prompts
from cisterna.sequences.source import TOKENS, SequenceSource
from cisterna.training.run import Job, Setup, configure, execute, given_to, head, lora, parent_of, reader


def train(job: Job, data: Path, given: SequenceSource = TOKENS) -> None:
    """Train on `data`/train.parquet (as much of it as `head` says) and publish."""

    def build(options: dict[str, Any]) -> Setup:
        tokens = tokenization.load(models.base_of(parent_of(job)))
        card, table = given_to(job, data)
        frame = pd.read_parquet(table)
        frame = head(frame, job.recipe)
        model, first = reader(job, given)
        config = configure(SFTConfig, options)
        rows = tokenize(tokens, frame, given, first)
        described = given.describe(card, model)
        limit = config.max_length or math.inf
        too_long = [row for row, ids in zip(frame["id"], rows["input_ids"], strict=True) if len(ids) > limit]
        if too_long:
            raise UserError(
                f"{table}: {len(too_long)} examples are longer than max_length {config.max_length} "
                f"(first: {too_long[0]}); raise max_length in the SFT recipe or shorten the prompts"
            )
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_dict(rows),
            processing_class=tokens,
            peft_config=lora(job, given),
        )
        return Setup(
            trainer=trainer,
            data={table.name: card["files"][table.name]} | inputs_file.hashes(described),
            tokens_per_epoch=sum(map(len, rows["input_ids"])),
            beside=lambda folder: inputs_file.write(folder, job.output, described),
        )

    execute(job, build)


def tokenize(
    tokens: Any, frame: pd.DataFrame, given: SequenceSource = TOKENS, first: int = 0
) -> dict[str, list[list[int]]]:
    """`input_ids` and `labels` (-100 on the prompt) of rows with `prompt`, `segments`, `reasoning`, `answer`."""
    prompt_ids = encode_prompts(tokens, list(frame["prompt"]), given, list(frame["segments"]), first)
    reasonings, labels = (tokenization.escape(tokens, list(frame[column])) for column in ("reasoning", "answer"))
    completions = [
        answers.completion(reasoning, answer) + tokens.eos_token
        for reasoning, answer in zip(reasonings, labels, strict=True)
    ]
    completion_ids = tokens([tokenization.expand(text) for text in completions], add_special_tokens=False)["input_ids"]
    return {
        "input_ids": [prompt + completion for prompt, completion in zip(prompt_ids, completion_ids, strict=True)],
        "labels": [
            [-100] * len(prompt) + completion for prompt, completion in zip(prompt_ids, completion_ids, strict=True)
        ],
    }
