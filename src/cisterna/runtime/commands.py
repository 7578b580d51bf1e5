"""The command that a rule runs for a job, from the study: `cisterna train PATH` and `cisterna evaluate PATH` start it.

`cisterna plan --calibrate` measures jobs by it. The rules (workflow/rules) write the same command in Snakemake's
language; tests/runtime/test_commands.py compares them.
"""

import os
import sys
from pathlib import Path
from typing import NoReturn

from cisterna.artifacts import files
from cisterna.errors import UserError
from cisterna.runtime import launch
from cisterna.study import Study, inputs, jobs
from cisterna.study.config.problems import suggest
from cisterna.study.inputs import as_json
from cisterna.study.jobs import Job

RESULTS = Path("results")
TRAINING = ("base", "encoder", "features", "cpt", "sft", "rl")  # kinds of jobs that `cisterna train` runs


def run(study: Study, path: Path, *kinds: str) -> NoReturn:
    """Replace this process by the command that makes `path`, the result of a job of one of these kinds.

    UserError if there is no such job, if its result exists already, or if a result that it reads is missing.
    """
    job = find(study, path, *kinds)
    if (RESULTS / job.proof).exists():
        target = RESULTS / job.output
        raise UserError(f"{target} exists already. To make it again, remove it first: rm -r {target}")
    needs = [need for need in job.needs if not need.endswith(f"/{jobs.ANSWERS}")]  # it answers without its group too
    missing = [str(RESULTS / need) for need in needs if not (RESULTS / need).exists()]
    if missing:
        raise UserError(f"{', '.join(missing)}: missing. `snakemake {missing[0]}` makes it")
    words = command(study, job)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # cisterna, torchrun
    os.execvp(words[0], words)  # noqa: S606  (so that signals reach the stage itself)


def find(study: Study, path: Path, *kinds: str) -> Job:
    """The job of one of these kinds that makes `path`, or the checkpoint or evaluation in it; else UserError."""
    name = Path(os.path.relpath(path, RESULTS)).as_posix()
    by_output = {job.output: job for job in jobs.jobs(study) if job.kind in kinds}
    by_folder = {output.rpartition("/")[0]: job for output, job in by_output.items() if job.kind != "features"}
    known = by_folder | by_output
    if name not in known:
        raise UserError(f"study {study.name}: {path} is not a result of {', '.join(kinds)}{suggest(name, by_output)}")
    return known[name]


def command(study: Study, job: Job) -> list[str]:
    """The words of the command that makes the outputs of `job`, as its rule runs it. ValueError for an unknown kind."""
    start, output = ["cisterna"], RESULTS / job.output
    evaluation = ["--options", as_json(study.evaluation)]
    if job.kind == "data":
        options = ["--task", job.name, "--spec", as_json(study.spec(job.name))]
        options += ["--seed", str(study.config["tasks"][job.name]["seed"])]
    elif job.kind == "baselines":
        options = ["--data", f"results/data/{job.name}", *evaluation]
    elif job.kind == "base":
        options = ["--spec", as_json(study.config["backbones"][job.name.removesuffix("/base")])]
    elif job.kind == "tokenize":
        backbone, _, corpus = job.name.partition("/")
        source = study.config["corpora"][corpus]
        options = ["--corpus", str(files.locate(source["file"])), "--modality", source["modality"]]
        options += ["--options", as_json(study.documents(corpus))]
        options += ["--base", inputs.checkpoint(f"models/{backbone}/base")]
    elif job.kind == "encoder":
        options = ["--spec", as_json(study.encoder(job.name)), "--corpora", as_json(inputs.corpora(study, job.name))]
    elif job.kind == "features":
        encoder, _, task = job.name.partition("/")
        options = ["--encoder", inputs.checkpoint(f"encoders/{encoder}"), "--data", f"results/data/{task}"]
        options += ["--reading", as_json(study.reading(encoder))]
    elif job.kind in ("cpt", "sft", "rl"):
        start, options = _stage(study, job)
    elif job.kind == "evaluate":
        path, task = next((path, task) for folder, path, task in study.evaluations() if folder == job.output)
        named = inputs.of_evaluation(study, study.model(path), task)
        options = [*inputs.options(named, "checkpoint", "data", "bank"), *evaluation]
    elif job.kind == "answers":
        group = f"models/{job.name}"
        members = inputs.members(study, group, inputs.of_group(study, group))
        options = ["--members", inputs.pack(members), *evaluation]
    elif job.kind == "perplexity":
        path = job.output.removesuffix("/perplexity.json")
        tokens = inputs.tokens(study, study.model(path).backbone)
        options = ["--checkpoint", inputs.checkpoint(path), "--tokens", *tokens]
    elif job.kind in ("gather", "figures", "findings", "quotes"):
        output = RESULTS / "studies" / study.name
        reads = ["--metrics", str(output)] if job.kind == "figures" else ["--results", str(RESULTS)]
        options = ["--config", inputs.pack(study.config), *reads]
        output /= "figures" if job.kind == "figures" else ""
    else:
        raise ValueError(f"no command for jobs of kind {job.kind}")
    work = ["--work", str(RESULTS / job.work)] if job.work else []
    return [*start, job.kind, *options, *work, "--output", str(output)]


def _stage(study: Study, job: Job) -> tuple[list[str], list[str]]:
    """Of the command of a CPT, SFT or RL job: the words before its kind, and the options that say what it trains."""
    model = study.model(job.output.removesuffix("/checkpoint"))
    recipe = study.recipe(model.kind, str(model.recipe))
    seed, epochs = model.seed, model.epochs
    if job.kind == "cpt":
        seed, epochs = recipe["seed"], recipe["num_train_epochs"]
        tokens = [f"results/{need}" for need in job.needs if need.startswith("tokens/")]
        options = ["--parent", inputs.checkpoint(str(model.parent)), "--tokens", *tokens]
    else:
        options = inputs.options(inputs.of_model(study, model), "parent", "data", "previous", "bank", "encoder")
        options += inputs.sequences(study, model)
    options += ["--recipe", as_json(study.stage(model)), "--seed", str(seed), "--epochs", str(epochs)]
    return launch.command(recipe["processes"], recipe["nodes"]).split(), options
