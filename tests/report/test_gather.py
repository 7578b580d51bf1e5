"""The tables of a report, from files as `cisterna evaluate` and `cisterna rl` write them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted import Planted, config
from sklearn.metrics import roc_auc_score

from cisterna.artifacts import files
from cisterna.errors import UserError
from cisterna.report import GAINS_TABLE, METRICS_TABLE, REWARDS_TABLE, pages, tables
from cisterna.report.figures import rl_reward
from cisterna.report.gather import GROUP, IDENTITY, LOGGED, NUMBERS, gather
from cisterna.scoring import gene_ontology
from cisterna.tasks import catalog

START = "models/nano/base/splice-donor/s0/sft-brief"


def test_metrics_have_a_row_for_every_model_split_and_metric(planted: Planted) -> None:
    study, table = planted.study, planted.read(METRICS_TABLE)
    assert list(table.columns) == [*IDENTITY, *NUMBERS, *GROUP]
    assert not table.drop(columns=["seed", "sequences", "encoder", "group"]).isna().any(axis=None)
    assert table.group.isna().all()
    assert set(table.loc[table.kind != "baseline", "sequences"]) == {"tokens"}
    assert table.loc[table.kind == "baseline", "sequences"].isna().all()
    assert table.encoder.isna().all()
    assert not table.duplicated(["model", "task", "split", "metric"]).any()
    accuracy = table[table.metric == "accuracy"]
    assert len(accuracy) == 2 * (len(study.evaluations()) + 3 * len(study.tasks))
    models = set(table.loc[table.kind != "baseline", "model"])
    assert models == {path.removeprefix("models/") for _, path, _ in study.evaluations()}

    rung = "nano/cpt-bio/splice-donor/s0/sft-brief/e4"
    row = accuracy[(accuracy.model == rung) & (accuracy.split == "ood")].iloc[0]
    assert (row.kind, row.modality, row.cpt, row.seed, row.sft) == ("sft", "rna", "bio", 0, "brief")
    assert (row.sft_epochs, row.rl, row.rl_epochs) == (4, "none", 0)
    written = files.read_json(planted.results / "models" / rung / "eval" / "metrics.json")
    expected = written["ood"]["accuracy"]
    assert {name: row[name] for name in expected} == expected


def test_metrics_have_the_perplexities_of_base_and_cpt(planted: Planted) -> None:
    rows = planted.tables.perplexity
    assert set(rows.task) == set(planted.study.corpora)
    assert set(rows.model) == {"nano/base", "nano/cpt-bio"}
    assert set(rows.split) == {"heldout"}


def test_gains_are_paired_differences_from_the_parent(planted: Planted) -> None:
    gains = planted.read(GAINS_TABLE)
    table = planted.read(METRICS_TABLE).set_index(["model", "task", "split", "metric"])
    assert len(gains[gains.metric == "skill"]) == 2 * 2 * 2 * 2
    for row in gains.itertuples():
        after = table.value[row.model, row.task, row.split, row.metric]
        before = table.value[row.parent, row.task, row.split, row.metric]
        assert row.value == pytest.approx(after - before, abs=1e-9)
        assert row.low <= row.high
    accuracy, prior, skill = (
        gains[gains.metric == metric].value.to_numpy() for metric in ("accuracy", "prior_accuracy", "skill")
    )
    assert np.allclose(accuracy, prior + skill)


def test_gains_of_probabilities_are_paired_too_where_both_models_have_them(small: Planted) -> None:
    """Evaluations of earlier versions have none."""
    assert "auroc" not in set(gathered(small).metric)
    rng = np.random.default_rng(0)
    expected = {}
    for folder in (START + "/e8/eval", START + "/e8/rl-grpo/e1/eval"):
        for split in ("id", "ood"):
            path = small.results / folder / f"{split}.parquet"
            frame = pd.read_parquet(path)
            first, second = catalog.LABELS["splice-donor"]
            likely = np.where(frame.answer == first, 0.3, 0) + 0.7 * rng.random(len(frame))
            frame.assign(**{f"probability:{first}": likely, f"probability:{second}": 1 - likely}).to_parquet(path)
            expected[folder, split] = roc_auc_score(frame.answer == first, likely)
    gains = gathered(small)
    gains = gains[gains.metric == "auroc"].set_index(["model", "split"])
    assert len(gains) == 2
    for split in ("id", "ood"):
        row = gains.loc[START.removeprefix("models/") + "/e8/rl-grpo/e1", split]
        after, before = expected[START + "/e8/rl-grpo/e1/eval", split], expected[START + "/e8/eval", split]
        assert row.value == pytest.approx(after - before, abs=1e-6)
        assert row.low < row.value < row.high


def gathered(of: Planted) -> pd.DataFrame:
    """The gains of a study, gathered now."""
    gather(of.study, of.results, of.results / "now")
    return pd.read_parquet(of.results / "now" / GAINS_TABLE)


def test_another_engine_is_named_in_the_cells_and_on_the_page(small: Planted) -> None:
    assert "engine" not in small.tables.cells
    assert "Engines:" not in small.page
    engine = {"name": "vllm", "version": "0.32.0", "dtype": "float32"}
    files.write_json(small.results / START / "e8/eval/engine.json", engine)
    files.write_json(small.results / START / "e8/rl-grpo/e1/checkpoint/manifest.json", {"trained": {"engine": engine}})
    gather(small.study, small.results, small.folder)
    again = Planted(small.study, small.results)
    cells = again.tables.cells
    named = cells[cells.engine.notna()]
    assert list(zip(named.cell, named.model, named.engine, strict=True)) == [
        ("evaluation", START.removeprefix("models/") + "/e8", "vllm 0.32.0, float32"),
        ("rl_rewards", START.removeprefix("models/") + "/e8/rl-grpo/e1", "vllm 0.32.0, float32"),
    ]
    runs = sum(model.kind == "rl" for model in small.study.models)
    evaluations = len(small.study.evaluations())
    assert f"the answers of evaluations are from vllm 0.32.0, float32 (1 of {evaluations});" in again.page
    assert f"the completions in RL are from vllm 0.32.0, float32 (1 of {runs});" in again.page


def test_a_planted_prior_shift_shows_as_prior_and_planted_knowledge_as_skill(tmp_path: Path) -> None:
    gains = Planted.of(config(cpt=["none"], tasks=["splice-donor"]), tmp_path, size=4000).read(GAINS_TABLE)
    gains = gains[gains.sft_epochs == 8].set_index(["split", "metric"])
    shifted, learned = gains.loc["ood"], gains.loc["id"]
    assert shifted.low["accuracy"] > 0.05
    assert shifted.value["prior_accuracy"] == pytest.approx(shifted.value["accuracy"], abs=0.04)
    assert abs(shifted.value["skill"]) < 0.04
    assert learned.low["skill"] > 0.02
    assert abs(learned.value["prior_accuracy"]) < 0.02


def test_what_is_missing_is_listed_and_nothing_is_written(small: Planted) -> None:
    rung = small.results / START / "e8"
    gone = [
        rung / "eval" / "metrics.json",
        rung / "rl-grpo/e1/eval/ood.parquet",
        small.results / "baselines/splice-donor/metrics.json",
        rung / "rl-grpo/e1/checkpoint/history.json",
    ]
    for path in gone:
        path.unlink()
    with pytest.raises(UserError, match=f"{len(gone)} results") as caught:
        gather(small.study, small.results, small.results / "study")
    assert all(str(path) in str(caught.value) for path in gone)
    assert not (small.results / "study").exists()


def test_metrics_of_groups_and_of_no_examples_have_rows_of_their_own(small: Planted, tmp_path: Path) -> None:
    file = small.results / START / "e2/eval/metrics.json"
    written = files.read_json(file)
    summary = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 8}
    written["ood"]["ece"] = {"value": None, "low": None, "high": None, "n": 0}
    written["groups"] = {"id": {}, "ood": {"GC": {"accuracy": summary, "balanced_accuracy": summary}}}
    before = small.read(METRICS_TABLE)
    files.write_json(file, written)
    gather(small.study, small.results, tmp_path / "after")
    after = pd.read_parquet(tmp_path / "after" / METRICS_TABLE)
    added = after[after.group.notna() | (after.metric == "ece")]
    pd.testing.assert_frame_equal(after.drop(added.index).reset_index(drop=True), before)
    rows = [tuple(row) for row in added[["split", "metric", "group", "value", "n"]].fillna("none").to_numpy()]
    assert rows == [
        ("ood", "ece", "none", "none", 0),
        ("ood", "accuracy", "GC", 0.5, 8),
        ("ood", "balanced_accuracy", "GC", 0.5, 8),
    ]


def test_gains_of_sets_of_terms_are_of_their_own_metrics(of_terms: Planted, tmp_path: Path) -> None:
    gains = of_terms.read(GAINS_TABLE).set_index(["model", "split", "metric"])
    table = of_terms.read(METRICS_TABLE).set_index(["model", "task", "split", "metric"])
    start = "nano/base/functions/s0/sft-brief/e1"
    child = f"{start}/rl-grpo/e1"
    for split in ("id", "ood"):
        for metric in ("f1_micro", "precision_micro", "recall_micro", "accuracy"):
            row = gains.loc[child, split, metric]
            after, before = (table.value[model, "functions", split, metric] for model in (child, start))
            assert row.value == pytest.approx(after - before)
            assert row.low < row.value < row.high or (row.low == row.high == row.value)
    assert "skill" not in gains.loc[child].index.get_level_values("metric")
    without = tmp_path / "results"
    without.mkdir()
    for folder in of_terms.results.iterdir():
        if folder.name not in ("data", "study"):
            (without / folder.name).symlink_to(folder)
    with pytest.raises(UserError, match=rf"functions/{gene_ontology.FILE}"):
        gather(of_terms.study, without, tmp_path / "study")


@pytest.mark.parametrize("text", ["{", "[]", '{"id": {}}', '{"id": {}, "ood": {}, "groups": {"id": 3}}'])
def test_a_file_without_metrics_is_named(text: str, small: Planted) -> None:
    file = small.results / START / "e2/eval/metrics.json"
    file.write_text(text)
    with pytest.raises(UserError, match=str(file)):
        gather(small.study, small.results, small.results / "study")


def test_predictions_on_different_examples_are_not_paired(small: Planted) -> None:
    file = small.results / START / "e8/eval/id.parquet"
    pd.read_parquet(file).iloc[1:].to_parquet(file, index=False)
    with pytest.raises(UserError, match="different id examples"):
        gather(small.study, small.results, small.results / "study")


def test_forms_and_their_encoders_are_in_every_table(formed: Planted) -> None:
    for name in (METRICS_TABLE, GAINS_TABLE, REWARDS_TABLE):
        table = formed.read(name)
        place = list(table.columns).index("seed")
        assert list(table.columns)[place + 1 : place + 3] == ["sequences", "encoder"]
        trained = table[table.kind.isin(["sft", "rl"])]
        rows = set(zip(trained.task, trained.sequences, trained.encoder.fillna("none"), strict=True))
        tokens = {(task, "tokens", "none") for task in ("splice-donor", "cell-type")}
        assert rows == tokens | {("splice-donor", "features", "nano-esm")}
    untrained = formed.read(METRICS_TABLE).query("kind in ('base', 'cpt')")
    assert set(untrained.sequences) == {"tokens"}


def test_rewards_have_a_row_for_every_logged_step_of_every_rl_model(small: Planted) -> None:
    table = small.read(REWARDS_TABLE)
    assert list(table.columns) == [*IDENTITY, *LOGGED]
    rungs = {f"models/{model}": list(rows.step) for model, rows in table.groupby("model")}
    expected = {1: [10, 16], 2: [10, 16, 20, 30, 32]}
    assert rungs == {f"{START}/e{sft}/rl-grpo/e{rl}": expected[rl] for sft in (1, 8) for rl in (1, 2)}
    row = table.iloc[0]
    assert (row.step, row.epoch, row.reward, row.reward_std, row.frac_reward_zero_std) == (10, 0.625, 0.6, 0.3, 0.25)


@pytest.mark.parametrize("text", ["{", "[3]", '[{"step": 1, "loss": 0}]', '[{"step": 1, "reward": 0}]'])
def test_a_history_without_rewards_is_named_with_the_folder_to_delete(text: str, small: Planted) -> None:
    file = small.results / START / "e8/rl-grpo/e1/checkpoint/history.json"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        gather(small.study, small.results, small.results / "study")
    assert str(caught.value).startswith(f"{file}: ")
    assert f"delete {file.parent} " in str(caught.value)


def test_a_reward_without_a_spread_is_kept_as_missing(small: Planted) -> None:
    file = small.results / START / "e1/rl-grpo/e1/checkpoint/history.json"
    logged = json.loads(file.read_text())
    logged[0]["reward_std"] = None  # as NaN is written
    file.write_text(json.dumps(logged))
    rewards = small.read(REWARDS_TABLE).set_index("model")
    spread = rewards.reward_std[f"{START}/e1/rl-grpo/e1".removeprefix("models/")]
    assert list(spread.isna()) == [True, False]


def test_results_page_says_how_many_bits_the_weights_of_a_backbone_were_stored_in(
    small: Planted, tmp_path: Path
) -> None:
    def page() -> str:
        gather(small.study, small.results, tmp_path)
        return pages.results(tables.read(small.study, tmp_path), small.study.name)

    assert "were stored in" not in page()
    manifest = small.results / "models" / "nano" / "base" / "checkpoint" / "manifest.json"
    manifest.parent.mkdir(parents=True, exist_ok=True)
    stored = {"file": "nano.Q4_1.gguf", "bits": 4, "types": {"F32": 2, "Q4_1": 98}}
    files.write_json(manifest, {"trained": {"quantization": stored}})
    assert "<b>nano</b> were stored in 4 bits in nano.Q4_1.gguf (Q4_1 98%, F32 2%)" in page()


def test_kl_and_entropy_of_runs_with_a_penalty_are_in_the_table_and_on_the_page(small: Planted, tmp_path: Path) -> None:
    histories = sorted(small.results.glob("models/**/rl-*/e*/checkpoint/history.json"))
    for path in histories[:1]:
        entries = files.read_json(path)
        files.write_json(path, [entry | {"kl": 0.25, "entropy": 0.5} for entry in entries])
    gather(small.study, small.results, tmp_path)
    rewards = pd.read_parquet(tmp_path / REWARDS_TABLE)
    assert list(rewards.columns) == [*IDENTITY, *LOGGED, "kl", "entropy"]
    assert rewards.groupby("model").kl.agg("count").gt(0).sum() == 1
    page = pages.results(tables.read(small.study, tmp_path), small.study.name)
    assert page.count("0.250 &rarr; 0.250") == 1
    assert page.count("0.500 &rarr; 0.500") == 1


def test_rewards_on_validation_are_rows_of_their_own_dots_in_the_figure_and_on_the_page(
    small: Planted, tmp_path: Path
) -> None:
    path = max(small.results.glob("models/**/rl-*/e*/checkpoint/history.json"))
    entries = [entry | {"kl": 0.25, "entropy": 0.5} for entry in files.read_json(path)]
    held_out = [{"step": 16, "epoch": 1.0, "eval_reward": 0.375}, {"step": 32, "epoch": 2.0, "eval_reward": 0.625}]
    files.write_json(path, entries + held_out)
    gather(small.study, small.results, tmp_path)
    of = tables.read(small.study, tmp_path)
    assert list(of.rewards.columns)[-3:] == ["kl", "entropy", "split"]
    found = of.rewards[of.rewards.split == "validation"]
    assert found[["step", "reward"]].to_numpy().tolist() == [[16, 0.375], [32, 0.625]]
    assert of.rewards.split.value_counts().to_dict() == {"train": 14, "validation": 2}
    dots = [
        line for axes in rl_reward.draw(of.rewards, small.study).axes for line in axes.lines if line.get_marker() == "o"
    ]
    assert [list(line.get_ydata()) for line in dots if len(line.get_ydata())] == [[0.375, 0.625]]
    assert "0.375 &rarr; 0.625" in pages.results(of, small.study.name)
