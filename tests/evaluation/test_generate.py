"""Outputs depend on prompt, seed and number of the batch; they are read strictly; labels have their probabilities."""

import math
import random

import numpy as np
import pandas as pd
import pytest
import torch
from evaluations import CPU, DEEP, LABELS, OPTIONS, ask

from cisterna import models
from cisterna.artifacts import files
from cisterna.evaluation import evaluate, generate
from cisterna.scoring import answers, metrics
from cisterna.scoring.answers import Labels
from cisterna.sequences import tokenization


def test_predictions_do_not_depend_on_batch_size_or_order(trained, prompts):
    model, tokens = models.compose(trained), tokenization.load(models.base_of(trained))
    assert len({len(prompt) for prompt in prompts}) > 5

    def predict(texts, size):
        return ask(model, tokens, texts, OPTIONS | {"batch_size": size})

    alone = predict(prompts, 1)
    assert alone["finished"].any()
    for size in (3, 200):
        pd.testing.assert_frame_equal(predict(prompts, size), alone)
    order = random.Random(3).sample(range(len(prompts)), len(prompts))
    shuffled = predict([prompts[at] for at in order], 5)
    pd.testing.assert_frame_equal(shuffled, alone.iloc[order].reset_index(drop=True))


def test_an_output_that_was_cut_is_never_well_formed(trained, prompts):
    model, tokens = models.compose(trained), tokenization.load(models.base_of(trained))
    whole = ask(model, tokens, prompts, OPTIONS)
    chosen = whole[whole["well_formed"]].iloc[0]
    for length in range(1, int(chosen["tokens"]) + 1):
        options = OPTIONS | {"max_new_tokens": length}
        cut = ask(model, tokens, [prompts[chosen.name]], options).iloc[0]
        assert cut["finished"] == cut["well_formed"] == (length == chosen["tokens"])
        assert cut["tokens"] == length
        assert (cut["predicted"] == chosen["predicted"]) == (length == chosen["tokens"])
    # One token short, the text already reads as an answer; only the end-of-text token is missing.
    options = OPTIONS | {"max_new_tokens": int(chosen["tokens"]) - 1}
    cut = ask(model, tokens, [prompts[chosen.name]], options).iloc[0]
    assert answers.parse(cut["output"], LABELS) == chosen["predicted"]


def test_sampling_depends_on_the_seed_alone(trained, prompts):
    model, tokens = models.compose(trained), tokenization.load(models.base_of(trained))

    def sample(seed):
        options = OPTIONS | {"do_sample": True, "temperature": 1.5, "seed": seed}
        return ask(model, tokens, prompts[:8], options)

    first, second, other = sample(0), sample(0), sample(1)
    pd.testing.assert_frame_equal(first, second)
    assert not first["output"].equals(other["output"])


def test_what_is_sampled_depends_on_the_number_of_the_batch(trained, prompts):
    """Two batches of the same prompts are not the same draws."""
    model, tokens = models.compose(trained), tokenization.load(models.base_of(trained))
    options = OPTIONS | {"do_sample": True, "temperature": 1.5, "batch_size": 4}
    found = ask(model, tokens, prompts[:1] * 8, options)["output"].tolist()
    assert found[:4] != found[4:]


def test_samples_depend_on_seed_temperature_and_number_alone(trained, prompts):
    loaded = generate.load(trained)
    ids = loaded.encode(pd.DataFrame({"prompt": prompts, "segments": [[]] * len(prompts)}))

    def answers_of(options, sample=0):
        outputs = generate.generate(loaded, ids, options, sample=sample)
        return generate.read(loaded, outputs, Labels(LABELS).parse)["predicted"].tolist()

    def sampled(number, **changed):
        return answers_of(generate.sampling(DEEP | changed), number)

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)
    assert sampled(1) != sampled(1, seed=1)
    assert sampled(1, sample_temperature=1e-4) == answers_of(OPTIONS)  # without temperature: the greedy answer


def test_samples_are_drawn_from_the_whole_distribution_whatever_the_models_own_settings(trained, prompts):
    model, tokens = models.compose(trained), tokenization.load(models.base_of(trained))
    options = generate.sampling(OPTIONS | {"sample_temperature": 50.0})
    free = ask(model, tokens, prompts[:8], options)
    model.generation_config.update(do_sample=True, top_k=1, top_p=0.1, temperature=0.1)
    pd.testing.assert_frame_equal(ask(model, tokens, prompts[:8], options), free)
    assert free["output"].nunique() == 8


def test_letters_of_residue_tokens_are_not_an_answer(base):
    """The residue A is not the text A, also where A is a label."""
    tokens = tokenization.load(base)
    outputs = ["<think></think>Answer: A", "<think></think>Answer: <|rna:A|>", "<think></think>Answer: <rna>A</rna>"]

    class Model:
        """It writes the outputs above, one a prompt."""

        def get_input_embeddings(self):
            return torch.nn.Embedding(1, 1)

        def generate(self, input_ids, **options):
            rows = tokens([text + tokens.eos_token for text in outputs], add_special_tokens=False, padding=True)
            return torch.cat([input_ids, torch.tensor(rows["input_ids"]).roll(0)], dim=1)

    tokens.padding_side = "right"
    found = ask(Model(), tokens, ["?"] * 3, OPTIONS, ("A", "U"))
    assert [value if isinstance(value, str) else None for value in found["predicted"]] == ["A", None, None]


# --- Probabilities of labels ---


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
        expected = metrics.score_probabilities(found["answer"].tolist(), predicted, logs, labels, resamples=200)
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
    np.testing.assert_allclose(found["confidence"], metrics.confidences(predicted, logs, labels), atol=1e-5)


def test_labels_of_several_and_of_one_token_that_begin_with_each_other_have_their_own_probabilities(trained):
    """`high` is not also `higher`: the end of the text counts."""
    model, tokens = models.compose(trained), tokenization.load(models.base_of(trained))
    labels = ["spliced", "spliced in part", "x"]
    row = tokens("<think>a</think>Answer: x<|endoftext|>", add_special_tokens=False)["input_ids"]
    loaded, prompts = generate.LoadedModel(model, tokens, CPU), [[5, 6, 7], [8, 9]]
    found = generate.label_logs(loaded, prompts, [row, row[:2]], labels)
    start = [5, 6, 7, *row[: row.index(tokens.convert_tokens_to_ids("</think>")) + 1]]
    expected = []
    for label in labels:
        end = tokens(f"Answer: {label}<|endoftext|>", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logits = model(torch.tensor([start + end])).logits[0].log_softmax(dim=-1)
        expected.append(sum(logits[len(start) + at - 1, token].item() for at, token in enumerate(end)))
    np.testing.assert_allclose(found[0] - found[0][0], np.array(expected) - expected[0], atol=1e-4)
    assert np.isnan(found[1]).all()
    alone = generate.label_logs(loaded, prompts, [row, row], labels[:1])
    assert np.isfinite(alone).all()  # of a single label even the last token is one with which all begin


def test_model_that_never_ends_its_reasoning_has_calibration_of_no_examples(base, splice, tmp_path):
    scores = evaluate.evaluate(base, splice, tmp_path / "eval", OPTIONS | {"max_new_tokens": 4, "calibration": True})
    for split in ("id", "ood"):
        assert scores[split]["ece"] == {"value": None, "low": None, "high": None, "n": 0}
        assert pd.read_parquet(tmp_path / "eval" / f"{split}.parquet")["confidence"].isna().all()
