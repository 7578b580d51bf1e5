"""Log-probabilities of labelled tokens on a CPU.

`trl.trainer.utils.add_fused_lm_head` scores the tokens that have a label. Its kernels for GPUs read these alone. Its
code for other devices computes the logits of all positions, prompts and padding among them, with some thirty passes
over them, and then masks the others: that was 40% of an SFT step of the default study. Here the model makes the logits
of the labelled positions alone.
"""

import functools
from typing import Any

import torch
import transformers
from peft import PeftModel
from torch.nn import functional
from trl.trainer.utils import FusedCausalLMOutput


def score_labelled_only(trainer: transformers.Trainer, temperature: float = 1.0) -> None:
    """Let the model of one of TRL's trainers, and its reference model, score the labelled positions alone on a CPU.

    The results are those of TRL, up to rounding. Nothing changes on other devices, for a mixture of experts, or for a
    model that cannot leave out logits.
    """
    if trainer.args.device.type != "cpu" or getattr(trainer.args, "cast_lm_head_to_fp32", False):
        return
    for model in (trainer.model, getattr(trainer, "ref_model", None)):
        plain = model.get_base_model() if isinstance(model, PeftModel) else model
        if plain is not None and plain._supports_logits_to_keep():
            plain.forward = _forward(plain.forward, temperature)


def _forward(forward: Any, temperature: float) -> Any:
    @functools.wraps(forward)  # `generate` reads its signature
    def scored(*arguments: Any, fused_lm_head: bool = False, labels: Any = None, **options: Any) -> Any:
        if not fused_lm_head or "shift_labels" in options or options.get("output_router_logits"):
            fused = {"fused_lm_head": True} if fused_lm_head else {}
            return forward(*arguments, **fused, **({} if labels is None else {"labels": labels}), **options)
        options.pop("num_items_in_batch", None)
        mask = labels[:, 1:] != -100
        kept = functional.pad(mask, (0, 1))  # a position predicts the label of the next one
        logits = forward(*arguments, **options | {"use_cache": False, "logits_to_keep": kept}).logits
        targets = labels[:, 1:][mask]
        logs = (logits.float() / temperature).log_softmax(dim=-1)
        entropy = -(logs.exp() * logs).sum(dim=-1)
        log_probs = logs.gather(-1, targets[:, None]).squeeze(-1)
        places = (column.new_zeros(mask.shape).masked_scatter(mask, column) for column in (log_probs, entropy))
        is_top1 = torch.zeros_like(mask).masked_scatter(mask, logs.argmax(dim=-1) == targets)
        return FusedCausalLMOutput(None, *places, is_top1=is_top1, label_mask=mask)

    return scored
