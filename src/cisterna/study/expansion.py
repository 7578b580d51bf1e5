"""A study: the checkpoints that a config asks for, and their paths.

`read` takes a YAML file, `load` a mapping that is already parsed (Snakemake's `config`). Both check
it (`cisterna.study.config`) and return a `Study`. The Snakefile, the command line, the plan and the
report all ask the study for names and paths, so the rule "the path is the lineage" is written
once, here.

Not for anything that needs torch, pandas or a data file: reading and expanding a study of 1,000
models takes a fraction of a second, because every Snakemake job does it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from cisterna.errors import UserError
from cisterna.study import config as configs
from cisterna.study.config import recipe_keys, suggest
from cisterna.tasks import catalog

READING = ("layer", "pool", "flank", "letters", "storage", "batch_tokens", "trained")  # keys of an encoder


@dataclass(frozen=True)
class Model:
    """One checkpoint. Paths are relative to results/ and spell the lineage.

    `parent` is the checkpoint that the stage starts from, the same for every rung of a ladder;
    `previous` is the rung whose training state this one continues, None for the first rung and
    where the schedule makes every rung a run of its own. `epochs` is the rung, 0 for base and CPT;
    `task` and `seed` are None for base and CPT. `sequences` is the form in which it gets the
    sequences of its task, tokens for base and CPT; `encoder` is None for tokens. `recipe` is the
    stage's own, None for base.
    """

    path: str
    kind: str  # base | cpt | sft | rl
    parent: str | None
    previous: str | None
    backbone: str
    cpt: str | None
    task: str | None
    seed: int | None
    sequences: str  # tokens | features | both
    encoder: str | None
    sft: str | None
    sft_epochs: int
    rl: str | None
    rl_epochs: int
    recipe: str | None
    epochs: int


@dataclass(frozen=True)
class Study:
    """A valid config, defaults filled in (plain dicts and lists), and its models, parents first."""

    name: str
    config: dict[str, Any]
    models: tuple[Model, ...]
    tested: frozenset[tuple[str, str]]  # (path of a base or CPT model, task it is evaluated on)
    sweeps: dict[str, tuple[str, ...]]  # paths of the models that the lineages of each sweep ask for; "" is no sweep

    @cached_property
    def _index(self) -> dict[str, Model]:
        return {model.path: model for model in self.models}

    @cached_property
    def _ladders(self) -> dict[str, tuple[str, ...]]:
        ladders: dict[str, tuple[str, ...]] = {}
        for model in self.models:
            below = ladders[model.previous] if model.previous else ()
            ladders[model.path] = (*below, model.path)
        for model in reversed(self.models):
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
        used = {model.encoder for model in self.models}
        return tuple(encoder for encoder in self.config["encoders"] if encoder in used)

    @cached_property
    def banks(self) -> tuple[tuple[str, str], ...]:
        """(encoder, task) for every feature bank that some model in use reads, in the order of the config."""
        used = {(model.encoder, model.task) for model in self.models}
        pairs = ((encoder, task) for encoder in self.encoders for task in self.tasks)
        return tuple(pair for pair in pairs if pair in used and self.config["encoders"][pair[0]]["bank"])

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
            hint = suggest(path, self._index)
            raise UserError(f"study {self.name}: no model {path}.{hint} `cisterna plan` lists the stages.")
        return self._index[path]

    def recipe(self, kind: str, name: str) -> dict[str, Any]:
        """A recipe of stage `kind` (cpt, sft, rl): Cisterna's keys and the library's."""
        return self.config["recipes"][kind][name]

    def stage(self, model: Model) -> dict[str, Any]:
        """The recipe of a CPT, SFT or RL model, as its job gets it.

        Without the rungs, so that a new one leaves the others alone; without the nodes, which change no
        result; and where no features are read without the keys of the bridge, so that an edit of these
        leaves models of tokens alone.
        """
        unused = ("epochs", "nodes") if model.encoder else ("epochs", "nodes", "bridge", "train_bridge")
        recipe = self.recipe(model.kind, str(model.recipe))
        return {key: value for key, value in recipe.items() if key not in unused}

    def options(self, kind: str, name: str) -> dict[str, Any]:
        """Only the library options of a recipe, to be passed on to the stage's config class."""
        own = recipe_keys(kind)
        return {key: value for key, value in self.recipe(kind, name).items() if key not in own}

    def documents(self, corpus: str) -> dict[str, Any]:
        """Which documents of its file a corpus takes: field, train_documents, heldout_documents, as far as given."""
        return {key: value for key, value in self.config["corpora"][corpus].items() if key not in ("file", "modality")}

    def reading(self, encoder: str) -> dict[str, Any]:
        """How an encoder's features are read: layer, pool, flank, letters, storage, batch_tokens, trained."""
        return {key: value for key, value in self.config["encoders"][encoder].items() if key in READING}

    def encoder(self, encoder: str) -> dict[str, Any]:
        """What makes an encoder: architecture and training, or pretrained and how it is loaded."""
        own = (*READING, "bank")
        return {key: value for key, value in self.config["encoders"][encoder].items() if key not in own}

    def bank(self, model: Model) -> str | None:
        """Path of the feature bank that a model reads, relative to results/.

        None where it reads no features, and where its encoder runs inside each step.
        """
        has = (model.encoder, model.task) in self.banks
        return f"features/{model.encoder}/{model.task}" if has else None

    def spec(self, task: str) -> dict[str, Any]:
        """What the data of a task are made from. The forms in which models get them are no part of it."""
        given = self.config["tasks"][task]
        return {key: value for key, value in given.items() if key not in ("sequences", "encoder")}

    def resources(self, job: str, attempt: int = 1) -> dict[str, int]:
        """threads, mem_mb (MB), runtime (minutes) and gpu (count) of a kind of job, one of JOBS.

        Each further attempt at a job that failed gets half as much memory and time again as the first.
        """
        given: dict[str, int] = self.config["resources"][job]
        return given | {name: given[name] * (attempt + 1) // 2 for name in ("mem_mb", "runtime")}

    def evaluations(self) -> tuple[tuple[str, str, str], ...]:
        """(path of the evaluation, path of the model, task), in the order of the models.

        Paths are relative to results/. SFT and RL models are evaluated on their own task, base and
        CPT models on each task of the lineages that begin with them.
        """
        pairs: list[tuple[str, str, str]] = []
        for model in self.models:
            if model.task is not None:
                pairs.append((f"{model.path}/eval", model.path, model.task))
            else:
                tasks = [task for task in self.tasks if (model.path, task) in self.tested]
                pairs.extend((f"{model.path}/{task}/eval", model.path, task) for task in tasks)
        return tuple(pairs)

    def is_rung(self, model: Model) -> bool:
        """Whether an SFT or RL model is one of several checkpoints of a single run (`is_ladder`)."""
        return model.task is not None and is_ladder(self.recipe(model.kind, str(model.recipe)))

    def work(self, model: Model) -> str:
        """The work folder of a CPT, SFT or RL model, relative to the clone. Rungs of a ladder share it."""
        return "results/.work/" + (model.path.rpartition("/")[0] if self.is_rung(model) else model.path)

    @property
    def of_terms(self) -> list[str]:
        """The tasks whose answers are sets of terms."""
        return [task for task in self.tasks if catalog.of_terms(self.config["tasks"][task])]

    def reward_files(self, recipe: str) -> list[str]:
        """The files of the user's own rewards (PATH:FUNCTION) that an RL recipe names, relative to the clone."""
        names = self.recipe("rl", recipe)["rewards"]
        return sorted({name.rpartition(":")[0] for name in names if ":" in name})

    def sources(self, task: str) -> list[str]:
        """The local files that a task is made from: the user's, or the one that ships; none if it is on the hub."""
        return catalog.sources(task, self.config["tasks"][task])

    def lineage(self, model: Model) -> tuple[str, ...]:
        """Paths of the models that `model` was made from, its parent first and the base last."""
        found: tuple[str, ...] = ()
        while model.parent:
            model = self.model(model.parent)
            found += (model.path,)
        return found

    def ladder(self, model: Model) -> tuple[str, ...]:
        """Paths of the rungs of the run that `model` belongs to, ascending; alone, its own path."""
        return self._ladders[model.path]


def read(path: Path, *more: Path) -> Study:
    """The study in a YAML file, of which each further file changes what it names.

    As Snakemake joins the files of `--configfile`: mappings key by key, everything else as a whole. UserError if a file
    is not readable or the study breaks a rule (all of them).
    """
    given, lines, problems = configs.parse(Path(path))
    if not more:
        return _study(configs.check(given, problems, lines))
    problems.stop()
    for other in more:
        change, _, found = configs.parse(Path(other))
        found.stop()
        given = _changed(given, change)
    return _study(configs.check(given, configs.Problems(", ".join(map(str, (path, *more)))), {}))


def is_ladder(recipe: Mapping[str, Any]) -> bool:
    """Whether the epochs of an SFT or RL recipe are a ladder: one run that publishes a checkpoint after each of them.

    This needs a learning rate that does not depend on the length of the run. With any other schedule a run of eight
    epochs differs from a run of two from the first step on, so each is a run of its own.
    """
    return recipe["lr_scheduler_type"] in ("constant", "constant_with_warmup")


def _changed(given: Any, change: Any) -> Any:
    if isinstance(given, dict) and isinstance(change, dict):
        return given | {key: _changed(given.get(key), value) for key, value in change.items()}
    return change


def load(config: Mapping[str, Any], where: str = "config") -> Study:
    """The study in a mapping; `where` names it in the UserError that lists every violation."""
    return _study(configs.check(config, configs.Problems(where), {}))


def _study(config: dict[str, Any]) -> Study:
    """Every model of the lineages, once, parents and previous rungs first; base and CPT tests."""
    models: dict[str, Model] = {}
    tested: set[tuple[str, str]] = set()
    sweeps: dict[str, dict[str, None]] = {}
    for lineage in config["lineages"]:
        asked: dict[str, Model] = {}
        for backbone in lineage["backbones"]:
            base = _add(asked, _untrained(backbone, None))
            for cpt in lineage["cpt"]:
                start = base if cpt == "none" else _add(asked, _untrained(backbone, cpt))
                for task in lineage["tasks"]:
                    tested |= {(base.path, task), (start.path, task)}
                    for origin in _origins(config, lineage, task):
                        _grow(asked, config["recipes"], lineage, start, origin)
        models |= {path: model for path, model in asked.items() if path not in models}
        sweeps.setdefault(lineage.get("sweep", ""), {}).update(dict.fromkeys(asked))
    named = {name: tuple(paths) for name, paths in sweeps.items()}
    return Study(config["study"], config, tuple(models.values()), frozenset(tested), named)


class Origin(NamedTuple):
    """What every model above a base or CPT model shares: its data, their form and its random numbers."""

    task: str
    sequences: str
    encoder: str | None
    seed: int

    @property
    def folder(self) -> str:
        """Its levels of the path."""
        form = f"/{self.sequences}-{self.encoder}" if self.encoder else ""
        return f"{self.task}{form}/s{self.seed}"


def _origins(config: dict[str, Any], lineage: dict[str, Any], task: str) -> list[Origin]:
    """Every form of a task that the lineage asks for, with every seed."""
    spec = config["tasks"][task]
    forms = spec["sequences"] if lineage["sequences"] == "all" else lineage["sequences"]
    return [
        Origin(task, form, encoder, seed)
        for form in forms
        for encoder in ([None] if form == "tokens" else configs.encoders_of(spec))
        for seed in config["seeds"]
    ]


def _grow(
    models: dict[str, Model],
    recipes: dict[str, Any],
    lineage: dict[str, Any],
    start: Model,
    origin: Origin,
) -> None:
    """Add SFT and RL of one lineage above one base or CPT model."""

    def climb(parent: Model, kind: str, name: str, wanted: Iterable[int]) -> dict[int, Model]:
        return _climb(models, recipes[kind][name], parent, origin, (kind, name), wanted)

    if "budget" in lineage:
        unit = configs.unit(lineage["budget"])
        starts = [entry["recipe"] for entry in lineage["rl"]]
        for sft_amount, rl_amount in lineage["budget"]["split"]:
            below = [start]
            if sft_amount:
                spent = configs.spending(recipes["sft"], lineage["sft"], sft_amount, unit)
                below = [climb(start, "sft", name, [rung])[rung] for name, rung in spent]
            for parent in below if rl_amount else []:
                for name, rung in configs.spending(recipes["rl"], starts, rl_amount, unit):
                    climb(parent, "rl", name, [rung])
        return
    parents: list[dict[int | str, Model]] = [{"cold": start}]
    for sft in lineage["sft"]:
        rungs = climb(start, "sft", sft, recipes["sft"][sft]["epochs"])
        parents.append(dict(rungs.items()))
    for entry in lineage["rl"]:
        name = entry["recipe"]
        for group in parents:
            for source in entry["from"]:
                if source in group:
                    climb(group[source], "rl", name, recipes["rl"][name]["epochs"])


def _climb(
    models: dict[str, Model],
    recipe: dict[str, Any],
    parent: Model,
    origin: Origin,
    stage: tuple[str, str],
    wanted: Iterable[int],
) -> dict[int, Model]:
    """The rungs `wanted` of `stage` (kind, recipe) above `parent`, and in a ladder those below."""
    wanted = list(wanted)
    kind, name = stage
    ladder = is_ladder(recipe)
    folder = parent.path
    if parent.task is None:
        folder += f"/{origin.folder}"
    rungs: dict[int, Model] = {}
    previous: str | None = None
    for epochs in recipe["epochs"]:
        if epochs not in wanted and not (ladder and wanted and epochs < max(wanted)):
            continue
        is_sft = kind == "sft"
        rungs[epochs] = _add(
            models,
            Model(
                path=f"{folder}/{kind}-{name}/e{epochs}",
                kind=kind,
                parent=parent.path,
                previous=previous,
                backbone=parent.backbone,
                cpt=parent.cpt,
                task=origin.task,
                seed=origin.seed,
                sequences=origin.sequences,
                encoder=origin.encoder,
                sft=name if is_sft else parent.sft,
                sft_epochs=epochs if is_sft else parent.sft_epochs,
                rl=None if is_sft else name,
                rl_epochs=0 if is_sft else epochs,
                recipe=name,
                epochs=epochs,
            ),
        )
        previous = rungs[epochs].path if ladder else None
    return rungs


def _untrained(backbone: str, cpt: str | None) -> Model:
    """The base model of a backbone, or with `cpt` the model that this recipe makes of it."""
    base = f"models/{backbone}/base"
    return Model(
        path=f"models/{backbone}/cpt-{cpt}" if cpt else base,
        kind="cpt" if cpt else "base",
        parent=base if cpt else None,
        previous=None,
        backbone=backbone,
        cpt=cpt,
        task=None,
        seed=None,
        sequences="tokens",
        encoder=None,
        sft=None,
        sft_epochs=0,
        rl=None,
        rl_epochs=0,
        recipe=cpt,
        epochs=0,
    )


def _add(models: dict[str, Model], model: Model) -> Model:
    """The model of that path: a stage that lineages share is one model."""
    return models.setdefault(model.path, model)
