"""Continued pre-training: next-token loss on packed blocks of the corpora.

    cisterna cpt --parent results/models/nano/base/checkpoint --tokens results/tokens/nano/{dna,text} \
        --output results/models/nano/cpt-bio/checkpoint --work results/.work/... --recipe '{...}' --epochs 1

What it trains on: blocks of `block_size` tokens cut from the memory-mapped corpora, without padding; positions restart
at every document and attention stays inside it. The trainer is `transformers.Trainer`, its options the recipe's.
"""

from pathlib import Path
from typing import Any

import transformers
from torch.utils.data import ConcatDataset

from cisterna import models
from cisterna.artifacts import files
from cisterna.data.corpus import Blocks
from cisterna.sequences import tokenization
from cisterna.training.run import Job, Setup, configure, execute, parent_model, parent_of


def train(job: Job, corpora: list[Path]) -> None:
    """Train on all `corpora` (folders made by `cisterna tokenize`), mixed block by block, and publish."""

    def build(options: dict[str, Any]) -> Setup:
        block_size = int(job.recipe["block_size"])
        blocks: ConcatDataset = ConcatDataset([Blocks(folder, block_size) for folder in corpora])
        model = parent_model(job)
        if job.recipe.get("lora"):
            from peft import get_peft_model

            model = get_peft_model(model, models.lora_config(job.recipe["lora"]))
        trainer = transformers.Trainer(
            model=model,
            args=configure(transformers.TrainingArguments, options),
            train_dataset=blocks,
            data_collator=transformers.default_data_collator,
            processing_class=tokenization.load(models.base_of(parent_of(job))),
        )
        return Setup(
            trainer=trainer,
            data={folder.name: files.sha256(folder / "train.npy") for folder in corpora},
            tokens_per_epoch=len(blocks) * block_size,
        )

    execute(job, build)
