"""The usual alternatives to a language model: majority, k-NN and logistic regression.

They read the same sequences as the models and learn from `train.parquet` alone; k and C are chosen on
`validation.parquet`. The two test splits are read only to be predicted.

Where answers are sets of terms, majority is the best set of frequent terms (`term_sets.frequent`), k-NN the terms that
more than half of the k nearest have, and there is no regression.

Not for neural networks, and not for tuned competitors: the grids are small on purpose, because a baseline is what
anyone gets in five minutes.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pandas as pd
from sklearn.base import ClassifierMixin
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.pipeline import Pipeline, make_pipeline
from threadpoolctl import threadpool_limits

from cisterna.artifacts import files
from cisterna.constants import TEST_SPLITS
from cisterna.data import similarity
from cisterna.errors import UserError
from cisterna.scoring import answers, term_sets
from cisterna.scoring.answers import AnswerSpace, Terms

# Simplest first: of equals on validation, the first wins.
NEIGHBOURS = (25, 11, 5, 3, 1)
PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)  # C, the inverse strength of the L2 penalty

# For proteins pairs, the usual dipeptide composition: a short protein has few of the 8,000 triples.
KMER = {"dna": 3, "rna": 3, "protein": 2}

Analyzer = Callable[[str], Iterable[str]]
Baseline = Callable[[pd.Series], Iterable[str | None]]  # from sequences to predictions


def run(data: Path, output: Path, space: AnswerSpace, modality: str, seed: int, bootstrap: int) -> None:
    """Fit the baselines on the task in `data` and evaluate them on `id` and `ood`.

    Reads {train,validation,id,ood}.parquet in `data` (columns id, sequence, answer). Writes the folder `output`, whole
    or not at all:

    - id.parquet, ood.parquet: one row an example and baseline: id, baseline, gold, predicted
    - metrics.json: {baseline: {split: metrics}}, the metrics of the answer space `space` with `bootstrap` resamples
      drawn from `seed`. The fits themselves are not random.
    - choices.json: the features, and the k and C chosen, with their accuracy on validation

    Raises UserError for a split that cannot be read, and for a `train` with only one label.
    """
    splits = {name: _read(data / f"{name}.parquet") for name in ("train", "validation", *TEST_SPLITS)}
    train, validation = splits["train"], splits["validation"]
    if train["answer"].nunique() < 2:
        raise UserError(
            f"{data / 'train.parquet'}: every answer is {train['answer'].iloc[0]!r}; "
            "a classifier needs examples of at least two of them"
        )
    with threadpool_limits(1):
        features, analyzer = _features(train["sequence"], modality)
        if isinstance(space, Terms):
            baselines, choices = _fit_terms(train, validation, analyzer, space)
        else:
            baselines, choices = _fit_labels(train, validation, analyzer)
        predictions = {split: _predictions(baselines, splits[split]) for split in TEST_SPLITS}
    scores: dict[str, dict[str, object]] = {name: {} for name in baselines}
    for split, table in predictions.items():
        for name, rows in table.groupby("baseline"):
            gold, predicted = rows["gold"].tolist(), rows["predicted"].tolist()
            scores[str(name)][split] = space.score(gold, predicted, seed, bootstrap)
    with files.new_folder(output) as folder:
        for split, table in predictions.items():
            table.to_parquet(folder / f"{split}.parquet", index=False)
        files.write_json(folder / "choices.json", {"features": features} | choices)
        files.write_json(folder / "metrics.json", scores)


def _read(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path, columns=["id", "sequence", "answer"])
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a split of a task: {error}") from None
    if table.empty:
        raise UserError(f"{path}: has no rows; give the split a size above 0 in the task's config")
    return table


def _features(sequences: pd.Series, modality: str) -> tuple[str, Analyzer]:
    """Name and function of the features: words, letters by position, or k-mers.

    Lists of words (a cell's genes) are bags of words. Sequences of one length of at most `similarity.ALIGNED` letters
    are aligned, so a letter counts by its position (one-hot). All others are bags of k-mers. `train` decides.
    """
    if sequences.str.contains(" ", regex=False).any():
        return "words", str.split
    lengths = set(map(len, sequences))
    if len(lengths) == 1 and max(lengths) <= similarity.ALIGNED:
        return "positions", lambda sequence: [f"{position}{letter}" for position, letter in enumerate(sequence)]
    k = KMER[modality]
    return f"{k}-mers", lambda sequence: [sequence[i : i + k] for i in range(max(1, len(sequence) - k + 1))]


def _fit_labels(
    train: pd.DataFrame, validation: pd.DataFrame, analyzer: Analyzer
) -> tuple[dict[str, Baseline], dict[str, object]]:
    """Baselines that predict labels, fitted on `train`, and what was chosen on `validation`."""

    def fit(model: ClassifierMixin) -> Pipeline:
        return make_pipeline(CountVectorizer(analyzer=analyzer), model).fit(train["sequence"], train["answer"])

    neighbours = [k for k in NEIGHBOURS if k <= len(train)]
    grids: dict[str, dict[float, ClassifierMixin]] = {
        "knn": {k: KNeighborsClassifier(n_neighbors=k, algorithm="brute") for k in neighbours},
        "logistic": {c: LogisticRegression(C=c, max_iter=2000) for c in PENALTIES},
    }
    fitted = {"majority": fit(DummyClassifier(strategy="most_frequent"))}
    choices: dict[str, object] = {}
    for name, grid in grids.items():
        pipelines = {value: fit(model) for value, model in grid.items()}
        questions, gold = validation["sequence"], validation["answer"]
        accuracies = {value: float(pipeline.score(questions, gold)) for value, pipeline in pipelines.items()}
        best = max(accuracies, key=lambda value: accuracies[value])
        fitted[name] = pipelines[best]
        choices[name] = {"n_neighbors" if name == "knn" else "C": best, "validation_accuracy": accuracies[best]}
    return {name: pipeline.predict for name, pipeline in fitted.items()}, choices


def _fit_terms(
    train: pd.DataFrame, validation: pd.DataFrame, analyzer: Analyzer, space: Terms
) -> tuple[dict[str, Baseline], dict[str, object]]:
    """Baselines that predict sets of terms, and the k chosen on `validation`.

    The k nearest neighbours vote; there is no prediction (None) where no term has a majority.
    """
    ontology = space.ontology
    annotated = [answers.split(text) for text in train["answer"]]
    sets = [ontology.propagate(terms) for terms in annotated]
    frequent = answers.join(term_sets.frequent(annotated, ontology))
    vectorizer = CountVectorizer(analyzer=analyzer).fit(train["sequence"])
    nearest = NearestNeighbors(algorithm="brute").fit(vectorizer.transform(train["sequence"]))
    most = min(max(NEIGHBOURS), len(train))

    def vote(sequences: pd.Series, k: int) -> list[str | None]:
        predicted = []
        for rows in nearest.kneighbors(vectorizer.transform(sequences), most, return_distance=False):
            votes = Counter(term for row in rows[:k] for term in sets[row])
            predicted.append(answers.join(ontology.specific(term for term, n in votes.items() if 2 * n > k)) or None)
        return predicted

    scores = {
        k: space.score(validation["answer"].tolist(), vote(validation["sequence"], k), resamples=1)["f1_micro"]["value"]
        for k in NEIGHBOURS
        if k <= most
    }
    best = max(scores, key=lambda k: scores[k])
    baselines: dict[str, Baseline] = {
        "majority": lambda sequences: [frequent] * len(sequences),
        "knn": lambda sequences: vote(sequences, best),
    }
    return baselines, {"knn": {"n_neighbors": best, "validation_f1_micro": scores[best]}}


def _predictions(baselines: Mapping[str, Baseline], split: pd.DataFrame) -> pd.DataFrame:
    """One row a baseline and example: id, baseline, gold, predicted (null for no prediction)."""
    tables = []
    for name, predict in baselines.items():
        columns = {"id": split["id"], "baseline": name, "gold": split["answer"]}
        tables.append(pd.DataFrame(columns | {"predicted": list(predict(split["sequence"]))}))
    return pd.concat(tables)
