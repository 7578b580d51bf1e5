"""The page of findings: what findings.json has, for people."""

from collections.abc import Mapping
from typing import Any

from cisterna.report import pages
from cisterna.report.words import LABEL_METRICS, SPLIT_NAMES

METRIC_NAMES = LABEL_METRICS | {"skill": "skill"}
PICTURE = 220  # pixels, the width of the picture of an interval


def page(found: Mapping[str, Any]) -> str:
    """One HTML page that needs no other file, from what findings.json holds."""
    primary = found["method"]["primary_metric"]
    parts = [part for claim in found["claims"] for part in claim["parts"]]
    measured = [part for part in parts if part["status"] == "measured"]
    largest = max([abs(part["effect"][primary][end]) for part in measured for end in ("low", "high")] + [0.02])

    def place(value: float) -> float:
        """Pixels from the left of the picture of an interval, on one scale for the page with 0 in the middle."""
        return round(PICTURE / 2 * (1 + 0.96 * value / largest), 1)

    return pages.render(
        "findings.html.j2",
        **found,
        primary=primary,
        metric_names={metric: METRIC_NAMES[metric] for metric in found["method"]["metrics"]},
        split_names=SPLIT_NAMES,
        tests=len(measured),
        one_seed=any(part["n"]["seeds"] == 1 for part in measured),
        width=PICTURE,
        place=place,
    )
