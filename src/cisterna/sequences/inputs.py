"""What a model is given: prompts as token ids, with sequences as tokens, as features, or both.

In the prompt of a task each stretch of residues stands between tags, `<protein>D</protein>22<protein>P</protein>`. The
form of a model says what is between the tags:

    tokens     <protein> D </protein>             one token a residue
    features   <protein> row 21 </protein>        the encoder's features of it, in the context of the whole sequence
    both       <protein> D row 21 </protein>

A checkpoint remembers its form, task and encoder in `inputs.json`, so that it can be asked about a new sequence.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cisterna.artifacts import checkpoint, files
from cisterna.artifacts.work_folder import SAVE_MINUTES
from cisterna.constants import SPLITS
from cisterna.errors import UserError
from cisterna.sequences import bridge, encoders, feature_bank, tokenizer

FILE = "inputs.json"


@dataclass(frozen=True)
class Inputs:
    """How a run reads its prompts. `source` is None for tokens; `encoder` describes it, as in inputs.json."""

    form: str = "tokens"
    source: feature_bank.Bank | feature_bank.Live | None = None
    encoder: Mapping[str, Any] | None = None


def open_source(
    form: str, modality: str, bank: Path | None = None, encoder: Path | None = None, reading: Mapping | None = None
) -> Inputs:
    """The inputs of a run in `form`: from a bank, or live from an encoder read as `reading`. UserError if neither."""
    if form == "tokens":
        return Inputs()
    if bank is not None:
        opened = feature_bank.Bank(bank)
        if opened.modality != modality:
            raise UserError(
                f"{bank}: features of {opened.modality}, and the data are {modality}; it is the bank of other data. "
                f"Delete {bank} and rerun"
            )
        return Inputs(form, opened, _description(opened.encoder, opened.reading))
    if encoder is None or reading is None:
        raise UserError(f"sequences as {form} need a feature bank (--bank), or --encoder and --reading")
    network = encoders.load(encoder, reading["layer"])
    return Inputs(form, feature_bank.Live(network, modality, reading), _description(encoder, reading))


def _description(encoder: Path, reading: Mapping[str, Any]) -> dict[str, Any]:
    identity = checkpoint.read_manifest(encoder)["identity"]
    return {"path": str(encoder), "identity": identity, "reading": dict(reading)}


def prepare(model: Any, inputs: Inputs, kind: str = "linear") -> None:
    """Make a model read `inputs`: give it a bridge (of `kind`) unless it has one, and let it find the rows.

    An encoder that is trained becomes a part of the model, `model.encoder`. UserError if the model's bridge was trained
    on features of another encoder, or of another reading of it.
    """
    if inputs.source is None:
        return
    assert inputs.encoder is not None
    known = getattr(model, "features", None)
    if known is not None and known != _space(inputs.encoder):
        raise UserError(
            f"these features are not those that the model's bridge was trained on: {inputs.encoder['path']} "
            f"(identity {inputs.encoder['identity'][:12]}), read as {inputs.encoder['reading']}; "
            f"expected identity {known['identity'][:12]}, read as {known['reading']}"
        )
    if inputs.encoder["reading"]["trained"]:
        assert isinstance(inputs.source, feature_bank.Live)
        if hasattr(model, "encoder"):
            inputs.source.encoder.module = model.encoder
        else:
            model.encoder = inputs.source.encoder.module.requires_grad_(True)
    bridge.attach(model, kind, inputs.source.width)
    bridge.install(model, inputs.source)


def _space(encoder: Mapping[str, Any]) -> dict[str, Any]:
    """What features have to agree in to mean the same to a bridge: the encoder, and how it is read."""
    ignored = ("batch_tokens",)
    reading = {key: value for key, value in encoder["reading"].items() if key not in ignored}
    return {"identity": encoder["identity"], "reading": reading}


def describe(inputs: Inputs, card: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """The content of inputs.json, the encoder's path not yet relative: task (from the card of its data), form, ..."""
    described = {key: card[key] for key in ("task", "spec", "labels", "modality")} | {"sequences": inputs.form}
    if inputs.encoder is None:
        return described | {"encoder": None, "bridge": None}
    bank = isinstance(inputs.source, feature_bank.Bank)
    return described | {
        "encoder": dict(inputs.encoder) | {"bank": bank},
        "bridge": {"kind": model.bridge.kind, "width": model.bridge.width},
    }


def hashes(described: Mapping[str, Any]) -> dict[str, str]:
    """What of inputs.json determines weights, as hashes for the manifest: form, bridge, encoder and reading."""
    found = {"sequences": files.digest([described["sequences"], described["bridge"]])}
    if described["encoder"] is not None:
        found["encoder"] = files.digest(_space(described["encoder"]))
    return found


def write(folder: Path, published: Path, described: Mapping[str, Any]) -> None:
    """Write inputs.json into `folder`, to be published as `published`; the encoder's path is relative to that."""
    content = dict(described)
    if content["encoder"] is not None:
        content["encoder"] = content["encoder"] | {"path": os.path.relpath(content["encoder"]["path"], published)}
    files.write_json(folder / FILE, content)


def read(folder: Path) -> dict[str, Any] | None:
    """The inputs.json of a checkpoint with the encoder's path resolved; None for a base or CPT checkpoint."""
    if not (folder / FILE).is_file():
        return None
    content = files.read_json(folder / FILE)
    if content["encoder"] is not None:
        content["encoder"]["path"] = os.path.normpath(folder / content["encoder"]["path"])
    return content


def restore(model: Any, described: Mapping[str, Any]) -> None:
    """Give a model the bridge that inputs.json describes, and an encoder that is trained; weights are loaded later."""
    if described["encoder"] is None:
        return
    encoder = described["encoder"]
    if not hasattr(model, "bridge"):
        bridge.attach(model, described["bridge"]["kind"], described["bridge"]["width"])
    if encoder["reading"]["trained"] and not hasattr(model, "encoder"):
        path = Path(encoder["path"])
        found = checkpoint.read_manifest(path)["identity"]
        if found != encoder["identity"]:
            raise UserError(f"{path}: not the encoder that the model was trained with (identity {found[:12]})")
        model.encoder = encoders.load(path, encoder["reading"]["layer"]).module
    model.features = _space(encoder)


def of(folder: Path, bank: Path | None = None) -> Inputs:
    """The inputs that a checkpoint was trained with: from `bank`, else live from its encoder."""
    described = read(folder)
    if described is None or described["encoder"] is None:
        return Inputs()
    encoder = described["encoder"]
    return open_source(described["sequences"], described["modality"], bank, Path(encoder["path"]), encoder["reading"])


def build_bank(
    encoder: Path, data: Path, reading: Mapping[str, Any], work: Path, output: Path,
    save_minutes: float = SAVE_MINUTES,
) -> dict[str, Any]:  # fmt: skip
    """Publish the bank of a task: the windows of all segments of all splits in the folder `data`, each read once."""
    import pandas as pd

    texts: set[str] = set()
    for split in SPLITS:
        frame = pd.read_parquet(data / f"{split}.parquet", columns=["prompt", "segments"])
        for prompt, segments in zip(frame["prompt"], frame["segments"], strict=True):
            for stretch, context in zip(stretches(prompt), segments, strict=True):
                texts.add(_window(stretch, context, reading["flank"]).text)
    if not texts:
        raise UserError(f"{data}: its prompts have no residues that an encoder could read")
    modality = files.read_json(data / "card.json")["modality"]
    hashed = {f"{split}.parquet": files.sha256(data / f"{split}.parquet") for split in SPLITS}
    return feature_bank.build(encoder, texts, modality, reading, hashed, work, output, save_minutes=save_minutes)


def check_data(folder: Path, task: str, hashes: Mapping[str, str]) -> None:
    """UserError if a checkpoint, or one that it was trained from, saw data of `task` with other hashes than these.

    `hashes` maps file names (train.parquet) to their SHA-256. The same task drawn anew has other splits, so examples
    that such a checkpoint was trained on may be in the id split now. Checkpoints of other tasks, and those before SFT,
    pass.
    """
    current: Path | None = folder
    while current is not None:
        manifest = checkpoint.read_manifest(current)
        described = read(current)
        if described is not None and described["task"] == task:
            for name, expected in hashes.items():
                found = manifest["data"].get(name, expected)
                if found != expected:
                    raise UserError(
                        f"{current}: trained on another {name} of {task} (SHA-256 {found[:12]}) than the one in use "
                        f"now ({expected[:12]}), whose splits may hold examples it was trained on. Put the data back "
                        f"that it was trained on, or delete {current} and rerun"
                    )
        current = checkpoint.parent_of(current, manifest) if manifest["parent"] else None


def prompt_ids(
    tokens: Any, prompts: Sequence[str], inputs: Inputs, segments: Sequence[Sequence[Mapping[str, Any]]], first: int
) -> list[list[int]]:
    """Token ids of prompts, through the chat template where the tokenizer has one.

    `segments` holds for each prompt and each tagged stretch in it, in order, the `sequence` that it is of, its `start`
    there (from 0) and the `center` of the window, or None (`cisterna.sequences.feature_bank.window`); it is read for
    features only. `first` is the size of the model's vocabulary: row r of the source is the id first + r.
    """
    texts = tokenizer.prompt_texts(tokens, prompts, inputs.form)
    if inputs.source is None:
        return tokens(texts, add_special_tokens=False)["input_ids"]
    pieces = [text.split(tokenizer.ROWS) for text in texts]
    flat = [piece for part in pieces for piece in part]
    ids = iter(tokens(flat, add_special_tokens=False)["input_ids"])
    found = []
    for prompt, part, contexts in zip(prompts, pieces, segments, strict=True):
        row = list(next(ids))
        for stretch, context in zip(stretches(prompt), contexts, strict=True):
            row += [first + index for index in _rows(inputs, stretch, context)] + next(ids)
        assert len(part) == len(contexts) + 1
        found.append(row)
    return found


def stretches(prompt: str) -> list[str]:
    """The tagged stretches of residues of a prompt, in order."""
    return [match[2] for match in tokenizer.TAGGED.finditer(prompt)]


def _window(stretch: str, context: Mapping[str, Any], flank: int) -> feature_bank.Window:
    start, center = context["start"], context["center"]
    return feature_bank.window(context["sequence"], start, start + len(stretch), center, flank)


def _rows(inputs: Inputs, stretch: str, context: Mapping[str, Any]) -> range:
    source = inputs.source
    assert source is not None
    text, first, last = _window(stretch, context, source.reading["flank"])
    if first >= last:  # the window is around a center that is far from this stretch
        return range(0)
    row, _ = source.locate(text)
    pool = source.reading["pool"] or 1
    return range(row + first // pool, row + encoders.rows(last, pool))
