"""Perplexity is exp of the mean loss per token, each document by itself."""

import itertools
import math
import random

import numpy as np
import pytest
import torch

from cisterna import models
from cisterna.artifacts import files
from cisterna.data.blocks import Blocks
from cisterna.data.tokenized import tokenize_corpus
from cisterna.evaluation.perplexity import perplexity
from cisterna.sequences import tokenization
from tiny import publish


@pytest.fixture(scope="module")
def dna(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    draw = random.Random(2)
    records = (f">{at}\n{''.join(draw.choices('ACGT', k=draw.randint(10, 50)))}\n" for at in range(400))
    (folder / "dna.fasta").write_text("".join(records))
    tokenize_corpus(folder / "dna.fasta", "dna", base, folder / "dna")
    return folder / "dna"


def test_a_model_that_knows_nothing_has_the_vocabularys_size_as_perplexity(base, dna, tmp_path):
    model = models.compose(base)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    blind = publish(base, tmp_path / "blind", model.save_pretrained)
    found = perplexity(blind, [dna], tmp_path / "perplexity.json", 64)["dna"]
    vocabulary = len(tokenization.load(base))
    assert found["value"] == pytest.approx(vocabulary, rel=1e-5)
    assert found["low"] == pytest.approx(vocabulary, rel=1e-5)
    assert found["high"] == pytest.approx(vocabulary, rel=1e-5)


def test_perplexity_is_of_each_document_by_itself(base, dna, tmp_path):
    model, blocks = models.compose(base), Blocks(dna, 64, part="heldout")
    total, count = 0.0, 0
    for index in range(len(blocks)):
        ids = torch.from_numpy(blocks[index]["input_ids"])
        bounds = [*np.flatnonzero(blocks[index]["position_ids"] == 0).tolist(), 64]
        for begin, end in itertools.pairwise(bounds):
            with torch.inference_mode():
                logits = model(ids[None, begin:end]).logits[0, :-1]
            total += torch.nn.functional.cross_entropy(logits, ids[begin + 1 : end], reduction="sum").item()
            count += end - begin - 1
    found = perplexity(base, [dna], tmp_path / "perplexity.json", 64)["dna"]
    assert found["n"] == count
    assert found["value"] == pytest.approx(math.exp(total / count), rel=1e-6)
    assert found["low"] < found["value"] < found["high"]
    assert files.read_json(tmp_path / "perplexity.json") == {"dna": found}
