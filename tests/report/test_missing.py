"""Nothing goes missing: every cell that a config asks for is in cells.parquet, done or with why it is not."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_report import config, forms, plant

from cisterna.artifacts import files
from cisterna.errors import UserError
from cisterna.report import CELLS, GAINS, METRICS, REWARDS
from cisterna.report.figures import figures
from cisterna.report.gather import CELL, IDENTITY, gather
from cisterna.study import Study, load
from cisterna.study.jobs import jobs
from clones import edited, make

SFT = "nano/base/splice-donor/s0/sft-brief"
MODELS = 2 * (1 + 4 + 2) * 2  # starts, (before SFT, rungs of SFT, RL) and tasks


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """A study with everything that its jobs publish."""
    study = load(config())
    results = tmp_path_factory.mktemp("whole")
    plant(study, results, size=40)
    for job in jobs(study):
        proof = results / job.proof
        proof.parent.mkdir(parents=True, exist_ok=True)
        proof.touch()
    return study, results


@pytest.fixture
def broken(whole: tuple[Study, Path], tmp_path: Path) -> tuple[Study, Path]:
    """A copy of it, for a test to take parts of."""
    return whole[0], shutil.copytree(whole[1], tmp_path / "results")


def gathered(study: Study, results: Path, partial: bool = True) -> pd.DataFrame:
    """The cells, with the columns that are null as None."""
    gather(study, results, results / "study", partial=partial)
    cells = pd.read_parquet(results / "study" / CELLS)
    assert list(cells.columns) == [*IDENTITY, *CELL]
    assert not cells.duplicated(["cell", "model", "task"]).any()
    return cells.astype(object).replace({np.nan: None, pd.NA: None})


def lose(study: Study, results: Path, output: str, log: str | None = None) -> None:
    """As if a job had never published, nor any that needs what it makes; `log` is what it wrote."""
    for job in jobs(study):
        folder = output.removesuffix("/checkpoint")
        if job.output == output or (output.endswith("/checkpoint") and job.output.startswith(f"{folder}/")):
            target = results / job.output
            shutil.rmtree(target) if target.is_dir() else target.unlink()
        if job.output == output and log is not None:
            (results / job.log).parent.mkdir(parents=True, exist_ok=True)
            (results / job.log).write_text(log)


def absent(cells: pd.DataFrame) -> dict[tuple[str, str], tuple[str, str, str | None]]:
    """State, reason and log of what is not done, by kind of cell and model."""
    return {
        (row.cell, f"{row.model} {row.task}"): (row.state, row.reason, row.log)
        for row in cells[cells.state != "done"].itertuples()
    }


def test_whole_study_has_every_cell_and_all_are_done(whole: tuple[Study, Path]) -> None:
    cells = gathered(*whole, partial=False)
    assert set(cells.state) == {"done"}
    assert cells.reason.isna().all()
    assert cells.log.isna().all()
    study = whole[0]
    rl = sum(model.kind == "rl" for model in study.models)
    expected = {"evaluation": MODELS, "baselines": 2, "perplexity": 2 * 4, "rl_gain": rl, "rl_rewards": rl}
    assert Counter(cells.cell) == expected
    assert {(row.model, row.task) for row in cells[cells.cell == "evaluation"].itertuples()} == {
        (path.removeprefix("models/"), task) for _, path, task in study.evaluations()
    }
    assert cells[cells.cell == "rl_gain"].parent.notna().all()


def test_partial_tables_of_a_whole_study_are_the_tables(whole: tuple[Study, Path], tmp_path: Path) -> None:
    for partial in (False, True):
        gather(*whole, tmp_path / str(partial), partial=partial)
    for name in (METRICS, GAINS, REWARDS, CELLS):
        assert (tmp_path / "True" / name).read_bytes() == (tmp_path / "False" / name).read_bytes()


def test_all_that_needs_a_failed_stage_has_its_error_and_its_log(broken: tuple[Study, Path]) -> None:
    study, results = broken
    whole = gathered(study, results)
    before = {name: pd.read_parquet(results / "study" / name) for name in (METRICS, GAINS, REWARDS)}
    trace = 'Traceback (most recent call last):\n  File "x.py", line 1\ntorch.OutOfMemoryError: CUDA out of memory\n'
    # The rungs after e2 go on from it, so that a failure of e2 is one of theirs.
    for rung in (8, 4):
        lose(study, results, f"models/{SFT}/e{rung}/checkpoint")
    lose(study, results, f"models/{SFT}/e2/checkpoint", f"step 3\n{trace}")
    cells = gathered(study, results)
    told = ("failed", f"sft {SFT}/e2: torch.OutOfMemoryError: CUDA out of memory", f"logs/models/{SFT}/e2.log")
    gone = [f"{SFT}/e{rung} splice-donor" for rung in (2, 4, 8)]
    after = f"{SFT}/e8/rl-grpo/e1 splice-donor"
    assert absent(cells) == (
        {("evaluation", model): told for model in [*gone, after]}
        | {("rl_gain", after): told, ("rl_rewards", after): told}
    )
    assert len(cells) == len(whole)
    lost = {name.split(" ")[0] for name in [*gone, after]}
    for name, table in before.items():
        kept = table[~table.model.isin(lost)].reset_index(drop=True)
        assert len(kept) < len(table)
        pd.testing.assert_frame_equal(pd.read_parquet(results / "study" / name), kept)


def test_stage_that_failed_and_whose_input_is_gone_since_has_the_reason_of_the_input(
    broken: tuple[Study, Path],
) -> None:
    study, results = broken
    lose(study, results, f"models/{SFT}/e8/checkpoint", "error: an old one\n")
    lose(study, results, "data/splice-donor", "error: resources/tasks/splice-donor.parquet: no such file\n")
    cells = gathered(study, results)
    assert {entry for (cell, _), entry in absent(cells).items() if cell == "evaluation"} == {
        (
            "failed",
            "data splice-donor: resources/tasks/splice-donor.parquet: no such file",
            "logs/data/splice-donor.log",
        )
    }


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (None, "evaluate {name} has not run"),
        ("generated 200/400\n", "evaluate {name} was killed, or is still running: its log has no error"),
        ("stopped: by SIGTERM after 200 of 800 examples\n", "evaluate {name} was stopped"),
    ],
)
def test_evaluation_that_did_not_fail_and_is_not_there_is_missing_and_so_is_the_gain_over_it(
    broken: tuple[Study, Path], log: str | None, reason: str
) -> None:
    study, results = broken
    name = f"{SFT}/e8"
    lose(study, results, f"models/{name}/eval", log)
    said = ("missing", reason.format(name=name), f"logs/models/{name}/eval.log" if log else None)
    assert absent(gathered(study, results)) == {
        ("evaluation", f"{name} splice-donor"): said,
        ("rl_gain", f"{name}/rl-grpo/e1 splice-donor"): said,
    }


@pytest.mark.parametrize(
    ("output", "kind", "cells"),
    [
        ("data/splice-donor", "data splice-donor", {"baselines": 1, "evaluation": MODELS // 2, "rl_gain": 4}),
        ("baselines/splice-donor", "baselines splice-donor", {"baselines": 1}),
        ("tokens/nano/rna", "tokenize nano/rna", {"perplexity": 8, "evaluation": 14, "rl_gain": 4, "rl_rewards": 4}),
        ("models/nano/base/perplexity.json", "perplexity nano/base", {"perplexity": 4}),
    ],
)
def test_every_kind_of_job_has_its_cells(
    broken: tuple[Study, Path], output: str, kind: str, cells: dict[str, int]
) -> None:
    study, results = broken
    lose(study, results, output, "error: no space left\n")
    if output.startswith("tokens/"):  # what was trained on it
        lose(study, results, "models/nano/base/perplexity.json")
        lose(study, results, "models/nano/cpt-bio/checkpoint")
    if output.startswith("data/"):
        lose(study, results, "baselines/splice-donor")
        for folder, _, task in study.evaluations():
            if task == "splice-donor":
                lose(study, results, folder)
    found = absent(gathered(study, results))
    assert Counter(cell for cell, _ in found) == cells
    assert {(state, reason) for state, reason, _ in found.values()} == {("failed", f"{kind}: no space left")}


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        ("features/nano-esm/splice-donor", "features nano-esm/splice-donor"),
        ("encoders/nano-esm/checkpoint", "encoder nano-esm"),
    ],
)
def test_models_of_features_have_the_reason_of_the_bank_and_those_of_tokens_are_done(
    tmp_path: Path, output: str, kind: str
) -> None:
    study = load(forms("tokens", "features", cpt=["none"]))
    plant(study, tmp_path, size=40)
    for job in jobs(study):
        (tmp_path / job.proof).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / job.proof).touch()
    for model in study.models:
        if model.sequences == "features" and (tmp_path / model.path / "checkpoint").is_dir():
            shutil.rmtree(tmp_path / model.path)
    lose(study, tmp_path, output, "error: too long\n")
    if output.startswith("encoders/"):  # what was made with it
        lose(study, tmp_path, "features/nano-esm/splice-donor")
    cells = gathered(study, tmp_path)
    lost = cells[cells.state != "done"]
    assert set(lost.sequences) == {"features"}
    assert (cells[cells.sequences == "features"].state == "failed").all()
    assert set(lost.reason) == {f"{kind}: too long"}


def test_file_that_cannot_be_read_is_a_failed_cell_that_names_it(broken: tuple[Study, Path]) -> None:
    study, results = broken
    file = results / "models" / SFT / "e2" / "eval" / "metrics.json"
    file.write_text("{")
    with pytest.raises(UserError, match=r"e2/eval/metrics\.json"):
        gather(study, results, results / "study")
    cells = gathered(study, results)
    ((key, (state, reason, log)),) = absent(cells).items()
    assert key == ("evaluation", f"{SFT}/e2 splice-donor")
    assert (state, log) == ("failed", None)
    assert reason.startswith(f"{file}: cannot be read")


def test_file_that_is_gone_from_a_finished_evaluation_is_named(broken: tuple[Study, Path]) -> None:
    study, results = broken
    file = results / "models" / SFT / "e8" / "eval" / "ood.parquet"
    file.unlink()
    ((key, (state, reason, _)),) = absent(gathered(study, results)).items()
    assert key == ("rl_gain", f"{SFT}/e8/rl-grpo/e1 splice-donor")
    assert (state, reason) == ("missing", f"{file} is not in its folder; delete the folder and rerun")


def test_without_partial_the_error_says_how_to_gather_the_others(broken: tuple[Study, Path]) -> None:
    study, results = broken
    lose(study, results, f"models/{SFT}/e8/eval")
    with pytest.raises(UserError, match="--partial"):
        gather(study, results, results / "elsewhere")
    assert not (results / "elsewhere").exists()


def test_study_of_which_nothing_is_there_is_refused_with_the_first_error(tmp_path: Path) -> None:
    study = load(config())
    with pytest.raises(UserError, match=r"none of its \d+ results is there: nothing has run"):
        gather(study, tmp_path, tmp_path / "study", partial=True)
    (tmp_path / "logs/models/nano").mkdir(parents=True)
    (tmp_path / "logs/models/nano/base.log").write_text("error: no such tokenizer file\n")
    with pytest.raises(UserError, match="is there: base nano/base: no such tokenizer file"):
        gather(study, tmp_path, tmp_path / "study", partial=True)
    assert not (tmp_path / "study").exists()


def test_base_of_a_backbone_that_no_corpus_trains_is_asked_for_no_perplexity(tmp_path: Path) -> None:
    given = config()
    given["backbones"]["other"] = given["backbones"]["nano"]
    given["lineages"].append({"tasks": ["cell-type"], "backbones": ["other"], "sft": ["brief"]})
    study = load(given)
    plant(study, tmp_path, size=40)
    (tmp_path / "models/other/base/perplexity.json").unlink()  # no job makes it
    cells = gathered(study, tmp_path, partial=False)
    assert set(cells[cells.cell == "perplexity"].backbone) == {"nano"}


@pytest.mark.parametrize("seed", range(3))
def test_figures_of_what_is_there_are_drawn_whatever_is_missing(broken: tuple[Study, Path], seed: int) -> None:
    study, results = broken
    rng = np.random.default_rng(seed)
    folders = [folder for folder, _, _ in study.evaluations()]
    gone = rng.choice(folders, size=len(folders) // 2, replace=False)
    for folder in gone:
        lose(study, results, str(folder))
    cells = gathered(study, results)
    missing = cells[(cells.cell == "evaluation") & (cells.state != "done")]
    assert len(missing) == len(gone)
    files.write_json(results / "gone.json", sorted(gone))  # for whoever reads a failure
    figures(study, results / "study", results / "study" / "figures")
    assert (results / "study" / "figures" / "table.html").stat().st_size > 1000


# --- What a reader is told ---


def page(study: Study, results: Path) -> str:
    figures(study, results / "study", results / "study" / "figures")
    return (results / "study" / "figures" / "table.html").read_text()


def test_results_page_of_a_whole_study_says_that_all_is_there(broken: tuple[Study, Path]) -> None:
    study, results = broken
    cells = gathered(study, results)
    text = page(study, results)
    assert f"All {len(cells)} results that the config asks for are there." in text
    assert "missing." not in text


def test_results_page_begins_with_what_is_missing_and_why(broken: tuple[Study, Path]) -> None:
    study, results = broken
    lose(study, results, f"models/{SFT}/e8/checkpoint", "error: a <tag> in the message\n")
    lose(study, results, "baselines/cell-type")
    cells = gathered(study, results)
    text = page(study, results)
    assert f"<b>5 of {len(cells)} results are missing.</b>" in text
    assert text.index("are missing") < text.index("<h2>")
    assert f'<td>failed</td><td class="reason">sft {SFT}/e8: a &lt;tag&gt; in the message' in text
    assert f"results/logs/models/{SFT}/e8.log" in text
    assert '<td>missing</td><td class="reason">baselines cell-type has not run</td>' in text
    for row in cells[cells.state != "done"].itertuples():
        assert f"<li>{row.cell} {row.model}, {row.task}</li>" in text


def test_metrics_of_groups_change_no_figure_and_no_page(broken: tuple[Study, Path]) -> None:
    study, results = broken

    def drawn() -> dict[str, bytes]:
        gathered(study, results)
        page(study, results)
        return {path.name: path.read_bytes() for path in (results / "study" / "figures").iterdir()}

    before = drawn()
    for folder, _, _ in study.evaluations():
        file = results / folder / "metrics.json"
        written = files.read_json(file)
        groups = {"GC": {name: written["ood"][name] | {"value": 0.125} for name in ("accuracy", "balanced_accuracy")}}
        files.write_json(file, written | {"groups": {"id": {}, "ood": groups}})
    assert drawn() == before


def test_study_with_no_evaluation_of_a_model_has_figures_that_say_so(broken: tuple[Study, Path]) -> None:
    study, results = broken
    for folder, _, _ in study.evaluations():
        lose(study, results, folder)
    cells = gathered(study, results)
    assert set(cells[cells.state == "done"].cell) == {"baselines", "perplexity", "rl_rewards"}
    assert "majority" in page(study, results)


@pytest.mark.snakemake
@pytest.mark.slow
def test_failed_study_has_a_report_whose_first_page_says_what_is_missing(tmp_path: Path) -> None:
    """Snakemake for real: one of two lineages asks for what cannot be."""
    given = edited(recipes__sft__short__max_length=5)  # shorter than every example of splice-donor
    given["lineages"][0] |= {"cpt": ["none"], "rl": []}
    given["recipes"]["sft"]["brief"]["epochs"] = [1]
    given["tasks"]["splice-donor"] |= {"sequences": ["tokens"]}
    clone = make(tmp_path, given)
    said = clone.snakemake("--keep-going", code=1)
    assert "snakemake --cores 1 --forceall partial" in said
    assert "marked for report but does not exist" in clone.snakemake("--report", "report.html", code=1)
    clone.snakemake("--forceall", "partial")
    clone.snakemake("--report", "report.html", "partial")
    report = (tmp_path / "report.html").read_text()
    cells = pd.read_parquet(clone.results / "studies/tiny/partial" / CELLS)
    failed = cells[cells.state == "failed"]
    assert list(failed.model) == ["tiny/base/splice-donor/s0/sft-short/e1"]
    assert "are longer than max_length 5" in failed.reason.item()
    assert set(cells[cells.state != "failed"].state) == {"done"}
    assert f"1 of {len(cells)} results are missing" in report
    # Mended, the study is made whole, and its own report has no such page.
    given["recipes"]["sft"]["short"].pop("max_length")
    clone.write(given)
    clone.snakemake()
    clone.snakemake("--report", "report.html")
    assert "results are missing" not in (tmp_path / "report.html").read_text()
    assert set(pd.read_parquet(clone.results / "studies/tiny" / CELLS).state) == {"done"}
