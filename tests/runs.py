"""How the tests of training start a stage: in this process, or as the command a rule starts."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cisterna.artifacts import checkpoint
from forks import Fork

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


class Run:
    """One stage: what to train from what, where."""

    def __init__(
        self,
        kind: str,
        parent: Path,
        data: Path,
        folder: Path,
        recipe: dict[str, Any],
        epochs: float = 1,
        *,
        seed: int = 0,
        ladder: bool = False,
        previous: "Run | None" = None,
        reads: dict[str, Any] | None = None,
    ) -> None:
        """With `ladder` (or `previous`) the work folder is that of the ladder, else the rung's own.

        `reads` are the options that say how sequences reach the model: sequences, bank, encoder, reading.
        """
        self.kind, self.parent, self.data, self.recipe = kind, parent, data, recipe
        self.epochs, self.seed = float(epochs), seed
        rung = folder / f"e{epochs:g}"
        self.output = rung / "checkpoint"
        self.work = folder / ".work" if ladder or previous else rung / ".work"
        self.previous = previous.output if previous else None
        self.reads = reads or {}

    def here(self) -> "Run":
        """Train in this process; returns itself."""
        from cisterna.sequences.source import open_source
        from cisterna.training import cpt, rl, sft
        from cisterna.training.stage import StageArguments

        arguments = StageArguments(
            kind=self.kind,
            parent=self.parent,
            output=self.output,
            work=self.work,
            recipe=self.recipe,
            seed=self.seed,
            epochs=self.epochs,
            previous=self.previous,
        )
        if self.kind == "cpt":
            cpt.train(arguments, [self.data])
            return self
        modality = json.loads((self.data / "card.json").read_text())["modality"]
        source = {key: value for key, value in self.reads.items() if key != "sequences"}
        given = open_source(self.reads.get("sequences", "tokens"), modality, **source)
        (sft if self.kind == "sft" else rl).train(arguments, self.data, given)
        return self

    def command(self, ranks: int = 1) -> list[str]:
        launcher = [sys.executable]
        if ranks > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        given = {
            "parent": self.parent,
            "tokens" if self.kind == "cpt" else "data": self.data,
            "recipe": json.dumps(self.recipe),
            "seed": self.seed,
            "epochs": self.epochs,
            "work": self.work,
            "output": self.output,
        } | ({"previous": self.previous} if self.previous else {})
        given |= self.reads | ({"reading": json.dumps(self.reads["reading"])} if "reading" in self.reads else {})
        options = [part for key, value in given.items() for part in (f"--{key}", str(value))]
        return [*launcher, "-m", "cisterna", self.kind, *options]

    def start(self, log: Path) -> Fork:
        """Train in another process, everything it prints in `log`."""
        words = self.command()
        return Fork("cisterna", words[words.index("cisterna") + 1 :], log)

    def start_ranks(self, log: Path, ranks: int) -> subprocess.Popen[bytes]:
        """Train in several ranks, in a process group of their own."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as stream:
            return subprocess.Popen(
                self.command(ranks),
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
            )

    def there(self, log: Path) -> "Run":
        """Train in another process to the end; returns itself."""
        assert self.start(log).wait() == 0, log.read_text()[-4000:]
        return self

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
