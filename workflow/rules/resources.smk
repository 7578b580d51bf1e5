# How a stage is started and what each kind of job may use, looked up in the study.
from cisterna.constants import STAGES
from cisterna.runtime import launch

# Only the scheduler of a cluster gives a job more memory and time at the next attempt.
CLUSTER = workflow.resource_settings.nodes is not None or not workflow.is_main_process


def by_recipe(values):
    """A resource or param that depends on the recipe of a stage: a plain value if it is the same for all of them."""
    same = set(values.values())
    return same.pop() if len(same) == 1 else lambda wildcards: values[wildcards.recipe]


def launcher(stage):
    """Param: the words that start a stage, alone or as the ranks of one torchrun."""
    recipes = STUDY.config["recipes"][stage]
    return by_recipe({name: launch.command(recipe["processes"], recipe["nodes"]) for name, recipe in recipes.items()})


def resources(job):
    """Resources of a kind of job. On a cluster also nodes, and memory and time grow with every failed attempt."""
    first = STUDY.resources(job)
    gpu = {"gpu": first["gpu"]} if first["gpu"] else {}
    if not CLUSTER:
        return {name: first[name] for name in ("mem_mb", "runtime")} | gpu
    growing = {
        name: lambda wildcards, attempt, name=name: STUDY.resources(job, attempt)[name]
        for name in ("mem_mb", "runtime")
    }
    return growing | (placement(job, first["gpu"]) if job in STAGES else {}) | gpu


def runtime_of_group(wildcards, attempt):
    """Minutes of a job for a group of evaluations: as many as its members get one after another."""
    members = STUDY.groups[group_of(wildcards)]
    return len(members) * STUDY.resources("evaluate", attempt if CLUSTER else 1)["runtime"]


def placement(stage, gpu):
    """Resources that say on how many nodes a stage runs, as Slurm's executor takes them."""
    recipes = STUDY.config["recipes"][stage]
    placed = {name: launch.placement(recipe["nodes"], gpu) for name, recipe in recipes.items()}
    names = set(launch.placement(1, gpu)).union(*placed.values())
    return {name: by_recipe({recipe: place.get(name) for recipe, place in placed.items()}) for name in names}
