"""Gathers what the evaluations and the RL runs of a study wrote into three tables. No cell may be missing.

    metrics.parquet    a row a model x task x split x metric, baselines included; and a row a base or CPT model x
                       corpus, with the corpus as task, split "heldout" and metric "perplexity"
    rl_gains.parquet   a row an RL model x split x metric: RL model minus its parent, same examples
    rl_rewards.parquet a row an RL model x logged step: reward while it trained

Not for computing metrics of a model (``cisterna.evaluate`` did), not for drawing
(``cisterna.report.figures``).
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from cisterna.errors import UserError
from cisterna.metrics import difference
from cisterna.report import GAINS, METRICS, REWARDS
from cisterna.study import Model, Study
from cisterna.tasks import catalog

SPLITS = ("id", "ood")

IDENTITY = {
    "study": "string",
    "model": "string",
    "kind": "string",
    "task": "string",
    "modality": "string",
    "backbone": "string",
    "cpt": "string",
    "seed": "Int64",
    "sequences": "string",
    "encoder": "string",
    "sft": "string",
    "sft_epochs": "int64",
    "rl": "string",
    "rl_epochs": "int64",
}
NUMBERS = {
    "split": "string",
    "metric": "string",
    "value": "float64",
    "low": "float64",
    "high": "float64",
    "n": "int64",
}
LOGGED = {
    "step": "int64",
    "epoch": "float64",
    "reward": "float64",
    "reward_std": "float64",
    "frac_reward_zero_std": "float64",
}


def gather(study: Study, results: Path, output: Path) -> None:
    """Write metrics.parquet, rl_gains.parquet and rl_rewards.parquet of a study into the folder ``output``.

    ``results`` is the folder that holds ``models/`` and ``baselines/``. Columns of metrics.parquet
    are ``IDENTITY`` and ``NUMBERS``: ``model`` is the path of the checkpoint under
    ``results/models``, or ``baseline/NAME``; a stage that a model did not pass is "none" with 0
    epochs; base, CPT and baselines have no seed. ``sequences`` is the form in which a model gets the
    sequences (tokens, features or both; a base or CPT model tokens, a baseline none), ``encoder`` is
    null for tokens. rl_gains.parquet has ``parent`` beside ``model``, and its numbers are paired
    differences (``cisterna.metrics.difference``).

    Columns of rl_rewards.parquet are ``IDENTITY`` and ``LOGGED``, as TRL's GRPOTrainer logs them:
    means over the steps since the row before, of a completion's reward, of its standard deviation in
    a group, and of the share of groups whose rewards are all equal. The rows of a rung begin with
    those of the rungs that it goes on from.

    Rows come in the order of the study, then split, then metric; the same evaluations give the same
    bytes. Raises UserError if evaluations, baselines or histories are missing (it lists them) or are
    not what the study's stages write.
    """
    missing = [path for path in _needed(study, results) if not path.is_file()]
    if missing:
        shown = "\n".join(f"  {path}" for path in missing[:20])
        more = f"\n  ... and {len(missing) - 20} more" if len(missing) > 20 else ""
        raise UserError(
            f"study {study.name}: {len(missing)} results are missing; run snakemake to make them, and where the folder "
            f"of one is there without it delete the folder first\n{shown}{more}"
        )
    output.mkdir(parents=True, exist_ok=True)
    _write(
        pd.DataFrame([*_evaluations(study, results), *_baselines(study, results), *_perplexities(study, results)]),
        IDENTITY | NUMBERS,
        output / METRICS,
    )
    columns = dict(list(IDENTITY.items())[:2]) | {"parent": "string"} | IDENTITY | NUMBERS
    _write(pd.DataFrame(_gains(study, results)), columns, output / GAINS)
    _write(pd.DataFrame(_rewards(study, results)), IDENTITY | LOGGED, output / REWARDS)


def _needed(study: Study, results: Path) -> Iterator[Path]:
    for evaluation, _, _ in study.evaluations():
        yield results / evaluation / "metrics.json"
    for task in study.tasks:
        yield results / "baselines" / task / "metrics.json"
    for model in _language_models(study):
        yield results / model.path / "perplexity.json"
    for model in _rl_models(study):
        yield _history(results, model)
    for child, parent, _ in _pairs(study):
        for split in SPLITS:
            yield results / child / f"{split}.parquet"
            yield results / parent / f"{split}.parquet"


def _evaluations(study: Study, results: Path) -> Iterator[dict[str, Any]]:
    for evaluation, path, task in study.evaluations():
        model = study.model(path)
        file = results / evaluation / "metrics.json"
        yield from _rows(_identity(study, model, task, _modality(study, task)), _read(file, file.parent), file)


def _baselines(study: Study, results: Path) -> Iterator[dict[str, Any]]:
    for task in study.tasks:
        file = results / "baselines" / task / "metrics.json"
        for name, splits in _read(file, file.parent).items():
            identity = {
                "study": study.name,
                "model": f"baseline/{name}",
                "kind": "baseline",
                "task": task,
                "modality": _modality(study, task),
                "backbone": "none",
                "cpt": "none",
                "seed": None,
                "sequences": None,
                "encoder": None,
                "sft": "none",
                "sft_epochs": 0,
                "rl": "none",
                "rl_epochs": 0,
            }
            yield from _rows(identity, splits, file)


def _language_models(study: Study) -> Iterator[Model]:
    """Base and CPT models, where the study has a corpus to test them on."""
    return (model for model in study.models if model.kind in ("base", "cpt") and study.corpora)


def _perplexities(study: Study, results: Path) -> Iterator[dict[str, Any]]:
    for model in _language_models(study):
        file = results / model.path / "perplexity.json"
        for corpus, summary in sorted(_read(file).items()):
            modality = study.config["corpora"][corpus]["modality"]
            identity = _identity(study, model, corpus, modality)
            yield identity | {"split": "heldout", "metric": "perplexity"} | summary


def _pairs(study: Study) -> Iterator[tuple[str, str, Model]]:
    """Evaluation folders of each RL model and of the parent it started from."""
    folders = {(path, task): folder for folder, path, task in study.evaluations()}
    for folder, path, task in study.evaluations():
        model = study.model(path)
        if model.kind == "rl" and model.parent is not None:
            yield folder, folders[model.parent, task], model


def _gains(study: Study, results: Path) -> Iterator[dict[str, Any]]:
    for child, parent, model in _pairs(study):
        file = results / child / "metrics.json"
        labels = _labels(_read(file, file.parent), file)
        for split in SPLITS:
            after = _predictions(results / child / f"{split}.parquet")
            before = _predictions(results / parent / f"{split}.parquet")
            if not after["answer"].equals(before["answer"]):
                raise UserError(
                    f"{results / child} and {results / parent} answer different {split} examples; "
                    "delete both folders and run snakemake again"
                )
            gains = difference(
                after["answer"].tolist(),
                before["predicted"].tolist(),
                after["predicted"].tolist(),
                labels,
                seed=0,
                resamples=study.config["evaluation"]["bootstrap"],
            )
            identity = _identity(study, model, str(model.task), _modality(study, str(model.task))) | {
                "parent": _short(str(model.parent))
            }
            for metric, summary in gains.items():
                yield identity | {"split": split, "metric": metric} | summary


def _rl_models(study: Study) -> Iterator[Model]:
    return (model for model in study.models if model.kind == "rl")


def _history(results: Path, model: Model) -> Path:
    return results / model.path / "checkpoint" / "history.json"


def _rewards(study: Study, results: Path) -> Iterator[dict[str, Any]]:
    for model in _rl_models(study):
        file = _history(results, model)
        identity = _identity(study, model, str(model.task), _modality(study, str(model.task)))
        try:
            logged = [{key: entry[key] for key in LOGGED} for entry in _read(file, file.parent) if "reward" in entry]
            if not logged:
                raise KeyError("reward")
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{file}: lacks rewards of RL ({type(error).__name__} {error}); "
                f"delete {file.parent} and run snakemake again"
            ) from error
        yield from (identity | entry for entry in logged)


def _identity(study: Study, model: Model, task: str, modality: str) -> dict[str, Any]:
    return {
        "study": study.name,
        "model": _short(model.path),
        "kind": model.kind,
        "task": task,
        "modality": modality,
        "backbone": model.backbone,
        "cpt": model.cpt or "none",
        "seed": model.seed,
        "sequences": model.sequences,
        "encoder": model.encoder,
        "sft": model.sft or "none",
        "sft_epochs": model.sft_epochs,
        "rl": model.rl or "none",
        "rl_epochs": model.rl_epochs,
    }


def _short(path: str) -> str:
    return path.removeprefix("models/")


def _modality(study: Study, task: str) -> str:
    spec = study.config["tasks"][task]
    return spec["modality"] if "modality" in spec else catalog.MODALITIES[task]


def _rows(identity: dict[str, Any], splits: Any, file: Path) -> Iterator[dict[str, Any]]:
    try:
        for split in SPLITS:
            for metric, summary in sorted(splits[split].items()):
                yield (
                    identity
                    | {"split": split, "metric": metric}
                    | {key: summary[key] for key in ("value", "low", "high", "n")}
                )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}: lacks metrics of {' or '.join(SPLITS)} ({type(error).__name__} {error}); "
            f"delete {file.parent} and run snakemake again"
        ) from error


def _read(file: Path, output: Path | None = None) -> Any:
    """What a JSON file holds; ``output`` is the folder that Snakemake makes again, if it is not the file itself."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        again = f"delete {output or 'it'} and run snakemake again"
        raise UserError(f"{file}: cannot be read ({error}); {again}") from error


def _labels(splits: Any, file: Path) -> list[str]:
    """The answer space, as the evaluation wrote it."""
    labels = [name.removeprefix("gold:") for name in splits["id"] if name.startswith("gold:")]
    if not labels:
        raise UserError(f"{file}: names no gold labels; delete {file.parent} and run snakemake again")
    return labels


def _predictions(file: Path) -> pd.DataFrame:
    """Gold and predicted label by example id, sorted by id."""
    frame = pd.read_parquet(file, columns=["id", "answer", "predicted"])
    frame = frame.astype(object).set_index("id").sort_index()
    return frame.replace({float("nan"): None})


def _write(frame: pd.DataFrame, columns: dict[str, str], path: Path) -> None:
    typed = frame.reindex(columns=list(columns)).astype(columns)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    typed.to_parquet(temporary, index=False)
    os.replace(temporary, path)
