"""How the tests of training start a stage: in this process, or as the command a rule starts."""

import json
import os
import subprocess
import sys
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from cisterna.artifacts import checkpoint

SFT = {
    "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1},
    "learning_rate": 5.0e-3,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 8,
    "activation_checkpointing": False,
    "logging_steps": 3,
    "fraction": 0.9,  # 58 of 64 examples: 7 batches and a quarter
}
RL = {
    "lora": {"r": 2, "lora_alpha": 4},
    "learning_rate": 1.0e-3,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 16,
    "num_generations": 4,
    "max_completion_length": 48,
    "activation_checkpointing": False,
    "logging_steps": 1,
    "examples": 14,  # 3 batches of 4 prompts, 2 prompts left over
    "rewards": {"correct": 1.0, "well_formed": 0.5},
}
CPT = {
    "block_size": 64,
    "learning_rate": 5.0e-3,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 16,
    "logging_steps": 3,
}


# A LoRA of rank 8 and the embeddings: enough for the tiny model to write the task's format, and often the right answer.
SOLVE = SFT | {
    "lora": {"r": 8, "lora_alpha": 16, "modules_to_save": ["embed_tokens", "lm_head"]},
    "learning_rate": 1.0e-2,
    "fraction": 1.0,
    "logging_steps": 1000,
}


@dataclass(eq=False)
class Run:
    """One stage: what to train from what, where.

    With `ladder` (or `previous`) the work folder is that of the ladder, else the rung's own. `reads` are the options
    that say how sequences reach the model: sequences, bank, encoder, reading.
    """

    kind: str
    parent: Path
    data: Path
    folder: Path
    recipe: dict[str, Any]
    epochs: float = 1
    _: KW_ONLY
    seed: int = 0
    ladder: bool = False
    previous: "Run | None" = None
    reads: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        rung = self.folder / f"e{self.epochs:g}"
        self.output = rung / "checkpoint"
        self.work = self.folder / ".work" if self.ladder or self.previous else rung / ".work"
        self.options: dict[str, Any] = {
            "parent": self.parent,
            "output": self.output,
            "work": self.work,
            "recipe": self.recipe,
            "seed": self.seed,
            "epochs": float(self.epochs),
            "previous": self.previous and self.previous.output,
        }

    def here(self) -> "Run":
        """Train in this process; returns itself."""
        from cisterna.sequences.source import open_source
        from cisterna.training import cpt, rl, sft
        from cisterna.training.stage import StageArguments

        arguments = StageArguments(kind=self.kind, **self.options)
        if self.kind == "cpt":
            cpt.train(arguments, [self.data])
        else:
            modality = json.loads((self.data / "card.json").read_text())["modality"]
            reads = {"sequences": "tokens"} | (self.reads or {})
            source = open_source(reads.pop("sequences"), modality, **reads)
            (sft if self.kind == "sft" else rl).train(arguments, self.data, source)
        return self

    @property
    def arguments(self) -> list[str]:
        """The arguments of `cisterna` that train it."""
        options = self.options | {"tokens" if self.kind == "cpt" else "data": self.data} | (self.reads or {})
        texts = {
            key: json.dumps(value) if isinstance(value, dict) else str(value)
            for key, value in options.items()
            if value is not None
        }
        return [self.kind, *(part for key, text in texts.items() for part in (f"--{key}", text))]

    def start_ranks(self, log: Path, ranks: int) -> subprocess.Popen[bytes]:
        """Train in several ranks, in a process group of their own."""
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as stream:
            return subprocess.Popen(
                [sys.executable, *launcher, "-m", "cisterna", *self.arguments],
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
            )

    @property
    def weights(self) -> Path:
        return next(iter(sorted(self.output.glob("*model.safetensors"))))

    @property
    def manifest(self) -> dict[str, Any]:
        return checkpoint.verify(self.output)

    @property
    def history(self) -> list[dict[str, Any]]:
        return json.loads((self.output / "history.json").read_text())


def published(folder: Path) -> list[Path]:
    """Every manifest and half-made checkpoint below a folder."""
    return [*folder.rglob("manifest.json"), *folder.rglob(".checkpoint.*")]


def solver(base: Path, splice: Path, folder: Path, reads: dict[str, Any] | None = None) -> Run:
    """The SFT run that RL can start from, once it is trained: its completions differ in reward."""
    return Run("sft", base, splice, folder / "sft-solve", SOLVE, 16, reads=reads)
