"""Published numbers beside those of a study: what is joined, what is shown, and the file of the paper's numbers."""

import re
from pathlib import Path

import pandas as pd
import pytest
from planted import Planted, config

from cisterna import study
from cisterna.errors import UserError
from cisterna.report import figures, pages, published
from cisterna.study import load
from tiny import ROOT

PAPER = ROOT / "resources" / "paper-results.parquet"
ROW = {"task": "splice-donor", "backbone": "nano", "cpt": "none", "sft": "brief", "sft_epochs": 4, "rl": "none"}
ROW |= {"rl_epochs": 0, "split": "id+ood", "metric": "accuracy", "value": 0.9069, "n": 290, "source": "table 1"}


def frame(*rows: dict) -> pd.DataFrame:
    return pd.DataFrame([dict.fromkeys(published.COLUMNS) | ROW | row for row in rows])


def written(path: Path, *rows: dict) -> Path:
    (frame(*rows).to_csv if path.suffix == ".csv" else frame(*rows).to_parquet)(path, index=False)
    return path


def cells(part: str) -> list[list[str]]:
    """The rows of a table, as text, without intervals."""
    part = re.sub(r"<span>.*?</span>", "", part)
    rows = re.findall(r"<tr.*?</tr>", part.partition("<tbody>")[2], re.DOTALL)
    return [[re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<td.*?</td>", row, re.DOTALL)] for row in rows]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_report_has_published_numbers_beside_its_own(planted: Planted, tmp_path, monkeypatch, ending) -> None:
    rows = [
        {},
        {"sft_epochs": 8, "value": None, "n": None},
        {"rl": "grpo", "rl_epochs": 1, "sft_epochs": 8, "split": "ood", "value": 0.5, "note": "<b>other examples</b>"},
        {"sft": "elsewhere"},
        {"task": "not-here"},
        {"metric": "loss", "split": "validation"},
        {"task": "dna", "cpt": "bio", "sft": "none", "sft_epochs": 0, "split": "heldout", "metric": "perplexity"},
    ]
    path = written(tmp_path / f"numbers.{ending}", *rows)
    with_numbers = load(config() | {"report": {"published": str(path)}})
    monkeypatch.setattr(figures, "DRAWINGS", {})
    figures.figures(with_numbers, planted.folder, tmp_path / "figures")
    page = (tmp_path / "figures" / "table.html").read_text()
    before, _, part = page.partition("<h1>Published numbers beside those of this study</h1>")
    assert before.startswith(planted.page.partition("<h1>What RL adds")[0])
    titles = re.findall(r"<h2>(.*?) <small>", part)
    assert titles == ["splice-donor · accuracy", "dna · perplexity"]

    metrics = planted.tables.metrics
    metrics = metrics[
        (metrics.kind != "baseline")
        & (metrics.task == "splice-donor")
        & (metrics.metric == "accuracy")
        & (metrics.cpt == "none")
    ]
    ours = metrics.set_index(["sft_epochs", "rl", "split"]).value
    shown = cells(part.partition("<h2>dna")[0])
    for line, key, was in zip(
        shown, [(4, "none"), (8, "none"), (8, "grpo")], ["0.9069", "not published", "0.5000"], strict=True
    ):
        own_id, own_ood = ours[(*key, "id")], ours[(*key, "ood")]
        assert line[1] == was
        assert line[4:] == [f"{value:.4f}" for value in (own_id, own_ood, (own_id + own_ood) / 2)]
    assert shown[0][2:4] == ["290", "ID and OOD together"]
    assert "1 more published number is of models that this study does not have" in part
    assert "&lt;b&gt;other examples&lt;/b&gt;" in part
    assert "<b>other" not in part
    assert cells(part.partition("<h2>dna")[2])[0][4:] == ["20.00"]


def test_a_number_of_an_encoder_is_beside_models_that_read_its_features(formed: Planted) -> None:
    table = published.read(written(formed.results / "encoder.parquet", {"encoder": "nano-esm"}, {}))
    page = pages.results(formed.tables, "formed", numbers=[table])
    lines = cells(page.partition("<h1>Published numbers")[2])
    assert [line[1] for line in lines] == ["features (nano-esm)", "", "features (nano-esm)"]


def test_a_page_without_published_numbers_is_what_it_was(planted: Planted) -> None:
    elsewhere = published.read(written(planted.results / "elsewhere.parquet", {"backbone": "other"}))
    assert pages.results(planted.tables, planted.study.name, numbers=[elsewhere]) == planted.page


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"split": "test"}], r"row 1: split 'test'; expected one of id, ood, id\+ood, heldout, validation, train"),
        ([{}, {"task": None}], "row 2: no task"),
        ([{"value": "high"}], "column value: .*expected float64"),
        ([{"sft_epochs": "1.5"}], "column sft_epochs: .*expected int64"),
        ([{"accuracy": 0.5}], "has the columns .*accuracy; expected finding, task"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, rows: list[dict], said: str) -> None:
    with pytest.raises(UserError, match=rf"numbers.csv.*{said}"):
        published.read(written(tmp_path / "numbers.csv", *rows))
    (tmp_path / "broken.parquet").write_text("no table")
    with pytest.raises(UserError, match=r"broken.parquet: cannot be read as published numbers"):
        published.read(tmp_path / "broken.parquet")


# --- The numbers of the paper ---


@pytest.fixture(scope="module")
def paper() -> pd.DataFrame:
    return published.read(PAPER)


def test_the_table_of_the_paper_is_made_from_its_csv(paper: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(paper, published.read(PAPER.with_suffix(".csv")))


def test_accuracies_of_the_paper_are_shares_of_290_examples(paper: pd.DataFrame) -> None:
    accuracy = paper[paper.metric == "accuracy"].dropna(subset="value")
    assert len(accuracy) == 6 + 5 + 6 + 3 + 10
    assert set(accuracy.n) == {290}
    assert ((accuracy.value * 290).round() / 290 - accuracy.value).abs().max() < 5e-5 + 1e-12


def test_losses_and_perplexities_of_the_paper_agree(paper: pd.DataFrame) -> None:
    import numpy as np

    table = paper[paper.task == "biology"].pivot_table(index=["backbone", "cpt"], columns="metric", values="value")
    assert len(table) == 8
    assert (np.exp(table.loss) - table.perplexity).abs().max() < 0.011
    best = table.perplexity.groupby("backbone").idxmin()
    assert list(best) == [("qwen3-1.7b", "lr3e-4-acc128"), ("qwen3-4b", "lr1e-5-acc64")]


def test_cpt_helps_in_one_of_eight_cells_as_the_page_says(paper: pd.DataFrame) -> None:
    ladder = paper[(paper.metric == "accuracy") & (paper.source.str.endswith("5a"))]
    cpt = ladder.cpt.ne("none")
    both = ladder[cpt].merge(ladder[~cpt], on=["backbone", "sft_epochs"]).dropna(subset=["value_x", "value_y"])
    assert len(both) == 8
    assert (both.value_x > both.value_y).sum() == 1
    assert "CPT helps in one of eight" in (ROOT / "docs" / "paper-results.md").read_text()


def test_every_published_number_of_the_paper_names_a_model_of_its_config(paper: pd.DataFrame) -> None:
    stages = ("backbone", "encoder", "cpt", "sft", "sft_epochs", "rl", "rl_epochs")
    models = study.read(ROOT / "config" / "paper.yaml").models
    known = {(model.task or "biology", *(getattr(model, name) or "none" for name in stages)) for model in models}
    rows = (
        paper[paper.rl_epochs <= 8]
        .fillna({"encoder": "none"})
        .replace({"sft_epochs": {0: "none"}, "rl_epochs": {0: "none"}})
    )
    assert len(rows) == len(paper) - 4
    assert set(rows[["task", *stages]].itertuples(index=False, name=None)) <= known


def test_the_page_has_every_number_of_the_table(paper: pd.DataFrame) -> None:
    text = (ROOT / "docs" / "paper-results.md").read_text()
    for row in paper.dropna(subset="value").itertuples():
        digits = {"accuracy": 4, "perplexity": 2, "loss": 4, "reward_correct": 3}[row.metric]
        assert re.search(rf"(?<!\d){row.value:.{digits}f}(?!\d)", text), row
