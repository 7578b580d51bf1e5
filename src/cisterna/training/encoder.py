"""An encoder made here: masked language modelling on sequences.

    cisterna encoder --spec '{"architecture": {...}, "training": {...}}' --corpora '{"dna": {...}, ...}' \
        --work results/.work/encoders/nano-esm --output results/encoders/nano-esm/checkpoint

Every sequence is cut into pieces of `block_size` residues, each between the tags of its modality. One encoder reads
DNA, RNA and protein, since each has residue tokens of its own. The trainer is `transformers.Trainer` with the library's
masking collator. The checkpoint also shows how good the encoder is: `masked.json` has, for each corpus, the perplexity
of masked residues in held-out documents, and that of guessing them by their frequency.
"""

import hashlib
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForMaskedLM, DataCollatorForLanguageModeling

from cisterna import models
from cisterna.artifacts import files, weights
from cisterna.data import corpus
from cisterna.errors import UserError
from cisterna.sequences import tokenization
from cisterna.sequences.encoders import batches
from cisterna.sequences.encoders.huggingface import position_limit
from cisterna.training.run import open_run
from cisterna.training.stage import StageArguments, configure

BATCH = 4096  # residues of a batch when perplexity is measured


def train(spec: Mapping[str, Any], corpora: Mapping[str, Mapping[str, Any]], work: Path, output: Path) -> None:
    """Train the encoder of `spec` on `corpora` (name -> its entry in the config) and publish it at `output`."""
    recipe = dict(spec["training"])
    arguments = StageArguments(
        kind="encoder",
        parent=None,
        output=output,
        work=work,
        recipe=recipe | {"architecture": dict(spec["architecture"])},
        seed=int(recipe["seed"]),
        epochs=float(recipe["num_train_epochs"]),
    )
    block_size, share = recipe["block_size"], float(recipe["mlm_probability"])
    with open_run(arguments) as run:
        tokenizer = tokenization.build_for_encoder()
        model = make(spec["architecture"], tokenizer)
        limit = position_limit(model)
        if limit is not None and block_size + 2 > limit:
            raise UserError(
                f"encoder training: block_size {block_size} and two tags do not fit the {limit} positions of the "
                "architecture; make block_size smaller, or max_position_embeddings larger"
            )
        pieces = {
            name: read(tokenizer, files.locate(entry["file"]), entry["modality"], block_size, entry)
            for name, entry in corpora.items()
        }
        training = [piece for parts, _ in pieces.values() for piece in parts]
        trainer = transformers.Trainer(
            model=model,
            args=configure(transformers.TrainingArguments, arguments),
            train_dataset=[{"input_ids": piece} for piece in training],
            data_collator=_Masking(tokenizer, mlm_probability=share, seed=arguments.seed),
            processing_class=tokenizer,
        )
        run.train(
            trainer,
            data={name: files.sha256(files.locate(entry["file"])) for name, entry in corpora.items()},
            tokens_per_epoch=sum(map(len, training)),
        )

        def write_extra(folder: Path) -> None:
            tokenizer.save_pretrained(folder)
            measured = {name: masked_perplexity(folder, tokenizer, *parts, share) for name, parts in pieces.items()}
            files.write_json(folder / "masked.json", measured)
            line = "{}: perplexity of masked residues {perplexity:.2f}, by frequency {frequency:.2f}, n {n}"
            for name, numbers in measured.items():
                print(line.format(name, **numbers), flush=True)

        run.publish(write_extra)


class _Masking(DataCollatorForLanguageModeling):
    """The library's masks, with random numbers that are seeded by a hash of the batch.

    Batches are read ahead of the step that is saved, so with one random stream a run that resumes would draw others.
    """

    def torch_mask_tokens(self, inputs: torch.Tensor, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        digest = hashlib.sha256(str(self.seed).encode() + inputs.numpy().tobytes()).digest()
        self.generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
        return super().torch_mask_tokens(inputs, **options)


def make(architecture: Mapping[str, Any], tokenizer: Any) -> Any:
    """A masked language model with random weights. UserError for an architecture that cannot be built."""
    ids = {"pad_token_id": tokenizer.pad_token_id, "mask_token_id": tokenizer.mask_token_id}
    model = models.untrained("encoder", AutoModelForMaskedLM, architecture, tokenizer, **ids)
    # By default the weights of ESM are saved under the names of an older release, which its own state does not have.
    model.save_pretrained = partial(model.save_pretrained, save_original_format=False)
    return model


def read(
    tokenizer: Any, path: Path, modality: str, size: int, options: Mapping[str, Any] | None = None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Pieces of at most `size` residues of a corpus, between tags: those to train on, and held-out ones.

    `options` as in `cisterna.data.corpus.select_documents`.
    """
    opening, closing = tokenizer.convert_tokens_to_ids([f"<{modality}>", f"</{modality}>"])
    table = tokenization.residue_table(tokenizer, modality)
    training: list[np.ndarray] = []
    heldout: list[np.ndarray] = []
    for _, document, is_heldout in corpus.select_documents(path, modality, options or {}):
        ids = tokenization.residue_ids(table, document.encode(), modality)
        kept = heldout if is_heldout else training
        for begin in range(0, len(ids), size):
            kept.append(np.concatenate([[opening], ids[begin : begin + size], [closing]]))
    if not training or not heldout:
        raise UserError(f"{path}: no document falls into the {'held-out' if training else 'training'} part")
    return training, heldout


def masked_perplexity(
    folder: Path, tokenizer: Any, training: list[np.ndarray], heldout: list[np.ndarray], share: float
) -> dict[str, float]:
    """Perplexity of masked residues of `heldout` under the weights in `folder`, and by their frequency in `training`.

    A `share` of the residues, at least one in each batch, is replaced with the mask token; drawn with seed 0.
    """
    model = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(folder))
    weights.load_full(model, folder)
    model.eval()
    counts = np.bincount(np.concatenate([piece[1:-1] for piece in training]), minlength=len(tokenizer)) + 1.0
    frequency = np.log(counts / counts.sum())
    random = np.random.default_rng(0)
    loss, guess, n = 0.0, 0.0, 0
    for batch in batches([len(piece) for piece in heldout], BATCH):
        ids = tokenizer.pad({"input_ids": [heldout[index] for index in batch]}, return_tensors="pt", padding=True)
        draws = torch.from_numpy(random.random(ids["input_ids"].shape))
        draws = draws.masked_fill(torch.isin(ids["input_ids"], torch.tensor(tokenizer.all_special_ids)), 1.0)
        hidden = draws <= max(share, float(draws.min()))
        labels = ids["input_ids"][hidden]
        ids["input_ids"] = ids["input_ids"].masked_fill(hidden, tokenizer.mask_token_id)
        with torch.inference_mode():
            logits = model(**ids).logits[hidden]
        loss += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        guess -= frequency[labels.numpy()].sum()
        n += len(labels)
    return {"perplexity": math.exp(loss / n), "frequency": math.exp(guess / n), "n": n}
