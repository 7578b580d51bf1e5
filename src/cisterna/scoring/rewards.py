"""Verifiable rewards: functions of a completion and the gold answer. The recipe names them with their weights:

    rewards: {correct: 2.0, concise: 0.5, format: 1.0, tags: 0.25, "my_file.py:my_reward": 0.3}

The built-in ones (REWARDS) are in [0, 1] and read the completion with `cisterna.scoring.answers`, the strict parser
that evaluation uses too, so that training rewards what evaluation scores. A name of the form PATH:FUNCTION is a reward
function of the user (`own`). docs/rewards.md says what each pays, how it can be gamed, and how to detect that.

Not for stopping runs without reward variance: see `cisterna.training.guards`.
"""

import functools
import importlib.machinery
import importlib.util
import math
import numbers
import re
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from cisterna.artifacts import files
from cisterna.constants import ANSWER, TERM_REWARDS
from cisterna.errors import UserError
from cisterna.scoring import answers, gene_ontology, term_sets
from cisterna.scoring.answers import END_THINK, THINK, AnswerSpace, Terms
from cisterna.sequences import conventions
from cisterna.sequences.tokenization import decode_completion

CONCISE = 20  # words outside the reasoning, if the recipe has no `concise_words`; our own number, for sets of 19 terms
TAGS = (THINK, END_THINK, ANSWER)
SHOWN = 200  # characters of a completion in an error
_FORM = re.compile(
    rf"\s*{re.escape(THINK)}(?P<reasoning>.*?){re.escape(END_THINK)}\s*{re.escape(ANSWER)}[^\n]*\s*", re.DOTALL
)


def correct(output: str, answer: str, space: AnswerSpace) -> float:
    """1 if the parsed answer is the gold answer, else 0."""
    return float(space.parse(output) == answer)


def well_formed(output: str, answer: str, space: AnswerSpace) -> float:
    """1 if the output ends in exactly one answer of the answer space, right or wrong, else 0."""
    return float(space.parse(output) is not None)


def concise(output: str, answer: str, space: AnswerSpace, words: int = CONCISE) -> float:
    """1 if the answer is right and at most `words` words are outside the first think block, else 0."""
    before, opened, rest = output.partition(THINK)
    _, closed, after = rest.partition(END_THINK)
    outside = before + " " + after if opened and closed else output
    return correct(output, answer, space) * float(len(outside.split()) <= words)


def well_ordered(output: str, answer: str, space: AnswerSpace, thinking: bool = True) -> float:
    """1 if the whole output is one think block with text in it, then one answer of the answer space, else 0.

    No tag and no `Answer: ` may occur twice, not even in the reasoning. The think block has no text in it where the
    chat template switches `thinking` off, and writes the block itself.
    """
    match = _FORM.fullmatch(output) if all(output.count(tag) == 1 for tag in TAGS) else None
    thought = match is not None and match["reasoning"].strip() != ""
    return float(match is not None and thought == thinking and space.parse(output) is not None)


def tags(output: str, answer: str, space: AnswerSpace) -> float:
    """A third for each of TAGS that occurs exactly once; 0 if these are not in the order of TAGS."""
    places = [output.find(tag) for tag in TAGS if output.count(tag) == 1]
    return len(places) / len(TAGS) if places == sorted(places) else 0.0


def go_f1(output: str, answer: str, space: AnswerSpace) -> float:
    """F1 of the answered terms against the gold terms, both propagated (`cisterna.scoring.term_sets.f1`).

    Weighted by information accretion where the task has weights. 0 for a malformed output.
    """
    assert isinstance(space, Terms), "refused in `trl_functions`"
    parsed = space.parse(output)
    return 0.0 if parsed is None else term_sets.f1(answers.split(parsed), answers.split(answer), space.ontology)


Reward = Callable[[str, str, AnswerSpace], float]

REWARDS: dict[str, Reward] = {
    "correct": correct,
    "concise": concise,
    "format": well_ordered,
    "tags": tags,
    "well_formed": well_formed,
    "go_f1": go_f1,
}


def is_own(name: str) -> bool:
    """Whether a reward's name is PATH:FUNCTION: a reward function of the user."""
    return ":" in name


def hashes(names: Iterable[str], card: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of what rewards depend on besides recipe and splits, for a stage's manifest.

    The SHA-256 of each file with the user's own rewards, as `reward PATH`, and where the task's answers are sets of
    terms, that of its ontology. A run does not resume from state with other hashes.
    """
    paths = sorted({name.rpartition(":")[0] for name in names if is_own(name)})
    hashed = {f"reward {path}": files.sha256(_file(path)) for path in paths}
    described = card.get("answers", {})
    return hashed | ({gene_ontology.FILE: described["sha256"]} if "sha256" in described else {})


def trl_functions(
    weights: Mapping[str, float], space: AnswerSpace, tokenizer: Any, concise_words: int = CONCISE
) -> tuple[list[Callable], list[float]]:
    """TRL reward functions and their weights, in the order of `weights`. `concise_words` is the limit of `concise`.

    UserError for a reward that does not exist, that is not for answers of this kind, or whose file cannot be loaded.

    Completions are decoded from their token ids, as in evaluation, because TRL's text leaves control tokens out. A
    completion without the end-of-text token was cut off and earns nothing.
    """
    if unknown := sorted(name for name in weights if name not in REWARDS and not is_own(name)):
        raise UserError(
            f"rewards {unknown} do not exist; there are {sorted(REWARDS)}, and PATH:FUNCTION for a function of your own"
        )
    misplaced = sorted(TERM_REWARDS.intersection(weights)) if space.kind != Terms.kind else []
    if misplaced:
        raise UserError(
            f"rewards {misplaced} compare sets of GO terms, and the answers of this task are {space.kind}; use correct"
        )

    known = REWARDS | {
        "concise": functools.partial(concise, words=concise_words),
        "format": functools.partial(well_ordered, thinking=conventions.of(tokenizer).thinking),
    }

    def wrap(name: str) -> Callable:
        function = own(name) if is_own(name) else known[name]

        def reward(completion_ids: list[list[int]], answer: list[str], **_: object) -> list[float]:
            values = []
            for index, (ids, gold) in enumerate(zip(completion_ids, answer, strict=True)):
                text, finished = decode_completion(tokenizer, ids)
                try:
                    values.append(function(text, gold, space) if finished else 0.0)
                except _OwnError as error:
                    beginning = repr(text if len(text) <= SHOWN else f"{text[:SHOWN]} ...")
                    raise UserError(f"{error}; in completion {index} of {len(answer)}: {beginning}") from error
            return values

        # TRL logs the mean under this name, and separates the parts of its keys with /.
        reward.__name__ = name.replace("/", ".")
        return reward

    return [wrap(name) for name in weights], [float(weight) for weight in weights.values()]


# --- Reward functions of the user ---


class _OwnError(Exception):
    """A reward function of the user failed; the message says where."""


def own(name: str) -> Reward:
    """The reward PATH:FUNCTION, with PATH relative to the root of the clone, in which all commands are run.

    The function has the signature

        def my_reward(output: str, answer: str, labels: Sequence[str]) -> float

    `output` is the model's text before the end-of-text token; `answer` is the gold answer; `labels` is the answer
    space, empty where answers are sets of terms. The number has to be finite; in [0, 1] it is comparable with the
    built-in rewards. UserError if there is no such file or function, or if the file cannot be run.
    """
    path, _, attribute = name.rpartition(":")
    file = _file(path)
    module = _run(file)
    function = getattr(module, attribute, None)
    if not callable(function):
        own_names = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        raise UserError(
            f"{file}: has no function {attribute!r}, which the reward {name!r} names. It defines: "
            f"{', '.join(sorted(own_names)) or 'nothing'}."
        )

    def reward(output: str, answer: str, space: AnswerSpace) -> float:
        try:
            value = function(output, answer, space.labels)
        except Exception as error:
            raise _OwnError(f"{_place(error, file)}: the reward failed: {type(error).__name__}: {error}") from error
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            line = function.__code__.co_firstlineno if hasattr(function, "__code__") else 1
            raise _OwnError(f"{file}:{line}: {attribute} returned {value!r}, and a reward has to be a finite number")
        return float(value)

    return reward


def _file(path: str) -> Path:
    if not Path(path).is_file():
        raise UserError(
            f"{path}: no such file; a reward of the recipe names it as PATH:FUNCTION, relative to the root of the clone"
        )
    return Path(path)


class _Loader(importlib.machinery.SourceFileLoader):
    """Always compiles the source: cached bytecode is checked by time and size only, and may be of an earlier text."""

    def get_code(self, fullname: str) -> Any:
        return self.source_to_code(self.get_data(self.path), self.path)


def _run(file: Path) -> ModuleType:
    """Import a file as a module. UserError with the line at which that fails."""
    loader = _Loader(f"cisterna_reward_{file.stem}", str(file))
    spec = importlib.util.spec_from_file_location(loader.name, file, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
    except Exception as error:
        raise UserError(
            f"{_place(error, file)}: this file of rewards cannot be run: {type(error).__name__}: {error}"
        ) from error
    return module


def _place(error: Exception, file: Path) -> str:
    """PATH:LINE of an error: the last line of `file` in its traceback, or the line of a syntax error."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f"{file}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f"{file}:{lines[-1]}" if lines else str(file)
