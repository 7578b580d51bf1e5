"""Conventions of a backbone: how its texts begin and end, what its chat template writes, how much it reads.

`derive` reads them once, when the base checkpoint is made, from the tokenizer, the chat template and the generation
config of a pretrained model. They are in `conventions.json` of the checkpoint, where a person can see them, and all
stages and evaluations obey them:

    end_tokens           each of them ends an output: the tokenizer's and those of the generation config
    turn_end             the one that SFT teaches to write after an answer: that of the chat template if it has one
    start_tokens         what the tokenizer puts before every text
    opening              what the chat template has written of the output already: "<think>" and white space, or nothing
    date                 what the template has instead of today's date, so that no result depends on the day; null if
                         it asks for none
    positions            how many tokens the model can read; null for a model without a limit
    not_obeyed           settings of the generation config that change what a model writes: penalties, temperatures.
                         Here only the options of the study do that

A backbone that is made here (`architecture`) has no such file: it has one end token and nothing else of this.
"""

import datetime
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cisterna.artifacts import files
from cisterna.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

FILE = "conventions.json"
THINK = ("<think>", "</think>")
DATE = datetime.date(2025, 1, 1)
PROBE = "0123456789"  # a text that no template changes
CLOCK = "strftime_now"  # what transformers gives to chat templates, and nothing else that knows the time
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


def derive(tokenizer: "PreTrainedTokenizerBase", model: "PreTrainedModel") -> Conventions:
    """The conventions of a pretrained model. A clock in the chat template of `tokenizer` is replaced by a fixed date.

    ValueError for a model without an end token, a clock that cannot be replaced, and a template without questions.
    """
    import jinja2  # here, so that light commands do not pay for it

    try:
        date = _fix_date(tokenizer)
        opening, turn_end = _opening(tokenizer), _answer_end(tokenizer)
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
    return Conventions(
        end_tokens=ends,
        turn_end=next((token for token in turn_end if token in ends), ends[0]),
        start_tokens=_start_tokens(tokenizer),
        opening=opening,
        date=date,
        positions=positions(model.config),
        not_obeyed={key: value for key, value in sorted(settings.to_diff_dict().items()) if key not in NEUTRAL},
    )


def write(folder: Path, conventions: Conventions) -> None:
    """Write `conventions.json` into a base checkpoint."""
    files.write_json(folder / FILE, asdict(conventions))


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
    return Conventions(**stored | {key: tuple(stored[key]) for key in ("end_tokens", "start_tokens")})


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


def render(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[str]:
    """Texts of a user through the chat template, up to where the model's turn begins."""
    messages = [[{"role": "user", "content": text}] for text in texts]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


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


def _opening(tokenizer: "PreTrainedTokenizerBase") -> str:
    """`<think>` and what follows, where the prompt ends with it."""
    if not tokenizer.chat_template:
        return ""
    prompt = render(tokenizer, [PROBE])[0]
    if PROBE not in prompt:
        raise ValueError("Its chat template does not write the question of the user.")
    _, opened, after = prompt.rpartition(THINK[0])
    return opened + after if opened and not after.strip() else ""


def _answer_end(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The tokens after an answer in the chat template; none in one for questions only."""
    import jinja2

    if not tokenizer.chat_template:
        return []
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": PROBE}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except jinja2.TemplateError:
        return []
    ids = tokenizer(text.rpartition(PROBE)[2], add_special_tokens=False)["input_ids"]
    return tokenizer.convert_ids_to_tokens(ids)


def _fix_date(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Define the clock of a chat template, `strftime_now`, in the template itself, with DATE; None if it has none."""
    templates: str | dict[str, str] = tokenizer.chat_template or {}
    fixed: str | dict[str, str]
    if isinstance(templates, dict):
        fixed = {name: _without_clock(template) for name, template in templates.items()}
    else:
        fixed = _without_clock(templates)
    if fixed == templates:
        return None
    tokenizer.chat_template = fixed
    return DATE.isoformat()


def _without_clock(template: str) -> str:
    from jinja2 import nodes
    from jinja2.sandbox import SandboxedEnvironment

    tree = SandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(_without_generation(template))
    calls = [call for call in tree.find_all(nodes.Call) if getattr(call.node, "name", None) == CLOCK]
    forms = [call.args[0].value for call in calls if call.args and isinstance(call.args[0], nodes.Const)]
    if len(forms) < len(calls):
        raise ValueError(f"Its chat template computes the form of a date ({CLOCK}). Write a date into the template.")
    if not forms:
        return template
    dates = json.dumps({form: DATE.strftime(form) for form in forms})
    # An expression ends it: after a block, jinja would drop a line break with which the template begins.
    return f"{{% macro {CLOCK}(form) -%}}{{{{ {dates}[form] }}}}{{%- endmacro %}}{{{{ '' }}}}{template}"


def _without_generation(template: str) -> str:
    """A template without the `generation` tags, which only transformers knows."""
    return re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template)
