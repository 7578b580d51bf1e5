"""One run of a stage, from open to published. What is trained, and on what, is in `cpt`, `sft`, `rl` and `encoder`:

    with open_run(arguments) as run:
        ...                                    # examples, parent, config, trainer
        run.train(trainer, data=...)
        run.publish()

The run trains in its work folder. Snakemake never deletes that folder, because it is no output of a rule. After a kill,
rerun the same command: it resumes (`state`) and publishes the same bytes as a run that nothing interrupted.
"""

import json
import math
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from cisterna import models, updates
from cisterna.artifacts import adapter, checkpoint, files, shutdown, work_folder
from cisterna.training import guards, state
from cisterna.training.callback import StageCallback
from cisterna.training.stage import StageArguments

# Log entries that differ between two identical runs: measurements, and TRL's count of tokens since the process started.
NOT_REPRODUCIBLE = ("runtime", "per_second", "step_time", "memory", "num_tokens")


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
    """A run that began at `started` (`time.perf_counter`): call `train`, then `publish`."""

    def __init__(self, arguments: StageArguments, processes: PartialState, started: float) -> None:
        self._arguments, self._processes, self._started = arguments, processes, started

    def train(
        self,
        trainer: transformers.Trainer,
        data: Mapping[str, str],
        tokens_per_epoch: int | None = None,
        save_multiple: int = 1,
        engine: Mapping[str, str] | None = None,
    ) -> None:
        """Train to the end, from the latest state that this run, or the rung below it, has saved.

        `data` has the hashes of what is trained on; `tokens_per_epoch` is None where completions are sampled. State
        is saved at multiples of `save_multiple` steps within an epoch: some trainers keep a batch between steps that is
        not part of their state. `engine` is what the manifest says of the engine that generates, None for transformers.
        Raises Stopped after SIGTERM, UserError where the log shows that training failed.
        """
        arguments, main = self._arguments, self._processes.is_main_process
        updates.check_adapted(trainer.model)
        if main:
            state.discard_stale(arguments, data, self._processes.num_processes, engine)
        self._processes.wait_for_everyone()
        self._data, self._tokens_per_epoch, self._before = data, tokens_per_epoch, _trained_weights(trainer.model)
        self._engine = {"engine": dict(engine)} if engine else {}
        self._steps = steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]
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

    def publish(
        self,
        write_extra: Callable[[Path], None] = lambda folder: None,
        measured: Callable[[list[dict[str, Any]]], dict[str, Any]] = lambda history: {},
    ) -> None:
        """Publish the checkpoint: the trained weights, `history.json` (the reproducible part of the log), the manifest.

        `write_extra` writes what else the checkpoint has into a folder; `measured` gives further measurements for the
        manifest, from the log. UserError, and no checkpoint, where the log or the weights show that training failed.
        Only rank 0 publishes.
        """
        if not self._processes.is_main_process:
            return
        arguments = self._arguments
        final = state.of_step(arguments.work, self._steps)
        history = files.read_json(final / "trainer_state.json")["log_history"]
        guards.check(arguments.kind, history, ended=True)
        weights = state.weights(final)
        trained = [(name, tensor) for path in weights for name, tensor in load_file(path).items()]
        changes = [(tensor.float() - self._before[name].float()).abs().max() for name, tensor in trained]
        change = torch.stack(changes).max().item()  # NaN if any weight is not finite
        guards.moved(change, history, arguments.output)
        if self._tokens_per_epoch is None:  # TRL has counted those that were sampled
            tokens = max(entry.get("num_tokens", 0) for entry in history)
        else:
            tokens = self._tokens_per_epoch * arguments.epochs
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # without what publishing needs
        with files.new_folder(arguments.output) as folder:
            for path in weights:
                shutil.copyfile(path, folder / path.name)
            if (final / adapter.FILE).is_file():
                assert arguments.parent is not None
                adapter.write(final / adapter.FILE, folder, arguments.output, arguments.parent)
            else:
                shutil.copyfile(final / "config.json", folder / "config.json")
            files.write_json(folder / "history.json", _reproducible(history))
            write_extra(folder)
            kept = _update_kept(arguments, folder, self._before, dict(trained))
            checkpoint.write_manifest(
                folder,
                published=arguments.output,
                kind=arguments.kind,
                parent=arguments.parent,
                recipe=arguments.recipe,
                seed=arguments.seed,
                data=self._data,
                trained={
                    "steps": self._steps,
                    "epochs": arguments.epochs,
                    "tokens": round(tokens),
                    "largest_weight_change": change,
                }
                | self._engine,
                measured={
                    "seconds": round(time.perf_counter() - self._started, 3),
                    "peak_memory_bytes": memory,
                    "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
                    "update_kept": kept,
                }
                | measured(history),
            )
        state.keep_rung(arguments.work, self._steps)


def _trained_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the weights that a stage saves, by the names under which it saves them."""
    weights = get_peft_model_state_dict(model) if isinstance(model, PeftModel) else model.state_dict()
    return {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}


def _update_kept(
    arguments: StageArguments, folder: Path, before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]
) -> dict[str, float]:
    """The share of the update in `folder` that the composed model has; UserError if it is too small.

    Of full weights also the shares that casts would leave, for `models.rounded_stage`.
    """
    if models.is_adapter(folder):
        assert arguments.parent is not None
        unset_hf_deepspeed_config()  # under ZeRO-3 the model would be made in parts, for ranks that are not here
        return {"composed": updates.check(models.update_kept(arguments.parent, folder), str(arguments.output))}
    kept = {"composed": 1.0}  # it has these very weights
    for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        there = trained = 0.0
        for key, tensor in after.items():
            old, new = before[key].float(), tensor.float()
            cast = new.to(dtype).float() - old.to(dtype).float()
            there, trained = there + float((cast * (new - old)).sum()), trained + float((new - old).square().sum())
        kept[name] = updates.share(there, trained) if math.isfinite(there) else 0.0  # float16 has no large numbers
    return kept


def _reproducible(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The log without wall-clock measurements, NaN written as None."""
    kept = [
        {key: value for key, value in entry.items() if not any(part in key for part in NOT_REPRODUCIBLE)}
        for entry in history
    ]
    return json.loads(json.dumps(kept), parse_constant=lambda _: None)
