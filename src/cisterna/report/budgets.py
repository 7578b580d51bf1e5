"""The budgets of training that a study divides between SFT and RL: which divisions there are, and what each spends.

For the claim about budgets (`cisterna.report.claims`) and for advice (`cisterna.report.advice`).
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from cisterna.artifacts import files
from cisterna.report import comparisons
from cisterna.study import Model, Study

# Keys of a recipe that say how much is trained, not how. A warm-up is usually a share of the steps.
SIZES = ("epochs", "fraction", "examples", "warmup_steps")

Budgets = dict[tuple[Any, ...], dict[tuple[int, int], Model]]


def allocations(study: Study) -> Budgets:
    """(unit, total, setting, origin) -> (SFT, RL) in that unit -> model, for every budget with two splits or more.

    A budget in epochs compares splits of one SFT and one RL recipe. A budget in examples (a pass over one training
    example counts 1) compares splits of recipes that differ only in how much is trained; if two models have the same
    split, the one with fewer epochs is used. A budget in examples is left out if all its models are in one budget in
    epochs: it is the same comparison.
    """
    stages = comparisons.grouped(
        (comparisons.origin(task, m), m.path, m)
        for task, m in comparisons.evaluated_models(study)
        if m.kind in ("sft", "rl")
    )
    budgets: Budgets = {}
    for origin, models in stages.items():
        ordered = sorted(models.values(), key=lambda m: m.sft_epochs + m.rl_epochs)
        pairs = {(m.sft, m.rl) for m in ordered if m.sft and m.rl}
        for sft, rl in sorted(pairs):
            mine = [m for m in ordered if m.sft in (sft, None) and m.rl in (rl, None)]
            setting = comparisons.setting(mine[0], comparisons.stage("SFT", sft) + _share(study, origin[0], "sft", sft))
            setting += f" · {comparisons.stage('RL', rl)}{_share(study, origin[0], 'rl', rl)}"
            _fill(budgets, "epochs", setting, origin, ((m.sft_epochs, m.rl_epochs, m) for m in mine))
        in_epochs = [{m.path for m in splits.values()} for key, splits in budgets.items() if key[3] == origin]
        families = {(family(study, "sft", m.sft), family(study, "rl", m.rl)) for m in ordered if m.sft and m.rl}
        for number, (sft, rl) in enumerate(sorted(families)):
            mine = [
                m
                for m in ordered
                if (not m.sft or family(study, "sft", m.sft) == sft) and (not m.rl or family(study, "rl", m.rl) == rl)
            ]
            setting = comparisons.setting(mine[0], *([f"recipes {number + 1}"] if len(families) > 1 else []))
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


def family(study: Study, kind: str, name: str | None) -> str:
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
