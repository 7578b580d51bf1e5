"""What is known of a run from Snakemake's events: counts by stage, why a job failed, the time left."""

import os
from pathlib import Path

import pytest

from cisterna import study
from cisterna.ops.run_state import STAGES, Counts, Run
from cisterna.study.jobs import KINDS, count_jobs
from clones import CONFIG


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def begin(run: Run, number: int, rule: str = "sft", log: Path | None = None) -> None:
    run.start(number, rule, [f"results/{number}/checkpoint"], [str(log)] if log else [])


def why(log: Path, text: str, said: str = "returned non-zero exit status 1.", rule: str = "sft") -> str | None:
    """Why a job with this text in its log failed; None if it did not fail."""
    log.write_text(text)
    run = Run({rule: 1})
    begin(run, 1, rule, log)
    failure = run.fail(1, said)
    return failure.reason if failure else None


def test_jobs_are_counted_by_stage(clock):
    run = Run({"data": 1, "baselines": 1, "sft": 4, "total": 7, "all": 1}, clock)
    begin(run, 1, "data")
    run.finish(1)
    for number in (2, 3, 4):
        begin(run, number)
    run.finish(2)
    run.fail(3, "")
    assert list(run.stages) == ["data", "SFT"]
    assert run.counts("data") == Counts(done=1, running=0, waiting=1, failed=0)
    assert run.counts("SFT") == Counts(done=1, running=1, waiting=1, failed=1)
    assert run.counts() == Counts(done=2, running=1, waiting=2, failed=1)


def test_jobs_that_were_done_before_count_in_a_run_of_the_whole_study():
    loaded = study.load(CONFIG)
    whole, part = Run({"sft": 2, "gather": 1, "all": 1}), Run({"sft": 2})
    for run in (whole, part):
        run.belongs_to(loaded)
    everything = count_jobs(loaded)
    assert sum(whole.counts()) == sum(everything.values())
    assert whole.counts("SFT") == Counts(everything["sft"] - 2, 0, 2, 0)
    assert part.counts() == Counts(0, 0, 2, 0)


@pytest.mark.parametrize("place", ["results/", "s3://bucket/results/lab/results/"])
def test_job_is_found_in_its_study_also_if_its_result_is_on_remote_storage(place):
    run = Run({"sft": 1})
    run.belongs_to(study.load(CONFIG))
    run.start(1, "sft", [f"{place}models/tiny/base/hairpin/s0/sft-brief/e1/checkpoint (send to storage)"], [])
    (job,) = run.running.values()
    assert run.known_job(job).name == "tiny/base/hairpin/s0/sft-brief/e1"
    assert job.is_local == (place == "results/")


def test_job_that_is_tried_again_has_not_failed():
    run = Run({"sft": 1})
    begin(run, 1)
    run.fail(1, "")
    begin(run, 1)
    assert run.counts() == Counts(0, 1, 0, 0)
    run.finish(1)
    assert (run.counts(), run.failures) == (Counts(1, 0, 0, 0), {})


def test_every_kind_of_job_belongs_to_one_stage():
    assert sorted(rule for rules in STAGES.values() for rule in rules) == sorted(KINDS)


def test_rule_of_another_workflow_has_a_line_of_its_own():
    run = Run({"sft": 1, "plot": 2})
    assert list(run.stages) == ["SFT", "plot"]


# --- Why a job failed ---


def test_reason_is_the_error_of_the_log(tmp_path):
    assert why(tmp_path / "log", "step 1\nerror: the loss is nan\n") == "the loss is nan"


def test_reason_without_an_error_is_the_end_of_the_log(tmp_path):
    assert why(tmp_path / "log", "one\ntwo\n\n\x1b[2Jthree\nfour\n") == "two / \\x1b[2Jthree / four"


def test_reason_of_a_job_that_wrote_nothing_is_the_end_of_the_clusters_log(tmp_path):
    own, slurm = tmp_path / "e1.log", tmp_path / "slurm.log"
    own.write_text("error: of an earlier run\n")
    os.utime(own, (0, 0))
    slurm.write_text("Building DAG of jobs...\nModuleNotFoundError: No module named 'torch'\n")
    run = Run({"sft": 1})
    begin(run, 1, log=own)
    failure = run.fail(1, "SLURM-job '5' failed", [str(own), str(slurm)])
    assert failure.reason == "Building DAG of jobs... / ModuleNotFoundError: No module named 'torch'"
    assert failure.log == slurm


@pytest.mark.parametrize("known", [True, False])
def test_jobs_of_a_group_wait_if_another_is_known_to_have_failed(tmp_path, known):
    own, slurm = tmp_path / "gather.log", tmp_path / "slurm.log"
    own.write_text("error: no table\n" if known else "")
    slurm.write_text("srun: error\n")
    run = Run({"gather": 1, "figures": 1})
    begin(run, 1, "gather", log=own)
    begin(run, 2, "figures", log=tmp_path / "figures.log")
    run.fail_group([1, 2])
    failures = [run.fail(number, "", [str(slurm)]) for number in (1, 2)]
    assert [failure and failure.reason for failure in failures] == (
        ["no table", None] if known else ["srun: error", "srun: error"]
    )
    assert run.counts() == ((0, 0, 1, 1) if known else (0, 0, 0, 2))


def test_reason_without_a_log_is_what_snakemake_says(tmp_path):
    run = Run({"sft": 1})
    begin(run, 1, log=tmp_path / "missing")
    failure = run.fail(1, "SLURM status is: 'TIMEOUT'")
    assert failure
    assert failure.reason == "SLURM status is: 'TIMEOUT'"


@pytest.mark.parametrize("said", ["died with <Signals.SIGKILL: 9>.", "SLURM status is: 'OUT_OF_MEMORY'"])
def test_killed_job_gets_advice_about_memory(tmp_path, said):
    reason = why(tmp_path / "log", "step 1\n", said)
    assert reason
    assert "killed" in reason
    assert "lower per_device_train_batch_size" in reason


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stopped: state of step 30 saved\n", "returned non-zero exit status 143."),
        ("Traceback (most recent call last):\n  File x\nKeyboardInterrupt\n", "returned non-zero exit status 1."),
        ("step 1\n", "died with <Signals.SIGINT: 2>."),
    ],
)
def test_job_that_a_signal_stopped_has_not_failed(tmp_path, text, said):
    assert why(tmp_path / "log", text, said) is None


@pytest.mark.parametrize("stopped", [True, False])
def test_job_of_whose_end_snakemake_says_nothing_has_failed_unless_a_person_stopped_the_run(stopped):
    run = Run({"sft": 1})
    begin(run, 1)
    run.close(stopped)
    assert (run.counts().failed, len(run.stopped)) == ((0, 1) if stopped else (1, 0))


# --- The time left ---


def test_time_left_is_not_known_before_a_job_of_a_kind_has_finished(clock):
    run = Run({"sft": 2, "rl": 1}, clock)
    begin(run, 1)
    clock.now = 10
    assert run.time_left() == (None, ["SFT", "RL"])


def test_time_left_is_the_mean_of_the_finished_jobs_for_each_that_remains(clock):
    run = Run({"sft": 4}, clock)
    for number in (1, 2):
        begin(run, number)
        clock.now += 10 * number
        run.finish(number)
    begin(run, 3)
    clock.now += 5
    assert run.time_left() == (10 + 15, [])  # 15 s each, 5 s of one are over


def test_jobs_that_run_at_the_same_time_share_the_time_left(clock):
    run = Run({"sft": 6}, clock)
    begin(run, 1)
    begin(run, 2)
    clock.now = 10
    run.finish(1)
    run.finish(2)
    assert run.time_left() == (20, [])


def test_stage_that_has_not_begun_is_left_out_and_named(clock):
    run = Run({"sft": 4, "rl": 2, "gather": 1}, clock)
    begin(run, 1)
    clock.now = 10
    run.finish(1)
    assert run.time_left() == (30, ["RL", "report"])


def test_stage_that_is_counted_in_part_is_not_named_but_the_rule_that_is_left_out(clock):
    run = Run({"evaluate": 3, "perplexity": 2}, clock)
    run.start(1, "evaluate", ["results/x"], [])
    clock.now = 10
    run.finish(1)
    assert run.time_left() == (20, ["perplexity"])


def test_time_left_is_not_known_while_nothing_is_known_of_most_of_the_jobs(clock):
    run = Run({"data": 2, "sft": 2}, clock)
    begin(run, 1, "data")
    clock.now = 10
    run.finish(1)
    assert run.time_left() == (None, ["SFT"])


def test_no_time_is_left_when_all_is_done(clock):
    run = Run({"sft": 1}, clock)
    begin(run, 1)
    clock.now = 10
    run.finish(1)
    assert run.time_left() == (None, [])
