"""A study of two tasks on a real Slurm, through profiles/cluster, with each fault that a cluster may have."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm import Slurm, missing

import clones
from study import ALONE, CONFIG, GRPO, PAIR, Run, disturb, results, started, undisturbed

SFT_ALONE = "rule_sft_wildcards_tiny_base_hairpin__0_alone_40"
SFT_PAIR = "rule_sft_wildcards_tiny_base_splice-donor__0_pair_12"
RL = "rule_rl_wildcards_tiny_base_hairpin_s0_sft-alone_e40_grpo_12"
LIGHT = {"rule_data_baselines_data", "rule_base_base", "rule_report_figures_findings_gather", "rule_report_quotes"}
EVALUATIONS = {
    f"rule_evaluate_wildcards_tiny_base_{model}"
    for model in (
        "hairpin",
        "splice-donor",
        "hairpin_s0_sft-alone_e40",
        "hairpin_s0_sft-alone_e40_rl-grpo_e12",
        "splice-donor_s0_sft-pair_e12",
    )
}

pytestmark = pytest.mark.skipif(
    bool(missing()), reason=f"not installed: {', '.join(missing())} (apt-get install slurm-wlm munge)"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The study after every fault of `disturb`; its Slurm still runs."""
    folder = tmp_path_factory.mktemp("cluster")
    with Slurm(folder / "slurm") as slurm:
        clone = clones.make(folder / "clone", CONFIG)
        with started(slurm, clone) as run:
            disturb(run)
            yield run


@pytest.fixture(scope="module")
def jobs(run: Run) -> dict[str, list[dict[str, str]]]:
    """The jobs of each stage, or group of light ones, in the order in which they were submitted."""
    found: dict[str, list[dict[str, str]]] = {}
    for job in run.slurm.jobs():
        found.setdefault(job["Comment"], []).append(job)
    return found


def test_the_study_completes_despite_every_fault(run):
    assert run.process.returncode == 0, run.terminal()[-6000:]
    assert "100%) done" in run.log()


def test_terminal_says_what_slurm_stopped_and_that_it_was_tried_again(run):
    text = run.terminal()
    for stage in (f"{ALONE}/e40", f"{PAIR}/e12"):
        assert f"  stopped by a signal: sft results/{stage}/checkpoint\n" in text
        assert f"  tried again: sft results/{stage}/checkpoint\n" in text
    assert "failed" not in text
    assert "Study tiny is done: 17 jobs in " in text


def test_results_are_those_of_an_undisturbed_run_on_one_machine(run, tmp_path):
    made, expected = results(run.clone), results(undisturbed(tmp_path / "study"))
    assert {path: made.get(path) for path in expected} == expected
    assert {f"{ALONE}/e40/checkpoint/model.safetensors", f"{GRPO}/e12/eval/metrics.json"} <= set(expected)


def test_the_scheduler_sees_stages_and_groups_of_light_jobs(jobs):
    assert set(jobs) == LIGHT | EVALUATIONS | {SFT_ALONE, SFT_PAIR, RL}


def test_every_fault_costs_one_job_and_nothing_that_finished_runs_again(jobs):
    states = {stage: Counter(job["JobState"] for job in found) for stage, found in jobs.items()}
    assert states.pop(SFT_ALONE) == {"CANCELLED": 1, "COMPLETED": 1}
    assert states.pop(SFT_PAIR) == {"FAILED": 1, "COMPLETED": 1}  # it ended by itself before the limit
    assert all(state == {"COMPLETED": 1} for state in states.values()), states
    requeued = {stage for stage, found in jobs.items() if found[-1]["Restarts"] == "1"}
    assert {SFT_ALONE, RL} <= requeued <= {SFT_ALONE, RL} | EVALUATIONS  # one may run on the node that is lost


@pytest.mark.parametrize("stage", [f"{ALONE}/e40", f"{PAIR}/e12"])
def test_a_stage_that_slurm_asks_to_end_saves_its_state_and_goes_on_from_there(run, stage):
    assert f"stopped: results/{stage}/checkpoint: by SIGTERM at step " in run.log()
    assert "resuming from step " in (run.clone.results / "logs" / f"{stage}.log").read_text()


def test_a_stage_whose_node_is_lost_goes_on_from_its_last_state_on_the_other(run):
    assert "resuming from step " in (run.clone.results / "logs" / f"{GRPO}/e12.log").read_text()


def test_a_job_asks_for_what_the_study_and_the_profile_say(jobs):
    job = jobs[RL][0]
    assert job["JobName"].startswith("cisterna_")
    assert (job["Account"], job["Partition"], job["Requeue"]) == ("research", "gpu", "1")
    assert (job["TimeLimit"], job["MinMemoryNode"], job["NumNodes"]) == ("00:30:00", "2000M", "1")
    assert job["TresPerJob"] == "gres:gpu:1"
    assert all(found[0]["Partition"] == "cpu" for stage, found in jobs.items() if stage in LIGHT)


def test_light_jobs_of_a_group_run_beside_each_other_and_one_after_the_other(jobs):
    job = jobs["rule_data_baselines_data"][0]
    assert (job["NumCPUs"], job["MinMemoryNode"]) == ("2", "6000M")  # two tasks
    assert job["TimeLimit"] == "01:20:00"  # data 20 min, baselines 60


def test_ranks_and_gpus_of_a_stage_on_two_nodes_are_spread_evenly(jobs):
    job = jobs[SFT_PAIR][0]
    assert (job["NumNodes"], job["NumTasks"], job["NodeList"]) == ("2", "2", "node[1-2]")
    assert (job["TresPerJob"], job["TresPerNode"]) == ("gres:gpu:2", "gres:gpu:1")


def test_a_further_attempt_gets_more_memory_and_time(jobs):
    first, second = jobs[SFT_ALONE]
    assert (first["MinMemoryNode"], second["MinMemoryNode"]) == ("2000M", "3000M")
    assert (first["TimeLimit"], second["TimeLimit"]) == ("00:30:00", "00:45:00")


def test_logs_of_jobs_and_stages_are_kept(run, jobs):
    assert all(Path(job["StdOut"]).stat().st_size for found in jobs.values() for job in found)
    logs = run.clone.results / "logs"
    assert all(Path(job["StdOut"]).is_relative_to(logs / "slurm") for found in jobs.values() for job in found)
    assert (logs / f"{GRPO}/e12.log").stat().st_size


def test_terminal_says_why_a_job_on_slurm_failed(run):
    """The last test: it adds jobs to those that Slurm knows."""
    (quotes,) = run.clone.results.glob("studies/*/quotes.html")
    quotes.unlink()
    answers = run.clone.results / GRPO / "e12" / "eval" / "id.parquet"
    whole = answers.read_bytes()
    answers.write_bytes(b"not a table")
    with started(run.slurm, run.clone, "--rerun-triggers", "code", "--retries", "0") as again:
        again.process.wait(400)
    answers.write_bytes(whole)
    assert again.process.returncode == 1, again.terminal()
    why = again.terminal().partition("failed: quotes ")[2]
    assert str(answers.relative_to(run.clone.folder)) in why, again.terminal()
