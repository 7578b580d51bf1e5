"""How long the page of all results takes in a browser to load, filter, sort and find a row, with 1,000 checkpoints.

    .venv/bin/python benchmarks/results_page.py --output benchmarks/RESULTS.md      # 1 minute

Makes the tables of a study with random numbers and their page, and opens it from disk in headless Chromium. The
browser's clock measures until the next frame is there. Prints rows for benchmarks/RESULTS.md; benchmarks/README.md
defines the columns. Not for the time of gathering and of drawing the figures.
"""

import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from cisterna import report, study
from cisterna.constants import TEST_SPLITS
from cisterna.report import pages, tables
from cisterna.report.gather import CELL, GROUP, IDENTITY, LOGGED, NUMBERS
from shared import ROOT, parser, publish, section, setting

sys.path.insert(0, str(ROOT / "tests"))

import browser

COLUMNS = ("checkpoints", "rows", "numbers", "page", "made in", "loaded", "filter", "search", "sort", "point to row")
# Seconds from the start of loading to the first frame, and of each action to the first frame after the table is drawn.
SCRIPT = """
await FRAME;
const times = [performance.now()];
const table = new DataTable.Api("#explore table");
async function clock(act) {
  const begun = performance.now();
  const drawn = new Promise((done) => table.one("draw", done));
  act();
  await drawn;
  await FRAME;
  times.push(performance.now() - begun);
}
const find = (query) => document.querySelector(`#explore ${query}`);
function change(input, value, event) {
  input.value = value;
  input.dispatchEvent(new Event(event, { bubbles: true }));
}
await clock(() => change(find("[data-filter=stage]"), "SFT", "change"));
change(find("[data-filter=stage]"), "", "change");
await clock(() => change(find("input"), "e8", "input"));
change(find("input"), "", "input");
await clock(() => find("th[data-number='3'] .dt-column-title").click());
const chart = Chart.getChart(find("canvas"));
const { left, top } = chart.canvas.getBoundingClientRect();
const { x, y } = chart.getDatasetMeta(0).data.at(-1);
const at = { clientX: left + x, clientY: top + y, bubbles: true };
await clock(() => chart.canvas.dispatchEvent(new MouseEvent("click", at)));
if (!find("tr.details")) throw Error("the point did not lead to its row");
return times;
""".replace("FRAME", browser.FRAME)


def main() -> None:
    options = parser("Time the page of all results in a browser.")
    options.add_argument("--checkpoints", type=int, default=1000, help="checkpoints of SFT and RL")
    options.add_argument("--repeats", type=int, default=5, help="openings of a page; the table has the medians")
    given = options.parse_args()
    if not browser.CHROMIUM:
        sys.exit("error: no chromium, chromium-browser or google-chrome in PATH; install one of them")
    rows = [measure(given.checkpoints, every, given.repeats) for every in (False, True)]
    about = f"{setting('pandas')}, {browser.version()}, headless. Medians of {given.repeats} openings of the page."
    publish(section("results_page.py: the page of all results in a browser", about, COLUMNS, rows), given.output)


def measure(checkpoints: int, every_task: bool, repeats: int) -> list[str]:
    """A row of the table: the page of so many checkpoints, each on its own task, or each on every task."""
    asked = study.read(ROOT / "config" / "config.yaml")
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        write_tables(folder, list(asked.tasks), checkpoints, every_task)
        begun = time.perf_counter()
        of = tables.read(asked, folder)
        page = pages.results(of, asked.name)
        made = time.perf_counter() - begun
        (folder / report.RESULTS_PAGE).write_text(page)
        times = [open_once(folder / report.RESULTS_PAGE) for _ in range(repeats)]
    shown = of.checkpoints[of.checkpoints.metric.isin(tables.LABEL_METRICS)]
    sizes = [f"{checkpoints:,}", f"{shown.groupby(['task', 'model']).ngroups:,}", f"{len(shown):,}"]
    milliseconds = [f"{median(column):.0f} ms" for column in zip(*times, strict=True)]
    return [*sizes, f"{len(page.encode()) / 1e6:.1f} MB", f"{made:.1f} s", *milliseconds]


def open_once(path: Path) -> list[float]:
    """Milliseconds in the browser: loading, filter, search, sort, and from a point to its row."""
    with browser.page() as page:
        page.open(path.as_uri())
        times: list[float] = page.evaluate(SCRIPT)
        if page.errors:
            sys.exit(f"error: the page has errors: {page.errors}")
    return times


def write_tables(folder: Path, tasks: list[str], checkpoints: int, every_task: bool) -> None:
    """The tables of a study whose checkpoints are rungs of SFT and RL on one rung, with random numbers."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for number in range(checkpoints):
        lineage, rung = divmod(number, 8)  # four rungs of SFT and RL on each
        lineage, task_number = divmod(lineage, len(tasks))
        lineage, cpt = divmod(lineage, 2)
        sft, seed = divmod(lineage, 3)
        stage: dict[str, Any] = {"study": "random", "backbone": "nano", "cpt": ("none", "bio")[cpt], "seed": seed}
        stage |= {"sequences": "tokens", "sft": f"recipe-{sft}", "sft_epochs": 2 ** (rung % 4)}
        stage |= {"kind": "sft", "rl": "none", "rl_epochs": 0}
        if rung >= 4:
            stage |= {"kind": "rl", "rl": "grpo", "rl_epochs": 1}
        own = tasks[task_number]
        model = f"nano/{own}/s{seed}/sft-{stage['sft']}/e{stage['sft_epochs']}/{number}"
        for task in tasks if every_task else [own]:
            identity = stage | {"model": model, "task": task, "modality": "dna"}
            for split in TEST_SPLITS:
                for metric, value in zip(tables.LABEL_METRICS, rng.random(len(tables.LABEL_METRICS)), strict=True):
                    interval = {"value": value, "low": value - 0.05, "high": value + 0.05, "n": 1000}
                    rows.append(identity | {"split": split, "metric": metric} | interval)
    cell = {"cell": "evaluation", "state": "done", "sft_epochs": 0, "rl_epochs": 0}
    for name, columns, content in (
        (report.METRICS_TABLE, IDENTITY | NUMBERS | GROUP, rows),
        (report.GAINS_TABLE, IDENTITY | NUMBERS, []),
        (report.REWARDS_TABLE, IDENTITY | LOGGED, []),
        (report.CELLS_TABLE, IDENTITY | CELL, [cell]),
    ):
        pd.DataFrame(content).reindex(columns=list(columns)).astype(columns).to_parquet(folder / name)


if __name__ == "__main__":
    main()
