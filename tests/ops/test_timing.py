"""The time of a study from what its parts cost: arithmetic with costs that are made up."""

import copy
import itertools
from dataclasses import replace
from pathlib import Path

import pytest

import goldens
from cisterna import study
from cisterna.ops import timing, workload
from cisterna.ops.timing import Lengths, Timing
from cisterna.study import Study
from cisterna.study.jobs import KINDS, Job, jobs
from clones import CONFIG

LENGTHS = Lengths(prompt=50, completion=8, longest=10, labels=2)
ONE = (1, 0)  # threads and GPUs


def timing_of(loaded: Study, folder: Path, lengths: Lengths = LENGTHS) -> Timing:
    """The timing of a study of which nothing is done; every task has examples of these lengths."""
    work = workload.measure(loaded, folder)
    work.corpora.update(dict.fromkeys(loaded.tokenized, 6400.0))
    pairs = itertools.product(loaded.backbones, loaded.tasks)
    return Timing(loaded, work, dict.fromkeys(pairs, lengths), dict.fromkeys(loaded.backbones, 640.0))


@pytest.fixture
def timed(tmp_path: Path) -> Timing:
    sizes = {"train": 64, "validation": 16, "id": 24, "ood": 24}
    loaded = timing_of(study.load(copy.deepcopy(CONFIG)), tmp_path)
    loaded.work.sizes.update({(task, split): rows for task in loaded.study.tasks for split, rows in sizes.items()})
    return loaded


def one(timed: Timing, kind: str, name: str) -> dict[str, float]:
    """The units of a job, by the word for them."""
    job = next(job for job in jobs(timed.study) if (job.kind, job.name) == (kind, name))
    return {part[-1]: units for part, units in timed.parts(job).items()}


@pytest.mark.parametrize("name", goldens.CONFIGS)
def test_every_job_of_every_study_has_an_estimate(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    timed = timing_of(study.read(goldens.CONFIGS[name]), tmp_path)
    for job in jobs(timed.study):
        assert timed.parts(job)
        assert {part[0] for part in timed.parts(job)} == {"evaluate" if job.kind == "answers" else job.kind}


def test_every_kind_of_job_has_an_estimate(timed: Timing) -> None:
    timed.study.config["evaluation"]["group"] = "lineage"
    assert {job.kind for job in jobs(timed.study) if timed.parts(job)} == set(KINDS)


def test_kind_of_job_without_an_estimate_is_an_error(timed: Timing) -> None:
    with pytest.raises(ValueError, match="no estimate of the time of jobs of kind polish"):
        timed.parts(Job("polish", "all", ("polished",), "polished", "log"))


def test_rung_costs_what_it_adds_to_the_rung_before(timed: Timing) -> None:
    name = "tiny/base/hairpin/s0/sft-brief/e{}"
    tokens = [one(timed, "sft", name.format(epochs))["token"] for epochs in (1, 2, 4)]
    assert tokens == [64 * 58, 64 * 58, 2 * 64 * 58]


def test_rl_costs_prompts_and_completions(timed: Timing) -> None:
    """16 prompts, 8 completions of each, of 10 tokens: the longest that SFT has taught."""
    rung = "tiny/base/hairpin/s0/sft-brief/e2/rl-grpo/e1"
    assert one(timed, "rl", rung) == {"start": 1, "token": 16 * 8 * (50 + 10)}
    longer = replace(timed, lengths=dict.fromkeys(timed.lengths, LENGTHS._replace(longest=99)))
    assert one(longer, "rl", rung)["token"] == 16 * 8 * (50 + 12)  # max_completion_length


def test_evaluation_costs_what_the_model_writes(timed: Timing) -> None:
    """A base model writes to the limit of 12 tokens and ends no thought, so no label of it is measured."""
    assert one(timed, "evaluate", "tiny/base/hairpin") == {
        "start": 1, "scores": 1, "prompt token": 48 * 50, "new token": 48 * 12,
    }  # fmt: skip
    tuned = one(timed, "evaluate", "tiny/base/hairpin/s0/sft-brief/e1")
    assert tuned == {"start": 1, "scores": 1, "prompt token": 48 * 50, "new token": 48 * 10, "label": 48 * 2}
    timed.study.config["evaluation"] |= {"samples": 3, "calibration": False}
    sampled = one(timed, "evaluate", "tiny/base/hairpin/s0/sft-brief/e1")
    assert sampled == {"start": 1, "scores": 1, "prompt token": 4 * 48 * 50, "new token": 4 * 48 * 10}
    timed.study.config["evaluation"] |= {"samples": 0, "shots": 2}
    asked = one(timed, "evaluate", "tiny/base/hairpin")
    assert asked["prompt token"] == 48 * (50 + (2 * (50 + 8) + 50))
    assert asked["new token"] == 2 * 48 * 12
    assert one(timed, "evaluate", "tiny/base/hairpin/s0/sft-brief/e1")["prompt token"] == 48 * 50


@pytest.mark.parametrize(("engine", "starts"), [("transformers", 4), ("vllm", 1)])
def test_group_answers_and_its_evaluations_score(timed: Timing, engine: str, starts: int) -> None:
    """Three rungs of SFT and one of RL above the base of hairpin."""
    timed.study.config["evaluation"] |= {"group": "lineage", "engine": engine}
    answers = one(timed, "answers", "tiny/base/hairpin/s0")
    assert answers == {"start": starts, "prompt token": 4 * 48 * 50, "new token": 4 * 48 * 10, "label": 4 * 48 * 2}
    assert one(timed, "evaluate", "tiny/base/hairpin/s0/sft-brief/e1") == {"scores": 1}
    assert one(timed, "evaluate", "tiny/base/hairpin")["start"] == 1


def test_random_weights_take_the_time_of_pretrained_ones(timed: Timing) -> None:
    backbones = timed.study.config["backbones"]
    backbones["twin"] = backbones["tiny"] | {"random_weights": True}
    backbones["wider"] = backbones["tiny"] | {"tokenizer": {"vocab_size": 99}}
    assert [timed.network(name) for name in ("tiny", "twin", "wider")] == ["tiny", "tiny", "wider"]


def test_cost_is_the_sum_of_parts() -> None:
    costs = {("a", "start"): 2.0, ("a", "token"): 0.5}
    assert timing.cost({("a", "start"): 1, ("a", "token"): 8}, costs) == 6.0
    with pytest.raises(KeyError):
        timing.cost({("a", "row"): 1}, costs)


def job(name: str, *needs: str, kind: str = "sft") -> Job:
    return Job(kind, name, (name,), name, "log", needs)


def test_jobs_run_side_by_side_after_what_they_need() -> None:
    """a (4 s), then b and c; d needs nothing. On two cores: a and d, b after d has ended, c after a, b (5 s)."""
    made = [(job("a"), 4.0), (job("b", "a"), 5.0), (job("c", "a"), 2.0), (job("d"), 3.0), (job("e", "b", "c"), 1.0)]
    uses = {"sft": ONE}
    assert timing.makespan(made, 1, 0, uses) == 15.0
    assert timing.makespan(made, 2, 0, uses) == 4.0 + 5.0 + 1.0
    assert timing.makespan(made[1:], 2, 0, uses) == 6.0  # a is done: b and c, then d beside b, then e
    assert timing.makespan([], 2, 0, uses) == 0.0


def test_job_waits_for_its_threads_and_its_gpu() -> None:
    wide = [(job("a"), 2.0), (job("b", kind="cpt"), 3.0), (job("c"), 2.0)]
    uses = {"sft": ONE, "cpt": (2, 0)}
    assert timing.makespan(wide, 2, 0, uses) == 2.0 + 3.0  # a and c, then b with both cores
    assert timing.makespan(wide, 1, 0, uses) == 7.0  # b takes the one core that there is
    both = {"sft": (1, 1)}
    assert timing.makespan([(job("a"), 2.0), (job("b"), 2.0)], 4, 1, both) == 4.0
    assert timing.makespan([(job("a"), 2.0), (job("b"), 2.0)], 4, 2, both) == 2.0
