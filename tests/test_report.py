"""The report, from evaluations written as `cisterna evaluate` writes them to tables and figures."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from cisterna import files, metrics
from cisterna.errors import UserError
from cisterna.report import FIGURES, GAINS, METRICS, TABLE
from cisterna.report.figures import figures
from cisterna.report.gather import IDENTITY, NUMBERS, gather
from cisterna.study import Model, Study, load
from cisterna.tasks import catalog

DEFAULT = Path(__file__).parent.parent / "config" / "config.yaml"
SIZE = 120


def plant(study: Study, results: Path, size: int = SIZE) -> None:
    """Predictions whose skill grows with SFT; RL adds skill in-domain, a prior shift out of it."""
    for code, (folder, path, task) in enumerate(study.evaluations()):
        model = study.model(path)
        labels = _labels(study, task)
        scores = {}
        for split in ("id", "ood"):
            rng = np.random.default_rng([1, code, split == "ood"])
            gold = _gold(task, labels, split, size)
            skill, mix, broken = _ability(model, labels, split)
            blind = rng.choice(labels, size, p=mix)
            predicted = np.where(rng.random(size) < skill, gold, blind).astype(object)
            predicted[rng.random(size) < broken] = None
            frame = pd.DataFrame(
                {
                    "id": [f"{task}-{split}-{row}" for row in range(size)],
                    "prompt": "",
                    "output": "",
                    "answer": gold,
                    "predicted": predicted,
                    "well_formed": [label is not None for label in predicted],
                }
            ).sample(frac=1, random_state=code)
            (results / folder).mkdir(parents=True, exist_ok=True)
            frame.to_parquet(results / folder / f"{split}.parquet", index=False)
            scores[split] = metrics.score(gold, predicted, labels, resamples=200)
        files.write_json(results / folder / "metrics.json", scores)
    for model in study.models:
        if model.kind in ("base", "cpt"):
            value = 1000.0 if model.kind == "base" else 20.0
            summary = {"value": value, "low": value - 1, "high": value + 1, "n": 500}
            files.write_json(results / model.path / "perplexity.json", dict.fromkeys(study.corpora, summary))
    for task in study.tasks:
        labels = _labels(study, task)
        rng = np.random.default_rng([3, len(task)])
        scores = {}
        for name, skill in {"majority": None, "knn": 0.25, "logistic": 0.45}.items():
            scores[name] = {}
            for split in ("id", "ood"):
                gold = _gold(task, labels, split, size)
                drop = 0.6 if split == "ood" else 1
                blind = rng.choice(labels, size)
                predicted = np.where(rng.random(size) < (skill or 0) * drop, gold, blind)
                if skill is None:
                    predicted = np.full(size, labels[0])
                scores[name][split] = metrics.score(gold, predicted, labels, resamples=200)
        files.write_json(results / "baselines" / task / "metrics.json", scores)


def _labels(study: Study, task: str) -> list[str]:
    return list(study.config["tasks"][task].get("labels") or catalog.LABELS[task])


def _gold(task: str, labels: list[str], split: str, size: int) -> np.ndarray:
    weights = np.ones(len(labels))
    weights[-1] = 2.7 if split == "ood" else 1.2
    rng = np.random.default_rng([2, len(task), split == "ood"])
    return rng.choice(labels, size, p=weights / weights.sum())


def _ability(model: Model, labels: list[str], split: str) -> tuple[float, np.ndarray, float]:
    """Skill, blind mix of labels, rate of malformed outputs."""
    mix = np.ones(len(labels))
    skill = 0.62 * (1 - 0.55**model.sft_epochs) + (0.05 if model.cpt and model.sft_epochs else 0)
    broken = 0.02 if model.sft or model.rl else 1.0
    if split == "ood":
        skill *= 0.4
    if model.kind == "rl":
        mix[-1] = 6 if split == "ood" else 1
        skill += 0 if split == "ood" else 0.1
        broken = 0.0
    return skill, mix / mix.sum(), broken


def config(**changes: object) -> dict:
    """The default study's recipes on two tasks, with whatever lineage a test asks for."""
    given = yaml.safe_load(DEFAULT.read_text())
    given["study"] = "small"
    given["evaluation"]["bootstrap"] = 200
    given["recipes"]["sft"]["brief"]["epochs"] = [1, 2, 4, 8]
    given["recipes"]["rl"]["grpo"]["epochs"] = [1]
    lineage = {
        "tasks": ["splice-donor", "cell-type"],
        "backbones": ["nano"],
        "cpt": ["none", "bio"],
        "sft": ["brief"],
        "rl": [{"recipe": "grpo", "from": [1, 8]}],
    }
    given["lineages"] = [lineage | changes]
    return given


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    study = load(config())
    results = tmp_path_factory.mktemp("planted")
    plant(study, results)
    return study, results


def test_gather_has_a_row_for_every_model_split_and_metric(planted: tuple[Study, Path], tmp_path: Path) -> None:
    study, results = planted
    gather(study, results, tmp_path)
    table = pd.read_parquet(tmp_path / METRICS)
    assert list(table.columns) == [*IDENTITY, *NUMBERS]
    assert not table.drop(columns="seed").isna().any(axis=None)
    keys = ["model", "task", "split", "metric"]
    assert not table.duplicated(keys).any()
    accuracy = table[table.metric == "accuracy"]
    assert len(accuracy) == 2 * (len(study.evaluations()) + 3 * len(study.tasks))
    models = set(table.loc[table.kind != "baseline", "model"])
    assert models == {path.removeprefix("models/") for _, path, _ in study.evaluations()}

    rung = "nano/cpt-bio/splice-donor/s0/sft-brief/e4"
    row = accuracy[(accuracy.model == rung) & (accuracy.split == "ood")].iloc[0]
    assert (row.kind, row.modality, row.cpt, row.seed, row.sft) == ("sft", "rna", "bio", 0, "brief")
    assert (row.sft_epochs, row.rl, row.rl_epochs) == (4, "none", 0)
    written = json.loads((results / "models" / rung / "eval" / "metrics.json").read_text())
    expected = written["ood"]["accuracy"]
    assert {name: row[name] for name in expected} == expected


def test_gains_are_paired_differences_from_the_parent(planted: tuple[Study, Path], tmp_path: Path) -> None:
    study, results = planted
    gather(study, results, tmp_path)
    gains = pd.read_parquet(tmp_path / GAINS)
    table = pd.read_parquet(tmp_path / METRICS).set_index(["model", "task", "split", "metric"])
    assert len(gains[gains.metric == "skill"]) == 2 * 2 * 2 * 2
    for row in gains.itertuples():
        after = table.value[row.model, row.task, row.split, row.metric]
        before = table.value[row.parent, row.task, row.split, row.metric]
        assert row.value == pytest.approx(after - before, abs=1e-9)
        assert row.low <= row.high
    accuracy = gains[(gains.metric == "accuracy")].value.to_numpy()
    parts = [gains[gains.metric == part].value.to_numpy() for part in ("prior_accuracy", "skill")]
    assert np.allclose(accuracy, parts[0] + parts[1])


def test_a_planted_prior_shift_shows_as_prior_and_planted_knowledge_as_skill(
    tmp_path: Path,
) -> None:
    study = load(config(cpt=["none"], tasks=["splice-donor"]))
    plant(study, tmp_path, size=4000)
    gather(study, tmp_path, tmp_path / "study")
    gains = pd.read_parquet(tmp_path / "study" / GAINS)
    gains = gains[gains.sft_epochs == 8].set_index(["split", "metric"])
    shifted, learned = gains.loc["ood"], gains.loc["id"]
    assert shifted.low["accuracy"] > 0.05
    assert shifted.value["prior_accuracy"] == pytest.approx(shifted.value["accuracy"], abs=0.04)
    assert abs(shifted.value["skill"]) < 0.04
    assert learned.low["skill"] > 0.02
    assert abs(learned.value["prior_accuracy"]) < 0.02


def test_rl_from_base_and_from_cpt_is_compared_with_its_evaluation_on_the_task(
    tmp_path: Path,
) -> None:
    study = load(config(sft=[], rl=[{"recipe": "grpo", "from": ["cold"]}]))
    plant(study, tmp_path)
    gather(study, tmp_path, tmp_path / "study")
    gains = pd.read_parquet(tmp_path / "study" / GAINS)
    assert set(gains.parent) == {"nano/base", "nano/cpt-bio"}
    draw(study, tmp_path / "study")


def test_gather_lists_what_is_missing_and_writes_nothing(tmp_path: Path) -> None:
    study = load(config())
    plant(study, tmp_path)
    rung = tmp_path / "models/nano/base/cell-type/s0/sft-brief/e8"
    gone = [
        rung / "eval" / "metrics.json",
        rung / "rl-grpo/e1/eval/ood.parquet",
        tmp_path / "baselines/cell-type/metrics.json",
    ]
    for path in gone:
        path.unlink()
    with pytest.raises(UserError, match="3 results are missing") as caught:
        gather(study, tmp_path, tmp_path / "study")
    assert all(str(path) in str(caught.value) for path in gone)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"id": {}}', '{"id": {"accuracy": 1}, "ood": {}}'])
def test_gather_names_a_file_that_holds_no_metrics(text: str, tmp_path: Path) -> None:
    study = load(config(cpt=["none"], tasks=["splice-donor"]))
    plant(study, tmp_path)
    broken = tmp_path / "models/nano/base/splice-donor/s0/sft-brief/e2/eval/metrics.json"
    broken.write_text(text)
    with pytest.raises(UserError, match=r"sft-brief/e2/eval/metrics\.json"):
        gather(study, tmp_path, tmp_path / "study")


def test_gather_refuses_to_pair_predictions_on_different_examples(tmp_path: Path) -> None:
    study = load(config(cpt=["none"], tasks=["splice-donor"]))
    plant(study, tmp_path)
    file = tmp_path / "models/nano/base/splice-donor/s0/sft-brief/e8/eval/id.parquet"
    pd.read_parquet(file).iloc[1:].to_parquet(file, index=False)
    with pytest.raises(UserError, match="different id examples"):
        gather(study, tmp_path, tmp_path / "study")


def draw(study: Study, folder: Path) -> dict[str, str]:
    """Draw the figures; hashes of the files by name."""
    figures(folder / METRICS, folder / GAINS, study, folder / "figures")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "figures").iterdir()}


def test_the_same_evaluations_give_the_same_bytes(planted: tuple[Study, Path], tmp_path: Path) -> None:
    study, results = planted
    drawn = []
    for name in ("first", "second"):
        gather(study, results, tmp_path / name)
        drawn.append(draw(study, tmp_path / name))
    assert drawn[0] == drawn[1]
    for table in (METRICS, GAINS):
        first, second = (tmp_path / name / table for name in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()
    names = {f"{name}.{kind}" for name in FIGURES for kind in ("svg", "png")} | {TABLE}
    assert set(drawn[0]) == names
    for name in FIGURES:
        svg = (tmp_path / "first" / "figures" / f"{name}.svg").read_text()
        assert svg.count("<path") > 50
        assert "date" not in svg
        assert (tmp_path / "first" / "figures" / f"{name}.png").stat().st_size > 10_000


def test_the_table_has_every_model_beside_its_baselines(planted: tuple[Study, Path], tmp_path: Path) -> None:
    study, results = planted
    gather(study, results, tmp_path)
    draw(study, tmp_path)
    page = (tmp_path / "figures" / TABLE).read_text()
    assert page.count('<tr class="baseline">') == 3 * 2
    assert page.count('<tr class="sft">') == 4 * 2 * 2
    assert page.count('<tr class="rl">') == 2 * (2 * 2 * 2)  # results, and what RL adds
    assert "http" not in page
    assert "src=" not in page
    assert not re.search(r"\bnan\b", page)


def test_several_seeds_backbones_and_recipes_are_told_apart(tmp_path: Path) -> None:
    given = config(
        tasks=["cell-type"],
        backbones=["nano", "nano-2"],
        sft=["brief", "long"],
        rl=[{"recipe": "grpo", "from": [1, "cold"]}, {"recipe": "slow", "from": [1]}],
    )
    given["seeds"] = [0, 1]
    given["backbones"]["nano-2"] = given["backbones"]["nano"]
    given["recipes"]["sft"]["long"] = given["recipes"]["sft"]["brief"] | {"epochs": [1, 16]}
    given["recipes"]["rl"]["slow"] = given["recipes"]["rl"]["grpo"] | {"epochs": [1, 2]}
    study = load(given)
    plant(study, tmp_path, size=40)
    gather(study, tmp_path, tmp_path / "study")
    draw(study, tmp_path / "study")
    page = (tmp_path / "study" / "figures" / TABLE).read_text()
    assert "nano-2 · CPT bio · SFT long e1 → RL slow e2" in page
    assert "2 training seeds" in page


def test_a_study_without_rl_or_without_sft_has_figures_that_say_so(tmp_path: Path) -> None:
    study = load(config(tasks=["cell-type"], rl=[]))
    plant(study, tmp_path, size=40)
    gather(study, tmp_path, tmp_path / "study")
    assert len(pd.read_parquet(tmp_path / "study" / GAINS)) == 0
    draw(study, tmp_path / "study")
    assert "What RL adds" not in (tmp_path / "study" / "figures" / TABLE).read_text()


def test_every_figure_and_the_table_have_a_caption() -> None:
    captions = DEFAULT.parent.parent / "workflow" / "report"
    for name in (*FIGURES, Path(TABLE).stem, "workflow"):
        assert len((captions / f"{name}.rst").read_text()) > 200, name


def test_perplexities_of_base_and_cpt_reach_the_table_and_the_page(planted: tuple[Study, Path], tmp_path: Path) -> None:
    study, results = planted
    gather(study, results, tmp_path)
    table = pd.read_parquet(tmp_path / METRICS)
    rows = table[table.metric == "perplexity"]
    assert set(rows.task) == set(study.corpora)
    assert set(rows.model) == {"nano/base", "nano/cpt-bio"}
    assert set(rows.split) == {"heldout"}
    figures(tmp_path / METRICS, tmp_path / GAINS, study, tmp_path)
    page = (tmp_path / TABLE).read_text()
    assert all(text in page for text in ("Perplexity", "1000.0", "20.0"))
