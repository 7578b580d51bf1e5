# Look-ups in the expanded study, for the rules. No logic: that is in cisterna.study, where it is tested.
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

EVALUATION = ("id.parquet", "ood.parquet", "metrics.json")
EVALUATIONS = {folder: (path, task) for folder, path, task in STUDY.evaluations()}
FOLDER = f"results/studies/{STUDY.name}"
REPORT = f"{FOLDER}/figures/table.html"
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
    epochs=r"\d+",


def checkpoint(path):
    return f"results/{path}/checkpoint"


def model_of(wildcards, output):
    """The study's model that a rule's output folder belongs to."""
    return check(STUDY.model, str(Path(output).parent.relative_to("results")))


def parent_of(path):
    """Input function: the parent's checkpoint, in a ladder that of the rung before, and the features."""

    def inputs(wildcards):
        model = model_of(wildcards, path.format(**wildcards))
        found = {"parent": checkpoint(model.parent)}
        return found | ({"previous": checkpoint(model.previous)} if model.previous else {}) | features_of(model)

    return inputs


def features_of(model):
    """Inputs of a model that reads features: its bank, or the encoder that runs inside each step."""
    if model.encoder is None:
        return {}
    bank = STUDY.bank(model)
    return {"bank": f"results/{bank}"} if bank else {"encoder": f"results/encoders/{model.encoder}/checkpoint"}


def corpora_of(encoder):
    """The corpora that an encoder is trained on, by name; none if it is pretrained."""
    names = STUDY.encoder(encoder).get("training", {}).get("corpora", [])
    return {name: STUDY.config["corpora"][name] for name in names}


def previous(wildcards, input):
    """Params function: the command line's words for the rung before, if there is one."""
    return ["--previous", input.previous] if "previous" in input.keys() else []


def bank(wildcards, input):
    """Params function: the command line's words for the bank that an evaluation reads, if there is one."""
    return ["--bank", input.bank] if "bank" in input.keys() else []


def data_of(name):
    """Input function: a file of the task that `origin` (backbone/start/task/...) names."""
    return lambda wildcards: f"results/data/{wildcards.origin.split('/')[2]}/{name}"


def evaluated(wildcards):
    """Input function: the checkpoint, the splits and the features that an evaluation reads."""
    folder = f"models/{wildcards.model}/eval"
    if folder not in EVALUATIONS:
        refuse(f"study {STUDY.name}: no evaluation {folder}; `cisterna plan` lists the stages")
    path, task = EVALUATIONS[folder]
    return {
        "checkpoint": checkpoint(path),
        "id": f"results/data/{task}/id.parquet",
        "ood": f"results/data/{task}/ood.parquet",
        "card": f"results/data/{task}/card.json",
        "audit": f"results/data/{task}/audit.json",
        **features_of(check(STUDY.model, path)),
    }


def as_json(value):
    return json.dumps(value, sort_keys=True)


# The next two depend on wildcards alone: of params that depend on input or output Snakemake notices no change.


def recipe_of(path):
    """Params function: the recipe as its stage gets it."""
    return lambda wildcards: as_json(STUDY.stage(model_of(wildcards, path.format(**wildcards))))


def sequences_of(path):
    """Params function: the command line's words for the form in which a stage gets the sequences."""

    def words(wildcards):
        model = model_of(wildcards, path.format(**wildcards))
        if model.encoder is None:
            return []
        sources = [word for key, value in features_of(model).items() for word in (f"--{key}", value)]
        reading = [] if STUDY.bank(model) else ["--reading", as_json(STUDY.reading(model.encoder))]
        return ["--sequences", model.sequences, *sources, *reading]

    return words


def launcher(stage):
    """Params function: how a stage is started, alone or as the ranks of one torchrun."""

    def params(wildcards):
        ranks = STUDY.recipe(stage, wildcards.recipe)["processes"]
        return "cisterna" if ranks == 1 else f"torchrun --standalone --nproc_per_node {ranks} -m cisterna"

    return params


def resource(job, name):
    return STUDY.resources(job)[name]


def figure(name, category, **labels):
    """One figure as a target of `snakemake --report`, with the caption of its name."""
    return report(
        f"{FOLDER}/figures/{name}.svg",
        caption=f"../report/{name}.rst",
        category=category,
        labels={key.replace("_", " "): value for key, value in labels.items()},
    )


def start_warm():
    """Share the import of the heavy libraries between the jobs of a local run (see cisterna.warm)."""
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
