"""The usual alternatives to a language model: majority, k-NN, logistic regression and gradient boosting.

They read what the prompts of the models say (`cisterna.evaluation.features`) and learn from `train.parquet` alone; k,
C and the number of trees are chosen on `validation.parquet`. The two test splits are read only to be predicted.

Where answers are sets of terms, majority is the best set of frequent terms (`term_sets.frequent`), k-NN the terms that
more than half of the k nearest have, and there are no others.

Not for neural networks, and not for tuned competitors: the grids are small on purpose, because a baseline is what
anyone gets in five minutes.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.base import ClassifierMixin
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_selection import SelectKBest, VarianceThreshold, f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from threadpoolctl import threadpool_limits

from cisterna.artifacts import files
from cisterna.constants import TEST_SPLITS
from cisterna.errors import UserError
from cisterna.evaluation import features, scores
from cisterna.scoring import answers, term_sets
from cisterna.scoring.answers import AnswerSpace, Terms

# Simplest first: of equals on validation, the first wins.
NEIGHBOURS = (25, 11, 5, 3, 1)
PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)  # C, the inverse strength of the L2 penalty
ROUNDS = (25, 50, 100, 200)  # of boosting: a tree of each a label
LEAVES = 8  # of a tree: 4 to 8 work well (Hastie et al. 2009, The Elements of Statistical Learning, section 10.11)
FEWEST = 5  # examples of a leaf: with the 20 of scikit-learn's default a few hundred examples are split too coarsely
# Boosting reads no sparse matrices. It gets the best features by their F-test on train: at most so many, and at most so
# many times examples and labels, which take it about two minutes.
DENSE = 2000
CELLS = 30_000_000

Predict = Callable[[csr_matrix], Iterable[str | None]]  # from features to predictions


@dataclass(frozen=True)
class Baseline:
    """A fitted baseline; `probabilities`, shape (examples, labels), unless answers are sets of terms."""

    predict: Predict
    probabilities: Callable[[csr_matrix], NDArray[np.float64]] | None = None


def run(data: Path, output: Path, space: AnswerSpace, card: Mapping[str, Any], seed: int, bootstrap: int) -> None:
    """Fit the baselines on the task in `data` and evaluate them on `id` and `ood`.

    Reads {train,validation,id,ood}.parquet in `data` (columns id, sequence, prompt, answer, group), with the task's
    `card`. Writes the folder `output`,
    whole or not at all:

    - id.parquet, ood.parquet: one row an example and baseline: id, baseline, gold, predicted, and for labels the
      probability of each (`probability:up`), in the order of the task's `labels`
    - metrics.json: {baseline: {split: metrics}}, the metrics of the answer space `space` and of the probabilities
      (`cisterna.scoring.ranking`) with `bootstrap` resamples drawn from `seed`; under "groups" those of each group, as
      in `cisterna.evaluation.evaluate`. The fits themselves are not random.
    - choices.json: the features, and the k, C and number of rounds chosen, with their accuracy on validation

    Raises UserError for a split that cannot be read, and for a `train` with only one label.
    """
    splits = {name: _read(data / f"{name}.parquet") for name in ("train", "validation", *TEST_SPLITS)}
    train, validation = splits["train"], splits["validation"]
    if train["answer"].nunique() < 2:
        raise UserError(
            f"{data / 'train.parquet'}: every answer is {train['answer'].iloc[0]!r}; "
            "a classifier needs examples of at least two of them"
        )
    with (
        threadpool_limits(1),
        np.errstate(divide="ignore"),
    ):  # the F of a feature that alone tells the labels is infinite
        texts, modalities = features.read(pd.concat(splits), card)
        fitted = features.fit(texts.loc[["train"]], modalities)
        inputs = {name: fitted.of(texts.loc[[name]]) for name in splits}
        given = (inputs["train"], train["answer"], inputs["validation"], validation["answer"])
        if isinstance(space, Terms):
            baselines, choices = _fit_terms(*given, space)
        else:
            baselines, choices = _fit_labels(*given, space.labels)
        predictions = {split: _predictions(baselines, inputs[split], splits[split], space) for split in TEST_SPLITS}
    results: dict[str, dict[str, dict[str, object]]] = {name: {} for name in baselines}
    for split, table in predictions.items():
        for name, rows in table.rename(columns={"gold": "answer"}).groupby("baseline"):
            of_baseline = results[str(name)]
            of_baseline[split] = scores.for_json(scores.of_split(rows, space, seed, bootstrap))
            of_baseline.setdefault("groups", {})[split] = scores.of_groups(rows, space, seed, bootstrap)
    kinds: object = fitted.kinds if len(fitted.kinds) > 1 else next(iter(fitted.kinds.values()))
    with files.new_folder(output) as folder:
        for split, table in predictions.items():
            table.drop(columns="group").to_parquet(folder / f"{split}.parquet", index=False)
        files.write_json(folder / "choices.json", {"features": kinds} | choices)
        files.write_json(folder / "metrics.json", results)


def _read(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
        table[["id", "prompt", "answer", "group"]]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: cannot be read as a split of a task: {error}") from None
    if table.empty:
        raise UserError(f"{path}: has no rows; give the split a size above 0 in the task's config")
    return table


def _fit_labels(
    train: csr_matrix, gold: pd.Series, validation: csr_matrix, validation_gold: pd.Series, labels: tuple[str, ...]
) -> tuple[dict[str, Baseline], dict[str, object]]:
    """Baselines that predict labels, fitted on `train`, and what was chosen on `validation`."""
    most = max(1, min(DENSE, CELLS // (train.shape[0] * len(labels))))
    grids: dict[str, tuple[str, dict[float, ClassifierMixin]]] = {
        "knn": (
            "n_neighbors",
            {k: KNeighborsClassifier(k, algorithm="brute") for k in NEIGHBOURS if k <= train.shape[0]},
        ),
        "logistic": ("C", {c: LogisticRegression(C=c, max_iter=2000) for c in PENALTIES}),
        "boosting": ("max_iter", {rounds: _boosting(rounds, most, train.shape[1]) for rounds in ROUNDS}),
    }
    models = {"majority": DummyClassifier(strategy="prior").fit(train, gold)}
    choices: dict[str, object] = {}
    for name, (option, grid) in grids.items():
        fitted = {value: model.fit(train, gold) for value, model in grid.items()}
        accuracies = {value: float(model.score(validation, validation_gold)) for value, model in fitted.items()}
        best = max(accuracies, key=lambda value: accuracies[value])
        models[name] = fitted[best]
        choices[name] = {option: best, "validation_accuracy": accuracies[best]}

    def baseline(model: ClassifierMixin) -> Baseline:
        def probabilities(inputs: csr_matrix) -> NDArray[np.float64]:
            found = pd.DataFrame(model.predict_proba(inputs), columns=model.classes_)
            return found.reindex(columns=list(labels), fill_value=0.0).to_numpy()  # 0: a label that train lacks

        return Baseline(model.predict, probabilities)

    return {name: baseline(model) for name, model in models.items()}, choices


def _boosting(rounds: int, most: int, size: int) -> ClassifierMixin:
    """Gradient boosting of `most` of `size` features. Without early stopping nothing in it is random."""
    trees = HistGradientBoostingClassifier(
        max_iter=rounds, max_leaf_nodes=LEAVES, min_samples_leaf=FEWEST, early_stopping=False, random_state=0
    )
    chosen = [VarianceThreshold(), SelectKBest(f_classif, k=most)] if size > most else []
    return make_pipeline(*chosen, FunctionTransformer(_dense, accept_sparse=True), trees)


def _dense(inputs: csr_matrix) -> NDArray[np.float64]:
    return inputs.astype(np.float64).toarray()


def _fit_terms(
    train: csr_matrix, gold: pd.Series, validation: csr_matrix, validation_gold: pd.Series, space: Terms
) -> tuple[dict[str, Baseline], dict[str, object]]:
    """Baselines that predict sets of terms, and the k chosen on `validation`.

    The k nearest neighbours vote; there is no prediction (None) where no term has a majority.
    """
    ontology = space.ontology
    annotated = [answers.split(text) for text in gold]
    sets = [ontology.propagate(terms) for terms in annotated]
    frequent = answers.join(term_sets.frequent(annotated, ontology))
    nearest = NearestNeighbors(algorithm="brute").fit(train)
    most = min(max(NEIGHBOURS), train.shape[0])

    def vote(inputs: csr_matrix, k: int) -> list[str | None]:
        predicted = []
        for rows in nearest.kneighbors(inputs, most, return_distance=False):
            votes = Counter(term for row in rows[:k] for term in sets[row])
            predicted.append(answers.join(ontology.specific(term for term, n in votes.items() if 2 * n > k)) or None)
        return predicted

    found = {
        k: space.score(validation_gold.tolist(), vote(validation, k), resamples=1)["f1_micro"]["value"]
        for k in NEIGHBOURS
        if k <= most
    }
    best = max(found, key=lambda k: found[k])
    baselines = {
        "majority": Baseline(lambda inputs: [frequent] * inputs.shape[0]),
        "knn": Baseline(lambda inputs: vote(inputs, best)),
    }
    return baselines, {"knn": {"n_neighbors": best, "validation_f1_micro": found[best]}}


def _predictions(
    baselines: Mapping[str, Baseline], inputs: csr_matrix, split: pd.DataFrame, space: AnswerSpace
) -> pd.DataFrame:
    """One row a baseline and example: id, baseline, gold, predicted (null for no prediction), group, probabilities."""
    tables = []
    for name, baseline in baselines.items():
        columns = {"id": split["id"], "baseline": name, "gold": split["answer"]}
        table = pd.DataFrame(columns | {"predicted": list(baseline.predict(inputs)), "group": split["group"]})
        if baseline.probabilities is not None:
            table = table.join(scores.probability_table(baseline.probabilities(inputs), space.labels))
        tables.append(table)
    return pd.concat(tables)
