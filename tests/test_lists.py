"""Lists in different modules that have to name the same things (CONTRIBUTING.md)."""

import runpy
import typing

import pandas as pd

from cisterna.evaluation import few_shot
from cisterna.report import pages, tables
from cisterna.scoring import lenient, ranking
from cisterna.scoring.answers import Labels
from cisterna.sequences import encoders
from cisterna.study.config.encoders import CellEncoder, PretrainedEncoder
from tiny import ROOT


def test_metrics_of_the_results_page_are_computed():
    given, space = ["a", "b"], Labels(("a", "b"))
    computed = space.score(given, given, resamples=1).keys() | lenient.score(given, given, space, resamples=1).keys()
    answered = pd.DataFrame({"answer": given, "predicted": given, "predicted_lenient": given})
    shots = few_shot.score(answered, space, 0, 1)
    assert set(tables.LABEL_METRICS) <= computed | set(ranking.METRICS) | shots.keys()
    assert set(pages.GAINS) <= computed | set(ranking.METRICS)


def test_packages_of_encoders_are_those_that_a_config_may_name():
    assert set(encoders.PACKAGES) == set(typing.get_args(PretrainedEncoder.model_fields["package"].annotation))
    assert set(encoders.CELLS) == set(typing.get_args(CellEncoder.model_fields["package"].annotation))


def test_page_of_commands_is_made_from_their_options():
    script = runpy.run_path(str(ROOT / "scripts" / "build_commands.py"))
    assert script["PAGE"].read_text() == script["page"](), "run python scripts/build_commands.py"
