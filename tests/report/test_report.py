"""The report, from what `cisterna evaluate` and `cisterna rl` write to tables and figures."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure

from cisterna.artifacts import files
from cisterna.errors import UserError
from cisterna.report import CELLS, FIGURES, GAINS, METRICS, REWARDS, TABLE
from cisterna.report import figures as drawing
from cisterna.report.figures import figures
from cisterna.report.gather import GROUP, IDENTITY, LOGGED, NUMBERS, gather
from cisterna.scoring import gene_ontology, metrics
from cisterna.scoring.answers import Terms
from cisterna.study import Model, Study, load
from cisterna.tasks import catalog
from terms import OBO

DEFAULT = Path(__file__).parents[2] / "config" / "config.yaml"
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
            scores[split] = _score(results, task, gold, predicted, labels)
        files.write_json(results / folder / "metrics.json", scores)
    for model in study.models:
        if model.kind in ("base", "cpt"):
            value = 1000.0 if model.kind == "base" else 20.0
            summary = {"value": value, "low": value - 1, "high": value + 1, "n": 500}
            files.write_json(results / model.path / "perplexity.json", dict.fromkeys(study.corpora, summary))
        if model.kind == "rl":
            files.write_json(results / model.path / "checkpoint" / "history.json", history(model))
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
                scores[name][split] = _score(results, task, gold, predicted, labels)
        files.write_json(results / "baselines" / task / "metrics.json", scores)


def history(model: Model) -> list[dict[str, float]]:
    """What the trainer logs of 16 steps an epoch, every 10th and the last of each epoch: reward rises by step / 100."""
    logged = []
    for step in range(1, 16 * model.rl_epochs + 1):
        if step % 10 == 0 or step % 16 == 0:
            numbers = {"step": step, "epoch": step / 16, "loss": 0.0}
            rewards = {"reward": 0.5 + step / 100, "reward_std": 0.3, "frac_reward_zero_std": 0.25}
            logged.append(numbers | rewards | {"rewards/correct/mean": 0.5})
    return [*logged, {"step": 16 * model.rl_epochs, "epoch": model.rl_epochs, "train_loss": 0.1}]


def _score(results: Path, task: str, gold: np.ndarray, predicted: np.ndarray, labels: list[str]) -> dict:
    terms = results / "data" / task / gene_ontology.FILE
    if terms.is_file():
        return Terms(gene_ontology.load(terms)).score(gold, predicted, resamples=200)
    return metrics.score(gold, predicted, labels, resamples=200)


def _labels(study: Study, task: str) -> list[str]:
    if task in study.of_terms:
        return ["GO:0000004", "GO:0000003, GO:0000014", "GO:0000012", "GO:0000005"]
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
        "sweep": "small",
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


@pytest.fixture(scope="module")
def formed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """A study with one task in two forms, and one that has tokens alone."""
    study = load(forms("tokens", "features"))
    results = tmp_path_factory.mktemp("formed")
    plant(study, results)
    return study, results


def forms(*sequences: str, **changes: object) -> dict:
    """`config` with splice-donor in these forms."""
    given = config(**changes)
    given["tasks"]["splice-donor"] |= {"sequences": list(sequences), "encoder": "nano-esm"}
    return given


def test_gather_has_a_row_for_every_model_split_and_metric(planted: tuple[Study, Path], tmp_path: Path) -> None:
    study, results = planted
    gather(study, results, tmp_path)
    table = pd.read_parquet(tmp_path / METRICS)
    assert list(table.columns) == [*IDENTITY, *NUMBERS, *GROUP]
    assert not table.drop(columns=["seed", "sequences", "encoder", "group"]).isna().any(axis=None)
    assert table.group.isna().all()
    assert set(table.loc[table.kind != "baseline", "sequences"]) == {"tokens"}
    assert table.loc[table.kind == "baseline", "sequences"].isna().all()
    assert table.encoder.isna().all()
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
        rung / "rl-grpo/e1/checkpoint/history.json",
    ]
    for path in gone:
        path.unlink()
    with pytest.raises(UserError, match="4 results are missing") as caught:
        gather(study, tmp_path, tmp_path / "study")
    assert all(str(path) in str(caught.value) for path in gone)
    assert not (tmp_path / "study").exists()


def test_metrics_of_groups_and_of_no_examples_have_rows_of_their_own(tmp_path: Path) -> None:
    study = load(config(cpt=["none"], tasks=["splice-donor"]))
    plant(study, tmp_path, size=40)
    file = tmp_path / "models/nano/base/splice-donor/s0/sft-brief/e2/eval/metrics.json"
    written = files.read_json(file)
    summary = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 8}
    written["ood"]["ece"] = {"value": None, "low": None, "high": None, "n": 0}
    written["groups"] = {"id": {}, "ood": {"GC": {"accuracy": summary, "balanced_accuracy": summary}}}
    gather(study, tmp_path, tmp_path / "before")
    files.write_json(file, written)
    gather(study, tmp_path, tmp_path / "after")
    before, after = (pd.read_parquet(tmp_path / name / METRICS) for name in ("before", "after"))
    added = after[after.group.notna() | (after.metric == "ece")]
    pd.testing.assert_frame_equal(after.drop(added.index).reset_index(drop=True), before)
    rows = [tuple(row) for row in added[["split", "metric", "group", "value", "n"]].fillna("none").to_numpy()]
    assert rows == [
        ("ood", "ece", "none", "none", 0),
        ("ood", "accuracy", "GC", 0.5, 8),
        ("ood", "balanced_accuracy", "GC", 0.5, 8),
    ]


@pytest.fixture
def functions(tmp_path: Path) -> Study:
    """A study of a task of labels and of one whose answers are sets of terms, with planted results."""
    given = config(tasks=["splice-donor", "functions"], cpt=["none"])
    given["tasks"]["functions"] = {
        "adapter": "go-terms",
        "file": "proteins.csv",
        "options": {"ontology": "go.obo"},
        "ood": ["Danio rerio"],
    }
    study = load(given)
    (tmp_path / "go.obo").write_text(OBO)
    (tmp_path / "data/functions").mkdir(parents=True)
    gene_ontology.read(tmp_path / "go.obo").write(tmp_path / "data/functions" / gene_ontology.FILE)
    plant(study, tmp_path)
    return study


def test_sets_of_terms_are_compared_by_what_they_imply(functions: Study, tmp_path: Path) -> None:
    gather(functions, tmp_path, tmp_path / "study")
    gains = pd.read_parquet(tmp_path / "study" / GAINS).set_index(["model", "split", "metric"])
    table = pd.read_parquet(tmp_path / "study" / METRICS).set_index(["model", "task", "split", "metric"])
    start = "nano/base/functions/s0/sft-brief/e1"
    child = f"{start}/rl-grpo/e1"
    for split in ("id", "ood"):
        for metric in ("f1_micro", "precision_micro", "recall_micro", "accuracy"):
            row = gains.loc[child, split, metric]
            after, before = (table.value[model, "functions", split, metric] for model in (child, start))
            assert row.value == pytest.approx(after - before)
            assert row.low < row.value < row.high or (row.low == row.high == row.value)
    assert "skill" not in gains.loc[child].index.get_level_values("metric")
    missing = tmp_path / "data/functions" / gene_ontology.FILE
    missing.unlink()
    with pytest.raises(UserError, match=r"functions/terms\.json"):
        gather(functions, tmp_path, tmp_path / "study")


def test_a_task_of_sets_of_terms_has_micro_f1_in_every_figure_and_table(functions: Study, tmp_path: Path) -> None:
    table = shown(functions, tmp_path, tmp_path / "study")
    ladder = drawing.sft_ladder(table, "accuracy")
    assert [axes.get_ylabel() for axes in ladder.axes[::2]] == ["accuracy", "micro F1"]
    assert ladder.texts[0].get_text() == "Accuracy and micro F1 against SFT epochs"
    assert {title.split(" · ")[0] for title in titles(drawing.sft_ladder(table, "balanced_accuracy"))} == {
        "splice-donor"
    }
    gaps = [title.split(" · ")[1] for title in titles(drawing.generalization_gap(table))]
    assert [gap.split(" (")[0] for gap in gaps] == ["accuracy", "balanced accuracy", "micro F1", "micro precision"]
    assert all(title.startswith("splice-donor") for title in titles(drawing.label_prior(table)))
    gains = drawing._means(pd.read_parquet(tmp_path / "study" / GAINS), functions.tasks)
    assert titles(drawing.rl_gain(gains)) == [
        "accuracy gain",
        "= shift of the label prior",
        "+ skill",
        "micro F1 gain",
        "micro precision",
        "micro recall",
    ]
    draw(functions, tmp_path / "study")
    parts = (tmp_path / "study" / "figures" / TABLE).read_text().split("<h2>")[1:]
    for part in parts:
        assert ("micro F1" in part) == part.startswith("functions")
        assert ("MCC" in part) == part.startswith("splice-donor")


def test_a_study_of_sets_of_terms_alone_has_figures_that_say_what_it_lacks(functions: Study, tmp_path: Path) -> None:
    table = shown(functions, tmp_path, tmp_path / "study")
    alone = table[table.task == "functions"]
    for figure in (drawing.sft_ladder(alone, "balanced_accuracy"), drawing.label_prior(alone)):
        (text,) = figure.texts
        assert "labels" in text.get_text() or "sets of terms" in text.get_text()


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"id": {}}', '{"id": {"accuracy": 1}, "ood": {}}', '{"id": {}, "ood": {}, "groups": {"id": 3}}'],
)
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
    figures(study, folder, folder / "figures")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "figures").iterdir()}


def test_the_same_evaluations_give_the_same_bytes(formed: tuple[Study, Path], tmp_path: Path) -> None:
    study, results = formed
    drawn = []
    for name in ("first", "second"):
        gather(study, results, tmp_path / name)
        drawn.append(draw(study, tmp_path / name))
    assert drawn[0] == drawn[1]
    for table in (METRICS, GAINS, REWARDS, CELLS):
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
    assert list(pd.read_parquet(tmp_path / "study" / REWARDS).columns) == [*IDENTITY, *LOGGED]
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
    figures(study, tmp_path, tmp_path)
    page = (tmp_path / TABLE).read_text()
    assert all(text in page for text in ("Perplexity", "1000.0", "20.0"))


# --- Sequences as features ---


def shown(study: Study, results: Path, folder: Path) -> pd.DataFrame:
    """The metrics as the figures get them."""
    gather(study, results, folder)
    table = pd.read_parquet(folder / METRICS)
    return drawing._means(table[table.metric != "perplexity"], study.tasks)


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_forms_and_their_encoders_reach_every_table(formed: tuple[Study, Path], tmp_path: Path) -> None:
    study, results = formed
    gather(study, results, tmp_path)
    for name in (METRICS, GAINS, REWARDS):
        table = pd.read_parquet(tmp_path / name)
        place = list(table.columns).index("seed")
        assert list(table.columns)[place + 1 : place + 3] == ["sequences", "encoder"]
        trained = table[table.kind.isin(["sft", "rl"])]
        rows = set(zip(trained.task, trained.sequences, trained.encoder.fillna("none"), strict=True))
        tokens = {(task, "tokens", "none") for task in ("splice-donor", "cell-type")}
        assert rows == tokens | {("splice-donor", "features", "nano-esm")}
    untrained = pd.read_parquet(tmp_path / METRICS).query("kind in ('base', 'cpt')")
    assert set(untrained.sequences) == {"tokens"}


def test_no_mean_mixes_forms(formed: tuple[Study, Path], tmp_path: Path) -> None:
    study, results = formed
    means = shown(study, results, tmp_path)
    table = pd.read_parquet(tmp_path / METRICS)
    accuracy = means[(means.metric == "accuracy") & (means.kind == "sft")]
    assert set(accuracy.seeds) == {1}
    assert all(len(each) == 1 for each in means.each)
    for row in accuracy[accuracy.task == "splice-donor"].itertuples():
        same = table[
            (table.task == row.task)
            & (table.kind == row.kind)
            & (table.cpt == row.cpt)
            & (table.sft_epochs == row.sft_epochs)
            & (table.split == row.split)
            & (table.metric == row.metric)
        ]
        assert len(same) == 2
        assert row.value == same[same.sequences == row.sequences].value.item()


def test_each_form_of_a_task_has_its_own_row_of_panels_and_tokens_are_not_named(
    formed: tuple[Study, Path], tmp_path: Path
) -> None:
    table = shown(*formed, tmp_path)
    rows = [title.split(" · ")[:2] for title in titles(drawing.sft_ladder(table, "accuracy"))[::2]]
    assert rows == [
        ["splice-donor", f"in-domain (ID), n = {SIZE}"],
        ["splice-donor", "features"],
        ["cell-type", f"in-domain (ID), n = {SIZE}"],
    ]
    gaps = [title.split(" · ")[1] for title in titles(drawing.generalization_gap(table))[::2]]
    assert [gap.split(" ")[0] for gap in gaps] == ["accuracy", "features", "accuracy"]
    bars = [label.get_text() for label in drawing.label_prior(table).axes[0].get_yticklabels()]
    assert "no CPT · SFT e8" in bars
    assert "features · no CPT · SFT e8" in bars
    assert "features · no CPT · before SFT" not in bars
    gains = drawing._means(pd.read_parquet(tmp_path / GAINS), formed[0].tasks)
    starts = [label.get_text() for label in drawing.rl_gain(gains).axes[0].get_yticklabels()]
    assert starts[0] == "no CPT · SFT e1 → RL e1"
    assert starts[-1] == "features · CPT bio · SFT e8 → RL e1"


def test_forms_stand_side_by_side_only_where_there_are_several(formed: tuple[Study, Path], tmp_path: Path) -> None:
    figure = drawing.sequences(shown(*formed, tmp_path))
    assert len(figure.axes) == 2 * 2  # splice-donor without and with CPT, ID and OOD
    heads = [text.get_text() for axes in figure.axes for text in axes.texts if "encoder" in text.get_text()]
    assert heads == ["splice-donor  (no CPT · encoder nano-esm)", "splice-donor  (CPT bio · encoder nano-esm)"]
    words = [text.get_text() for text in figure.axes[0].texts]
    assert {"○ tokens", "● features", "logistic", "k-NN", "majority"} <= set(words)


def test_a_study_of_tokens_has_no_word_of_forms(planted: tuple[Study, Path], tmp_path: Path) -> None:
    study, results = planted
    table = shown(study, results, tmp_path)
    (text,) = drawing.sequences(table).texts
    assert text.get_text() == "No task of this study has its sequences in more than one form."
    draw(study, tmp_path)
    page = (tmp_path / "figures" / TABLE).read_text()
    assert "<th class=" not in page.replace('<th class="id"', "").replace('<th class="ood"', "")
    assert "tokens" not in page
    assert all("tokens" not in title for title in titles(drawing.sft_ladder(table, "accuracy")))
    assert "form" not in drawing._Tree(study).note


def test_the_table_says_form_and_encoder_where_a_task_has_several(formed: tuple[Study, Path], tmp_path: Path) -> None:
    study, results = formed
    gather(study, results, tmp_path)
    draw(study, tmp_path)
    parts = (tmp_path / "figures" / TABLE).read_text().split("<h2>")[1:]
    donor = [part for part in parts if part.startswith("splice-donor")]
    cells = [part for part in parts if part.startswith("cell-type")]
    assert len(donor) == len(cells) == 2  # results, and what RL adds
    assert all("features (nano-esm)" in part for part in donor)
    assert not any('class="form"' in part for part in cells)
    assert donor[0].count('<td class="form">features (nano-esm)</td>') == 2 * (4 + 2)
    assert donor[0].count('<td class="form">tokens</td>') == 2 * (1 + 4 + 2)
    assert donor[0].count('<td class="form"></td>') == 3


def test_cold_rl_with_features_and_a_task_of_features_alone_are_drawn(tmp_path: Path) -> None:
    cold = load(forms("features", "both", sft=[], rl=[{"recipe": "grpo", "from": ["cold"]}]))
    plant(cold, tmp_path, size=40)
    figure = drawing.sequences(shown(cold, tmp_path, tmp_path / "cold"))
    assert len(figure.axes) == 2 * 2
    draw(cold, tmp_path / "cold")
    alone = load(forms("features", tasks=["splice-donor"], cpt=["none"]))
    plant(alone, tmp_path, size=40)
    table = shown(alone, tmp_path, tmp_path / "alone")
    assert [title.split(" · ")[1] for title in titles(drawing.sft_ladder(table, "accuracy"))] == ["features"] * 2
    draw(alone, tmp_path / "alone")


def test_two_encoders_of_a_task_are_never_one_line(tmp_path: Path) -> None:
    given = config(cpt=["none"], sequences=["features"], tasks=["splice-donor"], rl=[{"recipe": "grpo", "from": [8]}])
    given["encoders"]["other-esm"] = given["encoders"]["nano-esm"]
    given["tasks"]["splice-donor"] |= {"sequences": ["features"], "encoder": ["nano-esm", "other-esm"]}
    study = load(given)
    plant(study, tmp_path, size=40)
    gather(study, tmp_path, tmp_path / "study")
    everything = drawing._formed(pd.read_parquet(tmp_path / "study" / METRICS))
    table = drawing._means(everything[everything.metric != "perplexity"], study.tasks)
    assert all(len(values) == 1 for values in table.each)  # one seed: a mean of two would mix encoders
    forms = [f"features of {name}" for name in ("nano-esm", "other-esm")]
    assert [title.split(" · ")[1] for title in titles(drawing.sft_ladder(table, "accuracy"))[::2]] == forms
    words = {text.get_text() for text in drawing.sequences(table).axes[0].texts}
    assert {f"● {form}" for form in forms} <= words
    draw(study, tmp_path / "study")


# --- Sweeps ---


def test_a_sweep_has_a_row_of_panels_with_every_stage_of_every_task_once(tmp_path: Path) -> None:
    given = config()
    (lineage,) = given["lineages"]
    given["seeds"] = [0, 1]
    given["recipes"]["sft"]["half"] = given["recipes"]["sft"]["brief"] | {"epochs": [4], "fraction": 0.5}
    given["lineages"] = [
        lineage | {"sweep": "epochs", "cpt": ["none"], "rl": []},
        lineage | {"sweep": "data", "tasks": ["cell-type"], "cpt": ["none"], "sft": ["half"], "rl": []},
        lineage | {"sweep": "rl", "tasks": ["cell-type"], "cpt": ["none"]},
    ]
    study = load(given)
    plant(study, tmp_path, size=40)
    table = shown(study, tmp_path, tmp_path / "study")
    figure = drawing.sweeps(table, study)
    drawn = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title(loc="left") for axes in drawn] == ["splice-donor", "cell-type", "cell-type", "cell-type"]
    heads = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert heads == ["epochs", "data", "rl"]
    rows = [[label.get_text() for label in axes.get_yticklabels()] for axes in (drawn[0], drawn[2], drawn[3])]
    assert rows[0] == [f"no CPT · SFT brief e{epochs}" for epochs in (1, 2, 4, 8)]
    assert rows[1] == ["no CPT · SFT half e4"]
    assert rows[2][-1] == "no CPT · SFT brief e8 → RL e1"
    wanted = table[(table.metric == "balanced_accuracy") & (table.task == "splice-donor") & (table.split == "ood")]
    wanted = wanted[(wanted.kind == "sft") & (wanted.cpt == "none")].sort_values("sft_epochs").value
    marks = drawn[0].containers[1].lines[0].get_xdata()
    assert list(marks) == pytest.approx(list(wanted))


def test_lineages_without_a_sweep_are_not_drawn_as_one(tmp_path: Path) -> None:
    given = config(tasks=["cell-type"], cpt=["none"], rl=[])
    del given["lineages"][0]["sweep"]
    study = load(given)
    plant(study, tmp_path, size=40)
    (text,) = drawing.sweeps(shown(study, tmp_path, tmp_path / "study"), study).texts
    assert text.get_text() == "The lineages of this study name no sweep."


def test_recipes_of_one_rung_are_no_ladders_where_there_are_ladders(tmp_path: Path) -> None:
    given = config(cpt=["none"], sft=["brief", "once"], rl=[])
    given["recipes"]["sft"]["once"] = given["recipes"]["sft"]["brief"] | {"epochs": [4]}
    study = load(given)
    plant(study, tmp_path, size=40)
    table = shown(study, tmp_path, tmp_path / "study")
    for figure in (drawing.sft_ladder(table, "accuracy"), drawing.generalization_gap(table)):
        assert not any("once" in title for title in titles(figure))
    one = table[table.sft != "brief"]
    assert any("cell-type" in title for title in titles(drawing.sft_ladder(one, "accuracy")))


# --- Reward while RL trains ---


def test_rewards_have_a_row_for_every_logged_step_of_every_rl_model(tmp_path: Path) -> None:
    given = config(cpt=["none"], tasks=["splice-donor"])
    given["recipes"]["rl"]["grpo"]["epochs"] = [1, 2]
    study = load(given)
    plant(study, tmp_path, size=40)
    gather(study, tmp_path, tmp_path / "study")
    table = pd.read_parquet(tmp_path / "study" / REWARDS)
    assert list(table.columns) == [*IDENTITY, *LOGGED]
    rungs = {model: list(rows.step) for model, rows in table.groupby("model")}
    start = "nano/base/splice-donor/s0/sft-brief"
    expected = {1: [10, 16], 2: [10, 16, 20, 30, 32]}
    assert rungs == {f"{start}/e{sft}/rl-grpo/e{rl}": expected[rl] for sft in (1, 8) for rl in (1, 2)}
    row = table.iloc[0]
    assert (row.step, row.epoch, row.reward, row.reward_std, row.frac_reward_zero_std) == (10, 0.625, 0.6, 0.3, 0.25)
    ends = drawing._last_rungs(table, study)
    assert set(ends.model) == {f"{start}/e{sft}/rl-grpo/e2" for sft in (1, 8)}


@pytest.mark.parametrize("text", ["{", "3", "[]", "[3]", '[{"step": 1, "loss": 0}]', '[{"step": 1, "reward": 0}]'])
def test_gather_names_a_history_without_rewards_and_the_folder_to_delete(text: str, tmp_path: Path) -> None:
    study = load(config(cpt=["none"], tasks=["splice-donor"]))
    plant(study, tmp_path, size=40)
    file = tmp_path / "models/nano/base/splice-donor/s0/sft-brief/e8/rl-grpo/e1/checkpoint/history.json"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        gather(study, tmp_path, tmp_path / "study")
    assert str(caught.value).startswith(f"{file}: ")
    assert f"delete {file.parent} and run snakemake again" in str(caught.value)


def test_a_reward_without_a_spread_is_kept_as_missing(tmp_path: Path) -> None:
    study = load(config(cpt=["none"], tasks=["splice-donor"], rl=[{"recipe": "grpo", "from": [1]}]))
    plant(study, tmp_path, size=40)
    file = tmp_path / "models/nano/base/splice-donor/s0/sft-brief/e1/rl-grpo/e1/checkpoint/history.json"
    logged = json.loads(file.read_text())
    logged[0]["reward_std"] = None  # as NaN is written
    file.write_text(json.dumps(logged))
    gather(study, tmp_path, tmp_path / "study")
    assert list(pd.read_parquet(tmp_path / "study" / REWARDS).reward_std.isna()) == [True, False]


def test_means_of_quarters_count_a_logged_value_by_its_steps() -> None:
    reward = pd.Series([1.0, 2.0, 3.0, 7.0], index=[10, 20, 30, 32])
    assert drawing._between(reward, 0, 8) == pytest.approx(1.0)
    assert drawing._between(reward, 24, 32) == pytest.approx((6 * 3 + 2 * 7) / 8)
    assert drawing._between(reward, 0, 32) == pytest.approx((10 + 20 + 30 + 14) / 32)
    assert list(drawing._middles(reward.index)) == [5, 15, 25, 31]
    steps = pd.Series(np.arange(100.0), index=np.arange(1, 101))
    assert drawing._between(steps, 0, 25) == pytest.approx(np.arange(25).mean())
    assert drawing._between(steps, 75, 100) == pytest.approx(np.arange(75, 100).mean())


def test_the_reward_figure_has_a_panel_a_task_and_says_first_and_last_quarter(
    formed: tuple[Study, Path], tmp_path: Path
) -> None:
    study, results = formed
    gather(study, results, tmp_path)
    rewards = pd.read_parquet(tmp_path / REWARDS)
    figure = drawing.rl_reward(rewards, study.tasks)
    assert titles(figure) == [f"{task} · 16 steps, logged 2 times" for task in ("splice-donor", "cell-type")]
    donor, cells = ([text.get_text() for text in axes.texts] for axes in figure.axes)
    assert len(donor) == 2 * 2 * 2
    assert len(cells) == 2 * 2
    assert "0.60 → 0.66  features · CPT bio · SFT e8 → RL e1" in donor
    lines = {line.get_linestyle() for line in figure.axes[0].lines}
    assert lines == {"-", "--"}
    (text,) = drawing.rl_reward(rewards.iloc[:0], study.tasks).texts
    assert text.get_text() == "This study has no RL stage."
