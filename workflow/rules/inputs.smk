# What the rules read, looked up in the expanded study. How a study is expanded is in src/cisterna/study.
import functools
from pathlib import Path

from cisterna.artifacts import files
from cisterna.study import inputs, jobs
from cisterna.study.config.problems import suggest
from snakemake.settings.types import SharedFSUsage

# With results in a storage (docs/storage.md) a job has on its disk only what its rule names as input.
STORED = workflow.storage_settings.default_storage_provider is not None
SHARED = SharedFSUsage.INPUT_OUTPUT in workflow.storage_settings.shared_fs_usage

JOBS = jobs.jobs(STUDY)
EVALUATIONS = {folder: (STUDY.model(path), task) for folder, path, task in STUDY.evaluations()}
FOLDER = f"results/studies/{STUDY.name}"


wildcard_constraints:
    backbone="[a-z0-9.-]+",
    encoder="[a-z0-9.-]+",
    start="[a-z0-9.-]+/(base|cpt-[a-z0-9.-]+)",
    task="[a-z0-9.-]+",
    seed=r"\d+",
    recipe="[a-z0-9.-]+",
    corpus="[a-z0-9.-]+",
    epochs=r"\d+",


def made_by(*rules):
    """Input function: what all jobs of these rules make. A function: Snakemake calls it only where it is needed."""
    return lambda wildcards: [f"results/{path}" for job in JOBS if job.kind in rules for path in job.outputs]


def if_stored(paths):
    """Input function: results that are on a shared disk anyway, and are fetched from a storage only if named."""
    return lambda wildcards: paths(wildcards) if STORED else []


def aside(path):
    """A log or a benchmark: it stays on this disk, unless the jobs have none in common, as on Kubernetes."""
    return local(path) if STORED and SHARED else path


def shipped_or_own(names):
    """Input function: files that no rule makes; `names` maps wildcards to their paths in the config.

    With a storage their content counts (`contents`) and not their age: in a fresh clone they are younger than results
    that were made of them.
    """
    mark = (lambda path: local(ancient(path))) if STORED else (lambda path: path)
    return lambda wildcards: [mark(str(files.locate(name))) for name in names(wildcards)]


def contents(names):
    """Param: with a storage, the hashes of the files that `names` lists."""
    return (lambda wildcards: [digest(name) for name in names(wildcards)]) if STORED else []


@functools.cache
def digest(name):
    path = files.locate(name)
    return files.sha256(path) if path.is_file() else None  # Snakemake says that it is missing


def table_of(wildcards):
    """The files that a task is made from; none if it is on the hub."""
    return STUDY.sources(wildcards.task)


def rewards_of(wildcards):
    """The files of the user's own rewards that an RL recipe names."""
    return STUDY.reward_files(wildcards.recipe)


def texts_of(wildcards):
    """The files that the tokenizer of a backbone is trained on."""
    return inputs.tokenizer_texts(STUDY, wildcards.backbone)


def corpus_of(wildcards):
    """The file of a corpus."""
    return [STUDY.config["corpora"][wildcards.corpus]["file"]]


def encoder_files_of(wildcards):
    """The files that an encoder is trained on, or those of precomputed features."""
    return inputs.encoder_files(STUDY, wildcards.encoder)


def feature_files_of(wildcards):
    """The files that features by id are read from: precomputed ones, or the cells of the task."""
    return inputs.feature_files(STUDY, wildcards.encoder, wildcards.task)


def model_of(wildcards, path):
    """The model whose checkpoint is at `path`, the output of a rule with its wildcards."""
    with snakefile.refusing():
        return STUDY.model(path.format(**wildcards).removeprefix("results/").rpartition("/")[0])


def with_lineage(named, model):
    """Inputs of a job that loads a model: those named and, with a storage, the checkpoints that it was made from.

    Not on a disk, where they are anyway: each input more costs a study of thousands of jobs time.
    """
    return named | ({"lineage": inputs.lineage(STUDY, model)} if STORED else {})


def reads(path):
    """Input function of SFT and RL."""

    def named(wildcards):
        model = model_of(wildcards, path)
        return with_lineage(inputs.of_model(STUDY, model), model)

    return named


def evaluated(wildcards):
    """Input function: the checkpoint, the data and the features that an evaluation reads."""
    folder = f"models/{wildcards.model}/eval"
    if folder not in EVALUATIONS:
        raise snakefile.StudyError(f"study {STUDY.name}: no evaluation {folder}{suggest(folder, EVALUATIONS)}")
    model, task = EVALUATIONS[folder]
    named = with_lineage(inputs.of_evaluation(STUDY, model, task), model)
    group = STUDY.group_of.get(folder)
    # Not ancient: Snakemake would then overlook a change of the checkpoint where the group runs too (its issue 4166).
    return named | ({"answers": f"results/{group}/{jobs.ANSWERS}"} if group else {})


def group_of(wildcards):
    """The group of evaluations at a path."""
    group = f"models/{wildcards.group}"
    if group not in STUDY.groups:
        raise snakefile.StudyError(f"study {STUDY.name}: no group of evaluations {group}{suggest(group, STUDY.groups)}")
    return group


def answered(wildcards):
    """Input function: what the evaluations of a group read."""
    group = group_of(wildcards)
    named = inputs.of_group(STUDY, group)
    if STORED:
        members = [STUDY.as_evaluated(STUDY.model(path), task) for _, path, task in STUDY.groups[group]]
        named["lineage"] = list(dict.fromkeys(path for model in members for path in inputs.lineage(STUDY, model)))
    return named


def measured(wildcards):
    """Input function: the checkpoint whose perplexity is measured."""
    model = model_of(wildcards, "models/{start}/perplexity.json")
    return with_lineage({"checkpoint": inputs.checkpoint(model.path)}, model)


def words(*names):
    """Params function: the command line's words `--NAME PATH` for those inputs of `names` that a job has."""
    return lambda wildcards, input: inputs.options(dict(input.items()), *names)


# The next three depend on wildcards alone: Snakemake notices no change of params that depend on input or output.


def recipe_of(path):
    """Params function: the recipe as its stage gets it."""
    return lambda wildcards: inputs.as_json(STUDY.stage(model_of(wildcards, path)))


def work_of(path):
    """Params function: the work folder of a stage."""
    return lambda wildcards: STUDY.work(model_of(wildcards, path))


def sequences_of(path):
    """Params function: the command line's words for the form in which a stage gets the sequences."""
    return lambda wildcards: inputs.sequences(STUDY, model_of(wildcards, path))


def figure(name, category, label, folder=FOLDER):
    """One figure as a target of `snakemake --report`, with the caption of its name."""
    return report(
        f"{folder}/figures/{name}.svg",
        caption=f"../report/{name}.rst",
        category=category,
        labels={"figure": label},
    )
