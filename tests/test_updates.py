"""What a stage trained is what the composed model has, also where its weights are in lower precision.

The updates here are of the size that a learning rate of 1e-5 makes: the second factor of a LoRA starts at 0, and its
elements move by at most the learning rate a step, so after 10 steps they are about 5e-5.
"""

import pytest
import torch
from safetensors.torch import load_file

from cisterna import models, updates
from cisterna.artifacts import checkpoint, files
from cisterna.errors import UserError
from cisterna.evaluation.generate import gpu_dtype
from tiny import adapted, backbone, hub_model, publish

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
SMALL = 5e-5


def pretrained(folder, dtype, tie=False, model=None):
    """The base checkpoint over a model whose weights are those of bfloat16, as most of the hub are."""
    if not (folder / "elsewhere").exists():
        original, _ = hub_model(folder / "elsewhere", tie, spare=0)
        (model or original).to(torch.bfloat16).save_pretrained(folder / "elsewhere")
    models.make_base({"pretrained": str(folder / "elsewhere"), "dtype": dtype}, folder / dtype)
    return folder / dtype


@pytest.fixture(scope="module", params=["untied", "tied"])
def bases(request, tmp_path_factory):
    """The same base in each dtype."""
    folder = tmp_path_factory.mktemp(request.param)
    return {dtype: pretrained(folder, dtype, request.param == "tied") for dtype in ("float32", *DTYPES)}


def change(parent, child, dtype=None):
    """What the composed child has beyond its composed parent, by the names of the weights."""
    before, after = (updates.weights(models.compose(folder, dtype)) for folder in (parent, child))
    return {name: after[name] - before[name] for name in before}


def trained_change(folder, scale):
    stored = load_file(folder / "adapter_model.safetensors")
    return {
        name.removeprefix("base_model.model.").replace(".lora_B", ""): scale
        * tensor
        @ stored[name.replace("lora_B", "lora_A")]
        for name, tensor in stored.items()
        if "lora_B" in name
    }


def share(there, trained):
    return sum((there[name] * trained[name]).sum() for name in trained) / sum(
        (one * one).sum() for one in trained.values()
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_update_that_a_merge_would_round_away_is_all_there(bases, dtype, tmp_path):
    parent = bases[dtype]
    child = publish(parent, tmp_path / "child", adapted(parent, size=SMALL).save_pretrained)
    trained = trained_change(child, scale=2)
    assert share(change(parent, child), trained) == pytest.approx(1, abs=1e-5)
    assert models.update_kept(parent, child) == pytest.approx(1, abs=1e-5)
    merged = models.attach(models.compose(parent), child).merge_and_unload().state_dict()
    before = models.compose(parent).state_dict()
    if dtype == "bfloat16":
        assert share({name: merged[name].float() - before[name].float() for name in trained}, trained) < 0.9


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_computes_the_update_that_it_has(dtype):
    """On the rows of the identity, beside a weight of 0: what it gives is the update, in 8 or 11 bits."""
    random = torch.Generator().manual_seed(1)
    down, up = torch.randn(8, 32, generator=random) / 6, SMALL * torch.randn(48, 8, generator=random)
    layer = torch.nn.Linear(32, 48, bias=False, dtype=DTYPES[dtype])
    layer.weight.data.zero_()
    assert updates.stack(layer, down[:2], up[:, :2]) == updates.stack(layer, down[2:], up[:, 2:]) == 1
    computed = layer(torch.eye(32, dtype=DTYPES[dtype])).detach().T.float()
    assert share({"": computed}, {"": up @ down}) == pytest.approx(1, abs=1e-3)
    assert (computed - up @ down).norm() < 0.01 * (up @ down).norm()


def test_an_update_over_float32_is_all_there_after_a_cast_as_on_a_gpu(bases, tmp_path):
    parent = bases["float32"]
    child = publish(parent, tmp_path / "child", adapted(parent, size=SMALL).save_pretrained)
    there = change(parent, child, torch.bfloat16)
    assert share(there, trained_change(child, scale=2)) == pytest.approx(1, abs=1e-5)
    assert {one.dtype for one in models.compose(child, torch.bfloat16).parameters()} == {torch.bfloat16}


LINEAGE = [
    {"r": 8},
    {"r": 2, "lora_alpha": 4, "use_rslora": True},
    {"r": 4, "rank_pattern": {"q_proj": 6}, "alpha_pattern": {"v_proj": 64}},
    {"r": 16, "target_modules": ["q_proj", "down_proj"]},
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_lineage_of_four_adapters_is_the_one_composed_in_float32(bases, dtype, tmp_path):
    """The adapters are the same, the weights below them as well: all are numbers that bfloat16 has."""
    ends = {}
    for name in ("float32", dtype):
        end = bases[name]
        for number, lora in enumerate(LINEAGE):
            folder = tmp_path / name / str(number)
            if name == "float32":
                save = adapted(end, number, size=SMALL, **lora).save_pretrained
            else:
                stored = tmp_path / "float32" / str(number)

                def save(target, stored=stored):
                    for path in stored.glob("adapter*"):
                        (target / path.name).write_bytes(path.read_bytes())

            end = publish(end, folder, save)
        ends[name] = models.compose(end)
    exact, composed = updates.weights(ends["float32"]), updates.weights(ends[dtype])
    for name in exact:
        if "layers" in name:  # the embeddings have new rows, which are drawn in the dtype
            torch.testing.assert_close(composed[name], exact[name], atol=1e-7, rtol=0)
    layer = ends[dtype].model.layers[0].self_attn
    assert layer.q_proj.update_down.shape == (8 + 2 + 6 + 16, 32)
    assert layer.k_proj.update_down.shape == (8 + 2 + 4, 32)
    assert layer.q_proj.update_down.dtype == torch.float32
    assert layer.q_proj.weight.dtype == DTYPES[dtype]


FORMS = {
    "large": {"r": 4, "lora_alpha": 64},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "output": {"target_modules": ["lm_head"]},
    "dora": {"use_dora": True},
    "embeddings-in-full": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "output-in-full": {"modules_to_save": ["lm_head"]},
    "layer-in-full": {"modules_to_save": ["q_proj"], "target_modules": ["v_proj"]},
    "norm-in-full": {"modules_to_save": ["norm"], "target_modules": ["v_proj"]},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_form_of_adapter_composes_above_and_below_another(bases, dtype, form, tmp_path):
    """To the model that was trained, within the rounding of its activations."""
    close = 1e-5 if dtype == "float32" else 0.02
    whole = torch.float32 if form == "dora" else None  # as training does, where an adapter reads the whole weights
    end = bases[dtype]
    ids = torch.randint(0, 300, (2, 30), generator=torch.Generator().manual_seed(5))
    for number, lora in enumerate(({"r": 4}, FORMS[form], {"r": 2})):
        trained = adapted(end, number, whole, **lora)
        child = publish(end, tmp_path / str(number), trained.save_pretrained)
        with torch.inference_mode():
            theirs, ours = (model(ids, use_cache=False).logits for model in (trained, models.compose(child)))
            below = models.compose(end)(ids, use_cache=False).logits
        assert (theirs.float() - ours).abs().mean() < close
        assert (theirs.float() - below).abs().mean() > 2 * close
        end = child


def test_layers_of_gpt2_keep_their_update_too(tmp_path):
    architecture = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    base = tmp_path / "base"
    models.make_base({"architecture": architecture, "tokenizer": backbone()["tokenizer"], "seed": 0}, base)
    end, changes = base, []
    for number in range(2):
        child = publish(end, tmp_path / str(number), adapted(end, number, size=SMALL).save_pretrained)
        exact, cast = change(end, child), change(end, child, torch.bfloat16)
        changes += [(cast[name], exact[name]) for name in exact if exact[name].any()]
        end = child
    assert len(changes) == 2 * 2 * 4
    for cast, exact in changes:
        torch.testing.assert_close(cast, exact, atol=1e-7, rtol=1e-3)


def test_a_model_without_its_last_adapter_is_its_parent_with_all_earlier_ones(bases, tmp_path):
    """It is the reference of a KL penalty."""
    sft = publish(bases["bfloat16"], tmp_path / "sft", adapted(bases["bfloat16"], 1).save_pretrained)
    policy = adapted(sft, 2)
    ids = torch.arange(30)[None]
    with torch.inference_mode(), policy.disable_adapter():
        reference = policy(ids).logits
    with torch.inference_mode():
        torch.testing.assert_close(reference, models.compose(sft)(ids).logits, atol=0, rtol=0)
        assert (reference - models.compose(bases["bfloat16"])(ids).logits).abs().max() > 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_have_the_names_of_the_plain_model_and_every_update_and_the_model_does_not_change(
    bases, dtype, tmp_path
):
    sft = publish(bases[dtype], tmp_path / "sft", adapted(bases[dtype], 1).save_pretrained)
    trained = adapted(sft, 2, modules_to_save=["lm_head"])
    rl = publish(sft, tmp_path / "rl", trained.save_pretrained)
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    ours = {name: weight.float() + sum(added.values()) for name, weight, added in updates.parameters(trained)}
    assert all(torch.equal(before[name], tensor) for name, tensor in trained.state_dict().items())
    exact = updates.weights(models.compose(rl))
    assert ours.keys() == exact.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, exact[name], atol=1e-6, rtol=1e-6)


def test_tied_layers_come_once_unless_an_adapter_is_on_one_of_them(tmp_path):
    models.make_base(backbone(tie_word_embeddings=True), tmp_path / "base")
    plain = [name for name, _, _ in updates.parameters(models.compose(tmp_path / "base"))]
    assert "lm_head.weight" not in plain
    adapter = adapted(tmp_path / "base", target_modules=["embed_tokens"])
    found = {name: sum(added.values()) for name, _, added in updates.parameters(adapter)}
    assert found.keys() == {*plain, "lm_head.weight"}
    layer = adapter.get_base_model().model.embed_tokens
    torch.testing.assert_close(found["model.embed_tokens.weight"], layer.get_delta_weight("default"))
    assert not found["lm_head.weight"]


def test_adapter_that_is_no_sum_has_no_update_for_another_program(bases):
    with pytest.raises(UserError, match="plain LoRA on linear layers and embeddings only; expected use_vllm: false"):
        list(updates.parameters(adapted(bases["float32"], use_dora=True)))


def test_a_model_is_not_saved_without_the_updates_beside_its_weights(bases, tmp_path):
    sft = publish(bases["bfloat16"], tmp_path / "sft", adapted(bases["bfloat16"]).save_pretrained)
    with pytest.raises(UserError, match=r"would lose the updates .* torch.float32"):
        models.compose(sft).save_pretrained(tmp_path / "model")
    exact = models.compose(sft, torch.float32)
    exact.save_pretrained(tmp_path / "model")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(tensor, exact.state_dict()[name]) for name, tensor in stored.items())


def test_full_weights_in_float32_stay_so_above_a_base_of_lower_precision(bases, tmp_path):
    parent = publish(bases["bfloat16"], tmp_path / "sft", adapted(bases["bfloat16"], 1).save_pretrained)
    trained = models.compose(parent, torch.float32)
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter += 1e-6
    child = publish(parent, tmp_path / "child", trained.save_pretrained)
    composed = models.compose(child).state_dict()
    assert all(torch.equal(composed[name], tensor) for name, tensor in trained.state_dict().items())
    assert not any(torch.equal(composed[name], tensor) for name, tensor in before.items())


def test_stage_whose_full_weights_a_cast_would_round_is_found_and_evaluated_in_float32(bases, tmp_path, capsys):
    def full(name, kept):
        facts = {"recipe": {}, "data": {}, "trained": {}, "measured": kept}
        with files.new_folder(tmp_path / name) as folder:
            models.compose(bases["float32"]).save_pretrained(folder)
            checkpoint.write_manifest(
                folder, published=tmp_path / name, kind="cpt", parent=bases["float32"], seed=0, **facts
            )
        return publish(tmp_path / name, tmp_path / f"{name}-sft", adapted(tmp_path / name).save_pretrained)

    lost, kept, old = (
        full("lost", {"update_kept": {"bfloat16": 0.41, "float16": 0.995}}),
        full("kept", {"update_kept": {"bfloat16": 0.995}}),
        full("old", {}),
    )
    assert models.rounded_stage(lost, torch.bfloat16) == (tmp_path / "lost", 0.41)
    assert models.rounded_stage(lost, torch.float16) is None
    assert models.rounded_stage(kept, torch.bfloat16) is None
    assert models.rounded_stage(old, torch.bfloat16) == (tmp_path / "old", None)
    dtypes = [gpu_dtype(folder) for folder in (lost, kept, old)]
    assert dtypes == [torch.float32, torch.bfloat16, torch.float32]
    said = capsys.readouterr().out
    assert f"in float32: bfloat16 would keep 0.41 of the update of {tmp_path / 'lost'}\n" in said
    assert "in bfloat16, with at least 0.99" in said
    assert f"an unknown share of the update of {tmp_path / 'old'}\n" in said


def test_too_small_a_share_is_refused_with_the_number():
    assert updates.check(0.995, "here") == 0.995
    for kept in (0.41, float("nan")):
        with pytest.raises(UserError, match=rf"^models/x: the composed model has {kept:.2f} .* at least 0.99"):
            updates.check(kept, "models/x")
