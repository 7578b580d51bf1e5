"""From the lineages of a config to its models: which checkpoints there are, what each starts from, and its path.

A lineage in the config lists backbones, CPT recipes, tasks, SFT and RL recipes. It asks for every combination of them.
A model that several lineages ask for is trained once, because its path is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Model:
    """One checkpoint. Its path spells its lineage."""

    path: str  # relative to results/
    kind: str  # base | cpt | sft | rl
    backbone: str
    parent: str | None = None  # path of the model that the stage starts from, the same for every rung of a ladder
    previous: str | None = None  # path of the rung whose training it continues
    cpt: str | None = None  # recipe
    task: str | None = None  # None for base and CPT
    seed: int | None = None  # None for base and CPT
    sequences: str = "tokens"  # tokens | features | both: how it gets the sequences of its task
    encoder: str | None = None  # None for tokens
    sft: str | None = None  # recipe
    sft_epochs: int = 0
    rl: str | None = None  # recipe
    rl_epochs: int = 0
    recipe: str | None = None  # of its own stage; None for base
    epochs: int = 0  # of its own stage; 0 for base and CPT


def condition_folder(model: Model) -> str:
    """The folder of the SFT and RL models above the same base or CPT model, on one task in one form, with one seed."""
    start = f"models/{model.backbone}/{f'cpt-{model.cpt}' if model.cpt else 'base'}"
    return f"{start}/{Condition(str(model.task), model.sequences, model.encoder, int(model.seed or 0)).folder}"


def is_ladder(recipe: Mapping[str, Any]) -> bool:
    """Whether the epochs of an SFT or RL recipe are a ladder: one run that publishes a checkpoint after each of them.

    Such a checkpoint is called a rung (elsewhere: an epoch checkpoint). A ladder needs a learning rate that does not
    depend on the length of the run. With any other schedule a run of eight epochs differs from a run of two from the
    first step on, so each is a run of its own.
    """
    return recipe["lr_scheduler_type"] in ("constant", "constant_with_warmup")


def encoders_of(task: Mapping[str, Any]) -> list[str]:
    """The encoders that a task lists: `encoder` is one, a list of them, or null."""
    names = task["encoder"]
    return names if isinstance(names, list) else [names] if names is not None else []


def unit(budget: Mapping[str, Any]) -> str:
    """What a lineage's budget counts: epochs or examples."""
    return "examples" if "examples" in budget else "epochs"


def spending(recipes: Mapping[str, Any], names: Iterable[str], amount: int, unit: str) -> list[tuple[str, int]]:
    """(recipe, rung) of those of `names` that spend this amount: so many epochs, or epochs x examples."""
    if unit == "epochs":
        return [(name, amount) for name in names]
    sizes = [(name, rung, rung * recipes[name]["examples"]) for name in names for rung in sized(recipes[name])]
    return [(name, rung) for name, rung, size in sizes if size == amount]


def sized(recipe: dict[str, Any]) -> list[int]:
    """The rungs of a recipe that says its number of examples; none if it does not."""
    return recipe["epochs"] if recipe.get("examples") is not None else []


class Condition(NamedTuple):
    """What SFT and RL models above the same base or CPT model differ in, before their recipes."""

    task: str
    sequences: str
    encoder: str | None
    seed: int

    @property
    def folder(self) -> str:
        """Its part of the path of a model."""
        form = f"/{self.sequences}-{self.encoder}" if self.encoder else ""
        return f"{self.task}{form}/s{self.seed}"


class Lineage:
    """The models that one lineage of a config asks for."""

    def __init__(self, config: Mapping[str, Any], lineage: Mapping[str, Any]) -> None:
        """`config` is valid and has its defaults filled in; `lineage` is an entry of its `lineages`."""
        self.config, self.lineage = config, lineage
        self.models: dict[str, Model] = {}  # by path; parents and previous rungs first
        self.tested: set[tuple[str, str]] = set()  # (path of a base or CPT model, task it is evaluated on)
        for backbone in lineage["backbones"]:
            base = self._add(Model(f"models/{backbone}/base", "base", backbone))
            for cpt in lineage["cpt"]:
                path = f"models/{backbone}/cpt-{cpt}"
                trained = Model(path, "cpt", backbone, parent=base.path, cpt=cpt, recipe=cpt)
                start = base if cpt == "none" else self._add(trained)
                for task in lineage["tasks"]:
                    self.tested |= {(base.path, task), (start.path, task)}
                    for condition in self._conditions(task):
                        if "budget" in lineage:
                            self._add_budget(start, condition)
                        else:
                            self._add_sft_and_rl(start, condition)

    def _conditions(self, task: str) -> list[Condition]:
        """The task in every form that the lineage asks for, with every seed of it, or else of the study."""
        spec = self.config["tasks"][task]
        forms = spec["sequences"] if self.lineage["sequences"] == "all" else self.lineage["sequences"]
        return [
            Condition(task, form, encoder, seed)
            for form in forms
            for encoder in ([None] if form == "tokens" else encoders_of(spec))
            for seed in self.lineage.get("seeds", self.config["seeds"])
        ]

    def _add_sft_and_rl(self, start: Model, condition: Condition) -> None:
        """Add every rung of every SFT recipe, and RL from the rungs that its `from` lists.

        `cold` there is RL from `start` itself, without SFT before it (elsewhere: RL-zero).
        """
        sources: list[dict[Any, Model]] = [{"cold": start}]
        sources += [self._add_rungs(start, condition, "sft", name) for name in self.lineage["sft"]]
        for entry in self.lineage["rl"]:
            for models in sources:
                for source in entry["from"]:
                    if source in models:
                        self._add_rungs(models[source], condition, "rl", entry["recipe"])

    def _add_budget(self, start: Model, condition: Condition) -> None:
        """Add the models of a budget: for each of its splits, SFT that spends the first part and RL the second."""
        recipes, budget = self.config["recipes"], self.lineage["budget"]
        counted = unit(budget)
        rl_recipes = [entry["recipe"] for entry in self.lineage["rl"]]
        for sft_amount, rl_amount in budget["split"]:
            parents = [start]
            if sft_amount:
                spent = spending(recipes["sft"], self.lineage["sft"], sft_amount, counted)
                parents = [self._add_rungs(start, condition, "sft", name, [epochs])[epochs] for name, epochs in spent]
            for parent in parents if rl_amount else []:
                for name, epochs in spending(recipes["rl"], rl_recipes, rl_amount, counted):
                    self._add_rungs(parent, condition, "rl", name, [epochs])

    def _add_rungs(
        self, parent: Model, condition: Condition, kind: str, name: str, only: Iterable[int] | None = None
    ) -> dict[int, Model]:
        """Add the models of an SFT or RL recipe that start from `parent`; returns them by epochs.

        With `only`, the models of these epochs, and in a ladder also the rungs below, which they continue.
        """
        recipe = self.config["recipes"][kind][name]
        ladder = is_ladder(recipe)
        wanted = set(recipe["epochs"] if only is None else only)
        folder = parent.path if parent.task else f"{parent.path}/{condition.folder}"
        rungs: dict[int, Model] = {}
        previous: str | None = None
        for epochs in recipe["epochs"]:
            if epochs not in wanted and not (ladder and epochs < max(wanted)):
                continue
            stage: dict[str, Any] = {"kind": kind, "recipe": name, "epochs": epochs, "previous": previous}
            stage |= {kind: name, f"{kind}_epochs": epochs}
            path = f"{folder}/{kind}-{name}/e{epochs}"
            model = replace(parent, path=path, parent=parent.path, **condition._asdict(), **stage)
            rungs[epochs] = self._add(model)
            previous = rungs[epochs].path if ladder else None
        return rungs

    def _add(self, model: Model) -> Model:
        """The model of that path, added if it is new."""
        return self.models.setdefault(model.path, model)
