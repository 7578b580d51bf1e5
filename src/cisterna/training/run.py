"""One run of a stage, from open to published. What is trained, and on what, is in `cpt`, `sft`, `rl` and `encoder`:

    with open_run(arguments) as run:
        ...                                    # tokenizer, data, model, config, trainer
        trained = run.train(trainer, data=...)
        run.publish(trained)

The run trains in its work folder. Snakemake never deletes that folder, because it is no output of a rule. After a kill,
rerun the same command: it resumes (`state`) and publishes the same bytes as a run that nothing interrupted.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
import transformers
from accelerate import PartialState

from cisterna.artifacts import checkpoint, shutdown, work_folder
from cisterna.training import state
from cisterna.training.arguments import StageArguments
from cisterna.training.callback import StageCallback
from cisterna.training.options import library_options
from cisterna.training.publish import Trained, publish_checkpoint, trained_weights


@contextmanager
def open_run(arguments: StageArguments) -> Iterator["OpenRun"]:
    """Verify the parent, lock the work folder, watch for SIGTERM, set the seed.

    Everything that draws random numbers has to be built in the block. UserError if another process runs this stage.
    """
    started = time.perf_counter()
    one_gpu()
    if arguments.parent:
        checkpoint.verify(arguments.parent)
    processes = PartialState(cpu=not torch.cuda.is_available())
    locked = work_folder.locked(arguments.work, arguments.output) if processes.is_main_process else nullcontext()
    with shutdown.watch(), locked:
        transformers.set_seed(arguments.seed)
        yield OpenRun(arguments, processes, started)
    processes.wait_for_everyone()


def one_gpu() -> None:
    """Let a process see one GPU: Trainer would use them all with DataParallel. Call it before CUDA is initialised."""
    if "LOCAL_RANK" not in os.environ:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")


class OpenRun:
    """An open run. `options` are the options for the config class of its trainer."""

    def __init__(self, arguments: StageArguments, processes: PartialState, started: float) -> None:
        self.options = library_options(arguments)
        self._arguments = arguments
        self._processes = processes
        self._started = started

    def train(
        self,
        trainer: transformers.Trainer,
        data: Mapping[str, str],
        tokens_per_epoch: int | None = None,
        save_multiple: int = 1,
    ) -> Trained:
        """Train to the end, from the latest state that this run, or the rung below it, has saved.

        `data` holds the hashes of what is trained on; `tokens_per_epoch` is None where completions are sampled. State
        is saved at multiples of `save_multiple` steps within an epoch: some trainers keep a batch between steps that is
        not part of their state. Raises Stopped after SIGTERM, UserError where the log shows that training failed.
        """
        arguments, main = self._arguments, self._processes.is_main_process
        if main:
            state.discard_stale(arguments, data, self._processes.num_processes)
        self._processes.wait_for_everyone()
        before = trained_weights(trainer.model)
        steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]
        resume = state.latest(arguments.work, steps)
        if resume and main:
            print(f"resuming from step {state.step_of(resume)} of {steps}", flush=True)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.add_callback(StageCallback(arguments, trainer, resume, tokens_per_epoch, save_multiple))
        if resume is None or state.step_of(resume) < steps:
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
            if trainer.state.global_step < steps:
                raise shutdown.Stopped(
                    f"{arguments.output}: by SIGTERM at step {trainer.state.global_step} of {steps}; the state is "
                    f"saved in {arguments.work}. Rerun the same command: it resumes"
                )
        return Trained(steps, before, data, tokens_per_epoch)

    def publish(self, trained: Trained, write_extra: Callable[[Path], None] | None = None) -> None:
        """Check what was trained and publish the checkpoint, from rank 0 alone."""
        if self._processes.is_main_process:
            publish_checkpoint(self._arguments, trained, self._started, write_extra)
