"""Answers: the one reading of a model's output, and the answer spaces of tasks, which know how to score.

An output counts only if the text after the last `</think>` is exactly one `Answer: X` with X in the task's answer
space. Answers are parsed, never searched for, so an output that names several labels, or mentions the right one in
passing, earns nothing:

    <think>GT at +1, +2; purine at +3.</think>Answer: donor      -> donor
    <think>It is a donor.</think>donor                           -> malformed
    <think>Hm.</think>Answer: donor or decoy                     -> malformed

There are two kinds of answer space. `Labels` is a closed list, as above. `Terms` is every set of Gene Ontology terms,
written as ids with ", " between them, in any order, without repetition:

    <think>A kinase.</think>Answer: GO:0005524, GO:0004672       -> GO:0004672, GO:0005524
    <think>A kinase.</think>Answer: GO:0004672 GO:0005524        -> malformed
    <think>A kinase.</think>Answer: GO:0004672, GO:0004672       -> malformed

A well-formed id that is not in the ontology is read, and counts as wrong (`cisterna.scoring.term_sets`).

Rewards, evaluation and training data all use this module. Not for turning token ids into text: that removes special
tokens first.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from cisterna.artifacts import files
from cisterna.constants import ANSWER
from cisterna.errors import UserError
from cisterna.scoring import gene_ontology, metrics, term_sets
from cisterna.scoring.bootstrap import RESAMPLES, Summary
from cisterna.scoring.gene_ontology import Ontology
from cisterna.sequences import tokenization

THINK = "<think>"
END_THINK = "</think>"
SEPARATOR = ", "  # between the terms of a set

Gold = Sequence[str]
Predicted = Sequence[str | None]  # None or NaN for a malformed output
Scores = dict[str, Summary]


def completion(reasoning: str, answer: str) -> str:
    """The text that a model is trained to write after the prompt, without the end-of-text token."""
    return f"{THINK}{reasoning}{END_THINK}{ANSWER}{answer}"


def parse(output: str, labels: Sequence[str]) -> str | None:
    """The label that an output answers, or None if it is malformed, as every output without `</think>` is.

    Case, spelling and inner spaces must match a label exactly; white space around the answer is ignored.
    """
    answer = _answered(output)
    return answer if answer in tuple(labels) else None


def parse_terms(output: str) -> str | None:
    """The terms that an output answers, as `join` writes them, or None if it is malformed.

    An answer is one or more different ids such as GO:0004672 with ", " between them.
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
    """The terms of an answer that `join` or `parse_terms` wrote."""
    return answer.split(SEPARATOR)


def check_written(space: "AnswerSpace", answers: Iterable[str], tokenizer: Any, source: object) -> None:
    """UserError for an answer that a model with this tokenizer could not give, because its text comes back changed.

    Checked are all labels; of sets of terms each term in `answers`.
    """
    terms = (term for answer in answers for term in split(answer))
    unique = list(space.labels or dict.fromkeys(terms))
    texts = [completion("", answer) for answer in tokenization.escape(tokenizer, unique)]
    for answer, ids in zip(unique, tokenization.encode_completions(tokenizer, texts), strict=True):
        output, _ = tokenization.decode_completion(tokenizer, ids)
        if space.parse(output) != answer:
            change = tokenization.CHANGES.format(ANSWER + answer, output.rpartition(END_THINK)[2])
            raise UserError(f"{source}: the answer {answer!r} cannot be given: the tokenizer of the backbone {change}")


def _answered(output: str) -> str | None:
    """The text after the answer's prefix, which has to come directly after the last `</think>`."""
    _, closed, tail = output.rpartition(END_THINK)
    tail = tail.strip()
    return tail.removeprefix(ANSWER) if closed and tail.startswith(ANSWER) else None


@dataclass(frozen=True)
class Labels:
    """The answer space of a task whose answer is one of a list."""

    kind: ClassVar[str] = "labels"
    group_metrics: ClassVar[tuple[str, ...]] = ("accuracy", "balanced_accuracy")  # of a group of examples
    labels: tuple[str, ...]

    def parse(self, output: str) -> str | None:
        """`parse` with these labels."""
        return parse(output, self.labels)

    def canonical(self, answer: str) -> str:
        """A text that is the same for answers that mean the same."""
        return answer

    def score(self, gold: Gold, predicted: Predicted, seed: int = 0, resamples: int = RESAMPLES) -> Scores:
        """`cisterna.scoring.metrics.score` with these labels."""
        return metrics.score(gold, predicted, self.labels, seed, resamples)

    def difference(
        self, gold: Gold, predicted_a: Predicted, predicted_b: Predicted, seed: int = 0, resamples: int = RESAMPLES
    ) -> Scores:
        """`cisterna.scoring.metrics.difference` with these labels."""
        return metrics.difference(gold, predicted_a, predicted_b, self.labels, seed, resamples)


@dataclass(frozen=True)
class Terms:
    """The answer space of a task whose answer is a set of terms of an ontology."""

    kind: ClassVar[str] = "terms"
    group_metrics: ClassVar[tuple[str, ...]] = ("accuracy", "f1_micro")
    labels: ClassVar[tuple[str, ...]] = ()
    ontology: Ontology

    def parse(self, output: str) -> str | None:
        """`parse_terms`."""
        return parse_terms(output)

    def canonical(self, answer: str) -> str:
        """A text that is the same for answers that mean the same: the terms and all that they imply."""
        return join(self.ontology.propagate(split(answer)))

    def score(self, gold: Gold, predicted: Predicted, seed: int = 0, resamples: int = RESAMPLES) -> Scores:
        """`cisterna.scoring.term_sets.score` with this ontology."""
        return term_sets.score(_sets(gold), _sets(predicted), self.ontology, seed, resamples)

    def difference(
        self, gold: Gold, predicted_a: Predicted, predicted_b: Predicted, seed: int = 0, resamples: int = RESAMPLES
    ) -> Scores:
        """`cisterna.scoring.term_sets.difference` with this ontology."""
        first, second = _sets(predicted_a), _sets(predicted_b)
        return term_sets.difference(_sets(gold), first, second, self.ontology, seed, resamples)


AnswerSpace = Labels | Terms


def load_space(card: Mapping[str, Any], data: Path) -> AnswerSpace:
    """The answer space of the task in the folder `data`, as its card describes it.

    A card with `answers: {"kind": "terms", "sha256": ...}` comes with the ontology in terms.json. UserError if that
    file is missing or is not the one of the card.
    """
    described = card.get("answers", {"kind": Labels.kind})
    if described["kind"] == Labels.kind:
        return Labels(tuple(card["labels"]))
    path = Path(data) / gene_ontology.FILE
    ontology = gene_ontology.load(path)
    digest = files.sha256(path)
    if digest != described["sha256"]:
        raise UserError(
            f"{path}: its SHA-256 is {digest[:12]}, and {described['sha256'][:12]} in card.json: it was changed after "
            "it was written. Delete the folder and rerun."
        )
    return Terms(ontology)


def _sets(texts: Iterable[str | None]) -> list[Any]:
    """The ids of each answer; None for a malformed output (None or NaN)."""
    return [split(text) if isinstance(text, str) else None for text in texts]
