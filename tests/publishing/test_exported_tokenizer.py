"""An exported tokenizer reads plain text with tagged sequences as the tokens that Cisterna makes of it."""

import json

import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, Qwen2Config, Qwen3Config

from cisterna import models, tasks
from cisterna.errors import UserError
from cisterna.publishing import tokenizer as publishing
from cisterna.sequences import prompt, tokenization
from cisterna.sequences.source import TOKENS
from cisterna.tasks.catalog import LABELS
from tiny import hub_model

TEMPLATE = "{{% for m in messages %}}<|{start}|>{{{{ m.content }}}}<|end|>{{% endfor %}}<|{start}|>"
THINKING = "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{{ note }}"
LLAMA = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
# Normalizer and config (transformers chooses the class of a tokenizer by it, and some classes build their own).
KINDS = {
    "qwen3": (normalizers.NFC(), Qwen3Config()),
    "qwen2": (normalizers.NFC(), Qwen2Config()),
    "gemma": (normalizers.Replace(" ", "▁"), LlamaConfig()),
    "llama-2": (LLAMA, LlamaConfig()),
    "lower": (normalizers.Lowercase(), LlamaConfig()),
}
TEXTS = [
    "Spliced? <rna>GUAAGU</rna>",
    "<dna>ACGTN</dna><dna>A</dna> <protein>MKVX</protein> 12 kb é <rna>U</rna>.\n\nACGT <dna></dna>",
    "a " + "<dna>" + "ACGTTTTGCA" * 300 + "</dna> b",
    "Genes:<rna> FTL CD74 JUNB</rna> Which cell?",
    "<rna> A</rna><rna>A</rna><rna> A B</rna>",
    "no sequence",
]


@pytest.fixture(scope="module", params=["made-here", *KINDS])
def pair(request, base, tmp_path_factory):
    """A tokenizer of a base checkpoint, and what transformers loads of its export."""
    folder, config = base, Qwen3Config()
    made = tmp_path_factory.mktemp("exported")
    if request.param != "made-here":
        normalizer, config = KINDS[request.param]
        hub_model(made / "hub", tie=False, spare=0)
        core = Tokenizer.from_file(str(made / "hub" / "tokenizer.json"))
        core.normalizer = normalizer
        if request.param == "llama-2":
            core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        core.save(str(made / "hub" / "tokenizer.json"))
        folder = made / "base"
        models.make_base({"pretrained": str(made / "hub")}, folder)
    ours = tokenization.load(folder)
    config.save_pretrained(made / "out")
    publishing.save(ours, made / "out", config)
    return ours, AutoTokenizer.from_pretrained(made / "out")


def ids_of(ours, texts):
    return prompt.encode_prompts(ours, texts, TOKENS, [[]] * len(texts), 0)


def test_prompts_are_the_same_tokens(pair, tmp_path):
    ours, theirs = pair
    theirs.save_pretrained(tmp_path)  # as after fine-tuning; without a config, as in the folder of an adapter
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text, expected in zip(TEXTS, ids_of(ours, TEXTS), strict=True):
        assert publishing.encode(theirs, text) == expected, text
        assert publishing.encode(again, text) == expected, text


@pytest.fixture(scope="module")
def asked():
    """Some prompts of each built-in task, of all modalities."""
    texts = [text for name in LABELS for text in tasks.read(tasks.load(name, {}))["prompt"][:20]]
    assert {f"<{modality}>" in "".join(texts) for modality in ("dna", "rna", "protein")} == {True}
    return texts


def test_prompts_of_the_tasks_are_the_same_tokens(pair, asked):
    ours, theirs = pair
    texts = asked
    assert [publishing.encode(theirs, text) for text in texts] == ids_of(ours, texts)


@pytest.mark.parametrize(
    ("text", "read_as"),
    [
        ("<dna>acgtn</dna>", "<dna>ACGTN</dna>"),
        ("<rna>gUa</rna>", "<rna>GUA</rna>"),
        ("<dna>ARYSWKMBDHVC</dna>", "<dna>ANNNNNNNNNNC</dna>"),
        ("<protein>mBjOUZk</protein>", "<protein>MXXXXXK</protein>"),
    ],
)
def test_lower_case_and_unusual_letters_are_read_by_the_rule(pair, text, read_as):
    ours, theirs = pair
    assert publishing.encode(theirs, text) == ids_of(ours, [read_as])[0]


@pytest.mark.parametrize("stretch", ["<dna>AC-GT</dna>", "<dna>ACGU</dna>", "<rna>ACGT</rna>", "<dna>AC\nGT</dna>"])
def test_a_stretch_with_another_letter_has_no_residue_token(pair, stretch):
    _, theirs = pair
    tokens = theirs.convert_ids_to_tokens(publishing.encode(theirs, stretch))
    assert not [token for token in tokens if token.startswith(("<|dna:", "<|rna:"))]


def test_the_text_of_an_output_with_residue_tokens_is_read_again_as_it_was(pair):
    ours, theirs = pair
    (ids,) = ids_of(ours, ["<dna>ACGT</dna>"])
    assert publishing.encode(theirs, tokenization.expand("<dna>ACGT</dna>")) == ids


def test_a_long_sequence_takes_time_in_proportion_to_its_length(pair):
    """Patterns that look ahead from every residue to the end would need minutes here."""
    ours, theirs = pair
    text = f"<dna>{'ACGT' * 10000}</dna>"
    assert publishing.encode(theirs, text) == ids_of(ours, [text])[0]


@pytest.mark.parametrize("options", [{}, {"enable_thinking": False, "note": 'a "b"'}], ids=["plain", "with-options"])
@pytest.mark.parametrize("written", [True, False], ids=["template-writes-start", "template-without-start"])
def test_chat_template_its_options_and_start_token_are_those_of_our_prompts(tmp_path, written, options):
    _, tokenizer = hub_model(tmp_path / "hub", tie=False, spare=0)
    tokenizer.add_special_tokens({"bos_token": "<|begin|>", "additional_special_tokens": ["<|user|>"]})
    tokenizer.chat_template = ("{{ bos_token }}" if written else "") + TEMPLATE.format(start="user")
    if options:
        tokenizer.chat_template = ("" if written else "\n") + tokenizer.chat_template + THINKING
    tokenizer.save_pretrained(tmp_path / "hub")
    content = json.loads((tmp_path / "hub" / "tokenizer.json").read_text())
    begin = {"id": "<|begin|>", "ids": [tokenizer.bos_token_id], "tokens": ["<|begin|>"]}
    single = [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    content["post_processor"] = {
        "type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": {"<|begin|>": begin},
    }  # fmt: skip
    (tmp_path / "hub" / "tokenizer.json").write_text(json.dumps(content))
    spec = {"pretrained": str(tmp_path / "hub"), "chat_template_kwargs": options}
    models.make_base({key: value for key, value in spec.items() if value}, tmp_path / "base")
    ours = tokenization.load(tmp_path / "base")
    config = Qwen3Config()
    config.save_pretrained(tmp_path / "out")
    publishing.save(ours, tmp_path / "out", config)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text, expected in zip(TEXTS, ids_of(ours, TEXTS), strict=True):
        found = publishing.encode(theirs, text)
        assert found == expected
        assert found.count(tokenizer.bos_token_id) == 1


def test_a_tokenizer_that_would_read_prompts_otherwise_is_refused(base, tmp_path, monkeypatch):
    ours = tokenization.load(base)
    monkeypatch.setattr(publishing, "_residues", list)
    config = Qwen3Config()
    with pytest.raises(UserError, match=r"its tokenizer cannot be exported: by itself it would read 'Spliced\?"):
        publishing.save(ours, tmp_path, config)
