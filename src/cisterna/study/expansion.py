"""A study: the checkpoints that a config asks for, and their paths.

`read` takes YAML files, `load` a mapping that is already parsed (Snakemake's `config`, with `locate` for its lines).
Both check it (`cisterna.study.config`) and return a `Study`. The Snakefile, the command line, the plan and the report
all ask the study for names and paths, so the rule "the path is the lineage" is written once, here.

Not for anything that needs torch, pandas or a data file: reading and expanding a study of 1,000
models takes a fraction of a second, because every Snakemake job does it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

from cisterna.errors import UserError
from cisterna.study import config as configs
from cisterna.study.config import recipe_keys
from cisterna.study.config.problems import Problems, suggest
from cisterna.study.config.yaml_lines import parse
from cisterna.study.lineages import Lineage, Model, condition_folder, encoders_of, is_ladder
from cisterna.tasks import catalog

# The keys of an encoder that say how its features are read; all others but `bank` say what it is.
READING = ("layer", "pool", "flank", "letters", "storage", "batch_tokens", "trained", "per", "batch_size")


@dataclass(frozen=True)
class Study:
    """A valid config with its defaults filled in (plain dicts and lists), and its models, parents first."""

    name: str
    config: dict[str, Any]
    models: tuple[Model, ...]
    tested: frozenset[tuple[str, str]]  # (path of a base or CPT model, task it is evaluated on)
    sweeps: dict[str, tuple[str, ...]]  # by sweep, the paths of the models of its lineages; "" for those of no sweep

    @cached_property
    def _index(self) -> dict[str, Model]:
        return {model.path: model for model in self.models}

    @cached_property
    def _ladders(self) -> dict[str, tuple[str, ...]]:
        ladders: dict[str, tuple[str, ...]] = {}
        for model in self.models:  # of each model the rungs below it, and itself
            ladders[model.path] = (*ladders.get(str(model.previous), ()), model.path)
        for model in reversed(self.models):  # then all rungs of the run
            if model.previous:
                ladders[model.previous] = ladders[model.path]
        return ladders

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of SFT and RL."""
        return tuple(self.config["seeds"])

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that some lineage uses, in the order of the config."""
        used = {task for _, task in self.tested}
        return tuple(task for task in self.config["tasks"] if task in used)

    @cached_property
    def backbones(self) -> tuple[str, ...]:
        """The backbones that some lineage uses, in the order of the config."""
        used = {model.backbone for model in self.models}
        return tuple(backbone for backbone in self.config["backbones"] if backbone in used)

    @cached_property
    def encoders(self) -> tuple[str, ...]:
        """The encoders that some model in use reads, in the order of the config."""
        used = {model.encoder for model in (*self.models, *self._tested_starts)}
        return tuple(encoder for encoder in self.config["encoders"] if encoder in used)

    @cached_property
    def banks(self) -> tuple[tuple[str, str], ...]:
        """(encoder, task) for every feature bank that some model in use reads, in the order of the config."""
        used = {(model.encoder, model.task) for model in (*self.models, *self._tested_starts)}
        pairs = ((encoder, task) for encoder in self.encoders for task in self.tasks)
        return tuple(pair for pair in pairs if pair in used and self.config["encoders"][pair[0]].get("bank", True))

    @cached_property
    def corpora(self) -> tuple[str, ...]:
        """The corpora that some CPT model in use is trained on, in the order of the config."""
        used = {corpus for _, corpus in self.tokenized}
        return tuple(corpus for corpus in self.config["corpora"] if corpus in used)

    @cached_property
    def tokenized(self) -> tuple[tuple[str, str], ...]:
        """(backbone, corpus) for every corpus that a CPT model of the backbone is trained on."""
        pairs = {
            (model.backbone, corpus): None
            for model in self.models
            if model.kind == "cpt" and model.cpt
            for corpus in self.recipe("cpt", model.cpt)["corpora"]
        }
        return tuple(pairs)

    def model(self, path: str) -> Model:
        """The model at `path`, relative to results/. UserError if it is not part of the study."""
        if path not in self._index:
            raise UserError(f"study {self.name}: no model {path}{suggest(path, self._index)}")
        return self._index[path]

    def recipe(self, kind: str, name: str) -> dict[str, Any]:
        """A recipe of stage `kind` (cpt, sft, rl): Cisterna's keys and the library's."""
        return self.config["recipes"][kind][name]

    def stage(self, model: Model) -> dict[str, Any]:
        """The recipe of a CPT, SFT or RL model, as its job gets it: without keys that do not change this model.

        These are the epochs (a new rung does not change the others), the nodes, and for a model that reads no features
        the keys of the bridge. An edit of these keys makes Snakemake run no finished job again.
        """
        unused = ("epochs", "nodes") if model.encoder else ("epochs", "nodes", "bridge", "train_bridge")
        recipe = self.recipe(model.kind, str(model.recipe))
        return {key: value for key, value in recipe.items() if key not in unused}

    def options(self, kind: str, name: str) -> dict[str, Any]:
        """The library options of a recipe, for the library's own config class."""
        own = recipe_keys(kind)
        return {key: value for key, value in self.recipe(kind, name).items() if key not in own}

    def documents(self, corpus: str) -> dict[str, Any]:
        """Which documents of its file a corpus takes: every key but file and modality, if set."""
        return {key: value for key, value in self.config["corpora"][corpus].items() if key not in ("file", "modality")}

    def reading(self, encoder: str) -> dict[str, Any]:
        """How an encoder's features are read: its keys of READING."""
        return {key: value for key, value in self.config["encoders"][encoder].items() if key in READING}

    def encoder(self, encoder: str) -> dict[str, Any]:
        """What makes an encoder: architecture and training, or pretrained and how it is loaded."""
        own = (*READING, "bank")
        return {key: value for key, value in self.config["encoders"][encoder].items() if key not in own}

    def bank(self, model: Model) -> str | None:
        """Path of the feature bank (embedding cache) that a model reads, relative to results/.

        None if it reads no features, or if its encoder runs inside each step.
        """
        return f"features/{model.encoder}/{model.task}" if (model.encoder, model.task) in self.banks else None

    def spec(self, task: str) -> dict[str, Any]:
        """What the data of a task are made from: its keys, without those that say how models read the data."""
        keys = self.config["tasks"][task]
        return {key: value for key, value in keys.items() if key not in ("sequences", "encoder")}

    def resources(self, job: str, attempt: int = 1) -> dict[str, int]:
        """threads, mem_mb (MB), runtime (minutes) and gpu (count) of a job, by its key in `resources` of the config.

        The first attempt gets the memory and time of the config, and each further one half of that more.
        """
        first: dict[str, int] = self.config["resources"][job]
        return first | {name: first[name] * (attempt + 1) // 2 for name in ("mem_mb", "runtime")}

    @property
    def evaluation(self) -> dict[str, Any]:
        """The options of every evaluation, as its job gets them: without `group`, which changes no result."""
        return {key: value for key, value in self.config["evaluation"].items() if key != "group"}

    @cached_property
    def groups(self) -> dict[str, tuple[tuple[str, str, str], ...]]:
        """The evaluations that one job answers, by a path that is that of the group (`evaluation.group`).

        Base and CPT models, and RL from cold, are in groups of a backbone alone: a cold start often fails, and the
        evaluations of a group wait for all of its checkpoints. One evaluation is no group.
        """
        how = self.config["evaluation"]["group"]
        found: dict[str, list[tuple[str, str, str]]] = {}
        for folder, path, task in self.evaluations():
            model = self.model(path)
            if how == "backbone":
                found.setdefault(f"models/{model.backbone}", []).append((folder, path, task))
            elif how == "lineage" and model.sft:
                found.setdefault(condition_folder(model), []).append((folder, path, task))
        return {group: tuple(members) for group, members in found.items() if len(members) > 1}

    @cached_property
    def group_of(self) -> dict[str, str]:
        """The group of each evaluation that is in one, by their paths."""
        return {folder: group for group, members in self.groups.items() for folder, _, _ in members}

    def evaluations(self) -> tuple[tuple[str, str, str], ...]:
        """(path of the evaluation, path of the model, task), in the order of the models.

        Paths are relative to results/. SFT and RL models are evaluated on their own task, base and CPT models on each
        task of their lineages.
        """
        pairs: list[tuple[str, str, str]] = []
        for model in self.models:
            if model.task is not None:
                pairs.append((f"{model.path}/eval", model.path, model.task))
            else:
                tasks = [task for task in self.tasks if (model.path, task) in self.tested]
                pairs.extend((f"{model.path}/{task}/eval", model.path, task) for task in tasks)
        return tuple(pairs)

    @cached_property
    def _tested_starts(self) -> tuple[Model, ...]:
        """Base and CPT models as they are evaluated on each of their tasks."""
        return tuple(self.as_evaluated(self.model(path), task) for path, task in self.tested)

    def as_evaluated(self, model: Model, task: str) -> Model:
        """A model with the task and the form in which it is evaluated.

        A base or CPT model reads features where its backbone has a bridge for them, and tokens otherwise.
        """
        if model.task is not None:
            return model
        bridge, spec = self.config["backbones"][model.backbone].get("bridge"), self.config["tasks"][task]
        if bridge and "features" in spec["sequences"] and bridge["encoder"] in encoders_of(spec):
            return replace(model, task=task, sequences="features", encoder=bridge["encoder"])
        return replace(model, task=task)

    def is_rung(self, model: Model) -> bool:
        """Whether a model is a checkpoint of a ladder (`is_ladder`)."""
        return model.task is not None and is_ladder(self.recipe(model.kind, str(model.recipe)))

    def work(self, model: Model) -> str:
        """The work folder of a CPT, SFT or RL model, relative to the clone. Rungs of a ladder share it."""
        return "results/.work/" + (model.path.rpartition("/")[0] if self.is_rung(model) else model.path)

    @property
    def of_terms(self) -> list[str]:
        """The tasks whose answers are sets of ontology terms."""
        return [task for task in self.tasks if catalog.of_terms(self.config["tasks"][task])]

    def reward_files(self, recipe: str) -> list[str]:
        """The files of the user's own rewards (PATH:FUNCTION) that an RL recipe names, relative to the clone."""
        names = self.recipe("rl", recipe)["rewards"]
        return sorted({name.rpartition(":")[0] for name in names if ":" in name})

    def sources(self, task: str) -> list[str]:
        """The local files that a task is made from: the user's or a built-in one; none if the data are on the hub."""
        return catalog.sources(task, self.config["tasks"][task])

    @property
    def published(self) -> list[str]:
        """The file of published numbers that the report shows, as the config writes it; none if there is none."""
        path = self.config["report"].get("published")
        return [path] if path else []

    def lineage(self, model: Model) -> tuple[str, ...]:
        """Paths of the ancestors of a model, its parent first and the base last."""
        ancestors: list[str] = []
        while model.parent:
            ancestors.append(model.parent)
            model = self.model(model.parent)
        return tuple(ancestors)

    def ladder(self, model: Model) -> tuple[str, ...]:
        """Paths of the rungs of the run that a model belongs to, ascending; only its own if it is no rung."""
        return self._ladders[model.path]


def read(path: Path, *more: Path) -> Study:
    """The study in a YAML file; each further file changes what it names.

    Files are merged like those of Snakemake's `--configfile`: mappings key by key, everything else as a whole.
    UserError if a file is not readable or the study breaks a rule (all of them).
    """
    files = [Path(file) for file in (path, *more)]
    problems = Problems(", ".join(map(str, files)))
    first, *changes = (parse(file, problems) for file in files)
    return _study(configs.check(reduce(_merged, changes, first), problems))


def _merged(config: Any, change: Any) -> Any:
    if isinstance(config, dict) and isinstance(change, dict):
        return config | {key: _merged(config.get(key), value) for key, value in change.items()}
    return change


def locate(files: Iterable[Path]) -> Problems:
    """The lines of the keys in YAML files, for `load`; UserError if one of them is not readable."""
    files = list(files)
    problems = Problems(", ".join(map(str, files)))
    for file in files:
        parse(file, problems)
    return problems


def load(config: Mapping[str, Any], where: str | Problems = "config") -> Study:
    """The study in a mapping, such as Snakemake's `config`.

    UserError that lists every problem. `where` names the mapping there, or knows its lines (`locate`).
    """
    return _study(configs.check(config, Problems(where) if isinstance(where, str) else where))


def _study(config: dict[str, Any]) -> Study:
    """The study of a valid config: the models of all lineages, each once."""
    models: dict[str, Model] = {}
    tested: set[tuple[str, str]] = set()
    sweeps: dict[str, dict[str, None]] = {}
    for entry in config["lineages"]:
        lineage = Lineage(config, entry)
        models |= {path: model for path, model in lineage.models.items() if path not in models}
        tested |= lineage.tested
        sweeps.setdefault(entry.get("sweep", ""), {}).update(dict.fromkeys(lineage.models))
    named = {name: tuple(paths) for name, paths in sweeps.items()}
    return Study(config["study"], config, tuple(models.values()), frozenset(tested), named)
