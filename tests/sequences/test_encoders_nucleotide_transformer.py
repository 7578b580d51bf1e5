"""Nucleotide Transformer v2: a folder as its authors publish it, compared with the network written down again here."""

import itertools
import json
import math

import pytest
import torch
from safetensors.torch import save_file

from cisterna.errors import UserError
from cisterna.sequences.encoders import huggingface

WIDTH, WIDE, HEADS, LAYERS = 16, 24, 2, 2
# What the published code imports, in its folder as `modeling_esm.py` and `esm_config.py`: the first is gone from
# transformers 5, so a test passes only if neither is imported.
CODE = "from transformers.pytorch_utils import find_pruneable_heads_and_indices, prune_linear_layer\n"
CONFIG = {
    "add_bias_fnn": False,
    "architectures": ["EsmForMaskedLM"],
    "attention_probs_dropout_prob": 0.0,
    "auto_map": {"AutoConfig": "esm_config.EsmConfig", "AutoModelForMaskedLM": "modeling_esm.EsmForMaskedLM"},
    "emb_layer_norm_before": False,
    "esmfold_config": None,
    "hidden_dropout_prob": 0.0,
    "hidden_size": WIDTH,
    "intermediate_size": WIDE,
    "is_folding_model": False,
    "layer_norm_eps": 1e-12,
    "mask_token_id": 2,
    "max_position_embeddings": 2050,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "pad_token_id": 1,
    "position_embedding_type": "rotary",
    "tie_word_embeddings": False,
    "token_dropout": False,
    "torch_dtype": "float32",
    "transformers_version": "4.32.0.dev0",
    "use_cache": False,
    "vocab_list": None,
}
SIXES = ["".join(letters) for letters in itertools.product("ATCG", repeat=6)]
WORDS = ["<unk>", "<pad>", "<mask>", "<cls>", "<eos>", "<bos>", *SIXES, *"ATCGN"]


def weights():
    """Random weights under the published names, with those that only the published heads have."""
    torch.manual_seed(0)
    made = {"esm.embeddings.word_embeddings.weight": torch.randn(len(WORDS), WIDTH)}
    made |= {"esm.embeddings.position_ids": torch.arange(2050)[None]}
    for number in range(LAYERS):
        layer = f"esm.encoder.layer.{number}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            made[f"{layer}.attention.{part}.weight"] = torch.randn(WIDTH, WIDTH) / 2
            made[f"{layer}.attention.{part}.bias"] = torch.randn(WIDTH) / 2
        made[f"{layer}.attention.self.rotary_embeddings.inv_freq"] = frequencies()
        for norm in ("attention.LayerNorm", "LayerNorm"):
            made[f"{layer}.{norm}.weight"], made[f"{layer}.{norm}.bias"] = torch.randn(2, WIDTH)
        made[f"{layer}.intermediate.dense.weight"] = torch.randn(2 * WIDE, WIDTH) / 2
        made[f"{layer}.output.dense.weight"] = torch.randn(WIDTH, WIDE) / 2
    norm = "esm.encoder.emb_layer_norm_after"
    made[f"{norm}.weight"], made[f"{norm}.bias"] = torch.randn(2, WIDTH)
    made["esm.contact_head.regression.weight"] = torch.randn(1, LAYERS * HEADS)
    made["esm.contact_head.regression.bias"] = torch.randn(1)
    made["lm_head.bias"] = torch.randn(len(WORDS))
    return made


def frequencies():
    size = WIDTH // HEADS
    return 1 / 10000 ** (torch.arange(0, size, 2).float() / size)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return publish(tmp_path_factory.mktemp("published"), weights())


def publish(folder, tensors):
    """The files of the hub."""
    (folder / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": len(WORDS)}))
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    (folder / "tokenizer_config.json").write_text(
        '{"eos_token": null, "model_max_length": 2048, "tokenizer_class": "EsmTokenizer"}'
    )
    special = {"cls_token": "<cls>", "mask_token": "<mask>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    for name in ("modeling_esm", "esm_config"):
        (folder / f"{name}.py").write_text(CODE)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def states(made, ids):
    """Every hidden state of one text, from the paper and the names of the weights alone."""

    def dense(name, x):
        bias = made.get(f"{name}.bias")
        return x @ made[f"{name}.weight"].T + (0 if bias is None else bias)

    def norm(name, x):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-12).sqrt()
        return x * made[f"{name}.weight"] + made[f"{name}.bias"]

    def rotated(x):
        angles = torch.arange(len(ids))[:, None] * frequencies()
        first, second = x.chunk(2, dim=-1)
        return torch.cat(
            [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], dim=-1
        )

    def heads(x):
        return x.view(len(ids), HEADS, -1).transpose(0, 1)

    x = made["esm.embeddings.word_embeddings.weight"][ids]
    found = [x]
    for number in range(LAYERS):
        layer = f"esm.encoder.layer.{number}"
        y = norm(f"{layer}.attention.LayerNorm", x)
        query, key, value = (heads(dense(f"{layer}.attention.self.{part}", y)) for part in ("query", "key", "value"))
        scores = rotated(query) @ rotated(key).transpose(1, 2) / math.sqrt(WIDTH // HEADS)
        mixed = (scores.softmax(-1) @ value).transpose(0, 1).reshape(len(ids), WIDTH)
        x = x + dense(f"{layer}.attention.output.dense", mixed)
        gate, value = dense(f"{layer}.intermediate.dense", norm(f"{layer}.LayerNorm", x)).chunk(2, dim=-1)
        x = x + dense(f"{layer}.output.dense", gate * gate.sigmoid() * value)
        found.append(x)
    found[-1] = norm("esm.encoder.emb_layer_norm_after", x)
    return found


def load(folder, layer=-1, **spec):
    return huggingface.load({"pretrained": str(folder)} | spec, layer, torch.device("cpu"))


@pytest.mark.parametrize("layer", [0, 1, -1])
@pytest.mark.parametrize("trusted", [False, True])
def test_published_weights_give_the_published_network_without_running_its_code(folder, layer, trusted):
    made = weights()
    texts = {"ATTGCACG": ["<cls>", "ATTGCA", "C", "G"], "ATTGCATTAGGCNACGTAC": None}
    texts["ATTGCATTAGGCNACGTAC"] = ["<cls>", "ATTGCA", "TTAGGC", "N", "ACGTAC"]
    rows = load(folder, layer, trust_remote_code=trusted).forward(list(texts), "dna")
    for (text, tokens), found in zip(texts.items(), rows, strict=True):
        expected = states(made, [WORDS.index(token) for token in tokens])[layer][1:]
        lengths = torch.tensor([len(token) for token in tokens[1:]])
        assert len(found) == len(text)
        torch.testing.assert_close(found, expected.repeat_interleave(lengths, dim=0), atol=1e-4, rtol=1e-4)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    made = weights()
    made["esm.encoder.layer.0.intermediate.dense.weight"] = torch.randn(WIDE, WIDTH)  # not gated
    del made["esm.encoder.layer.1.output.dense.weight"]
    with pytest.raises(UserError, match="weights do not fit the model") as caught:
        load(publish(tmp_path, made))
    assert "layer.0.intermediate.dense.weight" in str(caught.value)
    assert "layer.1.output.dense.weight" in str(caught.value)
