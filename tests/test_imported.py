"""Tests of adapters that others have trained as the start of a lineage."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from cisterna import imported, models
from cisterna.artifacts import adapter
from cisterna.errors import UserError
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
