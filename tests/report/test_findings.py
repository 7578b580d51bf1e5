"""Findings, on simulated answers where the truth is known: planted effects are found, absent ones are not."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cisterna import cli
from cisterna.artifacts import files
from cisterna.errors import UserError
from cisterna.report import claims, findings, statistics
from cisterna.report.findings import ABSENT, CONTRADICTED, PRIMARY, SUPPORTED, UNDECIDED
from cisterna.scoring import answers, gene_ontology, metrics
from cisterna.study import Model, Study, load
from simulated import LABELS, config, flat, odds, simulate, write
from terms import OBO

TASK = "splice-donor"
SHAPES = ("backbones_same_shape_id", "backbones_same_shape_ood")


@cache
def studied(seeds: tuple[int, ...] = (0, 1, 2), tasks: tuple[str, ...] = tuple(LABELS)) -> Study:
    return load(config(seeds, tasks))


def asked(study: Study) -> list[claims.Claim]:
    return claims.claims(study, {(task, path) for _, path, task in study.evaluations()})


def parts(found: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {part["part"]: part for claim in found for part in claim["parts"]}


RUNGS = {"id": (-1.0, -0.2, 0.1, 0.4, 0.8), "ood": (-1.6, 0.4, 0.2, -0.5, -1.2)}  # log odds of base, e1, e2, e4, e8


def as_claimed(model: Model, split: str) -> float:
    """Every claim is true, by 0.4 to 2 log odds."""
    ability = RUNGS[split][[0, 1, 2, 4, 8].index(model.sft_epochs)]
    ability += 1.0 if model.backbone == "mini" else 0
    if model.cpt and model.sft:
        ability += 0.7 if split == "id" else 0.8 if model.sft_epochs == 8 else 1.4
    if model.rl and model.cpt:
        return ability + (1.8 if split == "id" else 3.5)
    if model.rl:
        strong = 0.1 if split == "id" else 1.7
        ability += {0: -0.4, 8: strong}.get(model.sft_epochs, 0.2)
        ability -= 0.7 if model.rl == "same" or model.sft == "thin" else 0
        ability += 1.5 if (model.sft_epochs, model.rl_epochs) == (1, 7) else 0
    return ability


def reversed_claims(model: Model, split: str) -> float:
    """Every claim is false, by as much; but RL has no gain, so nothing is said of when it comes."""
    return 0.3 - as_claimed(model, split)


# The numbers underneath


@pytest.fixture(scope="module")
def answered() -> statistics.Sheet:
    study = studied((0,), (TASK,))
    return simulate(study, as_claimed, np.random.default_rng(5), size=300)[TASK, "ood"]


def words(codes: np.ndarray) -> list[str | None]:
    labels = [*sorted(LABELS[TASK]), None]
    return [labels[code] for code in codes]


def test_unresampled_metrics_are_those_of_the_evaluation(answered: statistics.Sheet) -> None:
    found = answered.values(np.ones((1, len(answered.gold)), dtype=np.float32))
    for row in range(len(answered.models)):
        expected = metrics.score(words(answered.gold), words(answered.predicted[row]), LABELS[TASK], resamples=1)
        for metric in statistics.COMPARED_METRICS:
            assert found[metric][0, row] == pytest.approx(expected[metric]["value"], abs=1e-6)


def test_resampled_differences_are_paired_as_those_of_the_evaluation(answered: statistics.Sheet) -> None:
    drawn = statistics.draw(answered, np.random.default_rng(0), resamples=4000)
    first, second = 1, 5
    expected = metrics.difference(
        words(answered.gold), words(answered.predicted[first]), words(answered.predicted[second]), LABELS[TASK]
    )
    for metric in statistics.COMPARED_METRICS:
        difference = drawn.resampled[metric][:, second] - drawn.resampled[metric][:, first]
        low, high = np.percentile(difference, [2.5, 97.5])
        assert low == pytest.approx(expected[metric]["low"], abs=0.01)
        assert high == pytest.approx(expected[metric]["high"], abs=0.01)


def test_halves_are_disjoint_and_hold_half_of_every_label(answered: statistics.Sheet) -> None:
    first, second = statistics._halves(answered.gold, 50, np.random.default_rng(0))
    assert (first + second == 1).all()
    for label in np.unique(answered.gold):
        mine = first[:, answered.gold == label]
        assert (np.abs(mine.sum(1) - mine.shape[1] / 2) <= 0.5).all()
    assert len(np.unique(first, axis=0)) == 50


@pytest.mark.parametrize(
    ("given", "adjusted"),
    [
        ([], []),
        ([0.04], [0.04]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # as p.adjust of R
        ([0.6, 0.5], [1.0, 1.0]),
    ],
)
def test_holm_is_that_of_the_textbook(given: list[float], adjusted: list[float]) -> None:
    assert statistics.holm(given) == pytest.approx(adjusted)


def test_variance_between_seeds_is_that_of_the_mean_of_seeds() -> None:
    first, second = {0: 0.1, 1: 0.3, 2: 0.2}, {0: 0.5, 1: 0.4, 2: 0.9}
    means = [(first[seed] + second[seed]) / 2 for seed in range(3)]
    assert statistics.seed_variance([first, second]) == (pytest.approx(np.var(means, ddof=1) / 3), 2)
    assert statistics.seed_variance([{0: 0.1}, {0: 0.7}]) == (0.0, 0)


def test_noise_of_several_quantities_has_the_variance_and_the_dependence_of_their_seeds() -> None:
    seeds = range(8)
    rng = np.random.default_rng(1)
    first, other = dict(enumerate(rng.normal(size=8))), dict(enumerate(rng.normal(size=8)))
    twice = {seed: 2 * first[seed] for seed in seeds}
    moved = [statistics.influence([one]) for one in (first, twice, other)]
    draws = statistics.joint_noise(moved, 200_000, rng)
    heavy = 7 / 5  # variance of Student's t with 7 degrees of freedom
    for column, effect in enumerate((first, twice, other)):
        variance, freedom = statistics.seed_variance([effect])
        assert freedom == 7
        assert draws[:, column].var() == pytest.approx(heavy * variance, rel=0.03)
    assert draws[:, 1] == pytest.approx(2 * draws[:, 0])
    observed = np.corrcoef(list(first.values()), list(other.values()))[0, 1]
    assert np.corrcoef(draws[:, 0], draws[:, 2])[0, 1] == pytest.approx(observed, abs=0.02)
    assert not statistics.joint_noise([{0: 0.0}], 3, rng).any()


@pytest.mark.parametrize("examples", [0.0, 0.5, 2.0])
def test_intervals_of_three_seeds_cover_whatever_their_share_of_the_error(examples: float) -> None:
    """95% to 98% where 95% is meant; ``examples`` is the error that all seeds share."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(1000):
        effects = rng.normal(size=3) + examples * rng.normal()
        draws = effects.mean() + examples * rng.normal(size=1000)
        draws += statistics.noise([statistics.seed_variance([dict(enumerate(effects))])], 1000, rng)
        low, high = np.percentile(draws, [2.5, 97.5])
        hits += low <= 0 <= high
    assert 0.93 <= hits / 1000 <= 0.99


def test_weights_of_three_seeds_cover_and_drawing_three_of_three_does_not() -> None:
    rng = np.random.default_rng(1)
    hits, naive = 0, 0
    for _ in range(400):
        effects = rng.normal(size=3)
        low, high = np.percentile(statistics.seed_weights(3, 1000, rng) @ effects, [2.5, 97.5])
        hits += low <= 0 <= high
        low, high = np.percentile(rng.choice(effects, (1000, 3)).mean(1), [2.5, 97.5])
        naive += low <= 0 <= high
    assert 0.92 <= hits / 400 <= 0.98
    assert naive / 400 < 0.85


# What is compared


def contrasts(study: Study, name: str) -> list[claims.Contrast]:
    return [one for claim in asked(study) for part in claim.parts if part.name == name for one in part.contrasts]


def test_strong_sft_is_the_most_that_rl_began_from_where_there_is_less_or_no_more() -> None:
    def strong(rungs: list[int], *begun: tuple[str, list[int]]) -> set[int]:
        given = config((0,), (TASK,))
        sft = given["recipes"]["sft"]["brief"]
        given["recipes"]["sft"] = {"brief": sft | {"epochs": [4]}, "ladder": sft | {"epochs": rungs}}
        rl = [{"tasks": [TASK], "sft": [name], "rl": [{"recipe": "low", "from": starts}]} for name, starts in begun]
        given["lineages"] = [{"tasks": [TASK], "sft": ["ladder"]}, *rl]
        study = load(given)
        return {study.model(one.ours["RL"][0][0]).sft_epochs for one in contrasts(study, "rl_from_strong_sft")}

    assert strong([1, 4, 16], ("brief", [4]), ("ladder", [1, 16])) == {16}
    assert strong([1, 4, 16, 32], ("brief", [4]), ("ladder", [1, 16])) == {16}  # later than the others
    assert strong([1, 4], ("ladder", [4])) == {4}  # the last rung
    assert strong([1, 2, 8], ("ladder", [2])) == set()  # an early start alone


def test_every_claim_compares_the_cells_it_speaks_of() -> None:
    study = studied((0,), (TASK,))
    start = f"models/nano/base/{TASK}/s0"
    ladder = [f"{start}/sft-brief/e{rung}" for rung in (1, 2, 4, 8)]
    found = {
        part.name: [
            tuple({name: [path for path, _ in arm] for name, arm in side.items()} for side in (one.ours, one.rivals))
            for one in part.contrasts
        ]
        for claim in asked(study)
        for part in claim.parts
    }
    first, last = ({f"e{(1, 2, 4, 8)[i]}": [ladder[i]]} for i in (0, 3))
    assert found["sft_raises_id"][0] == (last, first)
    assert found["ood_lost_from_peak"][0] == ({f"e{n}": [ladder[i]] for i, n in enumerate((1, 2, 4))}, last)
    assert len(found["ood_lost_from_peak"]) == 3  # without and with CPT, and of the larger backbone

    thin = f"{start}/sft-thin/e8"
    strong = [f"{ladder[3]}/rl-{name}" for name in ("low/e4", "low/e7", "low/e8", "same/e4")]
    with_cpt = [path.replace("/base/", "/cpt-bio/") for path in strong[:3]]
    thin_rl = [path.replace(ladder[3], thin) for path in strong]
    started = found["rl_from_strong_sft"]
    assert sorted(ours["RL"][0] for ours, _ in started) == sorted(strong + with_cpt + thin_rl)
    assert all(rivals["parent"][0] == ours["RL"][0].rpartition("/rl-")[0] for ours, rivals in started)
    early = [f"{ladder[0]}/rl-low/e{n}" for n in (4, 7, 8)]
    assert found["rl_strong_against_early"] == [
        ({"from e8": [after, ladder[3]]}, {"from e1": [before, ladder[0]]})
        for after, before in zip(strong[:3], early, strict=True)
    ]
    assert found["rl_strong_against_cold"][1] == ({"from SFT": [strong[1]]}, {"cold": [f"{start}/rl-low/e7"]})
    half = {"half of the way": [ladder[3], strong[2]]}
    assert found["rl_gains_early_ood"][0] == ({"first epochs": [strong[0]]}, half)
    assert len(found["rl_gains_early_ood"]) == 3

    twins = [(path.replace("/base/", "/cpt-bio/"), path) for path in ladder]
    assert found["cpt_helps_id"] == [({"CPT": [cpt]}, {"no CPT": [base]}) for cpt, base in twins]
    assert found["cpt_helps_ood_more"] == found["cpt_helps_ood"] == found["cpt_helps_id"]
    assert found["cpt_raises_sft_gain_ood"] == [
        ({"CPT": [cpt, "models/nano/cpt-bio"]}, {"no CPT": [base, "models/nano/base"]}) for cpt, base in twins
    ]
    assert found["cpt_raises_rl_gain_ood"] == [
        ({"CPT": [cpt, twins[3][0]]}, {"no CPT": [base, ladder[3]]})
        for cpt, base in zip(with_cpt, strong[:3], strict=True)
    ]

    larger = [path.replace("/nano/", "/mini/") for path in ladder]
    for name in ("stronger_backbone_id", "backbones_same_shape_ood"):
        assert found[name] == [({"mini": larger}, {"nano": ladder})]

    others = {"low-high": [thin_rl[3]], "low-low": [thin_rl[0]], "high-high": [strong[3]]}
    assert found["asymmetric_ranks_id"][0] == ({"high-low": [strong[0]]}, others)
    assert found["asymmetric_ranks_id"][1:] == [({"high-low": [strong[i]]}, {"low-low": [thin_rl[i]]}) for i in (1, 2)]
    assert found["brief_sft_best"] == found["brief_sft_best_ood"]
    assert found["brief_sft_best"][-1] == (
        {"1 SFT + 7 RL": [f"{ladder[0]}/rl-low/e7"]},
        {
            "0 SFT + 8 RL": [f"{start}/rl-low/e8"],
            "4 SFT + 4 RL": [f"{ladder[2]}/rl-low/e4"],
            "8 SFT + 0 RL": [ladder[3]],
        },
    )


def test_ranks_are_not_compared_between_recipes_that_differ_in_more() -> None:
    given = config((0,), (TASK,))
    given["recipes"]["rl"]["same"]["learning_rate"] = 1.0e-4
    rivals = [set(one.rivals) for one in contrasts(load(given), "asymmetric_ranks_id")]
    assert rivals == [{"low-low"}] * 3
    given["recipes"]["sft"]["thin"]["learning_rate"] = 1.0e-4
    assert contrasts(load(given), "asymmetric_ranks_id") == []


def test_a_low_rank_of_rl_is_lower_than_that_of_sft() -> None:
    given = config((0,), (TASK,))
    for name, rank in (("low", 32), ("same", 64)):
        given["recipes"]["rl"][name]["lora"] = {"r": rank, "lora_alpha": 2 * rank}
    assert contrasts(load(given), "asymmetric_ranks_id") == []


def test_the_share_of_a_gain_needs_an_early_rung_and_one_of_twice_as_many_epochs() -> None:
    def early(*rungs: int) -> list[str]:
        given = config((0,), (TASK,))
        given["recipes"]["rl"]["low"]["epochs"] = list(rungs)
        given["lineages"] = [
            {"tasks": [TASK], "backbones": ["nano"], "sft": ["brief"], "rl": [{"recipe": "low", "from": [8]}]}
        ]
        return [
            one.ours["first epochs"][0][0].rpartition("/")[2] for one in contrasts(load(given), "rl_gains_early_ood")
        ]

    assert early(1, 2, 4, 8) == ["e4"]
    assert early(1, 2, 4, 6) == ["e2"]  # e4 of e6 has more than half of the gain if every epoch gains as much
    assert early(1, 8) == []
    assert early(2, 3) == []


def test_backbones_of_about_the_same_size_or_of_unknown_size_are_not_compared() -> None:
    given = config((0,), (TASK,))
    nano = given["backbones"]["nano"]["architecture"]
    given["backbones"]["mini"]["architecture"] = nano | {"num_hidden_layers": 4}
    assert contrasts(load(given), "stronger_backbone_id") == []
    given["backbones"]["mini"] = {"pretrained": "lab/model"}
    assert contrasts(load(given), "stronger_backbone_id") == []
    given["backbones"]["mini"] = {"pretrained": "lab/model-1.5B"}
    (one,) = contrasts(load(given), "stronger_backbone_id")
    assert "mini (1.5B) against nano (0.5M)" in one.setting


def test_brief_sft_is_at_most_three_epochs_and_half_of_the_budget() -> None:
    def brief(*splits: list[int]) -> list[list[str]]:
        given = config((0,), (TASK,))
        given["recipes"]["sft"]["brief"]["epochs"] = list(range(1, 9))
        given["recipes"]["rl"]["low"]["epochs"] = list(range(1, 9))
        (*_, budget) = given["lineages"]
        total = sum(splits[0])
        given["lineages"] = [budget | {"budget": {"epochs": total, "split": list(splits)}}]
        return [
            list(one.ours) for one in contrasts(load(given), "brief_sft_best") if f"· {total} epochs" in one.setting
        ]

    eight = ["1 SFT + 7 RL", "2 SFT + 6 RL", "3 SFT + 5 RL"]
    assert brief([0, 8], [1, 7], [2, 6], [3, 5], [4, 4], [8, 0]) == [eight]
    assert brief([2, 2], [3, 1]) == [["2 SFT + 2 RL"]]
    assert brief([4, 4], [8, 0]) == []


def test_budgets_of_recipes_that_share_an_epoch_differently_are_counted_in_examples() -> None:
    given = config((0,), (TASK,))
    sft, rl = given["recipes"]["sft"], given["recipes"]["rl"]
    sft["quarter"] = sft["brief"] | {"epochs": [1], "fraction": 0.25}
    sft["most"] = sft["brief"] | {"epochs": [1], "fraction": 0.75, "warmup_steps": 60}
    given["recipes"]["rl"] = {
        "few": rl["low"] | {"epochs": [1], "examples": 200},
        "many": rl["low"] | {"epochs": [1], "examples": 600},
    }
    grid = {"tasks": [TASK], "sequences": ["tokens"], "backbones": ["nano"]}
    given["lineages"] = [
        grid | {"sft": ["quarter"], "rl": [{"recipe": "many", "from": [1]}]},
        grid | {"sft": ["most"], "rl": [{"recipe": "few", "from": [1]}]},
    ]
    (one,) = contrasts(load(given), "brief_sft_best_id")
    assert one.ours == {"200 SFT + 600 RL": ((f"models/nano/base/{TASK}/s0/sft-quarter/e1/rl-many/e1", 1.0),)}
    assert list(one.rivals) == ["600 SFT + 200 RL"]
    assert "800 examples" in one.setting


# The verdicts


def false(part: dict[str, Any]) -> bool:
    """Whether a verdict is false if all models are equal. Their curves do have the same shape."""
    return part["verdict"] != UNDECIDED and (part["part"] not in SHAPES or part["verdict"] != SUPPORTED)


@pytest.mark.parametrize(("seeds", "luck"), [((0,), 0.0), ((0, 1, 2), 0.6)])
def test_absent_effects_are_not_found(seeds: tuple[int, ...], luck: float) -> None:
    """All claims of 60 studies together: in at most 5% a false verdict (7 of 60 is the 99% point of that rate).

    With one seed only the examples vary; with three, trainings vary more than the examples.
    """
    study = studied(seeds, (TASK,))
    of = asked(study)
    wrong = 0
    for number in range(60):
        sheets = simulate(study, flat, np.random.default_rng(number), size=150, luck=luck)
        found = findings.judge(of, sheets, resamples=1000, margin=0.0, halvings=60)
        wrong += any(false(part) for part in parts(found).values())
    assert wrong <= 7


@pytest.mark.parametrize(("truth", "verdict"), [(as_claimed, SUPPORTED), (reversed_claims, CONTRADICTED)])
def test_planted_effects_are_found(truth: Any, verdict: str) -> None:
    """Effects of 0.08 or more, two tasks, 400 examples a split, four seeds: each in 80% of the studies or more.

    The shapes of curves need more examples, and a gain of RL that is not there comes at no time: tests of their own.
    """
    study = studied((0, 1, 2, 3))
    of = asked(study)
    verdicts = []
    for number in range(10):
        sheets = simulate(study, truth, np.random.default_rng(number), size=400, luck=0.1)
        found = findings.judge(of, sheets, resamples=1000, halvings=100)
        verdicts.append({name: part["verdict"] for name, part in parts(found).items()})
    elsewhere = {*SHAPES, *(["rl_gains_early_ood"] if truth is reversed_claims else [])}
    power = {name: np.mean([one[name] == verdict for one in verdicts]) for name in verdicts[0].keys() - elsewhere}
    assert len(power) >= 19
    assert min(power.values()) >= 0.8, power


def only(study: Study, claim: str) -> list[claims.Claim]:
    return [one for one in asked(study) if one.name == claim]


@cache
def small(kind: str, seeds: tuple[int, ...]) -> Study:
    """A study of one task with SFT of two backbones, or with RL from SFT, and nothing else."""
    given = config(seeds, (TASK,))
    grid: dict[str, Any] = {"tasks": [TASK], "sft": ["brief"]}
    given["recipes"]["rl"]["low"]["epochs"] = [4, 8]
    rl = {"backbones": ["nano"], "rl": [{"recipe": "low", "from": [8]}]}
    given["lineages"] = [grid | ({"backbones": ["nano", "mini"]} if kind == "backbones" else rl)]
    return load(given)


def rising(*accuracies: float) -> Any:
    """RL from e8 whose accuracy is the first before it, the second after its first epochs, the third at its end."""

    def ability(model: Model, split: str) -> float:
        return odds(accuracies[[0, 4, 8].index(model.rl_epochs)])

    return ability


@pytest.mark.parametrize(
    ("accuracies", "share", "verdict"),
    [
        ((0.4, 0.64, 0.7), 0.8, SUPPORTED),
        ((0.4, 0.46, 0.7), 0.2, CONTRADICTED),
        ((0.4, 0.5, 0.6), 0.5, UNDECIDED),  # half of the gain
        ((0.5, 0.65, 0.5), None, UNDECIDED),  # no gain at the end
        ((0.7, 0.65, 0.4), None, UNDECIDED),  # a loss, most of it late
    ],
)
def test_the_share_of_a_gain_that_comes_early(accuracies: tuple[float, ...], share: float | None, verdict: str) -> None:
    """A false verdict in 5% of the studies at most (7 of 60 is the 99% point), a planted share found in 80% or more.

    An interval of the share covers it in 93% or more, and there is none without a gain.
    """
    study = small("RL", (0, 1, 2, 3))
    of = only(study, "rl_gains_early")
    verdicts, shares = [], []
    for number in range(60):
        sheets = simulate(study, rising(*accuracies), np.random.default_rng(number), size=400, luck=0.1)
        (part,) = parts(findings.judge(of, sheets, resamples=400)).values()
        verdicts.append(part["verdict"])
        shares.append(part["share"])
    if verdict == UNDECIDED:
        assert sum(one != UNDECIDED for one in verdicts) <= 7
    else:
        assert verdicts.count(verdict) >= 48
    known = [one for one in shares if one is not None]
    if share is None:
        assert len(known) <= 5
    else:
        assert len(known) >= 48
        assert np.mean([one["low"] <= share <= one["high"] for one in known]) >= 0.9
        assert np.mean([one["value"] for one in known]) == pytest.approx(share, abs=0.05)


def curve(*apart: float) -> Any:
    """A larger backbone whose accuracy is above that of the smaller one by so much at each rung."""

    def ability(model: Model, split: str) -> float:
        rung = [0, 1, 2, 4, 8].index(model.sft_epochs) - 1
        return odds((0.5, 0.6, 0.65, 0.6)[rung] + (apart[rung] if model.backbone == "mini" else 0))

    return ability


@pytest.mark.parametrize(
    ("apart", "seeds", "size", "verdict"),
    [
        ((0.1, 0.1, 0.1, 0.1), (0,), 3000, SUPPORTED),
        ((0.25, 0.1, 0.1, -0.05), (0,), 1000, CONTRADICTED),
        ((0.25, 0.1, 0.1, -0.05), (0, 1, 2, 3, 4), 1000, CONTRADICTED),
        ((0.15, 0.1, 0.1, 0.05), (0,), 1000, UNDECIDED),  # as far apart as the margin
        ((0.15, 0.1, 0.1, 0.05), (0, 1, 2), 1000, UNDECIDED),
    ],
)
def test_the_shape_of_the_curves_of_two_backbones(
    apart: tuple[float, ...], seeds: tuple[int, ...], size: int, verdict: str
) -> None:
    """At the margin a false verdict in 5% of the studies at most (4 of 20 is the 99% point), else 80% right ones.

    The level is higher by 0.1 in all of them.
    """
    study = small("backbones", seeds)
    of = only(study, "stronger_backbone")
    verdicts, levels = [], []
    for number in range(20):
        luck = 0.05 if len(seeds) > 1 else 0.0
        sheets = simulate(study, curve(*apart), np.random.default_rng(number), size=size, luck=luck)
        found = parts(findings.judge(of, sheets, resamples=400))
        verdicts += [found[name]["verdict"] for name in SHAPES[:1]]
        levels.append(found["stronger_backbone_id"]["verdict"])
    if verdict == UNDECIDED:
        assert sum(one != UNDECIDED for one in verdicts) <= 4
    else:
        assert verdicts.count(verdict) >= 16
    assert levels.count(SUPPORTED) >= 16


def test_the_largest_difference_of_two_shapes_has_an_interval_that_covers_it() -> None:
    study = small("backbones", (0, 1, 2))
    of = only(study, "stronger_backbone")
    inside = []
    for number in range(60):
        sheets = simulate(study, curve(0.2, 0.1, 0.1, 0.0), np.random.default_rng(number), size=300, luck=0.2)
        part = parts(findings.judge(of, sheets, resamples=400))["backbones_same_shape_ood"]
        inside.append(part["effect"][PRIMARY]["low"] <= 0.1 <= part["effect"][PRIMARY]["high"])
    assert np.mean(inside) >= 0.92


def test_the_best_of_several_brief_splits_is_not_chosen_where_it_is_measured() -> None:
    """All splits of a budget are equal; three of them are brief, one is not."""
    given = config((0,), (TASK,))
    given["recipes"]["sft"]["brief"]["epochs"] = given["recipes"]["rl"]["low"]["epochs"] = list(range(1, 9))
    (*_, budget) = given["lineages"]
    splits = [[0, 8], [1, 7], [2, 6], [3, 5]]
    given["lineages"] = [budget | {"budget": {"epochs": 8, "split": splits}}]
    study = load(given)
    estimates = []
    for number in range(100):
        sheets = simulate(study, flat, np.random.default_rng(number), size=150, luck=0.0)
        found = parts(findings.judge(only(study, "brief_sft_best"), sheets, resamples=2, halvings=60))
        estimates.append(found["brief_sft_best"]["effect"][PRIMARY]["value"])
    assert unbiased(estimates)


def unbiased(estimates: Sequence[float]) -> bool:
    return abs(np.mean(estimates)) <= 3 * np.std(estimates) / len(estimates) ** 0.5


@pytest.mark.parametrize(("seeds", "luck"), [((0,), 0.0), ((0, 1, 2), 0.3)])
def test_the_best_rung_of_a_flat_curve_is_not_counted_as_a_peak(seeds: tuple[int, ...], luck: float) -> None:
    """Neither if only the examples vary (one seed), nor if trainings do (three)."""
    study = studied(seeds, (TASK,))
    (peak,) = [part for claim in asked(study) for part in claim.parts if part.name == "ood_lost_from_peak"]
    claim = claims.Claim("peak", "peak", True, (peak,))
    naive, fitted = [], []
    for number in range(150):
        sheets = simulate(study, flat, np.random.default_rng(number), size=150, luck=luck)
        found = findings.judge([claim], sheets, resamples=2, halvings=100)
        fitted.append(found[0]["parts"][0]["effect"][PRIMARY]["value"])
        of = sheets[TASK, "ood"]
        once = of.values(np.ones((1, len(of.gold)), dtype=np.float32))[PRIMARY][0]
        place = statistics.columns(of)
        rungs = np.mean(
            [[once[place[arm[0][0]]] for arm in one.arms] for one in peak.contrasts if "nano · no CPT" in one.setting],
            axis=0,
        )
        naive.append(rungs[:-1].max() - rungs[-1])
    assert unbiased(fitted)
    assert not unbiased(naive)
    assert np.mean(naive) > 0.02


def test_intervals_of_a_planted_effect_cover_the_truth() -> None:
    study = studied(tasks=(TASK,))
    of = [claim for claim in asked(study) if claim.name in ("cpt_helps", "sft_specializes")]

    def truth(model: Model, split: str) -> float:
        return 0.5 + (0.6 if model.cpt else 0)

    exact = simulate(study, truth, np.random.default_rng(99), size=20_000, luck=0.0)
    known = {
        name: part["effect"][PRIMARY]["value"] for name, part in parts(findings.judge(of, exact, resamples=2)).items()
    }
    inside: dict[str, list[bool]] = {name: [] for name in known}
    for number in range(120):
        sheets = simulate(study, truth, np.random.default_rng(number), size=120, luck=0.3)
        for name, part in parts(findings.judge(of, sheets, resamples=400, halvings=60)).items():
            effect = part["effect"][PRIMARY]
            inside[name].append(effect["low"] <= known[name] <= effect["high"])
    assert min(np.mean(one) for one in inside.values()) >= 0.92


def test_effects_on_id_and_ood_together_are_those_on_each() -> None:
    study = studied((0, 1), (TASK,))
    found = parts(findings.judge(asked(study), simulate(study, as_claimed, np.random.default_rng(3)), resamples=200))
    for metric in statistics.COMPARED_METRICS:
        on = {name: part["effect"][metric]["value"] for name, part in found.items()}
        assert on["cpt_helps_ood_more"] == pytest.approx(on["cpt_helps_ood"] - on["cpt_helps_id"], abs=1e-6)
    assert found["cpt_helps_ood_more"]["n"]["examples"] == found["cpt_helps_ood"]["n"]["examples"] * 2
    budget = found["brief_sft_best"]["rivals"]
    for name in budget:
        both = [found[f"brief_sft_best_{split}"]["rivals"][name]["value"] for split in ("id", "ood")]
        assert budget[name]["value"] == pytest.approx(np.mean(both), abs=1e-6)


def test_another_task_leaves_the_numbers_of_a_task_as_they_are() -> None:
    both, one = studied((0,)), studied((0,), (TASK,))
    sheets = simulate(both, as_claimed, np.random.default_rng(3))
    alone = {key: of for key, of in sheets.items() if key[0] == TASK}
    wide, narrow = (
        parts(findings.judge(asked(study), given, resamples=200)) for study, given in ((both, sheets), (one, alone))
    )
    for name, part in narrow.items():
        assert wide[name]["tasks"][TASK] == part["tasks"][TASK]


def test_a_claim_of_several_parts_needs_all_of_them() -> None:
    study = studied((0,), (TASK,))

    def rising(model: Model, split: str) -> float:  # ID rises, and so does OOD
        return 0.9 * model.sft_epochs**0.5 - 1.0

    found = findings.judge(asked(study), simulate(study, rising, np.random.default_rng(0), size=400), resamples=2000)
    (claim,) = [claim for claim in found if claim["claim"] == "sft_specializes"]
    assert [part["verdict"] for part in claim["parts"]] == [SUPPORTED, CONTRADICTED]
    assert claim["verdict"] == CONTRADICTED


# The files


@dataclass(frozen=True)
class Written:
    """A study whose answers are in files, and what its findings are."""

    study: Study
    results: Path
    output: Path
    found: dict[str, Any]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    study = studied()
    results, output = tmp_path_factory.mktemp("results"), tmp_path_factory.mktemp("findings")
    write(study, simulate(study, as_claimed, np.random.default_rng(0), size=300, luck=0.1), results)
    return Written(study, results, output, findings.findings(study, results, output))


def test_findings_of_files_are_those_of_their_answers(written: Written) -> None:
    sheets = simulate(written.study, as_claimed, np.random.default_rng(0), size=300, luck=0.1)
    effects = {name: part["effect"] for name, part in parts(written.found["claims"]).items()}
    for name, part in parts(findings.judge(asked(written.study), sheets, resamples=50)).items():
        for metric in statistics.COMPARED_METRICS:
            if not part["rivals"]:
                assert effects[name][metric]["value"] == pytest.approx(part["effect"][metric]["value"], abs=1e-6)
    part = parts(written.found["claims"])["cpt_helps_ood"]
    assert part["n"] == {"examples": 600, "tasks": 2, "seeds": 3, "pairs": 24, "models": 48}
    assert "training seeds" in part["covers"]
    assert part["p_holm"] >= part["p"]
    assert "Holm" in written.found["method"]["correction"]


def test_the_command_writes_the_same_bytes_as_the_function(written: Written, tmp_path: Path) -> None:
    config_text, results = json.dumps(config()), str(written.results)
    assert cli.main(["findings", "--config", config_text, "--results", results, "--output", str(tmp_path)]) == 0
    for file in (findings.FINDINGS, findings.PAGE):
        assert (tmp_path / file).read_bytes() == (written.output / file).read_bytes()
    assert json.loads((tmp_path / findings.FINDINGS).read_text()) == written.found


def test_the_page_says_where_ood_peaks_and_how_much_of_a_gain_came_early(written: Written) -> None:
    found, page = parts(written.found["claims"]), (written.output / findings.PAGE).read_text()
    for pair in found["ood_lost_from_peak"]["pairs"]:
        assert list(pair["chosen"]) == ["e1", "e2", "e4"]
        assert sum(pair["chosen"].values()) == pytest.approx(1)
        assert max(pair["chosen"], key=pair["chosen"].get) in ("e1", "e2")
        assert f"e1 {pair['chosen']['e1']:.0%}, e2 " in page
    share = found["rl_gains_early_ood"]["share"]
    assert 0.8 < share["low"] < 1 < share["high"] < 1.3
    assert f"{share['value']:.0%}" in page
    assert f"{found['rl_gains_early_ood']['gain']['value']:+.3f}" in page
    for curve in found["backbones_same_shape_id"]["curves"]:
        assert len(curve["rungs"]) == 4
        assert sum(rung["value"] for rung in curve["rungs"]) == pytest.approx(0, abs=1e-6)


def test_the_page_has_every_verdict_and_names_every_model(written: Written) -> None:
    page = (written.output / findings.PAGE).read_text()
    for claim in written.found["claims"]:
        assert claim["title"] in page
    for part in parts(written.found["claims"]).values():
        assert f"{part['effect'][PRIMARY]['value']:+.3f}" in page
        for pair in part["pairs"]:
            for arms in pair["models"].values():
                assert all(path.removeprefix("models/") in page for paths in arms["ours"].values() for path in paths)
    assert "Holm" in page
    assert "One training seed" not in page
    for outside in ("http", "src=", "<script"):
        assert outside not in page
    assert not re.search(r"\bnan\b", page)


@pytest.fixture
def one_seed(tmp_path: Path) -> Study:
    """A study of one task and seed, whose answers are in files."""
    study = studied((0,), (TASK,))
    write(study, simulate(study, flat, np.random.default_rng(0)), tmp_path)
    return study


def test_one_seed_is_said_to_cover_examples_only(one_seed: Study, tmp_path: Path) -> None:
    found = findings.findings(one_seed, tmp_path, tmp_path / "out")
    assert all("one training seed" in part["covers"] for part in parts(found["claims"]).values())
    assert "One training seed" in (tmp_path / "out" / findings.PAGE).read_text()


def test_a_claim_without_cells_says_what_it_needs(tmp_path: Path) -> None:
    given = config((0,), (TASK,))
    given["lineages"] = [{"tasks": [TASK], "sequences": ["tokens"], "sft": ["brief"], "backbones": ["nano"]}]
    study = load(given)
    write(study, simulate(study, flat, np.random.default_rng(0)), tmp_path)
    found = findings.findings(study, tmp_path, tmp_path / "out")
    verdicts = {claim["claim"]: claim["verdict"] for claim in found["claims"]}
    assert [name for name, verdict in verdicts.items() if verdict != ABSENT] == ["sft_specializes"]
    page = (tmp_path / "out" / findings.PAGE).read_text()
    for part in parts(found["claims"]).values():
        if part["status"] == ABSENT:
            assert part["needs"] in page


def test_an_absent_evaluation_is_listed_and_its_pairs_are_left_out(written: Written, tmp_path: Path) -> None:
    study, results = written.study, written.results
    gone = f"models/nano/cpt-bio/{TASK}/s1/sft-brief/e4"
    for folder, path, _ in study.evaluations():
        if path != gone:
            (tmp_path / folder).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder).symlink_to(results / folder)
    found = findings.findings(study, tmp_path, tmp_path / "out")
    assert found["evaluations"]["absent"] == [f"{gone}/eval"]
    numbers = parts(found["claims"])
    assert numbers["cpt_helps_id"]["n"]["pairs"] == 23
    (ladder,) = [
        one
        for one in numbers["ood_lost_from_peak"]["pairs"]
        if one["task"] == TASK and one["setting"].startswith("nano · CPT bio")
    ]
    assert list(ladder["effect"]) == ["0", "2"]  # without a rung nothing is known of the peak
    assert numbers["rl_from_strong_sft"]["n"]["seeds"] == 3
    page = (tmp_path / "out" / findings.PAGE).read_text()
    assert "1 of 192 evaluations" in page
    assert f"<li>{gone}/eval</li>" in page


def test_models_that_answer_different_examples_are_refused(one_seed: Study, tmp_path: Path) -> None:
    file = tmp_path / f"models/nano/base/{TASK}/s0/sft-brief/e4/eval/ood.parquet"
    pd.read_parquet(file).iloc[1:].to_parquet(file, index=False)
    with pytest.raises(UserError, match=r"sft-brief/e4/eval and .* different ood examples"):
        findings.findings(one_seed, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_table_of_answers_is_named(one_seed: Study, tmp_path: Path) -> None:
    file = tmp_path / f"models/nano/base/{TASK}/s0/sft-brief/e4/eval/id.parquet"
    file.write_text("no parquet")
    with pytest.raises(UserError, match=str(file)):
        findings.findings(one_seed, tmp_path, tmp_path / "out")


def test_a_study_without_evaluations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"192 evaluations.*{tmp_path}"):
        findings.findings(studied(), tmp_path, tmp_path / "out")


@pytest.fixture
def terms(tmp_path: Path) -> tuple[Study, Path, gene_ontology.Ontology]:
    """A study of which one task asks for sets of terms: half of them right, and more of them with CPT."""
    (tmp_path / "small.obo").write_text(OBO)
    space = gene_ontology.read(tmp_path / "small.obo")
    study = studied((0,))
    write(study, simulate(study, as_claimed, np.random.default_rng(0)), tmp_path)
    names = sorted(space.namespaces)
    for folder, path, task in study.evaluations():
        for split in ("id", "ood") if task == "cell-type" else ():
            rng = np.random.default_rng(7)
            file = tmp_path / folder / f"{split}.parquet"
            frame = pd.read_parquet(file).sort_values("id")
            gold = [answers.join(rng.choice(names, 3, replace=False)) for _ in range(len(frame))]
            rng = np.random.default_rng(len(path))
            right = rng.random(len(frame)) < (0.7 if "cpt-bio" in path else 0.4)
            said = [
                truth if hit else rng.choice([names[1], "GO:9999999", None])
                for truth, hit in zip(gold, right, strict=True)
            ]
            frame.assign(answer=gold, predicted=said).to_parquet(file, index=False)
    return study, tmp_path, space


def test_sets_of_terms_are_compared_by_micro_f1(terms: tuple[Study, Path, gene_ontology.Ontology]) -> None:
    study, results, space = terms
    data = results / "data" / "cell-type"
    data.mkdir(parents=True)
    space.write(data / gene_ontology.FILE)
    digest = files.sha256(data / gene_ontology.FILE)
    files.write_json(data / "card.json", {"answers": {"kind": "terms", "sha256": digest}})
    sheets = statistics.read(study, results).sheets
    of = sheets["cell-type", "ood"]
    assert isinstance(of, statistics.TermSheet)
    found = of.values(np.ones((1, len(of.gold)), dtype=np.float32))
    for row in range(0, len(of.models), 7):
        folder = next(
            folder for folder, path, task in study.evaluations() if (path, task) == (of.models[row], "cell-type")
        )
        frame = pd.read_parquet(results / folder / "ood.parquet")
        expected = answers.Terms(space).score(frame.answer.tolist(), frame.predicted.tolist(), resamples=1)
        assert found[PRIMARY][0, row] == pytest.approx(expected["f1_micro"]["value"], abs=1e-6)
        assert found["accuracy"][0, row] == pytest.approx(expected["accuracy"]["value"], abs=1e-6)
    written = findings.findings(study, results, results / "out")
    part = parts(written["claims"])["cpt_helps_ood"]
    assert part["tasks"]["cell-type"]["primary_metric"] == "f1_micro"
    assert part["tasks"]["cell-type"]["effect"]["skill"] is None
    assert part["tasks"]["cell-type"]["effect"][PRIMARY]["low"] > 0.1
    skill = part["tasks"][TASK]["effect"]["skill"]["value"]
    assert part["effect"]["skill"]["value"] == pytest.approx(skill)  # of the task that has it
    assert "cell-type (micro F1)" in (results / "out" / findings.PAGE).read_text()


def test_sets_of_terms_without_their_ontology_are_left_out_and_said(
    terms: tuple[Study, Path, gene_ontology.Ontology],
) -> None:
    study, results, _ = terms
    found = findings.findings(study, results, results / "out")
    assert list(found["tasks_left_out"]) == ["cell-type"]
    assert parts(found["claims"])["cpt_helps_id"]["n"]["tasks"] == 1
    assert "<b>cell-type</b>" in (results / "out" / findings.PAGE).read_text()
