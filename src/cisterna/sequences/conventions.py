"""Conventions of a backbone: how its texts begin and end, what its chat template writes, how much it reads.

`derive` reads them once, when the base checkpoint is made, from the tokenizer, the chat template and the generation
config of a pretrained model. They are in `conventions.json` of the checkpoint, where a person can see them, and all
stages and evaluations obey them:

    end_tokens           each of them ends an output: the tokenizer's and those of the generation config
    turn_end             the one that SFT teaches to write after an answer: that of the chat template if it has one
    start_tokens         what the tokenizer puts before every text
    opening              what the chat template has written of the output already: the beginning of a thought, a whole
                         one that is empty, or nothing
    thought              what the model writes before and after a thought, where that is not <think> and </think>
    thinking             false where the chat template asks for answers without thoughts
    chat_template_kwargs options of the chat template, from the config
    date                 what the template has instead of today's date, so that no result depends on the day; null if
                         it asks for none
    positions            how many tokens the model can read; null for a model without a limit
    not_obeyed           settings of the generation config that change what a model writes: penalties, temperatures.
                         Here only the options of the study do that

A backbone that is made here (`architecture`) has no such file: it has one end token and nothing else of this.

Texts of data, rewards and results have one form for all backbones, `<think>REASONING</think>Answer: ANSWER`.
`written` and `read_output` convert it to what a model writes and back.
"""

import bisect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cisterna.artifacts import files
from cisterna.errors import UserError
from cisterna.sequences import chat_template
from cisterna.sequences.chat_template import THINK

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

FILE = "conventions.json"
# Keys of a generation config that do not change what a model writes, or that are in the conventions.
NEUTRAL = {"eos_token_id", "pad_token_id", "bos_token_id", "transformers_version", "_from_model_config", "use_cache"}
NEUTRAL |= {"output_attentions", "output_hidden_states", "output_scores", "return_dict_in_generate", "max_length"}
# What configs of transformers call the number of positions; a model without any has no limit (state-space, ALiBi).
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")


@dataclass(frozen=True)
class Conventions:
    """See the module. Tokens are texts."""

    end_tokens: tuple[str, ...]
    turn_end: str
    start_tokens: tuple[str, ...] = ()
    opening: str = ""
    date: str | None = None
    positions: int | None = None
    not_obeyed: dict[str, Any] | None = None
    thought: tuple[str, str] = THINK
    thinking: bool = True
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)


def derive(
    tokenizer: "PreTrainedTokenizerBase", model: "PreTrainedModel", options: Mapping[str, Any] | None = None
) -> Conventions:
    """The conventions of a pretrained model, whose chat template gets `options` (chat_template_kwargs).

    A clock in the chat template of `tokenizer` is replaced by a fixed date. ValueError for a model without an end
    token, a clock that cannot be replaced, a template without questions, or that changes them, or
    with thoughts in a form that cannot be read, and an option that the template does not have.
    """
    import jinja2  # here, so that light commands do not pay for it

    options = dict(options or {})
    try:
        date = chat_template.fix_date(tokenizer)
        chat_template.check_options(tokenizer, options)
        opening, thought, thinking = chat_template.thoughts(tokenizer, options)
        turn_end = chat_template.answer_end(tokenizer, options)
    except jinja2.TemplateError as error:
        raise ValueError(f"Its chat template cannot write a question: {error}") from None
    settings = model.generation_config
    # transformers makes one from the model's config where there is none, with the defaults of that config's class.
    ids = None if settings._from_model_config and tokenizer.eos_token else settings.eos_token_id
    more = tokenizer.convert_ids_to_tokens(ids if isinstance(ids, list) else [] if ids is None else [ids])
    ends = tuple(dict.fromkeys(token for token in (tokenizer.eos_token, *more) if token))
    if not ends:
        raise ValueError(
            "It has no end-of-text token, neither in the tokenizer (eos_token) nor in the generation config "
            "(eos_token_id), so its outputs would not end. Name one in tokenizer_config.json."
        )
    if inside := [token for token in ends if token in thought[1]]:
        raise ValueError(f"Its thoughts end with {thought[1]!r}, and {inside[0]!r} ends an output too.")
    return Conventions(
        end_tokens=ends,
        turn_end=next((token for token in turn_end if token in ends), ends[0]),
        start_tokens=_start_tokens(tokenizer),
        opening=opening,
        date=date,
        positions=positions(model.config),
        not_obeyed={key: value for key, value in sorted(settings.to_diff_dict().items()) if key not in NEUTRAL},
        thought=thought,
        thinking=thinking,
        chat_template_kwargs=options,
    )


def write(folder: Path, conventions: Conventions) -> None:
    """Write `conventions.json` into a base checkpoint; without what is as in most models and in earlier versions."""
    usual = {"thought": THINK, "thinking": True, "chat_template_kwargs": {}}
    content = {key: value for key, value in asdict(conventions).items() if value != usual.get(key, ...)}
    files.write_json(folder / FILE, content)


def read(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> Conventions:
    """The conventions of a base checkpoint. One without the file has the end token of its tokenizer and no others."""
    path = folder / FILE
    if not path.is_file():
        if (folder / "tokens.json").is_file():  # of a pretrained model
            print(
                f"warning: {folder} was made by an earlier version: only {tokenizer.eos_token!r} ends an output, and "
                "nothing else of the backbone's conventions is known. To have them, delete it and rerun",
                file=sys.stderr,
            )
        return Conventions((tokenizer.eos_token,), tokenizer.eos_token)
    stored: dict[str, Any] = files.read_json(path)
    lists = {key: tuple(value) for key, value in stored.items() if isinstance(value, list)}
    return Conventions(**stored | lists)


def attach(tokenizer: "PreTrainedTokenizerBase", conventions: Conventions) -> None:
    """Let `of` find the conventions of a tokenizer."""
    tokenizer._cisterna_conventions = conventions


def of(tokenizer: "PreTrainedTokenizerBase") -> Conventions:
    """The conventions of a tokenizer that `cisterna.sequences.tokenization.load` has loaded, or of one built here."""
    known = getattr(tokenizer, "_cisterna_conventions", None)
    return known or Conventions((tokenizer.eos_token,), tokenizer.eos_token)


def end_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The ids of the tokens that end an output."""
    return tokenizer.convert_tokens_to_ids(list(of(tokenizer).end_tokens))


def turn_end_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id of the token that a model is taught to write after an answer."""
    return tokenizer.convert_tokens_to_ids(of(tokenizer).turn_end)


def start_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The ids of the tokens before every text."""
    return tokenizer.convert_tokens_to_ids(list(of(tokenizer).start_tokens))


def started(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> list[int]:
    """Token ids of a text with the start tokens before them, unless the chat template has written these."""
    start = start_ids(tokenizer)
    return ids if ids[: len(start)] == start else start + ids


def obey(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Give a model a generation config that ends outputs at all end tokens and sets nothing else."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(eos_token_id=end_ids(tokenizer), pad_token_id=tokenizer.pad_token_id)


def render(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], before: Sequence[tuple[str, str]] = ()
) -> list[str]:
    """Texts of a user through the chat template, up to where the model's turn begins.

    `before` are earlier turns of the user and the model.
    """
    return chat_template.render(tokenizer, texts, of(tokenizer).chat_template_kwargs, before)


def written(tokenizer: "PreTrainedTokenizerBase", completion: str) -> str:
    """What a model has to write for a completion `<think>REASONING</think>ANSWER`: with its marks of a thought.

    Without what the chat template has written already, and without a thought where thinking is switched off.
    """
    known = of(tokenizer)
    _, opened, rest = completion.partition(THINK[0])
    reasoning, closed, answer = rest.partition(THINK[1])
    if not (opened and closed):
        return completion
    if not known.thinking:
        return answer
    return ("" if known.opening else known.thought[0]) + reasoning + known.thought[1] + answer


def read_output(tokenizer: "PreTrainedTokenizerBase", output: str) -> str:
    """An output as `<think>REASONING</think>ANSWER`, whatever the model's own marks of a thought are.

    It begins with what the chat template has written of it. Where thinking is switched off that is an empty thought.
    """
    known = of(tokenizer)
    opening = _usual(known, known.opening)
    if not known.thinking and not opening.startswith(THINK[0]):
        opening = "".join(THINK)
    return opening + _usual(known, output)


def thought_end(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> int | None:
    """Where the last thought in the token ids of an output ends: the number of ids up to there.

    0 for an output without thought where thinking is switched off, and None where the thought has no end, or one
    inside a token.
    """
    without = None if of(tokenizer).thinking else 0
    closing = of(tokenizer).thought[1].strip()
    mark = tokenizer(closing, add_special_tokens=False)["input_ids"]
    if set(mark).isdisjoint(tokenizer.get_added_vocab().values()):
        return _text_end(tokenizer, ids, closing, without)
    ends = (place for place in range(len(ids), len(mark) - 1, -1) if ids[place - len(mark) : place] == mark)
    return next(ends, without)


def _text_end(tokenizer: "PreTrainedTokenizerBase", ids: list[int], closing: str, without: int | None) -> int | None:
    """`thought_end` of a mark that is written as text, whose tokens depend on the letters beside it (`.</`)."""

    def text(count: int) -> str:
        return tokenizer.decode(ids[:count], skip_special_tokens=False, clean_up_tokenization_spaces=False)

    marks = text(len(ids)).count(closing)
    if not marks:
        return without
    end = bisect.bisect_left(range(len(ids) + 1), marks, key=lambda count: text(count).count(closing))
    return end if text(end).rstrip().endswith(closing) else None


def check_text_marks(tokenizer: "PreTrainedTokenizerBase") -> None:
    """ValueError for a tokenizer that has the marks of a thought as tokens, or cannot write them as text."""
    if known := [mark for mark in THINK if mark in tokenizer.get_vocab()]:
        raise ValueError(f"think_tokens: false, and its tokenizer has the token {known[0]}. Leave the key out.")
    completion = f"{THINK[0]}A reason.{THINK[1]}Answer: A"
    ids = tokenizer(completion, add_special_tokens=False)["input_ids"]
    decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if decoded != completion or _text_end(tokenizer, ids, THINK[1], None) is None:
        raise ValueError(
            f"think_tokens: false, and its tokenizer cannot write {completion!r} so that the thought ends where a "
            "token ends. Leave the key out."
        )


def _usual(known: Conventions, text: str) -> str:
    """A text with the model's marks of a thought replaced by THINK. These are no marks then: they are broken up."""
    if known.thought == THINK:
        return text
    for mark in THINK:
        text = text.replace(mark, f"{mark[0]} {mark[1:]}")
    for own, mark in zip(known.thought, THINK, strict=True):
        text = text.replace(own.strip(), mark)
    return text


def positions(config: "PretrainedConfig") -> int | None:
    """How many tokens a model can read, by its config; None without a limit.

    Scaled rotary positions (YaRN and others) reach the scaled length, which some configs do not state.
    """
    config = config.get_text_config()
    numbers = (getattr(config, name, None) for name in POSITIONS)
    stated = next((number for number in numbers if isinstance(number, int) and number > 0), None)
    rope = getattr(config, "rope_parameters", None) or {}
    scaled = [part for part in (rope, *rope.values()) if isinstance(part, dict) and part.get("factor")]
    lengths = (int(part["factor"] * (part.get("original_max_position_embeddings") or 0)) for part in scaled)
    return None if stated is None else max(stated, *lengths, 0)


def check_positions(
    model: "PreTrainedModel", lengths: Sequence[int], names: Sequence[str], more: int, source: str, advice: str
) -> None:
    """UserError if an example does not fit the positions of the model.

    `lengths` are tokens of the examples called `names`, which are of `source`; `more` is how many are written after.
    """
    room = positions(model.config)
    longest = max(range(len(lengths)), key=lengths.__getitem__, default=None)
    if room is None or longest is None or lengths[longest] + more <= room:
        return
    example = f"the longest example, {names[longest]}," if len(names) > 1 else names[longest]
    written = f", and up to {more} more are written: {lengths[longest] + more} together" if more else " in all"
    raise UserError(
        f"{source}: {example} has {lengths[longest]} tokens{written}; the backbone has {room} positions. {advice}"
    )


# --- Reading a pretrained model ---


def _start_tokens(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    before = next((n for n in range(len(whole)) if whole[n : n + len(plain)] == plain), 0)
    return tuple(tokenizer.convert_ids_to_tokens(whole[:before]))
