"""Packed SFT trains as SFT of each example alone does, and packs every example once and whole.

Tolerance: float32; sums over rows of other lengths differ in their last bits. Measured: at most 1.6e-7 of the loss, and
1.5e-7 of the norm of the gradient; a loss of one token (here 6) differs by less than 1e-5.
"""

import contextlib
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from test_resume import interrupt
from test_training import build, climb, same

from cisterna.data import splits
from cisterna.errors import UserError
from cisterna.sequences import feature_bank, tokenization
from cisterna.training import sft
from runs import SFT, Run, published
from tiny import READING, ROOT, SIZES

FORMS = ["tokens", "features", "both"]
SOME = SFT | {"examples": 24}
del SOME["fraction"]
# One step of SGD of rate 1 over all weights: what it changes is the gradient.
STEP = SOME | {"lora": None, "logging_steps": 1, "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0}
STEP |= {"per_device_train_batch_size": 24}
PACKED = {"packing": True, "max_length": 256, "per_device_train_batch_size": 2}


@pytest.fixture(scope="module")
def promoters(tmp_path_factory) -> Path:
    """A task whose examples differ in length."""
    folder = tmp_path_factory.mktemp("promoters") / "promoter-expression"
    with contextlib.chdir(ROOT):
        splits.prepare("promoter-expression", SIZES, 0, folder)
    return folder


@pytest.fixture(scope="module")
def reads(esm, promoters, tmp_path_factory):
    """Form -> the options that say how sequences reach the model."""
    folder = tmp_path_factory.mktemp("bank")
    feature_bank.build_for_task(esm, promoters, READING, folder / "work", folder / "bank")
    return {form: {"sequences": form} | ({} if form == "tokens" else {"bank": folder / "bank"}) for form in FORMS}


@pytest.mark.parametrize("form", FORMS)
def test_step_without_padding_has_the_loss_and_the_gradient_of_the_padded_one(
    base, promoters, reads, tmp_path, capsys, form
):
    """Also where packed blocks are accumulated, whose numbers of tokens differ."""
    recipes = {
        "padded": STEP,
        "padding-free": STEP | {"padding_free": True},
        "packed": STEP | PACKED | {"gradient_accumulation_steps": 8},
    }
    runs = {name: Run("sft", base, promoters, tmp_path / name, recipes[name], 1, reads=reads[form]) for name in recipes}
    trainer = build(runs["packed"])
    blocks = len(trainer.train_dataset)
    assert 8 <= blocks <= 16
    start = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    gradients = {}
    for name, run in runs.items():
        trained = load_file(run.here().weights)
        gradients[name] = torch.cat([(trained[key] - start[key]).flatten() for key in sorted(trained)])
        assert run.manifest["trained"]["steps"] == 1
    assert f"packed 24 examples into {blocks} blocks of 256 tokens, " in capsys.readouterr().out
    expected = gradients["padded"]
    for name in ("padding-free", "packed"):
        assert runs[name].manifest["trained"]["tokens"] == runs["padded"].manifest["trained"]["tokens"]
        assert runs[name].history[0]["loss"] == pytest.approx(runs["padded"].history[0]["loss"], rel=1e-6)
        assert (gradients[name] - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.parametrize("form", FORMS)
def test_loss_of_an_example_does_not_depend_on_what_it_is_packed_with(base, promoters, reads, tmp_path, form):
    trainer = build(Run("sft", base, promoters, tmp_path, SOME | PACKED | {"lora": None}, 1, reads=reads[form]))
    model, collate = trainer.model.eval(), trainer.data_collator

    def losses(block):
        batch = collate([block])
        labels = batch.pop("labels")[0]
        assert (labels[batch["position_ids"][0] == 0] == -100).all()
        with torch.no_grad():
            scores = model(**batch, use_cache=False).logits[0]
        found = torch.nn.functional.cross_entropy(scores[:-1], labels[1:], reduction="none")
        return torch.cat([found.new_zeros(1), found]).split(block["seq_lengths"])

    for block in list(trainer.train_dataset)[:3]:
        assert len(block["seq_lengths"]) > 1
        begin, together = 0, losses(block)
        for length, among_others in zip(block["seq_lengths"], together, strict=True):
            part = {key: block[key][begin : begin + length] for key in ("input_ids", "labels")}
            (alone,) = losses(part | {"seq_lengths": [length]})
            torch.testing.assert_close(among_others, alone, atol=1e-5, rtol=0)
            begin += length


def test_packed_ladder_and_packed_run_that_was_killed_give_the_weights_of_a_straight_run(base, promoters, tmp_path):
    recipe = SOME | PACKED | {"logging_steps": 1, "save_minutes": 0}
    straight = Run("sft", base, promoters, tmp_path / "straight", recipe, 2).here()
    assert straight.manifest["trained"]["steps"] == 10
    ladder = climb("sft", base, promoters, tmp_path / "ladder", recipe, [1, 2])
    killed = Run("sft", base, promoters, tmp_path / "killed", recipe, 2)
    interrupt(killed, "on_save", 5)
    assert same(ladder[-1], straight)
    assert same(killed.here(), straight)


def test_every_example_is_packed_once_and_whole(base, promoters, tmp_path):
    """Also where TRL packs in several parts, of 1,000 examples each, and where one fills a block."""
    rows = sft.tokenize(tokenization.load(base), pd.read_parquet(promoters / "train.parquet").head(24))
    longest = max(map(len, rows["input_ids"]))
    for size in (256, longest):
        recipe = SOME | PACKED | {"max_length": size}
        blocks = build(Run("sft", base, promoters, tmp_path, recipe, 1)).train_dataset
        found = []
        for block in blocks:
            assert len(block["input_ids"]) <= size
            ends = torch.tensor(block["seq_lengths"]).cumsum(0).tolist()
            begins = [0, *ends[:-1]]
            found += [(block["input_ids"][i:j], block["labels"][i:j]) for i, j in zip(begins, ends, strict=True)]
        assert sorted(found) == sorted(zip(rows["input_ids"], rows["labels"], strict=True))
    with pytest.raises(UserError, match=f"examples are longer than max_length {longest - 1}"):
        build(Run("sft", base, promoters, tmp_path, SOME | PACKED | {"max_length": longest - 1}, 1))
    with pytest.raises(RuntimeError, match="packing has changed the examples: 25 before it, 24 after it"):
        sft._check_packed(blocks, [*rows["input_ids"], [1]], size)


def test_implementation_of_attention_is_used_and_in_the_manifest(base, promoters, tmp_path):
    recipe = SOME | PACKED | {"attn_implementation": "eager"}
    made = Run("sft", base, promoters, tmp_path / "eager", recipe, 1)
    assert build(made).model.config._attn_implementation == "eager"
    assert made.here().manifest["recipe"]["attn_implementation"] == "eager"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("kernels-community/flash-attn2", "cannot be used here: .*kernels"),
        ("flash_attention_2", "cannot be used here: .*"),
        ("flash", "cannot be used here: .*not supported"),
    ],
)
def test_implementation_of_attention_that_is_not_there_is_refused(base, promoters, tmp_path, name, reason):
    with pytest.raises(UserError, match=f"recipe: attn_implementation {name}: {reason}"):
        Run("sft", base, promoters, tmp_path, SOME | PACKED | {"attn_implementation": name}, 1).here()
    assert not published(tmp_path)
