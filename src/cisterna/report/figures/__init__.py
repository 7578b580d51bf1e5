"""Draws the figures of a study from its tables. ``style`` has what they share.

With several seeds a mark is the mean over seeds and its interval the mean of their intervals: it covers other test
examples, not other training seeds, which small dots (one a seed) show. The same tables give the same bytes.
"""

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from cisterna import report
from cisterna.artifacts import files
from cisterna.report import pages, published, tables
from cisterna.report.figures import (
    generalization_gap,
    label_prior,
    lineage,
    rl_gain,
    rl_reward,
    sequences,
    sft_accuracy,
    style,
    sweeps,
)
from cisterna.report.tables import Tables
from cisterna.study import Study

DRAWINGS: dict[str, Callable[[Study, Tables], Figure]] = {
    "sft_accuracy": lambda study, of: sft_accuracy.draw(of.metrics, "accuracy"),
    "sft_balanced_accuracy": lambda study, of: sft_accuracy.draw(of.metrics, "balanced_accuracy"),
    "rl_gain": lambda study, of: rl_gain.draw(of.gains),
    "rl_reward": lambda study, of: rl_reward.draw(of.rewards, study),
    "generalization_gap": lambda study, of: generalization_gap.draw(of.metrics),
    "label_prior": lambda study, of: label_prior.draw(of.metrics),
    "sequences": lambda study, of: sequences.draw(of.metrics),
    "sweeps": lambda study, of: sweeps.draw(of.metrics, study),
    "lineage": lambda study, of: lineage.draw(study),
}
"""How each figure of ``cisterna.report.FIGURES`` is drawn."""


def figures(study: Study, folder: Path, output: Path) -> None:
    """Write all figures (.svg, .png) and the page of results into the folder ``output``.

    ``folder`` has the tables that ``cisterna.report.gather`` wrote. A figure of something that the study does not have
    is written, and says so. So does one that cannot be drawn: the page begins with its reason. UserError for a file of
    published numbers (`report.published`) that cannot be read.
    """
    of = tables.read(study, folder)
    numbers = [published.read(files.locate(name)) for name in study.published]
    output.mkdir(parents=True, exist_ok=True)
    not_drawn = {}
    with style.context(of.metrics.metric.unique()):
        for name, draw in DRAWINGS.items():
            with pages.whatever_fails(f"{output / name}.svg", "figure") as failure:
                figure = draw(study, of)
                style.fit_titles(figure)
                _save(figure, output / name)
            if failure:
                _save(style.empty(f"This figure could not be drawn. {report.RESULTS_PAGE} says why."), output / name)
                not_drawn[name] = failure[0]
    title = f"Results of study {study.name}"
    pages.write(output / report.RESULTS_PAGE, title, lambda: pages.results(of, study.name, not_drawn, numbers))


def _save(figure: Figure, stem: Path) -> None:
    """Write .svg and .png, without dates and versions: the same figure, the same bytes."""
    with files.replacing(stem.with_suffix(".svg")) as path:
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    with files.replacing(stem.with_suffix(".png")) as path:
        figure.savefig(path, format="png", dpi=150, metadata={"Software": None})
