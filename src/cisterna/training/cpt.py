"""Continued pre-training: next-token loss on packed blocks of the corpora.

    cisterna cpt --parent results/models/nano/base/checkpoint --tokens results/tokens/nano/{dna,text} \
        --output results/models/nano/cpt-bio/checkpoint --work results/.work/... --recipe '{...}' --epochs 1

What it trains on: blocks of `block_size` tokens cut from the memory-mapped corpora, without padding; positions restart
at every document and attention stays inside it. The trainer is `transformers.Trainer`, its options the recipe's.
"""

from pathlib import Path

import transformers
from peft import get_peft_model
from torch.utils.data import ConcatDataset

from cisterna import pretrained
from cisterna.artifacts import files
from cisterna.data.blocks import Blocks
from cisterna.sequences import conventions
from cisterna.training.run import open_run
from cisterna.training.stage import StageArguments, configure, load_parent, lora


def train(arguments: StageArguments, corpora: list[Path]) -> None:
    """Train on all `corpora` (folders made by `cisterna tokenize`), mixed block by block, and publish."""
    with open_run(arguments) as run:
        block_size = int(arguments.recipe["block_size"])
        blocks: ConcatDataset = ConcatDataset([Blocks(folder, block_size) for folder in corpora])
        tokenizer, model = load_parent(arguments)
        conventions.check_positions(model, [block_size], ["a block"], 0, "recipe", "Lower block_size")
        pretrained.check_documents(model)
        adapter = lora(arguments)
        trainer = transformers.Trainer(
            model=get_peft_model(model, adapter) if adapter else model,
            args=configure(transformers.TrainingArguments, arguments),
            train_dataset=blocks,
            data_collator=transformers.default_data_collator,
            processing_class=tokenizer,
        )
        run.train(
            trainer,
            data={folder.name: files.sha256(folder / "train.npy") for folder in corpora},
            tokens_per_epoch=len(blocks) * block_size,
        )
        run.publish()
