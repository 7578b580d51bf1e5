"""Which models of a study each claim of arXiv:2606.16517 compares.

A claim has one or more *parts*, each one comparison on one split. A part consists of *contrasts*: in one task, setting
and seed, a fixed arm is compared with one or more rivals. A *setting* is what both arms have in common for all seeds:
backbone, form of the sequences, recipes, rungs (checkpoints of a run, by epochs).

Not for effects and verdicts (``cisterna.report.findings``).
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cisterna.artifacts import files
from cisterna.constants import TEST_SPLITS
from cisterna.study import Model, Study

SIZES = ("epochs", "fraction", "examples")  # keys of a recipe that say how much is trained, not how

Arm = tuple[tuple[str, float], ...]  # models and their coefficients: one model, or a model minus its parent
Evaluated = Sequence[tuple[str, Model]]  # (task, model) of every evaluation that a study asks for
Budgets = dict[tuple[Any, ...], dict[tuple[int, int], Model]]


@dataclass(frozen=True)
class Contrast:
    """In one task, setting and seed: ``fixed`` is compared with each of ``rivals``, which have names."""

    task: str
    setting: str
    seed: int
    fixed: Arm
    rivals: Mapping[str, Arm]


@dataclass(frozen=True)
class Part:
    """One comparison on one split, whose effect is above 0 if the claim is true.

    The effect is fixed minus best rival, or with ``sign`` -1 best rival minus fixed.
    """

    name: str
    split: str
    title: str
    needs: str  # what a study must contain for this comparison
    contrasts: tuple[Contrast, ...]
    sign: int = 1
    decides: bool = True  # the verdict of the claim rests on it


@dataclass(frozen=True)
class Claim:
    """A claim of the paper. ``conjunction``: the claim is that all parts are true, not that some are."""

    name: str
    title: str
    conjunction: bool
    parts: tuple[Part, ...]


def claims(study: Study, present: Collection[tuple[str, str]]) -> list[Claim]:
    """The claims, each with the contrasts whose evaluations are all ``present``: (task, path of the model).

    A contrast that lacks one evaluation is left out: the best of the remaining rivals would be another comparison.
    """
    evaluated = evaluated_models(study)

    def whole(contrasts: Iterable[Contrast]) -> tuple[Contrast, ...]:
        return tuple(
            one
            for one in contrasts
            if all((one.task, path) in present for arm in (one.fixed, *one.rivals.values()) for path, _ in arm)
        )

    ladders = whole(_ladders(evaluated))
    first_and_last = tuple(replace(one, rivals=dict([next(iter(one.rivals.items()))])) for one in ladders)
    rungs = "an SFT recipe with two or more rungs"

    def both(name: str, title: str, needs: str, contrasts: Iterable[Contrast]) -> tuple[Part, ...]:
        kept = whole(contrasts)
        return tuple(Part(f"{name}_{split}", split, title, needs, kept) for split in TEST_SPLITS)

    def ood(name: str, title: str, needs: str, contrasts: Iterable[Contrast], decides: bool = False) -> Part:
        return Part(name, "ood", title, needs, whole(contrasts), decides=decides)

    helps = both(
        "cpt_helps",
        "after the same SFT, start from CPT minus start from the base model",
        "SFT of the same recipe, rung and seed from a CPT model and from its base model",
        _cpt(evaluated),
    )
    specializes = (
        Part("sft_raises_id", "id", "last rung minus first rung of SFT", rungs, first_and_last),
        Part("ood_peaks_early", "ood", "best earlier rung of SFT minus the last rung", rungs, ladders, sign=-1),
    )
    recovers = (
        ood(
            "rl_from_strong_sft",
            "RL from strong SFT minus the checkpoint it began from",
            "RL from the last rung of SFT, or from a late and an early one",
            _strong(evaluated),
            decides=True,
        ),
        ood(
            "rl_strong_against_early",
            "gain of RL from strong SFT minus gain of the same RL from the earliest rung",
            "the same RL recipe from a late rung of an SFT recipe and from an earlier one",
            _strong_against_early(evaluated),
        ),
        ood(
            "rl_strong_against_cold",
            "RL from strong SFT minus the same RL from cold (levels: its parent knows no form of answer)",
            "the same RL recipe from strong SFT and from cold",
            _strong_against_cold(evaluated),
        ),
    )
    brief = both(
        "brief_sft_best",
        "fewest SFT and most RL (both at least once) minus the best other split of the same budget",
        "lineages with the same sum of SFT and RL epochs (or examples), of which one has both stages",
        _budgets(study),
    )
    ranks = both(
        "asymmetric_ranks",
        "RL of a lower rank than SFT minus RL of the same rank as SFT",
        "RL recipes that differ in their LoRA rank alone, from the same SFT rung: one of its rank, one below",
        _ranks(study, evaluated),
    )
    return [
        Claim("cpt_helps", "Continued pre-training helps downstream", False, helps),
        Claim("sft_specializes", "SFT raises ID, while OOD peaks early and then falls", True, specializes),
        Claim("rl_recovers_ood", "RL from strong SFT recovers OOD", True, recovers),
        Claim("brief_sft_best", "Brief SFT and more RL is best at a fixed budget", False, brief),
        Claim("asymmetric_ranks", "Asymmetric LoRA ranks beat symmetric ones", False, ranks),
    ]


def evaluated_models(study: Study) -> Evaluated:
    """(task, model) of every evaluation that the study asks for."""
    return [(task, study.model(path)) for _, path, task in study.evaluations()]


def _one(path: str) -> Arm:
    return ((path, 1.0),)


def _gain(model: Model) -> Arm:
    return ((model.path, 1.0), (str(model.parent), -1.0))


def _origin(task: str, model: Model) -> tuple[Any, ...]:
    """What the models of one comparison have in common, whatever their stages."""
    return task, model.seed, model.backbone, model.cpt, model.sequences, model.encoder


def _setting(model: Model, *more: str) -> str:
    """A setting in words."""
    form = [] if model.sequences == "tokens" else [f"{model.sequences} of {model.encoder}"]
    return " · ".join([model.backbone, *form, f"CPT {model.cpt}" if model.cpt else "no CPT", *more])


def _stage(kind: str, recipe: str | None, epochs: int | str = "") -> str:
    return f"{kind} {recipe}" + (f" e{epochs}" if epochs else "")


def _grouped(items: Iterable[tuple[Any, Any, Any]]) -> dict[Any, dict[Any, Any]]:
    """(key, name, value) -> key -> name -> value."""
    groups: dict[Any, dict[Any, Any]] = defaultdict(dict)
    for key, name, value in items:
        groups[key][name] = value
    return groups


def _cpt(evaluated: Evaluated) -> Iterable[Contrast]:
    same = _grouped(
        ((task, m.seed, m.backbone, m.sequences, m.encoder, m.sft, m.sft_epochs), m.cpt, m)
        for task, m in evaluated
        if m.kind == "sft"
    )
    for (task, seed, *_), starts in same.items():
        for cpt, model in starts.items():
            if cpt is not None and None in starts:
                setting = _setting(model, _stage("SFT", model.sft, model.sft_epochs))
                yield Contrast(task, setting, seed, _one(model.path), {"no CPT": _one(starts[None].path)})


def _ascending(items: Iterable[tuple[Any, int, Model]]) -> dict[Any, dict[int, Model]]:
    """(key, epochs, model) -> key -> epochs, ascending -> model."""
    return {key: dict(sorted(models.items())) for key, models in _grouped(items).items()}


def _ladders(evaluated: Evaluated) -> Iterable[Contrast]:
    ladders = _ascending(((*_origin(task, m), m.sft), m.sft_epochs, m) for task, m in evaluated if m.kind == "sft")
    for (task, seed, *_), rungs in ladders.items():
        *earlier, last = rungs.values()
        if earlier:
            setting = _setting(last, _stage("SFT", last.sft), f"rungs {', '.join(map(str, rungs))}")
            yield Contrast(task, setting, seed, _one(last.path), {f"e{m.sft_epochs}": _one(m.path) for m in earlier})


def _rl(evaluated: Evaluated) -> dict[Any, dict[int, Model]]:
    """(origin, SFT recipe or None, RL recipe, RL rung) -> SFT rung that RL started from -> model, ascending."""
    rl = [(task, m) for task, m in evaluated if m.kind == "rl"]
    return _ascending(((*_origin(task, m), m.sft, m.rl, m.rl_epochs), m.sft_epochs, m) for task, m in rl)


def _strong_starts(evaluated: Evaluated) -> Iterable[tuple[Any, dict[int, Model], Model, str]]:
    """Key and models of ``_rl``, the one of them whose RL started from strong SFT, and its setting in words.

    Strong SFT has the most epochs from which any RL of the same origin started, whatever the recipes, provided that
    other RL started from fewer, or that no SFT of this origin has more.
    """
    begun: dict[Any, set[int]] = defaultdict(set)
    trained: dict[Any, set[int]] = defaultdict(set)
    for task, m in evaluated:
        if m.sft is not None:
            (begun if m.kind == "rl" else trained)[_origin(task, m)].add(m.sft_epochs)
    for key, starts in _rl(evaluated).items():
        *where, sft, _, _ = key
        epochs = begun[tuple(where)]
        strong = starts.get(max(epochs)) if sft is not None else None
        if strong is not None and (len(epochs) > 1 or max(epochs) >= max(trained[tuple(where)])):
            setting = _setting(strong, _stage("SFT", sft, strong.sft_epochs), _stage("RL", strong.rl, strong.rl_epochs))
            yield key, starts, strong, setting


def _strong(evaluated: Evaluated) -> Iterable[Contrast]:
    for (task, seed, *_), _, strong, setting in _strong_starts(evaluated):
        yield Contrast(task, setting, seed, _one(strong.path), {"parent": _one(str(strong.parent))})


def _strong_against_early(evaluated: Evaluated) -> Iterable[Contrast]:
    for (task, seed, *_), starts, strong, setting in _strong_starts(evaluated):
        early = next(iter(starts.values()))
        if early is not strong:
            yield Contrast(task, setting, seed, _gain(strong), {f"from e{early.sft_epochs}": _gain(early)})


def _strong_against_cold(evaluated: Evaluated) -> Iterable[Contrast]:
    starts = _rl(evaluated)
    for (task, seed, *origin, _, rl, epochs), _, strong, setting in _strong_starts(evaluated):
        cold = starts.get((task, seed, *origin, None, rl, epochs))
        if cold:
            yield Contrast(task, setting, seed, _one(strong.path), {"cold": _one(cold[0].path)})


def allocations(study: Study) -> Budgets:
    """(unit, total, setting, origin) -> (SFT, RL) in that unit -> model, for every budget with two splits or more.

    A budget in epochs compares splits of one SFT and one RL recipe. A budget in examples (a pass over one training
    example counts 1) compares splits of recipes that differ only in how much is trained; if two models have the same
    split, the one with fewer epochs is used. A budget in examples is left out if all its models are in one budget in
    epochs: it is the same comparison.
    """
    stages = _grouped((_origin(task, m), m.path, m) for task, m in evaluated_models(study) if m.kind in ("sft", "rl"))
    budgets: Budgets = {}
    for origin, models in stages.items():
        ordered = sorted(models.values(), key=lambda m: m.sft_epochs + m.rl_epochs)
        pairs = {(m.sft, m.rl) for m in ordered if m.sft and m.rl}
        for sft, rl in sorted(pairs):
            mine = [m for m in ordered if m.sft in (sft, None) and m.rl in (rl, None)]
            setting = _setting(mine[0], _stage("SFT", sft) + _share(study, origin[0], "sft", sft))
            setting += f" · {_stage('RL', rl)}{_share(study, origin[0], 'rl', rl)}"
            _fill(budgets, "epochs", setting, origin, ((m.sft_epochs, m.rl_epochs, m) for m in mine))
        in_epochs = [{m.path for m in splits.values()} for key, splits in budgets.items() if key[3] == origin]
        families = {(_family(study, "sft", m.sft), _family(study, "rl", m.rl)) for m in ordered if m.sft and m.rl}
        for number, (sft, rl) in enumerate(sorted(families)):
            mine = [
                m
                for m in ordered
                if (not m.sft or _family(study, "sft", m.sft) == sft) and (not m.rl or _family(study, "rl", m.rl) == rl)
            ]
            setting = _setting(mine[0], *([f"recipes {number + 1}"] if len(families) > 1 else []))
            counted: Budgets = {}
            passes = ((_examples(study, m), m) for m in mine)
            _fill(counted, "examples", setting, origin, ((*seen, m) for seen, m in passes if seen))
            for key, splits in counted.items():
                if not any({m.path for m in splits.values()} <= paths for paths in in_epochs):
                    budgets[key] = splits
    return budgets


def _fill(
    budgets: Budgets, unit: str, setting: str, origin: tuple[Any, ...], models: Iterable[tuple[int, int, Model]]
) -> None:
    """Add the budgets of one setting that can be split in two ways or more, one of them with both stages."""
    totals: dict[int, dict[tuple[int, int], Model]] = defaultdict(dict)
    for sft, rl, model in models:
        totals[sft + rl].setdefault((sft, rl), model)
    for total, splits in sorted(totals.items()):
        if len(splits) > 1 and any(sft and rl for sft, rl in splits):
            budgets[unit, total, setting, origin] = dict(sorted(splits.items()))


def _family(study: Study, kind: str, name: str | None) -> str:
    """A recipe without what says how much is trained."""
    recipe = study.recipe(kind, str(name))
    return files.digest({key: value for key, value in recipe.items() if key not in SIZES})


def _examples(study: Study, model: Model) -> tuple[int, int] | None:
    """Passes over a training example in SFT and in RL; None if the config does not say how many examples there are."""
    passes = []
    for kind, name, epochs in (("sft", model.sft, model.sft_epochs), ("rl", model.rl, model.rl_epochs)):
        examples = _epoch(study, str(model.task), kind, name)[0] if name else 0
        if examples is None:
            return None
        passes.append(epochs * examples)
    return passes[0], passes[1]


def _epoch(study: Study, task: str, kind: str, name: str) -> tuple[int | None, int | None]:
    """Training examples in an epoch of a recipe, and in all of train; None if the config does not say."""
    recipe, train = study.recipe(kind, name), study.config["tasks"][task].get("train")
    train = train if isinstance(train, int) else None
    return recipe.get("examples") or (round(train * recipe.get("fraction", 1.0)) if train else None), train


def _share(study: Study, task: str, kind: str, name: str) -> str:
    """Words for an epoch that is less than all of train."""
    examples, train = _epoch(study, task, kind, name)
    return f" ({examples} of {train} examples an epoch)" if examples and train and examples < train else ""


def split_words(sft: int, rl: int) -> str:
    """A split of a budget in words."""
    return f"{sft} SFT + {rl} RL"


def _budgets(study: Study) -> Iterable[Contrast]:
    for (unit, total, recipes, (task, seed, *_)), splits in allocations(study).items():
        brief = min(split for split in splits if all(split))
        rivals = {split_words(*split): _one(m.path) for split, m in splits.items() if split != brief}
        setting = f"{recipes} · {total} {unit}, {split_words(*brief)} against {', '.join(rivals)}"
        yield Contrast(task, setting, seed, _one(splits[brief].path), rivals)


def _ranks(study: Study, evaluated: Evaluated) -> Iterable[Contrast]:
    def rank(kind: str, name: str | None) -> int | None:
        return (study.recipe(kind, str(name)).get("lora") or {}).get("r")

    def rest(name: str | None) -> str:
        recipe = study.recipe("rl", str(name))
        lora = {key: value for key, value in recipe["lora"].items() if key not in ("r", "lora_alpha")}
        return files.digest({key: value for key, value in recipe.items() if key != "epochs"} | {"lora": lora})

    adapted = [
        (task, m)
        for task, m in evaluated
        if m.kind == "rl" and m.sft is not None and rank("sft", m.sft) and rank("rl", m.rl)
    ]
    same = _grouped(((*_origin(task, m), m.sft, m.sft_epochs, m.rl_epochs, rest(m.rl)), m.rl, m) for task, m in adapted)
    for (task, seed, *_), models in same.items():
        ranks = {name: (rank("sft", m.sft) or 0, rank("rl", name) or 0) for name, m in models.items()}
        for low, model in models.items():
            for equal, rival in models.items():
                if ranks[low][1] < ranks[low][0] == ranks[equal][1]:
                    setting = _setting(
                        model,
                        f"{_stage('SFT', model.sft, model.sft_epochs)} of rank {ranks[low][0]}",
                        f"{_stage('RL', low, model.rl_epochs)} of rank {ranks[low][1]} against {_stage('RL', equal)}",
                    )
                    yield Contrast(task, setting, seed, _one(model.path), {"same rank": _one(rival.path)})
