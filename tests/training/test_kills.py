"""A stage may be killed at any moment: the same command then publishes what an undisturbed run publishes.

Processes are killed for real, by SIGKILL; `benchmarks/faults.py` kills more of them. `test_resume.py` tests from which
states a training resumes.
"""

import os
import random
import signal

import pytest

import kills
from cisterna.artifacts import progress
from waiting import PATIENCE, wait_until

STAGES = ("cpt", "sft", "rl", "features", "evaluate")
PUBLISHING = ("sft", "features", "evaluate")  # cpt and rl publish as sft does
# When stages are killed, as shares of the time of an undisturbed run: one random moment in each half, always the same.
draw = random.Random(0)
MOMENTS = {stage: [(half + draw.random()) / 2 for half in range(2)] for stage in STAGES}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def stages(base, splice, dna, solved, root):
    return kills.stages(base, splice, dna, solved.output, root / "read")


@pytest.fixture(scope="module")
def undisturbed(stages, root):
    """What each stage publishes if nothing disturbs it, and the seconds that it takes."""
    return {name: kills.undisturbed(stage, root / f"{name}-undisturbed") for name, stage in stages.items()}


def finish(stage, folder, expected):
    """Run the same command: it succeeds with the same result and leaves no temporary files."""
    assert stage.run(folder) == 0, kills.log(folder)
    assert stage.contents(folder) == expected
    assert stage.leftovers(folder) == []


@pytest.mark.parametrize("name", STAGES)
def test_stage_killed_at_any_moment_ends_with_the_result_of_an_undisturbed_run(stages, undisturbed, root, name):
    stage, (expected, seconds) = stages[name], undisturbed[name]
    for share in MOMENTS[name]:
        folder = root / f"{name}-{share:.3f}"
        kills.killed(stage, folder, share * seconds)
        assert stage.contents(folder) in (None, expected)
        finish(stage, folder, expected)


@pytest.mark.parametrize("name", PUBLISHING)
def test_stage_killed_before_any_change_of_its_publishing_shows_all_of_the_result_or_nothing(
    stages, undisturbed, root, name
):
    stage, expected, folder = stages[name], undisturbed[name][0], root / f"{name}-publishing"
    seen = []
    for _ in kills.crashes(stage, folder):
        seen.append(stage.contents(folder))
        finish(stage, folder, expected)
    published = seen.index(expected) if expected in seen else len(seen)
    assert published >= 5
    assert seen[:published] == [None] * published
    assert seen[published:] == [expected] * (len(seen) - published)


@pytest.mark.parametrize("name", STAGES)
def test_stage_that_gets_sigterm_saves_and_resumes(stages, undisturbed, root, name):
    stage, folder = stages[name], root / f"{name}-term"
    kills.terminated(stage, folder)
    assert stage.contents(folder) is None
    assert len([line for line in kills.log(folder).splitlines() if line.startswith("stopped: ")]) == 1
    assert "Traceback" not in kills.log(folder)
    finish(stage, folder, undisturbed[name][0])
    assert kills.RESUMED.search(kills.log(folder))


@pytest.mark.parametrize("name", ["features", "evaluate"])
def test_stage_that_is_already_running_is_refused(stages, undisturbed, root, name):
    stage, folder = stages[name], root / f"{name}-twice"
    first = stage.start(folder)
    wait_until((folder / stage.work / progress.NAME).is_file, "the first progress", first, pause=0.002)
    os.kill(first.pid, signal.SIGSTOP)  # otherwise it could end before the second has begun
    assert stage.run(folder) == 2
    assert f"error: {folder / stage.work}: another process is working on this stage" in kills.log(folder)
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait(PATIENCE) == 0
    assert stage.contents(folder) == undisturbed[name][0]
