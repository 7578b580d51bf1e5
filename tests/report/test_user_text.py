"""A user's text is data: labels stand in figures as they are, and a report is made whatever a figure does."""

import re
import warnings
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text
from planted import Planted, config

from cisterna.errors import UserError
from cisterna.report import CELLS_TABLE, FIGURES, RESULTS_PAGE, REWARDS_TABLE, findings, pages, statistics
from cisterna.report.figures import figures, label_prior, style
from cisterna.study import load

LABELS = [
    r"$\textit{TP53}$ mutant",  # mathtext that matplotlib does not know
    "5$ & 10$",  # mathtext that it knows
    "_low",  # left out of a legend that matplotlib makes by itself
    "100% {x} %(n)d",
    r"back\slash \n",
    "*x* `y`_ |z|",
    "'\"--",
    "שלום",
    "مرحبا",
]


def study(labels: list[str], **changes: Any) -> dict[str, Any]:
    given = config(tasks=["own"], cpt=["none"], rl=[], **changes)
    given["tasks"]["own"] = {
        "file": "own.csv",
        "modality": "protein",
        "columns": {"id": "variant", "sequence": "seq", "label": "class", "group": "family"},
        "labels": labels,
        "question": "Which one?",
        "ood": ["kinase"],
    }
    return given


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return Planted.of(study(LABELS), tmp_path_factory.mktemp("named"), size=40)


def test_labels_are_drawn_as_they_stand(named: Planted, tmp_path: Path) -> None:
    figure = named.drawn["label_prior"]
    assert sorted(legend(figure)) == sorted([*LABELS, "malformed"])
    assert not any(text.get_parse_math() for text in figure.findobj(Text))
    figures(named.study, named.folder, tmp_path)
    ElementTree.parse(tmp_path / "label_prior.svg")
    assert "could not be" not in (tmp_path / RESULTS_PAGE).read_text()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1), min_size=2, unique=True))
def test_any_label_can_be_drawn_and_is_told_from_the_others(labels: list[str]) -> None:
    stage = {"kind": "sft", "task": "own", "backbone": "b", "sequences": "tokens", "cpt": "none", "seeds": 1, "n": 9}
    stage |= {"sft": "s", "sft_epochs": 1, "rl": "none", "rl_epochs": 0, "value": 1 / len(labels)}
    metrics = [f"{kind}:{label}" for kind in ("gold", "predicted") for label in [*labels, "malformed"][: len(labels)]]
    rows = [stage | {"split": split, "metric": metric} for split in ("id", "ood") for metric in metrics]
    rows += [stage | {"split": split, "metric": "predicted:malformed", "value": 0.0} for split in ("id", "ood")]
    with style.context(metrics):
        figure = label_prior.draw(pd.DataFrame(rows))
        figure.draw_without_rendering()
    assert len(set(legend(figure))) == len(labels) + 1


def test_letters_without_a_glyph_are_drawn_as_their_numbers() -> None:
    with style.context():
        assert style.drawable("a é → שלום") == "a é → שלום"
        assert style.drawable("\U000f0000 x") == r"\U000f0000 x"


def test_long_labels_lose_their_middle_and_stay_different() -> None:
    labels = ["short", "a" * 200, "a" * 100 + "b" + "a" * 99, "a" * 199 + "b"]
    with style.context():
        short = style.shortened(labels, 3, 8.5)
        assert short[0] == "short"
        assert short[3].endswith("ab")
        assert len(set(short)) == len(labels)
        assert all(style.width(text, 8.5) < 3.3 for text in short)


def test_letters_are_drawn_with_another_font_that_has_them() -> None:
    letter = "\u1d8e"  # in STIX, which comes with matplotlib as DejaVu does
    with style.context([letter]), warnings.catch_warnings(action="error"):
        assert style.drawable(letter) == letter
        style.empty(letter).draw_without_rendering()


def test_names_as_long_as_may_be_are_drawn_in_wider_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def long(name: str) -> str:
        return f"{name}{'-long-name' * 6}"[:63]

    given = config(
        tasks=["cell-type"], backbones=["nano", long("b")], cpt=["none", long("c")], sft=["brief", long("s")]
    )
    given["lineages"][0] |= {
        "sweep": long("sweep"),
        "rl": [{"recipe": name, "from": [1]} for name in ("grpo", long("r"))],
    }
    given["backbones"][long("b")] = given["backbones"]["nano"]
    for kind, name, like in (("cpt", "c", "bio"), ("sft", "s", "brief"), ("rl", "r", "grpo")):
        given["recipes"][kind][long(name)] = given["recipes"][kind][like]
    study = Planted.of(given, tmp_path, size=20)
    figures(study.study, study.folder, tmp_path / "figures")
    assert capsys.readouterr().err == ""
    assert study.drawn["rl_gain"].get_figwidth() > style.WIDTH
    boxes = [text.get_window_extent() for text in study.drawn["lineage"].axes[0].texts]
    assert max(box.x1 for box in boxes) < study.drawn["lineage"].bbox.x1
    figure = study.drawn["sft_accuracy"]
    style.fit_titles(figure)
    for first, second in zip(figure.axes[::2], figure.axes[1::2], strict=True):
        left, right = (
            axes.findobj(match=lambda text: "cell-type" in getattr(text, "_text", ""))[0] for axes in (first, second)
        )
        assert left.get_window_extent().x1 < right.get_window_extent().x0


def test_many_labels_are_in_several_rows_above_their_panel(tmp_path: Path) -> None:
    many = Planted.of(study([f"phenotype number {number}" for number in range(40)]), tmp_path, size=80)
    figure = many.drawn["label_prior"]
    box = figure.axes[0].get_legend().get_window_extent()
    title = figure.axes[0].title.get_window_extent()
    left = figure.axes[0]._left_title.get_window_extent()
    assert box.x1 <= figure.bbox.x1
    assert box.y1 <= max(title.y1, left.y0) <= figure.bbox.y1


def test_matplotlibrc_of_the_user_changes_nothing(named: Planted, tmp_path: Path) -> None:
    import matplotlib

    figures(named.study, named.folder, tmp_path / "plain")
    with matplotlib.rc_context({"text.usetex": True, "lines.linewidth": 9, "savefig.facecolor": "red"}):
        figures(named.study, named.folder, tmp_path / "rc")
    for name in FIGURES:
        assert (tmp_path / "rc" / f"{name}.svg").read_bytes() == (tmp_path / "plain" / f"{name}.svg").read_bytes()


def test_label_that_is_a_word_of_the_tables_is_refused() -> None:
    with pytest.raises(UserError, match=r"labels\[1\]: .*malformed"):
        load(study(["fine", "malformed"]))


# --- A report does not fail after all training is done ---


def test_figure_that_fails_leaves_the_others_and_the_page_says_why(
    small: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = small.folder / REWARDS_TABLE
    pd.read_parquet(table).rename(columns={"reward": "<reward>"}).to_parquet(table)
    figures(small.study, small.folder, tmp_path)
    assert {path.name for path in tmp_path.glob("*.svg")} == {f"{name}.svg" for name in FIGURES}
    page = (tmp_path / RESULTS_PAGE).read_text()
    assert "1 figure could not be drawn" in page
    assert re.search(r"<li>rl_reward: \w+Error: .*reward", page)
    assert "<h2>splice-donor" in page
    error = capsys.readouterr().err
    assert re.search(rf"^warning: {tmp_path}/rl_reward\.svg: this figure could not be made \(\w+Error", error, re.M)
    assert "Traceback" in error


def test_page_that_fails_says_why_and_the_figures_are_drawn(small: Planted, tmp_path: Path) -> None:
    table = small.folder / CELLS_TABLE
    pd.read_parquet(table).rename(columns={"reason": "why"}).to_parquet(table)
    figures(small.study, small.folder, tmp_path)
    page = (tmp_path / RESULTS_PAGE).read_text()
    assert "This page could not be made" in page
    assert (tmp_path / "sft_accuracy.svg").stat().st_size > 10_000


def test_reason_of_a_failure_is_text_on_the_page(tmp_path: Path) -> None:
    def page() -> str:
        raise KeyError("<script>alert(1)</script>\n\x1b[31m")

    pages.write(tmp_path / "page.html", "Findings of study x & y", page)
    written = (tmp_path / "page.html").read_text()
    assert "<script>" not in written
    assert "x &amp; y" in written
    assert "\x1b" not in written


def test_trouble_of_the_machine_is_not_hidden(tmp_path: Path) -> None:
    def page() -> str:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        pages.write(tmp_path / "page.html", "x", page)
    assert list(tmp_path.iterdir()) == []


def test_claims_that_cannot_be_judged_for_a_bug_leave_a_page_that_says_so(
    small: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def holm(ps: list[float]) -> list[float]:
        raise ZeroDivisionError("a bug <here>")

    monkeypatch.setattr(statistics, "holm", holm)
    found = findings.findings(small.study, small.results, tmp_path)
    assert found["claims"] == []
    assert found["error"] == "ZeroDivisionError: a bug <here>"
    assert "ZeroDivisionError: a bug &lt;here&gt;" in (tmp_path / findings.PAGE).read_text()
