"""Early-abort checks: they end a run whose log shows that it cannot give a useful checkpoint.

Except for `moved`, the checks read only the logged history. It is part of the saved state, so an interrupted run ends
at the same step, with the same message, as one that was not interrupted.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cisterna.errors import UserError

# A loss has exploded if it stays this many times above that of the first log. Training recovers from a spike, so one
# log is not enough; and a loss that begins near zero has room to rise, so it also has to be above a floor, in nats.
# Megatron-LM calls a single loss spiky at 10 times the largest of the first ones (SPIKY_LOSS_FACTOR).
EXPLODED = 3.0
LOGS = 3
FLOOR = 1.0
# Reinforcement learning ends after this many steps if the rewards have had no variance since the first.
STEPS = 50

History = Sequence[Mapping[str, Any]]


def check(kind: str, history: History, ended: bool = False) -> None:
    """UserError if the log shows that it is useless to continue, or to publish a run that has `ended`."""
    loss, step = history[-1].get("loss", 0.0), history[-1]["step"]
    if not math.isfinite(loss):
        raise UserError(
            f"the loss is {loss} at step {step}; nothing is published. Lower learning_rate or max_grad_norm in the "
            "recipe"
        )
    if kind == "rl":  # its loss is a surrogate around zero, whose size means nothing
        _check_rewards(history, 0 if ended else STEPS)
    else:
        _check_losses(history, 1 if ended else LOGS)


def _check_losses(history: History, logs: int) -> None:
    """UserError if the last `logs` losses are all far above the first."""
    losses = [(entry["loss"], entry["step"]) for entry in history if "loss" in entry]
    limit = max(EXPLODED * losses[0][0], FLOOR) if losses else math.inf
    last = losses[1:][-logs:]
    if len(last) == logs and all(loss > limit for loss, _ in last):
        raise UserError(
            f"the loss has exploded: {losses[0][0]:.4g} at step {losses[0][1]}, "
            f"{', '.join(f'{loss:.4g} at step {step}' for loss, step in last)}; nothing is published. Lower "
            "learning_rate or max_grad_norm, or set warmup_steps, in the recipe"
        )


def _check_rewards(history: History, steps: int) -> None:
    """UserError if after `steps` no group of completions ever had reward variance: GRPO then has no gradient."""
    logs = [entry for entry in history if "frac_reward_zero_std" in entry]
    reached = logs[-1]["step"] if logs else 0
    if reached >= steps and all(entry["frac_reward_zero_std"] == 1.0 for entry in logs):
        rates = ", ".join(f"{entry['reward']:.3g} at step {entry['step']}" for entry in (logs[:1] + logs[1:][-1:]))
        raise UserError(
            "reinforcement learning had nothing to learn from: no group of completions ever had reward variance "
            f"(mean reward {rates or 'not logged'}); nothing is published. Start from a checkpoint that solves some "
            "of the examples, raise num_generations or temperature, or check the rewards"
        )


def moved(change: float, history: History, output: Path) -> None:
    """UserError if `change`, the largest change of a trained weight, is 0 or not finite."""
    if change == 0.0 or not math.isfinite(change):
        problem = "no trained weight moved" if change == 0.0 else "trained weights are not finite"
        raise UserError(
            f"{output}: {problem} after {history[-1]['step']} steps; nothing is published. "
            f"Last log: {history[-1]}. Check learning_rate, and for RL the rewards"
        )
