"""What a job of a study reads: paths relative to the clone, by the names that its rule and its command have for them.

The rules (workflow/rules) and `cisterna train PATH` (cisterna.runtime.commands) share this. Which job makes what is in
cisterna.study.jobs.
"""

import base64
import json
import zlib
from collections.abc import Mapping
from typing import Any

from cisterna.study.expansion import Model, Study
from cisterna.tasks import catalog

LONGEST = 100_000  # characters of a study in a shell line: Linux takes at most 128 KiB in one word
PACKED = "zlib:"


def checkpoint(path: str) -> str:
    """The checkpoint of the model or encoder at `path`, relative to results/."""
    return f"results/{path}/checkpoint"


def of_model(study: Study, model: Model) -> dict[str, str]:
    """What SFT or RL of a model reads: its parent, in a ladder the rung before it, its data and its features."""
    named = {"parent": checkpoint(str(model.parent)), "data": f"results/data/{model.task}"}
    previous = {"previous": checkpoint(model.previous)} if model.previous else {}
    return named | previous | features(study, model)


def of_evaluation(study: Study, model: Model, task: str) -> dict[str, str]:
    """What the evaluation of a model on a task reads."""
    named = {"checkpoint": checkpoint(model.path), "data": f"results/data/{task}"}
    return named | features(study, study.as_evaluated(model, task))


def of_group(study: Study, group: str) -> dict[str, list[str]]:
    """What the evaluations of a group read, each time all that they read under one name."""
    found: dict[str, list[str]] = {}
    for _, path, task in study.groups[group]:
        for name, read in of_evaluation(study, study.model(path), task).items():
            found.setdefault(name, []).append(read)
    return found


def members(study: Study, group: str, read: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """What each evaluation of a group reads, as `cisterna answers` takes it: by its path, checkpoint, data, bank, work.

    `read` is what `of_group` lists, on this disk.
    """
    left = {name: iter([paths] if isinstance(paths, str) else paths) for name, paths in read.items()}
    found = {}
    for folder, path, task in study.groups[group]:
        names = of_evaluation(study, study.model(path), task)
        paths = {name: str(next(left[name])) for name in names}
        paths.pop("encoder", None)  # the checkpoint names it
        found[f"results/{folder}"] = paths | {"work": f"results/.work/{folder}"}
    return found


def features(study: Study, model: Model) -> dict[str, str]:
    """What a model reads features from: its bank, or the encoder that runs inside each step."""
    if model.encoder is None:
        return {}
    bank = study.bank(model)
    return {"bank": f"results/{bank}"} if bank else {"encoder": checkpoint(f"encoders/{model.encoder}")}


def lineage(study: Study, model: Model) -> list[str]:
    """The checkpoints that a model is loaded with: those it was made from, and its encoder."""
    encoders = [f"encoders/{model.encoder}"] if model.encoder else []
    return [checkpoint(path) for path in (*study.lineage(model), *encoders)]


def tokens(study: Study, backbone: str) -> list[str]:
    """The tokenized corpora of a backbone."""
    return [f"results/tokens/{owner}/{corpus}" for owner, corpus in study.tokenized if owner == backbone]


def corpora(study: Study, name: str) -> dict[str, Any]:
    """The corpora that an encoder is trained on, by name; none if it is pretrained."""
    names = study.encoder(name).get("training", {}).get("corpora", [])
    return {corpus: study.config["corpora"][corpus] for corpus in names}


def encoder_files(study: Study, name: str) -> list[str]:
    """The files of an encoder's precomputed features, or those that it is trained on; none if it is pretrained."""
    trained_on = [corpus["file"] for corpus in corpora(study, name).values()]
    return [*study.encoder(name).get("features", []), *trained_on]


def feature_files(study: Study, name: str, task: str) -> list[str]:
    """The files that features of a task are read from: precomputed ones, or the cells that an encoder reads."""
    encoder = study.encoder(name)
    return list(encoder.get("features", study.sources(task) if catalog.cells(study.config["tasks"][task]) else []))


def tokenizer_texts(study: Study, backbone: str) -> list[str]:
    """The files that the tokenizer of a backbone is trained on; none if it is pretrained."""
    return list(study.config["backbones"][backbone].get("tokenizer", {}).get("files", []))


def options(names: Mapping[str, str], *wanted: str) -> list[str]:
    """The words `--NAME PATH` of a command line for those of the `wanted` inputs that a job has."""
    return [word for name in wanted if name in names for word in (f"--{name}", names[name])]


def sequences(study: Study, model: Model) -> list[str]:
    """The words of a command line for the form in which a model gets the sequences; none for tokens."""
    if model.encoder is None:
        return []
    reading = [] if study.bank(model) else ["--reading", as_json(study.reading(model.encoder))]
    return ["--sequences", model.sequences, *reading]


def as_json(value: Any) -> str:
    """JSON without a <: Snakemake's report puts params into a script of the page, which </script> would end."""
    return json.dumps(value, sort_keys=True).replace("<", "\\u003c")


def pack(config: Mapping[str, Any]) -> str:
    """A whole config as one word of a shell line: JSON, compressed if it is too long for one word."""
    text = as_json(config)
    return text if len(text) <= LONGEST else PACKED + base64.b64encode(zlib.compress(text.encode())).decode()


def unpack(word: str) -> Any:
    """The config in a word that `pack` made. ValueError if it is none."""
    if word.startswith(PACKED):
        try:
            word = zlib.decompress(base64.b64decode(word.removeprefix(PACKED))).decode()
        except zlib.error as error:
            raise ValueError(error) from None
    return json.loads(word)
