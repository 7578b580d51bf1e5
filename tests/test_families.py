"""Every decoder family that a lab would use reads features, in training, in a batch, after a merge, in generation.

Tolerances: float32; sums over a padded batch, or over a merged weight, differ in their last bits. Logits here have a
standard deviation of about 1, and what must differ differs by more than 1e-1.
"""

import contextlib
import shutil

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

import families
from cisterna import models, pretrained
from cisterna.artifacts import checkpoint
from cisterna.data import splits
from cisterna.errors import UserError
from cisterna.evaluation import generate
from cisterna.publishing import export, feature_model
from cisterna.sequences import bridge, tokenization
from cisterna.sequences.prompt import encode_prompts
from cisterna.sequences.source import connect, source_of
from cisterna.training.run import OpenRun
from families import FAMILIES
from runs import RL, SFT, Run
from tiny import ROOT, SIZES

CLOSE = {"atol": 3e-4, "rtol": 0}
LORA = {"r": 4, "lora_alpha": 8}
every = pytest.mark.parametrize("name", FAMILIES)


class Rows:
    """Features without a bank."""

    width = 8
    table = torch.randn(50, 8, generator=torch.Generator().manual_seed(2))

    def rows(self, index):
        return self.table[index]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Family -> base checkpoint over a model of the family, made when it is asked for. Read only."""
    made = {}

    def base_of(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("family")
            families.make(name, folder / "hub")
            made[name] = folder / "models" / name / "base" / "checkpoint"
            models.make_base({"pretrained": str(folder / "hub")}, made[name])
        return made[name]

    return base_of


def texts(first):
    """Token ids of three texts of different lengths, each with two feature rows."""
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(1, 400, (length,), generator=generator).tolist() for length in (37, 12, 25)]
    for number, row in enumerate(rows):
        row[5:7] = first + 3 * number, first + 3 * number + 1
    return rows


def largest(first, second):
    return (first - second).abs().max().item()


@every
def test_feature_rows_are_read_as_embeddings_alone_in_a_batch_and_in_generation(name, bases):
    place = bases(name)
    model, plain, tokenizer = models.compose(place), models.compose(place), tokenization.load(place)
    torch.manual_seed(0)
    bridge.attach(model, "linear", Rows.width)
    bridge.install(model, Rows())
    first = plain.get_input_embeddings().num_embeddings
    rows = texts(first)
    with torch.inference_mode():
        alone = [model(torch.tensor([row])).logits[0] for row in rows]
        assert largest(model(torch.tensor([[*rows[0][:5], first + 40, *rows[0][6:]]])).logits[0], alone[0]) > 0.1
        # The same rows as embeddings of the plain model.
        ids = torch.tensor(rows[:1])
        is_feature = ids >= first
        embeddings = plain.get_input_embeddings()(ids.masked_fill(is_feature, 0)).clone()
        spread = embeddings[~is_feature].std()
        embeddings[is_feature] = model.bridge(Rows.table[ids[is_feature] - first])
        assert 0.3 * spread < embeddings[is_feature].std() < 2 * spread  # as large as the model's own
        more = {}
        if name == "gemma4":
            more["per_layer_inputs"] = plain.model.get_per_layer_inputs(ids.masked_fill(is_feature, 5))
        torch.testing.assert_close(plain(inputs_embeds=embeddings, **more).logits[0], alone[0], atol=1e-5, rtol=0)
        # Padded on the left, as in GRPO, which gives no positions.
        batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        for found, expected in zip(model(**batch).logits, alone, strict=True):
            torch.testing.assert_close(found[-len(expected) :], expected, **CLOSE)
    loaded = generate.LoadedModel(model, tokenizer, torch.device("cpu"))
    together = generate.generate(loaded, rows, {"batch_size": 3, "max_new_tokens": 8})
    for row, output in zip(rows, together, strict=True):
        (single,) = generate.generate(loaded, [row], {"batch_size": 1, "max_new_tokens": 8})
        assert loaded.before_end(single) == loaded.before_end(output)
    # Probabilities of labels are read on from a copied cache.
    endings = [[300, 301, 302], [303, 304]]
    logs = loaded.engine.continuation_logs(rows, endings)
    with torch.inference_mode():
        for row, found in zip(rows, logs, strict=True):
            for ending, log in zip(endings, found, strict=True):
                read = model(torch.tensor([row + ending])).logits[0].log_softmax(dim=-1)
                steps = range(len(row) - 1, len(row) - 1 + len(ending))
                expected = sum(read[at, token].item() for at, token in zip(steps, ending, strict=True))
                assert log == pytest.approx(expected, abs=1e-3)


@pytest.fixture
def trained(monkeypatch):
    """The models of the runs of a test, as they were when training ended."""
    kept, original = [], OpenRun.train

    def train(run, trainer, **options):
        kept.append(trainer.model)
        return original(run, trainer, **options)

    monkeypatch.setattr(OpenRun, "train", train)
    return kept


def logits(model, tokenizer, splice, given):
    """Logits of each prompt alone, one after the other."""
    frame = pd.read_parquet(splice / "id.parquet").head(2)
    first = model.get_input_embeddings().num_embeddings
    rows = encode_prompts(tokenizer, list(frame["prompt"]), given, list(frame["segments"]), first)
    with torch.inference_mode():
        return torch.cat([model.eval()(torch.tensor([row])).logits[0] for row in rows])


def composed(folder, splice, bank):
    """Logits of a checkpoint that reads features."""
    given, model = source_of(folder, bank), models.compose(folder)
    connect(model, given)
    return logits(model, tokenization.load(models.base_of(folder)), splice, given)


@every
def test_adapters_and_bridges_of_sft_and_rl_are_published_and_merged(name, bases, splice, bank, trained, tmp_path):
    base, folder = bases(name), tmp_path / "models" / name
    tokenizer, reads = tokenization.load(base), {"sequences": "features", "bank": bank}
    (tmp_path / "mine.py").write_text("def length(output, answer, labels):\n    return len(output) % 7 / 7\n")
    rl = RL | {"examples": 4, "max_completion_length": 16, "rewards": {f"{tmp_path / 'mine.py'}:length": 1.0}}
    sft = Run("sft", base, splice, folder / "sft", SFT | {"lora": LORA, "examples": 8}, 1, reads=reads).here()
    made = Run("rl", sft.output, splice, folder / "rl", rl | {"activation_checkpointing": True}, 1, reads=reads).here()
    assert any(entry["frac_reward_zero_std"] < 1 for entry in made.history)
    for run, model in zip((sft, made), trained, strict=True):
        assert all(".lora_" in key or ".bridge." in key for key in load_file(run.weights))
        found, given = composed(run.output, splice, bank), source_of(run.output, bank)
        torch.testing.assert_close(found, logits(model, tokenizer, splice, given), **CLOSE)
        with model.disable_adapter():
            assert largest(found, logits(model, tokenizer, splice, given)) > 1e-3


@pytest.mark.parametrize(("name", "adapter"), [("gemma4", False), ("gemma4", True), ("llama", True)])
def test_exported_model_reads_features_as_the_checkpoint_does(name, adapter, bases, splice, bank, tmp_path):
    """Of a pretrained base: Llama's adapter stands on it, with the new tokens; Gemma 4's needs the base beside it."""
    folder, reads = tmp_path / "models", {"sequences": "features", "bank": bank}
    made = Run("sft", bases(name), splice, folder, SFT | {"lora": LORA, "examples": 8}, 1, reads=reads).here()
    export.export(made.output, tmp_path / "out", adapter=adapter)
    model, tokenizer = feature_model.load(tmp_path / "out")
    first, given = len(model.get_input_embeddings().weight), source_of(made.output, bank)
    frame = pd.read_parquet(splice / "id.parquet").head(2)
    rows = encode_prompts(tokenization.load(bases(name)), list(frame["prompt"]), given, list(frame["segments"]), first)
    last = max(map(max, rows)) - first
    model.rows.given = given.features.rows(torch.arange(last + 1)).float()
    with torch.inference_mode():
        found = torch.cat([model(torch.tensor([row])).logits[0] for row in rows])
    torch.testing.assert_close(found, composed(made.output, splice, bank), **CLOSE)
    some = [[torch.ones(3, model.rows.width)]]
    encoded = feature_model.encode(model, tokenizer, ["Spliced? <rna>GUA</rna>"], some)["input_ids"]
    assert (encoded >= first).sum() == 3


# --- Gemma 4 ---

IMAGE = {"image_token_id": 400, "video_token_id": 401, "audio_token_id": 402, "boi_token_id": 399}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}


def gemma4_multimodal(folder):
    """A multimodal Gemma 4 in a folder as on the hub."""
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    text = families.make("gemma4", folder).config
    config = Gemma4Config(text_config=text.to_dict(), vision_config=VISION | {"num_key_value_heads": 2}, **IMAGE)
    torch.manual_seed(9)
    model = Gemma4ForConditionalGeneration(config).eval()
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)
    return model


def test_feature_rows_of_gemma_4_are_what_its_own_image_tokens_are(tmp_path):
    """The library puts given embeddings of an image at its image tokens, with the per-layer rows of padding."""
    from types import SimpleNamespace

    theirs = gemma4_multimodal(tmp_path / "hub")
    models.make_base({"pretrained": str(tmp_path / "hub")}, tmp_path / "base")
    ours = models.compose(tmp_path / "base")
    bridge.attach(ours, "linear", Rows.width)
    bridge.install(ours, Rows())
    first = ours.get_input_embeddings().num_embeddings
    (row,) = texts(first)[:1]
    ids = torch.tensor([row])
    with torch.inference_mode():
        image = SimpleNamespace(pooler_output=[ours.bridge(Rows.table[ids[ids >= first] - first])])
        shown = ids.masked_fill(ids >= first, IMAGE["image_token_id"])
        expected = theirs(shown, mm_encoder_outputs={"image": image}).logits
        found = ours(ids).logits[..., : expected.shape[-1]]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_new_tokens_of_gemma_4_have_rows_in_the_per_layer_embedding(tmp_path):
    place, original = tmp_path / "base", families.make("gemma4", tmp_path / "hub")
    models.make_base({"pretrained": str(tmp_path / "hub")}, place)
    stored = load_file(place / models.NEW_ROWS)
    before = original.config.vocab_size
    new = len(tokenization.added_tokens()) - len(tokenization.THINK)
    assert {name: tuple(rows.shape) for name, rows in stored.items()} == {"input": (new, 32), "per_layer": (new, 16)}
    table = models.compose(place).model.embed_tokens_per_layer.weight
    assert torch.equal(table[:before], original.model.embed_tokens_per_layer.weight)
    assert torch.equal(table[before:], stored["per_layer"])
    assert len(torch.unique(table[before:], dim=0)) == new
    old = table[:before]
    assert 0.05 * old.std() < stored["per_layer"].std() < old.std()  # near the mean of the others, as in the input


def test_a_longer_rung_of_gemma_4_resumes_to_the_weights_of_a_straight_run(bases, splice, bank, tmp_path):
    base, folder = bases("gemma4"), tmp_path / "models" / "gemma4"
    reads, recipe = {"sequences": "features", "bank": bank}, SFT | {"lora": LORA, "examples": 8}
    rung = Run("sft", base, splice, folder / "sft", recipe, 1, reads=reads, ladder=True).here()
    resumed = Run("sft", base, splice, folder / "sft", recipe, 2, reads=reads, previous=rung).here()
    straight = Run("sft", base, splice, folder / "straight", recipe, 2, reads=reads).here()
    assert resumed.manifest["files"] == straight.manifest["files"]


# --- GPT-2, which has learned positions ---


def test_reference_of_the_kl_penalty_counts_positions_as_the_policy_does(bases, tmp_path):
    """The first step, in which the two are the same model, has no divergence, though prompts are padded."""
    (tmp_path / "mine.py").write_text("def length(output, answer, labels):\n    return len(output) % 7 / 7\n")
    recipe = RL | {"examples": 4, "max_completion_length": 16, "rewards": {f"{tmp_path / 'mine.py'}:length": 1.0}}
    recipe |= {"lora": None, "beta": 0.1, "learning_rate": 1e-4}
    with contextlib.chdir(ROOT):
        splits.prepare("protein-fitness", SIZES, 0, tmp_path / "data")
    prompts = pd.read_parquet(tmp_path / "data" / "train.parquet")["prompt"].head(4)
    assert len(set(map(len, tokenization.load(bases("gpt2"))(list(prompts))["input_ids"]))) > 1
    made = Run("rl", bases("gpt2"), tmp_path / "data", tmp_path / "rl", recipe, 1).here()
    assert made.history[0]["kl"] == pytest.approx(0, abs=1e-4)


# --- Checkpoints of other forms ---


def multimodal(name, folder):
    """A multimodal checkpoint of a family; its model."""
    import transformers

    if name == "gemma4":
        return gemma4_multimodal(folder)
    text = families.make({"gemma3": "gemma3", "mistral3": "mistral", "qwen3.5": "qwen3.5"}[name], folder).config
    vision = {"gemma3": VISION | {"image_size": 16, "patch_size": 8}}
    vision |= {"mistral3": VISION | {"image_size": 16, "patch_size": 8, "model_type": "pixtral"}}
    vision |= {
        "qwen3.5": {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    }
    classes = {"gemma3": "Gemma3", "mistral3": "Mistral3", "qwen3.5": "Qwen3_5"}
    made = getattr(transformers, f"{classes[name]}ForConditionalGeneration")
    tokens = {"gemma3": {"image_token_index": 400, "mm_tokens_per_image": 4}, "mistral3": {"image_token_index": 400}}
    tokens |= {"qwen3.5": {"image_token_id": 400, "video_token_id": 401}}
    config = made.config_class(text_config=text.to_dict(), vision_config=vision[name], **tokens[name])
    torch.manual_seed(9)
    model = made(config).eval()
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("name", "text_class"),
    [
        ("gemma3", "Gemma3ForCausalLM"),
        ("gemma4", "Gemma4ForCausalLM"),
        ("mistral3", "MistralForCausalLM"),
        ("qwen3.5", "Qwen3_5ForCausalLM"),
    ],
)
def test_multimodal_checkpoint_becomes_the_text_model_in_it(name, text_class, tmp_path, capsys):
    theirs = multimodal(name, tmp_path / "hub")
    models.make_base({"pretrained": str(tmp_path / "hub")}, tmp_path / "base")
    said = capsys.readouterr().out
    if name != "qwen3.5":  # which transformers itself loads as a text model
        assert f"weights are no part of {text_class} and are not used: " in said
        assert "model.vision_tower" in said.rpartition("not used: ")[2]
    ours = models.compose(tmp_path / "base")
    assert type(ours).__name__ == text_class
    ids = torch.tensor([texts(0)[0]])
    with torch.inference_mode():
        expected = theirs(ids).logits
        torch.testing.assert_close(ours(ids).logits[..., : expected.shape[-1]], expected, atol=1e-5, rtol=0)
    assert set(ours.state_dict()) == set(type(ours)(ours.config).state_dict())


@pytest.mark.parametrize("form", ["text", "multimodal"])
def test_weight_that_is_not_stored_is_named_and_not_made_up(form, tmp_path):
    (families.make if form == "text" else multimodal)("gemma4", tmp_path / "hub")
    path = tmp_path / "hub" / "model.safetensors"
    tensors = load_file(path)
    (lost,) = [name for name in tensors if name.endswith("layers.1.per_layer_projection.weight")]
    del tensors[lost]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"lack 1 weights of Gemma4\w+, the first of them {lost}"):
        models.make_base({"pretrained": str(tmp_path / "hub")}, tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_base_of_an_earlier_version_without_rows_for_the_per_layer_embedding_is_refused(bases, tmp_path):
    place = bases("gemma4")
    rows = load_file(place / models.NEW_ROWS)
    del rows["per_layer"]
    old = tmp_path / "old"
    shutil.copytree(place, old)
    save_file(rows, old / models.NEW_ROWS)
    with pytest.raises(UserError, match=r"old: it has embeddings of new tokens for \['input'\], expected .*per_layer"):
        models._load_base(old, checkpoint.read_manifest(old))


# --- What a family cannot do ---


def test_adapter_on_experts_is_refused_before_training_and_one_on_attention_is_composed(
    bases, splice, bank, trained, tmp_path
):
    base, reads = bases("qwen3-moe"), {"sequences": "features", "bank": bank}
    recipe = SFT | {"lora": LORA, "examples": 8}
    with pytest.raises(UserError, match=r"adapters are on experts \(first: model\.layers\.0\.mlp\.experts"):
        Run("sft", base, splice, tmp_path / "all", recipe, 1, reads=reads).here()
    assert not list((tmp_path / "all").rglob("checkpoint*"))
    recipe |= {"lora": LORA | {"target_modules": ["q_proj", "v_proj"]}}
    made = Run("sft", base, splice, tmp_path / "attention", recipe, 1, reads=reads).here()
    expected = logits(trained[-1], tokenization.load(base), splice, source_of(made.output, bank))
    torch.testing.assert_close(composed(made.output, splice, bank), expected, **CLOSE)


@every
def test_only_families_that_keep_documents_apart_are_trained_on_packed_blocks(name, bases, splice, tmp_path):
    """In SFT with feature rows among the others, the logits of each document are those that it has alone."""
    base = bases(name)
    model = models.compose(base)
    packed = SFT | {"packing": True, "max_length": 256, "examples": 8}
    del packed["fraction"]
    if name == "qwen3.5":  # its linear attention has one state for a whole block
        with pytest.raises(UserError, match="Qwen3_5ForCausalLM reads one document with what it has read of others"):
            pretrained.check_documents(model)
        with pytest.raises(UserError, match=r"can't keep packed sequences apart.* or set packing: false"):
            Run("sft", base, splice, tmp_path, packed, 1).here()
        return
    pretrained.check_documents(model)
    bridge.attach(model, "linear", Rows.width)
    bridge.install(model, Rows())
    rows = texts(model.get_input_embeddings().num_embeddings)
    batch = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)([{"input_ids": row} for row in rows])
    del batch["labels"]
    with torch.inference_mode():
        together = model(**batch, use_cache=False).logits[0].split([len(row) for row in rows])
        for row, among_others in zip(rows, together, strict=True):
            torch.testing.assert_close(among_others, model(torch.tensor([row])).logits[0], **CLOSE)


def test_packed_documents_that_a_model_reads_into_each_other_are_told_from_rounding(base):
    """With weights in float32 and matrices in bfloat16, as in training on a GPU, too."""
    model = models.compose(base)
    with torch.autocast("cpu", torch.bfloat16):
        pretrained.check_documents(model)

    def without_restarts(documents):
        inputs = pretrained.restart_positions(documents)
        return inputs | {"position_ids": torch.arange(inputs["input_ids"].shape[1])[None]}

    for precision in (torch.float32, torch.bfloat16):
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16),
            pytest.raises(UserError, match=r"SFT packs, and Qwen3ForCausalLM reads one .*, or do not pack"),
        ):
            pretrained.check_documents(model, without_restarts, "SFT packs", "do not pack")


@pytest.mark.parametrize(
    ("family", "form", "problem"),
    [
        ("Mamba", {"state_size": 4}, "does not read on from its cache"),
        (
            "RecurrentGemma",
            {"num_attention_heads": 4, "num_key_value_heads": 1, "lru_width": 32, "pad_token_id": 0},
            "reads a text otherwise after padding",
        ),
    ],
)
def test_backbone_that_generation_or_batches_would_read_otherwise_is_refused(family, form, problem, tmp_path):
    import transformers

    families.make("qwen3", tmp_path / "hub")
    model_class = getattr(transformers, f"{family}ForCausalLM")
    size = {"vocab_size": 404, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    model_class(model_class.config_class(**size | form)).save_pretrained(tmp_path / "hub")
    with pytest.raises(UserError, match=rf"hub: {family}ForCausalLM {problem}\. Use another backbone"):
        models.make_base({"pretrained": str(tmp_path / "hub")}, tmp_path / "base")


def test_check_of_a_backbone_does_not_take_the_rounding_of_bfloat16_for_another_text():
    """Of 12 layers, in which it grows to a tenth of the logits."""
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig

    _, form = FAMILIES["gemma4"]
    layers = {"num_hidden_layers": 12, "layer_types": families.SLIDING["layer_types"] * 6}
    size = {"vocab_size": 404, "vocab_size_per_layer_input": 404}
    model = Gemma4ForCausalLM(Gemma4TextConfig(**families.COMMON | form | layers | size)).to(torch.bfloat16)
    pretrained.check(model, "backbone")
    pretrained.check_documents(model)


def test_model_whose_padding_token_has_an_embedding_of_zeros_is_checked(base):
    """The text of the checks may have that token, whose logits are all the same."""
    model = models.compose(base)
    assert model.get_input_embeddings().weight[1].abs().max() == 0
    pretrained.check(model, "backbone")
    pretrained.check_documents(model)
