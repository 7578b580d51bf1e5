"""Reinforcement learning: GRPO with the task's verifiable rewards.

    cisterna rl --parent .../sft-brief/e2/checkpoint --data results/data/splice-donor \
        --output .../e2/rl-grpo/e1/checkpoint --work results/.work/... --recipe '{...}' --seed 0 --epochs 1

The trainer is `trl.GRPOTrainer`, its options the recipe's; with `use_vllm` see `cisterna.training.rollouts`. The
parent's adapters are part of the model (see `cisterna.models.compose`) and the RL adapter starts anew, so its rank is
free of the SFT rank (asymmetric capacity). With `validation` in the recipe the log also has the reward on that split.
The run fails, with the numbers, if no group of completions ever had reward variance: such a run has no gradient, and
its checkpoint would be the parent.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import PartialState
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import PreTrainedModel
from trl import GRPOConfig

from cisterna import pretrained
from cisterna.constants import VALIDATION
from cisterna.errors import UserError
from cisterna.scoring import rewards
from cisterna.sequences import engines, inputs_file
from cisterna.sequences.prompt import encode_prompts
from cisterna.sequences.source import TOKENS, SequenceSource
from cisterna.study.config import recipe_defaults
from cisterna.training import rollouts
from cisterna.training.run import open_run
from cisterna.training.stage import StageArguments, check_examples, configure, load_examples, load_parent, lora
from cisterna.training.token_scores import score_labelled_only


def train(arguments: StageArguments, data: Path, source: SequenceSource = TOKENS) -> None:
    """Train on the prompts of `data`/train.parquet, or the part of them that the recipe uses, and publish."""
    if arguments.recipe.get("use_vllm"):
        engines.packages(engines.VLLM)
    with open_run(arguments) as run:
        examples = load_examples(arguments, data)
        frame, card = examples.frame, examples.card
        tokenizer, model = load_parent(arguments, source)
        shares = arguments.recipe.get("rewards") or recipe_defaults("rl")["rewards"]
        words = arguments.recipe.get("concise_words", rewards.CONCISE)
        functions, weights = rewards.trl_functions(shares, examples.space, tokenizer, words)
        inputs = source.describe(card, model)
        first = model.get_input_embeddings().num_embeddings
        encode = partial(_encode, tokenizer, source, first)
        prompts = encode(frame)
        adapter = lora(arguments, source)
        config = configure(GRPOConfig, arguments, reward_weights=weights)
        engine = rollouts.check(config)
        check_examples(tokenizer, model, prompts, examples, more=config.max_completion_length)
        if len(frame) * config.num_generations < config.generation_batch_size:
            raise UserError(
                f"{examples.path}: {len(frame)} prompts do not fill one batch of "
                f"{config.generation_batch_size // config.num_generations}; use more `examples` or a smaller "
                "per_device_train_batch_size in the RL recipe"
            )
        held_out, used = None, examples.hashes
        if arguments.recipe.get("validation"):
            config.num_generations_eval, config.per_device_eval_batch_size = 1, config.per_device_train_batch_size
            part = load_examples(arguments, data, VALIDATION)
            batch = config.per_device_eval_batch_size * config.world_size
            shown = part.frame.head(len(part.frame) // batch * batch)
            if shown.empty:
                raise UserError(
                    f"{part.path}: its {len(part.frame)} examples do not fill one batch of {batch}, and the reward on "
                    "validation is that of whole batches; use more `validation` examples in the task, a smaller "
                    "per_device_train_batch_size in the RL recipe, or validation: false"
                )
            asked = encode(shown)
            check_examples(tokenizer, model, asked, replace(part, frame=shown), more=config.max_completion_length)
            print(f"the reward on validation is that of {len(shown)} of {len(part.frame)} examples", flush=True)
            held_out = Dataset.from_dict({"prompt": asked, "answer": list(shown["answer"])})
            used = used | part.hashes
        if config.use_transformers_continuous_batching and (config.bf16 or config.fp16):
            raise UserError(
                "recipe: use_transformers_continuous_batching with bf16 or fp16 casts all weights to 16 bits, even "
                "those that are trained; expected false, or bf16: false and fp16: false"
            )
        if config.beta != 0.0 and adapter is None:
            _keep_reference(model, arguments.work / "reference")
        trainer = _Trainer(
            model=model,
            args=config,
            reward_funcs=functions,
            train_dataset=Dataset.from_dict({"prompt": prompts, "answer": list(frame["answer"])}),
            eval_dataset=held_out,
            processing_class=tokenizer,
            peft_config=adapter,
            source=source,
        )
        score_labelled_only(trainer, trainer.temperature)
        sampled = config.steps_per_generation * config.num_iterations  # micro-batches that share their completions
        run.train(
            trainer,
            data=used | inputs_file.hashes(inputs) | rewards.hashes(shares, card),
            save_multiple=sampled // math.gcd(sampled, config.gradient_accumulation_steps),
            engine=engine,
        )
        run.publish(lambda folder: inputs_file.write(folder, arguments.output, inputs), rollouts.measured)


def _encode(tokenizer: Any, source: SequenceSource, first: int, frame: pd.DataFrame) -> list[list[int]]:
    """The prompts of examples as token ids; feature rows are numbered from `first` on."""
    prompt, segments, ids = (list(frame[name]) for name in ("prompt", "segments", "id"))
    return encode_prompts(tokenizer, prompt, source, segments, first, ids)


class _Order(Sampler):
    """TRL's order of prompts, made a function of seed and epoch.

    `trl.trainer.utils.RepeatSampler` draws all epochs from one generator, so a run that resumes in its second epoch
    would see the order of the first.
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


class _Trainer(rollouts.Trainer):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.ref_model is not None:  # TRL has loaded it
            pretrained.number_positions(self.accelerator.unwrap_model(self.ref_model))

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        return _Order(super()._get_train_sampler(dataset))

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """TRL's, with random numbers of its own: training is the same with and without it."""
        with torch.random.fork_rng():
            torch.manual_seed(self.args.seed)
            return super().evaluate(*arguments, **options)


def _keep_reference(model: PreTrainedModel, folder: Path) -> None:
    """Make the parent the reference of the KL penalty in full fine-tuning.

    TRL loads the reference from the path in the model's config, which is the base of the lineage and not the parent.
    With LoRA this is not needed: the reference is the model without its adapter.
    """
    state = PartialState()
    if state.is_main_process:
        model.save_pretrained(folder)
    state.wait_for_everyone()
    model.config._name_or_path = str(folder)
