"""The checkpoints of a study as columns in the order of their lineages, for each task: what the page of quotes shows.

A grid is one lineage of the page: backbone, CPT, form of the sequences, seed and SFT recipe. Its columns begin with the
base model and end with every RL run that started from one of its checkpoints:

    base | CPT bio | SFT brief: e1 e2 e4 e8 | RL grpo from e2: (e2) e2 e4 | RL grpo from e8: (e8) e2 e4

The checkpoint that RL started from is repeated, so that left of each column is what came before it. Not for reading
results (`cisterna.report.quotes`).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from cisterna.report import tables
from cisterna.study import Model, Study


@dataclass(frozen=True)
class Column:
    """One checkpoint. `heading` is over the columns of its run, `short` over this one alone, `name` says both."""

    folder: str  # of its evaluation, relative to results/
    kind: str  # base | cpt | sft | rl; of a repeated one, rl
    heading: str
    short: str
    name: str
    repeated: bool = False  # the checkpoint that the RL run to the right of it started from


@dataclass(frozen=True)
class Grid:
    """The columns of one lineage on one task."""

    task: str
    lineage: str
    columns: tuple[Column, ...]


def grids(study: Study) -> list[Grid]:
    """The grids of a study, by task in the order of the config; every evaluation is in at least one of them."""
    found: list[Grid] = []
    for task in study.tasks:
        folders = {path: folder for folder, path, its_task in study.evaluations() if its_task == task}
        families: dict[tuple[object, ...], list[Model]] = {}
        for model in study.models:
            if model.task == task:
                family = (_start(study, model), model.sequences, model.encoder, model.seed, model.sft)
                families.setdefault(family, []).append(model)
        mine = [_grid(study, task, folders, models) for models in families.values()]
        for path, folder in folders.items():  # base and CPT models that nothing is trained from
            if not any(column.folder == folder for grid in mine for column in grid.columns):
                mine.append(_grid(study, task, folders, [study.model(path)]))
        found += mine
    return found


def _start(study: Study, model: Model) -> str:
    """The path of the base or CPT model from which SFT or RL of a model began."""
    return next(path for path in (model.path, *study.lineage(model)) if study.model(path).task is None)


def _grid(study: Study, task: str, folders: dict[str, str], models: list[Model]) -> Grid:
    """The grid of the SFT and RL models of one family, or of one base or CPT model alone."""
    start = study.model(_start(study, models[0]))
    line = [study.model(path) for path in reversed(study.lineage(start))] + [start]
    columns = {
        model.path: _column(folders[model.path], model)
        for model in [*line, *_ascending(model for model in models if model.kind == "sft")]
        if model.path in folders
    }
    runs: dict[tuple[str, str], list[Column]] = {}
    for model in _ascending(model for model in models if model.kind == "rl"):
        source = columns[str(model.parent)]
        heading = f"RL {model.rl} from {source.short or source.name}"
        repeated = replace(source, kind="rl", heading=heading, short=source.short or source.name, repeated=True)
        run = runs.setdefault((str(model.parent), str(model.rl)), [repeated])
        name = f"RL {model.rl} e{model.rl_epochs} from {source.name}"
        run.append(replace(_column(folders[model.path], model), heading=heading, name=name))
    ordered = [*columns.values(), *(column for run in runs.values() for column in run)]
    return Grid(task, _lineage(study, models[0]), tuple(ordered))


def _ascending(models: Iterable[Model]) -> list[Model]:
    return sorted(models, key=lambda model: (model.sft_epochs, model.rl or "", model.rl_epochs))


def _column(folder: str, model: Model) -> Column:
    if model.task is None:
        name = "base" if model.kind == "base" else f"CPT {model.cpt}"
        return Column(folder, model.kind, name, "", name)
    heading = f"{tables.KIND_NAMES[model.kind]} {model.recipe}"
    return Column(folder, model.kind, heading, f"e{model.epochs}", f"{heading} e{model.epochs}")


def _lineage(study: Study, model: Model) -> str:
    """The name of a lineage, the same in every task."""
    words = [model.backbone, tables.cpt_name(model.cpt or "none")]
    if model.task is not None:
        form = f"{model.sequences} {model.encoder}" if model.encoder else model.sequences
        words += [f"SFT {model.sft}" if model.sft else "no SFT", *tables.forms_except_tokens(form)]
        words += [f"seed {model.seed}"] if len({one.seed for one in study.models if one.task}) > 1 else []
    return " · ".join(words)
