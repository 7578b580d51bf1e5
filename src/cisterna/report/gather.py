"""Gathers the results of a study, which are spread over its checkpoints and evaluations, into four tables.

    metrics.parquet    a row for each model x task x split x metric (x group), baselines included; and for each base or
                       CPT model x corpus, with the corpus as task, split "heldout" and metric "perplexity"
    rl_gains.parquet   a row for each RL model x split x metric: RL model minus its parent, on the same examples
    rl_rewards.parquet a row for each RL model x logged step: the reward in training, and on validation if it was asked
    cells.parquet      a row for each result that the config asks for (a "cell"): whether it is there, or why it is not

Not for computing metrics of a model (`cisterna.evaluation.evaluate`), nor for drawing (`cisterna.report.figures`).
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from cisterna.artifacts import checkpoint, files, logs
from cisterna.constants import ENGINE, TEST_SPLITS, VALIDATION
from cisterna.errors import UserError, one_line
from cisterna.evaluation import scores
from cisterna.report import CELLS_TABLE, GAINS_TABLE, METRICS_TABLE, REWARDS_TABLE
from cisterna.scoring import gene_ontology, ranking
from cisterna.scoring.answers import AnswerSpace, Labels, Terms
from cisterna.study import Model, Study
from cisterna.study.jobs import jobs
from cisterna.tasks import catalog

Row = dict[str, Any]

# The columns of the tables and their types; `gather` says what they mean.
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
NUMBERS = {"split": "string", "metric": "string", "value": "float64", "low": "float64", "high": "float64", "n": "int64"}
GROUP = {"group": "string"}
CELL = {"parent": "string", "cell": "string", "state": "string", "reason": "string", "log": "string"}
ENGINES = {"engine": "string"}
LOGGED = {
    "step": "int64",
    "epoch": "float64",
    "reward": "float64",
    "reward_std": "float64",
    "frac_reward_zero_std": "float64",
}
# More of them in a study with a KL penalty (`beta` of an RL recipe); null for runs without one.
PENALIZED = {"kl": "float64", "entropy": "float64"}
# In a study with `validation` in an RL recipe: where the prompts of a row are from.
PROMPTS = {"split": "string"}  # train | validation


@dataclass(frozen=True)
class Result:
    """One result that the config asks for: a row of cells.parquet, and where its rows of another table come from."""

    cell: str  # evaluation | baselines | perplexity | rl_gain | rl_rewards
    identity: Row
    table: str  # METRICS_TABLE, GAINS_TABLE or REWARDS_TABLE
    files: tuple[Path, ...]  # what it is read from
    jobs: tuple[str, ...]  # the outputs, relative to results/, of the jobs that write these files
    rows: Callable[[], Iterable[Row]]  # reads its rows of the table


def gather(study: Study, results: Path, output: Path, partial: bool = False) -> None:
    """Write the four tables of a study into the folder `output`.

    `results` is the folder that contains `models/` and `baselines/`.

    Columns of metrics.parquet are IDENTITY, NUMBERS and GROUP. `model` is the path of the checkpoint below
    results/models, or baseline/NAME. A stage that a model did not pass through is "none" with 0 epochs; base, CPT and
    baselines have no seed. `sequences` is the form in which a model gets the sequences (tokens, features or both; a
    base or CPT model tokens, a baseline null), and `encoder` is null for tokens. `group` is null for a metric of all
    examples of a split, otherwise the group of the data. Where n is 0, value, low and high are null. The attribute
    `quantized` (`attrs` of pandas), if there is one, says what the weights of a backbone were stored in.

    rl_gains.parquet also has the column `parent`. Its numbers are paired differences
    (`cisterna.scoring.metrics.difference`; if answers are sets of terms, `cisterna.scoring.term_sets.difference`; of
    probabilities `cisterna.scoring.ranking.difference`).

    Columns of rl_rewards.parquet are IDENTITY and LOGGED, as TRL's GRPOTrainer logs them: means over the steps since
    the row before, of a completion's reward, of its standard deviation in a group, and of the share of groups whose
    rewards are all equal. In a ladder the rows of a rung begin with those of the rungs before it. In a study with a KL
    penalty it also has PENALIZED: the KL divergence from the model that RL started from, and the entropy of the policy,
    both means over tokens in nats. In a study whose RL also logs the reward on validation it has PROMPTS: a row of
    `validation` is one completion of each of its examples after this step, without a spread.

    Columns of cells.parquet are IDENTITY and CELL. `cell` is evaluation, baselines, perplexity (a row for each corpus,
    which is the task), rl_gain or rl_rewards. `state` is done, failed (a job that it needs ended with an error, or its
    files cannot be read) or missing. `reason` is the error, or what is missing, and `log` the log, relative to
    `results`, with the details; both are null if it is done. Where a study used another engine than transformers, there
    is a column `engine`, which describes it for evaluations and for rl_rewards; null for transformers.

    Rows are in the order of the study, then split, then metric; the same evaluations give the same bytes. Raises
    UserError if results are missing (it lists them) or are not what the jobs of the study write. With `partial` such
    results are left out of the other tables and have their reason in cells.parquet; then the only UserError is that
    there is no result at all.
    """
    wanted = list(_wanted(study, results))
    missing = {path: None for result in wanted for path in result.files if not path.is_file()}
    if missing and not partial:
        raise UserError(_missing_message(study, list(missing)))
    why_absent = _absence(study, results)
    tables: dict[str, list[Row]] = {METRICS_TABLE: [], GAINS_TABLE: [], REWARDS_TABLE: []}
    cells = []
    for result in wanted:
        state = {"state": "done", "reason": None, "log": None}
        if not missing.keys().isdisjoint(result.files):
            state = why_absent(result)
        else:
            try:
                rows = list(result.rows())
                state |= _engine(result)
                tables[result.table] += rows
            except UserError as error:
                if not partial:
                    raise
                state = {"state": "failed", "reason": one_line(error), "log": None}
        cells.append(result.identity | {"cell": result.cell} | state)
    if not any(tables.values()):
        first = next((cell["reason"] for cell in cells if cell["state"] == "failed"), "nothing has run")
        raise UserError(f"study {study.name}: none of its {len(cells)} results is there: {first}")
    output.mkdir(parents=True, exist_ok=True)
    try:
        quantized = _quantized(study, results)
    except UserError as error:
        if not partial:
            raise
        print(f"not said in the report, what the weights of backbones were stored in: {one_line(error)}")
        quantized = {}
    _write(tables[METRICS_TABLE], IDENTITY | NUMBERS | GROUP, output / METRICS_TABLE, quantized=quantized)
    first_columns = {"study": "string", "model": "string", "parent": "string"}
    _write(tables[GAINS_TABLE], first_columns | IDENTITY | NUMBERS, output / GAINS_TABLE)
    rewards = tables[REWARDS_TABLE]
    penalized = PENALIZED if any("kl" in row for row in rewards) else {}
    prompts = PROMPTS if any(row["split"] == VALIDATION for row in rewards) else {}
    _write(rewards, IDENTITY | LOGGED | penalized | prompts, output / REWARDS_TABLE)
    engines = ENGINES if any(ENGINES.keys() & cell.keys() for cell in cells) else {}
    _write(cells, IDENTITY | CELL | engines, output / CELLS_TABLE)


def _missing_message(study: Study, paths: list[Path]) -> str:
    shown = "\n".join(f"  {path}" for path in paths[:20])
    more = f"\n  ... and {len(paths) - 20} more" if len(paths) > 20 else ""
    return (
        f"study {study.name}: {len(paths)} results are missing. Run snakemake to make them; if the folder of one is "
        f"there without it, delete the folder first. `cisterna report --partial` reports the others\n{shown}{more}"
    )


def _absence(study: Study, results: Path) -> Callable[[Result], Row]:
    """A function that says why a result is not there, from the logs of the jobs that it needs: a part of its cell.

    The reason is the earliest job that is not done: what comes after it could not run. A failure goes before a job
    that has not run.
    """
    job_of = {output: job for job in jobs(study) for output in job.outputs}

    def first(outputs: Iterable[str]) -> Row | None:
        return min(filter(None, map(of_job, outputs)), key=lambda cell: cell["state"] != "failed", default=None)

    @functools.cache
    def of_job(output: str) -> Row | None:
        job = job_of[output]
        if (results / job.proof).exists():
            return None
        if before := first(job.needs):
            return before
        name = f"{job.kind} {job.name}"
        end = logs.ending(results / job.log)
        if end is None:
            return {"state": "missing", "reason": f"{name} has not run", "log": None}
        if end.state == "failed":
            return {"state": "failed", "reason": f"{name}: {end.message}", "log": job.log}
        how = "was stopped" if end.state == "stopped" else "was killed, or is still running: its log has no error"
        return {"state": "missing", "reason": f"{name} {how}", "log": job.log}

    def of_result(result: Result) -> Row:
        path = next(path for path in result.files if not path.is_file())
        reason = f"{path} is not in its folder; delete the folder and rerun"
        return first(result.jobs) or {"state": "missing", "reason": reason, "log": None}

    return of_result


# --- The results that a config asks for, in the order of the tables ---


def _wanted(study: Study, results: Path) -> Iterator[Result]:
    for folder, path, task in study.evaluations():
        identity = _identity(study, study.as_evaluated(study.model(path), task), task, _modality(study, task))
        file = results / folder / "metrics.json"
        rows = functools.partial(_evaluation_rows, identity, file)
        yield Result("evaluation", identity, METRICS_TABLE, (file,), (folder,), rows)
    for task in study.tasks:
        identity = dict.fromkeys(IDENTITY) | dict.fromkeys(("backbone", "cpt", "sft", "rl"), "none")
        identity |= {"study": study.name, "model": "baselines", "kind": "baseline", "sft_epochs": 0, "rl_epochs": 0}
        identity |= {"task": task, "modality": _modality(study, task)}
        folder = f"baselines/{task}"
        file = results / folder / "metrics.json"
        rows = functools.partial(_baseline_rows, identity, file)
        yield Result("baselines", identity, METRICS_TABLE, (file,), (folder,), rows)
    for model in study.models:
        if model.task is None:  # a base or CPT model, on every corpus that some CPT of its backbone is trained on
            output = f"{model.path}/perplexity.json"
            for corpus in sorted(corpus for backbone, corpus in study.tokenized if backbone == model.backbone):
                identity = _identity(study, model, corpus, study.config["corpora"][corpus]["modality"])
                rows = functools.partial(_perplexity_rows, identity, results / output)
                yield Result("perplexity", identity, METRICS_TABLE, (results / output,), (output,), rows)
    yield from _gains(study, results)
    for model in study.models:
        if model.kind == "rl":
            identity = _identity(study, model, str(model.task), _modality(study, str(model.task)))
            output = f"{model.path}/checkpoint"
            file = results / output / "history.json"
            rows = functools.partial(_reward_rows, identity, file)
            yield Result("rl_rewards", identity, REWARDS_TABLE, (file,), (output,), rows)


def _gains(study: Study, results: Path) -> Iterator[Result]:
    folders = {(path, task): folder for folder, path, task in study.evaluations()}
    for after, path, task in study.evaluations():
        model = study.model(path)
        if model.kind != "rl" or model.parent is None:
            continue
        before = folders[model.parent, task]
        identity = _identity(study, model, task, _modality(study, task))
        identity |= {"parent": model.parent.removeprefix("models/")}
        predictions = [results / folder / f"{split}.parquet" for folder in (after, before) for split in TEST_SPLITS]
        ontology = results / "data" / task / gene_ontology.FILE if task in study.of_terms else None
        read = (results / after / "metrics.json", *predictions, *([ontology] if ontology else []))
        resamples = study.config["evaluation"]["bootstrap"]
        rows = functools.partial(_gain_rows, identity, results / after, results / before, resamples, ontology)
        yield Result("rl_gain", identity, GAINS_TABLE, read, (after, before, f"data/{task}"), rows)


def _identity(study: Study, model: Model, task: str, modality: str) -> Row:
    return {
        "study": study.name,
        "model": model.path.removeprefix("models/"),
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


def _modality(study: Study, task: str) -> str:
    return catalog.modality(task, study.config["tasks"][task])


# --- Their rows ---


@contextlib.contextmanager
def _reading(file: Path, content: str) -> Iterator[None]:
    """Errors of reading a file, and of what is not in it, as UserErrors; what a rerun makes anew has to be deleted."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        output = file if file.name == "perplexity.json" else file.parent
        raise UserError(
            f"{file}: cannot read {content} ({type(error).__name__}: {error}); delete {output} and run snakemake again"
        ) from error


def _evaluation_rows(identity: Row, file: Path) -> Iterator[Row]:
    with _reading(file, "metrics of id and ood"):
        splits = files.read_json(file)
        yield from _split_rows(identity, splits)


def _baseline_rows(identity: Row, file: Path) -> Iterator[Row]:
    with _reading(file, "metrics of id and ood"):
        for name, splits in files.read_json(file).items():
            yield from _split_rows(identity | {"model": f"baseline/{name}"}, splits)


def _split_rows(identity: Row, splits: Any) -> Iterator[Row]:
    for split in TEST_SPLITS:
        yield from _metric_rows(identity | {"split": split}, splits[split])
    for split in TEST_SPLITS:
        for group, metrics in sorted(splits.get("groups", {}).get(split, {}).items()):
            yield from _metric_rows(identity | {"split": split, "group": group}, metrics)


def _metric_rows(identity: Row, metrics: dict[str, Any]) -> Iterator[Row]:
    for metric, summary in sorted(metrics.items()):
        yield identity | {"metric": metric} | {key: summary[key] for key in ("value", "low", "high", "n")}


def _perplexity_rows(identity: Row, file: Path) -> Iterator[Row]:
    corpus = identity["task"]
    with _reading(file, f"the perplexity on {corpus}"):
        yield identity | {"split": "heldout", "metric": "perplexity"} | files.read_json(file)[corpus]


def _gain_rows(identity: Row, after: Path, before: Path, resamples: int, ontology: Path | None) -> Iterator[Row]:
    """Paired differences of two evaluations; `ontology` is the task's file of terms if answers are sets of terms."""
    space: AnswerSpace = Terms(gene_ontology.load(ontology)) if ontology else _labels(after / "metrics.json")
    for split in TEST_SPLITS:
        first, last = (_predictions(folder / f"{split}.parquet") for folder in (before, after))
        if not last["answer"].equals(first["answer"]):
            raise UserError(
                f"{after} and {before} answer different {split} examples; delete both folders and run snakemake again"
            )
        gold, old, new = (column.tolist() for column in (last["answer"], first["predicted"], last["predicted"]))
        differences = space.difference(gold, old, new, resamples=resamples)
        columns = scores.probability_columns(space.labels)
        if columns and columns[0] in first and columns[0] in last:
            before_rl, after_rl = (table[columns].to_numpy(float) for table in (first, last))
            differences |= ranking.difference(gold, before_rl, after_rl, space.labels, resamples=resamples)
        for metric, summary in differences.items():
            yield identity | {"split": split, "metric": metric} | summary


def _reward_rows(identity: Row, file: Path) -> Iterator[Row]:
    with _reading(file, "rewards of RL"):
        logged = []
        for entry in files.read_json(file):
            if "reward" in entry:
                more = {key: entry[key] for key in PENALIZED if "kl" in entry}
                logged.append({key: entry[key] for key in LOGGED} | more | {"split": "train"})
            elif "eval_reward" in entry:
                held_out = {key: entry[key] for key in ("step", "epoch")} | {"reward": entry["eval_reward"]}
                logged.append(held_out | {"split": VALIDATION})
        if not any(row["split"] == "train" for row in logged):
            raise KeyError("reward")
    yield from (identity | entry for entry in logged)


def _engine(result: Result) -> Row:
    """What wrote the outputs of an evaluation, or the completions of RL; nothing if it was transformers."""
    folder, engine = result.files[0].parent, None
    if result.cell == "evaluation" and (folder / ENGINE).is_file():
        with _reading(folder / ENGINE, "the engine"):
            engine = files.read_json(folder / ENGINE)
    if result.cell == "rl_rewards":
        engine = _trained(folder).get("engine")
    return {"engine": f"{engine['name']} {engine['version']}, {engine['dtype']}"} if engine else {}


def _labels(file: Path) -> Labels:
    """The labels of a task, from the metrics of an evaluation."""
    prefix = "gold:"
    with _reading(file, "gold labels"):
        labels = [name.removeprefix(prefix) for name in files.read_json(file)["id"] if name.startswith(prefix)]
        if not labels:
            raise KeyError(prefix)
    return Labels(tuple(labels))


def _predictions(file: Path) -> pd.DataFrame:
    """Columns answer (the gold one), predicted (None if the output has no answer) and any probabilities of labels.

    By example id, sorted.
    """
    columns = [name for name in pq.read_schema(file).names if name.startswith(scores.PROBABILITY)]
    frame = pd.read_parquet(file, columns=["id", "answer", "predicted", *columns]).set_index("id").sort_index()
    answers = frame[["answer", "predicted"]].astype(object).replace({float("nan"): None})
    return answers.join(frame[columns])


def _quantized(study: Study, results: Path) -> dict[str, Row]:
    """What the weights of each backbone were stored in, of those whose base checkpoint is there and says so."""
    trained = {name: _trained(results / f"models/{name}/base/checkpoint") for name in study.backbones}
    return {name: facts["quantization"] for name, facts in trained.items() if "quantization" in facts}


def _trained(folder: Path) -> Row:
    """What the manifest of a checkpoint records of its training; nothing if it is not there."""
    path = folder / checkpoint.MANIFEST
    if not path.is_file():
        return {}
    with _reading(path, "a manifest"):
        facts: Row = files.read_json(path)["trained"]
    return facts


def _write(rows: list[Row], columns: dict[str, str], path: Path, **attributes: Any) -> None:
    typed = pd.DataFrame(rows).reindex(columns=list(columns)).astype(columns)
    typed.attrs = {name: value for name, value in attributes.items() if value}
    with files.replacing(path) as temporary:
        typed.to_parquet(temporary, index=False)
