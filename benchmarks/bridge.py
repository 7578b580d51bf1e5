"""What feature rows cost: generation and a GRPO step with features in the prompts against the same with tokens.

    .venv/bin/python benchmarks/bridge.py --output benchmarks/RESULTS.md     # six minutes on one core

Prompts have the same length in both: with features, two thirds of each prompt are rows of a bank (width 64, float16),
which a linear bridge projects; with tokens there is no bridge. Models have random weights; completions have a fixed
length. Times are CPU seconds of one process; the two run alternately. benchmarks/README.md defines the columns.
"""

import argparse
import os
import random
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from cisterna import models
from cisterna.sequences import bridge, tokenization
from gpu import lora
from shared import LARGER, backbone, parser, publish, section, setting

MODELS: dict[str, dict[str, Any]] = {"nano": {}, "larger": LARGER}
WIDTH, BANK_ROWS = 64, 10_000
COLUMNS = "model, parameters, work, with tokens, with features, ratio".split(", ")


def main() -> None:
    arguments = parser("Time generation and GRPO steps with features and with tokens; compare.")
    arguments.add_argument("--groups", type=int, default=2, help="prompts of a batch")
    arguments.add_argument("--group-size", type=int, default=8, help="completions per prompt")
    arguments.add_argument("--prompt-length", type=int, default=64)
    arguments.add_argument("--completion-length", type=int, default=48)
    arguments.add_argument("--steps", type=int, default=4, help="of a run, timed after one that is not")
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS])
    options = arguments.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for title in options.models:
            base = Path(name) / title
            models.make_base(backbone(**MODELS[title])[1], base)
            size = sum(weight.numel() for weight in models.compose(base).parameters())
            for work, measure in (("generation", time_generation), ("GRPO step", time_step)):
                pairs = []
                for number in range(options.repeats):
                    folder = Path(name) / f"{title}-{number}"
                    pairs.append([measure(base, features, folder, options) for features in (False, True)])
                tokens, features = zip(*pairs, strict=True)
                ratio = median(mine / other for other, mine in pairs)
                seconds = [f"{median(values):.3f} s" for values in (tokens, features)]
                rows.append([title, f"{size / 1e6:.1f} M", work, *seconds, f"{ratio:.3f}"])
    batch = f"{options.groups} x {options.group_size} x ({options.prompt_length} + {options.completion_length})"
    about = f"{setting('torch', 'transformers', 'trl')}. A batch is {batch} tokens. CPU seconds: medians of "
    about += f"{options.repeats} alternating runs, each the median of {options.steps}."
    publish(section("bridge.py: what feature rows cost", about, COLUMNS, rows), options.output)


class Rows:
    """Features as a bank of one shard has them."""

    width = WIDTH

    def __init__(self) -> None:
        self.features = torch.randn(BANK_ROWS, WIDTH, generator=torch.Generator().manual_seed(0)).half()

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        return self.features[index]


def prepared(base: Path, features: bool, options: argparse.Namespace) -> tuple[Any, list[list[int]]]:
    """The model, and the token ids of one batch of prompts, with or without features."""
    torch.manual_seed(0)
    model = models.compose(base)
    draw, first = random.Random(0), model.get_input_embeddings().num_embeddings
    prompts = [[draw.randrange(300, first) for _ in range(options.prompt_length)] for _ in range(options.groups)]
    if features:
        bridge.attach(model, "linear", WIDTH)
        bridge.install(model, Rows())
        begin, end = options.prompt_length // 6, options.prompt_length - options.prompt_length // 6
        for prompt in prompts:
            row = draw.randrange(BANK_ROWS - end)
            prompt[begin:end] = range(first + row, first + row + end - begin)
    return model, prompts


def time_generation(base: Path, features: bool, folder: Path, options: argparse.Namespace) -> float:
    """CPU seconds of sampling the completions of a batch: median of some times."""
    model, prompts = prepared(base, features, options)
    ids = torch.tensor(prompts).repeat_interleave(options.group_size, dim=0)
    length = options.completion_length
    model.eval()
    seconds = []
    for _ in range(options.steps + 1):
        started = time.process_time()
        model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, min_new_tokens=length, max_new_tokens=length
        )
        seconds.append(time.process_time() - started)
    return median(seconds[1:])


class Clock(TrainerCallback):
    """CPU seconds of every optimizer step, with the sampling of its completions."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.process_time() - self.started)


def distinct_words(completions: list[str], **_: Any) -> list[float]:
    """A reward that differs between completions, so that every group of completions has a gradient."""
    return [float(len(set(text.split()))) for text in completions]


class Trainer(GRPOTrainer):
    """GRPOTrainer with prompts that are token ids already."""

    def _tokenize_prompts(self, prompts: list) -> tuple[list[list[int]], None, dict]:
        return prompts, None, {}


def time_step(base: Path, features: bool, folder: Path, options: argparse.Namespace) -> float:
    """CPU seconds of a step of GRPO, which trains an adapter and the bridge, if there is one: median of some steps."""
    model, prompts = prepared(base, features, options)
    clock = Clock()
    adapter = lora(8)
    if features:
        adapter.modules_to_save = ["bridge"]
    trainer = Trainer(
        model=model,
        args=GRPOConfig(
            output_dir=str(folder),
            num_generations=options.group_size,
            per_device_train_batch_size=options.groups * options.group_size,
            max_completion_length=options.completion_length,
            generation_kwargs={"min_new_tokens": options.completion_length},
            max_steps=options.steps + 1,
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            logging_steps=1000,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        reward_funcs=distinct_words,
        train_dataset=Dataset.from_dict({"prompt": prompts * (options.steps + 1)}),
        processing_class=tokenization.load(base),
        peft_config=adapter,
        callbacks=[clock],
    )
    trainer.train()
    return median(clock.seconds[1:])


if __name__ == "__main__":
    main()
