"""When a training run is not worth going on with, told from its log. Not for checks of what it trained (see `run`).

The rules read the logged history alone, which is part of the saved state, so a run that was interrupted ends at the
same step and with the same words as one that was not.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cisterna.errors import UserError

# A loss has exploded if it stays this many times above that of the first log. A spike from which training recovers is
# no reason to end it, and a loss that begins near nothing has room to rise: so for a number of logs, and above a floor
# in nats. Megatron-LM calls a single loss spiky at 10 times the largest of the first ones (SPIKY_LOSS_FACTOR).
EXPLODED = 3.0
LOGS = 3
FLOOR = 1.0
# Steps of reinforcement learning without any variance of rewards, counted from the first, after which it is ended.
STEPS = 50

History = Sequence[Mapping[str, Any]]


def check(kind: str, history: History, ended: bool = False) -> None:
    """UserError if a stage's log says that going on, or publishing what a run `ended` with, is of no use."""
    finite(history)
    if kind == "rl":  # its loss is a surrogate around zero, whose size says nothing
        varied(history, 0 if ended else STEPS)
    else:
        bounded(history, 1 if ended else LOGS)


def finite(history: History) -> None:
    """UserError if the loss logged last is not finite."""
    loss, step = history[-1].get("loss", 0.0), history[-1]["step"]
    if not math.isfinite(loss):
        raise UserError(
            f"the loss is {loss} at step {step}; nothing is published. Lower learning_rate or max_grad_norm in the "
            "recipe"
        )


def bounded(history: History, logs: int = LOGS) -> None:
    """UserError if the losses of the last `logs` entries that have one are all far above the first."""
    losses = [(entry["loss"], entry["step"]) for entry in history if "loss" in entry]
    limit = max(EXPLODED * losses[0][0], FLOOR) if losses else math.inf
    last = losses[1:][-logs:]
    if len(last) == logs and all(loss > limit for loss, _ in last):
        raise UserError(
            f"the loss has exploded: {losses[0][0]:.4g} at step {losses[0][1]}, "
            f"{', '.join(f'{loss:.4g} at step {step}' for loss, step in last)}; nothing is published. Lower "
            "learning_rate or max_grad_norm, or set warmup_steps, in the recipe"
        )


def varied(history: History, steps: int = 0) -> None:
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
