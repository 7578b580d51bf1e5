"""One training run, whatever its stage: resume, train with a library trainer, check, publish.

A stage hands over a function that builds its trainer (`transformers.Trainer` or a TRL trainer); everything that makes
a checkpoint trustworthy is here, once:

1. The run trains in its work folder, which is no output of a rule, so Snakemake never deletes it. Trainer state is
   saved there every `save_minutes`, at the end, and on SIGTERM, after which the run ends
   (`cisterna.artifacts.shutdown`); a state counts only once its `complete.json` is written.
2. A fingerprint of everything that determines the weights (recipe, seed, data, parent, packages) stands in the work
   folder. State of another fingerprint is discarded, so an edited recipe never resumes from a stale run.
3. Rungs of one ladder share a work folder: e4 resumes the trainer state that ended e2, checked against the hash of the
   published e2. Without it (deleted, or made on another machine) the ladder is trained from its start again.
4. The log is flushed at every end of an epoch, and what is not yet logged is part of the state, so that resumed runs,
   ladders and straight runs leave the same history as well as the same weights.
5. A run in which the loss is not finite or explodes (`guards`), or no trained weight moved, is an error, with numbers.
6. Publishing is a rename of a finished folder (`cisterna.artifacts.files.new_folder`).

Not for what a stage trains on: see `cpt`, `sft`, `rl`.
"""

import json
import math
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import reduce
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import TrainerCallback

from cisterna import models
from cisterna.artifacts import checkpoint, files, shutdown
from cisterna.artifacts.progress import Progress
from cisterna.artifacts.work_folder import SAVE_MINUTES
from cisterna.data import splits
from cisterna.errors import UserError
from cisterna.sequences import inputs_file
from cisterna.sequences.source import SequenceSource, connect
from cisterna.training import guards, trackers

COMPLETE = "complete.json"
DEEPSPEED = Path(__file__).parents[3] / "config" / "deepspeed"
# Cisterna's own keys of a recipe; every other key is an option of the library's config class.
OWN_KEYS = frozenset(
    "corpora block_size seed lora deepspeed processes epochs fraction examples rewards save_minutes bridge train_bridge"
    " mlm_probability".split()
)
# Log entries that differ between two identical runs: measurements, and TRL's count of tokens since the process started.
NOT_REPRODUCIBLE = ("runtime", "per_second", "step_time", "memory", "num_tokens")


@dataclass(frozen=True)
class Job:
    """What a stage is asked to do. Paths are checkpoint folders, except `work`. Only an encoder has no parent."""

    kind: str
    parent: Path | None
    output: Path
    work: Path
    recipe: Mapping[str, Any]
    seed: int
    epochs: float
    previous: Path | None = None


@dataclass(frozen=True)
class Setup:
    """A stage's answer: its trainer, and what the shared part has to know about it.

    `data` holds hashes; `tokens_per_epoch` is None where tokens are sampled. State is saved at multiples of `unit`
    steps within an epoch (some trainers keep a batch between steps that is not part of their state). `beside` writes
    what the checkpoint holds beside its weights into the folder that is about to be published.
    """

    trainer: transformers.Trainer
    data: dict[str, str]
    tokens_per_epoch: int | None = None
    unit: int = 1
    beside: Callable[[Path], None] | None = None


def library_options(job: Job) -> dict[str, Any]:
    """Options for the library's config class: the recipe's own, and what Cisterna sets for every run."""
    options = {key: value for key, value in job.recipe.items() if key not in OWN_KEYS}
    gpu = torch.cuda.is_available()
    options.setdefault("logging_steps", 10)
    options |= trackers.options(job.output, job.recipe, job.seed)
    native = gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    options.setdefault("bf16", native and not options.get("fp16", False))
    options.setdefault("dataloader_pin_memory", gpu)
    if job.recipe.get("deepspeed"):
        os.environ.setdefault("DS_ACCELERATOR", "cuda" if gpu else "cpu")
        import deepspeed.ops

        if not gpu:  # else it compiles, for minutes and into the home folder, an operation for inference on CPUs
            deepspeed.ops.__compatible_ops__ = {}
        options["deepspeed"] = str(DEEPSPEED / f"{job.recipe['deepspeed']}.json")
    return options | {
        "output_dir": str(job.work),
        "num_train_epochs": job.epochs,
        "seed": job.seed,
        "save_strategy": "no",  # `_Progress` below asks for saves, by time and at the end
        "logging_nan_inf_filter": False,  # its default writes an invented number over a loss that is not finite
        "use_cpu": not gpu,
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }


def parent_model(job: Job) -> transformers.PreTrainedModel:
    """The model of the parent, every weight trainable (merging an adapter leaves the weights below it frozen)."""
    model = models.compose(parent_of(job)).train().requires_grad_(True)
    # Else some weights, an ESM's among them, are saved under names of an older release, which composing does not know.
    model.save_pretrained = partial(model.save_pretrained, save_original_format=False)
    return model


def parent_of(job: Job) -> Path:
    """The parent of a stage that has one."""
    assert job.parent is not None
    return job.parent


def given_to(job: Job, data: Path) -> tuple[dict[str, Any], Path]:
    """The card of the splits in `data` and the table to train on.

    UserError if the table is not the one of the card, or if the parent was trained on other splits of the task.
    """
    card = splits.read_card(data)
    table = splits.check(data, "train", card)
    inputs_file.check_data(parent_of(job), card["task"], {table.name: card["files"][table.name]})
    return card, table


def head(frame: pd.DataFrame, recipe: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of train that a recipe uses: the first `examples`, or the first `fraction` of them, rounded up.

    Rows are in the order that their split was drawn in, so a smaller part lies in every larger one, whatever the stage.
    """
    return frame.head(recipe.get("examples") or math.ceil(len(frame) * float(recipe.get("fraction", 1.0))))


def reader(job: Job, inputs: SequenceSource) -> tuple[transformers.PreTrainedModel, int]:
    """The model of the parent, made to read `inputs`, and the size of its vocabulary: the first id of a feature row."""
    model = parent_model(job)
    frozen = inputs.features is not None and not job.recipe.get("train_bridge", True)
    if frozen and not hasattr(model, "bridge"):
        raise UserError(
            f"{job.parent}: has no bridge, and with train_bridge: false it would get a random one. Set train_bridge: "
            "true in the RL recipe, or start from SFT with features"
        )
    connect(model, inputs, job.recipe.get("bridge", "linear"))
    if frozen:
        model.bridge.requires_grad_(False)
    return model, model.get_input_embeddings().num_embeddings


def lora(job: Job, inputs: SequenceSource) -> LoraConfig | None:
    """The adapter of a recipe; a bridge that is trained is saved with it. None where all weights are trained."""
    options = job.recipe.get("lora")
    if not options:
        return None
    if inputs.features is not None and job.recipe.get("train_bridge", True):
        options = options | {"modules_to_save": [*(options.get("modules_to_save") or []), "bridge"]}
    return models.lora_config(options)


def configure(config: type[transformers.TrainingArguments], options: Mapping[str, Any]) -> Any:
    """The library's config object. UserError where it refuses an option or a combination of options.

    Under ZeRO-3 models created after this are created partitioned, so compose the model first.
    """
    try:
        return config(**options)
    except (TypeError, ValueError) as error:
        raise UserError(f"recipe: {config.__name__} refuses it: {error}") from None


def execute(job: Job, build: Callable[[dict[str, Any]], Setup]) -> None:
    """Train `job` and publish its checkpoint. Raises UserError where the run cannot be trusted (see the module)."""
    started = time.perf_counter()
    one_gpu()
    if job.parent:
        checkpoint.verify(job.parent)
    state = PartialState(cpu=not torch.cuda.is_available())
    with shutdown.watch(), files.lock(job.work) if state.is_main_process else nullcontext():
        if state.is_main_process:
            files.remove_leftovers(job.output)
        _train(job, build, state, started)
    state.wait_for_everyone()


def one_gpu() -> None:
    """One process is one GPU: Trainer would spread it over all with DataParallel. To be called before CUDA is."""
    if "LOCAL_RANK" not in os.environ:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")


def _train(job: Job, build: Callable[[dict[str, Any]], Setup], state: PartialState, started: float) -> None:
    transformers.set_seed(job.seed)
    setup = build(library_options(job))
    trainer = setup.trainer
    if state.is_main_process:
        _discard_stale(job, _fingerprint(job, setup, state.num_processes))
    state.wait_for_everyone()

    before = _trained_weights(trainer.model)
    steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]
    resume = _latest(job.work, steps)
    if resume and state.is_main_process:
        print(f"resuming from step {_step(resume)} of {steps}", flush=True)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.add_callback(_Progress(job, setup, resume))
    if resume is None or _step(resume) < steps:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        if trainer.state.global_step < steps:
            raise shutdown.Stopped(
                f"{job.output}: by SIGTERM at step {trainer.state.global_step} of {steps}; the state is saved in "
                f"{job.work}, and the same command goes on from there"
            )
    final = job.work / f"checkpoint-{steps}"
    if state.is_main_process:
        history = files.read_json(final / "trainer_state.json")["log_history"]
        guards.check(job.kind, history, ended=True)
        _publish(job, setup, final, before, history, steps, started)


def _publish(
    job: Job,
    setup: Setup,
    final: Path,
    before: Mapping[str, torch.Tensor],
    history: list[dict[str, Any]],
    steps: int,
    started: float,
) -> None:
    weights = _weights(final)
    moved = _largest_change(before, weights)
    if moved == 0.0 or not math.isfinite(moved):
        what = "no trained weight moved" if moved == 0.0 else "trained weights are not finite"
        raise UserError(
            f"{job.output}: {what} after {steps} steps; nothing is published. "
            f"Last log: {history[-1]}. Check learning_rate, and for RL the rewards"
        )
    if setup.tokens_per_epoch is None:  # logged where completions were sampled
        tokens = max(entry.get("num_tokens", 0) for entry in history)
    else:
        tokens = setup.tokens_per_epoch * job.epochs
    with files.new_folder(job.output) as folder:
        for path in weights:
            shutil.copyfile(path, folder / path.name)
        if (final / "adapter_config.json").is_file():
            files.write_json(folder / "adapter_config.json", _adapter_config(final / "adapter_config.json"))
        else:
            shutil.copyfile(final / "config.json", folder / "config.json")
        files.write_json(folder / "history.json", _reproducible(history))
        if setup.beside:
            setup.beside(folder)
        checkpoint.write_manifest(
            folder,
            published=job.output,
            kind=job.kind,
            parent=job.parent,
            recipe=job.recipe,
            seed=job.seed,
            data=setup.data,
            trained={
                "steps": steps,
                "epochs": job.epochs,
                "tokens": round(tokens),
                "largest_weight_change": moved,
            },
            measured={
                "seconds": round(time.perf_counter() - started, 3),
                "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
            },
        )
    _keep_rungs(job, steps)


def _adapter_config(path: Path) -> dict[str, Any]:
    """PEFT's configuration without what differs between two identical runs: the order of a set, and a path.

    The path would also mislead: it names the base, and the adapter belongs on the parent that the manifest names.
    """
    config = files.read_json(path)
    for key in ("target_modules", "exclude_modules"):
        if isinstance(config[key], list):
            config[key] = sorted(config[key])
    return config | {"base_model_name_or_path": None}


class _Progress(TrainerCallback):
    """Saves by time, at the end and on SIGTERM, marks complete saves, says how far the run is, watches its losses."""

    def __init__(self, job: Job, setup: Setup, resume: Path | None) -> None:
        self.kind = job.kind
        self.work = job.work
        self.trainer = setup.trainer
        self.unit = setup.unit
        self.resume = resume
        self.interval = float(job.recipe.get("save_minutes", SAVE_MINUTES)) * 60
        self.saved = time.monotonic()
        self.last: int | None = None
        self.progress = Progress(job.work, job.output, job.kind)
        self.tokens = setup.tokens_per_epoch

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.resume:
            _restore_log(self.trainer, self.resume)
        self.began = (time.monotonic(), state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        last = state.global_step >= state.max_steps
        if last or float(state.epoch).is_integer():
            control.should_log = True
        step = state.global_step % max(1, round(state.max_steps / args.num_train_epochs))
        due, asked = self._due()
        if last or ((due or asked) and step % self.unit == 0):
            control.should_save = True
            control.should_training_stop = last or asked
        if state.is_world_process_zero:
            self._tell(args, state)
        return control

    def _tell(self, args: Any, state: Any, **numbers: float) -> None:
        """Say how far the run is, for `cisterna status`."""
        began, first = self.began
        if self.tokens is not None:
            tokens = self.tokens * args.num_train_epochs / state.max_steps * (state.global_step - first)
            numbers["tokens_per_second"] = tokens / (time.monotonic() - began)
        self.progress.update(state.global_step, state.max_steps, "steps", **numbers)

    def _due(self) -> tuple[bool, bool]:
        """Whether it is time to save, on rank 0's clock, and whether some rank got SIGTERM: all ranks have to agree."""
        processes = PartialState()
        due = processes.is_main_process and time.monotonic() - self.saved >= self.interval
        flags = torch.tensor([due, shutdown.requested()], dtype=torch.float32, device=processes.device)
        due, asked = (reduce(flags) if processes.num_processes > 1 else flags).bool().tolist()
        return due, asked

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = self.work / f"checkpoint-{state.global_step}"
        _save_log(self.trainer, folder)
        PartialState().wait_for_everyone()  # every rank has written its share
        if state.is_world_process_zero:
            files.sync(folder)
            sizes = {str(path.relative_to(folder)): path.stat().st_size for path in _files(folder)}
            weights = {path.name: files.sha256(path) for path in _weights(folder)}
            files.write_json(folder / COMPLETE, {"sizes": sizes, "weights": weights})
            if self.last is not None:
                shutil.rmtree(self.work / f"checkpoint-{self.last}", ignore_errors=True)
            self.last = state.global_step
        self.saved = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        numbers = {key: value for key, value in (logs or {}).items() if isinstance(value, int | float)}
        guards.check(self.kind, state.log_history)
        if state.is_world_process_zero and numbers:
            shown = ("loss", "reward", "frac_reward_zero_std", "learning_rate", "train_runtime")
            line = " ".join(f"{key} {numbers[key]:.4g}" for key in shown if key in numbers)
            print(f"step {state.global_step}/{state.max_steps} {line}", flush=True)
            told: dict[str, float] = {key: value for key, value in numbers.items() if key in ("loss", "reward")}
            if self.tokens is None and "num_tokens" in numbers:  # those sampled since this process began
                told["tokens_per_second"] = numbers["num_tokens"] / (time.monotonic() - self.began[0])
            self._tell(args, state, **told)


def _save_log(trainer: transformers.Trainer, folder: Path) -> None:
    """Keep what this rank has measured and not yet logged: the library's own state forgets it."""
    pending = {
        "loss": trainer._tr_loss.item(),
        "logged": trainer._globalstep_last_logged,
        "metrics": getattr(trainer, "_metrics", {}).get("train", {}),  # TRL's, averaged when they are logged
    }
    # Python's own reading of what JSON has no word for: a metric may be NaN.
    (folder / f"log-{PartialState().process_index}.json").write_text(json.dumps(pending))


def _restore_log(trainer: transformers.Trainer, folder: Path) -> None:
    """Go on with what `_save_log` kept."""
    pending = json.loads((folder / f"log-{PartialState().process_index}.json").read_text())
    trainer._tr_loss.fill_(pending["loss"])
    trainer._globalstep_last_logged = pending["logged"]
    for name, values in pending["metrics"].items():
        trainer._metrics["train"][name].extend(values)


def _fingerprint(job: Job, setup: Setup, processes: int) -> dict[str, Any]:
    recipe = {key: value for key, value in job.recipe.items() if key not in ("epochs", "save_minutes")}
    return {
        "kind": job.kind,
        "recipe": recipe,
        "seed": job.seed,
        "parent": checkpoint.read_manifest(job.parent)["identity"] if job.parent else None,
        "data": setup.data,
        "processes": processes,
        "packages": checkpoint.packages(),
    }


def _discard_stale(job: Job, fingerprint: dict[str, Any]) -> None:
    """Empty the work folder if its state belongs to another run, or is not what the previous rung published.

    States that were only half written go in any case: they may be what filled the disk.
    """
    for folder in job.work.glob("checkpoint-*"):
        if not _is_complete(folder):
            shutil.rmtree(folder)
    path = job.work / "fingerprint.json"
    known = files.read_json(path) if path.is_file() else {}
    changed = sorted(key for key in fingerprint if known.get(key) != fingerprint[key])
    reason = None
    if changed and any(job.work.glob("checkpoint-*")):
        reason = f"the saved state is of another run ({', '.join(changed)} changed)"
    elif job.previous is not None:
        manifest = checkpoint.read_manifest(job.previous)
        folder = job.work / f"checkpoint-{manifest['trained']['steps']}"
        weights = files.read_json(folder / COMPLETE)["weights"] if _is_complete(folder) else {}
        if not weights or any(manifest["files"].get(name) != digest for name, digest in weights.items()):
            reason = f"no trainer state of {job.previous} in {job.work}"
    if reason:
        print(f"training from the start: {reason}", flush=True)
        for folder in job.work.glob("checkpoint-*"):
            shutil.rmtree(folder)
    files.write_json(path, fingerprint)


def _keep_rungs(job: Job, steps: int) -> None:
    """Remember that a rung ends at `steps`, and delete the states in between."""
    path = job.work / "rungs.json"
    rungs = set(files.read_json(path)) if path.is_file() else set()
    rungs.add(steps)
    files.write_json(path, sorted(rungs))
    for folder in job.work.glob("checkpoint-*"):
        if _step(folder) not in rungs and _step(folder) < steps:
            shutil.rmtree(folder)


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _latest(work: Path, steps: int) -> Path | None:
    """The latest complete trainer state at or before `steps`."""
    states = [folder for folder in work.glob("checkpoint-*") if _step(folder) <= steps and _is_complete(folder)]
    return max(states, key=_step, default=None)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != COMPLETE)


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("adapter_model.safetensors")) or sorted(folder.glob("model*.safetensors"))


def _is_complete(folder: Path) -> bool:
    """Whether a trainer state was written to its end and every file still has its size."""
    if not (folder / COMPLETE).is_file():
        return False
    sizes = files.read_json(folder / COMPLETE)["sizes"]
    return sizes == {str(path.relative_to(folder)): path.stat().st_size for path in _files(folder)}


def _trained_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of what the stage may change, by the names it is saved under."""
    weights = get_peft_model_state_dict(model) if isinstance(model, PeftModel) else model.state_dict()
    return {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}


def _largest_change(before: Mapping[str, torch.Tensor], weights: Iterable[Path]) -> float:
    """The largest change of any trained weight; NaN if any is not finite. Saved names have to be those trained."""
    changes = []
    for path in weights:
        for name, tensor in load_file(path).items():
            changes.append((tensor.float() - before[name].float()).abs().max())
    return torch.stack(changes).max().item()


def _reproducible(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The log without wall-clock measurements, NaN written as None."""
    kept = [
        {key: value for key, value in entry.items() if not any(part in key for part in NOT_REPRODUCIBLE)}
        for entry in history
    ]
    return json.loads(json.dumps(kept), parse_constant=lambda _: None)
