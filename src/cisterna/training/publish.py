"""From the final trainer state of a run to its checkpoint: last checks, files, manifest.

The checkpoint holds the trained weights and `history.json`, the log without what differs between identical runs. It is
published by a rename of the finished folder.
"""

import json
import resource
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file

from cisterna.artifacts import checkpoint, files
from cisterna.training import guards, state
from cisterna.training.arguments import StageArguments

# Log entries that differ between two identical runs: measurements, and TRL's count of tokens since the process started.
NOT_REPRODUCIBLE = ("runtime", "per_second", "step_time", "memory", "num_tokens")


@dataclass(frozen=True)
class Trained:
    """A finished training: its number of steps, the trained weights as they were before, the hashes of its data.

    `tokens_per_epoch` is None where completions are sampled.
    """

    steps: int
    before: Mapping[str, torch.Tensor]
    data: Mapping[str, str]
    tokens_per_epoch: int | None


def publish_checkpoint(
    arguments: StageArguments, trained: Trained, started: float, write_extra: Callable[[Path], None] | None = None
) -> None:
    """Publish the checkpoint of a run that began at `started` (`time.perf_counter`).

    `write_extra` writes what the checkpoint holds besides weights and history into the folder that it is called with.
    UserError, and no checkpoint, where the log or the weights show that training failed.
    """
    final = state.of_step(arguments.work, trained.steps)
    history = files.read_json(final / "trainer_state.json")["log_history"]
    guards.check(arguments.kind, history, ended=True)
    weights = state.weights(final)
    change = _largest_change(trained.before, weights)
    guards.moved(change, history, arguments.output)
    if trained.tokens_per_epoch is None:  # TRL has counted those that were sampled
        tokens = max(entry.get("num_tokens", 0) for entry in history)
    else:
        tokens = trained.tokens_per_epoch * arguments.epochs
    with files.new_folder(arguments.output) as folder:
        for path in weights:
            shutil.copyfile(path, folder / path.name)
        if (final / "adapter_config.json").is_file():
            files.write_json(folder / "adapter_config.json", _adapter_config(final / "adapter_config.json"))
        else:
            shutil.copyfile(final / "config.json", folder / "config.json")
        files.write_json(folder / "history.json", _reproducible(history))
        if write_extra:
            write_extra(folder)
        checkpoint.write_manifest(
            folder,
            published=arguments.output,
            kind=arguments.kind,
            parent=arguments.parent,
            recipe=arguments.recipe,
            seed=arguments.seed,
            data=trained.data,
            trained={
                "steps": trained.steps,
                "epochs": arguments.epochs,
                "tokens": round(tokens),
                "largest_weight_change": change,
            },
            measured={
                "seconds": round(time.perf_counter() - started, 3),
                "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
            },
        )
    state.keep_rung(arguments.work, trained.steps)


def trained_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the weights that a stage saves, by the names under which it saves them."""
    weights = get_peft_model_state_dict(model) if isinstance(model, PeftModel) else model.state_dict()
    return {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}


def _largest_change(before: Mapping[str, torch.Tensor], weights: Iterable[Path]) -> float:
    """The largest change of any trained weight; NaN if any is not finite. KeyError for a name not in `before`."""
    changes = []
    for path in weights:
        for name, tensor in load_file(path).items():
            changes.append((tensor.float() - before[name].float()).abs().max())
    return torch.stack(changes).max().item()


def _adapter_config(path: Path) -> dict[str, Any]:
    """PEFT's configuration without what differs between two identical runs: the order of a set, and a path.

    The path would also be misleading: it names the base, and the adapter belongs on the parent that the manifest names.
    """
    config = files.read_json(path)
    for key in ("target_modules", "exclude_modules"):
        if isinstance(config[key], list):
            config[key] = sorted(config[key])
    return config | {"base_model_name_or_path": None}


def _reproducible(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The log without wall-clock measurements, NaN written as None."""
    kept = [
        {key: value for key, value in entry.items() if not any(part in key for part in NOT_REPRODUCIBLE)}
        for entry in history
    ]
    return json.loads(json.dumps(kept), parse_constant=lambda _: None)
