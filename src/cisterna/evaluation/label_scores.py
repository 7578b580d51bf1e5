"""The probability of each label as the answer, after the model's own reasoning: what calibration is computed from.

Not for sets of terms, which cannot be listed.
"""

import copy
import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from cisterna.evaluation.generate import LoadedModel, OnBatch, saved_batch
from cisterna.scoring import answers
from cisterna.sequences import tokenization

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 32  # outputs at a time: more are no faster, and on a CPU a fifth slower (measured)


def label_logs(
    loaded: LoadedModel,
    prompts: Sequence[list[int]],
    outputs: Sequence[list[int]],
    labels: Sequence[str],
    saved: Path | None = None,
    on_batch: OnBatch | None = None,
) -> NDArray[np.float64]:
    """Log-probability of each label after the reasoning in each output, up to a constant a row: (prompts, labels).

    It is that of the tokens of `Answer: LABEL` and the end-of-text token, as in SFT, after the prompt and the output up
    to its last `</think>`. The tokens with which all labels begin are left out, which makes the constant. NaN where an
    output has no `</think>`: without the end of the reasoning there is no answer to score.
    """
    end = loaded.tokenizer.convert_tokens_to_ids(answers.END_THINK)
    reasoned: dict[int, list[int]] = {}
    for index, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        written = loaded.before_end(output)
        if end in written:
            reasoned[index] = prompt + written[: len(written) - written[::-1].index(end)]
    endings = _endings(loaded.tokenizer, labels)
    same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*endings, strict=False))
    shared = [column[0] for column in same][: min(map(len, endings)) - 1]
    different = [ending[len(shared) :] for ending in endings]
    logs = np.full((len(outputs), len(labels)), np.nan)
    order = sorted(reasoned, key=lambda index: -len(reasoned[index]))
    for number, begin in enumerate(range(0, len(order), BATCH)):
        batch = order[begin : begin + BATCH]
        starts = [reasoned[index] + shared for index in batch]
        logs[batch] = saved_batch(saved, number, partial(_continuation_logs, loaded, starts, different))
        if on_batch:
            on_batch(0)
    return logs


def _endings(tokenizer: "PreTrainedTokenizerBase", labels: Sequence[str]) -> list[list[int]]:
    """The token ids after `</think>` of an output that answers each label, as SFT tokenizes them."""
    escaped = tokenization.escape(tokenizer, list(labels))
    texts = [tokenization.expand(answers.completion("", label) + tokenizer.eos_token) for label in escaped]
    end = tokenizer.convert_tokens_to_ids(answers.END_THINK)
    return [ids[ids.index(end) + 1 :] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def _continuation_logs(loaded: LoadedModel, starts: list[list[int]], endings: Sequence[list[int]]) -> list[list[float]]:
    """Log-probability of each of the `endings` after each of the `starts`, both token ids: a row a start.

    The starts are read once; each ending is read with a copy of the model's cache of them.
    """
    model = loaded.model
    batch = loaded.tokenizer.pad({"input_ids": starts}, return_tensors="pt").to(loaded.device)
    mask = batch["attention_mask"]
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    last = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}
    columns = []
    with torch.inference_mode():
        begun = model(input_ids=batch["input_ids"], attention_mask=mask, position_ids=positions, use_cache=True, **last)
        first = begun.logits[:, -1].float().log_softmax(dim=-1)
        for ending in endings:
            total = first[:, ending[0]].double()
            ids = torch.tensor(ending, device=loaded.device).expand(len(starts), -1)
            if len(ending) > 1:
                steps = torch.arange(1, len(ending), device=loaded.device)
                read = model(
                    input_ids=ids[:, :-1],
                    attention_mask=torch.cat([mask, mask.new_ones(len(starts), len(steps))], dim=1),
                    position_ids=positions[:, -1:] + steps,
                    past_key_values=copy.deepcopy(begun.past_key_values),
                    use_cache=True,
                )
                logs = read.logits.float().log_softmax(dim=-1)
                total = total + logs.gather(2, ids[:, 1:, None]).double().sum(dim=(1, 2))
            columns.append(total)
    return torch.stack(columns, dim=1).tolist()
