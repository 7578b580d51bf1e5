"""Reinforcement learning: GRPO with the task's verifiable rewards.

    cisterna rl --parent .../sft-brief/e2/checkpoint --data results/data/splice-donor \
        --output .../e2/rl-grpo/e1/checkpoint --work results/.work/... --recipe '{...}' --seed 0 --epochs 1

The trainer is `trl.GRPOTrainer`, its options the recipe's. The parent's adapters are merged before the run and the RL
adapter starts anew, so its rank is free of the SFT rank (asymmetric capacity). The run fails, with the numbers, if no
group of completions ever had reward variance: such a run has no gradient, and its checkpoint would be the parent.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from accelerate import PartialState
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import PreTrainedModel
from trl import GRPOConfig, GRPOTrainer

from cisterna import models
from cisterna.errors import UserError
from cisterna.scoring import answers, rewards
from cisterna.sequences import inputs_file, tokenization
from cisterna.sequences.prompt import encode_prompts
from cisterna.sequences.source import TOKENS, SequenceSource
from cisterna.training.run import Job, Setup, configure, execute, given_to, head, lora, parent_of, reader


def train(job: Job, data: Path, given: SequenceSource = TOKENS) -> None:
    """Train on the prompts of `data`/train.parquet (as many of them as `head` says) and publish."""

    def build(options: dict[str, Any]) -> Setup:
        tokens = tokenization.load(models.base_of(parent_of(job)))
        card, table = given_to(job, data)
        frame = head(pd.read_parquet(table), job.recipe)
        paid = job.recipe.get("rewards", {"correct": 1.0})
        functions, weights = rewards.trl_functions(paid, answers.load_space(card, data), tokens)
        model, first = reader(job, given)
        prompts = encode_prompts(tokens, list(frame["prompt"]), given, list(frame["segments"]), first)
        described = given.describe(card, model)
        adapter = lora(job, given)
        config = configure(GRPOConfig, options | {"reward_weights": weights})
        if config.beta != 0.0 and adapter is None:
            _keep_reference(model, job.work / "reference")
        if len(frame) * config.num_generations < config.generation_batch_size:
            raise UserError(
                f"{table}: {len(frame)} prompts do not fill one batch of "
                f"{config.generation_batch_size // config.num_generations}; use more `examples` or a smaller "
                "per_device_train_batch_size in the RL recipe"
            )
        trainer = _Trainer(
            model=model,
            args=config,
            reward_funcs=functions,
            train_dataset=Dataset.from_dict({"prompt": prompts, "answer": list(frame["answer"])}),
            processing_class=tokens,
            peft_config=adapter,
        )
        sampled = config.steps_per_generation * config.num_iterations  # micro-batches that share their completions
        return Setup(
            trainer=trainer,
            data={table.name: card["files"][table.name]} | inputs_file.hashes(described) | rewards.hashes(paid, card),
            unit=sampled // math.gcd(sampled, config.gradient_accumulation_steps),
            beside=lambda folder: inputs_file.write(folder, job.output, described),
        )

    execute(job, build)


class _Order(Sampler):
    """TRL's order of prompts, made a function of seed and epoch.

    `trl.trainer.utils.RepeatSampler` shuffles each epoch with what the epochs before left of one generator, so a run
    that resumes in its second epoch would see the order of the first.
    """

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def set_epoch(self, epoch: int) -> None:
        if self.sampler.shuffle:
            self.sampler.generator.manual_seed(self.sampler.seed + epoch)

    def __iter__(self) -> Iterator[int]:
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


class _Trainer(GRPOTrainer):
    def _tokenize_prompts(self, prompts: list) -> tuple[list[list[int]], None, dict]:
        """Prompts are token ids already: a feature row has no text."""
        return prompts, None, {}

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        return _Order(super()._get_train_sampler(dataset))


def _keep_reference(model: PreTrainedModel, folder: Path) -> None:
    """Make the parent the reference of the KL penalty in full fine-tuning.

    TRL loads the reference from the path that the model's config names, which is the base of the lineage and not the
    parent. With LoRA the reference is the model without its adapter, and nothing is to be done.
    """
    state = PartialState()
    if state.is_main_process:
        model.save_pretrained(folder)
    state.wait_for_everyone()
    model.config._name_or_path = str(folder)
