"""The page of quotes shows what the predictions have, of examples that no outcome chose, as text that cannot act."""

import json
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pandas as pd
import pytest
from planted import Planted, config

import browser
from cisterna.errors import UserError
from cisterna.report import QUOTES_PAGE, quotes
from cisterna.report.grids import Column, grids
from cisterna.study import load

SFT = "models/nano/base/splice-donor/s0/sft-brief"


def made(of: Planted, folder: Path, **options: Any) -> str:
    quotes.quotes(of.study, of.results, folder, **options)
    return (folder / QUOTES_PAGE).read_text()


def data(page: str) -> dict[str, Any]:
    """What the page's script reads."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def cells(page: str) -> list[dict[int, list[str]]]:
    """Of each grid: number of an example -> the classes of its cells."""
    found = []
    for grid in re.findall(r'<section class="grid".*?</section>', page, re.S):
        rows = re.findall(r'<tr data-example="(\d+)">(.*)', grid)
        found.append({int(number): re.findall(r'<td class="([^"]*)">', row) for number, row in rows})
    return found


def change(of: Planted, folder: str, split: str, **columns: Any) -> None:
    """Set columns of the predictions of one evaluation."""
    file = of.results / folder / f"{split}.parquet"
    pd.read_parquet(file).assign(**columns).to_parquet(file, index=False)


def names(columns: tuple[Column, ...]) -> list[str]:
    return [f"({column.short})" if column.repeated else column.name for column in columns]


# --- Checkpoints and examples ---


def test_columns_are_the_checkpoints_of_a_lineage_in_order_and_rl_follows_what_it_started_from(
    planted: Planted,
) -> None:
    found = {(grid.task, grid.lineage): grid.columns for grid in grids(planted.study)}
    rungs = [f"SFT brief e{epochs}" for epochs in (1, 2, 4, 8)]
    rl = ["(e1)", "RL grpo e1 from SFT brief e1", "(e8)", "RL grpo e1 from SFT brief e8"]
    assert names(found["splice-donor", "nano · no CPT · SFT brief"]) == ["base", *rungs, *rl]
    assert names(found["cell-type", "nano · CPT bio · SFT brief"]) == ["base", "CPT bio", *rungs, *rl]
    assert len(found) == 4


def test_seeds_forms_and_rl_without_sft_are_lineages_of_their_own() -> None:
    given = config(tasks=["splice-donor"], cpt=["none"], rl=[{"recipe": "grpo", "from": ["cold"]}])
    given["seeds"] = [0, 1]
    given["tasks"]["splice-donor"] |= {"sequences": ["tokens", "features"], "encoder": "nano-esm"}
    found = {grid.lineage: names(grid.columns) for grid in grids(load(given))}
    assert len(found) == 8
    assert found["nano · no CPT · no SFT · features of nano-esm · seed 1"] == ["base", "(base)", "RL grpo e1 from base"]


def test_every_evaluation_is_in_a_grid_of_its_task() -> None:
    given = config(rl=[{"recipe": "grpo", "from": ["cold", 8]}])
    given["lineages"].append({"tasks": ["cell-type"], "backbones": ["nano"], "cpt": ["bio"], "sft": [], "rl": []})
    given["lineages"].append({"tasks": ["promoter-expression"], "backbones": ["nano"], "cpt": ["bio"], "sft": []})
    study = load(given)
    shown = {(column.folder, grid.task) for grid in grids(study) for column in grid.columns}
    assert shown == {(folder, task) for folder, _, task in study.evaluations()}


def test_examples_are_the_same_whatever_was_answered_and_whichever_evaluations_are_there(
    small: Planted, tmp_path: Path
) -> None:
    before = data(made(small, tmp_path))["examples"]
    assert [row[1] for row in before["splice-donor"]] == ["id"] * 12 + ["ood"] * 12
    for folder, path, _ in small.study.evaluations():
        if small.study.model(path).kind == "base":
            shutil.rmtree(small.results / folder)
        else:
            change(small, folder, "ood", predicted=None, output="?")
    after = data(made(small, tmp_path))["examples"]
    assert [row[:3] for row in after["splice-donor"]] == [row[:3] for row in before["splice-donor"]]


# --- Cells ---


def test_cells_are_the_states_of_the_predictions_and_what_changed_from_the_column_before(
    planted: Planted, tmp_path: Path
) -> None:
    page = made(planted, tmp_path)
    examples, order = data(page)["examples"], "mwpr"
    for grid, rows in zip(grids(planted.study), cells(page), strict=True):
        assert len(rows) == 24
        for number, classes in rows.items():
            name, split, gold, _ = examples[grid.task][number]
            states = []
            for column in grid.columns:
                frame = pd.read_parquet(planted.results / column.folder / f"{split}.parquet").set_index("id")
                answer = frame.predicted[name]
                assert frame.answer[name] == gold
                states.append("m" if answer is None else "r" if answer == gold else "w")
            expected = []
            for place, (column, state) in enumerate(zip(grid.columns, states, strict=True)):
                step = order.index(state) - order.index(states[place - 1]) if place and not column.repeated else 0
                words = [state, "up" if step > 0 else "down" if step < 0 else "", "again" if column.repeated else ""]
                expected.append(" ".join(filter(None, words)))
            assert classes == expected


def test_counts_below_a_split_are_of_all_its_examples(small: Planted, tmp_path: Path) -> None:
    for folder, right in ((f"{SFT}/e4/eval", 30), (f"{SFT}/e8/eval", 10)):
        file = small.results / folder / "ood.parquet"
        frame = pd.read_parquet(file).sort_values("id")
        frame["predicted"] = [gold if row < right else None for row, gold in enumerate(frame.answer)]
        frame.to_parquet(file, index=False)
    ood = made(small, tmp_path).partition('<tbody data-split="ood">')[2]

    def sums(name: str) -> list[str]:
        return re.findall(r"<td[^>]*>([\d]*)", re.search(rf"{re.escape(name)}(.*)", ood)[1])

    assert sums("% right of all 40")[3:5] == ["75", "25"]
    assert sums("▲ newly right")[4] == "0"
    assert sums("▼ no longer right")[4] == "20"
    assert sums("% malformed")[3:5] == ["25", "75"]


def test_sets_of_terms_are_right_if_they_mean_the_same_and_partly_right_if_they_share_a_term(
    of_terms: Planted, tmp_path: Path
) -> None:
    copy = Planted(of_terms.study, shutil.copytree(of_terms.results, tmp_path / "results"))
    file = copy.results / "models/nano/base/functions/s0/sft-brief/e8/eval/id.parquet"
    gold = "GO:0000003, GO:0000014"
    frame = pd.read_parquet(file).assign(answer=gold)
    answers = [gold, "GO:0000014, GO:9999999", "GO:9999999", None]
    frame["predicted"] = [answers[row % 4] for row in range(len(frame))]
    frame.to_parquet(file, index=False)
    said = quotes.read(copy.study, copy.results)["functions", "id"].answered[
        "models/nano/base/functions/s0/sft-brief/e8/eval"
    ]
    states = {(row["predicted"], row["state"]) for row in said.rows.values()}
    assert states <= set(zip(answers, "rpwm", strict=True))
    assert "partly right" in made(copy, tmp_path)
    assert len(set(said.states)) == 4


def test_confidence_of_the_answer_and_probability_of_the_gold_label_are_those_of_the_evaluation(
    small: Planted, tmp_path: Path
) -> None:
    labels = small.study.config["tasks"]["splice-donor"].get("labels") or ["spliced", "skipped"]
    numbers = {f"probability:{label}": 0.25 * (place + 1) for place, label in enumerate(labels)}
    change(small, f"{SFT}/e8/eval", "ood", confidence=0.625, **numbers)
    found = data(made(small, tmp_path))
    folder = [folder for folder, _, _ in small.study.evaluations()].index(f"{SFT}/e8/eval")
    for example, said in zip(found["examples"]["splice-donor"], found["said"][folder], strict=True):
        expected = [0.625, numbers[f"probability:{example[2]}"]] if example[1] == "ood" else [None, None]
        assert said[3:5] == expected


# --- Texts ---

HOSTILE = (
    "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
    "<!--<script>&lt;b&amp;\x1b[31m\x00\u202e{{ 7 * 7 }}</pre></think>Answer: <b>bold</b>"
)


@pytest.fixture
def hostile(small: Planted) -> Planted:
    """Every text of a user's or a model's is markup."""
    for folder, _, _ in small.study.evaluations():
        for split in ("id", "ood"):
            file = small.results / folder / f"{split}.parquet"
            frame = pd.read_parquet(file)
            frame["id"] = "<i>" + frame["id"] + "</i>\"'\x1b"
            frame["output"] = frame["prompt"] = HOSTILE
            frame.to_parquet(file, index=False)
    return small


def test_texts_of_users_and_models_are_no_markup(hostile: Planted, tmp_path: Path) -> None:
    page = made(hostile, tmp_path)
    assert page.count("<script") == 2
    assert page.count("</script") == 2
    assert "<img" not in page
    assert "<i>" not in page
    assert not set(page) & set("\x1b\x00\u202e")
    written = HOSTILE.replace("\x1b", r"\x1b").replace("\x00", r"\x00").replace("\u202e", r"\u202e")
    assert data(page)["texts"] == [written]


def test_page_needs_nothing_else_and_the_same_predictions_give_the_same_bytes(small: Planted, tmp_path: Path) -> None:
    page = made(small, tmp_path / "first")
    assert page == made(small, tmp_path / "second")
    assert not re.search(r"""(src|href)=|https?://|url\(|@import|fetch\(|import """, page)


def test_page_stays_below_its_limit_with_fewer_examples_and_says_so(
    small: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = made(small, tmp_path)
    assert "12 of each split" in whole
    assert "would not fit" not in whole
    monkeypatch.setattr(quotes, "MOST_BYTES", 30_000)
    less = made(small, tmp_path)
    assert len(less.encode()) <= 30_000
    number = int(re.search(r"(\d+) of each split", less)[1])
    assert number < 12
    assert "12 examples would not fit" in less
    kept, every = ({row[0] for row in data(page)["examples"]["splice-donor"]} for page in (less, whole))
    assert len(kept) == 2 * number
    assert kept < every


def test_long_text_loses_its_middle_and_keeps_its_answer() -> None:
    text = quotes.shortened("a" * 5000 + "</think>Answer: up", 300)
    assert len(text) < 350
    assert "[… 4,718 letters left out …]" in text
    assert text.endswith("a</think>Answer: up")


# --- Results that are not there ---


def test_absent_evaluation_is_an_empty_column_and_listed(small: Planted, tmp_path: Path) -> None:
    shutil.rmtree(small.results / SFT / "e2/eval")
    page = made(small, tmp_path)
    assert f"<li>{SFT}/e2/eval</li>" in page
    for classes in cells(page)[0].values():
        assert classes[2] == "n"
        assert classes[3] in ("r", "w", "m")  # no change is known


def test_unreadable_predictions_are_an_error_and_absent_in_a_partial_report(small: Planted, tmp_path: Path) -> None:
    (small.results / SFT / "e2/eval/id.parquet").write_text("{")
    with pytest.raises(UserError, match=r"e2/eval/id\.parquet: cannot be read"):
        made(small, tmp_path)
    assert {classes[2] for number, classes in cells(made(small, tmp_path, partial=True))[0].items() if number < 12} == {
        "n"
    }


def test_study_without_any_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of its \d+ evaluations"):
        quotes.quotes(load(config()), tmp_path, tmp_path / "study")


# --- In a browser ---


def dom(folder: Path, **link: str) -> str:
    """The page as a browser shows it after its script ran, without an error and without a request for another file."""
    with browser.page() as page:
        page.open(f"{(folder / QUOTES_PAGE).as_uri()}#{urlencode(link)}")
        shown = page.evaluate("return document.documentElement.outerHTML")
        assert not page.errors
        assert not page.requests
    return shown


def visible(page: str, element: str) -> list[str]:
    """The opening tags of an element that are not hidden."""
    return [tag for tag in re.findall(rf"<{element}[^>]*>", page) if "hidden" not in tag]


@browser.needed
def test_page_begins_with_one_task_and_the_texts_of_an_example(planted: Planted, tmp_path: Path) -> None:
    made(planted, tmp_path)
    shown = dom(tmp_path)
    assert len(visible(shown, 'div class="task"')) == 1
    reader = shown.partition('<div id="reader">')[2].partition("<script")[0]
    assert re.findall(r"<b>([^<]*)</b><span", reader) == names(grids(planted.study)[0].columns[:5]) + [
        f"RL grpo e1 from SFT brief e{epochs}" for epochs in (1, 8)
    ]


@browser.needed
def test_link_opens_a_cell_of_one_lineage_and_stage(planted: Planted, tmp_path: Path) -> None:
    made(planted, tmp_path)
    shown = dom(tmp_path, task="cell-type", lineage="nano · CPT bio · SFT brief", stage="rl", split="ood", at="3.12.7")
    assert re.findall('data-task="([^"]+)"', " ".join(visible(shown, 'div class="task"'))) == ["cell-type"]
    assert [tag[-3] for tag in visible(shown, "section")] == ["1", "3"]  # the first one is of the hidden task
    section = re.search(r'<section[^>]*data-grid="3".*?</section>', shown, re.S)[0]
    assert re.findall('data-split="([^"]+)"', " ".join(visible(section, "tbody"))) == ["ood"]
    for row in re.findall(r"<tr data-example.*?</tr>", section, re.S):
        assert len(visible(row, "td")) == 4
    reader = shown.partition('<div id="reader">')[2]
    assert re.search(r'class="quote is-\w chosen" data-column="7"><b>RL grpo e1 from SFT brief e1</b>', reader)
    assert "<b>base</b>" not in reader


@browser.needed
@pytest.mark.parametrize("show", ["w", "m", "up", "down"])
def test_link_leaves_the_examples_that_have_such_a_cell(planted: Planted, tmp_path: Path, show: str) -> None:
    made(planted, tmp_path)
    shown = dom(tmp_path, task="splice-donor", show=show)
    expected = {
        (grid, number): any(show in classes.split() for classes in row)
        for grid, rows in enumerate(cells((tmp_path / QUOTES_PAGE).read_text())[:2])
        for number, row in rows.items()
    }
    found = {
        (grid, int(number)): "hidden" not in more
        for grid, section in enumerate(re.findall(r"<section.*?</section>", shown, re.S)[:2])
        for number, more in re.findall(r'<tr data-example="(\d+)"([^>]*)>', section)
    }
    assert found == expected


@browser.needed
def test_click_and_arrow_keys_choose_a_cell_hovering_names_it_and_the_address_keeps_it(
    small: Planted, tmp_path: Path
) -> None:
    page = made(small, tmp_path)
    does = """<script>
      const cell = document.querySelector("[data-example='3'] td");
      cell.click();
      for (const key of ["ArrowDown", "ArrowRight", "ArrowLeft", "ArrowRight"])
        document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
      cell.dispatchEvent(new MouseEvent("mouseover", {bubbles: true}));
      document.title = location.hash;
    </script>"""
    (tmp_path / QUOTES_PAGE).write_text(page + does)
    shown = dom(tmp_path)
    assert "<title>#task=splice-donor&amp;at=0.4.1</title>" in shown
    assert re.search(r'class="quote is-\w chosen" data-column="1"><b>SFT brief e1</b>', shown)
    assert shown.count('title="base: ? malformed"') == 1
    name, _, gold, _ = data(page)["examples"]["splice-donor"][4]
    assert f"<h3>splice-donor, in-domain (ID): {name} · gold answer {gold}</h3>" in shown


@browser.needed
def test_unknown_words_of_a_link_are_no_filter(small: Planted, tmp_path: Path) -> None:
    made(small, tmp_path)
    shown = dom(tmp_path, task="none", show="<script>", at="9.9.9")
    assert len(visible(shown, "tr data-example")) == 24
    assert 'class="quote' in shown


@browser.needed
def test_text_of_a_model_does_nothing_in_a_browser(hostile: Planted, tmp_path: Path) -> None:
    made(hostile, tmp_path)
    shown = dom(tmp_path)
    assert "<title>What the models" in shown
    assert shown.count("<img") == 0
    assert "Answer: &lt;b&gt;bold&lt;/b&gt;" in shown.partition('<div id="reader">')[2]


def test_without_scripts_the_grids_and_an_example_are_there(small: Planted, tmp_path: Path) -> None:
    page = re.sub(r"<script.*?</script>", "", made(small, tmp_path), flags=re.S)
    assert len(visible(page, "tr data-example")) == 24
    assert not visible(page, "form")
    example = page.partition("<noscript>")[2].partition("</noscript>")[0]
    assert "splice-donor, out-of-domain" in example
    assert "&lt;think&gt;It looks so.&lt;/think&gt;Answer:" in example
