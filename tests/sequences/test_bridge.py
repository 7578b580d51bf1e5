"""The bridge: the right row of features at the right position, in every pass of training, sampling and evaluation.

Tolerances: float32; sums over a padded batch, over a merged weight or over one sequence alone differ in their last
bits. The logits here are of the order of 1, and what must differ differs by more than 1e-2.
"""

import contextlib
import hashlib
import json
import random
import tempfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from cisterna import cli, models
from cisterna.artifacts import checkpoint, files
from cisterna.errors import UserError
from cisterna.evaluation import evaluate, generate
from cisterna.scoring.answers import Labels
from cisterna.sequences import bridge, encoders, feature_bank, inputs_file, tokenization
from cisterna.sequences.feature_bank import Bank
from cisterna.sequences.prompt import encode_prompts
from cisterna.sequences.source import SequenceSource, connect, open_source, source_of
from cisterna.sequences.windows import tagged_stretches
from cisterna.training import rl
from cisterna.training.run import OpenRun
from runs import RL, SFT, SOLVE, Run, published
from tiny import READING, encoder

CLOSE = {"atol": 1e-4, "rtol": 0}
OPTIONS = {"max_new_tokens": 56, "batch_size": 24, "bootstrap": 100}
LETTERS = {"dna": "ACGT", "protein": "ACDEFGHIKLMNPQRSTVWY"}
PLAIN = st.text(st.characters(blacklist_characters="<>|\0", blacklist_categories=("Cs",)), max_size=12)


@contextlib.contextmanager
def joined(model, source, kind="linear"):
    """The model with a new bridge to a source, for a while."""
    bridge.attach(model, kind, source.width)
    bridge.install(model, source)
    try:
        yield model
    finally:
        del model.bridge
        model.get_decoder()._forward_pre_hooks.clear()
        model.get_decoder()._forward_pre_hooks_with_kwargs.clear()


def embedded(model, ids, mask=None):
    """What the decoder is given in place of ids: (batch, length, hidden)."""
    caught = []
    hook = model.get_decoder().register_forward_pre_hook(
        lambda module, arguments, options: caught.append(options["inputs_embeds"]), with_kwargs=True
    )
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=mask)
    finally:
        hook.remove()
    return caught[0]


# --- The right row at the right position ---


def truth(text, width):
    """Features of a residue of a text, different for each residue of each text."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
    return torch.randn(len(text), width, generator=torch.Generator().manual_seed(seed)).half()


@st.composite
def cases(draw):
    """A bank, and prompts of a model with and without stretches that it has features of."""
    pool, flank = draw(st.none() | st.integers(1, 7)), draw(st.integers(1, 12))
    modality = draw(st.sampled_from(sorted(LETTERS)))
    sequences = draw(st.lists(st.text(LETTERS[modality], min_size=1, max_size=30), min_size=1, max_size=5))
    prompts = []
    for _ in range(draw(st.integers(1, 5))):
        parts, segments = [draw(PLAIN)], []
        for _ in range(draw(st.integers(0, 4))):
            sequence = draw(st.sampled_from(sequences))
            start = draw(st.integers(0, len(sequence) - 1))
            stop = draw(st.integers(start + 1, len(sequence)))
            center = draw(st.none() | st.integers(0, len(sequence) - 1))
            parts += [f"<{modality}>{sequence[start:stop]}</{modality}>", draw(PLAIN)]
            segments.append({"sequence": sequence, "start": start, "center": center})
        prompts.append(("".join(parts), segments))
    return pool, flank, modality, prompts


def shown(segment, stretch, pool, flank, width):
    """The text that the encoder reads for a stretch, and the rows of features of the stretch itself."""
    sequence, start, stop = segment["sequence"], segment["start"], segment["start"] + len(stretch)
    center = (start + stop) // 2 if segment["center"] is None else segment["center"]
    kept = [at for at in range(len(sequence)) if center - flank <= at < center + flank]
    text = "".join(sequence[at] for at in kept)
    blocks = truth(text, width).split(pool or 1) if text else []
    numbers = sorted({number // (pool or 1) for number, at in enumerate(kept) if start <= at < stop})
    return text, [blocks[number].float().mean(dim=0) for number in numbers]


@given(cases(), st.sampled_from(["features", "both"]), st.integers(2, 5), st.sampled_from(bridge.KINDS), st.data())
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
def test_every_position_holds_the_right_row_or_the_ordinary_embedding(base, esm, case, form, width, kind, data):
    pool, flank, modality, prompts = case
    tokenizer, model = plain(base)
    first = model.get_input_embeddings().num_embeddings
    table = model.get_input_embeddings().weight

    # What has to be: for each prompt, a token or a row of features at each position.
    texts, wanted = {"ACGT"}, []
    for prompt, segments in prompts:
        ids = iter(tokenizer(tokenization.expand(prompt), add_special_tokens=False)["input_ids"])
        stretches = iter(zip(segments, tagged_stretches(prompt), strict=True))
        opening = tokenizer.convert_tokens_to_ids(f"<{modality}>")
        wanted.append([])
        for token in ids:
            wanted[-1].append(token)
            if token == opening:
                segment, stretch = next(stretches)
                residues = [next(ids) for _ in stretch]
                text, rows = shown(segment, stretch, pool, flank, width)
                texts.add(text)
                wanted[-1] += (residues if form == "both" else []) + rows

    with tempfile.TemporaryDirectory() as folder:
        order = data.draw(st.permutations(sorted(texts)))
        reading = READING | {"pool": pool, "flank": flank}
        source = make_bank(Path(folder), esm, modality, reading, order, width, data.draw(st.integers(1, 40)))
        texts_of_prompts, segments_of_prompts = zip(*prompts, strict=True)
        given_ids = encode_prompts(
            tokenizer, list(texts_of_prompts), SequenceSource(form, source), list(segments_of_prompts), first
        )
        assert list(map(len, given_ids)) == list(map(len, wanted))

        # A batch: in any order, some cut off at an end, padded to one length on either side.
        chosen = data.draw(st.lists(st.integers(0, len(prompts) - 1), min_size=1, max_size=6))
        side = data.draw(st.sampled_from(["left", "right"]))
        rows = []
        for number in chosen:
            low = data.draw(st.integers(0, max(0, len(wanted[number]) - 1)))
            high = data.draw(st.integers(low, len(wanted[number])))
            cut = data.draw(st.sampled_from([slice(None), slice(low, None), slice(None, high)]))
            rows.append((given_ids[number][cut], wanted[number][cut]))
        length = max(1, *(len(ids) for ids, _ in rows), 1)
        pads = [[tokenizer.pad_token_id] * (length - len(ids)) for ids, _ in rows]
        batch = [pad + ids if side == "left" else ids + pad for pad, (ids, _) in zip(pads, rows, strict=True)]
        items = [pad + row if side == "left" else row + pad for pad, (_, row) in zip(pads, rows, strict=True)]

        with joined(model, source, kind):
            found = embedded(model, torch.tensor(batch), (torch.tensor(batch) != tokenizer.pad_token_id).long())
            for row, expected in zip(found, items, strict=True):
                for at, item in zip(row, expected, strict=True):
                    if isinstance(item, int):
                        assert torch.equal(at, table[item])
                    else:
                        # embeddings have a spread of 0.02; a mean may round to the next float16
                        tolerance = {"atol": 1e-6 if pool in (None, 1) else 5e-4, "rtol": 1e-5}
                        torch.testing.assert_close(at, model.bridge(item.unsqueeze(0))[0], **tolerance)


LOADED = {}


def plain(base):
    """The tokenizer and the model of the base, loaded once."""
    if base not in LOADED:
        LOADED[base] = tokenization.load(base), models.compose(base)
    return LOADED[base]


def make_bank(folder, esm, modality, reading, texts, width, most):
    """A bank of `truth` with its sequences in the order given, shards of at most `most` rows."""
    pooled = [encoders.pool(truth(text, width), reading["pool"]) for text in texts]
    shards, paths = [[]], []
    for rows in pooled:
        if shards[-1] and sum(map(len, shards[-1])) + len(rows) > most:
            shards.append([])
        shards[-1].append(rows)
    for number, parts in enumerate(shards):
        paths.append(folder / f"shard{number}")
        save_file({"features": torch.cat(parts).contiguous()}, paths[-1])
    counts = [len(rows) for rows in pooled]
    feature_bank.publish(folder / "bank", esm, modality, reading, {}, texts, counts, paths, {})
    return feature_bank.Bank(folder / "bank")


@pytest.fixture
def model(base):
    return models.compose(base)


@pytest.fixture(scope="module")
def frame(splice):
    return pd.read_parquet(splice / "id.parquet")


def of_bank(bank, form="features"):
    return open_source(form, "rna", bank)


def prompt_ids(model, tokenizer, frame, given):
    first = model.get_input_embeddings().num_embeddings
    return encode_prompts(tokenizer, list(frame["prompt"]), given, list(frame["segments"]), first)


def test_order_of_a_bank_changes_nothing(base, esm, bank, frame, tmp_path):
    """Bit for bit: the same logits, and the same text sampled."""
    opened = feature_bank.Bank(bank)
    texts = sorted({segment["sequence"] for segments in frame["segments"] for segment in segments})
    order = random.Random(0).sample(texts, len(texts))
    rows = [opened.rows(torch.arange(*span(opened, text))) for text in order]
    cut = len(rows) // 3
    paths = []
    for number, part in enumerate((rows[:cut], rows[cut:])):
        paths.append(tmp_path / f"shard{number}")
        save_file({"features": torch.cat(part)}, paths[-1])
    feature_bank.publish(tmp_path / "permuted", esm, "rna", READING, {}, order, [len(part) for part in rows], paths, {})
    logits, sampled = [], []
    tokenizer = tokenization.load(base)
    for folder in (bank, tmp_path / "permuted"):
        given = of_bank(folder)
        torch.manual_seed(0)
        model = models.compose(base)
        connect(model, given)
        ids = prompt_ids(model, tokenizer, frame, given)
        with torch.inference_mode():
            logits.append(model(**tokenizer.pad({"input_ids": ids}, return_tensors="pt")).logits)
        options = OPTIONS | {"do_sample": True, "temperature": 1.0}
        loaded = generate.LoadedModel(model, tokenizer, torch.device("cpu"), given)
        outputs = generate.generate(loaded, loaded.encode(frame), options)
        sampled.append(generate.read(loaded, outputs, Labels(("a",)).parse))
    assert of_bank(bank).features.locate(texts[0]) != of_bank(tmp_path / "permuted").features.locate(texts[0])
    assert torch.equal(*logits)
    pd.testing.assert_frame_equal(*sampled)


def span(source, text):
    row, count = source.locate(text)
    return row, row + count


# --- The bridge itself ---


@pytest.mark.parametrize("kind", bridge.KINDS)
def test_bridge_is_as_wide_as_the_model_and_has_the_spread_of_its_embeddings(kind):
    torch.manual_seed(0)
    made = bridge.Bridge(kind, 1000, 300, std=0.02)
    scales = torch.logspace(-2, 3, 64).unsqueeze(1)
    out = made(scales * torch.randn(64, 1000) + scales)
    assert out.shape == (64, 300)
    assert 0.3 * 0.02 < out.std() < 1.5 * 0.02
    assert {name for name, _ in made.named_parameters()} == (
        {"weight", "bias"} | ({"inner_weight", "inner_bias"} if kind == "mlp" else set())
    )


def test_bridge_that_is_there_is_kept_and_has_to_fit(model):
    bridge.attach(model, "linear", 16)
    first = model.bridge
    bridge.attach(model, "mlp", 16)
    assert model.bridge is first
    with pytest.raises(UserError, match="bridge reads features of width 16, not 24"):
        bridge.attach(model, "linear", 24)


def test_no_adapter_goes_on_the_bridge(model, bank):
    from peft import get_peft_model

    connect(model, of_bank(bank), "mlp")
    adapted = get_peft_model(model, models.lora_config({"r": 4}))
    names = [name for name, _ in adapted.named_parameters()]
    assert any("q_proj.lora_A" in name for name in names)
    assert not [name for name in names if "bridge" in name and "lora" in name]


@pytest.mark.parametrize("batch", ["padded on the left", "one by one", "with a cache"])
def test_batch_with_and_without_features_equals_each_alone(model, base, bank, frame, batch):
    tokenizer, given = tokenization.load(base), of_bank(bank)
    connect(model, given)
    rows = prompt_ids(model, tokenizer, frame.head(3), given)
    rows += [tokenizer(text)["input_ids"] for text in ("A plain question?", "Another one, somewhat longer than that.")]
    with torch.inference_mode():
        alone = [model(torch.tensor([ids])).logits[0] for ids in rows]
        if batch == "padded on the left":
            padded = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
            found = [row[-len(ids) :] for row, ids in zip(model(**padded).logits, rows, strict=True)]
        elif batch == "one by one":
            found = [torch.stack([model(torch.tensor([ids[: at + 1]])).logits[0, -1] for at in range(len(ids))])
                     for ids in rows]  # fmt: skip
        else:
            found = []
            for ids in rows:
                half = model(torch.tensor([ids[:7]]), use_cache=True)
                rest = model(torch.tensor([ids[7:]]), past_key_values=half.past_key_values, use_cache=True)
                found.append(torch.cat([half.logits[0], rest.logits[0]]))
    for one, other in zip(found, alone, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("form", ["features", "both"])
def test_generation_with_a_cache_equals_generation_without(model, base, bank, frame, form):
    tokenizer, given = tokenization.load(base), of_bank(bank, form)
    connect(model, given)
    batch = tokenizer.pad({"input_ids": prompt_ids(model, tokenizer, frame.head(4), given)}, return_tensors="pt")
    made = [model.generate(**batch, max_new_tokens=12, do_sample=False, use_cache=use) for use in (True, False)]
    assert torch.equal(*made)


def test_features_are_read_once_a_batch_and_not_in_decoding_steps(model, base, bank, frame, monkeypatch):
    tokenizer, given = tokenization.load(base), of_bank(bank)
    connect(model, given)
    rows = prompt_ids(model, tokenizer, frame.head(2), given)
    batch = tokenizer.pad({"input_ids": rows * 4}, return_tensors="pt")  # prompts are repeated, as in GRPO
    read, projected, embedded = [], [], []
    monkeypatch.setattr(given.features, "rows", lambda index: read.append(index) or Bank.rows(given.features, index))
    model.bridge.register_forward_hook(lambda module, arguments, output: projected.append(output))
    model.get_decoder().register_forward_pre_hook(
        lambda module, arguments, options: embedded.append(options.get("input_ids") is None), with_kwargs=True
    )
    model.generate(**batch, max_new_tokens=12, min_new_tokens=12, do_sample=False)
    first = model.get_input_embeddings().num_embeddings
    (index,) = read
    assert index.tolist() == sorted({token - first for ids in rows for token in ids if token >= first})
    assert len(projected) == 1
    assert embedded == [True] + [False] * 11


def test_a_feature_row_in_a_decoding_step_is_an_error_and_no_token(model, base, bank, frame):
    tokenizer, given = tokenization.load(base), of_bank(bank)
    connect(model, given)
    first = model.get_input_embeddings().num_embeddings
    begun = model(torch.tensor([tokenizer("A question")["input_ids"]]), use_cache=True)
    with pytest.raises(IndexError, match="index out of range"):
        model(torch.tensor([[first]]), past_key_values=begun.past_key_values)


def test_features_matter(model, base, bank, frame):
    """What the tests above compare could also be equal if the features were never read."""
    tokenizer, given = tokenization.load(base), of_bank(bank)
    connect(model, given)
    ids = torch.tensor(prompt_ids(model, tokenizer, frame.head(2), given)[:1])
    with torch.inference_mode():
        before = model(ids).logits
        model.bridge.weight += 0.1 * torch.randn(model.bridge.weight.shape)
        assert (model(ids).logits - before).abs().max() > 1e-2


def test_bridge_takes_part_in_a_pass_without_features(model, base, bank):
    """Ranks have to reduce the same parameters, whether or not their batch has a row."""
    connect(model, of_bank(bank))
    model(torch.tensor([tokenization.load(base)("A plain question?")["input_ids"]])).logits.sum().backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in model.bridge.parameters())


def test_policy_cannot_emit_a_feature_row(model, base, bank, frame):
    tokenizer, given = tokenization.load(base), of_bank(bank)
    connect(model, given)
    ids = prompt_ids(model, tokenizer, frame, given)
    first = model.get_input_embeddings().num_embeddings
    assert max(max(row) for row in ids) >= first
    assert model.get_output_embeddings().weight.shape[0] == first
    batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
    sampled = model.generate(**batch, max_new_tokens=30, do_sample=True, temperature=50.0)
    new = sampled[:, batch["input_ids"].shape[1] :]
    assert new.max() < first
    assert len(torch.unique(new)) > 200


def test_no_text_spells_a_feature_row(base):
    tokenizer = tokenization.load(base)
    assert max(tokenizer.get_vocab().values()) < models.compose(base).get_input_embeddings().num_embeddings


# --- Trained models ---


@pytest.fixture(scope="module")
def reads(bank):
    return {"sequences": "features", "bank": bank}


def logits(folder, given, frame):
    """Logits of a checkpoint on the prompts of a frame."""
    model, tokenizer = models.compose(folder), tokenization.load(models.base_of(folder))
    connect(model, given)
    return forward(model, tokenizer, frame, given)


def forward(model, tokenizer, frame, given):
    first = model.get_input_embeddings().num_embeddings
    ids = encode_prompts(tokenizer, list(frame["prompt"]), given, list(frame["segments"]), first)
    with torch.inference_mode():
        return model.eval()(**tokenizer.pad({"input_ids": ids}, return_tensors="pt")).logits


@contextlib.contextmanager
def kept(stage_models):
    """The models of the runs that are made inside, as they were when they ended."""
    original = OpenRun.train

    def train(run, trainer, **options):
        stage_models.append(trainer.model)
        return original(run, trainer, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OpenRun, "train", train)
        yield


LORA = {"r": 4, "lora_alpha": 8}


@pytest.mark.parametrize(
    ("form", "kind", "lora"),
    [("features", "linear", LORA), ("features", "mlp", None), ("both", "mlp", LORA), ("both", "linear", None)],
)
def test_checkpoint_composes_to_the_model_that_was_trained(base, splice, bank, frame, tmp_path, form, kind, lora):
    recipe = SFT | {"lora": lora, "bridge": kind}
    trained = []
    with kept(trained):
        made = Run("sft", base, splice, tmp_path, recipe, 1, reads={"sequences": form, "bank": bank}).here()
    given = source_of(made.output, bank)
    assert given.form == form
    tokenizer = tokenization.load(base)
    theirs = forward(trained[0], tokenizer, frame, given)
    torch.testing.assert_close(logits(made.output, given, frame), theirs, **CLOSE)
    stored = {name for name in load_file(made.weights) if "bridge" in name}
    parts = {"weight", "bias"} | ({"inner_weight", "inner_bias"} if kind == "mlp" else set())
    assert {name.rpartition(".")[2] for name in stored} == parts
    assert not [name for name in stored if "lora" in name]
    described = inputs_file.read(made.output)
    assert described["bridge"] == {"kind": kind, "width": 16}
    assert (described["task"], described["sequences"]) == ("splice-donor", form)
    assert described["encoder"]["bank"]


def test_sft_then_rl_of_another_rank_composes_to_the_model_that_was_trained(
    featured, splice, bank, reads, frame, tmp_path
):
    trained = []
    with kept(trained):
        made = Run("rl", featured.output, splice, tmp_path, RL, 1, reads=reads).here()
    assert json.loads((featured.output / "adapter_config.json").read_text())["r"] == 8
    assert json.loads((made.output / "adapter_config.json").read_text())["r"] == 2
    given = source_of(made.output, bank)
    theirs = forward(trained[0], tokenization.load(models.base_of(made.output)), frame, given)
    ours = logits(made.output, given, frame)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    assert (ours - logits(featured.output, given, frame)).abs().max() > 1e-3
    # The rewards that the run saw are in its history.
    assert [entry["step"] for entry in made.history] == [1, 2, 3]
    for entry in made.history:
        parts = entry["rewards/correct/mean"] + 0.5 * entry["rewards/well_formed/mean"]
        assert entry["reward"] == pytest.approx(parts, abs=1e-6)
    assert any(entry["frac_reward_zero_std"] < 1 for entry in made.history)


def bridge_of(folder):
    return {name: tensor.clone() for name, tensor in models.compose(folder).bridge.state_dict().items()}


@pytest.mark.parametrize("lora", [{"r": 2, "lora_alpha": 4}, None], ids=["lora", "full"])
@pytest.mark.parametrize("train", [True, False])
def test_rl_trains_the_bridge_or_leaves_its_bytes(featured, splice, reads, tmp_path, train, lora):
    recipe = RL | {"bridge": "mlp", "lora": lora, "train_bridge": train, "examples": 8}
    made = Run("rl", featured.output, splice, tmp_path, recipe, 1, reads=reads).here()
    before, after = bridge_of(featured.output), bridge_of(made.output)
    same = {name: torch.equal(before[name], after[name]) for name in before}
    assert set(same.values()) == {not train}
    assert inputs_file.read(made.output)["bridge"]["kind"] == "linear"  # that of its parent, not of the recipe
    if lora:
        assert any("bridge" in name for name in load_file(made.weights)) is train


def test_bridge_that_nobody_trained_cannot_be_left_as_it_is(base, splice, reads, tmp_path):
    """It would be random, and drawn anew wherever the checkpoint is composed."""
    asked = Run("rl", base, splice, tmp_path, RL | {"train_bridge": False}, 1, reads=reads)
    with pytest.raises(UserError, match="train_bridge"):
        asked.here()
    assert not published(tmp_path)


@pytest.mark.parametrize("encoder_in_step", [False, True], ids=["bank", "trained-encoder"])
def test_gradient_checkpointing_gives_the_same_loss_and_bridge(base, splice, esm, reads, tmp_path, encoder_in_step):
    options = live(esm, trained=True) if encoder_in_step else reads
    made, trained = [], []
    for on in (True, False):
        recipe = SFT | {"lora": {"r": 4}, "logging_steps": 1, "activation_checkpointing": on}
        with kept(trained):
            made.append(Run("sft", base, splice, tmp_path / str(on), recipe, 1, reads=options).here())
    assert [model.is_activation_checkpointing for model in trained] == [True, False]
    losses = [[entry["loss"] for entry in one.history if "loss" in entry] for one in made]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, tensor in bridge_of(made[0].output).items():
        torch.testing.assert_close(tensor, bridge_of(made[1].output)[name], atol=1e-4, rtol=0)


def test_commands_make_the_same_bank_and_models_as_functions_and_so_does_the_same_run_again(
    base, splice, esm, bank, reads, tmp_path, capsys
):
    words = ["features", "--encoder", str(esm), "--data", str(splice), "--reading", json.dumps(READING)]
    words += ["--work", str(tmp_path / "w"), "--output", str(tmp_path / "bank")]
    assert cli.main(words) == 0
    assert checkpoint.read_manifest(tmp_path / "bank")["files"] == checkpoint.read_manifest(bank)["files"]
    for name, options in {"bank": reads, "live": live(esm)}.items():
        here = Run("sft", base, splice, tmp_path / name / "here", SFT, 1, reads=options).here()
        there = Run("sft", base, splice, tmp_path / name / "there", SFT, 1, reads=options)
        assert cli.main(there.arguments) == 0
        assert there.manifest["identity"] == here.manifest["identity"]


def test_policy_of_grpo_samples_only_tokens_of_the_vocabulary(featured, splice, reads, tmp_path, monkeypatch):
    seen = []
    original = rl._Trainer._generate_and_score_completions

    def generate(self, *arguments):
        answer = original(self, *arguments)
        seen.append((answer["prompt_ids"].max().item(), answer["completion_ids"].max().item()))
        return answer

    monkeypatch.setattr(rl._Trainer, "_generate_and_score_completions", generate)
    Run("rl", featured.output, splice, tmp_path, RL | {"examples": 8}, 1, reads=reads).here()
    first = models.compose(featured.output).get_input_embeddings().num_embeddings
    assert min(prompt for prompt, _ in seen) >= first
    assert max(completion for _, completion in seen) < first


# --- A model and another's features ---


@pytest.mark.parametrize(("change", "command"), [("encoder", "rl"), ("reading", "evaluate")])
def test_features_of_another_encoder_or_reading_are_refused(featured, splice, esm, tmp_path, capsys, change, command):
    other = encoder(tmp_path / "encoders" / "other" / "checkpoint", seed=1) if change == "encoder" else esm
    reading = READING | ({"layer": 1} if change == "reading" else {})
    feature_bank.build_for_task(other, splice, reading, tmp_path / "w", tmp_path / "bank")
    capsys.readouterr()
    if command == "rl":
        reads = {"sequences": "features", "bank": tmp_path / "bank"}
        code = cli.main(Run("rl", featured.output, splice, tmp_path / "rl", RL, reads=reads).arguments)
    else:
        code = cli.main(evaluation(featured.output, splice, tmp_path / "out" / "eval", tmp_path / "bank"))
    assert code == 2
    said = capsys.readouterr().err
    assert "the model's bridge was trained on other features" in said
    assert str(other) in said
    assert not published(tmp_path / "rl")
    assert not (tmp_path / "out").exists()


def evaluation(folder, data, output, bank=None):
    words = ["evaluate", "--checkpoint", str(folder), "--data", str(data), "--output", str(output)]
    words += ["--options", json.dumps(OPTIONS)]
    return words + (["--bank", str(bank)] if bank else [])


def test_evaluation_refuses_a_broken_bank_and_writes_nothing(featured, splice, esm, tmp_path, capsys):
    feature_bank.build_for_task(esm, splice, READING, tmp_path / "w", tmp_path / "bank")
    path = tmp_path / "bank" / "features-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    capsys.readouterr()
    assert cli.main(evaluation(featured.output, splice, tmp_path / "out" / "eval", tmp_path / "bank")) == 2
    assert f"error: {path}: its SHA-256 is not the one in the manifest. Delete {path.parent}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_evaluation_from_the_bank_equals_evaluation_with_the_encoder(featured, splice, bank, tmp_path):
    sources = {"bank": bank, "live": None}
    found = [evaluate.evaluate(featured.output, splice, tmp_path / name, OPTIONS, sources[name]) for name in sources]
    assert found[0]["id"]["well_formed"]["value"] > 0
    frames = [pd.read_parquet(tmp_path / name / "id.parquet") for name in sources]
    # Greedy text may flip where two tokens are within rounding of each other: allow one of 24.
    assert (frames[0]["output"] != frames[1]["output"]).sum() <= 1


# --- The encoder inside the step ---


def live(esm, form="features", **reading):
    return {"sequences": form, "encoder": esm, "reading": READING | reading}


def test_live_encoder_gives_the_loss_curve_and_the_weights_of_the_bank(base, splice, esm, reads, tmp_path):
    recipe = SFT | {"logging_steps": 1}
    made = [
        Run("sft", base, splice, tmp_path / name, recipe, 2, reads=options).here()
        for name, options in (("bank", reads), ("live", live(esm)))
    ]
    losses = [[entry["loss"] for entry in one.history if "loss" in entry] for one in made]
    assert len(losses[0]) == 16
    # Features are rounded to float16; rows that are rounded the other way differ by 2^-11 of their size.
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    assert [inputs_file.read(one.output)["encoder"]["bank"] for one in made] == [True, False]
    tensors = [load_file(one.weights) for one in made]
    for name, tensor in tensors[0].items():
        torch.testing.assert_close(tensor, tensors[1][name], atol=2e-2, rtol=0)


@pytest.mark.parametrize("lora", [{"r": 4, "lora_alpha": 8}, None], ids=["lora", "full"])
def test_trained_encoder_is_trained_composed_and_evaluated(base, splice, esm, frame, tmp_path, lora):
    trained = []
    with kept(trained):
        made = Run("sft", base, splice, tmp_path, SFT | {"lora": lora}, 1, reads=live(esm, trained=True)).here()
    stored = load_file(made.weights)
    names = [name for name in stored if ".encoder." in f".{name}" and "query" in name]
    assert names
    frozen = encoders.load(esm, -1).module
    composed = models.compose(made.output)
    before, after = frozen.state_dict(), composed.encoder.state_dict()
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {f"encoder.layer.{at}.attention.self.query.weight" for at in (0, 1)} <= moved
    # What evaluation reads is the trained encoder: its logits are those of the model that was trained.
    given = source_of(made.output)
    tokenizer = tokenization.load(base)
    connect(composed, given)
    assert given.features.encoder.module is composed.encoder
    theirs = trained[0].eval()
    source = trained_source(theirs)
    assert source.encoder.module is not composed.encoder
    with torch.inference_mode():
        first = composed.get_input_embeddings().num_embeddings
        ids = encode_prompts(tokenizer, list(frame["prompt"]), given, list(frame["segments"]), first)
        for segments in frame["segments"]:
            for segment in segments:
                source.locate(segment["sequence"])
        same = SequenceSource("features", source, given.encoder)
        batch = tokenizer.pad({"input_ids": prompt_ids(composed, tokenizer, frame, same)}, return_tensors="pt")
        expected = theirs(**batch).logits
        found = composed(**tokenizer.pad({"input_ids": ids}, return_tensors="pt")).logits
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)  # features without a graph are float16
    evaluate.evaluate(made.output, splice, tmp_path / "eval", OPTIONS)


def trained_source(model):
    """The live source that the hook of a trained model reads."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    (hook,) = [
        hook for hook in plain.get_decoder()._forward_pre_hooks.values() if "features" in hook.__code__.co_freevars
    ]
    return hook.__closure__[hook.__code__.co_freevars.index("features")].cell_contents


def test_trained_encoder_goes_on_being_trained_in_rl(base, splice, esm, frame, tmp_path):
    reads = live(esm, trained=True)
    sft = Run("sft", base, splice, tmp_path / "sft", SOLVE, 16, reads=reads).here()
    made = Run("rl", sft.output, splice, tmp_path / "rl", RL, 1, reads=reads).here()
    before, after = (models.compose(one.output).encoder.state_dict() for one in (sft, made))
    assert not torch.equal(
        before["encoder.layer.0.attention.self.query.weight"], after["encoder.layer.0.attention.self.query.weight"]
    )
    with pytest.raises(UserError, match="bridge was trained on other features"):
        logits(made.output, open_source("features", "rna", None, esm, READING), frame)


def test_encoder_made_anew_is_not_that_of_the_trained_model(base, splice, esm, tmp_path):
    copy = encoder(tmp_path / "encoders" / "copy" / "checkpoint")
    made = Run("sft", base, splice, tmp_path / "sft", SFT, 1, reads=live(copy, trained=True)).here()
    models.compose(made.output)
    encoder(copy, seed=5)
    with pytest.raises(UserError, match=rf"{copy}: not the encoder that the model was trained with"):
        models.compose(made.output)
    assert files.read_json(made.output / inputs_file.FILE)["encoder"]["path"] == "../../../encoders/copy/checkpoint"
    assert checkpoint.verify(made.output)
