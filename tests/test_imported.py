"""Tests of adapters and bridges that others have trained as the start of a lineage."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from cisterna import imported, models, study
from cisterna.artifacts import adapter
from cisterna.errors import UserError
from cisterna.evaluation import evaluate, generate
from cisterna.publishing import export
from cisterna.sequences import tokenization
from cisterna.study import jobs
from cisterna.study.config import evaluation_options
from runs import SFT, Run
from studies import featured
from tiny import adapted, hub_model, publish

IDS = torch.arange(5, 25)[None]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """An adapter as PEFT saves it, of a base in a folder beside it."""
    model, _ = hub_model(tmp_path / "base", tie=True, spare=64)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4))
    generator = torch.Generator().manual_seed(1)
    for parameter in filter(lambda parameter: parameter.requires_grad, tuned.parameters()):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    tuned.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def base_of(folder: Path, output: Path, **options: object) -> Path:
    models.make_base({"pretrained": str(folder)} | options, output / "checkpoint")
    return output / "checkpoint"


def trained_by_others(folder: Path) -> Any:
    """The logits of the model as PEFT itself loads it."""
    from peft import AutoPeftModelForCausalLM

    return AutoPeftModelForCausalLM.from_pretrained(folder).eval()(IDS).logits


def change(folder: Path, **keys: object) -> None:
    path = folder / adapter.FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_an_adapter_of_others_is_the_model_that_they_trained(published: Path, tmp_path: Path) -> None:
    base = base_of(published, tmp_path / "models")
    with torch.inference_mode():
        found, expected = models.compose(base)(IDS).logits, trained_by_others(published)
    torch.testing.assert_close(found[..., :400], expected[..., :400])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base")(IDS).logits
    assert (plain - expected).abs().max() > 0.01


def test_an_adapter_of_others_keeps_its_update_in_bfloat16(published: Path, tmp_path: Path) -> None:
    base = base_of(published, tmp_path / "models")
    composed = models.compose(base, torch.bfloat16)
    assert any(hasattr(module, "update_down") for module in composed.modules())
    assert composed.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16


def test_training_goes_on_from_an_adapter_of_others(published: Path, tmp_path: Path) -> None:
    base = base_of(published, tmp_path / "models")
    trained = adapted(base)
    child = publish(base, tmp_path / "models" / "sft" / "checkpoint", trained.save_pretrained)
    with torch.inference_mode():
        torch.testing.assert_close(models.compose(child)(IDS).logits, trained(IDS).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("changed", ["adapter/adapter_config.json", "base/generation_config.json"])
def test_a_changed_file_of_the_adapter_or_its_base_is_an_error(published: Path, tmp_path: Path, changed: str) -> None:
    base = base_of(published, tmp_path / "models")
    with (tmp_path / changed).open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match="its files have changed"):
        models.compose(base)


def test_a_base_beside_the_adapter_may_be_named_from_its_folder(published: Path, tmp_path: Path) -> None:
    change(published, base_model_name_or_path="../base")
    found = imported.find(str(published), None)
    assert found is not None
    assert Path(found.base).samefile(tmp_path / "base")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"peft_type": "IA3"}, "of the kind IA3; expected LORA"),
        ({"base_model_name_or_path": None}, "does not name its base"),
        ({adapter.NOTE: True}, "cisterna export"),
        ({"lora_bias": True}, "cannot be merged"),
    ],
)
def test_an_adapter_that_cannot_be_used_is_refused(
    published: Path, tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    change(published, **keys)
    with pytest.raises(UserError, match=message):
        base_of(published, tmp_path / "models")
    assert not (tmp_path / "models" / "checkpoint").exists()


def test_a_pickled_adapter_is_refused(published: Path, tmp_path: Path) -> None:
    (published / imported.WEIGHTS).rename(published / imported.PICKLE)
    with pytest.raises(UserError, match="is a pickle"):
        base_of(published, tmp_path / "models")


def test_an_adapter_beside_a_whole_model_is_refused(published: Path, tmp_path: Path) -> None:
    (tmp_path / "base" / "model.safetensors").rename(published / "model.safetensors")
    with pytest.raises(UserError, match=r"an adapter .* and the weights of a whole model"):
        base_of(published, tmp_path / "models")


# --- Bridges ---

WIDTH = 16  # of the features of the encoder of these tests
LAYER = {"weight": torch.linspace(-0.05, 0.05, 32 * WIDTH).reshape(32, WIDTH), "bias": torch.linspace(-1, 1, 32)}
BRIDGE = {"bridge": {"file": "dna_projection.pt", "encoder": "evo2"}}


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    """A text model with a projection beside it, and the tokens that it has around features."""
    folder = tmp_path / "merged"
    _, tokenizer = hub_model(folder, tie=True, spare=64)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|rna_start|>", "<|rna_pad|>", "<|rna_end|>"]})
    tokenizer.save_pretrained(folder)
    torch.save(LAYER, folder / "dna_projection.pt")
    return folder


def test_a_published_projection_is_the_bridge_with_its_weights_and_on_features_as_they_are(
    merged: Path, tmp_path: Path
) -> None:
    model = models.compose(base_of(merged, tmp_path / "models", **BRIDGE))
    assert torch.equal(model.bridge.weight, LAYER["weight"])
    assert torch.equal(model.bridge.bias, LAYER["bias"])
    features = 100 * torch.randn(3, WIDTH) + 7
    torch.testing.assert_close(model.bridge(features), features @ LAYER["weight"].T + LAYER["bias"])


def test_tags_have_the_embeddings_of_the_tokens_that_the_model_has_around_features(
    merged: Path, tmp_path: Path
) -> None:
    base = base_of(merged, tmp_path / "models", **BRIDGE)
    table, tokenizer = models.compose(base).get_input_embeddings().weight, tokenization.load(base)
    for own, theirs in (("<rna>", "<|rna_start|>"), ("</rna>", "<|rna_end|>")):
        first, second = tokenizer.convert_tokens_to_ids([own, theirs])
        assert torch.equal(table[first], table[second])


def test_a_published_model_with_a_projection_is_evaluated_and_training_goes_on_from_it(
    merged: Path, tmp_path: Path, splice: Path, bank: Path
) -> None:
    base = base_of(merged, tmp_path / "models", **BRIDGE)
    options = evaluation_options({"max_new_tokens": 4, "bootstrap": 10})
    evaluate.evaluate(base, splice, tmp_path / "eval", options, bank)
    asked = pd.read_parquet(splice / "id.parquet").head(3)
    first = [generate.load(base, bank)]
    for path in merged.glob("*.pt"):
        torch.save({name: -tensor for name, tensor in LAYER.items()}, path)
    other = base_of(merged, tmp_path / "other", **BRIDGE)
    first.append(generate.load(other, bank))
    ids = torch.tensor(first[0].encode(asked)[:1])
    read = [loaded.model(ids).logits for loaded in first]
    assert (read[0] - read[1]).abs().max() > 0.01  # features are read, through this layer
    reads = {"sequences": "features", "bank": bank}
    child = Run(
        "sft",
        other,
        splice,
        tmp_path / "sft",
        {key: value for key, value in SFT.items() if key != "fraction"} | {"examples": 8},
        reads=reads,
    ).here()
    trained = models.compose(child.output)
    assert trained.bridge.kind == "projection"
    assert 0 < (trained.bridge.weight + LAYER["weight"]).abs().max() < 0.5
    generate.load(child.output, bank)
    export.export(child.output, tmp_path / "export")
    assert json.loads((tmp_path / "export" / "features.json").read_text())["bridge"]["kind"] == "projection"
    stored = load_file(tmp_path / "export" / "bridge.safetensors")
    assert torch.equal(stored["weight"], trained.bridge.weight)
    with pytest.raises(UserError, match="has a bridge, and no task"):
        export.export(other, tmp_path / "base-export")
    assert not (tmp_path / "base-export").exists()


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"weight": torch.zeros(8, WIDTH), "bias": torch.zeros(8)}, "of width 8; expected 32"),
        (LAYER | {"more": torch.zeros(1)}, "no single linear layer"),
        ({"0.weight": torch.zeros(32, WIDTH), "2.weight": torch.zeros(32, WIDTH)}, "no single linear layer"),
        (LAYER | {"weight": torch.full((32, WIDTH), torch.nan)}, "values that are not finite"),
        (torch.nn.Linear(WIDTH, 32), "no file of tensors alone"),
    ],
)
def test_a_file_that_is_no_bridge_of_the_model_is_refused(
    merged: Path, tmp_path: Path, stored: Any, message: str
) -> None:
    torch.save(stored, merged / "dna_projection.pt")
    with pytest.raises(UserError, match=message):
        base_of(merged, tmp_path / "models", **BRIDGE)


def test_features_of_another_width_and_a_changed_projection_are_errors(
    merged: Path, tmp_path: Path, splice: Path, bank: Path
) -> None:
    torch.save({"weight": torch.zeros(32, 8), "bias": torch.zeros(32)}, merged / "dna_projection.pt")
    base = base_of(merged, tmp_path / "models", **BRIDGE)
    with pytest.raises(UserError, match="features of width 8, not 16"):
        generate.load(base, bank)
    torch.save(LAYER, merged / "dna_projection.pt")
    with pytest.raises(UserError, match="its files have changed"):
        models.compose(base)


def test_a_base_with_a_bridge_is_evaluated_on_features_and_another_encoder_is_refused() -> None:
    given = featured()
    given["backbones"]["theirs"] = {"pretrained": "hub/model", "bridge": {"file": "x.pt", "encoder": "nano-esm"}}
    given["lineages"] = [{"backbones": ["theirs"], "tasks": ["splice-donor"], "sequences": ["features"]}]
    known = study.load(given)
    (job,) = (job for job in jobs.jobs(known) if job.kind == "evaluate")
    assert "features/nano-esm/splice-donor" in job.needs
    assert any(job.kind == "features" for job in jobs.jobs(known))
    given["backbones"]["theirs"]["bridge"]["encoder"] = "esm2"
    with pytest.raises(UserError, match=r"backbones.theirs.bridge.encoder"):
        study.load(given)
