"""Perplexity of a base or CPT checkpoint on the held-out part of corpora."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cisterna import pretrained
from cisterna.artifacts import files
from cisterna.data.blocks import Blocks
from cisterna.evaluation.generate import load_on_device
from cisterna.scoring import bootstrap
from cisterna.sequences import conventions

BATCH = 16  # blocks


def perplexity(folder: Path, corpora: Sequence[Path], output: Path, block_size: int) -> dict[str, Any]:
    """Perplexity on each corpus: exp of the mean loss per predicted token. Writes JSON to `output` and returns it.

    Corpus -> value, low and high (95%, bootstrap over blocks of `block_size` tokens), n (predicted tokens).
    """
    model, device = load_on_device(folder)
    conventions.check_positions(model, [block_size], ["a block"], 0, str(folder), "Lower block_size")
    pretrained.check_documents(model)
    results = {}
    for corpus in corpora:
        blocks = Blocks(corpus, block_size, part="heldout")
        sums, counts = [], []
        for begin in range(0, len(blocks), BATCH):
            items = [blocks[index] for index in range(begin, min(begin + BATCH, len(blocks)))]
            batch = {key: torch.from_numpy(np.stack([item[key] for item in items])).to(device) for key in items[0]}
            with torch.inference_mode():  # with a cache, transformers would not keep attention inside the documents
                answer = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
            labels = batch["labels"][:, 1:]
            loss = torch.nn.functional.cross_entropy(
                answer.logits.float()[:, :-1].transpose(1, 2), labels, reduction="none", ignore_index=-100
            )
            sums.append(loss.sum(dim=1).double().cpu().numpy())
            counts.append((labels != -100).sum(dim=1).cpu().numpy())
        total, count = np.concatenate(sums), np.concatenate(counts)
        value = math.exp(total.sum() / count.sum())
        low, high = np.exp(bootstrap.ratio(total, count))
        results[corpus.name] = {"value": value, "low": float(low), "high": float(high), "n": int(count.sum())}
        print(f"{corpus.name}: perplexity {value:.2f} over {count.sum()} tokens", flush=True)
    files.write_json(output, results)
    return results
