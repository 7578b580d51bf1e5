"""Backbones in GGUF files, which are written here with the package of llama.cpp: weights, tokenizer, refusals, card."""

import json
import shutil

import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, LlamaForCausalLM

import families
from cisterna import gguf_files, models
from cisterna.artifacts import checkpoint
from cisterna.errors import UserError
from cisterna.publishing import export
from cisterna.sequences import conventions, tokenization
from tiny import ROOT, adapted, publish

TEXTS = ["Cells  2024\n\n15 genes, don't", " é — <think>CD3D 7</think>", "a\n 1"]
TEMPLATE = (
    "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|model|>{% endif %}"
)
gguf = pytest.importorskip("gguf", reason="the package gguf is not installed (docs/backbones.md)")
Type = gguf.GGMLQuantizationType
SMOLLM = ROOT / ".cache" / "pretrained" / "smollm2-135m-instruct"


def interleaved(weight, heads):
    """Rows of a query or key projection in the order of llama.cpp: halves of a head's rotary pairs side by side."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write(path, model, tokenizer, kind=Type.Q4_1, rule="smollm", leave_out=(), **more):
    """A Llama as a GGUF file, matrices in `kind`; gives the model the weights that the file holds."""
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_license("mit")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    for key, value in more.items():
        writer.add_uint16(key, value)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    added = tokenizer.added_tokens_decoder
    core = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    if rule:
        writer.add_tokenizer_pre(rule)
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([(3 if added[index].special else 4) if index in added else 1 for _, index in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in core["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            array, mine = weight.numpy(), Type.F32 if weight.ndim == 1 else kind
            stored = gguf.quants.quantize(array, mine)
            weight.copy_(torch.from_numpy(gguf.quants.dequantize(stored, mine).copy()).view_as(weight))
            projection = name.split(".")[-2]
            if projection in heads:
                stored = interleaved(stored, heads[projection])
            if name not in leave_out:
                writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), stored, raw_dtype=mine)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def llama(tmp_path):
    """A model with random weights and its tokenizer, which sets digits apart as SmolLM's does."""
    model = families.make("llama", tmp_path / "hub", tie_word_embeddings=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hub")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    (tmp_path / "gguf").mkdir()
    return model, tokenizer


def logits(model, ids):
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize(("kind", "said"), [(Type.Q4_1, 4), (Type.Q8_0, 8), (Type.F16, 16)])
def test_base_of_a_gguf_file_has_its_weights_tokenizer_template_and_bits(tmp_path, llama, kind, said):
    model, tokenizer = llama
    file = tmp_path / "gguf" / "tiny.gguf"
    write(file, model, tokenizer, kind)
    base = tmp_path / "models" / "nano" / "base" / "checkpoint"
    models.make_base({"pretrained": str(file.parent)}, base)
    shutil.rmtree(file.parent)  # the checkpoint needs it no longer
    composed, ours = models.compose(base), tokenization.load(base)
    assert type(composed) is LlamaForCausalLM
    stated = (base / "config.json").read_text()
    assert "quantization" not in stated  # engines would look for quantized weights
    assert str(tmp_path) not in stated
    ids = tokenizer(" ".join(TEXTS))["input_ids"]
    torch.testing.assert_close(logits(composed, ids)[:, : len(tokenizer)], logits(model, ids))
    for text in TEXTS:
        found = ours(text)["input_ids"]
        assert found == tokenizer(text)["input_ids"]
        assert ours.decode(found) == text
    known = conventions.of(ours)
    assert known.end_tokens == ("<|end|>",)
    assert conventions.render(ours, ["Which?"]) == ["<|user|>Which?<|end|><|model|>"]
    stored = checkpoint.read_manifest(base)["trained"]["quantization"]
    assert (stored["bits"], stored["file"], stored["licence"]) == (said, "tiny.gguf", "mit")
    assert sum(stored["types"].values()) == sum(weight.numel() for weight in model.parameters())


def test_base_of_a_gguf_file_is_trained_loaded_in_bfloat16_and_exported_with_a_card_that_says_its_bits(tmp_path, llama):
    file = tmp_path / "gguf" / "tiny.gguf"
    write(file, *llama)
    base = tmp_path / "models" / "nano" / "base" / "checkpoint"
    models.make_base({"pretrained": str(file), "dtype": "bfloat16"}, base)
    assert {weight.dtype for weight in models.compose(base).parameters()} == {torch.bfloat16}
    model = adapted(base)
    stage = publish(base, base.parents[1] / "sft" / "checkpoint", model.save_pretrained)
    ids = list(range(20, 40))
    torch.testing.assert_close(
        logits(models.compose(stage, torch.float32), ids), logits(model.float(), ids), atol=0.05, rtol=0.05
    )
    export.export(stage, tmp_path / "whole")
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "whose weights were stored in 4 bits in tiny.gguf (Q4_1" in card
    assert "license: mit" in card


def test_converted_folder_gives_the_same_base_as_its_gguf_file(tmp_path, llama):
    file = tmp_path / "gguf" / "tiny.gguf"
    write(file, *llama)
    gguf_files.convert(file, tmp_path / "converted")
    bases = [tmp_path / name / "base" / "checkpoint" for name in ("one", "two")]
    for base, source in zip(bases, (file, tmp_path / "converted"), strict=True):
        models.make_base({"pretrained": str(source)}, base)
    first, second = ({**models.compose(base).state_dict()} for base in bases)
    assert all(torch.equal(first[name], second[name]) for name in first | second)
    one, two = (checkpoint.read_manifest(base)["trained"] for base in bases)
    assert one == two
    assert one["quantization"]["bits"] == 4


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"leave_out": ["model.layers.1.self_attn.q_proj.weight"]}, "weights of LlamaForCausalLM are not in it"),
        ({"rule": "unheard-of"}, "by the rule 'unheard-of'"),
        ({"rule": None}, "by the rule None"),
        ({"split.count": 2}, "one of several parts"),
    ],
)
def test_gguf_file_that_would_be_read_wrongly_is_refused(tmp_path, llama, more, said):
    write(tmp_path / "gguf" / "tiny.gguf", *llama, **more)
    with pytest.raises(UserError, match=said):
        models.make_base({"pretrained": str(tmp_path / "gguf")}, tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_folder_of_several_gguf_files_and_a_file_that_is_not_there_are_refused(tmp_path, llama):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / "gguf" / name).touch()
    with pytest.raises(UserError, match=r"2 GGUF files\. Name one of them, such as .*a\.gguf"):
        models.make_base({"pretrained": str(tmp_path / "gguf")}, tmp_path / "base")
    with pytest.raises(UserError, match=r"There is no file .*c\.gguf"):
        models.make_base({"pretrained": str(tmp_path / "gguf" / "c.gguf")}, tmp_path / "base")
    (tmp_path / "gguf" / "b.gguf").unlink()
    with pytest.raises(UserError, match=r"a\.gguf is damaged, or no GGUF file"):
        models.make_base({"pretrained": str(tmp_path / "gguf")}, tmp_path / "base")


def test_random_weights_are_another_model_with_the_same_tokenizer_that_is_drawn_alike_each_time(tmp_path, llama):
    model, tokenizer = llama
    tokenizer.save_pretrained(tmp_path / "hub")
    spec = {"pretrained": str(tmp_path / "hub"), "random_weights": True}
    for name in ("one", "two"):
        manifest = models.make_base(spec, tmp_path / name)
        assert "quantization" not in manifest["trained"]
    shutil.rmtree(tmp_path / "hub")  # the checkpoint has its own
    first, second = (models.compose(tmp_path / name).state_dict() for name in ("one", "two"))
    assert all(torch.equal(first[name], second[name]) for name in first | second)
    learned = model.state_dict()
    matrices = [name for name in learned if learned[name].ndim == 2 and "embed" not in name and "lm_head" not in name]
    assert matrices
    assert not any(torch.allclose(first[name], learned[name], atol=1e-3) for name in matrices)
    assert tokenization.load(tmp_path / "one")(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]


real = pytest.mark.skipif(not SMOLLM.is_dir(), reason="needs the models of `make pretrained`")


@real
def test_prompt_end_and_digits_of_smollm2_are_as_in_training(tmp_path):
    base = tmp_path / "base"
    assert models.make_base({"pretrained": str(SMOLLM)}, base)["trained"]["quantization"]["bits"] == 4
    tokenizer = tokenization.load(base)
    system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    (prompt,) = conventions.render(tokenizer, ["Which? <protein>KR</protein>"])
    question = "<|im_start|>user\nWhich? <protein><|protein:K|><|protein:R|></protein><|im_end|>\n"
    assert tokenization.expand(prompt) == f"{system}{question}<|im_start|>assistant\n"
    assert conventions.of(tokenizer).end_tokens == ("<|im_end|>",)
    assert conventions.of(tokenizer).start_tokens == ()
    found = tokenizer("1  2024", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(found) == ["1", "ĠĠ", "2", "0", "2", "4"]
