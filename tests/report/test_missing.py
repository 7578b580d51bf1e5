"""No result disappears: everything that a config asks for is in cells.parquet, done or with why it is not."""

import base64
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted import config, forms, plant

from cisterna.artifacts import checkpoint, files
from cisterna.errors import UserError
from cisterna.report import CELLS_TABLE, GAINS_TABLE, METRICS_TABLE, QUOTES_PAGE, REWARDS_TABLE
from cisterna.report.figures import figures
from cisterna.report.gather import CELL, IDENTITY, gather
from cisterna.study import Study, load
from cisterna.study.jobs import jobs
from clones import edited, make

SFT = "nano/base/splice-donor/s0/sft-brief"
MODELS = 2 * (1 + 4 + 2) * 2  # starts, (before SFT, rungs of SFT, RL) and tasks


def publish(study: Study, results: Path) -> tuple[Study, Path]:
    """Write all that gather reads, and the files by which jobs are known to be done."""
    plant(study, results, size=40)
    for job in jobs(study):
        proof = results / job.proof
        proof.parent.mkdir(parents=True, exist_ok=True)
        if proof.name == checkpoint.MANIFEST:
            files.write_json(proof, {"trained": {}})
        proof.touch()
    return study, results


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """A study with everything that its jobs publish. Read only, except for the folder `study` of its tables."""
    return publish(load(config()), tmp_path_factory.mktemp("whole"))


@pytest.fixture
def broken(whole: tuple[Study, Path], tmp_path: Path) -> tuple[Study, Path]:
    """A copy of it, from which a test takes parts away."""
    return whole[0], shutil.copytree(whole[1], tmp_path / "results")


def gathered(study: Study, results: Path, partial: bool = True) -> pd.DataFrame:
    """The cells, with None for null."""
    gather(study, results, results / "study", partial=partial)
    cells = pd.read_parquet(results / "study" / CELLS_TABLE)
    assert list(cells.columns) == [*IDENTITY, *CELL]
    assert not cells.duplicated(["cell", "model", "task"]).any()
    return cells.astype(object).replace({np.nan: None, pd.NA: None})


def lose(study: Study, results: Path, output: str, log: str | None = None) -> None:
    """As if a job had never published, nor any that needs what it makes; `log` is what it wrote."""
    lost = {output}
    for job in jobs(study):  # after those that it needs
        if lost.intersection((*job.outputs, *job.needs)) and job.kind not in ("gather", "figures", "findings"):
            lost.add(job.output)
        if job.output == output and log is not None:
            (results / job.log).parent.mkdir(parents=True, exist_ok=True)
            (results / job.log).write_text(log)
    for path in (results / name for name in lost):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def absent(cells: pd.DataFrame) -> dict[tuple[str, str], tuple[str, str, str | None]]:
    """State, reason and log of what is not done, by kind of result and model."""
    return {
        (row.cell, f"{row.model} {row.task}"): (row.state, row.reason, row.log)
        for row in cells[cells.state != "done"].itertuples()
    }


# --- cells.parquet ---


def test_whole_study_has_every_result_and_all_are_done(whole: tuple[Study, Path]) -> None:
    cells = gathered(*whole, partial=False)
    assert set(cells.state) == {"done"}
    assert cells.reason.isna().all()
    assert cells.log.isna().all()
    study = whole[0]
    rl = sum(model.kind == "rl" for model in study.models)
    expected = {"evaluation": MODELS, "baselines": 2, "perplexity": 2 * 5, "rl_gain": rl, "rl_rewards": rl}
    assert Counter(cells.cell) == expected
    assert {(row.model, row.task) for row in cells[cells.cell == "evaluation"].itertuples()} == {
        (path.removeprefix("models/"), task) for _, path, task in study.evaluations()
    }
    assert cells[cells.cell == "rl_gain"].parent.notna().all()


def test_partial_tables_of_a_whole_study_are_the_tables(whole: tuple[Study, Path], tmp_path: Path) -> None:
    for partial in (False, True):
        gather(*whole, tmp_path / str(partial), partial=partial)
    for name in (METRICS_TABLE, GAINS_TABLE, REWARDS_TABLE, CELLS_TABLE):
        assert (tmp_path / "True" / name).read_bytes() == (tmp_path / "False" / name).read_bytes()


def test_results_that_need_a_failed_stage_have_its_error_and_its_log(broken: tuple[Study, Path]) -> None:
    study, results = broken
    whole = gathered(study, results)
    before = {name: pd.read_parquet(results / "study" / name) for name in (METRICS_TABLE, GAINS_TABLE, REWARDS_TABLE)}
    trace = 'Traceback (most recent call last):\n  File "x.py", line 1\ntorch.OutOfMemoryError: CUDA out of memory\n'
    lose(study, results, f"models/{SFT}/e2/checkpoint", f"step 3\n{trace}")
    cells = gathered(study, results)
    failure = ("failed", f"sft {SFT}/e2: torch.OutOfMemoryError: CUDA out of memory", f"logs/models/{SFT}/e2.log")
    gone = [f"{SFT}/e{rung} splice-donor" for rung in (2, 4, 8)]  # the later rungs continue e2
    after = f"{SFT}/e8/rl-grpo/e1 splice-donor"
    assert absent(cells) == (
        {("evaluation", model): failure for model in [*gone, after]}
        | {("rl_gain", after): failure, ("rl_rewards", after): failure}
    )
    assert len(cells) == len(whole)
    lost = {name.split(" ")[0] for name in [*gone, after]}
    for name, table in before.items():
        kept = table[~table.model.isin(lost)].reset_index(drop=True)
        assert len(kept) < len(table)
        pd.testing.assert_frame_equal(pd.read_parquet(results / "study" / name), kept)


def test_failed_stage_whose_input_is_gone_since_has_the_reason_of_the_input(broken: tuple[Study, Path]) -> None:
    study, results = broken
    lose(study, results, f"models/{SFT}/e8/checkpoint", "error: an old one\n")
    lose(study, results, "data/splice-donor", "error: resources/tasks/splice-donor.parquet: no such file\n")
    reason = "data splice-donor: resources/tasks/splice-donor.parquet: no such file"
    assert set(absent(gathered(study, results)).values()) == {("failed", reason, "logs/data/splice-donor.log")}


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (None, "evaluate {name} has not run"),
        ("generated 200/400\n", "evaluate {name} was killed, or is still running"),
        ("stopped: by SIGTERM after 200 of 800 examples\n", "evaluate {name} was stopped"),
    ],
)
def test_evaluation_that_has_no_result_and_no_error_is_missing_and_so_is_the_gain_over_it(
    broken: tuple[Study, Path], log: str | None, reason: str
) -> None:
    study, results = broken
    name = f"{SFT}/e8"
    lose(study, results, f"models/{name}/eval", log)
    found = absent(gathered(study, results))
    assert set(found) == {("evaluation", f"{name} splice-donor"), ("rl_gain", f"{name}/rl-grpo/e1 splice-donor")}
    for state, message, where in found.values():
        assert (state, where) == ("missing", f"logs/models/{name}/eval.log" if log else None)
        assert message.startswith(reason.format(name=name))


def test_results_that_need_a_failed_job_have_its_error(broken: tuple[Study, Path]) -> None:
    study, results = broken
    lose(study, results, "tokens/nano/rna", "error: no space left\n")
    found = absent(gathered(study, results))
    assert Counter(cell for cell, _ in found) == {"perplexity": 10, "evaluation": 14, "rl_gain": 4, "rl_rewards": 4}
    error = ("failed", "tokenize nano/rna: no space left")
    assert {(state, reason) for state, reason, _ in found.values()} == {error}


def test_models_of_features_have_the_error_of_their_encoder_and_models_of_tokens_are_done(tmp_path: Path) -> None:
    study, results = publish(load(forms("tokens", "features", cpt=["none"])), tmp_path)
    lose(study, results, "encoders/nano-esm/checkpoint", "error: too long\n")
    cells = gathered(study, results)
    lost = cells[cells.state != "done"]
    assert set(lost.sequences) == {"features"}
    assert (cells[cells.sequences == "features"].state == "failed").all()
    assert set(lost.reason) == {"encoder nano-esm: too long"}


def test_unreadable_file_is_a_failed_result_that_names_it(broken: tuple[Study, Path]) -> None:
    study, results = broken
    file = results / "models" / SFT / "e2" / "eval" / "metrics.json"
    file.write_text("{")
    with pytest.raises(UserError, match=r"e2/eval/metrics\.json"):
        gather(study, results, results / "study")
    ((key, (state, reason, log)),) = absent(gathered(study, results)).items()
    assert key == ("evaluation", f"{SFT}/e2 splice-donor")
    assert (state, log) == ("failed", None)
    assert reason.startswith(f"{file}: ")


def test_file_that_is_gone_from_a_finished_evaluation_is_named(broken: tuple[Study, Path]) -> None:
    study, results = broken
    file = results / "models" / SFT / "e8" / "eval" / "ood.parquet"
    file.unlink()
    ((key, (state, reason, _)),) = absent(gathered(study, results)).items()
    assert key == ("rl_gain", f"{SFT}/e8/rl-grpo/e1 splice-donor")
    assert state == "missing"
    assert reason.startswith(f"{file} ")


def test_without_partial_the_error_says_how_to_gather_the_others(broken: tuple[Study, Path]) -> None:
    study, results = broken
    lose(study, results, f"models/{SFT}/e8/eval")
    with pytest.raises(UserError, match="--partial"):
        gather(study, results, results / "elsewhere")
    assert not (results / "elsewhere").exists()


def test_study_without_any_result_is_refused_with_the_first_error(tmp_path: Path) -> None:
    study = load(config())
    with pytest.raises(UserError, match="nothing has run"):
        gather(study, tmp_path, tmp_path / "study", partial=True)
    (tmp_path / "logs/models/nano").mkdir(parents=True)
    (tmp_path / "logs/models/nano/base.log").write_text("error: no such tokenizer file\n")
    with pytest.raises(UserError, match="base nano/base: no such tokenizer file"):
        gather(study, tmp_path, tmp_path / "study", partial=True)
    assert not (tmp_path / "study").exists()


def test_base_of_a_backbone_without_cpt_needs_no_perplexity(tmp_path: Path) -> None:
    asked = config()
    asked["backbones"]["other"] = asked["backbones"]["nano"]
    asked["lineages"].append({"tasks": ["cell-type"], "backbones": ["other"], "sft": ["brief"]})
    study = load(asked)
    plant(study, tmp_path, size=40)
    (tmp_path / "models/other/base/perplexity.json").unlink()  # no job makes it
    cells = gathered(study, tmp_path, partial=False)
    assert set(cells[cells.cell == "perplexity"].backbone) == {"nano"}


# --- Figures and the results page ---


def draw(study: Study, results: Path) -> dict[str, bytes]:
    """The figures and the results page, by name."""
    folder = results / "study" / "figures"
    figures(study, results / "study", folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def page(study: Study, results: Path) -> str:
    return draw(study, results)["table.html"].decode()


def test_page_of_a_whole_study_says_that_all_is_there_and_metrics_of_groups_change_nothing(
    broken: tuple[Study, Path],
) -> None:
    study, results = broken
    gathered(study, results)
    before = draw(study, results)
    text = before["table.html"].decode()
    assert "Nothing is missing: all evaluations, baselines" in text
    assert "missing." not in text
    for folder, _, _ in study.evaluations():
        file = results / folder / "metrics.json"
        written = files.read_json(file)
        groups = {"GC": {name: written["ood"][name] | {"value": 0.125} for name in ("accuracy", "balanced_accuracy")}}
        files.write_json(file, written | {"groups": {"id": {}, "ood": groups}})
    gathered(study, results)
    assert draw(study, results) == before


def test_page_begins_with_what_is_missing_and_why_and_figures_show_the_rest(broken: tuple[Study, Path]) -> None:
    study, results = broken
    lose(study, results, f"models/{SFT}/e8/checkpoint", "error: a <tag> in the message\n")
    lose(study, results, "baselines/cell-type")
    folders = [folder for folder, _, _ in study.evaluations() if "cell-type" in folder]
    for folder in np.random.default_rng(0).choice(folders, size=len(folders) // 2, replace=False):
        lose(study, results, str(folder))
    cells = gathered(study, results)
    lost = cells[cells.state != "done"]
    text = page(study, results)
    assert f"{len(lost)} of {len(cells)} results are missing" in text
    assert text.index("are missing") < text.index("<h2>")
    assert f'<td>failed</td><td class="reason">sft {SFT}/e8: a &lt;tag&gt; in the message' in text
    assert f"results/logs/models/{SFT}/e8.log" in text
    assert '<td>missing</td><td class="reason">baselines cell-type has not run</td>' in text
    for row in lost.itertuples():
        assert f"<li>{row.cell} {row.model}, {row.task}</li>" in text


def test_study_without_an_evaluation_of_a_model_has_figures_and_a_page(broken: tuple[Study, Path]) -> None:
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
    changed = edited(recipes__sft__short__max_length=5)  # shorter than every example of splice-donor
    changed["lineages"][0] |= {"cpt": ["none"], "rl": []}
    changed["recipes"]["sft"]["brief"]["epochs"] = [1]
    changed["tasks"]["splice-donor"] |= {"sequences": ["tokens"]}
    clone = make(tmp_path, changed)
    output = clone.snakemake("--keep-going", code=1)
    assert "cisterna report --partial" in output
    assert "marked for report but does not exist" in clone.snakemake("--report", "report.html", code=1)
    clone.run("cisterna", "report", "--partial")
    clone.snakemake("--report", "report.html", "partial")
    report = (tmp_path / "report.html").read_text()
    cells = pd.read_parquet(clone.results / "studies/tiny/partial" / CELLS_TABLE)
    failed = cells[cells.state == "failed"]
    assert list(failed.model) == ["tiny/base/splice-donor/s0/sft-short/e1"]
    assert "are longer than max_length 5" in failed.reason.item()
    assert set(cells[cells.state != "failed"].state) == {"done"}
    assert f"1 of {len(cells)} results are missing" in report
    quoted = (clone.results / "studies/tiny/partial" / QUOTES_PAGE).read_bytes()
    assert f"<li>models/{failed.model.item()}/eval</li>" in quoted.decode()
    assert base64.b64encode(quoted).decode() in report
    # With a correct recipe, the rest of the study is made, and its own report has no such page.
    changed["recipes"]["sft"]["short"].pop("max_length")
    clone.write(changed)
    output = clone.snakemake("--logger=cisterna")
    assert re.search(r"^Study tiny is done: \d+ jobs, \d+ of them now", output, re.MULTILINE)
    clone.snakemake("--report", "report.html")
    assert "results are missing" not in (tmp_path / "report.html").read_text()
    assert set(pd.read_parquet(clone.results / "studies/tiny" / CELLS_TABLE).state) == {"done"}
