"""What a claim consists of: parts, contrasts and arms; and which models may be compared at all.

A claim has one or more *parts*, each one comparison on one split. A part consists of *contrasts*: in one task, setting
and seed, an arm, or the best of several, is compared with one or more rivals. A *setting* is what both sides have in
common for all seeds: backbone, form of the sequences, recipes, rungs (checkpoints of a run, by epochs).

Not for the claims themselves (`cisterna.report.claims`), not for effects (`cisterna.report.effects`).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cisterna.study import Model, Study

BOTH, GAP = "id_and_ood", "ood_minus_id"
MIXTURES = {BOTH: (0.5, 0.5), GAP: (-1.0, 1.0)}  # what is not a split, but made of ID and OOD: their weights

Arm = tuple[tuple[str, float], ...]  # models and their coefficients: one model, or a model minus its parent
Evaluated = Sequence[tuple[str, Model]]  # (task, model) of every evaluation that a study asks for


@dataclass(frozen=True)
class Contrast:
    """In one task, setting and seed: ``ours``, or the best of them, is compared with the best of ``rivals``."""

    task: str
    setting: str
    seed: int
    ours: Mapping[str, Arm]
    rivals: Mapping[str, Arm]

    @property
    def arms(self) -> tuple[Arm, ...]:
        """All arms of both sides."""
        return (*self.ours.values(), *self.rivals.values())


@dataclass(frozen=True)
class Part:
    """One comparison on one split (or one of MIXTURES): ours minus rival, which is above 0 if the claim is true."""

    name: str
    split: str
    title: str
    needs: str  # what a study must contain for this comparison
    contrasts: tuple[Contrast, ...]
    decides: bool = True  # the verdict of the claim rests on it


@dataclass(frozen=True)
class Share(Part):
    """A part that is true if ours is more than half of a gain, where there is a gain.

    ``contrasts`` compare ours with the middle between the parent and the end of training, ``gains`` the end with the
    parent.
    """

    gains: tuple[Contrast, ...] = ()


@dataclass(frozen=True)
class Shape(Part):
    """A part that is true if two curves have the same shape: centred, they differ by less than a margin everywhere.

    Each contrast has one arm a side. Both have one model for each rung, in the same order.
    """


@dataclass(frozen=True)
class Claim:
    """A claim of the paper. ``conjunction``: the claim is that all deciding parts are true, not that some are."""

    name: str
    title: str
    conjunction: bool
    parts: tuple[Part, ...]


def evaluated_models(study: Study) -> Evaluated:
    """(task, model) of every evaluation that the study asks for."""
    return [(task, study.model(path)) for _, path, task in study.evaluations()]


def one(path: str | None) -> Arm:
    """The arm of one model."""
    return ((str(path), 1.0),)


def gain(model: Model) -> Arm:
    """A model minus the model that its stage started from."""
    return ((model.path, 1.0), (str(model.parent), -1.0))


def mean(models: Iterable[Model]) -> Arm:
    """The mean of models, in their order."""
    paths = [model.path for model in models]
    return tuple((path, 1 / len(paths)) for path in paths)


def origin(task: str, model: Model) -> tuple[Any, ...]:
    """What the models of one comparison have in common, whatever their stages."""
    return task, model.seed, model.backbone, model.cpt, model.sequences, model.encoder


def setting(model: Model, *more: str, backbone: str | None = None) -> str:
    """A setting in words; ``backbone`` has other words for that of the model."""
    form = [] if model.sequences == "tokens" else [f"{model.sequences} of {model.encoder}"]
    return " · ".join([backbone or model.backbone, *form, f"CPT {model.cpt}" if model.cpt else "no CPT", *more])


def stage(kind: str, recipe: str | None, epochs: int | str = "") -> str:
    """A stage in words."""
    return f"{kind} {recipe}" + (f" e{epochs}" if epochs else "")


def grouped(items: Iterable[tuple[Any, Any, Any]]) -> dict[Any, dict[Any, Any]]:
    """(key, name, value) -> key -> name -> value."""
    groups: dict[Any, dict[Any, Any]] = defaultdict(dict)
    for key, name, value in items:
        groups[key][name] = value
    return groups


def ascending(items: Iterable[tuple[Any, int, Model]]) -> dict[Any, dict[int, Model]]:
    """(key, epochs, model) -> key -> epochs, ascending -> model."""
    return {key: dict(sorted(models.items())) for key, models in grouped(items).items()}


def sft_ladders(evaluated: Evaluated) -> dict[Any, dict[int, Model]]:
    """(origin, SFT recipe) -> epochs, ascending -> model."""
    return ascending(((*origin(task, m), m.sft), m.sft_epochs, m) for task, m in evaluated if m.kind == "sft")
