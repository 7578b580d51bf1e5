"""Which models of a study each claim of arXiv:2606.16517 compares: one function a claim.

The paper has six findings. Two of them have two statements, which are claims of their own here, so there are eight.
`cisterna.report.comparisons` has the words for comparisons. Not for effects and verdicts
(`cisterna.report.findings`).
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from cisterna.artifacts import files
from cisterna.constants import TEST_SPLITS
from cisterna.ops import cost
from cisterna.report import budgets
from cisterna.report.comparisons import (
    BOTH,
    GAP,
    Arm,
    Claim,
    Contrast,
    Evaluated,
    Part,
    Shape,
    Share,
    ascending,
    evaluated_models,
    gain,
    grouped,
    mean,
    one,
    origin,
    setting,
    sft_ladders,
    stage,
)
from cisterna.study import Model, Study

FIRST = (2, 4)  # epochs of RL in which most of its gain comes, and
WHOLE = 2  # how many times as many the whole training has at least: else half of the gain is little to ask
BRIEF = 3  # epochs of SFT at most, and at most half of the budget
LARGER = 1.5  # times the parameters: a smaller difference does not make a stronger backbone
RUNGS = 3  # that a curve has at least: two make a straight line

Whole = Callable[[Iterable[Contrast]], tuple[Contrast, ...]]


def claims(study: Study, present: Collection[tuple[str, str]]) -> list[Claim]:
    """The claims, each with the contrasts whose evaluations are all ``present``: (task, path of the model).

    A contrast that lacks one evaluation is left out: the best of the remaining rivals would be another comparison.
    """
    evaluated = evaluated_models(study)

    def whole(contrasts: Iterable[Contrast]) -> tuple[Contrast, ...]:
        return tuple(c for c in contrasts if all((c.task, path) in present for arm in c.arms for path, _ in arm))

    return [
        _sft_specializes(evaluated, whole),
        _rl_recovers_ood(evaluated, whole),
        _rl_gains_early(evaluated, whole),
        _cpt_helps(evaluated, whole),
        _cpt_raises_gains(evaluated, whole),
        _stronger_backbone(study, evaluated, whole),
        _asymmetric_ranks(study, evaluated, whole),
        _brief_sft_best(study, whole),
    ]


# --- 1. SFT raises ID and lowers OOD ---


def _sft_specializes(evaluated: Evaluated, whole: Whole) -> Claim:
    needs = "an SFT recipe with two or more rungs"
    ladders = whole(_ladders(evaluated))
    rises = tuple(Contrast(c.task, c.setting, c.seed, c.rivals, dict([next(iter(c.ours.items()))])) for c in ladders)
    return Claim(
        "sft_specializes",
        "SFT raises ID, while OOD peaks early and then falls",
        True,
        (
            Part("sft_raises_id", "id", "last rung minus first rung of SFT", needs, rises),
            Part(
                "ood_lost_from_peak",
                "ood",
                "OOD lost from its peak to the end: best earlier rung of SFT minus the last rung",
                needs,
                ladders,
            ),
        ),
    )


def _ladders(evaluated: Evaluated) -> Iterable[Contrast]:
    for (task, seed, *_), rungs in sft_ladders(evaluated).items():
        *earlier, last = rungs.values()
        if earlier:
            words = setting(last, stage("SFT", last.sft), f"rungs {', '.join(map(str, rungs))}")
            ours = {f"e{m.sft_epochs}": one(m.path) for m in earlier}
            yield Contrast(task, words, seed, ours, {f"e{last.sft_epochs}": one(last.path)})


# --- 2. RL recovers OOD from strong SFT, most of it in its first epochs ---


def _rl_recovers_ood(evaluated: Evaluated, whole: Whole) -> Claim:
    return Claim(
        "rl_recovers_ood",
        "RL from strong SFT recovers OOD",
        True,
        (
            Part(
                "rl_from_strong_sft",
                "ood",
                "RL from strong SFT minus the checkpoint it began from",
                "RL from the last rung of SFT, or from a late and an early one",
                whole(_strong(evaluated)),
            ),
            Part(
                "rl_strong_against_early",
                "ood",
                "gain of RL from strong SFT minus gain of the same RL from the earliest rung",
                "the same RL recipe from a late rung of an SFT recipe and from an earlier one",
                whole(_strong_against_early(evaluated)),
                decides=False,
            ),
            Part(
                "rl_strong_against_cold",
                "ood",
                "RL from strong SFT minus the same RL from cold (levels: its parent knows no form of answer)",
                "the same RL recipe from strong SFT and from cold",
                whole(_strong_against_cold(evaluated)),
                decides=False,
            ),
        ),
    )


def _rl_gains_early(evaluated: Evaluated, whole: Whole) -> Claim:
    low, high = FIRST
    pairs = [
        (early, full)
        for early, full in _first_and_whole(evaluated)
        if whole([early]) and whole([full])  # a share needs both
    ]
    return Claim(
        "rl_gains_early",
        f"Most of what RL from strong SFT gains on OOD comes in its first {low} to {high} epochs",
        True,
        (
            Share(
                "rl_gains_early_ood",
                "ood",
                f"RL after its first {low} to {high} epochs minus the middle between its start and its end",
                f"RL from strong SFT with a rung of {low} to {high} epochs and one of {WHOLE} times as many or more",
                tuple(early for early, _ in pairs),
                gains=tuple(full for _, full in pairs),
            ),
        ),
    )


def _rl(evaluated: Evaluated) -> dict[Any, dict[int, Model]]:
    """(origin, SFT recipe or None, RL recipe, RL rung) -> SFT rung that RL started from -> model, ascending."""
    rl = [(task, m) for task, m in evaluated if m.kind == "rl"]
    return ascending(((*origin(task, m), m.sft, m.rl, m.rl_epochs), m.sft_epochs, m) for task, m in rl)


def _strong_starts(evaluated: Evaluated) -> Iterable[tuple[Any, dict[int, Model], Model, str]]:
    """Key and models of ``_rl``, the one of them whose RL started from strong SFT, and its setting in words.

    Strong SFT has the most epochs from which any RL of the same origin started, whatever the recipes, provided that
    other RL started from fewer, or that no SFT of this origin has more.
    """
    begun: dict[Any, set[int]] = defaultdict(set)
    trained: dict[Any, set[int]] = defaultdict(set)
    for task, m in evaluated:
        if m.sft is not None:
            (begun if m.kind == "rl" else trained)[origin(task, m)].add(m.sft_epochs)
    for key, starts in _rl(evaluated).items():
        *where, sft, _, _ = key
        epochs = begun[tuple(where)]
        strong = starts.get(max(epochs)) if sft is not None else None
        if strong is not None and (len(epochs) > 1 or max(epochs) >= max(trained[tuple(where)])):
            words = setting(strong, stage("SFT", sft, strong.sft_epochs), stage("RL", strong.rl, strong.rl_epochs))
            yield key, starts, strong, words


def _strong(evaluated: Evaluated) -> Iterable[Contrast]:
    for (task, seed, *_), _, strong, words in _strong_starts(evaluated):
        yield Contrast(task, words, seed, {"RL": one(strong.path)}, {"parent": one(strong.parent)})


def _strong_against_early(evaluated: Evaluated) -> Iterable[Contrast]:
    for (task, seed, *_), starts, strong, words in _strong_starts(evaluated):
        early = next(iter(starts.values()))
        if early is not strong:
            ours = {f"from e{strong.sft_epochs}": gain(strong)}
            yield Contrast(task, words, seed, ours, {f"from e{early.sft_epochs}": gain(early)})


def _strong_against_cold(evaluated: Evaluated) -> Iterable[Contrast]:
    starts = _rl(evaluated)
    for (task, seed, *where, _, rl, epochs), _, strong, words in _strong_starts(evaluated):
        cold = starts.get((task, seed, *where, None, rl, epochs))
        if cold:
            yield Contrast(task, words, seed, {"from SFT": one(strong.path)}, {"cold": one(cold[0].path)})


def _first_and_whole(evaluated: Evaluated) -> Iterable[tuple[Contrast, Contrast]]:
    """For RL from strong SFT: its first epochs against half of its way, and the whole way."""
    ladders = ascending((key[:-1], m.rl_epochs, m) for key, _, m, _ in _strong_starts(evaluated))
    for (task, seed, *_), rungs in ladders.items():
        last = rungs[max(rungs)]
        first = [m for epochs, m in rungs.items() if FIRST[0] <= epochs <= min(FIRST[1], last.rl_epochs / WHOLE)]
        if first:
            early = first[-1]
            words = setting(
                last,
                stage("SFT", last.sft, last.sft_epochs),
                f"{stage('RL', last.rl, early.rl_epochs)} of e{last.rl_epochs}",
            )
            middle = ((str(last.parent), 0.5), (last.path, 0.5))
            yield (
                Contrast(task, words, seed, {"first epochs": one(early.path)}, {"half of the way": middle}),
                Contrast(task, words, seed, {"all epochs": one(last.path)}, {"parent": one(last.parent)}),
            )


# --- 3. CPT makes SFT and RL work better, OOD above all ---


def _cpt_helps(evaluated: Evaluated, whole: Whole) -> Claim:
    title = "after the same SFT, start from CPT minus start from the base model"
    needs = "SFT of the same recipe, rung and seed from a CPT model and from its base model"
    contrasts = whole(_cpt(evaluated, "sft", lambda model: one(model.path)))
    levels = [Part(f"cpt_helps_{split}", split, title, needs, contrasts) for split in TEST_SPLITS]
    more = Part("cpt_helps_ood_more", GAP, f"{title}: on OOD minus on ID", needs, contrasts, decides=False)
    return Claim("cpt_helps", "Continued pre-training helps downstream", False, (*levels, more))


def _cpt_raises_gains(evaluated: Evaluated, whole: Whole) -> Claim:
    of_stage = {kind: whole(_cpt(evaluated, kind, gain)) for kind in ("sft", "rl")}
    return Claim(
        "cpt_raises_gains",
        "Continued pre-training raises what SFT and RL add on OOD",
        True,
        tuple(
            Part(
                f"cpt_raises_{kind}_gain_{split}",
                split,
                f"what {kind.upper()} adds to its parent, start from CPT minus start from the base model",
                f"{words} of the same recipe, rung and seed from a CPT model and from its base model",
                of_stage[kind],
                decides=split == "ood",
            )
            for split in ("ood", "id")
            for kind, words in (("sft", "SFT"), ("rl", "SFT, and RL from it,"))
        ),
    )


def _cpt(evaluated: Evaluated, kind: str, arm: Callable[[Model], Arm]) -> Iterable[Contrast]:
    """SFT models, or RL models with SFT before it, with CPT against the same without."""
    same = grouped(
        ((*_without_cpt(task, m), m.sft, m.sft_epochs, m.rl, m.rl_epochs), m.cpt, m)
        for task, m in evaluated
        if m.kind == kind and m.sft is not None
    )
    for (task, seed, *_), starts in same.items():
        for cpt, m in starts.items():
            if cpt is not None and None in starts:
                stages = [stage("SFT", m.sft, m.sft_epochs), *([stage("RL", m.rl, m.rl_epochs)] if m.rl else [])]
                yield Contrast(task, setting(m, *stages), seed, {"CPT": arm(m)}, {"no CPT": arm(starts[None])})


def _without_cpt(task: str, m: Model) -> tuple[Any, ...]:
    return task, m.seed, m.backbone, m.sequences, m.encoder


# --- 4. A stronger backbone raises the level and keeps the shape ---


def _stronger_backbone(study: Study, evaluated: Evaluated, whole: Whole) -> Claim:
    needs = (
        f"two backbones, one with {LARGER:g} times the parameters of the other (the config or the name says how many), "
        "with the same SFT recipe and rungs on the same task"
    )
    contrasts = whole(_backbones(study, evaluated))
    curves = tuple(c for c in contrasts if len(next(iter(c.ours.values()))) >= RUNGS)
    levels = [
        Part(f"stronger_backbone_{split}", split, "larger backbone minus smaller, mean over rungs", needs, contrasts)
        for split in TEST_SPLITS
    ]
    shapes = [
        Shape(
            f"backbones_same_shape_{split}",
            split,
            "largest difference between the curves of two backbones over rungs, each minus its mean",
            f"{needs}, {RUNGS} rungs or more",
            curves,
        )
        for split in TEST_SPLITS
    ]
    return Claim(
        "stronger_backbone",
        "A stronger backbone raises the level and keeps the shape of the curves",
        True,
        (*levels, *shapes),
    )


def _backbones(study: Study, evaluated: Evaluated) -> Iterable[Contrast]:
    """Each pair of SFT ladders that differ in the backbone alone, over the rungs that both have."""
    sizes = {name: cost.parameters(study.config["backbones"][name]) or 0.0 for name in study.backbones}
    ladders = ascending(
        ((task, m.seed, m.cpt, m.sequences, m.encoder, m.sft, m.backbone), m.sft_epochs, m)
        for task, m in evaluated
        if m.kind == "sft"
    )
    same = grouped((key[:-1], key[-1], rungs) for key, rungs in ladders.items())
    for (task, seed, *_), by_backbone in same.items():
        for large, ours in by_backbone.items():
            for small, theirs in by_backbone.items():
                rungs = [epochs for epochs in ours if epochs in theirs]
                if sizes[small] and sizes[large] >= LARGER * sizes[small] and rungs:
                    words = setting(
                        ours[rungs[0]],
                        stage("SFT", ours[rungs[0]].sft),
                        f"rungs {', '.join(map(str, rungs))}",
                        backbone=f"{large} ({_count(sizes[large])}) against {small} ({_count(sizes[small])})",
                    )
                    arms = [mean(models[epochs] for epochs in rungs) for models in (ours, theirs)]
                    yield Contrast(task, words, seed, {large: arms[0]}, {small: arms[1]})


def _count(parameters: float) -> str:
    """A number of parameters in words."""
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M"


# --- 5. LoRA: a high rank for SFT and a low one for RL ---


def _asymmetric_ranks(study: Study, evaluated: Evaluated, whole: Whole) -> Claim:
    contrasts = whole(_ranks(study, evaluated))
    return Claim(
        "asymmetric_ranks",
        "A high LoRA rank for SFT with a low one for RL is best",
        False,
        tuple(
            Part(
                f"asymmetric_ranks_{split}",
                split,
                "high rank of SFT and low rank of RL minus the best other: low-high, low-low, high-high",
                "recipes that differ in their LoRA rank alone, at equal epochs: RL of a lower rank than SFT, and "
                "RL of a higher rank from the same SFT or the same RL from SFT of a lower rank",
                contrasts,
            )
            for split in TEST_SPLITS
        ),
    )


def _ranks(study: Study, evaluated: Evaluated) -> Iterable[Contrast]:
    """The corners of a grid of ranks: high and low are the highest and the lowest of SFT, and of RL."""
    cells: dict[Any, dict[tuple[int, int], Model]] = grouped(
        ((*origin(task, m), m.sft_epochs, m.rl_epochs, *rests), ranks, m)
        for task, m in evaluated
        if m.kind == "rl" and m.sft is not None
        for ranks, rests in [_capacity(study, m)]
        if all(ranks)
    )
    for (task, seed, *_), models in cells.items():
        sft, rl = (sorted({ranks[place] for ranks in models}) for place in (0, 1))
        high, low = sft[-1], rl[0]
        corners = {"low-high": (sft[0], rl[-1]), "low-low": (sft[0], low), "high-high": (high, rl[-1])}
        kinds = {"low-high": sft[0] < high and low < rl[-1], "low-low": sft[0] < high, "high-high": low < rl[-1]}
        rivals = {name: ranks for name, ranks in corners.items() if kinds[name] and ranks in models}
        if low < high and (high, low) in models and rivals:
            m = models[high, low]
            against = ", ".join(f"{name} ({ranks[0]} and {ranks[1]})" for name, ranks in rivals.items())
            words = setting(
                m,
                f"{stage('SFT', m.sft, m.sft_epochs)} of rank {high}",
                f"{stage('RL', m.rl, m.rl_epochs)} of rank {low} against {against}",
            )
            arms = {name: one(models[ranks].path) for name, ranks in rivals.items()}
            yield Contrast(task, words, seed, {"high-low": one(m.path)}, arms)


def _capacity(study: Study, model: Model) -> tuple[tuple[int, int], tuple[str, str]]:
    """LoRA ranks of SFT and of RL, 0 without LoRA; and the rest of both recipes, without their rungs."""
    ranks, rests = [], []
    for kind, name in (("sft", model.sft), ("rl", model.rl)):
        recipe = dict(study.recipe(kind, str(name)))
        lora: Mapping[str, Any] = recipe.pop("lora", None) or {}
        rest = {key: value for key, value in lora.items() if key not in ("r", "lora_alpha")}
        ranks.append(int(lora.get("r") or 0))
        rests.append(files.digest({key: value for key, value in recipe.items() if key != "epochs"} | {"lora": rest}))
    return (ranks[0], ranks[1]), (rests[0], rests[1])


# --- 6. At a fixed budget: brief SFT, then RL ---


def _brief_sft_best(study: Study, whole: Whole) -> Claim:
    contrasts = whole(_budgets(study))
    title = f"1 to {BRIEF} epochs of SFT, then as much RL or more, minus the best other split of the same budget"
    needs = (
        "lineages with the same sum of SFT and RL epochs (or examples), of which one has both stages, "
        f"at most {BRIEF} epochs of SFT, and as much RL or more"
    )
    trade = Part("brief_sft_best", BOTH, f"{title}: mean of ID and OOD", needs, contrasts)
    splits = [Part(f"brief_sft_best_{split}", split, title, needs, contrasts, decides=False) for split in TEST_SPLITS]
    return Claim("brief_sft_best", "Brief SFT and more RL is best at a fixed budget", True, (trade, *splits))


def _budgets(study: Study) -> Iterable[Contrast]:
    for (unit, total, recipes, (task, seed, *_)), splits in budgets.allocations(study).items():
        arms: tuple[dict[str, Arm], dict[str, Arm]] = {}, {}
        for (sft, rl), m in splits.items():
            brief = 0 < sft <= rl and m.sft_epochs <= BRIEF
            arms[not brief][budgets.split_words(sft, rl)] = one(m.path)
        ours, rivals = arms
        if ours and rivals:
            words = f"{recipes} · {total} {unit}, {', '.join(ours)} against {', '.join(rivals)}"
            yield Contrast(task, words, seed, ours, rivals)
