"""Lenient reading of outputs: the answer that a fair person finds where the form of answer is not kept.

The strict reading (`cisterna.scoring.answers`) is the measure of every study. It scores a model that was never taught
the form 0, whatever it knows. The difference between the two readings is form, not knowledge:

    output                                             strict      lenient
    <think>GU at +1.</think>Answer: donor              donor       donor
    <think>GU at +1.</think>**Final answer:** Donor.   malformed   donor
    The answer is "donor".                             malformed   donor
    Answer:
    donor                                              malformed   donor
    Answer: donor or decoy                             malformed   none
    Answer: not a decoy                                malformed   none

A statement of the answer follows "answer:", "answer is", "answers are", or a line that ends with "answer"; without any
of these it is the whole text after the reasoning. All statements of an output have to give the same answer. The
reasoning itself, up to `</think>`, is never read, and nothing of an output whose reasoning has no end. Of an output
that was cut by `max_new_tokens` its last line, which may be half an answer, is left out.

Never a reward: a model would learn the loosest form. Not for training data, samples or probabilities.
"""

import re
import unicodedata
from collections.abc import Sequence

from cisterna.scoring import answers
from cisterna.scoring.answers import AnswerSpace

_STATEMENT = re.compile(r"\banswers?(?:\s+(?:is|are)\b\s*:?|\s*:|[ \t]*\n)", re.IGNORECASE)
_HEADING = re.compile(r"(?:^|(?<=[.!?\s]))(?:(?:the|my|your|a)\s+)?(?:(?:final|correct|best)\s+)?$", re.IGNORECASE)
_EMPHASIS = re.compile(r"\*\*|__|`|^\s*#+\s*", re.MULTILINE)
_QUOTES = "\"'\u201c\u201d\u2018\u2019\u00ab\u00bb*"
_BRACKETS = {"(": ")", "[": "]", "{": "}"}
_ID = re.compile(r"\bGO:\d{7}\b", re.IGNORECASE)
_NAME = re.compile(r"\([^()]*\)|\[[^\[\]]*\]")  # of a term, after its id
_BEFORE = re.compile(r"\s*(?:[-*•]|\d+[.)])?\s*[\[({]?[\"']?\s*")  # of the first id
# Words that make a list of terms something else than a list of what is true.
_HEDGES = re.compile(
    r"\b(?:not|no|non|never|neither|nor|or|either|without|except|unlike|maybe|perhaps|n't)\b|n't\b", re.I
)


def read(output: str, space: AnswerSpace, finished: bool = True) -> str | None:
    """The answer in an output, written as the strict reading writes it, or None.

    It is that of the strict reading wherever this has one. `finished` is False for an output that was cut.
    """
    if finished and (strict := space.parse(output)) is not None:
        return strict
    text = _after_reasoning(output if finished else output.rpartition("\n")[0])
    if text is None:
        return None
    found = {_read_terms(part) if not space.labels else _read_label(part, space.labels) for part in _statements(text)}
    return found.pop() if len(found) == 1 else None


def _after_reasoning(output: str) -> str | None:
    """The text after the reasoning; all of an output that has none; None where the reasoning has no end."""
    _, closed, after = output.rpartition(answers.END_THINK)
    return after if closed else None if answers.THINK in output else output


def _statements(text: str) -> list[str]:
    """What an output says after each announcement of an answer, empty ones left out; else the whole text."""
    text = _EMPHASIS.sub("", unicodedata.normalize("NFKC", text))
    parts = _STATEMENT.split(text)
    said = [_HEADING.sub("", part).strip() for part in parts[1:-1]] + [parts[-1].strip()]
    return [part for part in said if part]


# --- Labels ---


def _read_label(statement: str, labels: Sequence[str]) -> str | None:
    """The label that a statement begins with, on a line or in a sentence of its own; what follows names no other."""
    first, *rest = statement.split("\n", 1)
    sentence, stop, more = first.partition(". ")
    readings = [(first, "".join(rest)), (sentence, " ".join([more, *rest]))] if stop else [(first, "".join(rest))]
    for head, tail in readings:
        label = _match(head, labels)
        if label is not None:
            others = [other for other in labels if other != label and not _within(other, label)]
            return None if any(_names(tail, other) for other in others) else label
    return None


def _match(text: str, labels: Sequence[str]) -> str | None:
    """The only label that a text is: as it is written, or else plain, or else plain and without its case."""
    for plain in (str.strip, _plain, lambda value: _plain(value).casefold()):
        found = [label for label in labels if plain(label) == plain(text)]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def _plain(text: str) -> str:
    """A text with single spaces, without quotes and brackets around it or a full stop behind it."""
    text = " ".join(_EMPHASIS.sub("", unicodedata.normalize("NFKC", text)).split())
    while text:
        inner = text.rstrip(".!,;:").strip(_QUOTES).strip()
        if inner and _BRACKETS.get(inner[0]) == inner[-1] and not any(mark in inner[1:-1] for mark in "()[]{}"):
            inner = inner[1:-1].strip()
        if inner == text:
            break
        text = inner
    return text


def _within(part: str, whole: str) -> bool:
    return _plain(part).casefold() in _plain(whole).casefold()


def _names(text: str, label: str) -> bool:
    """Whether a text has a label as words of its own, in any case."""
    words = r"\s+".join(map(re.escape, _plain(label).split()))
    return re.search(rf"(?<!\w){words}(?!\w)", _EMPHASIS.sub("", text), re.IGNORECASE) is not None


# --- Sets of terms ---


def _read_terms(statement: str) -> str | None:
    """The ids of a statement that is a list of them: any separators, bullets, names of the terms, repeated ids."""
    before, *rest = _ID.split(statement)
    if not rest or not _BEFORE.fullmatch(before) or any(_HEDGES.search(_NAME.sub("", text)) for text in rest):
        return None
    return answers.join({identifier.upper() for identifier in _ID.findall(statement)})
