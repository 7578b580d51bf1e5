"""The one reading of a model's output, shared by rewards, evaluation and training data.

An output counts only if the text after the last ``</think>`` is exactly one ``Answer: X`` with X in
the task's answer space. Answers are parsed, never searched for, so naming several labels, or the
right one in passing, earns nothing:

    <think>GT at +1, +2; purine at +3.</think>Answer: donor      -> donor
    <think>It is a donor.</think>donor                           -> malformed
    <think>Hm.</think>Answer: donor or decoy                     -> malformed

Not for scoring (``cisterna.metrics``) and not for turning tokens into text: special tokens are gone
before this.
"""

from collections.abc import Sequence

THINK = "<think>"
END_THINK = "</think>"
ANSWER = "Answer: "


def completion(reasoning: str, answer: str) -> str:
    """The text that a model learns to write after the prompt, without the end-of-sequence token."""
    return f"{THINK}{reasoning}{END_THINK}{ANSWER}{answer}"


def parse(output: str, labels: Sequence[str]) -> str | None:
    """The label that an output answers, or None if it is malformed.

    Case, spelling and inner spaces must match a label exactly; white space around the answer is
    ignored. An output without ``</think>`` is malformed, whatever it says.
    """
    _, closed, tail = output.rpartition(END_THINK)
    tail = tail.strip()
    if not closed or not tail.startswith(ANSWER):
        return None
    answer = tail.removeprefix(ANSWER)
    return answer if answer in tuple(labels) else None
