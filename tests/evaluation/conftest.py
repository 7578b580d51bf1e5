"""What the tests of evaluation start from. Read only."""

import pandas as pd
import pytest
import torch
from evaluations import DEEP, OPTIONS

from cisterna import models
from cisterna.evaluation import evaluate
from cisterna.scoring import answers
from cisterna.sequences import tokenization
from tiny import publish

STEPS = 60


@pytest.fixture(scope="session")
def trained(base, splice, tmp_path_factory):
    """A checkpoint that mostly, but not always, writes what can be parsed: the base after a few steps on the answers.

    Trained here by a plain loop, so that these tests depend on no trainer. Without it all outputs would be malformed.
    """
    tokens, model = tokenization.load(base), models.compose(base).train()
    frame = pd.read_parquet(splice / "train.parquet")
    rows = []
    for prompt, answer in zip(frame["prompt"], frame["answer"], strict=True):
        start = tokens(tokenization.expand(prompt), add_special_tokens=False)["input_ids"]
        text = answers.completion(prompt[-12:-7], answer) + tokens.eos_token
        end = tokens(text, add_special_tokens=False)["input_ids"]
        rows.append((start, end))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    width = max(len(start) + len(end) for start, end in rows)
    ids = torch.tensor([start + end + [tokens.pad_token_id] * (width - len(start) - len(end)) for start, end in rows])
    labels = torch.tensor([[-100] * len(a) + b + [-100] * (width - len(a) - len(b)) for a, b in rows])
    for _ in range(STEPS):
        loss = model(ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("trained") / "checkpoint"
    return publish(base, folder, model.eval().save_pretrained)


@pytest.fixture(scope="session")
def prompts(splice):
    """Prompts of very different lengths, in no order of length."""
    frame = pd.concat([pd.read_parquet(splice / f"{split}.parquet") for split in ("id", "ood")])
    found = [prompt[-(10 + 7 * (at % 9)) :] if at % 3 else prompt for at, prompt in enumerate(frame["prompt"])]
    return [
        prompt if prompt.count("<rna>") == prompt.count("</rna>") else prompt.replace("rna>", "") for prompt in found
    ]


@pytest.fixture(scope="session")
def evaluated(trained, splice, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluated") / "eval"
    return output, evaluate.evaluate(trained, splice, output, OPTIONS)


@pytest.fixture(scope="session")
def deep(trained, splice, tmp_path_factory):
    """An evaluation with samples and calibration: its folder and what it returned."""
    output = tmp_path_factory.mktemp("deep") / "eval"
    return output, evaluate.evaluate(trained, splice, output, DEEP)
