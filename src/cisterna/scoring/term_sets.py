"""Metrics of predicted sets of Gene Ontology terms against gold sets.

Sets are compared after propagation: each term with all its ancestors, without the roots. This is what the CAFA
evaluator does, and the tests check equality with its package `cafaeval`, with one exception: a predicted id that is
obsolete or not in the ontology is wrong and has the mean weight of a term, because no evidence can make it right. (The
CAFA evaluator leaves it out.) A gold term like that is left out here too.

Not for reading outputs (`cisterna.scoring.answers`), not for the ontology (`cisterna.scoring.gene_ontology`).
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from cisterna.scoring import bootstrap
from cisterna.scoring.bootstrap import Array, Metrics, Summary
from cisterna.scoring.gene_ontology import Ontology

# Resamples in memory at a time. Another number would sum weighted terms in another order: other last bits.
AT_ONCE = 100
COUNTED = ("accuracy", "well_formed", "unknown_terms", "predicted_terms", "gold_terms")
RATIOS = ("precision", "recall", "f1")

Terms = Sequence[str] | None  # the ids of one answer; None for a malformed output


def score(
    gold: Sequence[Sequence[str]],
    predicted: Sequence[Terms],
    ontology: Ontology,
    seed: int = 0,
    resamples: int = bootstrap.RESAMPLES,
) -> dict[str, Summary]:
    """Metrics of one model on one split, as `cisterna.scoring.metrics.score` returns them for labels.

    `gold` and `predicted` have the ids of one protein each; None is a malformed output, which predicts nothing. Each
    metric has value, low and high (95%, bootstrap over proteins) and n:

    - f1_micro, precision_micro, recall_micro: from the weights of the terms in P & T, P and T, each summed over all
      proteins and namespaces (P predicted and T gold set)
    - f1_protein, precision_protein, recall_protein: protein-centred as in CAFA, with precision a mean over the proteins
      that something is predicted for, and recall over all (Jiang et al. 2016, doi:10.1186/s13059-016-1037-6); a protein
      whose gold terms weigh nothing has recall 0, as there
    - the same for each namespace, such as f1_micro:molecular_function, over the proteins with a gold term in it, whose
      number is n. Ids that the ontology does not know are in no namespace
    - accuracy: share of the proteins whose propagated set is predicted exactly
    - well_formed: share of outputs that parse
    - unknown_terms: share of the predicted ids that the ontology does not know
    - predicted_terms, gold_terms: mean number of terms of a protein, after propagation

    Raises ValueError for lengths that differ or no proteins.
    """
    metrics, n = _metrics(gold, predicted, ontology)
    return _summaries(metrics, len(gold), n, seed, resamples)


def difference(
    gold: Sequence[Sequence[str]],
    predicted_a: Sequence[Terms],
    predicted_b: Sequence[Terms],
    ontology: Ontology,
    seed: int = 0,
    resamples: int = bootstrap.RESAMPLES,
) -> dict[str, Summary]:
    """Metrics of b minus metrics of a, for the same proteins in the same order, with paired bootstrap intervals.

    As `cisterna.scoring.metrics.difference` for labels: both are scored on the same resamples.
    """
    (before, n), (after, _) = (_metrics(gold, predicted, ontology) for predicted in (predicted_a, predicted_b))
    return _summaries(bootstrap.paired(before, after), len(gold), n, seed, resamples)


def f1(predicted: Iterable[str], gold: Iterable[str], ontology: Ontology) -> float:
    """Weighted F1 of one prediction over all namespaces together, in [0, 1]; 0 if the gold set weighs nothing."""
    return float(micro(overlap(predicted, gold, ontology).sum(axis=0))[2])


def same(predicted: Iterable[str], gold: Iterable[str], ontology: Ontology) -> bool:
    """Whether two sets are equal after propagation, and every predicted id is known."""
    predicted = list(predicted)
    return ontology.propagate(predicted) == ontology.propagate(gold) and all(map(ontology.terms, predicted))


def overlap(predicted: Iterable[str], gold: Iterable[str], ontology: Ontology) -> Array:
    """Weights of the terms in P & T, in P and in T (both propagated), by namespace: shape (namespaces + 1, 3).

    The namespaces are in alphabetical order. The last row is for predicted ids that the ontology does not know.
    """
    predicted = set(predicted)
    answered, true = ontology.propagate(predicted), ontology.propagate(gold)
    weights = np.zeros((len(ontology.rows) + 1, 3))
    for column, terms in enumerate((answered & true, answered, true)):
        for term in sorted(terms):  # the same sum for the same set
            weights[ontology.rows[ontology.namespaces[term]], column] += ontology.weight(term)
    weights[-1, 1] = ontology.unknown_weight * sum(not ontology.terms(identifier) for identifier in predicted)
    return weights


def micro(overlaps: Array) -> Array:
    """Precision, recall and F1 from weights of P & T, P and T, shape (..., 3): of that shape; 0 where undefined."""
    shared, predicted, gold = np.moveaxis(overlaps, -1, 0)
    return _with_f1(_share(shared, predicted), _share(shared, gold))


def frequent(annotations: Iterable[Iterable[str]], ontology: Ontology) -> list[str]:
    """The best answer that does not depend on the protein: the most frequent terms of `annotations`, as `specific`.

    As many of them as give the highest micro F1 on `annotations` themselves. CAFA's naive predictor (Radivojac et al.
    2013, doi:10.1038/nmeth.2340), at one threshold.
    """
    proteins = [ontology.propagate(identifiers) for identifiers in annotations]
    counted = Counter(term for terms in proteins for term in terms)
    # A parent is at least as frequent as its child, and where it is as frequent it comes first: no prefix lacks one.
    order = sorted(counted, key=lambda term: (-counted[term], len(ontology.closure(term)), term))
    weights = np.array([ontology.weight(term) for term in order])
    shared = np.cumsum(weights * [counted[term] for term in order])
    predicted = np.cumsum(weights * len(proteins))
    gold = np.full_like(shared, shared[-1] if len(shared) else 0)
    scores = micro(np.stack([shared, predicted, gold], axis=-1))[:, 2]
    return ontology.specific(order[: int(scores.argmax()) + 1]) if len(order) else []


def _share(part: Array, whole: Array) -> Array:
    return np.divide(part, whole, out=np.zeros(np.broadcast(part, whole).shape), where=whole > 0)


def _with_f1(precision: Array, recall: Array) -> Array:
    return np.stack([precision, recall, _share(2 * precision * recall, precision + recall)], axis=-1)


def _summaries(metrics: Metrics, proteins: int, n: dict[str, int], seed: int, resamples: int) -> dict[str, Summary]:
    drawn = bootstrap.weights(np.random.default_rng(seed), proteins, resamples, AT_ONCE)
    return bootstrap.summaries(metrics, np.ones(proteins), (weights.astype(float) for weights in drawn), n)


def _metrics(
    gold: Sequence[Sequence[str]], predicted: Sequence[Terms], ontology: Ontology
) -> tuple[Metrics, dict[str, int]]:
    """The metrics of one model as functions of the weights of proteins, and the n of each."""
    if len(gold) != len(predicted) or not len(gold):
        raise ValueError(f"{len(gold)} gold and {len(predicted)} predicted; expected as many of both, at least one")
    pairs = [(ids or (), true) for ids, true in zip(predicted, gold, strict=True)]
    overlaps = np.stack([overlap(*pair, ontology) for pair in pairs])
    numbers = np.array(
        [
            (
                same(ids, true, ontology),
                answer is not None,
                sum(not ontology.terms(identifier) for identifier in ids),
                len(ids),
                len(ontology.propagate(ids)),
                len(ontology.propagate(true)),
                1,
            )
            for answer, (ids, true) in zip(predicted, pairs, strict=True)
        ],
        dtype=float,
    )
    # A root counts here, as in the CAFA evaluator: it says that the protein was looked at.
    annotated = [{ontology.namespaces[term] for name in true for term in ontology.terms(name)} for true in gold]
    tables = {"": _columns(overlaps.sum(axis=1), np.ones((len(gold), 1)))}
    for namespace, row in ontology.rows.items():
        has = np.array([[namespace in namespaces] for namespaces in annotated], dtype=float)
        if has.any():
            tables[f":{namespace}"] = _columns(overlaps[:, row], has)

    def metrics(weights: Array) -> dict[str, Array]:
        right, formed, unknown, ids, answered, true, proteins = np.moveaxis(weights @ numbers, -1, 0)
        pairs = ((right, proteins), (formed, proteins), (unknown, ids), (answered, proteins), (true, proteins))
        values = {name: _share(*pair) for name, pair in zip(COUNTED, pairs, strict=True)}
        for part, table in tables.items():
            sums = weights @ table
            over_terms = micro(sums[..., :3])
            over_proteins = _with_f1(_share(sums[..., 3], sums[..., 5]), _share(sums[..., 4], sums[..., 6]))
            for column, name in enumerate(RATIOS):
                values[f"{name}_micro{part}"] = over_terms[..., column]
                values[f"{name}_protein{part}"] = over_proteins[..., column]
        return values

    n = dict.fromkeys(COUNTED, len(gold)) | {
        f"{name}_{mean}{part}": int(table[:, -1].sum())
        for part, table in tables.items()
        for name in RATIOS
        for mean in ("micro", "protein")
    }
    return metrics, n


def _columns(overlaps: Array, kept: Array) -> Array:
    """Columns whose sums over proteins make every metric of a part, shape (proteins, 7); only of the proteins `kept`.

    Weights of P & T, P and T; precision and recall; proteins that something is predicted for, and all proteins.
    """
    covered = overlaps[:, 1:2] > 0
    return np.hstack([overlaps, micro(overlaps)[:, :2], covered, np.ones_like(kept)]) * kept
