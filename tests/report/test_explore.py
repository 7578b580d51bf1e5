"""The part of the page of all results that can be explored: in a real browser, as a reader uses it."""

import base64
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from planted import Planted, config

import browser
from cisterna.report import explore, pages, tables
from tiny import ROOT

SCRIPTS = ROOT / "src" / "cisterna" / "report" / "browser"
TOOLS = """
const all = (query) => [...document.querySelectorAll(`#explore ${query}`)];
const find = (query) => all(query)[0];
const table = new DataTable.Api("#explore table");
const chart = Chart.getChart(find("canvas"));
const points = () => chart.data.datasets.filter(({ type }) => type !== "line").flatMap(({ data }) => data);
const column = (place) => all("tbody tr").map((line) => line.cells[place].textContent);
const heads = () => all("thead th").map((head) => head.textContent);
const place = (name) => heads().indexOf(name);
const choose = (select, value) => { find(select).value = value; find(select).dispatchEvent(new Event("change")); };
const drawn = () => new Promise((done) => table.one("draw", done));
const at = async (path) => { // where the point of a checkpoint is in the window
  chart.canvas.scrollIntoView();
  await FRAME;
  const { left, top } = chart.canvas.getBoundingClientRect();
  for (const [number, { data }] of chart.data.datasets.entries()) {
    const place = data.findIndex(({ index }) => table.row(index).data()?.path === path);
    const point = chart.getDatasetMeta(number).data[place];
    if (point) return [left + point.x, top + point.y];
  }
};
""".replace("FRAME", browser.FRAME)


@pytest.fixture(scope="module")
def page() -> Iterator[browser.Page]:
    """A page of a browser. At its end: no error, and no page has asked for another file."""
    with browser.page() as opened:
        yield opened
        assert opened.errors == []
        assert opened.requests == []


@pytest.fixture
def show(page: browser.Page, tmp_path: Path) -> Any:
    """Opens HTML from disk; returns a function that runs a script in it, with TOOLS."""

    def of(html: str) -> Any:
        (tmp_path / "table.html").write_text(html)
        page.open((tmp_path / "table.html").as_uri())
        return lambda script: page.evaluate(TOOLS + script)

    return of


def shown(study: Planted) -> pd.DataFrame:
    """The metrics that the page has."""
    found = study.tables.checkpoints
    return found[found.metric.isin({**tables.LABEL_METRICS, **tables.TERM_METRICS})]


def path_of(row: Any) -> str:
    """The path that the page shows for a row of metrics."""
    return f"results/baselines/{row.task}" if row.kind == "baseline" else f"results/models/{row.model}/checkpoint"


# --- The table ---


@browser.needed
def test_every_number_of_every_checkpoint_has_its_interval_and_n_on_hover(planted: Planted, show: Any) -> None:
    found = show(planted.page)(
        """
        table.page.len(500).draw();
        const names = heads();
        return all("tbody tr").flatMap((line) => [...line.querySelectorAll("td[title]")].map((cell) =>
            [line.cells[0].textContent, line.querySelector("button").title, line.cells[1].textContent,
             names[cell.cellIndex], cell.textContent, cell.title]));
        """
    )
    models = tables.StageNames(planted.tables.metrics[planted.tables.metrics.kind != "baseline"])
    expected = []
    for row in shown(planted).dropna(subset="value").itertuples():
        stage = [getattr(row, name) for name in tables.STAGE_COLUMNS]
        name = tables.baseline_name(row.model) if row.kind == "baseline" else models.without_form(stage)
        value, low, high = (f"{round(number, 4):.3f}" for number in (row.value, row.low, row.high))
        head = f"{tables.LABEL_METRICS[row.metric]} {row.split.upper()}"
        expected.append([row.task, path_of(row), name, head, value, f"{low} to {high}, n = {row.n}"])
    assert sorted(found) == sorted(expected)


@browser.needed
def test_filters_and_the_search_leave_their_rows_in_the_table_and_in_the_figure(planted: Planted, show: Any) -> None:
    do = show(planted.page)
    mine = shown(planted)
    all_rows = mine.groupby(["task", "model"]).ngroups
    assert do("return [table.page.info().recordsTotal, points().length]") == [all_rows, all_rows]
    of_rl = mine[(mine.task == "cell-type") & (mine.kind == "rl")].model.unique()
    do("choose('[data-filter=task]', 'cell-type'); choose('[data-filter=stage]', 'RL');")
    assert do("return [column(0), points().length]") == [["cell-type"] * len(of_rl), len(of_rl)]
    do(f"table.search({json.dumps(of_rl[0])}).draw()")
    paths = do("return all('tbody button').map(({ title }) => title)")
    assert paths == [f"results/models/{of_rl[0]}/checkpoint"]
    do("table.search('nowhere').draw()")
    assert do("return [find('tbody').textContent, points().length]") == ["no checkpoint has all of this", 0]


@browser.needed
def test_click_on_a_head_sorts_by_the_number_with_missing_ones_last(planted: Planted, show: Any) -> None:
    checkpoints = planted.tables.checkpoints
    lost = checkpoints.value.where(checkpoints.metric.ne("mcc") | checkpoints.kind.ne("rl"))
    of = dataclasses.replace(planted.tables, checkpoints=checkpoints.assign(value=lost))
    do = show(pages.results(of, "x"))
    do("table.page.len(500).draw()")
    rows = checkpoints.metric.eq("mcc") & checkpoints.split.eq("ood")
    measured = sorted(f"{value:.3f}" for value in lost[rows].dropna())
    script = """
    all("thead th")[place("MCC OOD")].querySelector(".dt-column-title").click();
    await drawn();
    return column(place("MCC OOD"));
    """
    for order in (lambda number: -number, lambda number: number):
        values = do(script)
        numbers = [float(value) for value in values[: len(measured)]]
        assert numbers == sorted(numbers, key=order)
        assert sorted(values[: len(measured)]) == measured
        assert set(values[len(measured) :]) == {"\N{EN DASH}"}


@browser.needed
def test_metrics_that_no_row_of_the_filters_has_are_hidden(of_terms: Planted, show: Any) -> None:
    do = show(of_terms.page)
    assert {"MCC ID", "micro F1 ID"} <= set(do("return heads()"))
    do("choose('[data-filter=task]', 'functions')")
    assert "micro F1 ID" in do("return heads()")
    assert "MCC ID" not in do("return heads()")
    do("choose('[data-filter=task]', 'splice-donor')")
    assert "micro F1 ID" not in do("return heads()")
    assert "MCC ID" in do("return heads()")


@browser.needed
def test_every_seed_is_a_row_of_its_own(show: Any, tmp_path: Path) -> None:
    asked = config(tasks=["splice-donor"], cpt=["none"], rl=[], seeds=[0, 1])
    study = Planted.of(asked, tmp_path, size=20)
    do = show(study.page)
    do("choose('[data-filter=stage]', 'SFT'); choose('[data-filter=seed]', '1');")
    paths = do("return all('tbody button').map(({ title }) => title)")
    assert len(paths) == 4
    assert all("/s1/" in path for path in paths)
    assert do("return column(place('seed'))") == ["1"] * 4


# --- The figure ---


@browser.needed
def test_click_on_a_point_leads_to_its_row_its_numbers_and_the_path_of_its_checkpoint(
    page: browser.Page, planted: Planted, show: Any
) -> None:
    do = show(planted.page)
    do("table.page.len(5); choose('[data-filter=task]', 'splice-donor'); choose('[data-filter=stage]', 'RL')")
    metrics = shown(planted)
    for row in metrics[metrics.task.eq("splice-donor") & metrics.kind.eq("rl") & metrics.metric.eq("mcc")].itertuples():
        if row.split == "ood":
            do("choose('[data-axis=y]', [...find('[data-axis=y]')].findIndex(({ text }) => text === 'MCC OOD'))")
            page.point(*do(f"return at({json.dumps(path_of(row))})"))
            assert do("return chart.tooltip.footer") == [path_of(row)]
            page.point(*do(f"return at({json.dumps(path_of(row))})"), click=True)
            assert do("return find('tr.details').previousSibling.querySelector('button').title") == path_of(row)
            details = do("return find('tr.details').textContent")
            assert f"seed 0 · {path_of(row)}" in details
            assert f"MCC OOD: {row.value:.3f}, {row.low:.3f} to {row.high:.3f}, n = {row.n}" in details
            box = do("const { top, bottom } = find('tr.details').getBoundingClientRect(); return [top, bottom]")
            assert 0 <= box[0] < box[1] <= do("return innerHeight")


@browser.needed
def test_further_clicks_lead_to_further_points_at_the_same_place(
    page: browser.Page, planted: Planted, show: Any
) -> None:
    of = dataclasses.replace(planted.tables, checkpoints=planted.tables.checkpoints.assign(value=0.5))
    do = show(pages.results(of, "x"))
    do("choose('[data-filter=task]', 'splice-donor'); choose('[data-filter=stage]', 'RL')")
    paths = do("return all('tbody button').map(({ title }) => title)")
    found = []
    for _ in paths:
        page.point(*do(f"return at({json.dumps(paths[0])})"), click=True)
        found.append(do("return find('tr.details code').textContent"))
    assert len(paths) > 1
    assert sorted(found) == sorted(paths)


@browser.needed
def test_the_figure_has_any_two_metrics_and_epochs_as_axes(planted: Planted, show: Any) -> None:
    do = show(planted.page)
    assert do("return chart.data.datasets.at(-1).label") == "ID = OOD"
    do("choose('[data-axis=x]', 'sft_epochs'); choose('[data-filter=stage]', 'SFT')")
    assert sorted(set(do("return points().map(({ x }) => x)"))) == [1, 2, 4, 8]
    assert do("return [chart.options.scales.x.title.text, chart.data.datasets.length]") == ["SFT epochs", 1]


# --- Where it is read ---


@browser.needed
def test_the_page_works_inside_of_snakemakes_report(page: browser.Page, planted: Planted) -> None:
    """The report opens it as a data address, which may neither keep anything nor see other files."""
    page.open(f"data:text/html;base64,{base64.b64encode(planted.page.encode()).decode()}")
    found = page.evaluate(f"{TOOLS} find('tbody button').click(); return find('tr.details code').textContent")
    assert found.startswith("results/baselines/")


@browser.needed
def test_without_scripts_the_plain_tables_are_open(page: browser.Page, planted: Planted, show: Any) -> None:
    visible = "return ['#explore', 'details h2'].map((one) => document.querySelector(one).checkVisibility())"
    show(planted.page)
    assert page.evaluate(visible) == [True, False]
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.open(page.evaluate("return location.href"))
        assert page.evaluate(visible) == [False, True]
    finally:
        page.call("Emulation.setScriptExecutionDisabled", value=False)


@browser.needed
def test_names_are_text_and_no_html(planted: Planted, show: Any) -> None:
    name = "</script><img src=x onerror=\"throw Error('ran')\"> <!-- &amp; ' </select>"
    found = planted.tables.checkpoints
    found = found.assign(rl=found.rl.where(found.kind != "rl", name), model=found.model.where(found.kind != "rl", name))
    others = found[found.kind == "rl"].assign(rl="other", model="other")
    of = dataclasses.replace(planted.tables, checkpoints=pd.concat([found, others]))
    do = show(pages.results(of, name))
    choice = do(
        "choose('[data-filter=rl]', all('[data-filter=rl] option').at(-2).value); return find('[data-filter=rl]').value"
    )
    assert choice == name
    do("find('tbody button').click()")
    assert do("return find('tr.details code').textContent") == f"results/models/{name}/checkpoint"
    assert do("return [document.images.length, points().length]") == [0, 2]


# --- Without a browser ---


def test_libraries_are_those_of_their_packages() -> None:
    rows = re.findall(r"\| `(\S+)` \|.*\| `(\w{64})` \|", (SCRIPTS / "README.md").read_text())
    assert (
        {name for name, _ in rows} | {"explore.js"}
        == {path.name for path in SCRIPTS.glob("*.js")}
        == {*explore.SCRIPTS}
    )
    for name, digest in rows:
        assert hashlib.sha256((SCRIPTS / name).read_bytes()).hexdigest() == digest
        assert "MIT" in (SCRIPTS / name.replace(".min.js", ".license.txt")).read_text()


def test_no_script_ends_the_element_that_it_stands_in() -> None:
    assert not [
        name for name in explore.SCRIPTS if re.search("</script|<!--", (SCRIPTS / name).read_text(), re.IGNORECASE)
    ]


def test_page_without_a_metric_of_a_checkpoint_has_no_such_part(planted: Planted) -> None:
    of = dataclasses.replace(planted.tables, checkpoints=planted.tables.checkpoints.iloc[:0])
    assert 'id="explore"' in planted.page
    assert 'id="explore"' not in pages.results(of, "x")
