"""Tests of thoughts in chat templates of the forms that reasoning models have, and of what a study makes of them."""

import copy
import importlib.resources
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from cisterna.evaluation import generate
from cisterna.scoring import answers, rewards
from cisterna.sequences import conventions, tokenization
from tiny import hub_model

SPACE = answers.Labels(("low", "high"))
CONTROL = ["<|im_start|>", "<|im_end|>", "<|turn>", "<turn|>", "<|think|>", "<|channel>", "<channel|>"]

# A thought of the last turn is written out; without one an empty block.
QWEN = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}<think>
{{ m.reasoning_content }}
</think>

{% endif %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
"""
HYBRID = (
    QWEN
    + """{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""
)
ALWAYS = QWEN + "<think>\n{% endif %}"
OFF_UNLESS = QWEN + "{% if enable_thinking %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
STRIPPED = "{% for m in messages %}<|im_start|>{{ m.content.split('</think>')[-1] }}<|im_end|>{% endfor %}"
R1 = STRIPPED + "{% if add_generation_prompt %}<|im_start|><think>\n{% endif %}"
V31 = STRIPPED + "{% if add_generation_prompt %}<|im_start|>{{ '<think>' if thinking else '</think>' }}{% endif %}"
SMOL = """{% set mode = '/think' if enable_thinking is not defined or enable_thinking else '/no_think' -%}
<|im_start|>system
Today: {{ strftime_now("%d %B %Y") }}. Reasoning Mode: {{ mode }}<|im_end|>
{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{{ '' if mode == '/think' else '<think>\n\n</think>\n' }}{% endif %}"""
GEMMA = """{% if enable_thinking %}<|turn>system
<|think|>
<turn|>
{% endif %}{% for m in messages %}<|turn>{{ 'model' if m.role == 'assistant' else m.role }}
{% if m.reasoning and m.tool_calls %}<|channel>thought
{{ m.reasoning }}
<channel|>{% endif %}{{ m.content }}<turn|>
{% endfor %}{% if add_generation_prompt %}<|turn>model
{% endif %}"""
GEMMA_LATER = GEMMA.replace(" and m.tool_calls", "")
GEMMA_CLOSED = (
    GEMMA_LATER.removesuffix("{% endif %}")
    + """{% if not enable_thinking %}<|channel>thought
<channel|>{% endif %}{% endif %}"""
)

ON, OFF = {"enable_thinking": True}, {"enable_thinking": False}
THOUGHT = "why</think>Answer: low"
CHANNEL = "<|channel>thought\nwhy\n<channel|>Answer: low"
EMPTY = "<think>\n\n</think>\n\n"


@dataclass
class Form:
    """A chat template with options; how prompts end, what SFT teaches, how the text of results begins."""

    template: str
    options: Mapping[str, Any] = field(default_factory=dict)
    prompt: str = "<|im_start|>assistant\n"
    taught: str = "<think>" + THOUGHT
    output: str = "<think>" + THOUGHT
    thinking: bool = True


def off(template: str, options: Mapping[str, Any], prompt: str, output: str) -> Form:
    return Form(template, options, prompt, "Answer: low", output + "Answer: low", thinking=False)


FORMS = {
    "Qwen3": Form(HYBRID),
    "Qwen3, on": Form(HYBRID, ON),
    "Qwen3, off": off(HYBRID, OFF, EMPTY, EMPTY),
    "Qwen3-Thinking-2507": Form(ALWAYS, {}, "<think>\n", THOUGHT, "<think>\n" + THOUGHT),
    "Qwen3.5, small": off(OFF_UNLESS, {}, EMPTY, EMPTY),
    "Qwen3.5, small, on": Form(OFF_UNLESS, ON, "<think>\n", THOUGHT, "<think>\n" + THOUGHT),
    "DeepSeek-R1": Form(R1, {}, "<think>\n", THOUGHT, "<think>\n" + THOUGHT),
    "DeepSeek-V3.1": off(V31, {}, "<|im_start|></think>", "<think></think>"),
    "DeepSeek-V3.1, on": Form(V31, {"thinking": True}, "<think>", THOUGHT),
    "SmolLM3": Form(SMOL),
    "SmolLM3, off": off(SMOL, OFF, "<think>\n\n</think>\n", "<think>\n\n</think>\n"),
    "Gemma 4, on": Form(GEMMA, ON, "<|turn>model\n", CHANNEL, "<think>\nwhy\n</think>Answer: low"),
    "Gemma 4": off(GEMMA, {}, "<|turn>model\n", "<think></think>"),
    "Gemma 4, later, on": Form(GEMMA_LATER, ON, "<|turn>model\n", CHANNEL, "<think>\nwhy\n</think>Answer: low"),
    "Gemma 4, closed": off(GEMMA_CLOSED, {}, "<|channel>thought\n<channel|>", "<think>\n</think>"),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    model, tokenizer = hub_model(tmp_path_factory.mktemp("hub"), tie=True, spare=64)
    tokenizer.add_special_tokens({"additional_special_tokens": CONTROL})
    return model, tokenizer


@pytest.fixture
def backbone(hub: tuple[Any, Any]) -> Callable[..., Any]:
    """The tokenizer of a backbone with a chat template, and its conventions."""

    def make(template: str, options: Mapping[str, Any] | None = None) -> Any:
        model, tokenizer = hub
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = template
        conventions.attach(tokenizer, conventions.derive(tokenizer, model, options))
        return tokenizer

    return make


def paid(tokenizer: Any, ids: list[int], *names: str) -> list[float]:
    functions, _ = rewards.trl_functions(dict.fromkeys(names, 1.0), SPACE, tokenizer)
    return [function(completion_ids=[ids], answer=["low"])[0] for function in functions]


@pytest.mark.parametrize("name", FORMS)
def test_completions_outputs_and_rewards_agree_in_every_form_of_thought(
    backbone: Callable[..., Any], name: str
) -> None:
    form = FORMS[name]
    tokenizer = backbone(form.template, form.options)
    assert conventions.of(tokenizer).thinking == form.thinking
    assert tokenization.render_prompts(tokenizer, ["A?"])[0].endswith(form.prompt)
    (taught,) = tokenization.encode_completions(tokenizer, [answers.completion("why", "low")])
    assert tokenizer.decode(taught).removesuffix(conventions.of(tokenizer).turn_end) == form.taught
    assert tokenization.decode_completion(tokenizer, taught) == (form.output, True)
    assert SPACE.parse(form.output) == "low"
    assert paid(tokenizer, taught, "correct", "concise", "format", "tags", "well_formed") == [1.0] * 5
    answers.check_written(SPACE, [], tokenizer, "data")


@pytest.mark.parametrize("name", FORMS)
def test_labels_are_scored_after_the_thought_in_every_form(backbone: Callable[..., Any], name: str) -> None:
    tokenizer = backbone(FORMS[name].template, FORMS[name].options)
    (taught,) = tokenization.encode_completions(tokenizer, [answers.completion("why", "low")])
    end = conventions.thought_end(tokenizer, taught)
    assert end is not None
    assert tokenizer.decode(taught[end:]).startswith("Answer: low")
    assert generate._endings(tokenizer, ["low", "high"])[0] == taught[end:]
    unfinished = tokenizer("I wonder", add_special_tokens=False)["input_ids"]
    assert conventions.thought_end(tokenizer, unfinished) == (None if FORMS[name].thinking else 0)


def test_a_thought_where_thinking_is_off_is_an_answer_in_another_form(backbone: Callable[..., Any]) -> None:
    tokenizer = backbone(HYBRID, OFF)
    ids = tokenizer("<think>why</think>Answer: low<|end|>", add_special_tokens=False)["input_ids"]
    assert paid(tokenizer, ids, "correct", "format") == [1.0, 0.0]


@pytest.mark.parametrize("text", ["<think>why</think>Answer: low", "<|channel>thought\nwhy</think>Answer: low"])
def test_marks_of_other_models_are_no_marks(backbone: Callable[..., Any], text: str) -> None:
    tokenizer = backbone(GEMMA, ON)
    ids = tokenizer(text + "<|end|>", add_special_tokens=False)["input_ids"]
    assert paid(tokenizer, ids, "correct", "format", "well_formed") == [0.0] * 3


def test_marks_in_the_reasoning_of_data_stay_data(backbone: Callable[..., Any]) -> None:
    tokenizer = backbone(GEMMA, ON)
    (reasoning,) = tokenization.escape(tokenizer, ["a <channel|> b </think> c"])
    (taught,) = tokenization.encode_completions(tokenizer, [answers.completion(reasoning, "low")])
    assert taught.count(tokenizer.convert_tokens_to_ids("<channel|>")) == 1
    assert SPACE.parse(tokenization.decode_completion(tokenizer, taught)[0]) == "low"


@pytest.mark.parametrize(
    ("template", "options", "message"),
    [
        (HYBRID, {"enable_thinkng": False}, r"\['enable_thinkng'\].*reads \['enable_thinking'\]"),
        (None, OFF, "no chat template"),
        (HYBRID, {"add_generation_prompt": False}, "does not read that"),
        (QWEN.replace("<think>", "Thought:").replace("</think>", "Done.") + "{% endif %}", {}, "Done.'.*no token"),
        (QWEN.replace("</think>", "<|end|>") + "{% endif %}", {}, "'<|end|>' ends an output too"),
    ],
)
def test_what_cannot_be_understood_of_a_template_is_refused(
    backbone: Callable[..., Any], template: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        backbone(template, options)


@pytest.mark.parametrize(
    ("name", "options", "opening", "thinking"),
    [
        ("qwen3", {}, "", True),
        ("qwen3", OFF, EMPTY, False),
        ("qwen3_5_think", {}, "<think>\n", True),
        ("deepseek_r1_distill", {}, "<think>\n", True),
        ("glm4moe", OFF, "<think></think>", False),
        ("gemma4", {}, "", False),
        ("gemma4", ON, "", True),
    ],
)
def test_templates_of_published_models_are_understood(
    backbone: Callable[..., Any], name: str, options: dict[str, Any], opening: str, thinking: bool
) -> None:
    template = importlib.resources.files("trl") / "chat_templates" / f"{name}.jinja"
    known = conventions.of(backbone(template.read_text(), options))
    assert (known.opening, known.thinking) == (opening, thinking)
    assert known.thought[1].strip() == ("<channel|>" if name == "gemma4" else "</think>")
