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

What is read is the text after the reasoning; nothing of an output whose reasoning has no end. `statements` finds where
it states an answer, `read_label` and `read_terms` say which. All statements have to give the same one: an answer that
is not in the answer space is another answer. Of an output that was cut by `max_new_tokens` the end, which may be half
an answer, is left out. In doubt there is no answer, and a label inside a longer sentence is none.

Never a reward: a model would learn the loosest form. Not for training data, samples or probabilities.
"""

import functools
import re
import unicodedata
from collections.abc import Callable, Sequence

from cisterna.scoring import answers
from cisterna.scoring.answers import AnswerSpace, Gold, Predicted, Scores
from cisterna.scoring.bootstrap import RESAMPLES

Reader = Callable[[str], str | None]
METRICS = {"accuracy": "accuracy_lenient", "f1_micro": "f1_micro_lenient"}  # by the strict one; a space may have one

# What announces an answer: "Answer:", "**Final answer**:", "The answer is", a line with nothing but "### Answer".
_MARKS = r"[*_`\"'#>$ \t]*"
_WORDS = r"(?:\b(?:the|my|your|an)\s+)?(?:\b(?:final|correct|best|most likely)\s+)*\banswers?\b"
_HEADING = re.compile(rf"^{_MARKS}{_WORDS}{_MARKS}\n", re.IGNORECASE | re.MULTILINE)
_ANNOUNCEMENT = re.compile(  # with the marks that close it, and not those that an answer may begin with, such as >1
    rf"{_WORDS}{_MARKS}(?:[:=]|\b(?:is|are)\b\s*:?)(?:[*_`\"']+(?=\s))?[ \t]*|{_HEADING.pattern}",
    re.IGNORECASE | re.MULTILINE,
)
# Other ways to write "Answer:": LaTeX's \boxed{donor}, and tags as in <answer>donor</answer>.
_LATEX_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}")
_MARKED = re.compile(r"\\boxed\{([^{}]*)\}|<answer>((?:(?!<answer>).)*?)</answer>", re.IGNORECASE | re.DOTALL)

_NEGATION = re.compile(r"\b(?:not?|never|neither|nor|wrong|incorrect|false|cannot)\b|n['\u2019]t\b", re.IGNORECASE)
_DOUBT = re.compile(
    rf"{_NEGATION.pattern}|\b(?:or|either|if|whether|without|except|excluding|unlike|unlikely|maybe|perhaps|possibly|"
    r"might|could|uncertain|unclear|unknown|none)\b|\?",
    re.IGNORECASE,
)

# What an unfinished sentence says that does not give the label of the next line as the answer.
_UNSETTLED = re.compile(
    rf"{_DOUBT.pattern}|\b(?:rule[sd]?\s+out|exclude[sd]?|eliminate[sd]?|reject(?:s|ed)?|options?|choices?|"
    r"candidates?|possibilities|possible|labels?)\b",
    re.IGNORECASE,
)

_QUOTES = "\"'`*_$\u201c\u201d\u2018\u2019\u00ab\u00bb"
_BRACKETS = {"(": ")", "[": "]", "{": "}"}

_ID = re.compile(r"\bGO[:_]\s?([0-9]{7})\b", re.IGNORECASE)
_OPENING = (
    r"\s*(?:[-*\u2022]\s+|[0-9]{1,3}[.)]\s+)?"  # a bullet or a number
    r"(?:\**(?:molecular[ _]function|biological[ _]process|cellular[ _]component|MF|BP|CC)\**:\**\s*)?"
    r"(?:[-*\u2022]\s+|[0-9]{1,3}[.)]\s+)?[\[({\"'`*_]*"
)
_FIRST = re.compile(_OPENING, re.IGNORECASE)  # before the first id of a list
_BETWEEN = re.compile(rf"[\])}}\"'`*_.\s]*\s{_OPENING}|(?P<name>.*?)(?:[,;|&\n]|\band\s){_OPENING}", re.I | re.DOTALL)
_NESTED = re.compile(r"\(((?:[^()]|\([^()]*\))*)\)|\[([^\[\]]*)\]")  # such as the name of a term, after its id


def read(output: str, space: AnswerSpace, finished: bool = True) -> str | None:
    """The answer in an output, written as the strict reading writes it, or None.

    It is that of the strict reading wherever this has one. `finished` is False for an output that was cut.
    """
    if finished and (strict := space.parse(output)) is not None:
        return strict
    text = after_reasoning(unicodedata.normalize("NFKC", output))
    if text is None:
        return None
    labels = space.labels
    if not labels:
        return the_same(text if finished else text[: paragraph_end(text)], read_terms, read_bare_terms)
    kept = text if finished else text[: sentence_end(text, labels)]
    reader, line_reader = functools.partial(read_label, labels=labels), functools.partial(match, labels=labels)
    label = the_same(kept, reader, line_reader)
    return None if label is None or contradicted(text[len(kept) :], label, labels) else label


def score(gold: Gold, found: Predicted, space: AnswerSpace, seed: int = 0, resamples: int = RESAMPLES) -> Scores:
    """The METRICS of the answers that `read` has found, with intervals, as `space.score` gives those of the strict."""
    summaries = space.score(gold, found, seed, resamples)
    return {name: summaries[strict] for strict, name in METRICS.items() if strict in summaries}


# --- What is read ---


def after_reasoning(output: str) -> str | None:
    """The text after the reasoning; all of an output that has none; None where a reasoning has no end."""
    _, _, after = output.rpartition(answers.END_THINK)
    return None if answers.THINK in after else after.strip()


def sentence_end(text: str, labels: Sequence[str]) -> int:
    """Where the last whole line of a text that was cut ends, or its last whole sentence if no label has two."""
    ends = list(re.finditer(r"\n" if _have_stops(labels) else r"\n|(?<=[.!])\s", text))
    return ends[-1].start() if ends else 0


def paragraph_end(text: str) -> int:
    """Where the last whole paragraph of a text that was cut ends; 0 if ids come later: their list may go on."""
    end = max(text.rfind("\n\n"), 0)
    return 0 if re.search(r"\bGO\b", text[end:], re.IGNORECASE) else end


def the_same(text: str, reader: Reader, line_reader: Reader) -> str | None:
    """What all statements of a text give, if they give the same; None if one of them gives nothing.

    A line before them in which `line_reader` finds an answer is one of them.
    """
    before, stated = statements(text, line_reader)
    found = {reader(statement) for statement in stated}
    found |= {answer for answer in map(line_reader, before.splitlines()) if answer is not None}
    return found.pop() if len(found) == 1 else None


def statements(text: str, line_reader: Reader) -> tuple[str, list[str]]:
    """The text before the first announcement of an answer, and what is said after each one, up to the next.

    An announcement in a sentence with a negation or doubt, such as "I don't think the answer is", states nothing that
    can be read: the sentence is kept whole. A line with nothing but "answer" announces none if `line_reader` finds an
    answer there. Without any announcement all of the text is one statement. Empty statements are left out.
    """
    text = _MARKED.sub(lambda found: f"\nAnswer: {found[1] or found[2] or ''}\n", _LATEX_TEXT.sub(r"\1", text))
    found = [
        one for one in _ANNOUNCEMENT.finditer(text) if not (_HEADING.fullmatch(one[0]) and line_reader(one[0].strip()))
    ]
    if not found:
        return "", [text]
    stated = []
    for last, one, following in zip([None, *found[:-1]], found, [*found[1:], None], strict=True):
        sentence = re.split(r"[\n.!?;]", text[last.end() if last else 0 : one.start()])[-1]
        begin = one.start() - len(sentence) if _DOUBT.search(sentence) else one.end()
        stated.append(text[begin : following.start() if following else len(text)].strip())
    return text[: found[0].start()], [one for one in stated if re.search(r"\w|[-+]", one)]


# --- Labels ---


def read_label(statement: str, labels: Sequence[str]) -> str | None:
    """The label that is the first line or sentence of a statement, or its last line.

    None if the statement mentions another label anywhere, or denies the label.
    """
    lines = [line for line in statement.splitlines() if line.strip()]
    heads = lines[:1]
    if lines and not _have_stops(labels):
        heads.append(re.split(r"(?<=[.!])\s", lines[0].strip())[0])
    if len(lines) > 1 and not _unsettled(lines):
        heads.append(lines[-1])
    label = next(filter(None, (match(head, labels) for head in heads)), None)
    return None if label is None or contradicted(statement, label, labels) else label


def _unsettled(lines: Sequence[str]) -> bool:
    """Whether a label in the last line is no answer: the text begins with a doubt, or the line before is open.

    As in "not clear.", and in "It is certainly not:", "Options that can be excluded:", "Options:".
    """
    begin = plain(lines[0])
    doubted = _DOUBT.match(begin) and not re.match(r"no\b", begin, re.IGNORECASE)  # "No splice site is lost."
    return bool(doubted or _UNSETTLED.search(re.split(r"[.!?;]", lines[-2])[-1]))


def contradicted(text: str, label: str, labels: Sequence[str]) -> bool:
    """Whether a text mentions another label, or has a negation in a sentence that mentions this one."""
    if mentioned(text, labels) - {label}:
        return True
    sentences = [one for one in re.split(r"[.!?;\n]", text) if mentioned(one, labels)]
    return any(_NEGATION.search(_mention(tuple(labels)).sub(" ", one)) for one in sentences)


def match(text: str, labels: Sequence[str]) -> str | None:
    """The only label that a text is: as it is written, or else plain, or else plain and in any case."""
    for known, spelling in zip(_spellings(tuple(labels)), (text.strip(), plain(text), _folded(text)), strict=True):
        if found := known.get(spelling):
            return found[0] if len(found) == 1 else None
    return None


def plain(text: str) -> str:
    """A text with single spaces, without quotes, marks and brackets around it or a full stop behind it."""
    text = " ".join(unicodedata.normalize("NFKC", text).split())
    while True:
        inner = text.rstrip(".!,;:").strip(_QUOTES).strip()
        inner = re.sub(r"^(?:#+|(?:>|[-*\u2022])(?!\s*[0-9]))\s+", "", inner)  # "> 1" and "- 1" may be no 1
        if inner and _BRACKETS.get(inner[0]) == inner[-1] and not re.search(r"[()\[\]{}]", inner[1:-1]):
            inner = inner[1:-1].strip()
        if inner in ("", text):
            return text
        text = inner


def mentioned(text: str, labels: Sequence[str]) -> set[str]:
    """The labels that a text has as words of their own, in any case. The longest counts where one is within another."""
    known = _spellings(tuple(labels))[-1]
    found = set(_mention(tuple(labels)).findall(text))
    # The letters that a pattern ignores the case of are not quite those of casefold.
    return {text if text in labels else known.get(_folded(text), [text])[0] for text in found}


def _folded(text: str) -> str:
    return plain(text).casefold()


def _have_stops(labels: Sequence[str]) -> bool:
    return any(re.search(r"[.!]\s", label) for label in labels)


@functools.lru_cache
def _spellings(labels: tuple[str, ...]) -> tuple[dict[str, list[str]], ...]:
    """The labels by their text, by their plain text, and by that in any case."""
    found: tuple[dict[str, list[str]], ...] = ({}, {}, {})
    for label in labels:
        for known, spelling in zip(found, (label, plain(label), _folded(label)), strict=True):
            known.setdefault(spelling, []).append(label)
    return found


@functools.lru_cache
def _mention(labels: tuple[str, ...]) -> re.Pattern[str]:
    texts = sorted({*labels, *map(plain, labels)}, key=len, reverse=True)
    words = [r"\s+".join(map(re.escape, text.split())) for text in texts]
    return re.compile(rf"(?<!\w)(?:{'|'.join(words)})(?!\w)", re.IGNORECASE)


# --- Sets of terms ---


def read_terms(statement: str) -> str | None:
    """The ids that a statement begins with: a list with any separators, bullets, names of the terms, repeated ids.

    None if there is a negation or doubt in the list or in the rest of its paragraph, or another id in a sentence.
    """
    before, *parts = _ID.split(statement)
    identifiers, texts = parts[::2], parts[1::2]
    if not identifiers or not _FIRST.fullmatch(before):
        return None
    between = [_BETWEEN.fullmatch(text) for text in texts[:-1]]
    names = [one["name"] or "" for one in between if one] + [texts[-1].partition("\n\n")[0]]
    if not all(between) or any(_doubted(name) for name in names):
        return None
    return answers.join({f"GO:{identifier}" for identifier in identifiers})


def read_bare_terms(line: str) -> str | None:
    """The ids of a line that has nothing else."""
    return None if re.search(r"\w", _ID.sub("", line)) else read_terms(line)


def _doubted(name: str) -> bool:
    """Whether what stands after an id is not the name of a term, which may have "or" within brackets, but a doubt."""
    brackets = [one[1] or one[2] or "" for one in _NESTED.finditer(name)]
    rest = _NESTED.sub(" ", name)
    starts = any(_DOUBT.match(text.strip().removeprefix("but ")) for text in brackets)
    return starts or bool(_DOUBT.search(rest)) or re.search(r"\bGO[:_]", name, re.IGNORECASE) is not None
