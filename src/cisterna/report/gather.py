"""Gathers what the evaluations and the RL runs of a study wrote into three tables, and what is not there in a fourth.

    metrics.parquet    a row a model x task x split x metric (x group), baselines included; and a row a base or CPT
                       model x corpus, with the corpus as task, split "heldout" and metric "perplexity"
    rl_gains.parquet   a row an RL model x split x metric: RL model minus its parent, same examples
    rl_rewards.parquet a row an RL model x logged step: reward while it trained
    cells.parquet      a row each cell that the config asks for: whether it is there, and why it is not

Not for computing metrics of a model (``cisterna.evaluation.evaluate`` did), not for drawing
(``cisterna.report.figures``).
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial as bind
from pathlib import Path
from typing import Any

import pandas as pd

from cisterna.artifacts import files
from cisterna.constants import TEST_SPLITS
from cisterna.errors import UserError
from cisterna.ops import status
from cisterna.report import CELLS, GAINS, METRICS, REWARDS
from cisterna.scoring import gene_ontology
from cisterna.scoring.metrics import difference
from cisterna.study import Model, Study
from cisterna.tasks import catalog

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
GROUP = {"group": "string"}
CELL = {
    "parent": "string",
    "cell": "string",
    "state": "string",
    "reason": "string",
    "log": "string",
}
LOGGED = {
    "step": "int64",
    "epoch": "float64",
    "reward": "float64",
    "reward_std": "float64",
    "frac_reward_zero_std": "float64",
}


@dataclass(frozen=True)
class Cell:
    """What the config asks for: an evaluation, the baselines of a task, a perplexity, a gain or the rewards of RL.

    ``files`` are what it is read from and ``jobs`` the outputs, relative to results/, of the jobs that write these;
    ``rows`` are its rows in ``table``.
    """

    kind: str
    identity: dict[str, Any]
    table: str
    files: tuple[Path, ...]
    jobs: tuple[str, ...]
    rows: Callable[[], Iterable[dict[str, Any]]]


def gather(study: Study, results: Path, output: Path, partial: bool = False) -> None:
    """Write the four tables of a study into the folder ``output``.

    ``results`` is the folder that holds ``models/`` and ``baselines/``. Columns of metrics.parquet
    are ``IDENTITY``, ``NUMBERS`` and ``GROUP``: ``model`` is the path of the checkpoint under
    ``results/models``, or ``baseline/NAME``; a stage that a model did not pass is "none" with 0
    epochs; base, CPT and baselines have no seed. ``sequences`` is the form in which a model gets the
    sequences (tokens, features or both; a base or CPT model tokens, a baseline none), ``encoder`` is
    null for tokens. ``group`` is null for a metric of all examples of the split, else the group of
    the data that the row is of. Where n is 0 there are no numbers. rl_gains.parquet has ``parent``
    beside ``model``, and its numbers are paired differences (``cisterna.scoring.metrics.difference``; where
    answers are sets of terms ``cisterna.scoring.gene_ontology.difference``).

    Columns of rl_rewards.parquet are ``IDENTITY`` and ``LOGGED``, as TRL's GRPOTrainer logs them:
    means over the steps since the row before, of a completion's reward, of its standard deviation in
    a group, and of the share of groups whose rewards are all equal. The rows of a rung begin with
    those of the rungs that it goes on from.

    Columns of cells.parquet are ``IDENTITY`` and ``CELL``: ``cell`` is evaluation, baselines,
    perplexity (a row a corpus, which is the task), rl_gain or rl_rewards; ``state`` is done, failed
    (a job that it needs ended with an error, or its files cannot be read) or missing. ``reason`` is
    that error or says what is not there, ``log`` is the log, relative to ``results``, that tells
    more; both are null where it is done.

    Rows come in the order of the study, then split, then metric; the same evaluations give the same
    bytes. Raises UserError if evaluations, baselines or histories are missing (it lists them) or are
    not what the study's stages write. With ``partial`` such cells are left out of the other tables
    and stand in cells.parquet with their reason; UserError only if there is no result at all.
    """
    cells = list(_cells(study, results))
    absent = {path: None for cell in cells for path in cell.files if not path.is_file()}
    if absent and not partial:
        missing = list(absent)
        shown = "\n".join(f"  {path}" for path in missing[:20])
        more = f"\n  ... and {len(missing) - 20} more" if len(missing) > 20 else ""
        raise UserError(
            f"study {study.name}: {len(missing)} results are missing; run snakemake to make them, and where the folder "
            f"of one is there without it delete the folder first. With --partial the others are gathered\n{shown}{more}"
        )
    reasons = _Reasons(study, results)
    tables: dict[str, list[dict[str, Any]]] = {METRICS: [], GAINS: [], REWARDS: []}
    states = []
    for cell in cells:
        found: dict[str, Any] = {"state": "done", "reason": None, "log": None}
        if any(path in absent for path in cell.files):
            found = reasons.of(cell)
        else:
            try:
                tables[cell.table] += list(cell.rows())
            except UserError as error:
                if not partial:
                    raise
                found |= {"state": "failed", "reason": str(error)}
        states.append(cell.identity | {"cell": cell.kind} | found)
    if not any(map(len, tables.values())):
        first = next((state["reason"] for state in states if state["state"] == "failed"), "nothing has run")
        raise UserError(f"study {study.name}: none of its {len(cells)} cells is there: {first}")
    output.mkdir(parents=True, exist_ok=True)
    _write(tables[METRICS], IDENTITY | NUMBERS | GROUP, output / METRICS)
    paired = dict(list(IDENTITY.items())[:2]) | {"parent": "string"} | IDENTITY | NUMBERS
    _write(tables[GAINS], paired, output / GAINS)
    _write(tables[REWARDS], IDENTITY | LOGGED, output / REWARDS)
    _write(states, IDENTITY | CELL, output / CELLS)


class _Reasons:
    """Why results are not there, from the logs of the jobs that make them (as ``cisterna status`` reads them)."""

    def __init__(self, study: Study, results: Path) -> None:
        self.study, self.results = study, results
        self.jobs = {job.output: job for job in status.jobs(study)}
        self.evaluated = {folder: (path, task) for folder, path, task in study.evaluations()}
        self.known: dict[str, dict[str, Any] | None] = {}

    def of(self, cell: Cell) -> dict[str, Any]:
        """State, reason and log of a cell of which files are not there; a job that failed before one not run."""
        found = [self._job(output) for output in cell.jobs]
        told = sorted((entry for entry in found if entry), key=lambda entry: entry["state"] != "failed")
        if told:
            return told[0]
        gone = next(path for path in cell.files if not path.is_file())
        return {"state": "missing", "reason": f"{gone} is not in its folder; delete the folder and rerun", "log": None}

    def _job(self, output: str) -> dict[str, Any] | None:
        """What keeps a job from being done: the first job on its way that could have run and is not done."""
        if output not in self.known:
            self.known[output] = self._look(output)
        return self.known[output]

    def _look(self, output: str) -> dict[str, Any] | None:
        job = self.jobs[output]
        if (self.results / job.proof).exists():
            return None
        before = [entry for entry in map(self._job, self._needs(output)) if entry]
        if before:
            return min(before, key=lambda entry: entry["state"] != "failed")
        what = f"{job.kind} {job.name}"
        end = status.end(job, self.results)
        if isinstance(end, status.Failure):
            return {"state": "failed", "reason": f"{what}: {end.message}", "log": job.log}
        if not (self.results / job.log).is_file():
            return {"state": "missing", "reason": f"{what} has not run", "log": None}
        said = "was stopped" if end == "stopped" else "ended without a word, or has not ended"
        return {"state": "missing", "reason": f"{what} {said}", "log": job.log}

    def _needs(self, output: str) -> list[str]:
        """The outputs that a job reads and that other jobs make."""
        study, job = self.study, self.jobs[output]
        if job.kind == "evaluate":
            path, task = self.evaluated[output]
            return [f"data/{task}", f"{path}/checkpoint"]  # the features are there if the checkpoint is
        if job.kind == "perplexity":
            path = output.removesuffix("/perplexity.json")
            model = study.model(path)
            return [f"{path}/checkpoint", *(f"tokens/{model.backbone}/{corpus}" for corpus in _corpora(study, model))]
        if job.kind == "baselines":
            return [f"data/{job.name}"]
        if job.kind == "tokenize":
            return [f"models/{job.name.split('/')[0]}/base/checkpoint"]
        if job.kind == "features":
            encoder, task = job.name.split("/")
            return [f"data/{task}", f"encoders/{encoder}/checkpoint"]
        if job.kind in ("cpt", "sft", "rl"):
            model = study.model(output.removesuffix("/checkpoint"))
            read = [f"{path}/checkpoint" for path in (model.parent, model.previous) if path]
            if model.kind == "cpt":
                corpora = study.recipe("cpt", str(model.cpt))["corpora"]
                return read + [f"tokens/{model.backbone}/{corpus}" for corpus in corpora]
            bank = study.bank(model)
            features = [bank or f"encoders/{model.encoder}/checkpoint"] if model.encoder else []
            return [f"data/{model.task}", *features, *read]
        return []


def _cells(study: Study, results: Path) -> Iterator[Cell]:
    """Every cell of a study, in the order of the tables."""
    yield from _evaluations(study, results)
    yield from _baselines(study, results)
    yield from _perplexities(study, results)
    yield from _gains(study, results)
    yield from _rewards(study, results)


def _evaluations(study: Study, results: Path) -> Iterator[Cell]:
    for evaluation, path, task in study.evaluations():
        identity = _identity(study, study.model(path), task, _modality(study, task))
        file = results / evaluation / "metrics.json"
        rows = bind(_evaluation, identity, file)
        yield Cell("evaluation", identity, METRICS, (file,), (evaluation,), rows)


def _evaluation(identity: dict[str, Any], file: Path) -> Iterator[dict[str, Any]]:
    written = _read(file, file.parent)
    yield from _rows(identity, written, file)
    try:
        for split in TEST_SPLITS:
            for group, metrics in sorted(written.get("groups", {}).get(split, {}).items()):
                yield from _summaries(identity | {"split": split, "group": group}, metrics)
    except (KeyError, TypeError, AttributeError) as error:
        raise _unfit(file, "groups", error) from error


def _baselines(study: Study, results: Path) -> Iterator[Cell]:
    for task in study.tasks:
        identity = {
            "study": study.name,
            "model": "baselines",
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
        file = results / "baselines" / task / "metrics.json"
        yield Cell("baselines", identity, METRICS, (file,), (f"baselines/{task}",), bind(_fitted, identity, file))


def _fitted(identity: dict[str, Any], file: Path) -> Iterator[dict[str, Any]]:
    for name, splits in _read(file, file.parent).items():
        yield from _rows(identity | {"model": f"baseline/{name}"}, splits, file)


def _corpora(study: Study, model: Model) -> list[str]:
    """The corpora that a base or CPT model is tested on: those that some CPT of its backbone is trained on."""
    return sorted(corpus for backbone, corpus in study.tokenized if backbone == model.backbone and model.task is None)


def _perplexities(study: Study, results: Path) -> Iterator[Cell]:
    for model in study.models:
        file = f"{model.path}/perplexity.json"
        for corpus in _corpora(study, model):
            identity = _identity(study, model, corpus, study.config["corpora"][corpus]["modality"])
            rows = bind(_perplexity, identity, results / file, corpus)
            yield Cell("perplexity", identity, METRICS, (results / file,), (file,), rows)


def _perplexity(identity: dict[str, Any], file: Path, corpus: str) -> Iterator[dict[str, Any]]:
    written = _read(file)
    if corpus not in written:
        raise UserError(f"{file}: lacks the perplexity on {corpus}; delete it and run snakemake again")
    yield identity | {"split": "heldout", "metric": "perplexity"} | written[corpus]


def _pairs(study: Study) -> Iterator[tuple[str, str, Model]]:
    """Evaluation folders of each RL model and of the parent it started from."""
    folders = {(path, task): folder for folder, path, task in study.evaluations()}
    for folder, path, task in study.evaluations():
        model = study.model(path)
        if model.kind == "rl" and model.parent is not None:
            yield folder, folders[model.parent, task], model


def _gains(study: Study, results: Path) -> Iterator[Cell]:
    for child, parent, model in _pairs(study):
        task = str(model.task)
        identity = _identity(study, model, task, _modality(study, task)) | {"parent": _short(str(model.parent))}
        names = [f"{split}.parquet" for split in TEST_SPLITS]
        read = [
            results / child / "metrics.json",
            *(results / folder / name for folder in (child, parent) for name in names),
        ]
        resamples = study.config["evaluation"]["bootstrap"]
        terms = results / "data" / task / gene_ontology.FILE if task in study.of_terms else None
        read += [terms] if terms else []
        rows = bind(_gain, identity, results / child, results / parent, resamples, terms)
        yield Cell("rl_gain", identity, GAINS, tuple(read), (child, parent, f"data/{task}"), rows)


def _gain(
    identity: dict[str, Any], child: Path, parent: Path, resamples: int, terms: Path | None
) -> Iterator[dict[str, Any]]:
    file = child / "metrics.json"
    if terms is None:
        paired = bind(difference, labels=_labels(_read(file, file.parent), file))
    else:
        paired = bind(gene_ontology.difference, ontology=gene_ontology.load(terms))
    for split in TEST_SPLITS:
        after = _predictions(child / f"{split}.parquet")
        before = _predictions(parent / f"{split}.parquet")
        if not after["answer"].equals(before["answer"]):
            raise UserError(
                f"{child} and {parent} answer different {split} examples; delete both folders and run snakemake again"
            )
        gold, first, last = after["answer"], before["predicted"], after["predicted"]
        gains = paired(gold.tolist(), first.tolist(), last.tolist(), seed=0, resamples=resamples)
        for metric, summary in gains.items():
            yield identity | {"split": split, "metric": metric} | summary


def _rl_models(study: Study) -> Iterator[Model]:
    return (model for model in study.models if model.kind == "rl")


def _history(results: Path, model: Model) -> Path:
    return results / model.path / "checkpoint" / "history.json"


def _rewards(study: Study, results: Path) -> Iterator[Cell]:
    for model in _rl_models(study):
        file = _history(results, model)
        identity = _identity(study, model, str(model.task), _modality(study, str(model.task)))
        yield Cell(
            "rl_rewards", identity, REWARDS, (file,), (f"{model.path}/checkpoint",), bind(_logged, identity, file)
        )


def _logged(identity: dict[str, Any], file: Path) -> Iterator[dict[str, Any]]:
    try:
        logged = [{key: entry[key] for key in LOGGED} for entry in _read(file, file.parent) if "reward" in entry]
        if not logged:
            raise KeyError("reward")
    except (KeyError, TypeError) as error:
        raise _unfit(file, "rewards of RL", error) from error
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
    return catalog.modality(task, study.config["tasks"][task])


def _rows(identity: dict[str, Any], splits: Any, file: Path) -> Iterator[dict[str, Any]]:
    try:
        for split in TEST_SPLITS:
            yield from _summaries(identity | {"split": split}, splits[split])
    except (KeyError, TypeError, AttributeError) as error:
        raise _unfit(file, f"metrics of {' or '.join(TEST_SPLITS)}", error) from error


def _summaries(identity: dict[str, Any], metrics: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for metric, summary in sorted(metrics.items()):
        yield identity | {"metric": metric} | {key: summary[key] for key in ("value", "low", "high", "n")}


def _unfit(file: Path, what: str, error: Exception) -> UserError:
    return UserError(
        f"{file}: lacks {what} ({type(error).__name__} {error}); delete {file.parent} and run snakemake again"
    )


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


def _write(rows: list[dict[str, Any]], columns: dict[str, str], path: Path) -> None:
    typed = pd.DataFrame(rows).reindex(columns=list(columns)).astype(columns)
    with files.replacing(path) as temporary:
        typed.to_parquet(temporary, index=False)
