"""Answers of all models of a study, and resamples of their metrics: the input of findings and advice.

A *sheet* is a table of the answers of every model to one split of one task. A resample gives every example of a sheet a
weight (how often it was drawn) and computes the metrics of all models under the same weights, so that every comparison
between models is paired.

Training seeds are few, usually three. Drawing three of three with replacement gives intervals that miss the truth about
one time in four. So seeds are not resampled: their share of the uncertainty is the variance between them, with the
tails of Student's t (`seed_variance`, `noise`).

Not for the metrics of a single model (`cisterna.evaluation.evaluate` wrote them), not for verdicts
(`cisterna.report.findings`).
"""

import functools
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cisterna.artifacts import files
from cisterna.constants import TEST_SPLITS
from cisterna.errors import UserError
from cisterna.scoring import answers, bootstrap, metrics, term_sets
from cisterna.scoring.gene_ontology import TERM, Ontology
from cisterna.study import Study

Array = NDArray[np.float64]
Values = dict[str, NDArray[np.float32]]  # metric -> (resamples, models)

# Independent of the mix of labels, which differs between ID and OOD. For sets of terms it is micro F1, under this name.
PRIMARY = "balanced_accuracy"
COMPARED_METRICS = (PRIMARY, "accuracy", "skill")
TERMS = re.compile(rf"{TERM.pattern}(, {TERM.pattern})*")
LEVEL = bootstrap.LEVEL
RESAMPLES = 4000
HALVINGS = 400  # random halves of the examples behind a cross-fitted estimate
BLOCK = 2_000_000  # weights in memory at a time: resamples x examples


@dataclass(frozen=True)
class Sheet:
    """Answers to one split of one task. `models` names the rows of `predicted`, each once.

    `gold`, shape (examples,), has the code of the true label; `predicted`, shape (models, examples), that of the
    answer, -1 for one that is malformed or is not a gold label of this split.
    """

    models: tuple[str, ...]
    gold: NDArray[np.int16]
    predicted: NDArray[np.int16]

    def values(self, weights: NDArray[np.float32]) -> Values:
        """COMPARED_METRICS of all models under weights of the examples, shape (R, examples): metric -> (R, models).

        As in `cisterna.scoring.metrics`: balanced accuracy is the mean over the labels that have weight. Labels are
        summed one by one, because all of them at once would need as many times the memory. `metrics.score` sums them
        pairwise, so from eight labels on its last bits differ, even in the same precision.
        """
        total = np.maximum(weights.sum(1, keepdims=True), 1)
        hits = (self.predicted == self.gold).astype(np.float32).T
        shape = len(weights), len(self.models)
        right, recalls, prior = (np.zeros(shape, dtype=np.float32) for _ in range(3))
        present = np.zeros((len(weights), 1), dtype=np.float32)
        for label in range(int(self.gold.max()) + 1):
            rows = np.flatnonzero(self.gold == label)
            gold = weights[:, rows].sum(1, keepdims=True)
            right_here = weights[:, rows] @ hits[rows]
            predicted = weights @ (self.predicted == label).astype(np.float32).T
            right += right_here
            recalls += metrics.recall(right_here, gold)
            present += gold > 0
            prior += metrics.chance(gold, predicted, total)
        accuracy = right / total
        return {PRIMARY: recalls / np.maximum(present, 1), "accuracy": accuracy, "skill": accuracy - prior}


@dataclass(frozen=True)
class TermSheet:
    """As `Sheet`, for a task whose answers are sets of terms. `gold` is 0 for all examples: there are no labels.

    `overlaps`, shape (models, examples, 3), has the weights of the terms in both sets, in the predicted and in the gold
    one (`cisterna.scoring.term_sets.overlap`, summed over namespaces); `same`, shape (models, examples), is 1 where the
    sets are equal.
    """

    models: tuple[str, ...]
    gold: NDArray[np.int16]
    overlaps: NDArray[np.float32]
    same: NDArray[np.float32]

    def values(self, weights: NDArray[np.float32]) -> Values:
        """As `Sheet.values`, with micro F1 over all proteins and namespaces as PRIMARY, and without skill.

        F1 is computed with one division, not from precision and recall as in `term_sets.micro`: other last bits.
        """
        both, predicted, gold = (weights @ self.overlaps[:, :, column].T for column in range(3))
        total = np.maximum(weights.sum(1, keepdims=True), 1)
        return {PRIMARY: 2 * both / np.maximum(predicted + gold, 1e-9), "accuracy": weights @ self.same.T / total}


AnySheet = Sheet | TermSheet


def columns(table: AnySheet) -> dict[str, int]:
    """Where each model is in arrays of shape (..., models)."""
    return {model: column for column, model in enumerate(table.models)}


def sheet(gold: Sequence[str], predicted: Mapping[str, Sequence[str | None]]) -> Sheet:
    """The sheet of models' answers, model -> one label an example, in the order of `gold`; None is malformed."""
    labels = pd.Index(sorted(set(gold)))

    def code(texts: Sequence[str | None]) -> NDArray[np.int16]:
        return labels.get_indexer(pd.Index(list(texts), dtype=object)).astype(np.int16)

    return Sheet(tuple(predicted), code(gold), np.stack([code(texts) for texts in predicted.values()]))


def term_sheet(gold: Sequence[str], predicted: Mapping[str, Sequence[str | None]], ontology: Ontology) -> TermSheet:
    """As `sheet`, for answers that are texts of term ids (`cisterna.scoring.answers.join`)."""

    @functools.cache
    def compare(truth: str, answer: str | None) -> tuple[NDArray[np.float64], bool]:
        pair = (answers.split(answer) if isinstance(answer, str) else [], answers.split(truth))
        return term_sets.overlap(*pair, ontology).sum(axis=0), term_sets.same(*pair, ontology)

    compared = [[compare(*pair) for pair in zip(gold, texts, strict=True)] for texts in predicted.values()]
    return TermSheet(
        tuple(predicted),
        np.zeros(len(gold), dtype=np.int16),
        np.array([[overlap for overlap, _ in row] for row in compared], dtype=np.float32),
        np.array([[same for _, same in row] for row in compared], dtype=np.float32),
    )


@dataclass(frozen=True)
class StudyAnswers:
    """The answers in all evaluations of a study: (task, split) -> sheet.

    `absent` lists the folders, relative to results/, of evaluations without predictions; `left_out` has a reason for
    each task whose answers cannot be scored.
    """

    sheets: dict[tuple[str, str], AnySheet]
    absent: tuple[str, ...]
    left_out: dict[str, str]


def read(study: Study, results: Path) -> StudyAnswers:
    """The answers of every evaluation of a study, from `results`, the folder with `models/` and `data/` in it.

    An absent evaluation is listed and not an error. Raises UserError if all are absent, if a file cannot be
    read, and if two models of a task answer different examples.
    """
    sheets: dict[tuple[str, str], AnySheet] = {}
    absent, left_out = [], {}
    for task in study.tasks:
        present = []
        for folder, model, its_task in study.evaluations():
            if its_task == task:
                complete = all((results / folder / f"{split}.parquet").is_file() for split in TEST_SPLITS)
                present.append((folder, model)) if complete else absent.append(folder)
        for split in TEST_SPLITS if present else ():
            gold, predicted = _aligned({model: results / folder / f"{split}.parquet" for folder, model in present})
            if not all(TERMS.fullmatch(answer) for answer in gold):
                sheets[task, split] = sheet(gold, predicted)
            elif (ontology := _ontology(results / "data" / task)) is not None:
                sheets[task, split] = term_sheet(gold, predicted, ontology)
            else:
                left_out[task] = f"its answers are sets of terms, and {results / 'data' / task} is missing"
    if not sheets:
        raise UserError(
            f"study {study.name}: none of its {len(absent)} evaluations is in {results}; "
            "run snakemake to make them, or give their folder with --results"
        )
    return StudyAnswers(sheets, tuple(absent), left_out)


def _ontology(data: Path) -> Ontology | None:
    """The ontology of a task whose answers are sets of terms; None where its data are not there."""
    if not (data / "card.json").is_file():
        return None
    space = answers.load_space(files.read_json(data / "card.json"), data)
    return space.ontology if isinstance(space, answers.Terms) else None


def _aligned(tables: Mapping[str, Path]) -> tuple[list[str], dict[str, list[str | None]]]:
    """Gold labels and each model's answers, by example id, from the models' tables of one split."""
    first: tuple[Path, pd.Series] | None = None
    predicted: dict[str, list[str | None]] = {}
    for model, file in tables.items():
        try:
            frame = pd.read_parquet(file, columns=["id", "answer", "predicted"]).set_index("id").sort_index()
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{file}: cannot be read ({error}); delete {file.parent} and run snakemake again"
            ) from error
        first = first or (file, frame["answer"])
        if not frame.index.equals(first[1].index) or frame["answer"].tolist() != first[1].tolist():
            raise UserError(
                f"{file.parent} and {first[0].parent} answer different {file.stem} examples; "
                "delete both folders and run snakemake again"
            )
        predicted[model] = frame["predicted"].astype(object).tolist()
    assert first is not None, "at least one file"
    return first[1].tolist(), predicted


def generator(*words: object) -> np.random.Generator:
    """Random numbers that depend on the words alone, and so not on what other tasks or claims a study has."""
    return np.random.default_rng([0, *(zlib.crc32(str(word).encode()) for word in words)])


@dataclass(frozen=True)
class Draws:
    """Metrics of all models of a sheet: as observed, shape (1, models), and under resamples of its examples.

    Cross-fitting chooses on one half of the examples and measures on the other. The halves are pairs of disjoint random
    halves, each with half of the examples of every label: `halves` of the examples as they are, shape (halvings,
    models), `resampled_halves` of the same resamples as `resampled`. Both lists are empty without halvings.
    """

    columns: dict[str, int]
    examples: int
    observed: Values
    resampled: Values
    halves: list[Values]
    resampled_halves: list[Values]


def draw(table: AnySheet, rng: np.random.Generator, resamples: int = RESAMPLES, halvings: int = 0) -> Draws:
    """Resample the examples of a sheet, with replacement; halve them, and every resample, for cross-fitting."""
    size = len(table.gold)
    at_once = max(1, BLOCK // size)
    blocks = []
    for drawn in bootstrap.weights(rng, size, resamples, at_once):
        weights = drawn.astype(np.float32)
        masks = [half * weights for half in _halves(table.gold, len(weights), rng)] if halvings else []
        blocks.append([table.values(masked) for masked in (weights, *masks)])
    resampled, *resampled_halves = _join(blocks)
    halves = []
    if halvings:
        counts = bootstrap.blocks(halvings, at_once)
        halves = _join([[table.values(half) for half in _halves(table.gold, count, rng)] for count in counts])
    observed = table.values(np.ones((1, size), dtype=np.float32))
    return Draws(columns(table), size, observed, resampled, halves, resampled_halves)


def _join(blocks: Sequence[Sequence[Values]]) -> list[Values]:
    """The values of each column of `blocks`, one block after the other."""
    parts = zip(*blocks, strict=True)
    return [{metric: np.concatenate([values[metric] for values in part]) for metric in part[0]} for part in parts]


def mix(first: Draws, second: Draws, weights: tuple[float, float]) -> Draws:
    """Weighted sums of the metrics of the same models on two sheets, whose resamples are independent.

    Halves are those of both sheets; there are none if a sheet has none.
    """
    if first.columns != second.columns:
        raise ValueError("the sheets have different models")

    def together(one: Values, other: Values) -> Values:
        return {metric: weights[0] * one[metric] + weights[1] * other[metric] for metric in one}

    halved = bool(first.halves and second.halves)
    return Draws(
        first.columns,
        first.examples + second.examples,
        together(first.observed, second.observed),
        together(first.resampled, second.resampled),
        [together(*pair) for pair in zip(first.halves, second.halves, strict=True)] if halved else [],
        [together(*pair) for pair in zip(first.resampled_halves, second.resampled_halves, strict=True)]
        if halved
        else [],
    )


def _halves(
    gold: NDArray[np.int16], count: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Membership, 0 or 1, in two random halves of the examples, each of shape (count, examples)."""
    first = np.zeros((count, len(gold)), dtype=np.float32)
    for label in np.unique(gold):
        rows = np.flatnonzero(gold == label)
        odd = rng.integers(0, 2, size=(count, 1)) if len(rows) % 2 else 0
        pattern = np.arange(len(rows))[None] < len(rows) // 2 + odd
        first[:, rows] = rng.permuted(np.broadcast_to(pattern, (count, len(rows))), axis=1)
    return first, 1 - first


def influence(effects: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """How much each training seed moves the mean over settings of the mean over seeds: the values add up to 0.

    `effects` has one mapping for each setting, seed -> effect. Seeds are clusters: the effects of one seed in all
    settings are one observation.
    """
    moved: dict[int, float] = {}
    for effect in effects:
        mean = sum(effect.values()) / len(effect)
        for seed, value in effect.items():
            moved[seed] = moved.get(seed, 0.0) + (value - mean) / len(effect) / len(effects)
    return moved


def seed_variance(effects: Sequence[Mapping[int, float]]) -> tuple[float, int]:
    """Variance, between training seeds, of the mean over settings of the mean over seeds; and its degrees of freedom.

    From the `influence` of each seed (the cluster-robust sandwich estimator, with the factor S / (S - 1) for S seeds).
    If every setting has the same seeds it is the variance of the seeds' means, over S. (0, 0) for a single seed.
    """
    moved = influence(effects)
    seeds = len(moved)
    if seeds < 2:
        return 0.0, 0
    return sum(share**2 for share in moved.values()) * seeds / (seeds - 1), seeds - 1


def noise(variances: Sequence[tuple[float, int]], size: int, rng: np.random.Generator) -> Array:
    """Draws, shape (size,), of the error of a mean of independent tasks that is due to training seeds.

    `variances` has variance and degrees of freedom of each task (`seed_variance`). Student's t, with the degrees of
    freedom of Satterthwaite (1946, doi:10.2307/3002019). Added to resamples of the examples it gives intervals that are
    a little too wide where both matter (simulated: 97% for 95%). Degrees of freedom for the sum of both variances
    (Welch) would correct that, but make the far tails too light: of 200 simulated studies without any effect, of one
    task and three seeds, 34 had a false verdict after Holm instead of 6.
    """
    known = [(variance / len(variances) ** 2, freedom) for variance, freedom in variances if variance > 0]
    if not known:
        return np.zeros(size)
    total = sum(variance for variance, _ in known)
    freedom = total**2 / sum(variance**2 / freedom for variance, freedom in known)
    return np.sqrt(total) * rng.standard_t(freedom, size)


def joint_noise(moved: Sequence[Mapping[int, float]], size: int, rng: np.random.Generator) -> Array:
    """Draws, shape (size, quantities), of the errors of several quantities of one task that are due to training seeds.

    `moved` has the `influence` of the seeds on each quantity. Each column has the variance of `seed_variance` and the
    tails of Student's t with S - 1 degrees of freedom; columns are as dependent as the seeds make them.
    """
    seeds = sorted({seed for one in moved for seed in one})
    if len(seeds) < 2:
        return np.zeros((size, len(moved)))
    shares = np.array([[one.get(seed, 0.0) for one in moved] for seed in seeds])
    scale = np.sqrt(len(seeds) / rng.chisquare(len(seeds) - 1, size=(size, 1)))
    return scale * (rng.standard_normal((size, len(seeds))) @ shares)


def seed_weights(seeds: int, size: int, rng: np.random.Generator) -> Array:
    """Weights of a task's seeds that sum to 1, shape (size, seeds), the same for all its models.

    A weighted mean has Student's t distribution with S - 1 degrees of freedom around the plain mean, with its standard
    error. For statistics of many models at once; `noise` is for a single number.
    """
    if seeds < 2:
        return np.ones((size, seeds))
    normal = rng.standard_normal((size, seeds))
    normal -= normal.mean(1, keepdims=True)
    scale = np.sqrt((seeds - 1) / rng.chisquare(seeds - 1, size=(size, 1)))
    return 1 / seeds + normal * scale / np.sqrt(seeds * (seeds - 1))


def holm(p: Sequence[float]) -> list[float]:
    """P-values adjusted for the number of tests (Holm 1979, Scand. J. Statist. 6, 65-70), in the order of `p`."""
    adjusted = [0.0] * len(p)
    worst = 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=lambda place: p[place])):
        worst = max(worst, min(1.0, (len(p) - rank) * p[place]))
        adjusted[place] = worst
    return adjusted
