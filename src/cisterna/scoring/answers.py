"""The one reading of a model's output, shared by rewards, evaluation and training data.

An output counts only if the text after the last ``</think>`` is exactly one ``Answer: X`` with X in
the task's answer space. Answers are parsed, never searched for, so naming several labels, or the
right one in passing, earns nothing:

    <think>GT at +1, +2; purine at +3.</think>Answer: donor      -> donor
    <think>It is a donor.</think>donor                           -> malformed
    <think>Hm.</think>Answer: donor or decoy                     -> malformed

There are two kinds of answer space. ``Labels`` is a closed list, as above. ``Terms`` is every set of
Gene Ontology terms, written as ids with ", " between them, in any order, none twice:

    <think>A kinase.</think>Answer: GO:0005524, GO:0004672       -> GO:0004672, GO:0005524
    <think>A kinase.</think>Answer: GO:0004672 GO:0005524        -> malformed
    <think>A kinase.</think>Answer: GO:0004672, GO:0004672       -> malformed

An id of the right form that no ontology has is read, and counts as wrong (``cisterna.scoring.gene_ontology``).

Not for scoring (``cisterna.scoring.metrics``) and not for turning tokens into text: special tokens are gone
before this.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from cisterna.artifacts import files
from cisterna.errors import UserError
from cisterna.scoring import gene_ontology
from cisterna.scoring.gene_ontology import Ontology

THINK = "<think>"
END_THINK = "</think>"
ANSWER = "Answer: "
SEPARATOR = ", "  # between the terms of a set


def completion(reasoning: str, answer: str) -> str:
    """The text that a model learns to write after the prompt, without the end-of-sequence token."""
    return f"{THINK}{reasoning}{END_THINK}{ANSWER}{answer}"


def parse(output: str, labels: Sequence[str]) -> str | None:
    """The label that an output answers, or None if it is malformed.

    Case, spelling and inner spaces must match a label exactly; white space around the answer is
    ignored. An output without ``</think>`` is malformed, whatever it says.
    """
    answer = _answered(output)
    return answer if answer in tuple(labels) else None


def parse_terms(output: str) -> str | None:
    """The terms that an output answers, sorted, or None if it is malformed.

    At least one id such as GO:0004672, ", " between two, none twice. The text is that of ``join``.
    """
    answer = _answered(output)
    terms = [] if answer is None else answer.split(SEPARATOR)
    if not terms or len(set(terms)) < len(terms) or not all(map(gene_ontology.TERM.fullmatch, terms)):
        return None
    return join(terms)


def join(terms: Iterable[str]) -> str:
    """A set of terms as the text of an answer: sorted, so that equal sets are equal texts."""
    return SEPARATOR.join(sorted(terms))


def split(answer: str) -> list[str]:
    """The terms of an answer that ``join`` or ``parse_terms`` wrote."""
    return answer.split(SEPARATOR)


def _answered(output: str) -> str | None:
    """What stands after the answer's prefix, which has to come right after the last ``</think>``."""
    _, closed, tail = output.rpartition(END_THINK)
    tail = tail.strip()
    return tail.removeprefix(ANSWER) if closed and tail.startswith(ANSWER) else None


@dataclass(frozen=True)
class Labels:
    """The answer space of a task whose answer is one of a list."""

    kind: ClassVar[str] = "labels"
    labels: tuple[str, ...]

    def parse(self, output: str) -> str | None:
        """``parse`` with these labels."""
        return parse(output, self.labels)


@dataclass(frozen=True)
class Terms:
    """The answer space of a task whose answer is a set of terms of an ontology."""

    kind: ClassVar[str] = "terms"
    labels: ClassVar[tuple[str, ...]] = ()
    ontology: Ontology

    def parse(self, output: str) -> str | None:
        """``parse_terms``."""
        return parse_terms(output)


Answers = Labels | Terms


def of(card: Mapping[str, Any], data: Path) -> Answers:
    """The answer space of the task in the folder ``data``, as its card says.

    A card with ``answers: {"kind": "terms", "sha256": ...}`` has the ontology beside it, in terms.json. UserError if
    that file is missing or is not the one of the card.
    """
    said = card.get("answers", {"kind": Labels.kind})
    if said["kind"] == Labels.kind:
        return Labels(tuple(card["labels"]))
    path = Path(data) / gene_ontology.FILE
    found = gene_ontology.load(path)
    digest = files.sha256(path)
    if digest != said["sha256"]:
        raise UserError(
            f"{path}: its SHA-256 is {digest[:12]}, card.json says {said['sha256'][:12]}; it was changed after it was "
            "written. Delete the folder and rerun."
        )
    return Terms(found)
