"""The output of one module of a network, found by its name or by the number of its hidden state.

For networks that do not return their hidden states; those of the transformers library do
(`cisterna.sequences.encoders.huggingface`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from cisterna.errors import UserError


def find(encoder: str, module: nn.Module, layer: int | str, states: Sequence[str]) -> str:
    """The name of the module whose output is hidden state `layer`, which is its number or already the name.

    `states` names the modules whose outputs are hidden states 0 (the embeddings), 1, ... to the last. A negative
    number counts from the last. Raises UserError, which names the `encoder`, if there is no such layer.
    """
    check(encoder, module, layer, len(states) - 1, states[:3])
    return states[layer] if isinstance(layer, int) else layer


def check(encoder: str, module: nn.Module, layer: int | str, count: int, examples: Sequence[str]) -> None:
    """UserError, which names some `examples`, if `layer` is no module and no hidden state of a network of `count`."""
    if isinstance(layer, int):
        if not -count - 1 <= layer <= count:
            raise UserError(f"encoder {encoder}: layer {layer} does not exist; it has {count} layers (0 to {count})")
    elif layer not in dict(module.named_modules()):
        raise UserError(f"encoder {encoder}: no module {layer}; expected a name such as {', '.join(examples)}")


def output(module: nn.Module, name: str, *inputs: Any, **options: Any) -> torch.Tensor:
    """Call `module` and return the output of its submodule `name`, or its first part if it is not a tensor."""
    caught: list[Any] = []
    hook = module.get_submodule(name).register_forward_hook(lambda *call: caught.append(call[-1]))
    try:
        module(*inputs, **options)
    finally:
        hook.remove()
    return caught[-1] if isinstance(caught[-1], torch.Tensor) else caught[-1][0]
