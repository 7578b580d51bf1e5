"""Supervised fine-tuning: the model learns to reason, then answer.

    cisterna sft --parent results/models/nano/base/checkpoint --data results/data/splice-donor \
        --output .../sft-brief/e2/checkpoint --previous .../sft-brief/e1/checkpoint --work results/.work/... \
        --recipe '{...}' --seed 0 --epochs 2

The loss is on the completion only: `<think>{reasoning}</think>Answer: {answer}` and the end-of-text token. The trainer
is `trl.SFTTrainer`, its options the recipe's. Examples are tokenized here, in one batched call, so that residues become
residue tokens; an example longer than `max_length` is an error and is never cut.
"""

import math
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from cisterna import answers, files, models, tokenizer
from cisterna.errors import UserError
from cisterna.training.run import Job, Setup, configure, execute, parent_model


def train(job: Job, data: Path) -> None:
    """Train on `data`/train.parquet (the recipe's `fraction` of it, from its beginning) and publish."""

    def build(options: dict[str, Any]) -> Setup:
        tokens = tokenizer.load(models.base_of(job.parent))
        frame = pd.read_parquet(data / "train.parquet")
        frame = frame.head(math.ceil(len(frame) * float(job.recipe.get("fraction", 1.0))))
        model = parent_model(job)
        config = configure(SFTConfig, options)
        rows = tokenize(tokens, frame)
        limit = config.max_length or math.inf
        too_long = [row for row, ids in zip(frame["id"], rows["input_ids"], strict=True) if len(ids) > limit]
        if too_long:
            raise UserError(
                f"{data}/train.parquet: {len(too_long)} examples are longer than max_length {config.max_length} "
                f"(first: {too_long[0]}); raise max_length in the SFT recipe or shorten the prompts"
            )
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_dict(rows),
            processing_class=tokens,
            peft_config=models.lora_config(job.recipe["lora"]) if job.recipe.get("lora") else None,
        )
        return Setup(
            trainer=trainer,
            data={"train.parquet": files.sha256(data / "train.parquet")},
            tokens_per_epoch=sum(map(len, rows["input_ids"])),
        )

    execute(job, build)


def tokenize(tokens: Any, frame: pd.DataFrame) -> dict[str, list[list[int]]]:
    """`input_ids` and `labels` (-100 on the prompt) of rows with `prompt`, `reasoning`, `answer`."""
    prompts = [tokenizer.prompt_text(tokens, prompt) for prompt in frame["prompt"]]
    completions = [
        tokenizer.expand(answers.completion(reasoning, answer)) + tokens.eos_token
        for reasoning, answer in zip(frame["reasoning"], frame["answer"], strict=True)
    ]
    prompt_ids = tokens(prompts, add_special_tokens=False)["input_ids"]
    completion_ids = tokens(completions, add_special_tokens=False)["input_ids"]
    return {
        "input_ids": [prompt + completion for prompt, completion in zip(prompt_ids, completion_ids, strict=True)],
        "labels": [
            [-100] * len(prompt) + completion for prompt, completion in zip(prompt_ids, completion_ids, strict=True)
        ],
    }
