"""Supervised fine-tuning: the model learns to reason, then answer.

    cisterna sft --parent results/models/nano/base/checkpoint --data results/data/splice-donor \
        --output .../sft-brief/e2/checkpoint --previous .../sft-brief/e1/checkpoint --work results/.work/... \
        --recipe '{...}' --seed 0 --epochs 2

The loss is on the completion only: `<think>{reasoning}</think>Answer: {answer}` and the end-of-text token, in the form
of the backbone (`cisterna.sequences.conventions`). The trainer is `trl.SFTTrainer`, its options the recipe's. Examples
are tokenized here, in batched calls, so that residues become residue tokens or feature rows; an example longer than
`max_length` is an error and is never cut. With features (`--sequences features --bank ...`) the bridge is trained too.

With `packing: true` examples lie side by side in blocks of up to `max_length` tokens, and a batch is one row of blocks
without padding; with `padding_free: true` the examples of a usual batch lie in one row. Positions restart at each
example and attention stays inside it, so its loss is what it would be alone.
"""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from datasets import Dataset
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from cisterna import pretrained
from cisterna.errors import UserError
from cisterna.scoring import answers
from cisterna.sequences import inputs_file, tokenization
from cisterna.sequences.prompt import encode_prompts
from cisterna.sequences.source import TOKENS, SequenceSource
from cisterna.training.run import open_run
from cisterna.training.stage import (
    Examples,
    StageArguments,
    check_examples,
    computes_in,
    configure,
    load_examples,
    load_parent,
    lora,
    set_attention,
)
from cisterna.training.token_scores import score_labelled_only


def train(arguments: StageArguments, data: Path, source: SequenceSource = TOKENS) -> None:
    """Train on `data`/train.parquet, or the part of it that the recipe uses, and publish."""
    with open_run(arguments) as run:
        examples = load_examples(arguments, data)
        tokenizer, model = load_parent(arguments, source)
        inputs = source.describe(examples.card, model)
        config = configure(SFTConfig, arguments)
        rows = tokenize(tokenizer, examples.frame, source, model.get_input_embeddings().num_embeddings)
        _check_lengths(rows, examples, config.max_length)
        check_examples(tokenizer, model, rows["input_ids"], examples, more=0)
        set_attention(model, arguments.recipe)
        if config.packing or config.padding_free:
            _check_apart(model, config, arguments)
        if not config.packing:
            config.max_length = None  # TRL has nothing to cut; with a number it refuses padding_free
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_dict(rows),
            processing_class=tokenizer,
            peft_config=lora(arguments, source),
        )
        score_labelled_only(trainer)
        if config.packing:
            _check_packed(trainer.train_dataset, rows["input_ids"], config.max_length)
        run.train(
            trainer,
            data=examples.hashes | inputs_file.hashes(inputs),
            tokens_per_epoch=sum(map(len, rows["input_ids"])),
        )
        run.publish(lambda folder: inputs_file.write(folder, arguments.output, inputs))


def _check_lengths(rows: dict[str, list[list[int]]], examples: Examples, longest: int | None) -> None:
    ids = zip(examples.frame["id"], rows["input_ids"], strict=True)
    too_long = [name for name, token_ids in ids if len(token_ids) > (longest or math.inf)]
    if too_long:
        raise UserError(
            f"{examples.path}: {len(too_long)} examples are longer than max_length {longest} (first: {too_long[0]}); "
            "raise max_length in the SFT recipe or shorten the prompts"
        )


def _check_apart(model: transformers.PreTrainedModel, config: SFTConfig, arguments: StageArguments) -> None:
    """UserError for a model that reads an example with what it has read of others in its row."""
    collate, precision = (
        DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True),
        computes_in(arguments.recipe),
    )
    flash = arguments.recipe.get("attn_implementation") is not None
    if flash:  # FlashAttention runs on the device of training alone, and not in float32
        model.to(config.device)
    with torch.autocast(model.device.type, precision, enabled=flash and precision != torch.float32):
        pretrained.check_documents(
            model,
            lambda documents: {
                key: value
                for key, value in collate([{"input_ids": document} for document in documents]).items()
                if key != "labels"
            },
            "the SFT recipe packs examples into rows",
            "set packing: false",
        )


def _check_packed(blocks: Any, rows: list[list[int]], size: int) -> None:
    """Say how full the blocks are; an error if they do not have every example once and whole."""
    packed = sorted(length for lengths in blocks["seq_lengths"] for length in lengths)
    if packed != sorted(map(len, rows)):
        raise RuntimeError(f"packing has changed the examples: {len(rows)} before it, {len(packed)} after it")
    share = sum(packed) / (len(blocks) * size)
    print(f"packed {len(packed)} examples into {len(blocks)} blocks of {size} tokens, {share:.0%} full", flush=True)


def tokenize(
    tokenizer: Any, frame: pd.DataFrame, source: SequenceSource = TOKENS, first: int = 0
) -> dict[str, list[list[int]]]:
    """`input_ids` and `labels` (-100 on the prompt) of rows with `prompt`, `segments`, `reasoning`, `answer`.

    `first` is the size of the model's vocabulary, which is the id of the first feature row.
    """
    ids = list(frame["id"]) if "id" in frame else []
    prompts = encode_prompts(tokenizer, list(frame["prompt"]), source, list(frame["segments"]), first, ids)
    reasonings, labels = (tokenization.escape(tokenizer, list(frame[column])) for column in ("reasoning", "answer"))
    texts = [answers.completion(*pair) for pair in zip(reasonings, labels, strict=True)]
    completions = tokenization.encode_completions(tokenizer, texts)
    pairs = list(zip(prompts, completions, strict=True))
    return {
        "input_ids": [prompt + completion for prompt, completion in pairs],
        "labels": [[-100] * len(prompt) + completion for prompt, completion in pairs],
    }
