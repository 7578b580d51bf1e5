"""Bases made here and elsewhere; lineages of adapters and full weights composed into the model that was trained.

Tolerance: merging computes W + BA once in float32 where the unmerged model adds BAx to Wx; the two differ by rounding.
The logits here are of the order of 1 to 10, so 1e-4 is some hundred units in the last place and far below any real
difference (which each test that could pass by accident shows to be above 1e-2).
"""

import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from cisterna import models
from cisterna.artifacts import checkpoint, files
from cisterna.errors import UserError
from cisterna.sequences import tokenization
from tiny import adapted, backbone, hub_model, publish

CLOSE = {"atol": 1e-4, "rtol": 0}


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tied") / "checkpoint"
    models.make_base(backbone(tie_word_embeddings=True), folder)
    return folder


@pytest.fixture
def parent(request):
    """The base checkpoint named by the test's parameter: `base` (untied) or `tied`."""
    return request.getfixturevalue(request.param)


both = pytest.mark.parametrize("parent", ["base", "tied"], indirect=True)


def logits(model, size=None):
    """Logits on fixed random ids, shape (2, 40, vocabulary)."""
    ids = torch.randint(0, size or model.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        return model(ids, use_cache=False).logits


def differ(first, second):
    return (first - second).abs().max() > 1e-2


# Bases made here


def test_the_same_seed_gives_the_same_base_and_another_seed_another(base, tmp_path):
    again = models.make_base(backbone(), tmp_path / "again")
    other = models.make_base(backbone(seed=1), tmp_path / "other")
    assert again["identity"] == checkpoint.read_manifest(base)["identity"]
    assert other["identity"] != again["identity"]
    assert other["files"]["model.safetensors"] != again["files"]["model.safetensors"]
    assert other["files"]["tokenizer.json"] == again["files"]["tokenizer.json"]


@both
def test_a_base_is_what_the_library_itself_loads_from_the_folder(parent):
    from transformers import AutoModelForCausalLM

    theirs, ours = AutoModelForCausalLM.from_pretrained(parent), models.compose(parent)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())
    assert not ours.training
    assert (
        ours.get_output_embeddings().weight is ours.get_input_embeddings().weight
    ) == ours.config.tie_word_embeddings
    assert ours.config.vocab_size == len(tokenization.load(parent))


def test_a_model_is_composed_in_the_dtype_asked_for(base):
    assert {parameter.dtype for parameter in models.compose(base, torch.bfloat16).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "architecture",
    [{"model_type": "qwen-nine"}, {"hidden_size": "wide"}, {"num_hidden_layers": -1.5}, {"num_attention_heads": 3}],
    ids=lambda architecture: next(iter(architecture)),
)
def test_an_architecture_that_cannot_be_made_is_the_users_error(tmp_path, architecture):
    with pytest.raises(UserError, match="backbone architecture"):
        models.make_base(backbone(**architecture), tmp_path / "deep" / "checkpoint")
    assert not list((tmp_path / "deep").iterdir())


# Lineages


@both
@pytest.mark.parametrize(
    "lora",
    [
        {"r": 8},
        {"r": 4, "lora_alpha": 4, "use_rslora": True},
        {"r": 8, "target_modules": ["q_proj", "v_proj"]},
        {"r": 8, "modules_to_save": ["embed_tokens", "lm_head"]},
        {"r": 8, "modules_to_save": ["lm_head"]},
        {"r": 8, "use_dora": True},
    ],
    ids=["all-linear", "rslora", "attention", "both-embeddings", "output", "dora"],
)
def test_a_composed_model_equals_the_model_that_was_trained(parent, lora, tmp_path):
    trained = adapted(parent, **lora)
    child = publish(parent, tmp_path / "child", trained.save_pretrained)
    composed = models.compose(child)
    torch.testing.assert_close(logits(composed), logits(trained), **CLOSE)
    assert differ(logits(composed), logits(models.compose(parent)))
    assert type(composed) is type(models.compose(parent))


@both
def test_an_adapter_checkpoint_holds_only_the_adapter(parent, tmp_path):
    child = publish(parent, tmp_path / "child", adapted(parent).save_pretrained)
    assert all(".lora_" in name for name in load_file(child / "adapter_model.safetensors"))
    assert not (child / "model.safetensors").exists()


@both
def test_stages_of_different_ranks_compose_in_order(parent, tmp_path):
    sft = publish(parent, tmp_path / "sft", adapted(parent, 1, r=8, modules_to_save=["lm_head"]).save_pretrained)
    trained = adapted(sft, 2, r=2, lora_alpha=4)
    rl = publish(sft, tmp_path / "rl", trained.save_pretrained, "rl")
    torch.testing.assert_close(logits(models.compose(rl)), logits(trained), **CLOSE)
    assert differ(logits(models.compose(rl)), logits(models.compose(sft)))
    # The same RL adapter straight on the base is another model: the ancestor's adapter was merged below it.
    alone = models.attach(models.compose(parent), rl).eval()
    assert differ(logits(alone), logits(trained))
    assert [manifest["kind"] for _, manifest in checkpoint.lineage(rl)] == ["base", "sft", "rl"]
    assert models.base_of(rl) == parent


@both
@pytest.mark.parametrize("lora", [{}, {"modules_to_save": ["lm_head"]}], ids=["lora", "output-saved"])
def test_full_weights_compose_below_and_above_an_adapter(parent, lora, tmp_path):
    def moved(folder, seed):
        model = models.compose(folder)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        return model

    first = moved(parent, 1)
    cpt = publish(parent, tmp_path / "cpt", first.save_pretrained, "cpt")
    torch.testing.assert_close(logits(models.compose(cpt)), logits(first), atol=0, rtol=0)
    second = adapted(cpt, 2, **lora)
    sft = publish(cpt, tmp_path / "sft", second.save_pretrained)
    torch.testing.assert_close(logits(models.compose(sft)), logits(second), **CLOSE)
    third = moved(sft, 3)
    last = publish(sft, tmp_path / "last", third.save_pretrained)
    torch.testing.assert_close(logits(models.compose(last)), logits(third), atol=0, rtol=0)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "model.safetensors"])
@pytest.mark.parametrize("problem", ["missing", "unexpected", "shape"])
def test_weights_that_do_not_fit_are_refused_by_the_name_of_the_tensor(base, tmp_path, file, problem):
    names = []

    def save(folder):
        (models.compose(base) if file == "model.safetensors" else adapted(base)).save_pretrained(folder)
        tensors = load_file(folder / file)
        name = "model.layers.9.extra" if problem == "unexpected" else min(tensors)
        if problem == "missing":
            del tensors[name]
        else:
            tensors[name] = torch.zeros(1)
        save_file(tensors, folder / file, metadata={"format": "pt"})
        names.append(name)

    child = publish(base, tmp_path / "child", save)
    checkpoint.verify(child)  # the files are those of the manifest: only loading can see it
    with pytest.raises(UserError, match=problem) as caught:
        models.compose(child)
    assert str(child) in str(caught.value)
    assert names[0] in str(caught.value)


def test_a_lineage_that_does_not_begin_with_a_base_is_refused(base, tmp_path):
    orphan = tmp_path / "orphan"
    with files.new_folder(orphan) as folder:
        adapted(base).save_pretrained(folder)
        checkpoint.write_manifest(
            folder, published=orphan, kind="sft", parent=None, recipe={}, seed=0, data={}, trained={}, measured={}
        )
    with pytest.raises(UserError, match="has to begin with a base"):
        models.compose(orphan)


# Bases that were trained elsewhere


@pytest.fixture(params=[("untied", 0), ("tied", 0), ("tied", 10), ("untied", 100)], ids=lambda p: f"{p[0]}-{p[1]}-rows")
def pretrained(request, tmp_path):
    """The base checkpoint over a model made elsewhere, that model and its tokenizer.

    The model has more rows than tokens: as many as are needed for the new ones, some, or none.
    """
    tie, spare = request.param
    original, tokenizer = hub_model(tmp_path / "elsewhere", tie == "tied", spare)
    folder = tmp_path / "models" / "other" / "base" / "checkpoint"
    models.make_base({"pretrained": str(tmp_path / "elsewhere"), "seed": 3}, folder)
    return folder, original, tokenizer


def test_of_a_pretrained_model_only_the_new_rows_are_stored(pretrained):
    folder, original, tokenizer = pretrained
    new = len(tokenization.added_tokens()) - len(tokenization.THINK)
    names = {"input"} if original.config.tie_word_embeddings else {"input", "output"}
    stored = load_file(folder / models.NEW_ROWS)
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == dict.fromkeys(names, (new, 32))
    assert [path.name for path in folder.glob("*.safetensors")] == [models.NEW_ROWS]
    assert len(tokenization.load(folder)) == len(tokenizer) + new


def test_old_tokens_keep_the_logits_of_the_pretrained_model(pretrained):
    folder, original, tokenizer = pretrained
    composed = models.compose(folder)
    known = len(tokenizer)
    theirs, ours = logits(original, known)[..., :known], logits(composed, known)[..., :known]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)  # a wider matrix may be summed in another order
    assert tokenization.load(folder).encode("a gene of 12 kb") == tokenizer.encode("a gene of 12 kb")


def test_new_tokens_are_distinct_and_read_and_written_by_the_model(pretrained):
    folder, _, tokenizer = pretrained
    composed, extended = models.compose(folder), tokenization.load(folder)
    prompt = "Spliced? <rna>GUAAGU</rna> <dna>ACGT</dna> <protein>MKV</protein>"
    ids = extended(tokenization.expand(prompt), add_special_tokens=False)["input_ids"]
    assert sum(token >= len(tokenizer) for token in ids) == 13 + 6
    assert extended.pad_token_id is not None
    for module in (composed.get_input_embeddings(), composed.get_output_embeddings()):
        rows = module.weight[len(tokenizer) : len(extended)]
        assert len(torch.unique(rows, dim=0)) == len(rows)
        old = module.weight[: len(tokenizer)]
        assert (rows.mean(dim=0) - old.mean(dim=0)).norm() < old.norm(dim=1).mean()
    with torch.inference_mode():
        answer = composed.generate(torch.tensor([ids]), max_new_tokens=3, do_sample=False)
    assert answer.shape == (1, len(ids) + 3)


@pytest.mark.parametrize(
    "lora", [{}, {"modules_to_save": ["embed_tokens", "lm_head"]}], ids=["lora", "both-embeddings"]
)
def test_adapters_compose_over_a_pretrained_base(pretrained, lora, tmp_path):
    folder, _, _ = pretrained
    trained = adapted(folder, **lora)
    child = publish(folder, tmp_path / "models" / "child", trained.save_pretrained)
    composed = models.compose(child)
    torch.testing.assert_close(logits(composed), logits(trained), **CLOSE)
    assert differ(logits(composed), logits(models.compose(folder)))
    if not lora:
        assert all(".lora_" in name for name in load_file(child / "adapter_model.safetensors"))


def test_another_model_in_the_place_of_the_pretrained_one_is_refused(pretrained, tmp_path):
    folder, original, _ = pretrained
    with torch.no_grad():
        original.model.norm.weight += 1
    original.save_pretrained(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"backbone {tmp_path / 'elsewhere'}: its files"):
        models.compose(folder)


def test_tokens_that_the_pretrained_model_has_no_rows_for_get_rows_that_stay(tmp_path):
    original, tokenizer = hub_model(tmp_path / "elsewhere", tie=False, spare=0)
    tokenizer.add_tokens(["<|more|>"])
    tokenizer.save_pretrained(tmp_path / "elsewhere")
    models.make_base({"pretrained": str(tmp_path / "elsewhere")}, tmp_path / "base")
    first, again = (models.compose(tmp_path / "base").state_dict() for _ in range(2))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    row = first["model.embed_tokens.weight"][original.config.vocab_size]
    assert row.norm() < original.get_input_embeddings().weight.norm(dim=1).mean()  # around the mean of the others


def test_the_new_rows_depend_on_the_seed_alone(tmp_path):
    hub_model(tmp_path / "elsewhere", tie=False, spare=0)
    made = [
        models.make_base({"pretrained": str(tmp_path / "elsewhere"), "seed": seed}, tmp_path / name)["identity"]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert made[0] == made[1] != made[2]


@pytest.mark.parametrize("broken", ["absent", "empty", "no-weights", "no-tokenizer"])
def test_a_pretrained_folder_that_cannot_be_loaded_is_the_users_error(tmp_path, broken):
    folder = tmp_path / "elsewhere"
    if broken == "empty":
        folder.mkdir()
    elif broken != "absent":
        hub_model(folder, tie=False, spare=0)
        for path in folder.glob("*.safetensors" if broken == "no-weights" else "tokenizer*"):
            path.unlink()
    with pytest.raises(UserError, match=f"backbone {folder}: cannot be loaded"):
        models.make_base({"pretrained": str(folder)}, tmp_path / "models" / "checkpoint")
    assert not list((tmp_path / "models").iterdir())


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("adapter", "An adapter lies beside its weights"),
        ("shape", r"1 weights of other shapes .* model.layers.0.mlp.up_proj.weight: \(10, 32\), expected \(64, 32\)"),
        ("nan", "computes values that are not finite"),
    ],
)
def test_a_pretrained_folder_with_other_weights_than_those_of_the_model_is_refused(tmp_path, fault, message):
    folder, name = tmp_path / "hub", "model.layers.0.mlp.up_proj.weight"
    model, _ = hub_model(folder, tie=False, spare=0)
    if fault == "adapter":
        adapter = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
        for place in (folder, tmp_path / "adapter"):  # of a whole model, and of one that is such a folder
            adapter.save_pretrained(place)
            settings = files.read_json(place / "adapter_config.json") | {"base_model_name_or_path": str(folder)}
            files.write_json(place / "adapter_config.json", settings)
        folder = tmp_path / "adapter"
    else:
        tensors = load_file(folder / "model.safetensors")
        tensors[name] = tensors[name][:10].clone() if fault == "shape" else tensors[name] * torch.nan
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=message):
        models.make_base({"pretrained": str(folder)}, tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_a_pretrained_folder_that_went_away_is_named_when_its_lineage_is_composed(tmp_path):
    hub_model(tmp_path / "elsewhere", tie=False, spare=0)
    models.make_base({"pretrained": str(tmp_path / "elsewhere")}, tmp_path / "checkpoint")
    shutil.rmtree(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"backbone {tmp_path / 'elsewhere'}: cannot be loaded"):
        models.compose(tmp_path / "checkpoint")


def test_model_of_the_hub_that_cannot_be_fetched_is_an_error_with_all_that_the_library_says(tmp_path):
    """Transformers gives the reason in its first line and what to do in its second one."""
    with pytest.raises(UserError, match=r"couldn't connect to .* Check your internet connection") as caught:
        models.make_base({"pretrained": "nobody/no-such-model"}, tmp_path / "base")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "base").exists()


def test_a_cast_leaves_the_frequencies_of_rotary_positions_in_float32(base):
    """In bfloat16 they have 8 bits, and far positions are turned by other angles."""
    model = models.compose(base, torch.bfloat16)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}
