"""Lists in different modules that have to name the same things (docs/extending.md)."""

import typing

from cisterna.evaluation import evaluate
from cisterna.report import pages, tables
from cisterna.scoring import metrics, ranking
from cisterna.sequences import encoders
from cisterna.study.config.encoders import CellEncoder, PretrainedEncoder


def test_metrics_of_the_results_page_are_computed():
    computed = set(metrics.score(["a", "b"], ["a", "b"], ("a", "b"), resamples=1)) | set(ranking.METRICS)
    computed |= {f"{name}_lenient" for name in evaluate.LENIENT}
    assert set(tables.LABEL_METRICS) <= computed
    assert set(pages.GAINS) <= computed


def test_packages_of_encoders_are_those_that_a_config_may_name():
    assert set(encoders.PACKAGES) == set(typing.get_args(PretrainedEncoder.model_fields["package"].annotation))
    assert set(encoders.CELLS) == set(typing.get_args(CellEncoder.model_fields["package"].annotation))
