"""Tests of the conventions of a backbone: they are read once, at the base, and everything obeys them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import normalizers, processors
from transformers import GenerationConfig, MambaConfig, Qwen3Config

from cisterna import models
from cisterna.artifacts import files
from cisterna.data.tokenized import tokenize_corpus
from cisterna.errors import UserError
from cisterna.evaluation.generate import label_logs, load
from cisterna.scoring import answers
from cisterna.sequences import conventions, tokenization
from cisterna.sequences.prompt import encode_prompts
from cisterna.sequences.source import TOKENS
from tiny import hub_model, publish

TURNS = "{% for m in messages %}<|turn|>{{ m.content }}<|close|>\n{% endfor %}"
TEMPLATE = TURNS + "{% if add_generation_prompt %}<|turn|>{% endif %}"
OPENED = TURNS + "{% if add_generation_prompt %}<|turn|><think>\n{% endif %}"
DATED = "\n{{ '<|turn|>Today is ' + strftime_now('%d %b %Y') }}" + TEMPLATE

Change = Callable[[Any, Any], Any]  # of a model and its tokenizer


@pytest.fixture
def base(tmp_path: Path) -> Callable[..., Path]:
    """Publishes the base of a model that somebody has changed before."""

    def make(change: Change = lambda model, tokenizer: None, **options: object) -> Path:
        model, tokenizer = hub_model(tmp_path / "hub", tie=True, spare=64)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|close|>"]})
        change(model, tokenizer)
        model.save_pretrained(tmp_path / "hub")
        tokenizer.save_pretrained(tmp_path / "hub")
        output = tmp_path / "base" / "checkpoint"
        spec = {"pretrained": str(tmp_path / "hub"), "dtype": "float32", "revision": None} | options
        models.make_base(spec, output)
        return output

    return make


def templated(template: str) -> Change:
    def change(model: Any, tokenizer: Any) -> None:
        tokenizer.chat_template = template

    return change


def ends_turns(model: Any, tokenizer: Any) -> None:
    ids = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|close|>")]
    model.generation_config = GenerationConfig(eos_token_id=ids, repetition_penalty=1.5, no_repeat_ngram_size=2)
    tokenizer.chat_template = TEMPLATE


def prompts(tokenizer: Any, *texts: str) -> list[str]:
    rows = encode_prompts(tokenizer, texts, TOKENS, [()] * len(texts), 0)
    return [tokenizer.decode(row) for row in rows]


def test_all_end_tokens_of_the_generation_config_end_an_output_and_the_one_of_the_template_is_taught(
    base: Callable[..., Path],
) -> None:
    folder = base(ends_turns)
    tokenizer = tokenization.load(folder)
    stored = json.loads((folder / conventions.FILE).read_text())
    assert stored["end_tokens"] == ["<|end|>", "<|close|>"]
    assert stored["turn_end"] == "<|close|>"
    for end in stored["end_tokens"]:
        ids = tokenizer(f"<think></think>Answer: low{end}<|end|>", add_special_tokens=False)["input_ids"]
        assert tokenization.decode_completion(tokenizer, ids) == ("<think></think>Answer: low", True)
    (taught,) = tokenization.encode_completions(tokenizer, ["<think></think>Answer: low"])
    assert tokenizer.decode(taught) == "<think></think>Answer: low<|close|>"


def test_settings_of_the_generation_config_do_not_bend_what_a_model_writes(base: Callable[..., Path]) -> None:
    folder = base(ends_turns)
    assert json.loads((folder / conventions.FILE).read_text())["not_obeyed"] == {
        "no_repeat_ngram_size": 2,
        "repetition_penalty": 1.5,
    }
    model = models.compose(folder)
    tokenizer = tokenization.load(folder)
    assert model.generation_config.repetition_penalty in (None, 1.0)
    assert not model.generation_config.no_repeat_ngram_size
    assert model.generation_config.eos_token_id == conventions.end_ids(tokenizer)  # TRL masks what follows any of them


def test_a_template_that_opens_the_thought_has_written_the_beginning_of_the_output(base: Callable[..., Path]) -> None:
    tokenizer = tokenization.load(base(templated(OPENED)))
    assert prompts(tokenizer, "A?") == ["<|turn|>A?<|close|>\n<|turn|><think>\n"]
    (taught,) = tokenization.encode_completions(tokenizer, ["<think>why</think>Answer: low"])
    assert tokenizer.decode(taught) == "why</think>Answer: low<|end|>"
    assert tokenization.decode_completion(tokenizer, taught) == ("<think>\nwhy</think>Answer: low", True)


@pytest.mark.parametrize("template", [TEMPLATE, "{{ messages[0].content }}"])
def test_a_template_that_does_not_leave_the_thought_open_has_written_nothing(
    base: Callable[..., Path], template: str
) -> None:
    assert conventions.of(tokenization.load(base(templated(template)))).opening == ""


def test_a_base_stores_that_thinking_is_off_and_says_so(
    base: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = base(templated(TEMPLATE + "<think>\n\n</think>\n"))
    assert conventions.of(tokenization.load(folder)).thinking is False
    assert "switches thinking off" in capsys.readouterr().err


def test_options_of_the_chat_template_reach_prompts(base: Callable[..., Path]) -> None:
    template = TEMPLATE + "{% if enable_thinking %}<think>{% endif %}"
    folder = base(templated(template), chat_template_kwargs={"enable_thinking": True})
    assert prompts(tokenization.load(folder), "A?")[0].endswith("<|turn|><think>")


def test_a_template_gets_the_same_date_on_every_day(base: Callable[..., Path]) -> None:
    folder = base(templated(DATED))
    assert conventions.of(tokenization.load(folder)).date == "2025-01-01"
    assert prompts(tokenization.load(folder), "A?")[0].startswith("\n<|turn|>Today is 01 Jan 2025<|turn|>A?")


def test_a_template_that_computes_the_form_of_a_date_is_refused(base: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="strftime_now"):
        base(templated("{% set form = '%d' %}{{ strftime_now(form) }}" + TEMPLATE))


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no system turn') }}", "{% for m in messages %}", "{{ messages[0].role }}"]
)
def test_a_template_that_cannot_write_a_question_is_refused(base: Callable[..., Path], template: str) -> None:
    with pytest.raises(UserError, match="Its chat template"):
        base(templated(template))


@pytest.mark.parametrize(
    "change",
    ["|e", "|tojson", "|upper", "|lower", "|striptags", "|replace('<', '')", "[:12]", ".split('\n')[0]", " * 2"],
)
def test_a_template_that_changes_a_question_is_refused(base: Callable[..., Path], change: str) -> None:
    template = f"{{% for m in messages %}}<|turn|>{{{{ m.content{change} }}}}{{% endfor %}}<|turn|>"
    with pytest.raises(UserError, match="changes the question of the user or repeats it"):
        base(templated(template))


def test_a_template_may_cut_blanks_around_a_question(base: Callable[..., Path]) -> None:
    assert base(templated("{% for m in messages %}<|turn|>{{ m.content | trim }}{% endfor %}<|turn|>")).is_dir()


def test_a_backbone_without_an_end_token_is_refused_with_nothing_left(
    base: Callable[..., Path], tmp_path: Path
) -> None:
    def endless(model: Any, tokenizer: Any) -> None:
        tokenizer.eos_token = None
        model.config.eos_token_id = None
        model.generation_config = GenerationConfig()

    with pytest.raises(UserError, match="no end-of-text token"):
        base(endless)
    assert not (tmp_path / "base" / "checkpoint").exists()


def test_an_end_token_that_only_the_generation_config_names_is_the_tokenizers(base: Callable[..., Path]) -> None:
    def unnamed(model: Any, tokenizer: Any) -> None:
        tokenizer.eos_token = None
        model.generation_config = GenerationConfig(eos_token_id=0)

    assert tokenization.load(base(unnamed)).eos_token == "<|end|>"


@pytest.mark.parametrize("template", [None, "<|turn|>" + TEMPLATE])
def test_the_start_token_is_before_every_text_once(
    base: Callable[..., Path], template: str | None, tmp_path: Path
) -> None:
    def start(model: Any, tokenizer: Any) -> None:
        pair = ("<|turn|>", tokenizer.convert_tokens_to_ids("<|turn|>"))
        core = tokenizer.backend_tokenizer
        core.post_processor = processors.TemplateProcessing(single="<|turn|> $A", special_tokens=[pair])
        tokenizer.chat_template = template

    folder = base(start)
    tokenizer = tokenization.load(folder)
    assert conventions.of(tokenizer).start_tokens == ("<|turn|>",)
    assert prompts(tokenizer, "A?")[0].startswith("<|turn|>" + ("A?" if template is None else "<|turn|>A?"))
    (tmp_path / "c.txt").write_text("\n\n".join(f"text {number}" for number in range(200)))
    tokenize_corpus(tmp_path / "c.txt", "text", folder, tmp_path / "tokens")
    stream, starts = (np.load(tmp_path / "tokens" / f"{name}.npy") for name in ("train", "starts"))
    assert set(stream[starts]) == {tokenizer.convert_tokens_to_ids("<|turn|>")}


def test_a_label_that_is_a_token_of_its_own_can_be_answered(base: Callable[..., Path]) -> None:
    def words(model: Any, tokenizer: Any) -> None:
        tokenizer.add_tokens(["donor", "T cell", "GO:0005524"])

    tokenizer = tokenization.load(base(words))
    space = answers.Labels(("donor", "T cell", "GO:0005524", "acceptor"))
    answers.check_written(space, [], tokenizer, "data")
    texts = [answers.completion("", label) for label in tokenization.escape(tokenizer, space.labels)]
    for label, ids in zip(space.labels, tokenization.encode_completions(tokenizer, texts), strict=True):
        assert space.parse(tokenization.decode_completion(tokenizer, ids)[0]) == label


def test_a_control_token_in_a_text_stays_data(base: Callable[..., Path]) -> None:
    def control(model: Any, tokenizer: Any) -> None:
        tokenizer.add_tokens(["<tool>", "[INST]"])

    tokenizer = tokenization.load(base(control))
    text = "a <tool> and [INST] and <|close|>"
    ids = tokenizer(tokenization.escape(tokenizer, [text]), add_special_tokens=False)["input_ids"][0]
    assert not set(ids) & set(tokenizer.convert_tokens_to_ids(["<tool>", "[INST]", "<|close|>"]))


def known_words(folder: Path, words: bool = False) -> Path:
    """The base of a model that writes the marks of a thought as text. With `words` it has a token `>Answer`."""
    _, tokenizer = hub_model(folder / "hub", tie=True, spare=64, think=False)
    if words:
        tokenizer.add_tokens([">Answer"])
        tokenizer.save_pretrained(folder / "hub")
    base = folder / "models" / "nano" / "base" / "checkpoint"
    models.make_base({"pretrained": str(folder / "hub"), "think_tokens": False}, base)
    return base


def test_marks_of_a_thought_are_written_in_tokens_that_the_model_knows(tmp_path: Path) -> None:
    base = known_words(tmp_path)
    tokenizer = tokenization.load(base)
    assert "<|dna:A|>" in tokenizer.get_vocab()
    assert not {"<think>", "</think>"} & set(tokenizer.get_vocab())
    texts = [answers.completion(reasoning, "decoy") for reasoning in ("It ends (here).", "One</think>two.", "")]
    for text, ids in zip(texts, tokenization.encode_completions(tokenizer, texts), strict=True):
        assert max(ids) < files.read_json(base / "tokens.json")["before"]
        assert tokenization.decode_completion(tokenizer, ids) == (text, True)
        end = conventions.thought_end(tokenizer, ids)
        assert tokenizer.decode(ids[:end]) == text.removesuffix("Answer: decoy")
    assert conventions.thought_end(tokenizer, tokenizer("<think>No end.")["input_ids"]) is None
    assert tokenization.escape(tokenizer, ["a <think> b</think>"]) == ["a < think> b< /think>"]


def test_labels_have_the_probabilities_of_a_pass_over_the_whole_text_where_marks_are_text(tmp_path: Path) -> None:
    loaded = load(known_words(tmp_path))
    tokenizer, labels = loaded.tokenizer, ("donor", "decoy")
    asked = tokenizer("Which?")["input_ids"]
    written = tokenization.encode_completions(tokenizer, [answers.completion("So (it) is.", label) for label in labels])
    found = label_logs(loaded, [asked], [written[0]], labels)[0]

    def whole(ids: list[int]) -> float:
        with torch.inference_mode():
            logs = loaded.model(torch.tensor([asked + ids])).logits[0].float().log_softmax(-1)
        return sum(float(logs[len(asked) + place - 1, token]) for place, token in enumerate(ids))

    assert found[0] - found[1] == pytest.approx(whole(written[0]) - whole(written[1]), abs=1e-4)


def test_marks_as_text_are_refused_where_they_are_tokens_or_end_inside_a_token(
    base: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="its tokenizer has the token <think>"):
        base(think_tokens=False)
    with pytest.raises(UserError, match="ends where a token ends"):
        known_words(tmp_path, words=True)
    assert not list(tmp_path.glob("**/checkpoint"))


def small_p(model: Any, tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("P", "p")


def test_a_label_that_the_tokenizer_changes_is_refused_with_what_it_becomes(base: Callable[..., Path]) -> None:
    tokenizer = tokenization.load(base(small_p))
    answers.check_written(answers.Labels(("low", "high")), [], tokenizer, "data")
    for label in ("Pro", "<|close|>"):
        with pytest.raises(UserError) as refused:
            answers.check_written(answers.Labels((label, "high")), [], tokenizer, "data")
        assert label in str(refused.value)


def test_a_gene_that_the_tokenizer_changes_is_refused(base: Callable[..., Path]) -> None:
    tokenizer = tokenization.load(base(small_p))
    tokenization.check_words(tokenizer, ["Tp53", "ACTB"], "data")
    with pytest.raises(UserError, match="'TP53' as 'Tp53'"):
        tokenization.check_words(tokenizer, ["TP53", "ACTB"], "data")


def test_an_example_that_does_not_fit_the_positions_is_named(base: Callable[..., Path]) -> None:
    model = models.compose(base())
    room = conventions.positions(model.config)
    assert room == 512
    conventions.check_positions(model, [3, room - 8], ["a", "b"], 8, "data", "")
    with pytest.raises(UserError, match=f"data: the longest example, b, has {room - 7} tokens.* {room + 1} together"):
        conventions.check_positions(model, [3, room - 7], ["a", "b"], 8, "data", "")


@pytest.mark.parametrize(
    ("rope", "room"),
    [
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128}, 512),
        ({"rope_type": "default"}, 512),
    ],
)
def test_scaled_positions_reach_the_scaled_length(rope: dict[str, Any], room: int) -> None:
    config = Qwen3Config(max_position_embeddings=512, rope_parameters={"rope_theta": 1e4} | rope)
    assert conventions.positions(config) == room


def test_models_without_positions_have_no_limit() -> None:
    assert conventions.positions(MambaConfig()) is None


def test_blanks_of_an_answer_stay(base: Callable[..., Path]) -> None:
    def cleaned(model: Any, tokenizer: Any) -> None:
        tokenizer.clean_up_tokenization_spaces = True

    answers.check_written(answers.Labels(("a , b", "c .")), [], tokenization.load(base(cleaned)), "data")


def test_a_base_of_an_earlier_version_has_the_end_token_of_its_tokenizer_and_says_so(
    base: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = base(ends_turns)
    earlier = publish(folder, tmp_path / "earlier", lambda copy: None, kind="base")
    for path in [*folder.glob("tokenizer*"), folder / "tokens.json"]:
        files.write_json(earlier / path.name, files.read_json(path))
    assert conventions.of(tokenization.load(earlier)) == conventions.Conventions(("<|end|>",), "<|end|>")
    assert "made by an earlier version" in capsys.readouterr().err
