"""Sets of Gene Ontology terms: which terms imply which, what a term weighs, and how near one set is to another.

A term implies its ancestors over `is_a` and `part_of` within its namespace, so sets are compared after adding those
(the true-path rule). Roots say nothing and are left out. This is what the CAFA evaluator does, and the tests check
equality with its package `cafaeval`:

    GO:0004672 (protein kinase activity)  ->  GO:0004672 GO:0016301 GO:0016772 GO:0016740 GO:0003824 ...

- An alternative id counts as the term that took it over.
- A gold term that is obsolete or not in the ontology is left out; a predicted one is wrong, with the mean weight of a
  term, for no evidence could ever make it right. (The CAFA evaluator leaves both out.)

Not for reading outputs (`cisterna.scoring.answers`), not for drawing ontologies or testing enrichment.
"""

import functools
import graphlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cisterna.artifacts import files
from cisterna.errors import UserError

TERM = re.compile(r"GO:[0-9]{7}")
RELATIONS = ("is_a", "part_of")
FILE = "terms.json"  # beside the splits of a task whose answers are sets of terms
LEVEL = 0.95
DRAWS = 100  # bootstrap resamples that are in memory at a time


@dataclass(frozen=True)
class Ontology:
    """The terms of an ontology that are not obsolete.

    `namespaces` has each of them, `parents` its parents within the namespace, `alternatives` the terms that an
    alternative id stands for. `weights` is None where every term weighs 1; a term that it lacks weighs nothing.
    """

    version: str
    namespaces: Mapping[str, str]
    parents: Mapping[str, tuple[str, ...]]
    alternatives: Mapping[str, tuple[str, ...]]
    obsolete: frozenset[str]
    weights: Mapping[str, float] | None = None

    @functools.cached_property
    def rows(self) -> tuple[str, ...]:
        """What the rows of `counts` are: the namespaces in alphabetical order, and `unknown`."""
        return (*sorted(set(self.namespaces.values())), "unknown")

    @functools.cached_property
    def _closures(self) -> dict[str, frozenset[str]]:
        return {}

    @functools.cached_property
    def _unknown_weight(self) -> float:
        weights = [self.weight(term) for term in self.namespaces if self.parents[term]]
        positive = [weight for weight in weights if weight > 0]
        return sum(positive) / len(positive) if positive else 1.0

    def terms(self, identifier: str) -> tuple[str, ...]:
        """The terms that an id stands for: itself, those of which it is an alternative id, or none."""
        return (identifier,) if identifier in self.namespaces else self.alternatives.get(identifier, ())

    def weight(self, term: str) -> float:
        """What a term weighs: 1, or its information accretion in bits."""
        return 1.0 if self.weights is None else self.weights.get(term, 0.0)

    def closure(self, term: str) -> frozenset[str]:
        """A term and its ancestors, without the roots."""
        known = self._closures.get(term)
        if known is None:
            above = [self.closure(parent) for parent in self.parents[term]]
            known = frozenset().union(*above, {term} if above else ())
            self._closures[term] = known
        return known

    def propagate(self, identifiers: Iterable[str]) -> frozenset[str]:
        """The terms that ids stand for and all their ancestors, without the roots and without unknown ids."""
        return frozenset().union(*(self.closure(term) for identifier in identifiers for term in self.terms(identifier)))

    def specific(self, identifiers: Iterable[str]) -> list[str]:
        """The fewest terms that imply the same set, sorted: those of which no other is a descendant."""
        terms = self.propagate(identifiers)
        implied = {parent for term in terms for parent in self.parents[term]}
        return sorted(terms - implied)

    def counts(self, predicted: Iterable[str], gold: Iterable[str]) -> NDArray[np.float64]:
        """Weights of the terms in both propagated sets, of those predicted and of those gold: shape (rows, 3).

        The rows are those of `rows`. In the last stand predicted ids that the ontology does not know.
        """
        predicted = set(predicted)
        said, true = self.propagate(predicted), self.propagate(gold)
        found = np.zeros((len(self.rows), 3))
        index = {namespace: row for row, namespace in enumerate(self.rows)}
        for column, terms in enumerate((said & true, said, true)):
            for term in sorted(terms):  # the same sum for the same set
                found[index[self.namespaces[term]], column] += self.weight(term)
        found[-1, 1] = self._unknown_weight * sum(not self.terms(identifier) for identifier in predicted)
        return found

    def f1(self, predicted: Iterable[str], gold: Iterable[str]) -> float:
        """Weighted F1 of one prediction over all namespaces together, in [0, 1]; 0 if the gold set weighs nothing."""
        return float(micro(self.counts(predicted, gold).sum(axis=0))[2])

    def weighted(self, weights: Mapping[str, float]) -> "Ontology":
        """The same terms with other weights."""
        return replace(self, weights=dict(weights))

    def write(self, path: Path) -> None:
        """Write what `load` reads: JSON, the same bytes for the same ontology."""
        content = {
            "version": self.version,
            "terms": {term: " ".join([self.namespaces[term], *self.parents[term]]) for term in self.namespaces},
            "alternatives": {identifier: " ".join(terms) for identifier, terms in self.alternatives.items()},
            "obsolete": sorted(self.obsolete),
            "weights": None if self.weights is None else dict(self.weights),
        }
        files.write_json(path, content)


def load(path: Path) -> Ontology:
    """The ontology that `Ontology.write` wrote. UserError if the file is missing or is none."""
    try:
        content = files.read_json(path)
        terms = {term: text.split() for term, text in content["terms"].items()}
        return Ontology(
            version=content["version"],
            namespaces={term: parts[0] for term, parts in terms.items()},
            parents={term: tuple(parts[1:]) for term, parts in terms.items()},
            alternatives={key: tuple(text.split()) for key, text in content["alternatives"].items()},
            obsolete=frozenset(content["obsolete"]),
            weights=content["weights"],
        )
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. `cisterna data` writes it beside the splits; rerun it.") from None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not the terms of an ontology ({type(error).__name__}: {error}). Delete its folder and rerun."
        ) from None


def read(path: Path) -> Ontology:
    """The ontology in an OBO file, such as go-basic.obo, which may be compressed (.gz, .bz2, .xz). Every term weighs 1.

    Relations other than RELATIONS, and those into another namespace, are not followed; a term without a namespace is no
    term. UserError for a file that is missing, is no OBO, holds no terms, or has a term that is its own ancestor.
    """
    import obonet

    if not path.is_file():
        raise UserError(f"{path}: no such file. Give an ontology in OBO format, such as go-basic.obo.")
    try:
        graph: Any = obonet.read_obo(str(path), ignore_obsolete=False)
    except (ValueError, OSError, EOFError, KeyError) as error:
        reason = str(error).strip().replace("\n", " ")
        raise UserError(f"{path}: not readable as OBO ({reason}). Give an ontology such as go-basic.obo.") from None
    obsolete = frozenset(term for term, entry in graph.nodes(data=True) if entry.get("is_obsolete") == "true")
    namespaces = {
        term: entry["namespace"]
        for term, entry in graph.nodes(data=True)
        if "namespace" in entry and term not in obsolete
    }
    if not namespaces:
        raise UserError(
            f"{path}: holds no term with a namespace. Give an ontology in OBO format, such as go-basic.obo."
        )
    parents: dict[str, set[str]] = {term: set() for term in namespaces}
    for term, parent, relation in graph.edges(keys=True):
        if relation in RELATIONS and term in namespaces and namespaces.get(parent) == namespaces[term]:
            parents[term].add(parent)
    try:
        graphlib.TopologicalSorter(parents).prepare()
    except graphlib.CycleError as error:
        raise UserError(
            f"{path}: {' -> '.join(reversed(error.args[1]))}: a term is its own ancestor over is_a and part_of. "
            "Give go-basic.obo, which has no such cycle."
        ) from None
    alternatives: dict[str, set[str]] = {}
    for term in namespaces:
        for identifier in graph.nodes[term].get("alt_id", ()):
            if identifier not in namespaces:
                alternatives.setdefault(identifier, set()).add(term)
    return Ontology(
        version=str(graph.graph.get("data-version", "unknown")),
        namespaces=namespaces,
        parents={term: tuple(sorted(above)) for term, above in parents.items()},
        alternatives={identifier: tuple(sorted(terms)) for identifier, terms in alternatives.items()},
        obsolete=obsolete - set(alternatives),
    )


def read_weights(path: Path, ontology: Ontology) -> dict[str, float]:
    """Information accretion in the format of CAFA: a line a term, `GO:0003674<TAB>0.0`, in bits.

    A value that is not finite weighs nothing, as in the CAFA evaluator. UserError, with the line, for a line that is
    not a term and a number, a negative number or a term twice, and for a file that no term of the ontology is in.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}). Give information accretion, a term a line.") from None
    found: dict[str, float] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        term, _, value = line.strip().partition("\t")
        try:
            weight = float(value)
        except ValueError:
            weight = -1.0
        if not TERM.fullmatch(term) or math.isnan(weight) or weight < 0:
            raise UserError(
                f"{path}:{number}: {line!r} is not a GO term, a tab and a number of bits >= 0, such as "
                "'GO:0004672<TAB>3.2'. Correct the line."
            )
        if term in found:
            raise UserError(f"{path}:{number}: {term} is there a second time. Keep one of its lines.")
        found[term] = weight if math.isfinite(weight) else 0.0
    if not found.keys() & ontology.namespaces.keys():
        raise UserError(
            f"{path}: none of its {len(found)} terms is in the ontology. Give the file of the same release."
        )
    return found


def information_accretion(annotations: Iterable[Iterable[str]], ontology: Ontology) -> dict[str, float]:
    """Bits that each term adds to its parents: -log2 P(term | all its parents), by the share of the proteins.

    `annotations` holds one set of ids a protein, which is propagated. Clark and Radivojac 2013, Bioinformatics 29:i53,
    doi:10.1093/bioinformatics/btt228. A term that no protein has is left out: nothing says what it would weigh.
    """
    proteins = [ontology.propagate(identifiers) for identifiers in annotations]
    counted = Counter(term for terms in proteins for term in terms)
    # A root is implied by every term of its namespace.
    rooted = [terms | {root for term in terms for root in _roots(term, ontology)} for terms in proteins]
    having: dict[str, set[int]] = {}
    for number, terms in enumerate(rooted):
        for term in terms:
            having.setdefault(term, set()).add(number)
    found = {}
    for term, count in sorted(counted.items()):
        eligible = set.intersection(*(having[parent] for parent in ontology.parents[term]))
        found[term] = math.log2(len(eligible) / count)
    return found


def _roots(term: str, ontology: Ontology) -> Iterator[str]:
    return (parent for parent in ontology.parents[term] if not ontology.parents[parent])


def frequent(annotations: Iterable[Iterable[str]], ontology: Ontology) -> list[str]:
    """The best answer that does not look at the protein: the most frequent terms of `annotations`, as `specific`.

    As many of them as give the highest micro F1 on `annotations` themselves. CAFA's naive predictor (Radivojac et al.
    2013, doi:10.1038/nmeth.2340), at one threshold.
    """
    proteins = [ontology.propagate(identifiers) for identifiers in annotations]
    counted = Counter(term for terms in proteins for term in terms)
    # A parent is at least as frequent as its child, and where it is as frequent it comes first: no prefix lacks one.
    order = sorted(counted, key=lambda term: (-counted[term], len(ontology.closure(term)), term))
    weights = np.array([ontology.weight(term) for term in order])
    shared = np.cumsum(weights * [counted[term] for term in order])
    said = np.cumsum(weights * len(proteins))
    gold = np.full_like(shared, shared[-1] if len(shared) else 0)
    scores = micro(np.stack([shared, said, gold], axis=-1))[:, 2]
    return ontology.specific(order[: int(scores.argmax()) + 1]) if len(order) else []


def micro(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Precision, recall and F1 of `counts`, shape (..., 3), as an array of that shape; 0 where undefined."""
    shared, predicted, gold = np.moveaxis(counts, -1, 0)
    return _f1(_share(shared, predicted), _share(shared, gold))


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros(np.broadcast(part, whole).shape), where=whole > 0)


def _f1(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([precision, recall, _share(2 * precision * recall, precision + recall)], axis=-1)


def score(
    gold: Sequence[str],
    predicted: Sequence[str | None],
    ontology: Ontology,
    seed: int = 0,
    resamples: int = 2000,
) -> dict[str, dict[str, float | int]]:
    """Metrics of one model on one split, as `cisterna.scoring.metrics.score` gives them for labels.

    `gold` and `predicted` hold the texts of `cisterna.scoring.answers`, ids with ", " between them; None or NaN is a
    malformed output, which predicts nothing. Each metric has value, low and high (95%, bootstrap over proteins) and n:

    - f1_micro, precision_micro, recall_micro: sums over all proteins and namespaces of the weights of P & T, P and T
    - f1_protein, precision_protein, recall_protein: protein-centred as CAFA has it, with precision a mean over the
      proteins that something is predicted for, and recall over all (Jiang et al. 2016, doi:10.1186/s13059-016-1037-6);
      a protein whose gold terms weigh nothing has recall 0, as there
    - the same for each namespace, such as f1_micro:molecular_function, over the proteins with a gold term in it; n is
      how many these are. Ids that the ontology does not know are in no namespace
    - accuracy: share of the proteins whose propagated set is predicted exactly
    - well_formed: share of outputs that parse
    - unknown_terms: share of the predicted ids that the ontology does not know
    - predicted_terms, gold_terms: terms a protein, after propagation

    Raises ValueError for lengths that differ or no proteins.
    """
    return _summaries([_metrics(gold, predicted, ontology)], len(gold), seed, resamples)


def difference(
    gold: Sequence[str],
    predicted_a: Sequence[str | None],
    predicted_b: Sequence[str | None],
    ontology: Ontology,
    seed: int = 0,
    resamples: int = 2000,
) -> dict[str, dict[str, float | int]]:
    """Metrics of b minus metrics of a, for the same proteins in the same order, with paired bootstrap intervals.

    As `score`, and as `cisterna.scoring.metrics.difference` for labels: both are scored on the same resamples.
    """
    both = [_metrics(gold, predicted, ontology) for predicted in (predicted_b, predicted_a)]
    return _summaries(both, len(gold), seed, resamples)


def _metrics(
    gold: Sequence[str], predicted: Sequence[str | None], ontology: Ontology
) -> dict[str, tuple[NDArray[np.float64], Any, int]]:
    """For each metric a table, a row a protein, the function of its sums that the metric is, and n."""
    if len(gold) != len(predicted) or not len(gold):
        raise ValueError(f"{len(gold)} gold and {len(predicted)} predicted; expected as many of both, at least one")
    true = [_ids(text) for text in gold]
    said = [_ids(text) for text in predicted]
    counts = np.stack([ontology.counts(*pair) for pair in zip(said, true, strict=True)])
    sets = [(ontology.propagate(mine), ontology.propagate(theirs)) for mine, theirs in zip(said, true, strict=True)]
    unknown = [[identifier for identifier in mine if not ontology.terms(identifier)] for mine in said]
    numbers = np.array(
        [
            (mine == theirs and not odd, isinstance(text, str), len(odd), len(ids), len(mine), len(theirs))
            for (mine, theirs), odd, ids, text in zip(sets, unknown, said, predicted, strict=True)
        ],
        dtype=float,
    )
    # A root counts here, as in the CAFA evaluator: it says that the protein was looked at.
    annotated = [{ontology.namespaces[term] for name in ids for term in ontology.terms(name)} for ids in true]
    everything = np.arange(len(gold))
    metrics: dict[str, tuple[NDArray[np.float64], Any, int]] = {
        "accuracy": (numbers[:, :1], _mean, len(gold)),
        "well_formed": (numbers[:, 1:2], _mean, len(gold)),
        "unknown_terms": (numbers[:, 2:4], lambda sums: _share(sums[..., 0], sums[..., 1]), len(gold)),
        "predicted_terms": (numbers[:, 4:5], _mean, len(gold)),
        "gold_terms": (numbers[:, 5:6], _mean, len(gold)),
    }
    parts = {"": (everything, counts.sum(axis=1))}
    for row, namespace in enumerate(ontology.rows[:-1]):
        has = np.array([namespace in named for named in annotated])
        if has.any():
            parts[f":{namespace}"] = (np.flatnonzero(has), counts[:, row])
    for suffix, (rows, part) in parts.items():
        kept = np.zeros((len(gold), 1))
        kept[rows] = 1
        protein = micro(part)
        covered = (part[:, 1:2] > 0) * kept
        # Sums that make every metric of a resample: P & T, P, T; precision, recall; proteins predicted for, proteins.
        table = np.hstack([part * kept, protein[:, :2] * kept, covered, kept])
        for column, name in enumerate(("precision", "recall", "f1")):
            metrics[f"{name}_micro{suffix}"] = (table, functools.partial(_micro_of, column), len(rows))
            metrics[f"{name}_protein{suffix}"] = (table, functools.partial(_protein_of, column), len(rows))
    return metrics


def _ids(text: str | None) -> list[str]:
    return text.split(", ") if isinstance(text, str) else []


def _mean(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return _share(sums[..., 0], sums[..., -1])


def _micro_of(column: int, sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return micro(sums[..., :3])[..., column]


def _protein_of(column: int, sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return _f1(_share(sums[..., 3], sums[..., 5]), _share(sums[..., 4], sums[..., 6]))[..., column]


def _summaries(models: Sequence[Mapping[str, Any]], proteins: int, seed: int, resamples: int) -> dict[str, Any]:
    """Value and percentile interval of the metrics of one model, or of the first of two minus those of the second."""
    generator = np.random.default_rng(seed)

    def values(name: str, times: NDArray[np.float64]) -> NDArray[np.float64]:
        found = [function(_sums(times, table)) for table, function, _ in (model[name] for model in models)]
        return found[0] - found[1] if len(found) > 1 else found[0]

    draws: dict[str, list[NDArray[np.float64]]] = {name: [] for name in models[0]}
    for begin in range(0, resamples, DRAWS):
        size = min(DRAWS, resamples - begin)
        times = generator.multinomial(proteins, np.full(proteins, 1 / proteins), size=size).astype(float)
        for name in draws:
            draws[name].append(values(name, times))
    found = {}
    tail = 50 * (1 - LEVEL)
    for name, (_, _, n) in models[0].items():
        low, high = np.percentile(np.concatenate(draws[name]), [tail, 100 - tail])
        value = values(name, np.ones((1, proteins)))[0]
        found[name] = {"value": float(value), "low": float(low), "high": float(high), "n": int(n)}
    return found


def _sums(times: NDArray[np.float64], table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of the columns of `table`, each protein as often as `times` says; means end with the number of proteins."""
    return times @ (np.hstack([table, np.ones((len(table), 1))]) if table.shape[1] == 1 else table)
