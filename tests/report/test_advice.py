"""Advice, on simulated answers where the best allocation, the peak of OOD and the frontier are known."""

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from cisterna import cli
from cisterna.report import advice
from cisterna.study import Model, Study, load
from simulated import LABELS, config, flat, simulate, write

TASK = "splice-donor"


@cache
def studied(seeds: tuple[int, ...] = (0, 1, 2), tasks: tuple[str, ...] = tuple(LABELS)) -> Study:
    return load(config(seeds, tasks))


def weighed(
    study: Study,
    ability: Callable[[Model, str], float],
    budget: int | None = 8,
    size: int = 400,
    luck: float = 0.1,
    number: int = 0,
) -> dict[str, Any]:
    sheets = simulate(study, ability, np.random.default_rng(number), size=size, luck=luck)
    return advice.weigh(study, sheets, budget, resamples=1000)


def brief(model: Model, split: str) -> float:
    """1 SFT + 7 RL is the best, more SFT is worse the longer it is."""
    best = (model.sft_epochs, model.rl_epochs) == (1, 7)
    return 2.2 if best else 0.9 - 0.08 * model.sft_epochs


def trade(model: Model, split: str) -> float:
    """SFT raises ID and costs OOD from epoch 2 on; everything else is behind SFT on both."""
    rung = [0, 1, 2, 4, 8].index(model.sft_epochs)
    if model.kind != "sft" or model.cpt or (model.backbone, model.sft) != ("nano", "brief"):
        return -1.5
    return 0.2 + 0.7 * rung if split == "id" else (0.0, 0.5, 2.0, 1.0, 0.0)[rung]


def test_the_best_allocation_is_advised_with_its_probability_and_regret() -> None:
    advised = weighed(studied(), brief)["budget"]
    assert advised["verdict"] == "For 8 epochs the evidence supports 1 SFT + 7 RL, for ID and OOD alike."
    (comparison,) = advised["comparisons"]
    assert comparison["tasks"] == list(LABELS)
    assert [(one["sft"], one["rl"]) for one in comparison["allocations"]] == [(0, 8), (1, 7), (4, 4), (8, 0)]
    for split in ("id", "ood"):
        numbers = [one[split] for one in comparison["allocations"]]
        assert sum(one["probability_best"] for one in numbers) == pytest.approx(1)
        assert numbers[1]["probability_best"] > 0.95
        assert numbers[1]["expected_regret"] < 0.01
        assert min(one["expected_regret"] for one in numbers[2:]) > 0.1
        assert comparison["verdict"][split]["sure"]


def test_equal_allocations_are_not_told_apart() -> None:
    """Nothing is best; a verdict for ID and OOD alike is luck, and rare: in 2 of 20 studies at most."""
    verdicts = [
        weighed(studied(), flat, size=150, luck=0.3, number=number)["budget"]["verdict"] for number in range(20)
    ]
    assert sum("supports" in verdict for verdict in verdicts) <= 2
    assert sum(verdict.startswith("The data cannot tell how to split 8 epochs") for verdict in verdicts) >= 10


def test_an_allocation_that_only_one_split_supports_is_no_single_answer() -> None:
    def split_on(model: Model, split: str) -> float:
        best = (1, 7) if split == "ood" else (8, 0)
        return 2.2 if (model.sft_epochs, model.rl_epochs) == best else 0.4

    advised = weighed(studied(), split_on)["budget"]
    assert advised["verdict"].startswith("For 8 epochs there is no one answer")
    texts = advised["comparisons"][0]["verdict"]
    assert texts["id"]["text"].startswith("ID: 8 SFT + 0 RL (best in ")
    assert texts["ood"]["text"].startswith("OOD: 1 SFT + 7 RL (best in ")


def test_a_budget_that_the_study_has_not_split_is_said_with_those_it_has() -> None:
    advised = weighed(studied(), flat, budget=6)
    assert advised["budgets"] == [8]
    assert advised["budget"]["comparisons"] == []
    assert advised["budget"]["verdict"] == (
        "The data cannot tell: this study has no two splits of 6 epochs between SFT and RL. "
        "It compares splits of 8 epochs."
    )


def test_the_peak_of_ood_is_found_where_it_was_planted() -> None:
    advised = weighed(studied(), trade)["peaks"]
    for task in LABELS:
        ladders = {ladder["setting"]: ladder for ladder in advised[task]}
        assert list(ladders) == ["nano · SFT brief", "nano · CPT bio · SFT brief", "mini · SFT brief"]
        peak = ladders["nano · SFT brief"]
        assert (peak["peak"], peak["sure"]) == (2, True)
        assert [rung["epochs"] for rung in peak["rungs"]] == [1, 2, 4, 8]
        assert sum(rung["probability"] for rung in peak["rungs"]) == pytest.approx(1)


def test_the_peak_of_a_flat_curve_is_anywhere() -> None:
    advised = weighed(studied(), flat, luck=0.3)["peaks"]
    ladders = [ladder for task in LABELS for ladder in advised[task]]
    assert sum(ladder["sure"] for ladder in ladders) <= 1


def test_the_frontier_is_what_nothing_beats_on_both_splits() -> None:
    advised = weighed(studied(), trade)["frontier"]
    for task in LABELS:
        stages = {stage["stage"]: stage for stage in advised[task]}
        assert [name for name, stage in stages.items() if stage["on_frontier"]] == [
            f"nano · SFT brief e{rung}" for rung in (8, 4, 2)
        ]
        assert all(stages[f"nano · SFT brief e{rung}"]["probability"] > 0.9 for rung in (2, 8))
        assert len(stages["nano · SFT brief e2"]["models"]) == 3
        assert all("RL" not in name for name in stages)


def test_the_frontier_has_no_stage_that_ties_on_one_split_and_loses_on_the_other() -> None:
    first = np.array([[0.5, 0.5, 0.4, 0.3, 0.5]])
    second = np.array([[0.2, 0.3, 0.3, 0.9, 0.3]])
    assert advice._undominated(first, second).tolist() == [[False, True, False, True, True]]


def test_the_luck_of_training_makes_advice_less_sure() -> None:
    def close(model: Model, split: str) -> float:
        return 1.3 if (model.sft_epochs, model.rl_epochs) == (1, 7) else 0.7

    def sure(luck: float) -> float:
        advised = weighed(studied(tasks=(TASK,)), close, size=2000, luck=luck)["budget"]["comparisons"][0]
        return advised["allocations"][1]["ood"]["high"] - advised["allocations"][1]["ood"]["low"]

    assert sure(0.6) > 2 * sure(0.0)


def test_an_interval_of_a_share_stays_between_0_and_1() -> None:
    advised = weighed(studied(tasks=(TASK,)), lambda model, split: 3.5, size=100, luck=1.5)["budget"]["comparisons"][0]
    numbers = [one[split][end] for one in advised["allocations"] for split in ("id", "ood") for end in ("low", "high")]
    assert min(numbers) >= 0
    assert max(numbers) == 1


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("advice")
    given = config((0,), (TASK,))
    (folder / "study.yaml").write_text(yaml.safe_dump(given))
    study = load(given)
    write(study, simulate(study, brief, np.random.default_rng(0)), folder / "results")
    return folder / "study.yaml", folder / "results"


def test_what_is_printed_is_what_is_written(
    written: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, results = written
    advice.main([file], 8, results, tmp_path / "advice.json")
    advised = json.loads((tmp_path / "advice.json").read_text())
    text = capsys.readouterr().out
    assert advised == advice.advise(load(config((0,), (TASK,))), results, 8)
    assert advised["budget"]["verdict"] in text
    assert advised["note"] in text
    assert "test examples only" in text
    for one in advised["budget"]["comparisons"][0]["allocations"]:
        row = f"{one['sft']} SFT + {one['rl']} RL"
        assert re.search(
            rf"{re.escape(row)} +{one['id']['value']:.3f} .* {one['ood']['expected_regret']:.3f} *\n", text
        )
    for stage in advised["frontier"][TASK]:
        assert stage["stage"] in text


def test_the_command_advises_and_refuses_with_exit_code_2(
    written: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, results = written
    command = ["advise", "--config", str(file), "--results", str(results), "--output", str(tmp_path / "advice.json")]
    assert cli.main([*command, "--budget-epochs", "8"]) == 0
    assert json.loads((tmp_path / "advice.json").read_text())["budget"]["verdict"] in capsys.readouterr().out
    for budget in ("0", "-3"):
        assert cli.main([*command, "--budget-epochs", budget]) == 2
        assert f"--budget-epochs {budget}" in capsys.readouterr().err


def test_without_a_budget_the_budgets_are_listed(
    written: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file, results = written
    advice.main([file], None, results)
    assert "compares splits: 8" in capsys.readouterr().out


def test_a_narrow_terminal_shows_every_number(written: tuple[Path, Path]) -> None:
    _, results = written
    advised = advice.advise(load(config((0,), (TASK,))), results, 8, resamples=100)
    console = Console(width=80, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115
    advice.show(advised, console)
    text = console.export_text()
    for one in advised["budget"]["comparisons"][0]["allocations"]:
        assert f"{one['ood']['value']:.3f}" in text


def test_advice_says_nothing_of_a_study_without_ladders_or_budgets(tmp_path: Path) -> None:
    given = config((0,), (TASK,))
    given["recipes"]["sft"]["brief"]["epochs"] = [1]
    given["lineages"] = [{"tasks": [TASK], "sequences": ["tokens"], "sft": ["brief"]}]
    study = load(given)
    write(study, simulate(study, flat, np.random.default_rng(0)), tmp_path)
    advised = advice.advise(study, tmp_path, 8)
    assert advised["peaks"] == {TASK: []}
    assert advised["budget"]["verdict"].endswith("It compares none of any budget.")
