"""The Gene Ontology: its files, which terms imply which, and the weight of a term.

A term implies its ancestors over `is_a` and `part_of` within its namespace (the true-path rule). Roots are true of
every protein and are left out. An alternative id is read as the term that replaced it.

    GO:0004672 (protein kinase activity)  ->  GO:0004672 GO:0016301 GO:0016772 GO:0016740 GO:0003824 ...

Not for scoring sets of terms (`cisterna.scoring.term_sets`), not for drawing ontologies or testing enrichment.
"""

import functools
import graphlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cisterna.artifacts import files
from cisterna.errors import UserError

TERM = re.compile(r"GO:[0-9]{7}")
RELATIONS = ("is_a", "part_of")
FILE = "terms.json"  # in the data folder of a task whose answers are sets of terms


@dataclass(frozen=True)
class Ontology:
    """The terms of an ontology that are not obsolete.

    `namespaces` has each of them, `parents` its parents within the namespace, `alternatives` the terms that an
    alternative id was replaced by. `weights` is None if every term weighs 1; a term that is not in it weighs 0.
    """

    version: str
    namespaces: Mapping[str, str]
    parents: Mapping[str, tuple[str, ...]]
    alternatives: Mapping[str, tuple[str, ...]]
    obsolete: frozenset[str]
    weights: Mapping[str, float] | None = None

    @functools.cached_property
    def rows(self) -> dict[str, int]:
        """The namespaces in alphabetical order, numbered from 0."""
        return {namespace: row for row, namespace in enumerate(sorted(set(self.namespaces.values())))}

    @functools.cached_property
    def _closures(self) -> dict[str, frozenset[str]]:
        return {}

    @functools.cached_property
    def unknown_weight(self) -> float:
        """The weight of an id that the ontology does not know: the mean over the terms that have weight."""
        weights = [self.weight(term) for term in self.namespaces if self.parents[term]]
        positive = [weight for weight in weights if weight > 0]
        return sum(positive) / len(positive) if positive else 1.0

    def terms(self, identifier: str) -> tuple[str, ...]:
        """The terms of an id: itself, those that it is an alternative id of, or none."""
        return (identifier,) if identifier in self.namespaces else self.alternatives.get(identifier, ())

    def weight(self, term: str) -> float:
        """The weight of a term: 1, or its information accretion in bits."""
        return 1.0 if self.weights is None else self.weights.get(term, 0.0)

    def closure(self, term: str) -> frozenset[str]:
        """A term and its ancestors, without the roots."""
        if term not in self._closures:
            above = [self.closure(parent) for parent in self.parents[term]]
            self._closures[term] = frozenset().union(*above, {term} if above else ())
        return self._closures[term]

    def propagate(self, identifiers: Iterable[str]) -> frozenset[str]:
        """The terms of ids and all their ancestors, without the roots and without unknown ids."""
        return frozenset().union(*(self.closure(term) for identifier in identifiers for term in self.terms(identifier)))

    def specific(self, identifiers: Iterable[str]) -> list[str]:
        """The fewest terms that imply the same set, sorted: those without a descendant in the set."""
        terms = self.propagate(identifiers)
        implied = {parent for term in terms for parent in self.parents[term]}
        return sorted(terms - implied)

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
    """The ontology that `Ontology.write` wrote. UserError if the file is missing or is not an ontology."""
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
        raise UserError(f"{path}: no such file. `cisterna data` writes it with the splits; rerun it.") from None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not the terms of an ontology ({type(error).__name__}: {error}). Delete its folder and rerun."
        ) from None


def read(path: Path) -> Ontology:
    """The ontology in an OBO file, such as go-basic.obo, which may be compressed (.gz, .bz2, .xz). Every term weighs 1.

    Relations other than RELATIONS, and those into another namespace, are not followed; terms without a namespace are
    left out, after the namespace that the file has by default. UserError for a file that is missing, is not OBO, has no
    terms, has a relation to a term that it does not have, or has a term that is its own ancestor.
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
    live = {term: entry for term, entry in graph.nodes(data=True) if term not in obsolete}
    (default,) = graph.graph.get("default-namespace", [None])[:1]
    namespaces = {term: entry.get("namespace", default) for term, entry in live.items() if entry}
    namespaces = {term: namespace for term, namespace in namespaces.items() if namespace}
    if not namespaces:
        raise UserError(f"{path}: has no term with a namespace. Give an ontology in OBO format, such as go-basic.obo.")
    _check_edges(path, graph, live)
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


def _check_edges(path: Path, graph: Any, live: Mapping[str, Mapping[str, Any]]) -> None:
    """UserError for a relation of a live term to a term that is obsolete, or has no entry (which obonet adds empty)."""
    lost = [
        f"{term} {relation} {parent}"
        for term, parent, relation in graph.edges(keys=True)
        if relation in RELATIONS and live.get(term) and not live.get(parent)
    ]
    if lost:
        raise UserError(
            f"{path}: {len(lost)} relations lead to terms that the file does not have, or that are obsolete "
            f"(such as {', '.join(sorted(lost)[:3])}). Its download may have ended early: download it again."
        )


def read_weights(path: Path, ontology: Ontology) -> dict[str, float]:
    """Information accretion in the format of CAFA: a line a term, `GO:0003674<TAB>0.0`, in bits.

    A value that is not finite weighs nothing, as in the CAFA evaluator. UserError, with the line, for a line that is
    not a term and a number, a negative number or a term twice, and for a file that no term of the ontology is in.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        with path.open("rb") as stream:
            raise UserError(f"{path}, {files.not_unicode(stream)}.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}). Give information accretion, a term a line.") from None
    weights: dict[str, float] = {}
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
        if term in weights:
            raise UserError(f"{path}:{number}: {term} occurs a second time. Keep one of its lines.")
        weights[term] = weight if math.isfinite(weight) else 0.0
    if not weights.keys() & ontology.namespaces.keys():
        raise UserError(
            f"{path}: none of its {len(weights)} terms is in the ontology. Give the file of the same release."
        )
    return weights


def information_accretion(annotations: Iterable[Iterable[str]], ontology: Ontology) -> dict[str, float]:
    """Bits that each term adds to its parents: -log2 P(term | all its parents), by the share of the proteins.

    `annotations` has one set of ids a protein, which is propagated. Clark and Radivojac 2013, Bioinformatics 29:i53,
    doi:10.1093/bioinformatics/btt228. A term that no protein has is left out: its weight is unknown.
    """
    proteins = [ontology.propagate(identifiers) for identifiers in annotations]
    counted = Counter(term for terms in proteins for term in terms)
    # A root is implied by every term of its namespace.
    roots = {term for term, parents in ontology.parents.items() if not parents}
    rooted = [
        terms | {parent for term in terms for parent in ontology.parents[term] if parent in roots} for terms in proteins
    ]
    having: dict[str, set[int]] = {}
    for number, terms in enumerate(rooted):
        for term in terms:
            having.setdefault(term, set()).add(number)
    bits = {}
    for term, count in sorted(counted.items()):
        eligible = set.intersection(*(having[parent] for parent in ontology.parents[term]))
        bits[term] = math.log2(len(eligible) / count)
    return bits
