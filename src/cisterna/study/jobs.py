"""The jobs of a study: what each one makes and reads, where it logs, and where it keeps state that it can resume from.

`cisterna plan`, `status` and `clean` and the report use this table. The rules in workflow/rules say the same in
Snakemake's language; tests/study/test_jobs.py compares the two. Not for how a job is run (command, resources), which
only the rules say.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from cisterna.study.expansion import Study
from cisterna.study.lineages import Model

# The rules of the workflow, in the order in which their jobs run.
KINDS = (
    "data",
    "baselines",
    "base",
    "tokenize",
    "encoder",
    "features",
    "cpt",
    "sft",
    "rl",
    "evaluate",
    "perplexity",
    "gather",
    "figures",
    "findings",
)


@dataclass(frozen=True)
class Job:
    """One job of the workflow. All paths are relative to results/."""

    kind: str  # its rule, one of KINDS
    name: str  # unique among the jobs of its kind
    outputs: tuple[str, ...]  # files and folders; of figures only the page that is written last
    proof: str  # the file that exists if and only if the job is done
    log: str
    needs: tuple[str, ...] = ()  # the outputs of other jobs that it reads
    work: str | None = None  # the work folder; None if it keeps no state
    ladder: bool = False  # whether it makes a rung, so that other rungs have the same work folder

    @property
    def output(self) -> str:
        """The first output, which is different for every job."""
        return self.outputs[0]


def jobs(study: Study) -> list[Job]:
    """Every job of a study, in the order of KINDS, and within a kind in the order of the study."""
    found = [
        *_task_jobs(study),
        *_encoder_jobs(study),
        *(_model_job(study, model) for model in study.models),
        *_corpus_jobs(study),
        *_evaluation_jobs(study),
        *_report_jobs(study),
    ]
    order = {kind: place for place, kind in enumerate(KINDS)}
    return sorted(found, key=lambda job: order[job.kind])


def count_jobs(study: Study) -> dict[str, int]:
    """The number of jobs of each kind, in the order of KINDS."""
    counts = Counter(job.kind for job in jobs(study))
    return {kind: counts[kind] for kind in KINDS}


def _task_jobs(study: Study) -> Iterator[Job]:
    for task in study.tasks:
        data, baselines = f"data/{task}", f"baselines/{task}"
        yield Job("data", task, (data,), f"{data}/card.json", f"logs/{data}.log")
        yield Job("baselines", task, (baselines,), f"{baselines}/metrics.json", f"logs/{baselines}.log", (data,))


def _encoder_jobs(study: Study) -> Iterator[Job]:
    for encoder in study.encoders:
        folder = f"encoders/{encoder}"
        checkpoint = f"{folder}/checkpoint"
        proof = f"{checkpoint}/manifest.json"
        yield Job("encoder", encoder, (checkpoint,), proof, f"logs/{folder}.log", work=f".work/{folder}")
    for encoder, task in study.banks:
        bank = f"features/{encoder}/{task}"
        needs = (f"data/{task}", f"encoders/{encoder}/checkpoint")
        yield Job(
            "features",
            f"{encoder}/{task}",
            (bank,),
            f"{bank}/manifest.json",
            f"logs/{bank}.log",
            needs,
            work=f".work/{bank}",
        )


def _model_job(study: Study, model: Model) -> Job:
    """The job that makes a base, CPT, SFT or RL model."""
    checkpoint = f"{model.path}/checkpoint"
    data = (f"data/{model.task}",) if model.task else ()
    tokens: tuple[str, ...] = ()
    if model.kind == "cpt":
        corpora = study.recipe("cpt", str(model.cpt))["corpora"]
        tokens = tuple(f"tokens/{model.backbone}/{corpus}" for corpus in corpora)
    start = tuple(f"{path}/checkpoint" for path in (model.parent, model.previous) if path)
    return Job(
        model.kind,
        model.path.removeprefix("models/"),
        (checkpoint,),
        f"{checkpoint}/manifest.json",
        f"logs/{model.path}.log",
        needs=(*data, *_features(study, model), *start, *tokens),
        work=None if model.kind == "base" else study.work(model).removeprefix("results/"),
        ladder=study.is_rung(model),
    )


def _features(study: Study, model: Model) -> tuple[str, ...]:
    """What a model reads features from: its bank, or the encoder that runs inside each step."""
    if model.encoder is None:
        return ()
    return (study.bank(model) or f"encoders/{model.encoder}/checkpoint",)


def _corpus_jobs(study: Study) -> Iterator[Job]:
    """The tokenized corpora of each backbone, and the perplexity on these of its base and CPT models."""
    tokens: dict[str, list[str]] = {}
    for backbone, corpus in study.tokenized:
        folder = f"tokens/{backbone}/{corpus}"
        tokens.setdefault(backbone, []).append(folder)
        base = f"models/{backbone}/base/checkpoint"
        yield Job("tokenize", f"{backbone}/{corpus}", (folder,), f"{folder}/card.json", f"logs/{folder}.log", (base,))
    for model in study.models:
        if model.task is None and model.backbone in tokens:
            file = f"{model.path}/perplexity.json"
            needs = (f"{model.path}/checkpoint", *tokens[model.backbone])
            name = model.path.removeprefix("models/")
            yield Job("perplexity", name, (file,), file, f"logs/{model.path}/perplexity.log", needs)


def _evaluation_jobs(study: Study) -> Iterator[Job]:
    for folder, path, task in study.evaluations():
        yield Job(
            "evaluate",
            folder.removeprefix("models/").removesuffix("/eval"),
            (folder,),
            f"{folder}/metrics.json",
            f"logs/{folder}.log",
            needs=(f"data/{task}", f"{path}/checkpoint", *_features(study, study.model(path))),
            work=f".work/{folder}",
        )


def _report_jobs(study: Study) -> Iterator[Job]:
    name, folder = study.name, f"studies/{study.name}"
    names = ("metrics", "rl_gains", "rl_rewards", "cells")
    tables = tuple(f"{folder}/{table}.parquet" for table in names)
    results = (
        *(evaluation for evaluation, _, _ in study.evaluations()),
        *(f"baselines/{task}" for task in study.tasks),
        *(f"data/{task}" for task in study.of_terms),
        *(job.output for job in _corpus_jobs(study) if job.kind == "perplexity"),
    )
    page = f"{folder}/figures/table.html"
    findings = (f"{folder}/findings.json", f"{folder}/findings.html")
    yield Job("gather", name, tables, tables[0], f"logs/{folder}/gather.log", results)
    yield Job("figures", name, (page,), page, f"logs/{folder}/figures.log", tables)
    yield Job("findings", name, findings, findings[0], f"logs/{folder}/findings.log", tables[:1])
