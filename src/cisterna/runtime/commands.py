"""The command that a rule runs for a job, from the study: `cisterna train PATH` and `cisterna evaluate PATH` start it.

The rules (workflow/rules) write the same command in Snakemake's language; tests/runtime/test_commands.py compares them.
Not for jobs that train or evaluate nothing: `snakemake PATH` runs those.
"""

import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from cisterna.errors import UserError
from cisterna.runtime import launch
from cisterna.study import Model, Study, inputs, jobs
from cisterna.study.config.problems import suggest
from cisterna.study.inputs import as_json
from cisterna.study.jobs import Job

RESULTS = Path("results")
TRAINING = ("base", "encoder", "features", "cpt", "sft", "rl")  # kinds of jobs that `cisterna train` runs


def run(study: Study, path: Path, *kinds: str) -> NoReturn:
    """Become the command that makes `path`, which a job of one of these kinds makes.

    UserError if there is no such job, if its result is there, or if a result that it reads is missing.
    """
    job = find(study, path, *kinds)
    if (RESULTS / job.proof).exists():
        target = RESULTS / job.output
        raise UserError(f"{target} is there. To make it again, remove it first: rm -r {target}")
    missing = [str(RESULTS / need) for need in job.needs if not (RESULTS / need).exists()]
    if missing:
        raise UserError(f"{', '.join(missing)}: missing. `snakemake {missing[0]}` makes it")
    words = command(study, job)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # cisterna, torchrun
    os.execvp(words[0], words)  # noqa: S606  (so that signals reach the stage itself)


def find(study: Study, path: Path, *kinds: str) -> Job:
    """The job of one of these kinds that makes `path`, given as such or by its folder. UserError if there is none."""
    name = Path(os.path.relpath(path, RESULTS)).as_posix()
    made = {job.output: job for job in jobs.jobs(study) if job.kind in kinds}
    known = {output.rpartition("/")[0]: job for output, job in made.items() if job.kind != "features"} | made
    if name not in known:
        raise UserError(f"study {study.name}: {path} is not a result of {', '.join(kinds)}{suggest(name, made)}")
    return known[name]


def command(study: Study, job: Job) -> list[str]:
    """The words of the command that makes the first output of `job`, as its rule runs it."""
    start, reads = ["cisterna"], []
    amount: list[str] = []
    if job.kind == "base":
        reads = ["--spec", as_json(study.config["backbones"][job.name.removesuffix("/base")])]
    elif job.kind == "encoder":
        reads = ["--spec", as_json(study.encoder(job.name)), "--corpora", as_json(inputs.corpora(study, job.name))]
    elif job.kind == "features":
        encoder, _, task = job.name.partition("/")
        reads = ["--encoder", inputs.encoder(encoder), "--data", f"results/data/{task}"]
        reads += ["--reading", as_json(study.reading(encoder))]
    elif job.kind == "evaluate":
        (evaluation,) = [found for found in study.evaluations() if found[0] == job.output]
        named = inputs.of_evaluation(study, study.model(evaluation[1]), evaluation[2])
        reads = inputs.options(named, "checkpoint", "data", "bank")
        reads += ["--options", as_json(study.config["evaluation"])]
    else:
        model = study.model(job.output.removesuffix("/checkpoint"))
        recipe = study.recipe(model.kind, str(model.recipe))
        start = launch.command(recipe["processes"], recipe["nodes"]).split()
        amount = _amount(study, model, recipe)
        if job.kind == "cpt":
            tokens = [f"results/{need}" for need in job.needs if need.startswith("tokens/")]
            reads = ["--parent", inputs.checkpoint(str(model.parent)), "--tokens", *tokens]
        else:
            reads = inputs.options(inputs.of_model(study, model), "parent", "data", "previous", "bank", "encoder")
            reads += inputs.sequences(study, model)
    work = ["--work", str(RESULTS / job.work)] if job.work else []
    return [*start, job.kind, *reads, *amount, *work, "--output", str(RESULTS / job.output)]


def _amount(study: Study, model: Model, recipe: dict[str, Any]) -> list[str]:
    cpt = model.kind == "cpt"
    seed, epochs = (recipe["seed"], recipe["num_train_epochs"]) if cpt else (model.seed, model.epochs)
    return ["--recipe", as_json(study.stage(model)), "--seed", str(seed), "--epochs", str(epochs)]
