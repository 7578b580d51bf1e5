"""An encoder made here: masked language modelling on sequences.

    cisterna encoder --spec '{"architecture": {...}, "training": {...}}' --corpora '{"dna": {...}, ...}' \
        --work results/.work/encoders/nano-esm --output results/encoders/nano-esm/checkpoint

Every sequence stands between the tags of its modality and is cut into pieces of `block_size` residues; one encoder
reads DNA, RNA and protein, since each has residue tokens of its own. The trainer is `transformers.Trainer` with the
library's masking collator. The checkpoint also says how good the encoder is: `masked.json` has, for each corpus, the
perplexity of masked residues in held-out documents, and beside it that of guessing by their frequency.
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
from cisterna.training.run import Job, Setup, configure, execute

BATCH = 4096  # residues of a batch when perplexity is measured


def train(spec: Mapping[str, Any], corpora: Mapping[str, Mapping[str, Any]], work: Path, output: Path) -> None:
    """Train the encoder of `spec` on `corpora` (name -> its entry in the config) and publish it at `output`."""
    recipe = dict(spec["training"])
    job = Job(
        kind="encoder",
        parent=None,
        output=output,
        work=work,
        recipe=recipe | {"architecture": dict(spec["architecture"])},
        seed=int(recipe["seed"]),
        epochs=float(recipe["num_train_epochs"]),
    )
    masking = float(recipe["mlm_probability"])

    def build(options: dict[str, Any]) -> Setup:
        options.pop("architecture")
        tokens = tokenization.build_for_encoder()
        model = make(spec["architecture"], tokens)
        limit = position_limit(model)
        if limit is not None and recipe["block_size"] + 2 > limit:
            raise UserError(
                f"encoder training: block_size {recipe['block_size']} and two tags do not fit the {limit} positions of "
                "the architecture; make block_size smaller, or max_position_embeddings larger"
            )
        pieces = {
            name: read(tokens, Path(entry["file"]), entry["modality"], recipe["block_size"], entry)
            for name, entry in corpora.items()
        }
        training = [piece for parts, _ in pieces.values() for piece in parts]
        trainer = transformers.Trainer(
            model=model,
            args=configure(transformers.TrainingArguments, options),
            train_dataset=[{"input_ids": piece} for piece in training],
            data_collator=_Masking(tokens, mlm_probability=masking, seed=job.seed),
            processing_class=tokens,
        )

        def beside(folder: Path) -> None:
            tokens.save_pretrained(folder)
            measured = {name: masked_perplexity(folder, tokens, *parts, masking) for name, parts in pieces.items()}
            files.write_json(folder / "masked.json", measured)
            for name, found in measured.items():
                print(
                    f"{name}: perplexity of masked residues {found['perplexity']:.2f}, by frequency "
                    f"{found['frequency']:.2f}, n {found['n']}",
                    flush=True,
                )

        return Setup(
            trainer=trainer,
            data={name: files.sha256(Path(entry["file"])) for name, entry in corpora.items()},
            tokens_per_epoch=sum(map(len, training)),
            beside=beside,
        )

    execute(job, build)


class _Masking(DataCollatorForLanguageModeling):
    """The library's masks, drawn from a hash of the batch.

    Batches are read ahead of the step that is saved, so draws from one stream would differ in a run that resumes.
    """

    def torch_mask_tokens(self, inputs: torch.Tensor, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        digest = hashlib.sha256(str(self.seed).encode() + inputs.numpy().tobytes()).digest()
        self.generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
        return super().torch_mask_tokens(inputs, **options)


def make(architecture: Mapping[str, Any], tokens: Any) -> Any:
    """A masked language model with random weights. UserError for an architecture that cannot be built."""
    ids = {"pad_token_id": tokens.pad_token_id, "mask_token_id": tokens.mask_token_id}
    model = models.untrained("encoder", AutoModelForMaskedLM, architecture, tokens, **ids)
    # Else ESM's weights are saved under the names of an older release, which its own state does not have.
    model.save_pretrained = partial(model.save_pretrained, save_original_format=False)
    return model


def read(
    tokens: Any, path: Path, modality: str, size: int, options: Mapping[str, Any] | None = None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Pieces of at most `size` residues of a corpus, between tags: those to train on, and held-out ones.

    `options` as in `cisterna.data.corpus.chosen`.
    """
    opening, closing = tokens.convert_tokens_to_ids([f"<{modality}>", f"</{modality}>"])
    training: list[np.ndarray] = []
    heldout: list[np.ndarray] = []
    for number, document, is_heldout in corpus.chosen(path, modality, options or {}):
        try:
            ids = tokenization.residue_ids(tokens, document.encode(), modality)
        except UserError as error:
            raise UserError(f"{path}, record {number}: {error}") from None
        kept = heldout if is_heldout else training
        for begin in range(0, len(ids), size):
            kept.append(np.concatenate([[opening], ids[begin : begin + size], [closing]]))
    if not training or not heldout:
        raise UserError(f"{path}: no document falls into the {'held-out' if training else 'training'} part")
    return training, heldout


def masked_perplexity(
    folder: Path, tokens: Any, training: list[np.ndarray], heldout: list[np.ndarray], masking: float
) -> dict[str, float]:
    """Perplexity of masked residues of `heldout` under the weights in `folder`, and by their frequency in `training`.

    A share `masking` of the residues, at least one of a batch, is hidden: drawn from seed 0, behind the mask token.
    """
    model = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(folder))
    weights.load_full(model, folder)
    model.eval()
    counts = np.bincount(np.concatenate([piece[1:-1] for piece in training]), minlength=len(tokens)) + 1.0
    frequency = np.log(counts / counts.sum())
    random = np.random.default_rng(0)
    loss, guess, n = 0.0, 0.0, 0
    for batch in batches([len(piece) for piece in heldout], BATCH):
        ids = tokens.pad({"input_ids": [heldout[index] for index in batch]}, return_tensors="pt", padding=True)
        draws = torch.from_numpy(random.random(ids["input_ids"].shape))
        draws = draws.masked_fill(torch.isin(ids["input_ids"], torch.tensor(tokens.all_special_ids)), 1.0)
        hidden = draws <= max(masking, float(draws.min()))
        labels = ids["input_ids"][hidden]
        ids["input_ids"] = ids["input_ids"].masked_fill(hidden, tokens.mask_token_id)
        with torch.inference_mode():
            logits = model(**ids).logits[hidden]
        loss += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        guess -= frequency[labels.numpy()].sum()
        n += len(labels)
    return {"perplexity": math.exp(loss / n), "frequency": math.exp(guess / n), "n": n}
