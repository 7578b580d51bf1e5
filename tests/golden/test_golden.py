"""Studies expand to the models, recipes and jobs that they always did: see goldens.py."""

import json

import pytest

from goldens import CONFIGS, jobs, load, models


@pytest.mark.parametrize("name", CONFIGS)
def test_models_and_the_recipes_of_their_stages_are_the_golden_ones(name):
    assert json.loads(json.dumps(models(CONFIGS[name]))) == load(name)["models"]


@pytest.mark.snakemake
@pytest.mark.parametrize("name", CONFIGS)
def test_jobs_have_the_golden_inputs_outputs_and_shell_lines(name, tmp_path):
    for job, golden in zip(jobs(CONFIGS[name], tmp_path), load(name)["jobs"], strict=True):
        assert job == golden
