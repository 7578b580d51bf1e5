"""Trained updates of weights in lower precision, which must not be rounded away.

A weight in bfloat16 has 8 significant bits. What RL with a small learning rate adds to it is mostly smaller than the
last one, and would be lost in a merge. So a LoRA update of such a weight is kept beside it, in float32: `stack` gives
the layer one low-rank update, to which each stage of a lineage adds its rank. Modules that are trained in full are kept
in float32 (`widen`). `share` says how much of an update a model has.

A layer stays what it is (`nn.Linear`, or the `Conv1D` of GPT-2), so PEFT puts a further adapter on it as on any other,
and without that adapter (the reference of a KL penalty) the layer still has the updates of its lineage. Not for loading
(`cisterna.models`).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from cisterna.errors import UserError

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer
    from transformers import PreTrainedModel

PREFIX = "base_model.model."  # of the names in a PEFT model
KEPT = 0.99  # a model that has less than this share of a trained update is refused


def share(there: torch.Tensor | float, trained: torch.Tensor | float) -> float:
    """The share of a trained update that is there: its dot product with the trained one, over that one's own."""
    return float(there) / float(trained) if float(trained) else 1.0


def check(kept: float, what: str) -> float:
    """The share `kept` of an update. UserError, which begins with `what`, if it is too small."""
    if not kept >= KEPT:  # also NaN
        raise UserError(
            f"{what}: the composed model has {kept:.2f} of the update that was trained, expected at least {KEPT}: the "
            "rest is lost to rounding. Use dtype: float32 for the backbone"
        )
    return kept


def low(weight: torch.Tensor) -> bool:
    """Whether a weight has fewer bits than float32, and rounds what is added to it."""
    return weight.is_floating_point() and weight.dtype.itemsize < torch.float32.itemsize


# --- A low-rank update beside a weight ---


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, "LoraLayer"]]:
    """Every layer of a model that has a LoRA adapter, with its name."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def check_adapted(model: nn.Module) -> None:
    """UserError for an adapter on experts, whose weights are no linear layers: it could not be composed."""
    experts = [name for name, layer in adapted_layers(model) if not hasattr(layer.get_base_layer(), "weight")]
    if experts:
        raise UserError(
            f"lora: {len(experts)} adapters are on experts (first: {experts[0].removeprefix(PREFIX)}), which is not "
            "supported. Name the other layers in target_modules, such as [q_proj, k_proj, v_proj, o_proj]"
        )


def can_stack(layer: "LoraLayer") -> bool:
    """Whether the update of a layer's adapter is `up @ down`: not DoRA, not an embedding's, not one with a bias."""
    adapter = layer.active_adapters[0]
    linear = isinstance(layer.get_base_layer(), nn.Linear | Conv1D) and adapter in layer.lora_A
    return linear and not layer.lora_bias[adapter] and adapter not in layer.lora_variant


def factors(layer: "LoraLayer") -> tuple[torch.Tensor, torch.Tensor]:
    """The update of a layer's adapter, scaled, float32: `down` (rank, inputs) and `up` (outputs, rank)."""
    adapter = layer.active_adapters[0]
    down, up = (part[adapter].weight.detach().float() for part in (layer.lora_A, layer.lora_B))
    return down, up * layer.scaling[adapter]


def stack(module: Any, down: torch.Tensor, up: torch.Tensor) -> float:
    """Let a linear layer add `up @ down` to what it computes, beside earlier updates; returns the share that it has."""
    if not hasattr(module, "update_down"):
        module.register_buffer("update_down", down[:0], persistent=False)
        module.register_buffer("update_up", up[:, :0], persistent=False)
        module.register_forward_hook(_add_update)
    rank = len(module.update_down)
    module.update_down = torch.cat([module.update_down, down])
    module.update_up = torch.cat([module.update_up, up], dim=1)
    has = module.update_down[rank:], module.update_up[:, rank:]
    return share(_dot((down, up), has), _dot((down, up), (down, up)))


def _dot(first: tuple[torch.Tensor, torch.Tensor], second: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The dot product of two low-rank updates, without the matrices that they stand for."""
    return ((first[0] @ second[0].T) * (first[1].T @ second[1])).sum()


def update(module: Any) -> Any:
    """What a layer has beside its weight, in the shape of the weight, float32; 0.0 for nothing."""
    if not hasattr(module, "update_down"):
        return 0.0
    whole = module.update_up.float() @ module.update_down.float()
    return whole.T if isinstance(module, Conv1D) else whole


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a model computes with: every weight, with the update beside it, float32."""
    found = {name: tensor.detach().float() for name, tensor in model.state_dict().items()}
    for name, module in model.named_modules():
        if hasattr(module, "update_down"):
            found[f"{name}.weight"] = found[f"{name}.weight"] + update(module)
    return found


def parameters(
    model: Any, gather: Callable[[list], Any] = lambda parameters: nullcontext()
) -> Iterator[tuple[str, torch.Tensor, dict[str, torch.Tensor]]]:
    """Every parameter of a model with what its layer adds to it, for a program that has neither adapters nor updates.

    A parameter of a PEFT model has its name in the plain model. The updates are float32: `beside` is the one beside the
    weight, `adapter` that of the adapter. The model does not change: to merge and to unmerge again, as PEFT does, would
    leave rounding behind. `gather` makes sharded parameters whole; they are whole until the next one is asked for. What
    two layers share comes once, unless one of them has updates. UserError for adapters that are no sum, such as DoRA.
    """
    from peft import PeftModel

    replaced = (model.prefix, "original_module") if isinstance(model, PeftModel) else ()
    shared = set()
    for name, weight in model.named_parameters(remove_duplicate=False):
        if any(part in name for part in replaced):
            continue
        above, _, own = name.rpartition(".")
        module, layer = model.get_submodule(above), model.get_submodule(above.removesuffix(".base_layer"))
        adapted = module is not layer
        updated = own == "weight" and (adapted or hasattr(module, "update_down"))
        place = id(weight), id(layer) if updated else None
        if place in shared:
            continue
        shared.add(place)
        with torch.no_grad(), gather(list(layer.parameters()) if adapted else [weight]):
            added = {"beside": update(module)} if updated and hasattr(module, "update_down") else {}
            added |= {"adapter": _of_adapter(layer)} if updated and adapted else {}
            plain = name.removeprefix(PREFIX).replace(".base_layer", "").replace("modules_to_save.default.", "")
            yield plain, weight.detach(), added


def _of_adapter(layer: "LoraLayer") -> torch.Tensor:
    """What an adapter adds to the weight of its layer, float32."""
    adapter, base = layer.active_adapters[0], layer.get_base_layer()
    if can_stack(layer):
        down, up = factors(layer)
        return (up @ down).T if isinstance(base, Conv1D) else up @ down
    if not isinstance(base, nn.Embedding) or adapter in layer.lora_variant:
        raise UserError("lora: vLLM takes plain LoRA on linear layers and embeddings only; expected use_vllm: false")
    return layer.get_delta_weight(adapter).float()


def _add_update(module: Any, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    """Computed in bfloat16 where the layer is, as an adapter in training is; float16 has no numbers so small."""
    down, up, inputs = module.update_down, module.update_up, arguments[0]
    dtype = inputs.dtype if inputs.dtype == torch.bfloat16 else down.dtype
    inner = functional.linear(inputs.to(dtype), down.to(dtype))
    return output + functional.linear(inner, up.to(dtype)).to(output.dtype)


# --- Modules that are trained in full ---


def widen(model: "PreTrainedModel", module: Any) -> None:
    """Keep the weights of a module in float32, with the updates that were beside them.

    It takes and gives the dtype of the rest of the model. Modules that share its weights (tied embeddings) do as well.
    """
    added: dict[Any, Any] = {part: update(part) for part in module.modules() if hasattr(part, "update_down")}
    narrow: Mapping[int, torch.dtype] = {id(one): one.dtype for one in module.parameters() if low(one)}
    if narrow:
        owners = [part for part in model.modules() if {id(own) for own in part.parameters(recurse=False)} & set(narrow)]
        module.float()  # in place, so that tied weights stay tied
        for part in owners:
            _join(model, part, next(iter(narrow.values())))
    for part, matrix in added.items():
        part.weight.data += matrix
        part.update_down, part.update_up = part.update_down[:0], part.update_up[:, :0]


def _join(model: "PreTrainedModel", module: nn.Module, dtype: torch.dtype) -> None:
    """Make a module with float32 weights work in a model of `dtype`."""
    module.register_forward_pre_hook(_to_own_dtype)
    output = model.get_output_embeddings()
    if isinstance(module, nn.Embedding) or output is None or module.weight is not output.weight:
        module.register_forward_hook(partial(_to_dtype, dtype))
    else:  # losses that are fused with the output layer read its weight and do not call it
        model.base_model.register_forward_hook(partial(_to_output_layer, model))


def _to_own_dtype(module: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    dtype = next(module.parameters(recurse=False)).dtype
    return tuple(one.to(dtype) if one.is_floating_point() else one for one in arguments)


def _to_dtype(dtype: torch.dtype, module: Any, arguments: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    return output.to(dtype)


def _to_output_layer(model: "PreTrainedModel", decoder: Any, arguments: tuple[Any, ...], output: Any) -> Any:
    output.last_hidden_state = output.last_hidden_state.to(model.get_output_embeddings().weight.dtype)
    return output
