"""The jobs of a study: what each one makes and reads, where it logs, and where it keeps state that it can resume from.

`cisterna plan`, `status` and `clean` and the report use this table. The rules in workflow/rules say the same in
Snakemake's language; tests/study/test_jobs.py compares the two. Not for how a job is run (command, resources), which
only the rules say.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from cisterna.study.expansion import Study
from cisterna.study.lineages import Model

# The rules of the workflow, in the order in which their jobs run.
KINDS = tuple(
    "data baselines base tokenize encoder features cpt sft rl answers evaluate perplexity gather "
    "figures findings quotes".split()
)
ANSWERS = "answers.json"  # of a group of evaluations (`Study.groups`): what became of each


def asked_as(kind: str) -> str:
    """The key of `resources` in the config from which the jobs of a kind get their threads, memory, time and GPUs."""
    others = {"answers": "evaluate", "perplexity": "evaluate"}
    return (others | dict.fromkeys(("gather", "figures", "findings", "quotes"), "report")).get(kind, kind)


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
    ladder: bool = False  # whether its work folder is of use when rungs are added to a ladder, or to a group

    @property
    def output(self) -> str:
        """The first output, which is different for every job."""
        return self.outputs[0]


def jobs(study: Study) -> list[Job]:
    """Every job of a study, in the order of KINDS, and within a kind in the order of the study."""
    unsorted = [
        *_task_jobs(study),
        *_encoder_jobs(study),
        *(_model_job(study, model) for model in study.models),
        *_corpus_jobs(study),
        *_evaluation_jobs(study),
        *_report_jobs(study),
    ]
    order = {kind: place for place, kind in enumerate(KINDS)}
    return sorted(unsorted, key=lambda job: order[job.kind])


def count_jobs(study: Study) -> dict[str, int]:
    """The number of jobs of each kind, in the order of KINDS."""
    counts = Counter(job.kind for job in jobs(study))
    return {kind: counts[kind] for kind in KINDS}


def _folder_job(kind: str, name: str, folder: str, last: str, *needs: str, resumes: bool = False) -> Job:
    """A job with one folder as output. `last` is the file that is written last; `resumes` if it has a work folder."""
    place = folder.removesuffix("/checkpoint")
    work = f".work/{place}" if resumes else None
    return Job(kind, name, (folder,), f"{folder}/{last}", f"logs/{place}.log", needs, work)


def _task_jobs(study: Study) -> Iterator[Job]:
    for task in study.tasks:
        yield _folder_job("data", task, f"data/{task}", "card.json")
        yield _folder_job("baselines", task, f"baselines/{task}", "metrics.json", f"data/{task}")


def _encoder_jobs(study: Study) -> Iterator[Job]:
    for encoder in study.encoders:
        yield _folder_job("encoder", encoder, f"encoders/{encoder}/checkpoint", "manifest.json", resumes=True)
    for encoder, task in study.banks:
        name = f"{encoder}/{task}"
        needs = (f"data/{task}", f"encoders/{encoder}/checkpoint")
        yield _folder_job("features", name, f"features/{name}", "manifest.json", *needs, resumes=True)


def _model_job(study: Study, model: Model) -> Job:
    """The job that makes a base, CPT, SFT or RL model."""
    data = [f"data/{model.task}"] if model.task else []
    start = [f"{path}/checkpoint" for path in (model.parent, model.previous) if path]
    corpora = study.recipe("cpt", str(model.cpt))["corpora"] if model.kind == "cpt" else ()
    tokens = [f"tokens/{model.backbone}/{corpus}" for corpus in corpora]
    needs = (*data, *_features(study, model), *start, *tokens)
    name = model.path.removeprefix("models/")
    job = _folder_job(model.kind, name, f"{model.path}/checkpoint", "manifest.json", *needs)
    if model.kind == "base":
        return job
    return replace(job, work=study.work(model).removeprefix("results/"), ladder=study.is_rung(model))


def _features(study: Study, model: Model) -> tuple[str, ...]:
    """What a model reads features from: its bank, or the encoder that runs inside each step."""
    if model.encoder is None:
        return ()
    return (study.bank(model) or f"encoders/{model.encoder}/checkpoint",)


def _corpus_jobs(study: Study) -> Iterator[Job]:
    """The tokenized corpora of each backbone, and the perplexity of its base and CPT models on these."""
    tokens: dict[str, list[str]] = {}
    for backbone, corpus in study.tokenized:
        name = f"{backbone}/{corpus}"
        tokens.setdefault(backbone, []).append(f"tokens/{name}")
        yield _folder_job("tokenize", name, f"tokens/{name}", "card.json", f"models/{backbone}/base/checkpoint")
    for model in study.models:
        if model.task is None and model.backbone in tokens:
            name, file = model.path.removeprefix("models/"), f"{model.path}/perplexity.json"
            needs = (f"{model.path}/checkpoint", *tokens[model.backbone])
            yield Job("perplexity", name, (file,), file, f"logs/{model.path}/perplexity.log", needs)


def _evaluation_jobs(study: Study) -> Iterator[Job]:
    for folder, path, task in study.evaluations():
        name = folder.removeprefix("models/").removesuffix("/eval")
        answers = [f"{study.group_of[folder]}/{ANSWERS}"] if folder in study.group_of else []
        job = _folder_job("evaluate", name, folder, "metrics.json", *_read(study, path, task), *answers, resumes=True)
        yield replace(job, ladder=bool(answers))
    for group, members in study.groups.items():
        name, file = group.removeprefix("models/"), f"{group}/{ANSWERS}"
        needs = dict.fromkeys(need for _, path, task in members for need in _read(study, path, task))
        yield Job("answers", name, (file,), file, f"logs/{group}/answers.log", tuple(needs), f".work/{group}/answers")


def _read(study: Study, path: str, task: str) -> tuple[str, ...]:
    """What the evaluation of a model on a task reads."""
    return f"data/{task}", f"{path}/checkpoint", *_features(study, study.as_evaluated(study.model(path), task))


def _report_jobs(study: Study) -> Iterator[Job]:
    folder = f"studies/{study.name}"
    predictions = (
        *(evaluation for evaluation, _, _ in study.evaluations()),
        *(f"data/{task}" for task in study.of_terms),
    )
    results = (
        *predictions,
        *(f"baselines/{task}" for task in study.tasks),
        *(job.output for job in _corpus_jobs(study) if job.kind == "perplexity"),
    )
    tables = tuple(f"{folder}/{name}.parquet" for name in ("metrics", "rl_gains", "rl_rewards", "cells"))
    page = (f"{folder}/figures/table.html",)
    findings = (f"{folder}/findings.json", f"{folder}/findings.html")
    for kind, outputs, needs in (
        ("gather", tables, results),
        ("figures", page, tables),
        ("findings", findings, tables[:1]),
        ("quotes", (f"{folder}/quotes.html",), predictions),
    ):
        yield Job(kind, study.name, outputs, outputs[0], f"logs/{folder}/{kind}.log", needs)
