"""The arguments of one run: of `cisterna cpt`, `sft` and `rl`, and of the training of an encoder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StageArguments:
    """One run. `kind` is cpt, sft, rl or encoder; only an encoder has no `parent`.

    `parent`, `output` and `previous` (the rung below, None for the first) are checkpoint folders. `recipe` is as in the
    config, so it holds Cisterna's own keys and options of the library.
    """

    kind: str
    parent: Path | None
    output: Path
    work: Path
    recipe: Mapping[str, Any]
    seed: int
    epochs: float
    previous: Path | None = None
