"""Figures and the page of results, from gathered tables."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from planted import SIZE, Planted, config, forms

from cisterna.artifacts import files
from cisterna.report import CELLS_TABLE, FIGURES, GAINS_TABLE, METRICS_TABLE, RESULTS_PAGE, REWARDS_TABLE, tables
from cisterna.report.figures import DRAWINGS, figures, generalization_gap, label_prior, rl_reward, sft_accuracy
from cisterna.report.figures.style import spread
from cisterna.report.gather import IDENTITY, LOGGED, gather
from tiny import ROOT


def text(figure: Figure) -> str:
    """The only text of a figure that says what a study does not have."""
    (text,) = figure.texts
    return text.get_text()


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def sections(page: str) -> list[str]:
    return page.split("<h2>")[1:]


# --- All figures ---


def test_every_figure_is_drawn_and_has_a_caption() -> None:
    assert list(DRAWINGS) == list(FIGURES)
    for name in (*FIGURES, Path(RESULTS_PAGE).stem, "workflow"):
        assert len((ROOT / "workflow" / "report" / f"{name}.rst").read_text()) > 200, name


def test_the_same_evaluations_give_the_same_bytes(formed: Planted, tmp_path: Path) -> None:
    hashes = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        gather(formed.study, formed.results, folder)
        figures(formed.study, folder, folder)
        hashes.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()})
    assert hashes[0] == hashes[1]
    pictures = {f"{name}.{kind}" for name in FIGURES for kind in ("svg", "png")}
    assert set(hashes[0]) == pictures | {RESULTS_PAGE, METRICS_TABLE, GAINS_TABLE, REWARDS_TABLE, CELLS_TABLE}
    for name in FIGURES:
        svg = (tmp_path / "first" / f"{name}.svg").read_text()
        assert svg.count("<path") > 50
        assert "date" not in svg
        assert (tmp_path / "first" / f"{name}.png").stat().st_size > 10_000


def test_several_seeds_backbones_and_recipes_are_told_apart(tmp_path: Path) -> None:
    study = config(
        tasks=["cell-type"],
        backbones=["nano", "nano-2"],
        sft=["brief", "long"],
        rl=[{"recipe": "grpo", "from": [1, "cold"]}, {"recipe": "slow", "from": [1]}],
    )
    study["seeds"] = [0, 1]
    study["backbones"]["nano-2"] = study["backbones"]["nano"]
    study["recipes"]["sft"]["long"] = study["recipes"]["sft"]["brief"] | {"epochs": [1, 16]}
    study["recipes"]["rl"]["slow"] = study["recipes"]["rl"]["grpo"] | {"epochs": [1, 2]}
    several = Planted.of(study, tmp_path, size=40)
    assert list(several.drawn) == list(FIGURES)
    assert "nano-2 · CPT bio · SFT long e1 → RL slow e2" in several.page
    assert "2 training seeds" in several.page


def test_rl_without_sft_is_compared_with_its_base_or_cpt_model_and_drawn(tmp_path: Path) -> None:
    cold = Planted.of(config(sft=[], rl=[{"recipe": "grpo", "from": ["cold"]}]), tmp_path, size=40)
    assert set(cold.read(GAINS_TABLE).parent) == {"nano/base", "nano/cpt-bio"}
    assert text(cold.drawn["sft_accuracy"]) == "This study has no SFT stage."


def test_a_study_without_rl_or_named_sweeps_has_figures_that_say_so(tmp_path: Path) -> None:
    without = config(tasks=["cell-type"], rl=[])
    del without["lineages"][0]["sweep"]
    study = Planted.of(without, tmp_path, size=40)
    assert len(study.read(GAINS_TABLE)) == 0
    assert list(study.read(REWARDS_TABLE).columns) == [*IDENTITY, *LOGGED]
    for name in ("rl_gain", "rl_reward"):
        assert text(study.drawn[name]) == "This study has no RL stage."
    assert text(study.drawn["sweeps"]) == "The lineages of this study name no sweep."
    assert "What RL adds" not in study.page


def test_labels_at_the_edge_are_apart_and_as_near_to_their_values_as_can_be() -> None:
    alone = np.array([0.1, 0.5, 0.9])
    assert spread(alone, 0.1, -0.05, 1.05) == pytest.approx(alone)
    assert spread(np.array([0.5, 0.5, 0.9]), 0.1, -0.05, 1.05) == pytest.approx([0.45, 0.55, 0.9])
    assert spread(np.array([0.48, 0.5, 0.58]), 0.1, -0.05, 1.05) == pytest.approx([0.42, 0.52, 0.62])
    assert spread(np.array([1.04, 1.04]), 0.1, -0.05, 1.05) == pytest.approx([0.95, 1.05])
    too_many = np.full(12, 0.3)
    assert spread(too_many, 0.2, 0.0, 1.0) == pytest.approx(np.linspace(0, 1, 12))


# --- The page of results ---


def test_the_page_has_every_model_and_the_baselines(planted: Planted) -> None:
    page = planted.page
    assert page.count('<tr class="baseline">') == 3 * 2
    assert page.count('<tr class="sft">') == 4 * 2 * 2
    assert page.count('<tr class="rl">') == 2 * (2 * 2 * 2)  # results, and what RL adds
    assert all(word in page for word in ("Perplexity", "1000.0", "20.0"))
    assert "http" not in re.sub("<script>.*?</script>", "", page, flags=re.DOTALL)
    assert "src=" not in page
    assert not re.search(r"\bnan\b", page)


def test_the_page_has_metrics_of_probabilities_where_some_were_measured(planted: Planted, small: Planted) -> None:
    """Results of earlier versions have none; where only one label occurs they are not defined."""
    assert "AUROC" not in planted.page
    path = small.results / "baselines" / "splice-donor" / "metrics.json"
    scores = files.read_json(path)
    for split in ("id", "ood"):
        scores["knn"][split]["auroc"] = {"value": 0.876, "low": 0.8, "high": 0.9, "n": 40}
        scores["logistic"][split]["auroc"] = {"value": None, "low": None, "high": None, "n": 0}
    files.write_json(path, scores)
    part = sections(small.page)[0]
    assert part.count(">AUROC</th>") == 2
    assert "AUPRC" not in part
    assert part.count(">0.876<span>0.80 to 0.90</span></td>") == 2
    assert part.count(">&ndash;</td>") == 2 * (part.count("<tr class=") - 1)
    assert not re.search(r"\bnan\b", part)


def test_the_page_has_lenient_accuracy_where_some_was_measured(planted: Planted, small: Planted) -> None:
    """Evaluations of earlier versions have none: their cells are empty, and without any there is no word of it."""
    assert "lenient" not in planted.page
    path = next(iter(sorted(small.results.rglob("eval/metrics.json"))))
    scores = files.read_json(path)
    for split in ("id", "ood"):
        scores[split]["accuracy_lenient"] = {"value": 0.876, "low": 0.8, "high": 0.9, "n": 40}
    files.write_json(path, scores)
    part = sections(small.page)[0]
    assert part.count(">lenient accuracy</th>") == 2
    assert part.count(">0.876<span>0.80 to 0.90</span></td>") == 2
    assert part.count(">&ndash;</td>") == 2 * (part.count("<tr class=") - 1)
    assert "form, not knowledge" in small.page
    gathered = small.read("metrics.parquet")
    assert gathered.metric.eq("accuracy_lenient").sum() == 2


def test_the_page_has_the_groups_of_a_split_side_by_side(planted: Planted, small: Planted) -> None:
    """Names of groups are the user's text; of one group alone the split says all."""
    assert "Each group" not in planted.page
    summary = {"value": 0.625, "low": 0.5, "high": 0.75, "n": 8}

    def groups(*names: str) -> dict:
        return {name: {"accuracy": summary, "auroc": summary} for name in names}

    for path in [*small.results.rglob("eval/metrics.json"), small.results / "baselines/splice-donor/metrics.json"]:
        scores = files.read_json(path)
        for of_model in scores.values() if "knn" in scores else [scores]:
            of_model["groups"] = {"id": groups("a"), "ood": groups("<b>new gene</b>", "new cell")}
        files.write_json(path, scores)
    (part,) = [part for part in sections(small.page) if part.startswith("splice-donor · out-of-domain (OOD)")]
    assert "2 groups" in part
    assert ">&lt;b&gt;new gene&lt;/b&gt; (n = 8)</th>" in part
    assert part.count(">0.625<span>0.50 to 0.75</span></td>") == 4 * (part.count("<tr class="))
    assert part.count("<tr class=") == part.count('<tr class="baseline">') + len(small.study.evaluations())
    assert not any(part.startswith("splice-donor · in-domain") for part in sections(small.page))


def test_the_page_does_not_show_very_many_groups(small: Planted) -> None:
    path = small.results / "baselines/splice-donor/metrics.json"
    scores = files.read_json(path)
    summary = {"value": 0.625, "low": 0.5, "high": 0.75, "n": 8}
    scores["knn"]["groups"] = {"id": {}, "ood": {f"family {row}": {"accuracy": summary} for row in range(13)}}
    files.write_json(path, scores)
    assert "13 groups: too many for this page" in small.page
    assert "family 3" not in small.page


def test_the_page_names_form_and_encoder_where_a_task_has_several(formed: Planted) -> None:
    parts = sections(formed.page)
    donor = [part for part in parts if part.startswith("splice-donor")]
    cells = [part for part in parts if part.startswith("cell-type")]
    assert len(donor) == len(cells) == 2  # results, and what RL adds
    assert all("features (nano-esm)" in part for part in donor)
    assert not any('class="form"' in part for part in cells)
    assert donor[0].count('<td class="form">features (nano-esm)</td>') == 2 * (4 + 2)
    assert donor[0].count('<td class="form">tokens</td>') == 2 * (1 + 4 + 2)
    assert donor[0].count('<td class="form"></td>') == 3


# --- Sets of terms ---


def test_a_task_of_sets_of_terms_has_micro_f1_in_every_figure_and_on_the_page(of_terms: Planted) -> None:
    ladder = of_terms.drawn["sft_accuracy"]
    assert [axes.get_ylabel() for axes in ladder.axes[::2]] == ["accuracy", "micro F1"]
    assert ladder.texts[0].get_text() == "Accuracy and micro F1 against SFT epochs"
    for of_labels in ("sft_balanced_accuracy", "label_prior"):
        assert all(title.startswith("splice-donor") for title in of_terms.titles(of_labels))
    gaps = [title.split(" · ")[1].split(" (")[0] for title in of_terms.titles("generalization_gap")]
    assert gaps == ["accuracy", "balanced accuracy", "micro F1", "micro precision"]
    assert of_terms.titles("rl_gain") == [
        "accuracy gain",
        "= shift of the label prior",
        "+ skill",
        "micro F1 gain",
        "micro precision",
        "micro recall",
    ]
    for part in sections(of_terms.page):
        assert ("micro F1" in part) == part.startswith("functions")
        assert ("MCC" in part) == part.startswith("splice-donor")


def test_a_study_of_sets_of_terms_alone_has_figures_that_say_what_it_lacks(of_terms: Planted) -> None:
    alone = of_terms.tables.metrics.query("task == 'functions'")
    assert "sets of terms" in text(sft_accuracy.draw(alone, "balanced_accuracy"))
    assert "labels" in text(label_prior.draw(alone))


def test_a_namespace_that_one_split_has_no_term_of_is_no_gap(of_terms: Planted) -> None:
    metrics = of_terms.tables.metrics
    whole = metrics[metrics.metric.str.startswith("f1_micro:")]
    assert set(whole.split) == {"id", "ood"}
    lacking = metrics.drop(whole.index[whole.split == "ood"])
    drawn = [axes.get_title(loc="left") for axes in generalization_gap.draw(lacking).axes]
    assert drawn == of_terms.titles("generalization_gap")


# --- Forms of the sequences ---


def test_no_mean_mixes_forms(formed: Planted) -> None:
    means, table = formed.tables.metrics, formed.read(METRICS_TABLE)
    accuracy = means[(means.metric == "accuracy") & (means.kind == "sft")]
    assert set(accuracy.seeds) == {1}
    assert all(len(each) == 1 for each in means.each)
    keys = ["task", "kind", "cpt", "sft_epochs", "split", "metric"]
    for row in accuracy[accuracy.task == "splice-donor"].itertuples():
        same = table[(table[keys] == [getattr(row, key) for key in keys]).all(axis=1)]
        assert len(same) == 2
        assert row.value == same[same.sequences == row.sequences].value.item()


def test_each_form_of_a_task_has_its_own_row_of_panels_and_tokens_are_not_named(formed: Planted) -> None:
    rows = [title.split(" · ")[:2] for title in formed.titles("sft_accuracy")[::2]]
    assert rows == [
        ["splice-donor", f"in-domain (ID), n = {SIZE}"],
        ["splice-donor", "features"],
        ["cell-type", f"in-domain (ID), n = {SIZE}"],
    ]
    gaps = [title.split(" · ")[1] for title in formed.titles("generalization_gap")[::2]]
    assert [gap.split(" ")[0] for gap in gaps] == ["accuracy", "features", "accuracy"]
    bars = [label.get_text() for label in formed.drawn["label_prior"].axes[0].get_yticklabels()]
    assert "no CPT · SFT e8" in bars
    assert "features · no CPT · SFT e8" in bars
    assert "features · no CPT · before SFT" not in bars
    starts = [label.get_text() for label in formed.drawn["rl_gain"].axes[0].get_yticklabels()]
    assert starts[0] == "no CPT · SFT e1 → RL e1"
    assert starts[-1] == "features · CPT bio · SFT e8 → RL e1"


def test_forms_are_compared_only_where_there_are_several(formed: Planted) -> None:
    figure = formed.drawn["sequences"]
    assert len(figure.axes) == 2 * 2  # splice-donor without and with CPT, ID and OOD
    heads = [text.get_text() for axes in figure.axes for text in axes.texts if "encoder" in text.get_text()]
    assert heads == ["splice-donor  (no CPT · encoder nano-esm)", "splice-donor  (CPT bio · encoder nano-esm)"]
    labels = [text.get_text() for text in figure.axes[0].texts]
    assert {"○ tokens", "● features", "logistic", "k-NN", "majority"} <= set(labels)


def test_a_study_of_tokens_names_no_forms(planted: Planted) -> None:
    assert text(planted.drawn["sequences"]) == "No task of this study has its sequences in more than one form."
    assert "<th class=" not in re.sub('<th class="first"', "", planted.page)
    assert "tokens" not in planted.page
    assert all("tokens" not in title for title in planted.titles("sft_accuracy"))
    assert "form" not in planted.drawn["lineage"].texts[1].get_text()


def test_rl_without_sft_on_features_and_a_task_of_features_alone_are_drawn(tmp_path: Path) -> None:
    cold = forms("features", "both", sft=[], rl=[{"recipe": "grpo", "from": ["cold"]}])
    assert len(Planted.of(cold, tmp_path / "cold", size=40).drawn["sequences"].axes) == 2 * 2
    alone = Planted.of(forms("features", tasks=["splice-donor"], cpt=["none"]), tmp_path / "alone", size=40)
    assert [title.split(" · ")[1] for title in alone.titles("sft_accuracy")] == ["features"] * 2


def test_two_encoders_of_a_task_are_never_one_line(tmp_path: Path) -> None:
    given = config(cpt=["none"], sequences=["features"], tasks=["splice-donor"], rl=[{"recipe": "grpo", "from": [8]}])
    given["encoders"]["other-esm"] = given["encoders"]["nano-esm"]
    given["tasks"]["splice-donor"] |= {"sequences": ["features"], "encoder": ["nano-esm", "other-esm"]}
    study = Planted.of(given, tmp_path, size=40)
    assert all(len(values) == 1 for values in study.tables.metrics.each)  # one seed: a mean of two would mix encoders
    names = [f"features of {name}" for name in ("nano-esm", "other-esm")]
    assert [title.split(" · ")[1] for title in study.titles("sft_accuracy")[::2]] == names
    labels = {text.get_text() for text in study.drawn["sequences"].axes[0].texts}
    assert {f"● {name}" for name in names} <= labels


# --- Sweeps and ladders ---


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
    study = Planted.of(given, tmp_path, size=40)
    panels = study.drawn["sweeps"].axes
    drawn = [axes for axes in panels if axes.axison]
    assert [axes.get_title(loc="left") for axes in drawn] == ["splice-donor", "cell-type", "cell-type", "cell-type"]
    assert [text.get_text() for axes in panels for text in axes.texts] == ["epochs", "data", "rl"]
    rows = [[label.get_text() for label in axes.get_yticklabels()] for axes in (drawn[0], drawn[2], drawn[3])]
    assert rows[0] == [f"no CPT · SFT brief e{epochs}" for epochs in (1, 2, 4, 8)]
    assert rows[1] == ["no CPT · SFT half e4"]
    assert rows[2][-1] == "no CPT · SFT brief e8 → RL e1"
    wanted = tables.rows(
        study.tables.metrics, metric="balanced_accuracy", task="splice-donor", split="ood", kind="sft", cpt="none"
    )
    points = drawn[0].containers[1].lines[0].get_xdata()
    assert list(points) == pytest.approx(list(wanted.sort_values("sft_epochs").value))


def test_recipes_of_one_rung_are_no_ladders_where_there_are_ladders(tmp_path: Path) -> None:
    given = config(cpt=["none"], sft=["brief", "once"], rl=[])
    given["recipes"]["sft"]["once"] = given["recipes"]["sft"]["brief"] | {"epochs": [4]}
    metrics = Planted.of(given, tmp_path, size=40).tables.metrics
    for figure in (sft_accuracy.draw(metrics, "accuracy"), generalization_gap.draw(metrics)):
        assert not any("once" in title for title in titles(figure))
    once = metrics[metrics.sft != "brief"]
    assert any("cell-type" in title for title in titles(sft_accuracy.draw(once, "accuracy")))


# --- Reward while RL trains ---


def test_means_of_quarters_weigh_a_logged_value_by_its_steps() -> None:
    reward = pd.Series([1.0, 2.0, 3.0, 7.0], index=[10, 20, 30, 32])
    assert rl_reward.mean_between(reward, 0, 8) == pytest.approx(1.0)
    assert rl_reward.mean_between(reward, 24, 32) == pytest.approx((6 * 3 + 2 * 7) / 8)
    assert rl_reward.mean_between(reward, 0, 32) == pytest.approx((10 + 20 + 30 + 14) / 32)
    assert list(rl_reward.middles(reward.index)) == [5, 15, 25, 31]
    steps = pd.Series(np.arange(100.0), index=np.arange(1, 101))
    assert rl_reward.mean_between(steps, 0, 25) == pytest.approx(np.arange(25).mean())
    assert rl_reward.mean_between(steps, 75, 100) == pytest.approx(np.arange(75, 100).mean())


def test_a_run_of_rl_is_drawn_once_with_the_history_of_its_last_rung(small: Planted) -> None:
    ends = rl_reward.last_rungs(small.read(REWARDS_TABLE), small.study)
    assert set(ends.model) == {f"nano/base/splice-donor/s0/sft-brief/e{sft}/rl-grpo/e2" for sft in (1, 8)}


def test_the_reward_figure_has_a_panel_a_task_and_names_first_and_last_quarter(formed: Planted) -> None:
    assert formed.titles("rl_reward") == [
        f"{task} · 16 steps, logged 2 times" for task in ("splice-donor", "cell-type")
    ]
    panels = formed.drawn["rl_reward"].axes
    donor, cells = ([text.get_text() for text in axes.texts] for axes in panels)
    assert len(donor) == 2 * 2 * 2
    assert len(cells) == 2 * 2
    assert "0.60 → 0.66  features · CPT bio · SFT e8 → RL e1" in donor
    assert {line.get_linestyle() for line in panels[0].lines} == {"-", "--"}
