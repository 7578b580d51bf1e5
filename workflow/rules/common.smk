# Look-ups in the expanded study, for the rules. No logic: that is in cisterna.study, where it is tested.
import functools
import gc
import inspect
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cisterna.artifacts import files
from cisterna.runtime import launch, s3_workaround as storages
from cisterna.constants import STAGES
from snakemake.settings.types import SharedFSUsage

# The stage takes the place of its shell, which would end at once at a SIGTERM and take with it the stage that still saves.
shell.prefix("exec ")

# Thousands of jobs are millions of objects that live as long as the run: looking for garbage among them after every 700
# new ones is a sixth of a big dry run.
gc.set_threshold(200_000, 50, 50)

# Only a scheduler of a cluster is asked for more memory and time at the next attempt (`resource`).
CLUSTER = workflow.resource_settings.nodes is not None or not workflow.is_main_process

# Results in a storage (docs/storage.md): then a job has on its disk only what is named as its input.
STORED = workflow.storage_settings.default_storage_provider is not None
SHARED = SharedFSUsage.INPUT_OUTPUT in workflow.storage_settings.shared_fs_usage
if workflow.storage_settings.default_storage_provider == "s3" and not SHARED:
    storages.see_new_folders()
EVALUATIONS = {folder: (path, task) for folder, path, task in STUDY.evaluations()}
FOLDER = f"results/studies/{STUDY.name}"
REPORT = f"{FOLDER}/figures/table.html"
PARTIAL = f"{FOLDER}/partial"
TOKENIZED = {backbone for backbone, _ in STUDY.tokenized}
PERPLEXITIES = [
    f"results/{model.path}/perplexity.json"
    for model in STUDY.models
    if model.task is None and model.backbone in TOKENIZED
]


wildcard_constraints:
    backbone="[a-z0-9.-]+",
    encoder="[a-z0-9.-]+",
    start="[a-z0-9.-]+/(base|cpt-[a-z0-9.-]+)",
    task="[a-z0-9.-]+",
    seed=r"\d+",
    recipe="[a-z0-9.-]+",
    corpus="[a-z0-9.-]+",
    epochs=r"\d+",


def aside(path):
    """A log or a benchmark: it stays on this disk, unless the jobs have none in common, as on Kubernetes."""
    return local(path) if STORED and SHARED else path


def checkpoint(path):
    return f"results/{path}/checkpoint"


def models(wildcards):
    """Input function: every checkpoint of the study."""
    return [checkpoint(model.path) for model in STUDY.models]


def evaluations(wildcards):
    """Input function: every evaluation of the study."""
    return [f"results/{folder}" for folder in EVALUATIONS]


def rewards(wildcards):
    """Input function: the checkpoints of RL, which hold the rewards while training. Evaluated, so on a disk there."""
    return [checkpoint(model.path) for model in STUDY.models if model.kind == "rl" and STORED]


def answers(wildcards):
    """Input function: what the findings read. All of it is gathered before, so on a disk there."""
    return [*evaluations(wildcards), *(f"results/data/{task}" for task in STUDY.tasks)] if STORED else []


def signed(function):
    """Write a function's signature on it: Snakemake asks twice for it at every job, and it would be worked out anew."""
    function.__signature__ = inspect.signature(function)
    return function


def model_of(wildcards, path):
    """The study's model whose checkpoint is at `path`, a rule's output with its wildcards."""
    return _model_of(path, tuple(wildcards.keys()), tuple(wildcards))


@functools.cache  # every param of a job asks for it
def _model_of(path, names, values):
    path = path.format(**dict(zip(names, values)))
    return check(STUDY.model, path.removeprefix("results/").rpartition("/")[0])


def reads(path):
    """Input function of SFT and RL: the parent's checkpoint, in a ladder that of the rung before, data and features."""

    def inputs(wildcards):
        model = model_of(wildcards, path)
        found = {"parent": checkpoint(model.parent)}
        found |= {"previous": checkpoint(model.previous)} if model.previous else {}
        return found | {"data": f"results/data/{model.task}"} | features_of(model) | lineage_of(model)

    return signed(inputs)


def features_of(model):
    """Inputs of a model that reads features: its bank, or the encoder that runs inside each step."""
    if model.encoder is None:
        return {}
    bank = STUDY.bank(model)
    return {"bank": f"results/{bank}"} if bank else {"encoder": f"results/encoders/{model.encoder}/checkpoint"}


def lineage_of(model):
    """Inputs of a job that loads a model: the checkpoints below it, and its encoder, which a bank is checked against.

    Named only with a storage: on a disk they are there, and each file more costs a study of thousands of jobs time.
    """
    if not STORED:
        return {}
    below = [checkpoint(path) for path in STUDY.lineage(model)]
    return {"lineage": below + ([f"results/encoders/{model.encoder}/checkpoint"] if model.encoder else [])}


def corpora_of(encoder):
    """The corpora that an encoder is trained on, by name; none if it is pretrained."""
    names = STUDY.encoder(encoder).get("training", {}).get("corpora", [])
    return {name: STUDY.config["corpora"][name] for name in names}


def given(names):
    """Input function: files of the clone, which `names` (a function of the wildcards) lists. No storage holds them.

    With a storage their content counts (`contents`) and not their age: a later clone's files are younger than results
    that were made of the same files.
    """
    return signed(lambda wildcards: [local(ancient(name)) for name in names(wildcards)]) if STORED else signed(names)


def contents(names):
    """Param: with a storage, the hashes of the files that `names` lists."""
    return signed(lambda wildcards: [digest(name) for name in names(wildcards)]) if STORED else []


@functools.cache
def digest(name):
    return files.sha256(Path(name)) if Path(name).is_file() else None  # of a missing one Snakemake tells


def table_of(wildcards):
    """The files that a task is made from; none if it is on the hub."""
    return STUDY.sources(wildcards.task)


def rewards_of(wildcards):
    """The files of the user's own rewards that an RL recipe names."""
    return STUDY.reward_files(wildcards.recipe)


def texts_of(wildcards):
    """The files that the tokenizer of a backbone is trained on; none if it is pretrained."""
    return STUDY.config["backbones"][wildcards.backbone].get("tokenizer", {}).get("files", [])


def corpus_of(wildcards):
    """The file of a corpus."""
    return [STUDY.config["corpora"][wildcards.corpus]["file"]]


def corpus_files_of(wildcards):
    """The files that an encoder is trained on."""
    return [corpus["file"] for corpus in corpora_of(wildcards.encoder).values()]


def words(*names):
    """Params function: the command line's words `--NAME PATH` for those inputs of `names` that a job has."""

    def words(wildcards, input):
        given = set(input.keys())
        return [word for name in names if name in given for word in (f"--{name}", input[name])]

    return signed(words)


@signed
def evaluated(wildcards):
    """Input function: the checkpoint, the data and the features that an evaluation reads."""
    folder = f"models/{wildcards.model}/eval"
    if folder not in EVALUATIONS:
        refuse(f"study {STUDY.name}: no evaluation {folder}; `cisterna plan` lists the stages")
    path, task = EVALUATIONS[folder]
    model = check(STUDY.model, path)
    found = {"checkpoint": checkpoint(path), "data": f"results/data/{task}"}
    return found | features_of(model) | lineage_of(model)


def as_json(value):
    """JSON without a <: Snakemake's report holds params in a script of the page, where </script> would end it."""
    return json.dumps(value, sort_keys=True).replace("<", "\\u003c")


# The next three depend on wildcards alone: of params that depend on input or output Snakemake notices no change.


def recipe_of(path):
    """Params function: the recipe as its stage gets it."""
    return signed(lambda wildcards: as_json(STUDY.stage(model_of(wildcards, path))))


def work_of(path):
    """Params function: where a stage keeps its state."""
    return signed(lambda wildcards: STUDY.work(model_of(wildcards, path)))


def sequences_of(path):
    """Params function: the command line's words for the form in which a stage gets the sequences."""

    def words(wildcards):
        model = model_of(wildcards, path)
        if model.encoder is None:
            return []
        reading = [] if STUDY.bank(model) else ["--reading", as_json(STUDY.reading(model.encoder))]
        return ["--sequences", model.sequences, *reading]

    return signed(words)


def launcher(stage):
    """Param: how a stage is started, alone or as the ranks of one torchrun."""

    recipes = STUDY.config["recipes"][stage]
    commands = {name: launch.command(recipe["processes"], recipe["nodes"]) for name, recipe in recipes.items()}
    same = set(commands.values())
    return same.pop() if len(same) == 1 else signed(lambda wildcards: commands[wildcards.recipe])


def resources(job):
    """Resources of a kind of job; on a cluster also its nodes, and memory and time grow with every failed attempt."""
    given = STUDY.resources(job)
    found = {name: given[name] for name in ("mem_mb", "runtime")}
    if CLUSTER:
        found = {
            name: signed(lambda wildcards, attempt, name=name: STUDY.resources(job, attempt)[name]) for name in found
        }
        found |= placement(job, given["gpu"]) if job in STAGES else {}
    return found | ({"gpu": given["gpu"]} if given["gpu"] else {})


def placement(stage, gpu):
    """Resources that say on how many nodes a stage runs, in the words of Slurm's executor."""
    recipes = STUDY.config["recipes"][stage]
    placed = {name: launch.placement(recipe["nodes"], gpu) for name, recipe in recipes.items()}
    if all(place == launch.placement(1, gpu) for place in placed.values()):
        return launch.placement(1, gpu)

    def of(name):
        return signed(lambda wildcards: placed.get(wildcards.recipe, {}).get(name))

    return {name: of(name) for name in set().union(*placed.values())}


def missing(wildcards):
    """The category of the page of a partial study, by which the report's first page says that it is one."""
    import pandas

    path = Path(PARTIAL) / "cells.parquet"
    states = pandas.read_parquet(path, columns=["state"])["state"] if path.is_file() else []
    return f"{sum(state != 'done' for state in states)} of {len(states)} results are missing"


def figure(name, category, label, folder=FOLDER):
    """One figure as a target of `snakemake --report`, with the caption of its name."""
    return report(
        f"{folder}/figures/{name}.svg",
        caption=f"../report/{name}.rst",
        category=category,
        labels={"figure": label},
    )


def start_warm():
    """Share the import of the heavy libraries between the jobs of a local run (see cisterna.runtime.fork_server)."""
    local = workflow.executor_plugin.common_settings.local_exec
    # CUDA does not survive a fork, so where there is a GPU every job starts cold.
    gpu = shutil.which("nvidia-smi") or any(job["gpu"] for job in STUDY.config["resources"].values())
    if not local or gpu or workflow.deployment_settings.deployment_method:  # jobs in an environment of their own
        return
    socket = Path(tempfile.mkdtemp(prefix="cisterna-")) / "socket"
    log = Path("results/logs/warm.log")  # not this terminal: a pipe behind Snakemake would wait for the server to end
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "cisterna", "warm", str(socket)]
    with log.open("w") as stream:
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
    os.environ.update(CISTERNA_WARM=str(socket))


onstart:
    start_warm()
