"""What happens during training besides the trainer's own work: saving, logging, progress and early-abort checks."""

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback

from cisterna.artifacts import shutdown
from cisterna.artifacts.progress import Progress
from cisterna.artifacts.work_folder import SAVE_MINUTES
from cisterna.training import guards
from cisterna.training.stage import StageArguments
from cisterna.training.state import mark_complete, of_step, restore_log, save_log, save_masters


@dataclass(eq=False)
class StageCallback(TrainerCallback):
    """Saves every `save_minutes`, at the end and on SIGTERM; logs at every end of an epoch; checks the log.

    `resume` is the state that training continues from. The other options are those of `run.OpenRun.train`.
    """

    arguments: StageArguments
    trainer: transformers.Trainer
    resume: Path | None
    tokens_per_epoch: int | None
    save_multiple: int
    saved_at: float = field(default_factory=time.monotonic)
    saved_step: int | None = None

    def __post_init__(self) -> None:
        self.progress = Progress(self.arguments.work, self.arguments.output, self.arguments.kind)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Restore the part of the log that the library does not keep."""
        if self.resume:
            restore_log(self.trainer, self.resume)
        self.began_at, self.first_step = time.monotonic(), state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Decide whether to log, to save and to stop."""
        last = state.global_step >= state.max_steps
        if last or float(state.epoch).is_integer():  # so that rungs, resumed and straight runs have the same history
            control.should_log = True
            control.should_evaluate = self.trainer.eval_dataset is not None
        step = state.global_step % max(1, round(state.max_steps / args.num_train_epochs))
        due, stop = self._due()
        if last or ((due or stop) and step % self.save_multiple == 0):
            control.should_save = True
            control.should_training_stop = last or stop
        if state.is_world_process_zero:
            self._report(args, state)
        return control

    def _report(self, args: Any, state: Any, **numbers: float) -> None:
        """Write how far the run is, for `cisterna status`."""
        if self.tokens_per_epoch is not None:
            steps = state.global_step - self.first_step
            tokens = self.tokens_per_epoch * args.num_train_epochs / state.max_steps * steps
            numbers["tokens_per_second"] = tokens / (time.monotonic() - self.began_at)
        self.progress.update(state.global_step, state.max_steps, "steps", **numbers)

    def _due(self) -> tuple[bool, bool]:
        """Whether it is time to save, by the clock of rank 0, and whether any rank got SIGTERM. All ranks agree."""
        processes = PartialState()
        interval = float(self.arguments.recipe.get("save_minutes", SAVE_MINUTES)) * 60
        due = processes.is_main_process and time.monotonic() - self.saved_at >= interval
        flags = torch.tensor([due, shutdown.requested()], dtype=torch.float32, device=processes.device)
        due, stop = (reduce(flags) if processes.num_processes > 1 else flags).bool().tolist()
        return due, stop

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Complete the state that the trainer has saved, and remove the one before it."""
        folder = of_step(self.arguments.work, state.global_step)
        if state.global_step >= state.max_steps:  # otherwise it is not published
            save_masters(self.trainer, folder)
        save_log(self.trainer, folder)
        PartialState().wait_for_everyone()  # every rank has written its share
        if state.is_world_process_zero:
            mark_complete(folder)
            if self.saved_step is not None:
                shutil.rmtree(of_step(self.arguments.work, self.saved_step), ignore_errors=True)
            self.saved_step = state.global_step
        self.saved_at = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Check what was logged, and print it."""
        guards.check(self.arguments.kind, state.log_history)
        numbers = {key: value for key, value in (logs or {}).items() if isinstance(value, int | float)}
        if state.is_world_process_zero and numbers:
            shown = ("loss", "reward", "frac_reward_zero_std", "eval_reward", "learning_rate", "train_runtime")
            line = " ".join(f"{key} {numbers[key]:.4g}" for key in shown if key in numbers)
            print(f"step {state.global_step}/{state.max_steps} {line}", flush=True)
            reported: dict[str, float] = {key: numbers[key] for key in ("loss", "reward") if key in numbers}
            if self.tokens_per_epoch is None and "num_tokens" in numbers:  # sampled since this process began
                reported["tokens_per_second"] = numbers["num_tokens"] / (time.monotonic() - self.began_at)
            self._report(args, state, **reported)
