"""What Snakemake runs and what it leaves alone: a tiny study run for real, then changed as users change one."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml

import goldens
from cisterna import study
from cisterna.artifacts import files
from cisterna.artifacts.checkpoint import MANIFEST
from cisterna.study.jobs import count_jobs, jobs
from clones import CONFIG, REPORT, Clone, Config, Job, Stage, edited, environment, snakemake
from tiny import ROOT

BASE = "models/tiny/base"
CPT = "models/tiny/cpt-bio"
SHORT = f"{BASE}/splice-donor/s0/sft-short/e1"
FEATURES = f"{BASE}/splice-donor/features-tiny-esm/s0/sft-short/e1"  # the same in the other form
ENCODER = Job("encoder", "encoders/tiny-esm/checkpoint")
BANK = Job("features", "features/tiny-esm/splice-donor")


def sft(start: str, *rungs: int) -> list[str]:
    return [f"{start}/hairpin/s0/sft-brief/e{rung}" for rung in rungs]


def rl(start: str) -> str:
    return f"{start}/hairpin/s0/sft-brief/e2/rl-grpo/e1"


def evaluated(model: str) -> Job:
    return Job("evaluate", f"{model}/eval")


def made(*models: str) -> list[Job]:
    """The job that makes each model, and its evaluation."""
    training = [Job("rl" if "/rl-" in model else "sft", f"{model}/checkpoint") for model in models]
    return training + [evaluated(model) for model in models]


def weights(folder: Path) -> dict[str, str]:
    """The hash of every weight file below a folder, by its path."""
    return {str(path.relative_to(folder)): files.sha256(path) for path in sorted(folder.rglob("*.safetensors"))}


HAIRPINS = [*sft(BASE, 1, 2, 4), *sft(CPT, 1, 2, 4), rl(BASE), rl(CPT)]


# --- The finished study ---


def test_second_run_has_nothing_to_do(finished: Clone) -> None:
    assert "Nothing to be done" in finished.snakemake()


def test_tables_of_the_report_have_every_model_of_the_users_table_and_both_forms(finished: Clone) -> None:
    table = pd.read_parquet(finished.results / "studies" / "tiny" / "metrics.parquet")
    table = table[table["metric"] == "accuracy"]
    hairpin = table[table["task"] == "hairpin"]
    assert set(hairpin["kind"]) == {"base", "cpt", "sft", "rl", "baseline"}
    assert set(hairpin["split"]) == {"id", "ood"}
    models = {model.path.removeprefix("models/") for model in study.load(CONFIG).models if model.task == "hairpin"}
    assert models <= {str(path).removeprefix("models/") for path in hairpin["model"]}
    donor = table[(table["task"] == "splice-donor") & (table["kind"] == "sft")]
    rows = set(zip(donor["sequences"], donor["encoder"].fillna("none"), donor["split"], strict=True))
    forms = (("tokens", "none"), ("features", "tiny-esm"))
    assert rows == {(*form, split) for form in forms for split in ("id", "ood")}


def test_rl_of_the_tiny_study_had_reward_variance(finished: Clone) -> None:
    """Else the tests here would say nothing about RL."""
    for start in (BASE, CPT):
        history = files.read_json(finished.results / rl(start) / "checkpoint" / "history.json")
        assert min(entry["frac_reward_zero_std"] for entry in history if "reward" in entry) < 0.8


GOLDEN = json.loads((goldens.HERE / "tiny-study.json").read_text())


def test_data_tokens_and_base_model_have_the_golden_bytes(finished: Clone) -> None:
    found, golden = (goldens.exact(files) for files in (goldens.hashes(finished.results), GOLDEN["files"]))
    assert len(golden) > 20
    assert found == golden


def test_everything_published_has_the_golden_bytes(finished: Clone) -> None:
    if GOLDEN["machine"] != goldens.machine():
        pytest.skip(f"the golden hashes of trained numbers are of another processor ({GOLDEN['machine']})")
    assert goldens.hashes(finished.results) == GOLDEN["files"]


def test_report_has_every_figure_with_its_caption(finished: Clone, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    finished.snakemake("--report", str(page))
    text = page.read_text()
    folder = finished.results / "studies" / "tiny"
    captions = {path.stem: path.read_text() for path in (ROOT / "workflow" / "report").glob("*.rst")}
    assert captions.keys() - {"workflow"} == {
        path.stem for path in folder.rglob("*") if path.suffix in (".svg", ".html")
    }
    for name, source in captions.items():
        written = re.sub(r"\{[#%{].*?[#%}]\}", "", source, flags=re.DOTALL)  # what Jinja leaves as it is
        words = re.search(r"[A-Za-z]{4,} [a-z]{2,} [a-z]{2,}", written)
        assert words, name
        assert words[0] in text, name


def test_published_checkpoints_verify(finished: Clone) -> None:
    loaded = study.load(CONFIG)
    count = len(loaded.models) + len(loaded.encoders) + len(loaded.banks)
    assert f"{count} checkpoints and banks below results are whole" in finished.run("cisterna", "verify")


def test_nothing_but_results_is_written(finished: Clone) -> None:
    written = {path.name for path in finished.folder.iterdir()}
    assert written == {"config", "tables", "resources", "results", ".snakemake"}
    hidden = {path.name for path in finished.results.rglob(".*")}
    assert hidden <= {".work", ".snakemake_timestamp", ".lock"}


# --- What an edit reruns ---

CPT_JOBS = [Job("cpt", f"{CPT}/checkpoint"), Job("perplexity", f"{CPT}/perplexity.json"), evaluated(f"{CPT}/hairpin")]
EDITS: dict[str, tuple[Config, list[Job]]] = {
    "RL recipe": (edited(recipes__rl__grpo__num_generations=4), made(rl(BASE), rl(CPT))),
    "SFT recipe": (edited(recipes__sft__brief__learning_rate=1.0e-3), made(*HAIRPINS)),
    "other SFT recipe": (edited(recipes__sft__short__learning_rate=1.0e-3), made(SHORT, FEATURES)),
    "CPT recipe": (
        edited(recipes__cpt__bio__learning_rate=1.0e-4),
        [*CPT_JOBS, *made(*sft(CPT, 1, 2, 4), rl(CPT))],
    ),
    "bridge": (edited(recipes__sft__short__bridge="mlp"), made(FEATURES)),
    "encoder": (edited(**{"encoders__tiny-esm__training__seed": 1}), [ENCODER, BANK, *made(FEATURES)]),
    "reading": (edited(**{"encoders__tiny-esm__layer": 0}), [BANK, *made(FEATURES)]),
    "new form": (
        edited(**{"tasks__splice-donor__sequences": ["tokens", "features", "both"]}),
        made(FEATURES.replace("features-", "both-")),
    ),
    "new rung": (edited(recipes__sft__brief__epochs=[1, 2, 4, 8]), made(*sft(BASE, 8), *sft(CPT, 8))),
    "resources": ({**CONFIG, "resources": {"sft": {"mem_mb": 4000}, "rl": {"threads": 2}}}, []),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edit_reruns_what_depends_on_it_and_the_report(finished: Clone, tmp_path: Path, edit: str) -> None:
    config, expected = EDITS[edit]
    path = tmp_path / "edited.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    assert finished.todo("--configfile", str(path)) == sorted(expected + REPORT)


def test_edited_table_reruns_its_task_and_no_other(clone: Clone) -> None:
    path = clone.folder / CONFIG["tasks"]["hairpin"]["file"]
    path.write_text(path.read_text() + "h200,GGGGGAAAAAACCCCC,high,bacterial,x\n")
    data = [Job("data", "data/hairpin"), Job("baselines", "baselines/hairpin")]
    data += [evaluated(f"{BASE}/hairpin"), evaluated(f"{CPT}/hairpin")]
    assert clone.todo() == sorted(data + made(*HAIRPINS) + REPORT)


def test_edited_reading_of_a_live_encoder_reruns_what_runs_it(clone: Clone) -> None:
    target = f"results/{FEATURES}/checkpoint"
    encoder = CONFIG["encoders"]["tiny-esm"] | {"bank": False}
    clone.write(edited(**{"encoders__tiny-esm": encoder}))
    assert clone.todo(target) == [Job("sft", f"{FEATURES}/checkpoint")]
    clone.snakemake(target)
    assert clone.todo(target) == []
    clone.write(edited(**{"encoders__tiny-esm": encoder | {"layer": 0}}))
    assert clone.todo(target) == [Job("sft", f"{FEATURES}/checkpoint")]


def test_deleted_rung_comes_back_with_the_same_weights(clone: Clone) -> None:
    before = weights(clone.results / "models")
    kept = clone.results / sft(BASE, 1)[0] / "checkpoint" / MANIFEST
    modified = kept.stat().st_mtime_ns
    clone.run("rm", "-r", str(clone.results / sft(BASE, 2)[0]))

    assert clone.todo() == sorted(made(*sft(BASE, 2, 4), rl(BASE)) + REPORT)
    clone.snakemake()
    assert weights(clone.results / "models") == before
    assert kept.stat().st_mtime_ns == modified
    log = (clone.results / "logs" / f"{sft(BASE, 2)[0]}.log").read_text()
    assert "resuming from step 16 of 32" in log or "resuming from step 32 of 32" in log


# --- What a target needs ---


def test_features_come_from_the_bank_of_their_encoder_and_task(untouched: Clone) -> None:
    target = f"results/{FEATURES}/eval"
    data = Job("data", "data/splice-donor")
    assert untouched.todo(target) == sorted([ENCODER, BANK, data, Job("base", f"{BASE}/checkpoint"), *made(FEATURES)])


def test_live_encoder_runs_inside_the_steps_and_has_no_bank(untouched: Clone) -> None:
    config = edited(**{"encoders__tiny-esm": {"pretrained": "some/encoder", "bank": False, "layer": 3}})
    config["lineages"].append({"tasks": ["splice-donor"], "rl": [{"recipe": "grpo", "from": ["cold"]}]})
    untouched.write(config)
    shown = untouched.snakemake("--dry-run", "--printshellcmds")
    for model in (FEATURES, FEATURES.replace("sft-short", "rl-grpo")):
        (command,) = re.findall(rf"^Shell command: (.*--output results/{model}/checkpoint .*)", shown, re.MULTILINE)
        assert "--encoder results/encoders/tiny-esm/checkpoint --sequences features --reading" in command
        assert '"layer": 3' in command
    assert re.search(r"cisterna encoder --spec .* --corpora '\{\}'", shown)
    assert "--bank" not in shown


def test_one_evaluation_needs_its_lineage_alone(untouched: Clone) -> None:
    first, second = sft(BASE, 1, 2)
    lineage = [Job("base", f"{BASE}/checkpoint"), Job("data", "data/hairpin"), Job("sft", f"{first}/checkpoint")]
    assert untouched.todo(f"results/{second}/eval") == sorted(lineage + made(second))


@pytest.mark.parametrize("name", ["checkpoint", "eval"])
def test_path_of_no_model_of_the_study_is_refused_with_the_nearest(untouched: Clone, name: str) -> None:
    message = untouched.snakemake("--dry-run", f"results/{BASE}/hairpin/s0/sft-brief/e3/{name}", code=1)
    assert re.search(rf"^ *study tiny: no .*e3.*Did you mean {BASE}/hairpin/s0/sft-brief/e\d", message, re.MULTILINE)
    assert 'File "' not in message  # no frames of a traceback


OTHER = edited(study="other", tasks={"splice-donor": CONFIG["tasks"]["splice-donor"]}, lineages=[{"sft": ["short"]}])


@pytest.mark.parametrize(
    ("file", "expected"),
    [(OTHER, OTHER), ({"seeds": [0, 1, 2]}, edited(seeds=[0, 1, 2]))],
    ids=["a study replaces the default one", "values change it"],
)
def test_file_of_values_or_a_study_is_run_as_plan_counts_it(untouched: Clone, file: Config, expected: Config) -> None:
    """Snakemake by itself would merge two studies, and run the tasks of both."""
    (untouched.folder / "file.yaml").write_text(yaml.safe_dump(file))
    rules = [job.rule for job in untouched.todo("--configfile", "file.yaml")]
    counts = {rule: count for rule, count in count_jobs(study.load(expected)).items() if count}
    assert {rule: rules.count(rule) for rule in rules} == counts


def test_value_on_the_command_line_changes_the_study(untouched: Clone) -> None:
    assert Job("gather", "studies/renamed/metrics.parquet") in untouched.todo("--config", "study=renamed")


def test_lint_is_clean(untouched: Clone) -> None:
    assert "Congratulations" in untouched.snakemake("--lint")


def test_jobs_that_keep_state_are_started_by_exec_so_that_signals_reach_them(untouched: Clone) -> None:
    output = untouched.snakemake("--dry-run", "--printshellcmds")
    executed = set(re.findall(r"^(?:local)?rule (\w+):\n(?:    .*\n)*Shell command: exec ", output, re.MULTILINE))
    assert executed == {job.kind for job in jobs(study.load(CONFIG)) if job.work} | {"perplexity"}


# --- Interrupted, and by hand ---


def test_killed_training_resumes_to_identical_weights(clone: Clone) -> None:
    short = {**CONFIG["recipes"]["sft"]["short"], "epochs": [32], "save_minutes": 0.005}
    clone.write(edited(recipes__sft__short=short))
    model = f"{BASE}/splice-donor/s0/sft-short/e32"
    target = clone.results / model / "checkpoint"
    log = clone.results / "logs" / f"{model}.log"
    arguments = snakemake(f"results/{model}/checkpoint")
    stage = Stage(clone, f"{BASE}/splice-donor/s0/sft-short")
    nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    job = subprocess.Popen(arguments, cwd=clone.folder, env=environment(), **nowhere)
    os.kill(stage.wait_for_state(16, job), signal.SIGKILL)  # the last state of the finished study is that of step 16
    assert job.wait(60) == 1
    assert not target.exists()

    output = clone.run(*arguments, "--printshellcmds")
    step = re.search(r"resuming from step (\d+) of 512", log.read_text())
    assert step
    assert 0 < int(step[1]) < 512

    # From nothing, and stopped by a SIGTERM to the shell that Snakemake starts, as a scheduler sends it.
    interrupted = weights(target)
    (line,) = re.findall(r"^Shell command: (exec cisterna sft .*)", output, re.MULTILINE)
    command = ["bash", "-c", f"set -euo pipefail; {line}"]
    clone.run("rm", "-r", str(stage.work), str(target))
    shell = subprocess.Popen(command, cwd=clone.folder, env=environment())
    stage.wait_for_state(0, shell)
    shell.send_signal(signal.SIGTERM)
    assert shell.wait(60) == 143
    assert "resuming" not in log.read_text()
    assert "stopped: " in log.read_text()
    clone.run(*command)
    assert weights(target) == interrupted


def test_evaluations_of_a_group_are_answered_in_one_job_and_stay_results_of_their_own(clone: Clone) -> None:
    """Answers that are saved are used: those of the run without a group, and then those of the group."""
    results = {model: clone.results / model / "eval" for model in sft(BASE, 1, 2, 4)}
    before = {model: (folder / "metrics.json").read_bytes() for model, folder in results.items()}
    first, second, last = results
    clone.run("rm", "-r", str(results[first]), str(clone.results / ".work" / first / "eval"))
    clone.write(edited(evaluation__group="lineage"))
    answers = [Job("answers", f"{start}/hairpin/s0/answers.json") for start in (BASE, CPT)]
    assert clone.todo() == sorted([*answers, *map(evaluated, HAIRPINS), *REPORT])
    clone.snakemake()
    outcome = files.read_json(clone.results / answers[0].output)
    assert list(outcome.values()) == ["answered", *["answered already"] * 3]
    assert "generated" not in (clone.results / "logs" / first / "eval.log").read_text()
    assert {model: (folder / "metrics.json").read_bytes() for model, folder in results.items()} == before
    assert "Nothing to be done" in clone.snakemake("--dry-run")

    clone.write(edited(evaluation__group="lineage", evaluation__max_new_tokens=8))
    assert {*answers, *map(evaluated, HAIRPINS)} < set(clone.todo())
    clone.write(edited(evaluation__group="lineage"))
    clone.run("rm", "-r", str(results[second]))
    assert clone.todo() == sorted([evaluated(second), *REPORT])
    clone.run("rm", "-r", str(clone.results / last / "checkpoint"))
    others = [evaluated(model) for model in (first, second, rl(BASE))]
    assert clone.todo() == sorted([*made(last), *others, answers[0], *REPORT])
    assert clone.todo(f"results/{second}/eval", "--config", "evaluation={group: none}") == [evaluated(second)]


def test_training_by_hand_gives_the_weights_of_the_run(clone: Clone) -> None:
    for model in (sft(CPT, 1)[0], rl(CPT), FEATURES):
        target = clone.results / model / "checkpoint"
        before = weights(target)
        clone.run("rm", "-r", str(target), str(clone.results / ".work"))
        clone.run("cisterna", "train", f"results/{model}")
        assert weights(target) == before
    evaluation = clone.results / FEATURES / "eval" / "metrics.json"
    metrics = evaluation.read_bytes()
    clone.run("rm", "-r", str(evaluation.parent))
    clone.run("cisterna", "evaluate", f"results/{FEATURES}/eval")
    assert evaluation.read_bytes() == metrics
