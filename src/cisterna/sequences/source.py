"""How a run reads sequences: as tokens, or as features from a bank, from a live encoder or from files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cisterna.artifacts import checkpoint
from cisterna.errors import UserError
from cisterna.sequences import bridge, encoders, inputs_file
from cisterna.sequences.feature_bank import Bank
from cisterna.sequences.precomputed import FileFeatures, by_id


class LiveEncoder:
    """Has the interface of a `Bank` but stores no features: the encoder runs whenever features are read.

    Numbers the rows of a sequence when it is first located, and encodes the sequence when its rows are read.
    """

    def __init__(self, encoder: encoders.Encoder, modality: str, reading: Mapping[str, Any]) -> None:
        self.encoder, self.modality, self.reading = encoder, modality, reading
        self.width = encoder.width
        self._places: dict[str, tuple[int, int]] = {}
        self._texts: list[str] = []
        self._starts: list[int] = []
        self._end = 0

    def locate(self, text: str) -> tuple[int, int]:
        """First row and number of rows of a sequence."""
        if text not in self._places:
            count = encoders.rows(encoders.residues(text), self.reading["pool"])
            self._places[text] = (self._end, count)
            self._texts.append(text)
            self._starts.append(self._end)
            self._end += count
        return self._places[text]

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Features of rows: (n,) int64 to (n, width). Each sequence is encoded once a call."""
        owners = np.searchsorted(self._starts, index.numpy(), side="right") - 1  # the sequence of each row
        numbers, positions = np.unique(owners, return_inverse=True)
        grad = bool(self.reading["trained"]) and torch.is_grad_enabled()
        texts = [self._texts[number] for number in numbers]
        features = encoders.encode(self.encoder, texts, self.modality, self.reading, grad)
        starts = np.cumsum([0, *map(len, features)])[:-1]
        offsets = index.numpy() - np.asarray(self._starts)[owners]
        joined = torch.cat(features)
        return joined[torch.from_numpy(starts[positions] + offsets).to(joined.device)]


Features = Bank | LiveEncoder | FileFeatures


@dataclass(frozen=True)
class SequenceSource:
    """How a run reads the sequences of its prompts.

    `features` is None for the form `tokens`; `encoder` describes the encoder of the features, as in inputs.json.
    """

    form: str = "tokens"
    features: Features | None = None
    encoder: Mapping[str, Any] | None = None

    def describe(self, card: Mapping[str, Any], model: Any) -> dict[str, Any]:
        """The content of inputs.json, with the encoder's path not yet relative; `card` is the card of the data."""
        inputs = {key: card[key] for key in ("task", "spec", "labels", "modality")} | {"sequences": self.form}
        if self.encoder is None:
            return inputs | {"encoder": None, "bridge": None}
        return inputs | {
            "encoder": dict(self.encoder) | {"bank": isinstance(self.features, Bank)},
            "bridge": {"kind": model.bridge.kind, "width": model.bridge.width},
        }


TOKENS = SequenceSource()


def open_source(
    form: str, modality: str, bank: Path | None = None, encoder: Path | None = None, reading: Mapping | None = None
) -> SequenceSource:
    """The source of a run in `form`: a bank, or the live encoder read as `reading`.

    UserError if there is neither, or a reading of precomputed features, which need a bank.
    """
    if form == "tokens":
        return TOKENS
    if bank is not None:
        opened = Bank(bank)
        if opened.modality != modality:
            raise UserError(
                f"{bank}: the bank has features of {opened.modality}, but the data are {modality}; it belongs to other "
                f"data. Delete {bank} and rerun"
            )
        names = {"names": list(opened.names)} if by_id(opened.reading) else {}
        return SequenceSource(form, opened, _description(opened.encoder, opened.reading) | names)
    if reading is not None and by_id(reading):
        raise UserError(f"{encoder}: precomputed features need a feature bank (--bank)")
    if encoder is None or reading is None:
        raise UserError(f"sequences as {form} need a feature bank (--bank), or --encoder and --reading")
    network = encoders.load(encoder, reading["layer"])
    return SequenceSource(form, LiveEncoder(network, modality, reading), _description(encoder, reading))


def source_of(folder: Path, bank: Path | None = None, features: Sequence[Path] = ()) -> SequenceSource:
    """The source that a checkpoint was trained with: from `bank`, or else live from its encoder.

    Precomputed features are read from the files in `features`, or else from those of the encoder; an encoder of cells
    reads the `.h5ad` files in `features`. A base has no inputs.json: with a `bank` it reads that, through the bridge
    that it was published with. UserError for such files where the checkpoint reads sequences or tokens.
    """
    inputs = inputs_file.read(folder)
    encoder = inputs and inputs["encoder"]
    given = encoder is not None and by_id(encoder["reading"])
    if features and not given:
        raise UserError(f"{folder}: reads no precomputed features, so that files with such features are not supported")
    if inputs is None and bank is not None:
        return open_source("features", Bank(bank).modality, bank)
    if inputs is None or encoder is None:
        return TOKENS
    if given and bank is None:
        path = Path(encoder["path"])
        read = FileFeatures(path, encoder["reading"], encoder["names"], features)
        return SequenceSource(
            inputs["sequences"], read, _description(path, encoder["reading"]) | {"names": encoder["names"]}
        )
    return open_source(inputs["sequences"], inputs["modality"], bank, Path(encoder["path"]), encoder["reading"])


def _description(encoder: Path, reading: Mapping[str, Any]) -> dict[str, Any]:
    identity = checkpoint.read_manifest(encoder)["identity"]
    return {"path": str(encoder), "identity": identity, "reading": dict(reading)}


def connect(model: Any, source: SequenceSource, kind: str = "linear") -> None:
    """Make a model read the features of `source`, through a new bridge of `kind` if it has none yet.

    An encoder that is trained becomes a part of the model, `model.encoder`. UserError if the model's bridge was trained
    on features of another encoder, or of the same encoder read in another way.
    """
    if source.features is None:
        return
    assert source.encoder is not None
    trained_on = getattr(model, "features", None)
    if trained_on is not None and trained_on != inputs_file.feature_space(source.encoder):
        raise UserError(
            f"the model's bridge was trained on other features: these are of {source.encoder['path']} "
            f"(identity {source.encoder['identity'][:12]}), read as {source.encoder['reading']}; expected identity "
            f"{trained_on['identity'][:12]}, read as {trained_on['reading']}"
        )
    if source.encoder["reading"].get("trained"):
        assert isinstance(source.features, LiveEncoder)
        if hasattr(model, "encoder"):
            source.features.encoder.module = model.encoder
        else:
            model.encoder = source.features.encoder.module.requires_grad_(True)
    bridge.attach(model, kind, source.features.width)
    bridge.install(model, source.features)


def restore(model: Any, inputs: Mapping[str, Any]) -> None:
    """Give a model the modules that inputs.json describes, to load weights into: the bridge, and a trained encoder."""
    encoder = inputs["encoder"]
    if encoder is None:
        return
    if not hasattr(model, "bridge"):
        bridge.attach(model, inputs["bridge"]["kind"], inputs["bridge"]["width"])
    if encoder["reading"].get("trained") and not hasattr(model, "encoder"):
        path = Path(encoder["path"])
        identity = checkpoint.read_manifest(path)["identity"]
        if identity != encoder["identity"]:
            raise UserError(f"{path}: not the encoder that the model was trained with (identity {identity[:12]})")
        model.encoder = encoders.load(path, encoder["reading"]["layer"]).module
    model.features = inputs_file.feature_space(encoder)
