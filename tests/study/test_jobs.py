"""The table of jobs says what the rules say."""

import re

import pytest

from cisterna import study
from cisterna.study.jobs import KINDS, jobs
from goldens import CONFIGS, load


@pytest.mark.parametrize("name", CONFIGS)
def test_jobs_are_those_of_the_rules(name):
    """tests/golden compares the same dumps with real dry runs."""
    rules = {job["log"]: job for job in load(name)["jobs"] if job["rule"] != "all"}
    made = {path for job in rules.values() for path in job["output"].split(", ")}
    found = jobs(study.read(CONFIGS[name]))
    assert len(found) == len(rules)
    assert [job.kind for job in found] == sorted((job.kind for job in found), key=KINDS.index)
    for job in found:
        rule = rules[f"results/{job.log}"]
        outputs = {f"results/{path}" for path in job.outputs}
        needs = [f"results/{path}" for path in job.needs]
        assert rule["rule"] == job.kind
        if job.kind == "figures":  # the drawings are in the same folder
            assert outputs < set(rule["output"].split(", "))
        else:
            assert outputs == set(rule["output"].split(", "))
        assert sorted(needs) == sorted(made.intersection(rule["input"].split(", ")))
        assert any(f"{job.proof}/".startswith(f"{path}/") for path in job.outputs)
        work = re.search(r" --work (\S+)", rule["shell"])
        assert (work and work[1]) == (f"results/{job.work}" if job.work else None)
