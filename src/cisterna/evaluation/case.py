"""What an evaluation reads and asks for, and the answers of a model that are saved in its work folder.

Imports no torch, so that answers which are saved are scored in a second. Not for the model (`answering`), and not for
metrics (`evaluate`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cisterna.artifacts import checkpoint, files, work_folder
from cisterna.constants import TEST_SPLITS
from cisterna.data import splits
from cisterna.scoring import answers
from cisterna.scoring.answers import AnswerSpace
from cisterna.sequences import engines, inputs_file

# Keys of the options that change no output: outputs saved under other values of these are used.
CHANGE_NO_OUTPUT = frozenset({"bootstrap", "samples", "calibration", "shots"})
SAVED = "answers.json"  # in a work folder: all answers of a model, as text


@dataclass(frozen=True)
class Case:
    """A checkpoint on a task: its folder, the data, the options of the evaluation, and the bank that it reads."""

    checkpoint: Path
    data: Path
    options: Mapping[str, Any]
    bank: Path | None = None

    @cached_property
    def card(self) -> dict[str, Any]:
        """The card of the data."""
        return splits.read_card(self.data)

    @cached_property
    def tables(self) -> dict[str, Path]:
        """The file of each test split. UserError if one is not that of the card."""
        return {split: splits.check(self.data, split, self.card) for split in TEST_SPLITS}

    @cached_property
    def space(self) -> AnswerSpace:
        """What the task can be answered with."""
        return answers.load_space(self.card, self.data)

    @property
    def engine_name(self) -> str:
        """The engine that answers."""
        return str(self.options.get("engine", engines.TRANSFORMERS))

    @property
    def samples(self) -> int:
        """Further answers to each example."""
        return int(self.options.get("samples") or 0)

    @cached_property
    def shots(self) -> int:
        """Examples of train before each question, if there are answers with such; only of base and CPT models."""
        kind = checkpoint.read_manifest(self.checkpoint)["kind"]
        return int(self.options.get("shots") or 0) if kind in ("base", "cpt") else 0

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that get probabilities; none without `calibration`, and where answers are sets of terms."""
        return tuple(self.space.labels) if self.options.get("calibration") else ()

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the answers depend on, but for the device.

        UserError for a checkpoint that was trained on other splits of the task, for splits that are not those of their
        card, and for an engine that is not installed.
        """
        of_engine = engines.packages(self.engine_name)
        card, tables = self.card, self.tables
        inputs_file.check_data(self.checkpoint, card["task"], {"train.parquet": card["files"]["train.parquet"]})
        return {
            "checkpoint": checkpoint.read_manifest(self.checkpoint)["identity"],
            "data": {path.name: card["files"][path.name] for path in tables.values()},
            "labels": card["labels"],
            "options": {key: value for key, value in self.options.items() if key not in CHANGE_NO_OUTPUT},
            "bank": checkpoint.read_manifest(self.bank)["identity"] if self.bank else None,
            "packages": checkpoint.packages() | of_engine,
        }

    @property
    def asked(self) -> dict[str, Any]:
        """What is asked for beyond the answers."""
        return {"samples": self.samples, "labels": list(self.labels), "shots": self.shots}

    def saved(self, work: Path) -> dict[str, Any] | None:
        """The answers in a work folder (see `answering.answer`), if they are complete and depend on the same facts."""
        path, fingerprint = work / SAVED, work / work_folder.FINGERPRINT
        if not (path.is_file() and fingerprint.is_file()):
            return None
        found: dict[str, Any] = files.read_json(path)
        same = files.read_json(fingerprint) == self.facts | {"device": found["device"]}
        return found if same and found["asked"] == self.asked else None
