"""vLLM answers as transformers does: tokens and features, one checkpoint after another in the same engine."""

import itertools

import pytest
import torch
from peft import get_peft_model
from transformers import GenerationConfig

from cisterna import models, updates
from cisterna.errors import UserError
from cisterna.sequences import bridge, engines, tokenization, vllm_engine
from cisterna.sequences.source import TOKENS, SequenceSource
from tiny import adapted, backbone, publish

CPU = torch.device("cpu")
GREEDY = {"do_sample": False, "max_new_tokens": 24}
SHAPE = {"head_dim": 32, "initializer_range": 0.3}  # on a CPU vLLM has no kernel for some sizes of heads


@pytest.fixture(scope="module", autouse=True)
def installed():
    pytest.importorskip("vllm", reason="vLLM is not installed: make vllm")


class Rows:
    """Features of 40 rows at random."""

    width = 6

    def __init__(self):
        self.table = torch.randn(40, self.width, generator=torch.Generator().manual_seed(5))

    def rows(self, index):
        return self.table[index]


def reading(model, source):
    bridge.attach(model, "mlp", source.features.width)
    bridge.install(model, source.features)
    return model


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A base with weights of its own for the output layer, and one with those of the embeddings."""
    folder = tmp_path_factory.mktemp("bases")
    made = {}
    for tie in (False, True):
        made[tie] = folder / f"tied-{tie}"
        models.make_base(backbone(**SHAPE, tie_word_embeddings=tie), made[tie])
    return made


@pytest.fixture(scope="module")
def checkpoints(bases, tmp_path_factory):
    """The base, two adapters on it, and the base again."""
    folder = tmp_path_factory.mktemp("checkpoints")
    found = [bases[False]]
    for seed in (1, 2):
        model = adapted(bases[False], seed)
        found.append(publish(bases[False], folder / str(seed), model.save_pretrained))
    return [*found, bases[False]]


def prompts(first, features):
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(5, 300, (int(size),), generator=generator).tolist() for size in range(9, 25)]
    if features:
        for at, row in enumerate(rows[:12]):  # the others have none
            row[3:7] = range(first + at, first + at + 4)
        rows.append([token + 20 if token >= first else token for token in rows[0]])  # other rows at the same places
    return rows


def greedy(engine, tokenizer, rows):
    return [tokenization.before_end(tokenizer, output) for output in engine.generate(rows, GREEDY, [0])]


@pytest.fixture(scope="module")
def source():
    return SequenceSource("features", Rows(), {})


def test_outputs_and_label_probabilities_are_those_of_transformers_whatever_checkpoint_was_loaded_before(
    checkpoints, source
):
    tokenizer = tokenization.load(models.base_of(checkpoints[0]))
    torch.manual_seed(0)
    loaded = [reading(models.compose(path), source) for path in checkpoints]
    loaded[-1].bridge = loaded[0].bridge
    first = len(loaded[0].get_input_embeddings().weight)
    rows = prompts(first, features=True)
    engine = engines.start(engines.VLLM, loaded[0], tokenizer, CPU, source)
    endings, outputs = [[7, 8, 9], [7, 8], [7, 11, 12, 1], [20]], []
    for model in loaded:
        engine.load(model)
        plain = engines.start(engines.TRANSFORMERS, model, tokenizer, CPU, source)
        outputs.append(greedy(engine, tokenizer, rows))
        assert outputs[-1] == greedy(plain, tokenizer, rows)
        found, known = (torch.tensor(one.continuation_logs(rows, endings)) for one in (engine, plain))
        torch.testing.assert_close(found, known, atol=1e-4, rtol=0)
    assert outputs[0][0] != outputs[0][-1]  # the rows are read, and not found in the cache of others
    assert outputs[0] == outputs[-1]
    assert all(one != other for one, other in itertools.combinations(outputs[:3], 2))

    saved = {"r": 4, "lora_alpha": 8, "modules_to_save": ["bridge", "embed_tokens"]}
    trained = get_peft_model(reading(models.compose(checkpoints[1]), source), models.lora_config(saved)).eval()
    with torch.no_grad():
        for weight in filter(lambda one: one.requires_grad, trained.parameters()):
            weight += 0.05 * torch.randn(weight.shape)
    engine.load(trained)
    outputs.append(greedy(engine, tokenizer, rows))
    assert outputs[-1] == greedy(engines.Transformers(trained, tokenizer, CPU), tokenizer, rows)
    assert outputs[-1] not in outputs[:-1]
    engine.load(loaded[-1])

    before = torch.random.get_rng_state()
    sampled = {"do_sample": True, "temperature": 1.5, "top_k": 0, "max_new_tokens": 12}
    draws = engine.generate(rows, sampled, [0, 1])
    assert torch.equal(before, torch.random.get_rng_state())
    assert engine.generate(rows, sampled, [0, 1]) == draws
    assert engine.generate(rows[:5], sampled, [0, 1]) == draws[:5]  # whatever else is in the batch
    assert engine.generate(rows, sampled, [0, 2]) != draws
    assert len({tuple(row) for row in engine.generate(rows[:1] * 8, sampled, [0, 1])}) == 8

    with pytest.raises(UserError, match="repetition_penalty for prompts with features"):
        engine.generate(rows, GREEDY | {"repetition_penalty": 1.2}, [0])


def test_tied_output_layer_has_the_weights_of_the_checkpoint(bases):
    tokenizer, model = tokenization.load(bases[True]), models.compose(bases[True])
    engine = engines.start(engines.VLLM, model, tokenizer, CPU, TOKENS)
    other = models.compose(bases[True])
    with torch.no_grad():
        other.get_input_embeddings().weight.copy_(other.get_input_embeddings().weight.flip(0))
    engine.load(other)
    rows = prompts(0, features=False)
    expected = greedy(engines.Transformers(other, tokenizer, CPU), tokenizer, rows)
    assert expected != greedy(engines.Transformers(model, tokenizer, CPU), tokenizer, rows)
    assert greedy(engine, tokenizer, rows) == expected


def test_small_update_of_a_bfloat16_model_arrives_in_float32(bases, tmp_path):
    """Merged in bfloat16 it would be rounded away."""
    model = adapted(bases[False], dtype=torch.bfloat16, size=3e-4)
    publish(bases[False], tmp_path / "adapter", model.save_pretrained)
    small = models.compose(tmp_path / "adapter", torch.bfloat16)
    assert vllm_engine.update_kept(small, torch.bfloat16) < updates.KEPT
    tokenizer = tokenization.load(bases[False])
    engine = engines.start(engines.VLLM, small, tokenizer, CPU, TOKENS)
    facts = engine.describe()
    assert (facts["name"], facts["dtype"]) == ("vllm", "float32")
    assert facts["update_kept"] > 0.999
    # transformers with the same weights in float32
    exact = models.compose(bases[False])
    exact.load_state_dict(updates.weights(small))
    rows, endings = prompts(0, features=False), [[7, 8], [9]]
    found, known = (
        torch.tensor(one.continuation_logs(rows, endings))
        for one in (engine, engines.Transformers(exact, tokenizer, CPU))
    )
    torch.testing.assert_close(found, known, atol=1e-4, rtol=0)


def test_options_that_vllm_does_not_have_are_refused():
    config = GenerationConfig(eos_token_id=[1, 2], repetition_penalty=1.1)
    known = {"max_tokens": 5, "stop_token_ids": [1, 2], "repetition_penalty": 1.1}
    assert vllm_engine.sampling_options(config, {"max_new_tokens": 5}) == known
    config.update(no_repeat_ngram_size=3)
    with pytest.raises(UserError, match="does not support no_repeat_ngram_size of the generation config"):
        vllm_engine.sampling_options(config, {"max_new_tokens": 5})


def test_head_size_without_a_kernel_is_refused_with_a_line_that_says_what_to_do(tmp_path):
    models.make_base(backbone(head_dim=24), tmp_path / "base")
    model, tokenizer = models.compose(tmp_path / "base"), tokenization.load(tmp_path / "base")
    with pytest.raises(UserError, match="vllm does not start with this model; use engine: transformers"):
        engines.start(engines.VLLM, model, tokenizer, CPU, TOKENS)
