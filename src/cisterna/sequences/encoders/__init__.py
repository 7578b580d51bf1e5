"""Encoders: frozen sequence foundation models whose features a backbone reads.

All have one interface: `load` opens the checkpoint of an encoder, `encode` turns sequences into features, one row a
residue (or a window of residues, with `pool`). An encoder is a masked or causal language model of the transformers
library or one trained here (`cisterna.sequences.encoders.huggingface`), Evo 2 (`cisterna.sequences.encoders.evo2`) or
ESM-3 (`cisterna.sequences.encoders.esm3`).

The checkpoint of an encoder trained here (`cisterna.training.encoder`) has its weights. That of a pretrained encoder
(`refer`) says where its weights are: hub id and revision, or a local folder and the SHA-256 of its files. That of
precomputed features (`cisterna.sequences.precomputed`) names their files in the same way.

Not for storing features (`cisterna.sequences.feature_bank`) and not for what a language model does with them
(`cisterna.sequences.bridge`).
"""

import importlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from cisterna.artifacts import checkpoint, files
from cisterna.errors import UserError

PACKAGES = {"transformers": "huggingface", "evo2": "evo2", "esm": "esm3"}
CELLS = {"transcriptformer"}  # packages whose networks read cells and not sequences (`cisterna.sequences.precomputed`)


class Encoder(Protocol):
    """The interface of every adapter to a network that reads sequences.

    `layer` is the hidden state that is read (0 the embeddings, -1 the last; or the name of a module), `dtype` the type
    in which features are computed, `width` the number of features a residue.
    """

    name: str
    revision: str | None
    layer: int | str
    dtype: torch.dtype
    width: int
    module: torch.nn.Module

    def forward(self, sequences: Sequence[str], modality: str) -> list[torch.Tensor]:
        """Features of one batch: for each sequence a tensor (residues, width).

        If a sequence has spaces, its residues are its words (genes of a cell). UserError for a letter that the encoder
        cannot read.
        """


def refer(spec: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Publish the checkpoint of a pretrained encoder or of features: a reference to its files. Returns the manifest."""
    with files.new_folder(output) as folder:
        files.write_json(folder / "encoder.json", dict(spec))
        return checkpoint.write_manifest(
            folder,
            published=output,
            kind="encoder",
            parent=None,
            recipe=spec,
            seed=0,
            data=_sources(spec),
            trained={},
            measured={},
        )


def _sources(spec: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the files of precomputed features, or of a pretrained encoder that is a local folder or file."""
    if "features" in spec:
        return {str(path): files.sha256(files.locate(path)) for path in spec["features"]}
    path = Path(spec["pretrained"])
    if spec.get("package") in CELLS:
        return {
            str(entry.relative_to(path)): files.sha256(entry) for entry in sorted(path.rglob("*")) if entry.is_file()
        }
    entries = sorted(path.iterdir()) if path.is_dir() else [path]
    return {entry.name: files.sha256(entry) for entry in entries if entry.is_file()}


def load(folder: Path, layer: int | str, device: torch.device | None = None) -> Encoder:
    """The encoder of a checkpoint, in evaluation mode with frozen weights, on this rank's GPU if there is one.

    Raises UserError if the checkpoint is incomplete or not an encoder, if the files of a pretrained encoder have
    changed, or if its package is not installed.
    """
    manifest = checkpoint.verify(folder)
    if manifest["kind"] != "encoder":
        raise UserError(f"{folder}: not an encoder, this is a checkpoint of kind {manifest['kind']}")
    spec = manifest["recipe"]
    if "features" in spec:
        raise UserError(f"{folder}: features that were computed elsewhere, which no encoder computes here")
    if spec.get("package") in CELLS:
        raise UserError(f"{folder}: the package {spec['package']} reads cells, not sequences")
    if "pretrained" in spec:
        check_sources(folder, manifest)
    package = spec.get("package", "transformers")
    adapter = importlib.import_module(f"cisterna.sequences.encoders.{PACKAGES[package]}")
    device = device or own_device()
    encoder = adapter.load(spec, layer, device) if "pretrained" in spec else adapter.load_made(folder, layer, device)
    encoder.module.eval().requires_grad_(False)
    return encoder


def check_sources(folder: Path, manifest: Mapping[str, Any]) -> None:
    """UserError if files that the checkpoint `folder` refers to have changed; `manifest` is its manifest."""
    spec = manifest["recipe"]
    if _sources(spec) != manifest["data"]:
        name = spec.get("pretrained") or ", ".join(spec["features"])
        raise UserError(
            f"encoder {name}: its files have changed since {folder} was made from them. Restore them, or delete "
            f"{folder} and rerun"
        )


def own_device() -> torch.device:
    """The GPU of this rank if there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def encode(
    encoder: Encoder, sequences: Sequence[str], modality: str, reading: Mapping[str, Any], grad: bool = False
) -> list[torch.Tensor]:
    """Features of sequences, in their order: for each a tensor (rows, width) on the CPU, in the type `storage`.

    There is one row a residue, or with `pool` one a window of that many residues, their mean (the last window may be
    shorter). Sequences are encoded in batches of similar length, at most `batch_tokens` residues with padding. With
    `grad`, for an encoder that is trained, features stay on the device, in the encoder's type and with their graph.
    UserError if a feature is not finite in `storage`.
    """
    storage = getattr(torch, reading["storage"])
    letters = str.maketrans(reading["letters"])
    features: dict[int, torch.Tensor] = {}
    for batch in batches([residues(sequence) for sequence in sequences], reading["batch_tokens"]):
        with torch.set_grad_enabled(grad):
            outputs = encoder.forward([sequences[index].translate(letters) for index in batch], modality)
        for index, output in zip(batch, outputs, strict=True):
            if len(output) != residues(sequences[index]):
                raise UserError(
                    f"encoder {encoder.name}: {len(output)} features for the {residues(sequences[index])} residues of "
                    f"{sequences[index][:40]}; its tokenizer does not know a letter of it (see `letters`)"
                )
            rows = pool(output, reading["pool"])
            if not grad:
                rows = rows.to("cpu", storage)
                if not torch.isfinite(rows).all():
                    raise UserError(
                        f"encoder {encoder.name}: features of {sequences[index][:40]} do not fit {reading['storage']}; "
                        "use storage: bfloat16, or another layer"
                    )
            features[index] = rows
    return [features[index] for index in range(len(sequences))]


def residues(sequence: str) -> int:
    """Number of residues of a sequence; if it has spaces, of words."""
    return len(sequence.split()) if " " in sequence else len(sequence)


def rows(count: int, window: int | None) -> int:
    """Number of rows of `count` residues, pooled over windows of `window` residues."""
    return -(-count // (window or 1))


def pool(features: torch.Tensor, window: int | None) -> torch.Tensor:
    """Means over windows of `window` residues: (residues, width) to (rows, width). The last window may be shorter."""
    if window is None or window == 1:
        return features
    count = rows(len(features), window)
    index = torch.arange(len(features), device=features.device) // window
    sums = features.new_zeros(count, features.shape[1], dtype=torch.float32).index_add(0, index, features.float())
    sizes = torch.bincount(index, minlength=count).unsqueeze(1)
    return (sums / sizes).to(features.dtype)


def batches(lengths: Sequence[int], tokens: int) -> Iterable[list[int]]:
    """Indices of items in batches of similar length, shortest first, each with at most `tokens` tokens with padding.

    An item that is longer than `tokens` is a batch of its own.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if batch and lengths[index] * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
