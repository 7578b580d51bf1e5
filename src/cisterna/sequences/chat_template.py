r"""Chat templates of pretrained models: what they write around a question, an answer and a thought.

Read once, when the base checkpoint is made (`cisterna.sequences.conventions.derive`), by rendering short turns and
looking at the text: a template is a program, and what it writes is known only from that. Three ends of a prompt and
a thought (with line breaks as \n):

    Qwen3-4B-Thinking-2507           <|im_start|>assistant\n<think>\n                     a thought is opened
    Qwen3, enable_thinking: false    <|im_start|>assistant\n<think>\n\n</think>\n\n       and closed: thinking is off
    Gemma 4, enable_thinking: true   <|turn>model\n                                       the model opens it itself
    Gemma 4, a thought               <|channel>thought\nIt is rare.\n<channel|>

Not for how stages use this (`cisterna.sequences.conventions`).
"""

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

THINK = ("<think>", "</think>")
# Of a model whose first templates write a thought only before a call of a tool.
GEMMA = ("<|channel>thought\n", "\n<channel|>")
DATE = datetime.date(2025, 1, 1)
PROBE = "0123456789"  # a text that no template changes
QUESTION = "Is <dna>ACGT</dna> 'spliced' & \"short\" (1 < 2)?\nSay X or y."  # what a question may have
THOUGHT = "9876543210"
REASONING = ("reasoning_content", "reasoning", "thinking")  # what templates call the thought of a message
SWITCHES = ("enable_thinking", "thinking")  # what they call the option that switches thoughts on and off
CLOCK = "strftime_now"  # what transformers gives to chat templates, and nothing else that knows the time
# Variables of a template that transformers sets.
SET = {"messages", "add_generation_prompt", "bos_token", "eos_token", CLOCK, "raise_exception", "namespace", "range"}

ROLES = ("user", "assistant")


def render(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    options: Mapping[str, Any],
    before: Sequence[tuple[str, str]] = (),
) -> list[str]:
    """Texts of a user through the chat template with its `options`, up to where the model's turn begins.

    `before` are earlier turns of the user and the model.
    """
    turns = [{"role": role, "content": text} for pair in before for role, text in zip(ROLES, pair, strict=True)]
    messages = [[*turns, {"role": ROLES[0], "content": text}] for text in texts]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)


def check_options(tokenizer: "PreTrainedTokenizerBase", options: Mapping[str, Any]) -> None:
    """ValueError for options that the chat template does not read."""
    from jinja2 import meta
    from jinja2.sandbox import SandboxedEnvironment

    if not options:
        return
    if not tokenizer.chat_template:
        raise ValueError(f"chat_template_kwargs {sorted(options)}: it has no chat template.")
    template = _without_generation(tokenizer.get_chat_template())
    tree = SandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    known = meta.find_undeclared_variables(tree) - SET
    if unknown := sorted(options.keys() - known):
        raise ValueError(
            f"chat_template_kwargs {unknown}: its chat template does not read that; it reads {sorted(known)}."
        )


def thoughts(tokenizer: "PreTrainedTokenizerBase", options: Mapping[str, Any]) -> tuple[str, tuple[str, str], bool]:
    """`opening`, `thought` and `thinking` of the conventions, from what the chat template writes.

    Thinking is off where the prompt ends with a thought that is closed, and where it is the prompt that the template
    writes with thoughts switched off.
    """
    if not tokenizer.chat_template:
        return "", THINK, True
    prompt = render(tokenizer, [PROBE], options)[0]
    if PROBE not in prompt:
        raise ValueError("Its chat template does not write the question of the user.")
    if render(tokenizer, [QUESTION], options)[0].count(QUESTION) != 1:
        raise ValueError(
            "Its chat template changes the question of the user or repeats it. Tags, letters, line breaks and marks of "
            "a question have to stay as they are: correct the template."
        )
    marks = _marks(tokenizer, options)
    first, last = (mark.strip() for mark in marks)
    turn = prompt.rpartition(PROBE)[2]
    _, opened, after = turn.rpartition(first)
    if opened and not after.strip():
        return opened + after, marks, True
    if opened and after.strip() == last:
        return opened + after, marks, False
    if turn.rstrip().endswith(last):  # DeepSeek V3.1 closes a thought without opening it
        return turn[turn.rindex(last) :], marks, False
    return "", marks, not _switched_off(tokenizer, prompt, options)


def _marks(tokenizer: "PreTrainedTokenizerBase", options: Mapping[str, Any]) -> tuple[str, str]:
    """What the chat template writes before and after a thought; THINK where it writes none.

    White space at the inner side of a mark is part of it, but for <think>, whose models write it in several ways.
    """
    import jinja2

    message = {"role": "assistant", "content": PROBE} | dict.fromkeys(REASONING, THOUGHT)
    turns = [{"role": "user", "content": "a"}, message]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, **options)
    except jinja2.TemplateError:
        return THINK
    before, thought, after = text.partition(THOUGHT)
    if not thought or PROBE not in after:
        return GEMMA if GEMMA[1].strip() in tokenizer.get_chat_template() else THINK
    prompt = render(tokenizer, ["a"], options)[0]
    own = before.removeprefix(prompt) if before.startswith(prompt) else before
    tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.content in before]
    if not own.strip() or own == before:  # the prompt has opened the thought, or differs from the beginning of a turn
        own = before[max((before.rindex(token) for token in tokens), default=len(before)) :]
    marks = own.lstrip(), after.partition(PROBE)[0].rstrip()
    if tuple(mark.strip() for mark in marks) == THINK:
        return THINK
    if not all(any(token in mark for token in tokenizer.get_added_vocab()) for mark in marks):
        raise ValueError(
            f"Its chat template writes a thought between {marks[0]!r} and {marks[1]!r}. One of these has no token that "
            "is for marks only (a special or added token), so that a thought could not be told from other text."
        )
    return marks


def _switched_off(tokenizer: "PreTrainedTokenizerBase", prompt: str, options: Mapping[str, Any]) -> bool:
    """Whether a prompt is the one without thoughts, in a template that can switch them on."""
    with_thoughts, without = (
        render(tokenizer, [PROBE], dict(options) | dict.fromkeys(SWITCHES, on))[0] for on in (True, False)
    )
    return prompt == without != with_thoughts


def answer_end(tokenizer: "PreTrainedTokenizerBase", options: Mapping[str, Any]) -> list[str]:
    """The tokens after an answer in the chat template; none in one for questions only."""
    import jinja2

    if not tokenizer.chat_template:
        return []
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": PROBE}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, **options)
    except jinja2.TemplateError:
        return []
    ids = tokenizer(text.rpartition(PROBE)[2], add_special_tokens=False)["input_ids"]
    return tokenizer.convert_ids_to_tokens(ids)


def fix_date(tokenizer: "PreTrainedTokenizerBase") -> str | None:
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
