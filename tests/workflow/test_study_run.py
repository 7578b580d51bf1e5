"""What Snakemake runs and what it leaves alone: a tiny study run for real, then changed as users change one."""

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import yaml

import goldens
from cisterna import study
from cisterna.artifacts import files
from cisterna.artifacts.checkpoint import MANIFEST
from cisterna.study.jobs import count_jobs, jobs
from clones import CONFIG, Clone, Job, edited, environment, snakemake
from tiny import ROOT

BASE = "models/tiny/base"
CPT = "models/tiny/cpt-bio"
REPORT = [
    Job("figures", "studies/tiny/figures/sft_accuracy.svg"),
    Job("findings", "studies/tiny/findings.json"),
    Job("gather", "studies/tiny/metrics.parquet"),
]


def sft(start: str, *rungs: int) -> list[str]:
    return [f"{start}/hairpin/s0/sft-brief/e{rung}" for rung in rungs]


def rl(start: str) -> str:
    return f"{start}/hairpin/s0/sft-brief/e2/rl-grpo/e1"


SHORT = f"{BASE}/splice-donor/s0/sft-short/e1"
FEATURES = f"{BASE}/splice-donor/features-tiny-esm/s0/sft-short/e1"  # the same in the other form
ENCODER = Job("encoder", "encoders/tiny-esm/checkpoint")
BANK = Job("features", "features/tiny-esm/splice-donor")


def made(*models: str) -> list[Job]:
    """The job that makes each model, and its evaluation."""
    jobs = []
    for model in models:
        kind = "rl" if "/rl-" in model else "sft"
        jobs += [Job(kind, f"{model}/checkpoint"), evaluated(model)]
    return jobs


def evaluated(model: str) -> Job:
    return Job("evaluate", f"{model}/eval")


def weights(folder: Path) -> dict[str, str]:
    """The hash of every weight file below a folder, by its path."""
    return {str(path.relative_to(folder)): files.sha256(path) for path in sorted(folder.rglob("*.safetensors"))}


# --- The finished study ---


def test_second_run_has_nothing_to_do(finished: Clone) -> None:
    assert "Nothing to be done" in finished.snakemake()
    assert finished.todo() == []


def test_users_table_goes_from_file_to_report_with_only_a_config(finished: Clone) -> None:
    table = pd.read_parquet(finished.results / "studies" / "tiny" / "metrics.parquet")
    hairpin = table[(table["task"] == "hairpin") & (table["metric"] == "accuracy")]
    assert set(hairpin["kind"]) == {"base", "cpt", "sft", "rl", "baseline"}
    assert set(hairpin["split"]) == {"id", "ood"}
    models = {model.path for model in study.load(CONFIG).models if model.task == "hairpin"}
    assert {path.removeprefix("models/") for path in models} <= {
        str(path).removeprefix("models/") for path in hairpin["model"]
    }
    page = (finished.results / "studies" / "tiny" / "figures" / "table.html").read_text()
    assert "hairpin" in page


def test_rl_of_the_tiny_study_had_reward_variance(finished: Clone) -> None:
    """Else the tests here would say nothing about RL."""
    for start in (BASE, CPT):
        history = files.read_json(finished.results / rl(start) / "checkpoint" / "history.json")
        assert min(entry["frac_reward_zero_std"] for entry in history if "reward" in entry) < 0.8


def test_published_bytes_are_the_golden_ones(finished: Clone) -> None:
    golden = json.loads((goldens.HERE / "tiny-study.json").read_text())
    if golden["machine"] != goldens.machine():
        pytest.skip(f"the golden hashes are of another kind of processor ({golden['machine']})")
    assert goldens.hashes(finished.results) == golden["files"]


def test_report_holds_every_figure_with_its_caption(finished: Clone, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    finished.snakemake("--report", str(page))
    text = page.read_text()
    folder = finished.results / "studies" / "tiny"
    captions = {path.stem for path in (ROOT / "workflow" / "report").glob("*.rst")} - {"workflow"}
    assert captions == {path.stem for path in folder.rglob("*") if path.suffix in (".svg", ".html")}
    for caption in captions:
        source = (ROOT / "workflow" / "report" / f"{caption}.rst").read_text()
        words = re.search(r"[A-Za-z]{4,} [a-z]{2,} [a-z]{2,}", source)
        assert words, caption
        assert words[0] in text, caption


def test_forms_of_a_task_stand_side_by_side_in_the_table(finished: Clone) -> None:
    table = pd.read_parquet(finished.results / "studies" / "tiny" / "metrics.parquet")
    donor = table[(table["task"] == "splice-donor") & (table["kind"] == "sft") & (table["metric"] == "accuracy")]
    rows = set(zip(donor["sequences"], donor["encoder"].fillna("none"), donor["split"], strict=True))
    assert rows == {
        (form, encoder, split)
        for form, encoder in (("tokens", "none"), ("features", "tiny-esm"))
        for split in ("id", "ood")
    }


def test_published_checkpoints_verify_and_a_flipped_byte_is_named(clone: Clone) -> None:
    made = study.load(CONFIG)
    count = len(made.models) + len(made.encoders) + len(made.banks)
    assert f"{count} checkpoints and banks below results are whole" in clone.run("cisterna", "verify")
    path = clone.results / sft(BASE, 1)[0] / "checkpoint" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    message = clone.run("cisterna", "verify", code=2)
    assert str(path.relative_to(clone.folder)) in message
    assert "Traceback" not in message


def test_nothing_but_results_is_written(finished: Clone) -> None:
    assert {path.name for path in finished.folder.iterdir()} == {
        "config", "tables", "resources", "results", ".snakemake"
    }  # fmt: skip
    leftovers = [
        path for path in finished.results.rglob(".*") if path.name not in (".work", ".snakemake_timestamp", ".lock")
    ]
    assert leftovers == []


# --- What an edit reruns ---


def test_edited_rl_recipe_reruns_that_rl_stage_and_the_report(clone: Clone) -> None:
    clone.write(edited(recipes__rl__grpo__num_generations=4))
    assert clone.todo() == sorted(made(rl(BASE), rl(CPT)) + REPORT)


def test_edited_sft_recipe_reruns_its_ladders_and_what_hangs_below(clone: Clone) -> None:
    clone.write(edited(recipes__sft__brief__learning_rate=1.0e-3))
    models = [*sft(BASE, 1, 2, 4), *sft(CPT, 1, 2, 4), rl(BASE), rl(CPT)]
    assert clone.todo() == sorted(made(*models) + REPORT)


def test_edited_sft_recipe_leaves_other_recipes_alone(clone: Clone) -> None:
    clone.write(edited(recipes__sft__short__learning_rate=1.0e-3))
    assert clone.todo() == sorted(made(SHORT, FEATURES) + REPORT)


def test_edited_bridge_leaves_models_of_tokens_alone(clone: Clone) -> None:
    clone.write(edited(recipes__sft__short__bridge="mlp"))
    assert clone.todo() == sorted(made(FEATURES) + REPORT)


def test_edited_encoder_reruns_its_bank_and_what_reads_it(clone: Clone) -> None:
    clone.write(edited(**{"encoders__tiny-esm__training__seed": 1}))
    assert clone.todo() == sorted([ENCODER, BANK, *made(FEATURES), *REPORT])


def test_edited_reading_keeps_the_encoder(clone: Clone) -> None:
    clone.write(edited(**{"encoders__tiny-esm__layer": 0}))
    assert clone.todo() == sorted([BANK, *made(FEATURES), *REPORT])


def test_edited_reading_of_a_live_encoder_reruns_what_runs_it(clone: Clone) -> None:
    target = f"results/{FEATURES}/checkpoint"
    encoder = CONFIG["encoders"]["tiny-esm"] | {"bank": False}
    clone.write(edited(**{"encoders__tiny-esm": encoder}))
    assert clone.todo(target) == [Job("sft", f"{FEATURES}/checkpoint")]
    clone.snakemake(target)
    assert clone.todo(target) == []
    clone.write(edited(**{"encoders__tiny-esm": encoder | {"layer": 0}}))
    assert clone.todo(target) == [Job("sft", f"{FEATURES}/checkpoint")]


def test_new_form_runs_that_form_alone(clone: Clone) -> None:
    clone.write(edited(**{"tasks__splice-donor__sequences": ["tokens", "features", "both"]}))
    both = FEATURES.replace("features-", "both-")
    assert clone.todo() == sorted(made(both) + REPORT)


def test_edited_cpt_recipe_reruns_what_starts_from_it(clone: Clone) -> None:
    clone.write(edited(recipes__cpt__bio__learning_rate=1.0e-4))
    jobs = [Job("cpt", f"{CPT}/checkpoint"), Job("perplexity", f"{CPT}/perplexity.json"), evaluated(f"{CPT}/hairpin")]
    assert clone.todo() == sorted(jobs + made(*sft(CPT, 1, 2, 4), rl(CPT)) + REPORT)


def test_new_rung_runs_that_rung_alone(clone: Clone) -> None:
    clone.write(edited(recipes__sft__brief__epochs=[1, 2, 4, 8]))
    assert clone.todo() == sorted(made(*sft(BASE, 8), *sft(CPT, 8)) + REPORT)


def test_edited_table_reruns_its_task_and_no_other(clone: Clone) -> None:
    path = clone.folder / CONFIG["tasks"]["hairpin"]["file"]
    path.write_text(path.read_text() + "h200,GGGGGAAAAAACCCCC,high,bacterial,x\n")
    data = [Job("data", "data/hairpin"), Job("baselines", "baselines/hairpin")]
    data += [evaluated(f"{BASE}/hairpin"), evaluated(f"{CPT}/hairpin")]
    models = [*sft(BASE, 1, 2, 4), *sft(CPT, 1, 2, 4), rl(BASE), rl(CPT)]
    assert clone.todo() == sorted(data + made(*models) + REPORT)


def test_more_threads_or_memory_rerun_no_training(clone: Clone) -> None:
    clone.write({**CONFIG, "resources": {"sft": {"mem_mb": 4000}, "rl": {"threads": 2}}})
    assert {job.rule for job in clone.todo()} <= {"gather", "figures", "findings"}


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
    command = shell_of(untouched, "sft", f"results/{FEATURES}/checkpoint")
    assert "--bank results/features/tiny-esm/splice-donor --sequences features --recipe" in command
    assert "--sequences" not in shell_of(untouched, "sft", f"results/{SHORT}/checkpoint")
    jobs = untouched.todo(f"results/{FEATURES}/eval")
    data = Job("data", "data/splice-donor")
    assert jobs == sorted([ENCODER, BANK, data, Job("base", f"{BASE}/checkpoint"), *made(FEATURES)])


def test_live_encoder_runs_inside_the_steps_and_has_no_bank(untouched: Clone) -> None:
    config = edited(**{"encoders__tiny-esm": {"pretrained": "some/encoder", "bank": False, "layer": 3}})
    config["lineages"].append({"tasks": ["splice-donor"], "rl": [{"recipe": "grpo", "from": ["cold"]}]})
    untouched.write(config)
    assert not [job for job in untouched.todo() if job.rule == "features"]
    cold = FEATURES.replace("sft-short", "rl-grpo")
    for rule, model in (("sft", FEATURES), ("rl", cold)):
        command = shell_of(untouched, rule, f"results/{model}/checkpoint")
        assert "--encoder results/encoders/tiny-esm/checkpoint --sequences features --reading" in command
        assert '"layer": 3' in command
    shown = untouched.snakemake("--dry-run", "--printshellcmds", f"results/{cold}/eval")
    assert "cisterna encoder --spec" in shown
    assert "--corpora '{}'" in shown
    assert "--bank" not in shown


@pytest.mark.parametrize(
    ("target", "last"),
    [("checkpoint", []), ("eval", [evaluated(sft(BASE, 2)[0])])],
)
def test_one_file_asks_for_its_lineage_alone(untouched: Clone, target: str, last: list[Job]) -> None:
    lineage = [
        Job("base", f"{BASE}/checkpoint"),
        Job("data", "data/hairpin"),
        *(Job("sft", f"{model}/checkpoint") for model in sft(BASE, 1, 2)),
    ]
    assert untouched.todo(f"results/{sft(BASE, 2)[0]}/{target}") == sorted(lineage + last)


def test_file_of_no_model_of_the_study_is_refused_with_the_nearest(untouched: Clone) -> None:
    message = untouched.snakemake("--dry-run", f"results/{BASE}/hairpin/s0/sft-brief/e3/checkpoint", code=1)
    assert "study tiny: no model" in message
    assert "Did you mean" in message
    assert 'File "' not in message  # no frames of a traceback


@pytest.mark.parametrize("default", [False, True], ids=["tiny", "default"])
def test_plan_counts_the_jobs_of_the_dry_run(untouched: Clone, default: bool) -> None:
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text()) if default else CONFIG
    untouched.write(config)
    jobs = [job.rule for job in untouched.todo()]
    assert {rule: jobs.count(rule) for rule in jobs} == count_jobs(study.load(config))


def test_given_study_takes_the_place_of_the_default(untouched: Clone) -> None:
    """Snakemake by itself would merge the two, and run the tasks of both."""
    path = untouched.folder / "other.yaml"
    config = edited(study="other", tasks={"splice-donor": CONFIG["tasks"]["splice-donor"]})
    config["lineages"] = [{"sft": ["short"]}]
    path.write_text(yaml.safe_dump(config))
    jobs = [job.rule for job in untouched.todo("--configfile", str(path))]
    assert {rule: jobs.count(rule) for rule in jobs} == {
        rule: count for rule, count in count_jobs(study.load(config)).items() if count
    }


def test_given_values_without_a_study_change_the_default(untouched: Clone) -> None:
    path = untouched.folder / "seeds.yaml"
    path.write_text("seeds: [0, 1, 2]\n")
    rules = [job.rule for job in untouched.todo("--configfile", str(path))]
    expected = count_jobs(study.load(edited(seeds=[0, 1, 2])))
    assert {rule: rules.count(rule) for rule in rules} == expected
    assert Job("gather", "studies/renamed/metrics.parquet") in untouched.todo("--config", "study=renamed")


def test_lint_is_clean(untouched: Clone) -> None:
    assert "Congratulations" in untouched.snakemake("--lint")


# --- Interrupted, and by hand ---


def test_killed_training_resumes_to_identical_weights(clone: Clone) -> None:
    clone.write(
        edited(recipes__sft__short={**CONFIG["recipes"]["sft"]["short"], "epochs": [12], "save_minutes": 0.005})
    )
    model = f"{BASE}/splice-donor/s0/sft-short/e12"
    target = clone.results / model / "checkpoint"
    arguments = snakemake(f"results/{model}/checkpoint")
    job = subprocess.Popen(
        arguments, cwd=clone.folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    state = clone.results / ".work" / BASE / "splice-donor" / "s0" / "sft-short"
    saved = "checkpoint-*/complete.json"  # e1 of the finished study left its own, at step 16
    wait_for(job, lambda: any(16 < int(path.parent.name.split("-")[1]) < 120 for path in state.glob(saved)))
    (training,) = wait_for(job, lambda: forks(job.pid) or cold(job.pid))
    training.send_signal(signal.SIGKILL)
    assert job.wait(60) == 1
    assert not target.exists()

    clone.run(*arguments)
    log = (clone.results / "logs" / f"{model}.log").read_text()
    step = re.search(r"resuming from step (\d+) of 192", log)
    assert step
    assert 0 < int(step[1]) < 192

    # From nothing, and stopped by a SIGTERM to the shell that Snakemake starts, as a scheduler sends it.
    interrupted = weights(target)
    command = ["bash", "-c", "set -euo pipefail; " + shell_of(clone, "sft", f"results/{model}/checkpoint")]
    clone.run("rm", "-r", str(state), str(target))
    shell = subprocess.Popen(command, cwd=clone.folder, env=environment())
    wait_for(shell, lambda: list(state.glob(saved)))
    shell.send_signal(signal.SIGTERM)
    assert shell.wait(60) == 143
    log = (clone.results / "logs" / f"{model}.log").read_text()
    assert "resuming" not in log
    assert "stopped: " in log
    clone.run(*command)
    assert weights(target) == interrupted


def test_jobs_that_keep_state_are_started_by_exec_so_that_signals_reach_them(untouched: Clone) -> None:
    output = untouched.snakemake("--dry-run", "--printshellcmds")
    executed = set(re.findall(r"^(?:local)?rule (\w+):\n(?:    .*\n)*Shell command: exec ", output, re.MULTILINE))
    assert executed == {job.kind for job in jobs(study.load(CONFIG)) if job.work} | {"perplexity"}


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


def forks(pid: int) -> list[psutil.Process]:
    """The jobs that the fork server of a Snakemake process runs. Programs that its imports call are not among them."""
    return [fork for server in _servers(psutil.Process(pid)) for fork in _servers(server)]


def cold(pid: int) -> list[psutil.Process]:
    """The job of a Snakemake process whose fork server was not ready for it: then it trains by itself."""
    return [child for child in psutil.Process(pid).children() if child.is_running() and "sft" in child.cmdline()]


def _servers(parent: psutil.Process) -> Iterator[psutil.Process]:
    for child in parent.children():
        try:
            if "fork-server" in child.cmdline():  # a fork keeps the command line of its server
                yield child
        except psutil.NoSuchProcess:  # it ended while it was looked at, or is a zombie
            continue


def wait_for(job: subprocess.Popen[bytes], condition: Callable[[], Any]) -> Any:
    """What `condition` gives as soon as it is true, while `job` runs."""
    deadline = time.monotonic() + 240
    while not (found := condition()):
        assert job.poll() is None, "it ended too soon"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def shell_of(clone: Clone, rule: str, target: str) -> str:
    """The shell command by which a rule makes a target."""
    output = clone.snakemake("--dry-run", "--printshellcmds", "--force", target)
    commands = [line for line in output.splitlines() if f" {rule} --parent" in line and f"--output {target}" in line]
    assert len(commands) == 1, output
    return commands[0].removeprefix("Shell command: ")
