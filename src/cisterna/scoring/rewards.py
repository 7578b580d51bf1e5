"""Verifiable rewards: functions of a completion and the gold answer. Weights are the recipe's.

    rewards: {correct: 2.0, concise: 0.5, format: 0.5, tags: 0.25, "my_file.py:my_reward": 0.3}

Those of REWARDS are in [0, 1] and read the completion through `cisterna.scoring.answers`, the same strict reader that
evaluation uses, so that what is rewarded is what is scored. A name of the form PATH:FUNCTION is a function of the
user's own (`own`). docs/rewards.md says what each pays, how it can be gamed, and what shows it.

Not for how a run is stopped that has nothing to learn from: see `cisterna.training.guards`.
"""

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
from cisterna.errors import UserError
from cisterna.scoring import answers, gene_ontology
from cisterna.scoring.answers import ANSWER, END_THINK, THINK, Answers, Terms
from cisterna.sequences import tokenization

CONCISE = 20  # words beside the reasoning; BioReason's limit for the text after </think>
TAGS = (THINK, END_THINK, ANSWER)
_FORM = re.compile(
    rf"\s*{re.escape(THINK)}(?P<reasoning>.*?){re.escape(END_THINK)}\s*{re.escape(ANSWER)}[^\n]*\s*", re.DOTALL
)


def correct(output: str, answer: str, space: Answers) -> float:
    """1 if the parsed answer is the gold answer, else 0."""
    return float(space.parse(output) == answer)


def well_formed(output: str, answer: str, space: Answers) -> float:
    """1 if the output ends in exactly one answer of the answer space, right or wrong, else 0."""
    return float(space.parse(output) is not None)


def concise(output: str, answer: str, space: Answers) -> float:
    """1 if the answer is right and at most CONCISE words stand outside the first think block, else 0."""
    before, opened, rest = output.partition(THINK)
    _, closed, after = rest.partition(END_THINK)
    beside = before + " " + after if opened and closed else output
    return correct(output, answer, space) * float(len(beside.split()) <= CONCISE)


def well_ordered(output: str, answer: str, space: Answers) -> float:
    """1 if the whole output is one think block with text in it, then one answer of the answer space, else 0.

    No tag or answer may stand a second time, the reasoning included.
    """
    found = _FORM.fullmatch(output)
    once = all(output.count(tag) == 1 for tag in TAGS)
    return float(found is not None and once and bool(found["reasoning"].strip()) and space.parse(output) is not None)


def tags(output: str, answer: str, space: Answers) -> float:
    """A third for each of TAGS that occurs exactly once; 0 if those that do are not in their order."""
    places = [output.find(tag) for tag in TAGS if output.count(tag) == 1]
    return len(places) / len(TAGS) if places == sorted(places) else 0.0


def go_f1(output: str, answer: str, space: Answers) -> float:
    """F1 of the answered terms against the gold terms, both propagated (`cisterna.scoring.gene_ontology.Ontology.f1`).

    Weighted by information accretion where the task has weights. 0 for a malformed output.
    """
    assert isinstance(space, Terms), "refused in `trl_functions`"
    parsed = space.parse(output)
    return 0.0 if parsed is None else space.ontology.f1(answers.split(parsed), answers.split(answer))


Reward = Callable[[str, str, Answers], float]

REWARDS: dict[str, Reward] = {
    "correct": correct,
    "concise": concise,
    "format": well_ordered,
    "tags": tags,
    "well_formed": well_formed,
    "go_f1": go_f1,
}
OF_TERMS = frozenset({"go_f1"})  # those that compare sets of terms


def is_own(name: str) -> bool:
    """Whether a name of a recipe is PATH:FUNCTION, a reward of the user's own."""
    return ":" in name


def hashes(names: Iterable[str], card: Mapping[str, Any]) -> dict[str, str]:
    """What decides rewards beside recipe and splits, as hashes for a stage's manifest.

    The SHA-256 of the files that hold the user's own rewards, by `reward PATH`, and where the task's answers are sets
    of terms, that of its ontology. State that another file left is not resumed.
    """
    paths = sorted({name.rpartition(":")[0] for name in names if is_own(name)})
    found = {f"reward {path}": files.sha256(_file(path)) for path in paths}
    said = card.get("answers", {})
    return found | ({gene_ontology.FILE: said["sha256"]} if "sha256" in said else {})


def trl_functions(weights: Mapping[str, float], space: Answers, tokens: Any) -> tuple[list[Callable], list[float]]:
    """TRL reward functions and their weights, in the order of `weights`.

    UserError for a reward that does not exist, that is not for answers of this kind, or whose file cannot be loaded.

    Completions are read from their ids with the tokenizer `tokens`, as in evaluation: TRL's text leaves control tokens
    out. A completion without the end-of-text token was cut off; it is unfinished and earns nothing.
    """
    unknown = sorted(name for name in weights if name not in REWARDS and not is_own(name))
    if unknown:
        raise UserError(
            f"rewards {unknown} do not exist; there are {sorted(REWARDS)}, and PATH:FUNCTION for a function of your own"
        )
    misplaced = sorted(set(weights) & OF_TERMS) if space.kind != Terms.kind else []
    if misplaced:
        raise UserError(
            f"rewards {misplaced} compare sets of GO terms, and the answers of this task are {space.kind}; use correct"
        )

    def wrap(name: str) -> Callable:
        function = own(name) if is_own(name) else REWARDS[name]

        def reward(completion_ids: list[list[int]], answer: list[str], **_: object) -> list[float]:
            read = (tokenization.decode_completion(tokens, ids) for ids in completion_ids)
            found = []
            for index, ((text, finished), gold) in enumerate(zip(read, answer, strict=True)):
                try:
                    found.append(function(text, gold, space) if finished else 0.0)
                except _OwnError as error:
                    raise UserError(f"{error}; in completion {index} of {len(answer)}: {_shown(text)}") from error
            return found

        # TRL logs means under this name, and its keys are parts with a / between them.
        reward.__name__ = name.replace("/", ".")
        return reward

    return [wrap(name) for name in weights], [float(weight) for weight in weights.values()]


# --- The user's own ---


class _OwnError(Exception):
    """A reward of the user's own failed; the message says where."""


def own(name: str) -> Reward:
    """The reward PATH:FUNCTION, with PATH relative to the root of the clone, from which all commands are run.

    The function has the signature

        def my_reward(output: str, answer: str, labels: Sequence[str]) -> float

    `output` is what the model wrote up to the end-of-text token, which is not part of it; `answer` is the gold answer;
    `labels` is the answer space, empty where answers are sets of terms. The number has to be finite; [0, 1] keeps
    weights comparable. UserError if there is no such file or function, or if the file cannot be run.
    """
    path, _, attribute = name.rpartition(":")
    file = _file(path)
    module = _run(file)
    function = getattr(module, attribute, None)
    if not callable(function):
        there = sorted(
            key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__
        )
        raise UserError(
            f"{file}: has no function {attribute!r}, which the reward {name!r} names. It defines: "
            f"{', '.join(there) or 'nothing'}."
        )

    def reward(output: str, answer: str, space: Answers) -> float:
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
    """Compiles what the file holds now: bytecode kept from before goes by its time and size."""

    def get_code(self, fullname: str) -> Any:
        return self.source_to_code(self.get_data(self.path), self.path)


def _run(file: Path) -> ModuleType:
    """The module that a file makes. UserError with the line at which it fails."""
    spec = importlib.util.spec_from_file_location(
        f"cisterna_reward_{file.stem}", file, loader=_Loader(f"cisterna_reward_{file.stem}", str(file))
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(
            f"{_place(error, file)}: a file of rewards that cannot be run: {type(error).__name__}: {error}"
        ) from error
    return module


def _place(error: Exception, file: Path) -> str:
    """PATH:LINE of the last line of `file` that an error passed through; of a syntax error its own."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f"{file}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f"{file}:{lines[-1]}" if lines else str(file)


def _shown(text: str, length: int = 200) -> str:
    return repr(text if len(text) <= length else text[:length] + " ...")
