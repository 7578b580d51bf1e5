"""Probabilities of labels are those of one pass for each output and label."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from evaluations import CPU, OPTIONS

from cisterna import models
from cisterna.artifacts import files
from cisterna.evaluation import evaluate, generate
from cisterna.evaluation.label_scores import label_logs
from cisterna.scoring import calibration
from cisterna.sequences import tokenization


def one_by_one(folder, frame, labels, bank=None):
    """Log-probability of each label after the reasoning of each output: a pass an output and label, nothing padded."""
    loaded = generate.load(folder, bank)
    tokens, model, prompts = loaded.tokenizer, loaded.model, loaded.encode(frame)
    found = []
    for prompt, output in zip(prompts, frame["output"], strict=True):
        reasoning, closed, _ = output.rpartition("</think>")
        logs = []
        for label in labels if closed else ():
            spelled = tokenization.expand(f"{reasoning}</think>")
            start = prompt + tokens(spelled, add_special_tokens=False)["input_ids"]
            end = tokens(f"Answer: {label}<|endoftext|>", add_special_tokens=False)["input_ids"]
            with torch.inference_mode():
                logits = model(torch.tensor([start + end])).logits[0].log_softmax(dim=-1)
            logs.append(sum(logits[len(start) + at - 1, token].item() for at, token in enumerate(end)))
        found.append(logs or [math.nan] * len(labels))
    return np.array(found)


def test_confidence_is_the_share_of_the_answer_in_the_probabilities_of_all_labels(trained, deep, splice):
    labels = files.read_json(splice / "card.json")["labels"]
    for split in ("id", "ood"):
        found = pd.read_parquet(deep[0] / f"{split}.parquet")
        logs = one_by_one(trained, found.assign(segments=[[]] * len(found)), labels)
        for row, given in zip(found.itertuples(), np.exp(logs), strict=True):
            if not row.well_formed:
                assert math.isnan(row.confidence)
                continue
            assert row.confidence == pytest.approx(given[labels.index(row.predicted)] / given.sum(), abs=1e-5)
            assert given.sum() <= 1.0
            assert row.confidence == pytest.approx(max(given) / given.sum(), abs=1e-5)  # greedy: the likeliest
        predicted = [value if isinstance(value, str) else None for value in found["predicted"]]
        expected = calibration.score(found["answer"].tolist(), predicted, logs, labels, resamples=200)
        for name, summary in expected.items():
            assert deep[1][split][name] == pytest.approx(summary, abs=1e-5)
        assert deep[1][split]["ece"]["n"] == found["well_formed"].sum()


def test_confidence_of_a_model_that_reads_features_is_that_of_its_features(featured, splice, bank, tmp_path):
    labels = files.read_json(splice / "card.json")["labels"]
    evaluate.evaluate(
        featured.output, splice, tmp_path / "eval", OPTIONS | {"max_new_tokens": 64, "calibration": True}, bank=bank
    )
    found = pd.read_parquet(tmp_path / "eval" / "id.parquet")
    segments = pd.read_parquet(splice / "id.parquet")["segments"]
    logs = one_by_one(featured.output, found.assign(segments=segments), labels, bank)
    predicted = [value if isinstance(value, str) else None for value in found["predicted"]]
    assert found["well_formed"].sum() > 0
    np.testing.assert_allclose(found["confidence"], calibration.confidences(predicted, logs, labels), atol=1e-5)


def test_labels_of_several_and_of_one_token_that_begin_with_each_other_have_their_own_probabilities(trained):
    """`high` is not also `higher`: the end of the text counts."""
    model, tokens = models.compose(trained), tokenization.load(models.base_of(trained))
    labels = ["spliced", "spliced in part", "x"]
    row = tokens("<think>a</think>Answer: x<|endoftext|>", add_special_tokens=False)["input_ids"]
    loaded, prompts = generate.LoadedModel(model, tokens, CPU), [[5, 6, 7], [8, 9]]
    found = label_logs(loaded, prompts, [row, row[:2]], labels)
    start = [5, 6, 7, *row[: row.index(tokens.convert_tokens_to_ids("</think>")) + 1]]
    expected = []
    for label in labels:
        end = tokens(f"Answer: {label}<|endoftext|>", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logits = model(torch.tensor([start + end])).logits[0].log_softmax(dim=-1)
        expected.append(sum(logits[len(start) + at - 1, token].item() for at, token in enumerate(end)))
    np.testing.assert_allclose(found[0] - found[0][0], np.array(expected) - expected[0], atol=1e-4)
    assert np.isnan(found[1]).all()
    alone = label_logs(loaded, prompts, [row, row], labels[:1])
    assert np.isfinite(alone).all()  # of a single label even the last token is one with which all begin


def test_model_that_never_ends_its_reasoning_has_calibration_of_no_examples(base, splice, tmp_path):
    scores = evaluate.evaluate(base, splice, tmp_path / "eval", OPTIONS | {"max_new_tokens": 4, "calibration": True})
    for split in ("id", "ood"):
        assert scores[split]["ece"] == {"value": None, "low": None, "high": None, "n": 0}
        assert pd.read_parquet(tmp_path / "eval" / f"{split}.parquet")["confidence"].isna().all()
