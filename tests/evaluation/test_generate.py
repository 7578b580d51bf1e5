"""Outputs depend on the prompt, the seed and the number of the batch, and are read strictly."""

import random

import pandas as pd
import torch
from evaluations import DEEP, LABELS, OPTIONS, ask

from cisterna import models
from cisterna.evaluation import generate
from cisterna.scoring import answers
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
