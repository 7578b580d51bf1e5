"""`cisterna plan`: what a study would train, before anything runs.

Counts are exact; tokens are estimates, and the last lines say where each comes from. Measurements
of earlier runs (the cards of data and tokenized corpora, the manifests of checkpoints) replace
assumptions where they are found below `results`. Not for what is already done: ask
`snakemake --dry-run`.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from cisterna import study as studies
from cisterna.constants import SPLITS, TEST_SPLITS
from cisterna.ops import cost
from cisterna.study import Model, Study
from cisterna.tasks import catalog

# An example of a built-in task takes 60 to 110 tokens: one a residue, one or two a common word.
TOKENS_AN_EXAMPLE = 100
ROWS = 1000  # of a split that is `all` of data that are not here yet
# Bytes of a corpus per token: sequences are one token a residue, English text with a vocabulary of
# about a thousand tokens is about three bytes a token.
BYTES_A_TOKEN = {"dna": 1.0, "rna": 1.0, "protein": 1.0, "text": 3.0}
TOKENS_A_DOCUMENT = 1000  # of a corpus that says how many documents are trained on; a web page has about as many
MAX_LENGTH = 1024  # default of trl.SFTConfig
MAX_COMPLETION_LENGTH = 512  # default of trl.GRPOConfig
NUM_GENERATIONS = 8  # default of trl.GRPOConfig

SWEEP_COLUMNS = ("sweep", "models", "cpt", "sft", "rl", "in no sweep above")
SHARED_COLUMNS = ("work", "as planned", "without ladders and banks", "without sharing")
COST_COLUMNS = ("stage", "GPU-hours", "GB on disk")
STAGE_COLUMNS = ("stage", "recipe", "rung", "models", "lineages each", "examples", "tokens")
TASK_COLUMNS = (
    "task",
    "models",
    "evaluations",
    "SFT examples",
    "SFT tokens",
    "RL prompts",
    "RL tokens",
    "tested",
)
WORDS = ("stage", "recipe", "rung", "task", "sweep", "work")  # columns of words; all others hold numbers


def main(*configs: Path) -> None:
    """Print the plan of the study in config files (`cisterna.study.read`). UserError if they are not valid."""
    print(plan(studies.read(*configs)))


def plan(study: Study, results: Path = Path("results")) -> str:
    """The tables of a study's stages, tasks and jobs, and where the estimates come from, as text.

    Corpora are looked up from the current folder, as all commands do.
    """
    facts = _facts(study, results)
    lineages = _lineages(study)
    counts = jobs(study)
    trained = sum(model.kind != "base" for model in study.models)
    head = (
        f"Study {study.name}: {len(study.models)} models ({trained} trained checkpoints), "
        f"{len(study.evaluations())} evaluations, {sum(counts.values())} jobs"
    )
    stages = [_stage_row(study, facts, models, lineages) for models in _stages(study)]
    tasks = [_task_row(study, facts, task) for task in study.tasks]
    sweeps = list(_sweep_rows(study))
    shared = [
        [row.what, *map(_short, (row.planned, row.alone, row.unshared))] for row in cost.passes(study, facts.size)
    ]
    costs = cost.estimates(study, lambda model: _work(study, facts, model), lambda task: _tested(study, facts, task))
    parts = [
        head,
        *([_table(SWEEP_COLUMNS, sweeps, totals=SWEEP_COLUMNS[-1:])] if set(study.sweeps) != {""} else []),
        _table(STAGE_COLUMNS, stages, totals=("models",)),
        _table(TASK_COLUMNS, tasks, totals=TASK_COLUMNS[1:]),
        _table(SHARED_COLUMNS, shared, totals=()),
        _table(COST_COLUMNS, [[row.what, _short(row.hours), _short(row.gigabytes)] for row in costs], totals=()),
        _table(tuple(counts), [list(counts.values())], totals=()),
        "\n".join(_notes(study, facts)),
    ]
    return "\n\n".join(parts)


def jobs(study: Study) -> dict[str, int]:
    """Number of jobs of each rule of the workflow, if nothing has been made yet."""
    kinds = Counter(model.kind for model in study.models)
    tokenized = {backbone for backbone, _ in study.tokenized}
    untuned = [model for model in study.models if model.task is None]
    return {
        "data": len(study.tasks),
        "baselines": len(study.tasks),
        "base": kinds["base"],
        "tokenize": len(study.tokenized),
        "encoder": len(study.encoders),
        "features": len(study.banks),
        "cpt": kinds["cpt"],
        "sft": kinds["sft"],
        "rl": kinds["rl"],
        "evaluate": len(study.evaluations()),
        "perplexity": sum(model.backbone in tokenized for model in untuned),
        "gather": 1,
        "figures": 1,
        "findings": 1,
    }


@dataclass(frozen=True)
class _Facts:
    """What the estimates rest on. A missing entry is not known, and not counted or assumed."""

    sizes: dict[tuple[str, str], int]  # (task, split) -> examples
    sft_tokens: dict[str, float]  # task -> tokens an example, measured
    corpora: dict[tuple[str, str], float]  # (backbone, corpus) -> tokens
    from_files: list[str]  # the corpora whose tokens are estimated from the size of the file
    from_documents: list[str]  # those whose tokens are estimated from the number of documents

    def size(self, task: str, split: str) -> int:
        """Rows of a split; ROWS where they are not known."""
        return self.sizes.get((task, split), ROWS)


def _facts(study: Study, results: Path) -> _Facts:
    sizes: dict[tuple[str, str], int] = {}
    for task in study.tasks:
        card = _json(results / "data" / task / "card.json")
        for split in SPLITS:
            size = study.config["tasks"][task].get(split)
            if card:
                sizes[task, split] = card["splits"][split]["rows"]
            elif isinstance(size, int):  # else the groups that a user's table holds out
                sizes[task, split] = size
    sft_tokens: dict[str, float] = {}
    for model in study.models:
        if model.kind == "sft" and model.task not in sft_tokens:
            manifest = _json(results / model.path / "checkpoint" / "manifest.json")
            tokens = manifest.get("trained", {}).get("tokens")
            size = sizes.get((str(model.task), "train"))
            if tokens and size:
                rows = cost.used(study.recipe("sft", str(model.sft)), size)
                sft_tokens[str(model.task)] = tokens / (model.epochs * rows)
    corpora: dict[tuple[str, str], float] = {}
    from_files: dict[str, None] = {}
    from_documents: dict[str, None] = {}
    for backbone, name in study.tokenized:
        corpus = study.config["corpora"][name]
        card = _json(results / "tokens" / backbone / name / "card.json")
        if card:
            corpora[backbone, name] = card["train"]["tokens"]
            continue
        most = corpus.get("train_documents", math.inf) * TOKENS_A_DOCUMENT
        file = Path(corpus["file"])
        whole = _bytes(file) / BYTES_A_TOKEN[corpus["modality"]] if file.is_file() else math.inf
        if min(most, whole) < math.inf:
            corpora[backbone, name] = min(most, whole)
            (from_files if whole <= most else from_documents)[name] = None
    return _Facts(sizes, sft_tokens, corpora, list(from_files), list(from_documents))


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _bytes(path: Path) -> int:
    """Size of a file, unpacked if it is gzipped."""
    if path.suffix != ".gz":
        return path.stat().st_size
    with path.open("rb") as stream:  # RFC 1952: the last four bytes are the size, modulo 2^32
        stream.seek(-min(4, path.stat().st_size), os.SEEK_END)
        return int.from_bytes(stream.read(4), "little")


def _stages(study: Study) -> list[list[Model]]:
    """Models grouped by kind, recipe and rung: base, CPT, SFT, RL, rungs ascending."""
    groups: dict[tuple[str, str, int], list[Model]] = {}
    for model in study.models:
        name = model.recipe or model.backbone
        groups.setdefault((model.kind, name, model.epochs), []).append(model)
    order = ["base", "cpt", "sft", "rl"]
    return [groups[key] for key in sorted(groups, key=lambda key: (order.index(key[0]), *key[1:]))]


def _lineages(study: Study) -> Counter[str]:
    """How many checkpoints have each model in their lineage, themselves included."""
    below: dict[str, set[str]] = {}
    counts: Counter[str] = Counter()
    for model in study.models:
        line = {model.path}
        for origin in (model.parent, model.previous):
            if origin:
                line |= below[origin]
        below[model.path] = line
        counts.update(line)
    return counts


def _sweep_rows(study: Study) -> Iterator[list[Any]]:
    """For each sweep its models that are trained, by stage, and how many of them no sweep before it has."""
    before: set[str] = set()
    for name, paths in study.sweeps.items():
        trained = [study.model(path) for path in paths if study.model(path).kind != "base"]
        kinds = Counter(model.kind for model in trained)
        fresh = {model.path for model in trained} - before
        before |= fresh
        yield [name or "(none)", len(trained), kinds["cpt"], kinds["sft"], kinds["rl"], len(fresh)]


def _tested(study: Study, facts: _Facts, task: str) -> float:
    """Tokens that one evaluation of a task generates at most."""
    rows = facts.size(task, "id") + facts.size(task, "ood")
    return float(rows * study.config["evaluation"]["max_new_tokens"])


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _stage_row(study: Study, facts: _Facts, models: list[Model], lineages: Counter[str]) -> list[Any]:
    first = models[0]
    through = sorted({lineages[model.path] for model in models})
    work = [_work(study, facts, model) for model in models]
    return [
        first.kind,
        first.recipe or first.backbone,
        f"e{first.epochs}" if first.task else "",
        len(models),
        str(through[0]) if len(through) == 1 else f"{through[0]} to {through[-1]}",
        sum(examples for examples, _ in work),
        sum(tokens for _, tokens in work),
    ]


def _task_row(study: Study, facts: _Facts, task: str) -> list[Any]:
    models = [model for model in study.models if model.task == task]
    evaluations = sum(tested == task for _, _, tested in study.evaluations())
    row: list[Any] = [task, len(models), evaluations]
    for kind in ("sft", "rl"):
        work = [_work(study, facts, model) for model in models if model.kind == kind]
        row += [sum(examples for examples, _ in work), sum(tokens for _, tokens in work)]
    return [*row, evaluations * sum(facts.size(task, split) for split in TEST_SPLITS)]


def _work(study: Study, facts: _Facts, model: Model) -> tuple[float, float]:
    """(examples, tokens) that a model is trained on beyond its previous rung.

    Examples are blocks for CPT, training examples for SFT and prompts for RL; the tokens of RL are
    the most that can be generated.
    """
    if model.kind == "base":
        return 0, 0
    recipe = study.recipe(model.kind, str(model.recipe))
    if model.kind == "cpt":
        known = [facts.corpora.get((model.backbone, name), 0) for name in recipe["corpora"]]
        tokens = recipe["num_train_epochs"] * sum(known)
        return tokens / recipe["block_size"], tokens
    passes = model.epochs - (study.model(model.previous).epochs if model.previous else 0)
    rows = passes * cost.used(recipe, facts.size(str(model.task), "train"))
    if model.kind == "sft":
        return rows, rows * facts.sft_tokens.get(str(model.task), _assumed(study, model))
    prompts = rows
    length = recipe.get("max_completion_length") or MAX_COMPLETION_LENGTH
    return prompts, prompts * (recipe.get("num_generations") or NUM_GENERATIONS) * length


def _assumed(study: Study, model: Model) -> int:
    """Tokens of an example that nothing is known of: of a built-in task the usual number, of other data the most."""
    if str(model.task) in catalog.LABELS:
        return TOKENS_AN_EXAMPLE
    return study.recipe("sft", str(model.recipe)).get("max_length") or MAX_LENGTH


def _table(columns: Sequence[str], rows: list[list[Any]], totals: Sequence[str]) -> str:
    """A table with a line of sums of the columns `totals`; numbers in groups of three digits."""
    if totals and len(rows) > 1:
        sums: list[Any] = ["total", *[""] * (len(columns) - 1)]
        for name in totals:
            index = columns.index(name)
            sums[index] = sum(row[index] for row in rows)
        rows = [*rows, sums]
    cells = [[cell if isinstance(cell, str) else f"{round(cell):,}" for cell in row] for row in rows]
    aligned = ["left" if column in WORDS else "right" for column in columns]
    return tabulate(cells, columns, tablefmt="simple", colalign=aligned, disable_numparse=True)


def _notes(study: Study, facts: _Facts) -> list[str]:
    """What the columns mean, and for each estimate whether it is measured or assumed."""
    tuned = {str(model.task) for model in study.models if model.kind == "sft"}
    assumed = [task for task in study.tasks if task in tuned and task not in facts.sft_tokens]
    missing = [name for pair in study.tokenized if pair not in facts.corpora for name in pair[1:]]
    unsized = [task for task in study.tasks if {(task, "train"), (task, "id"), (task, "ood")} - set(facts.sizes)]
    lines = [
        "lineages each: checkpoints with such a model in their lineage, itself included; it is",
        "  trained once for all of them. examples (cpt: blocks, sft: examples, rl: prompts) and",
        "  tokens of a rung are those beyond the rung before.",
    ]
    if facts.from_files:
        lines.append("tokens of cpt: estimated from file sizes: 1 byte a residue, 3 bytes a token of text, for")
        lines.append(f"  {', '.join(facts.from_files)}")
    if facts.from_documents:
        documents = f"{TOKENS_A_DOCUMENT:,} a document, assumed for"
        lines.append(f"tokens of cpt: {documents} {', '.join(facts.from_documents)}")
    if facts.corpora and not facts.from_files + facts.from_documents:
        lines.append("tokens of cpt: counted")
    if facts.sft_tokens:
        lines.append(f"tokens of sft: measured for {', '.join(facts.sft_tokens)}")
    if assumed:
        usual = [task for task in assumed if task in catalog.LABELS]
        most = [task for task in assumed if task not in catalog.LABELS]
        if usual:
            lines.append(f"tokens of sft: {TOKENS_AN_EXAMPLE} an example, assumed for {', '.join(usual)}")
        if most:
            lines.append(f"tokens of sft: at most; max_length an example, for {', '.join(most)}")
    if any(model.kind == "rl" for model in study.models):
        lines.append("tokens of rl: at most; prompts x num_generations x max_completion_length")
    if missing:
        names = ", ".join(dict.fromkeys(missing))
        lines.append(f"not counted: corpora whose file does not exist: {names}")
    if unsized:
        lines.append(f"rows of splits without a number, {ROWS:,} assumed until prepared: {', '.join(unsized)}")
    lines += [
        "without ladders and banks: each rung a run of its own, the encoder in each step, rollout and test;",
        "  without sharing: each checkpoint also trains its parents.",
    ]
    return [*lines, *cost.assumptions(study)]
