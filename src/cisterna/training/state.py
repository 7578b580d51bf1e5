"""Trainer state in the work folder of a stage: what a run resumes from.

A state is a folder `checkpoint-{step}`, which the library's trainer writes, with the part of the log that the library
does not keep. It counts only once `complete.json` is written, and only for the run that the `fingerprint.json` of the
work folder describes (`cisterna.artifacts.work_folder`).

The rungs of a ladder (epoch checkpoints: runs that differ in `epochs` alone) share a work folder. Rung e4 resumes from
the state that ended e2, if it has the hash of the published e2; otherwise the ladder is trained from its start again.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import transformers
from accelerate import PartialState
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from cisterna import updates
from cisterna.artifacts import checkpoint, files, work_folder
from cisterna.training.stage import StageArguments

COMPLETE = "complete.json"
RUNGS = "rungs.json"  # the last steps of the rungs that were published from a work folder
STATES = "checkpoint-*"


def of_step(work: Path, step: int) -> Path:
    """The state after a step."""
    return work / f"checkpoint-{step}"


def step_of(state: Path) -> int:
    """The step after which a state was saved."""
    return int(state.name.rpartition("-")[2])


def latest(work: Path, steps: int) -> Path | None:
    """The latest complete state at or before `steps`."""
    states = [state for state in work.glob(STATES) if step_of(state) <= steps and is_complete(state)]
    return max(states, key=step_of, default=None)


def is_complete(state: Path) -> bool:
    """Whether a state was written to its end and every file still has its size."""
    return (state / COMPLETE).is_file() and files.read_json(state / COMPLETE)["sizes"] == _sizes(state)


def mark_complete(state: Path) -> None:
    """Put a state on the disk and record that it is complete."""
    files.sync(state)
    hashes = {path.name: files.sha256(path) for path in weights(state)}
    files.write_json(state / COMPLETE, {"sizes": _sizes(state), "weights": hashes})


def _sizes(state: Path) -> dict[str, int]:
    paths = sorted(path for path in state.rglob("*") if path.is_file() and path.name != COMPLETE)
    return {str(path.relative_to(state)): path.stat().st_size for path in paths}


def weights(state: Path) -> list[Path]:
    """The files of the trained weights: those of the adapter, or of the whole model."""
    return sorted(state.glob("adapter_model.safetensors")) or sorted(state.glob("model*.safetensors"))


def discard_stale(
    arguments: StageArguments, data: Mapping[str, str], processes: int, engine: Mapping[str, str] | None = None
) -> None:
    """Remove states that were made by another run, or from which the rung below was not published.

    `data` has the hashes of what is trained on, `processes` is the number of ranks, `engine` describes what generates
    if it is not transformers. Incomplete states are always removed: a disk may be full because of them.
    """
    for state in arguments.work.glob(STATES):
        if not is_complete(state):
            shutil.rmtree(state)
    reason = None
    if arguments.previous is not None and not _ends_in(arguments.work, arguments.previous):
        reason = f"no trainer state of {arguments.previous} in {arguments.work}"
    fingerprint = {  # everything that determines the weights, except the number of epochs
        "kind": arguments.kind,
        "recipe": {key: value for key, value in arguments.recipe.items() if key not in ("epochs", "save_minutes")},
        "seed": arguments.seed,
        "parent": checkpoint.read_manifest(arguments.parent)["identity"] if arguments.parent else None,
        "data": dict(data),
        "processes": processes,
        "packages": checkpoint.packages(),
    } | ({"engine": dict(engine)} if engine else {})
    work_folder.discard_stale(arguments.work, fingerprint, STATES, reason)


def _ends_in(work: Path, published: Path) -> bool:
    """Whether the state that the checkpoint `published` was made from is in `work`."""
    manifest = checkpoint.read_manifest(published)
    state = of_step(work, manifest["trained"]["steps"])
    hashes = files.read_json(state / COMPLETE)["weights"] if is_complete(state) else {}
    return bool(hashes) and all(manifest["files"].get(name) == digest for name, digest in hashes.items())


def keep_rung(work: Path, steps: int) -> None:
    """Record that a rung ends at `steps`, and remove the states before it that end no rung."""
    path = work / RUNGS
    rungs = {steps, *(files.read_json(path) if path.is_file() else ())}
    files.write_json(path, sorted(rungs))
    for state in work.glob(STATES):
        if step_of(state) not in rungs and step_of(state) < steps:
            shutil.rmtree(state)


def save_masters(trainer: transformers.Trainer, state: Path) -> None:
    """Save the trained weights in float32 where DeepSpeed trains a copy of them and casts the model to 16 bits."""
    model = trainer.model
    parameters = model.named_parameters(remove_duplicate=False)  # tied weights may be stored twice
    trained = {name: weight for name, weight in parameters if weight.requires_grad}
    if not trainer.is_deepspeed_enabled or not any(map(updates.low, trained.values())):
        return
    from deepspeed.utils import safe_get_full_fp32_param

    masters = {name: safe_get_full_fp32_param(weight) for name, weight in trained.items()}  # by all ranks together
    if isinstance(model, PeftModel):
        masters = get_peft_model_state_dict(model, masters)
    for path in weights(state) if PartialState().is_main_process else ():
        stored = load_file(path)
        new = {name: masters.get(name, tensor).cpu().contiguous() for name, tensor in stored.items()}
        save_file(new, path, metadata={"format": "pt"})


def save_log(trainer: transformers.Trainer, state: Path) -> None:
    """Save what this rank has measured and not yet logged: the library does not keep it."""
    pending = {
        "loss": trainer._tr_loss.item(),
        "logged": trainer._globalstep_last_logged,
        "metrics": getattr(trainer, "_metrics", {}).get("train", {}),  # TRL's, averaged when they are logged
    }
    _log(state).write_text(json.dumps(pending))  # a metric may be NaN, which `files.write_json` refuses


def restore_log(trainer: transformers.Trainer, state: Path) -> None:
    """Continue with what `save_log` saved."""
    pending = json.loads(_log(state).read_text())
    trainer._tr_loss.fill_(pending["loss"])
    trainer._globalstep_last_logged = pending["logged"]
    for name, values in pending["metrics"].items():
        trainer._metrics["train"][name].extend(values)


def _log(state: Path) -> Path:
    return state / f"log-{PartialState().process_index}.json"
