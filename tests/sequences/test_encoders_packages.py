"""Encoders of packages of their own, ESM-3 and Evo 2: the adapters against small random networks of the same classes.

The packages are optional: docs/encoders.md has the command that installs them for these tests, and without them only
their absence is tested. Evo 2 needs CUDA, FlashAttention and Triton. Where there is no GPU the fixture `package` puts
three stand-ins in their place, and all the rest, network, tokenizer and loading, is the package's own.
"""

import contextlib
import json
import logging
import pkgutil
import re
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from cisterna.errors import UserError
from cisterna.sequences import encoders
from cisterna.sequences.encoders import esm3 as esm3_adapter
from cisterna.sequences.encoders import evo2 as evo2_adapter
from tiny import ROOT

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ESM3_PARTS = ("structure_encoder_fn", "structure_decoder_fn", "function_decoder_fn")
SIZES = {"d_model": 32, "n_heads": 2, "v_heads": 4, "n_layers": 3}
PROTEINS = ["MKVLAAGIC", "WWY", "DPEEQRSTNHFKLMV"]
GENES = ["ACGTACGTGGTTAN", "GGC", "TTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTACG"]


def save_esm3(folder, module, sizes=SIZES):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(sizes))
    save_file(module.state_dict(), folder / "model.safetensors")
    return {"pretrained": str(folder), "revision": None, "package": "esm", "dtype": "float32"}


def replace_weights(source, target, change):
    """A copy of the folder of an encoder, its tensors changed by `change`."""
    target.mkdir()
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors")
    return {"pretrained": str(target)}


@pytest.fixture(scope="module")
def esm3(tmp_path_factory):
    """A small random ESM-3: the config of an encoder that names its folder, and the network."""
    pytest.importorskip(
        "esm.models.esm3", reason="the package esm is not installed (docs/encoders.md)", exc_type=ImportError
    )
    from esm import tokenization
    from esm.models.esm3 import ESM3

    torch.manual_seed(0)
    tokens = types.SimpleNamespace(sequence=tokenization.EsmSequenceTokenizer())
    module = ESM3(**SIZES, **dict.fromkeys(ESM3_PARTS), tokenizers=tokens).eval()
    return types.SimpleNamespace(spec=save_esm3(tmp_path_factory.mktemp("esm") / "small", module), module=module)


def esm3_states(esm3, sequence):
    """Hidden states of one sequence as the package itself makes them: without padding, without a mask."""
    caught = []
    hooks = [
        esm3.module.encoder.register_forward_hook(lambda *call: caught.append(call[-1])),
        esm3.module.transformer.register_forward_hook(lambda *call: caught.append(call[-1])),
    ]
    tokens = torch.tensor([esm3.module.tokenizers.sequence.encode(sequence)])
    with torch.no_grad():
        found = esm3.module(sequence_tokens=tokens)
    for hook in hooks:
        hook.remove()
    embeddings, (normed, last, hidden) = caught
    assert torch.equal(last, found.embeddings)
    return [state[0, 1:-1] for state in (embeddings, *hidden, normed)]


@pytest.mark.parametrize(
    ("layer", "state"),
    [
        (0, 0),
        (1, 1),
        (3, 3),
        (-1, 3),
        (-4, 0),
        ("transformer.blocks.1", 2),
        ("transformer.norm", 4),
        ("transformer", 4),
    ],
)
def test_esm3_gives_the_packages_own_hidden_state(esm3, layer, state):
    encoder = esm3_adapter.load(esm3.spec, layer, CPU)
    for sequence in PROTEINS:
        (found,) = encoder.forward([sequence], "protein")
        assert found.shape == (len(sequence), SIZES["d_model"])
        torch.testing.assert_close(found, esm3_states(esm3, sequence)[state], rtol=1e-5, atol=1e-5)


def test_esm3_rows_do_not_depend_on_the_padding_of_a_batch(esm3):
    encoder = esm3_adapter.load(esm3.spec, -1, CPU)
    together = encoder.forward(PROTEINS, "protein")
    for sequence, found in zip(PROTEINS, together, strict=True):
        torch.testing.assert_close(found, encoder.forward([sequence], "protein")[0], rtol=1e-5, atol=1e-5)


def test_esm3_says_what_it_gives(esm3):
    encoder = esm3_adapter.load(esm3.spec, "transformer.blocks.1.ffn.1", CPU)
    (found,) = encoder.forward(["MKV"], "protein")
    assert (encoder.name, encoder.revision) == (esm3.spec["pretrained"], None)
    assert (encoder.dtype, encoder.width) == (found.dtype, found.shape[1]) == (torch.float32, 512)
    assert not encoder.module.training


@pytest.mark.gpu
def test_esm3_in_bfloat16_on_a_gpu_is_near_float32(esm3):
    spec = esm3.spec | {"dtype": "auto"}
    (exact,) = esm3_adapter.load(esm3.spec, -1, CPU).forward([PROTEINS[0]], "protein")
    encoder = esm3_adapter.load(spec, -1, DEVICE)
    (found,) = encoder.forward([PROTEINS[0]], "protein")
    assert found.device.type == "cuda"
    assert encoder.dtype == torch.bfloat16
    torch.testing.assert_close(found.float().cpu(), exact, rtol=0.05, atol=0.05 * float(exact.abs().max()))


def test_esm3_is_an_encoder_like_others(esm3, tmp_path):
    encoders.refer(esm3.spec, tmp_path / "checkpoint")
    encoder = encoders.load(tmp_path / "checkpoint", -1)
    reading = {"letters": {"J": "X"}, "batch_tokens": 20, "pool": 2, "storage": "bfloat16"}
    found = encoders.encode(encoder, [*PROTEINS, "MJV"], "protein", reading)
    assert [tuple(rows.shape) for rows in found] == [(5, 32), (2, 32), (8, 32), (2, 32)]
    assert not any(weight.requires_grad for weight in encoder.module.parameters())


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (4, r"layer 4 does not exist; it has 3 layers \(0 to 3\)"),
        (-5, "layer -5 does not exist"),
        ("blocks.2", "no module blocks.2; expected a name such as encoder, transformer.blocks.0"),
    ],
)
def test_esm3_refuses_a_layer_that_it_does_not_have(esm3, layer, message):
    with pytest.raises(UserError, match=message):
        esm3_adapter.load(esm3.spec, layer, CPU)


@pytest.mark.parametrize(
    ("sequence", "modality", "message"),
    [
        ("MKJ", "protein", "cannot read J of MKJ; expected ABCDEFGHIKLMNOPQRSTUVWXYZ .see `letters`"),
        ("MK|V", "protein", r"cannot read \| of"),
        ("mkv", "protein", "cannot read k, m, v of"),
        ("ACGT", "dna", "reads protein, not dna"),
    ],
)
def test_esm3_refuses_what_it_cannot_read(esm3, sequence, modality, message):
    with pytest.raises(UserError, match=message):
        esm3_adapter.load(esm3.spec, -1, CPU).forward([sequence], modality)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("transformer.norm.weight"), "Missing.*transformer.norm.weight"),
        (lambda tensors: tensors.update(other=torch.zeros(1)), "Unexpected.*other"),
        (lambda tensors: tensors.update({"transformer.norm.weight": torch.ones(9)}), "size mismatch"),
    ],
)
def test_esm3_refuses_weights_that_do_not_fit(esm3, tmp_path, change, message):
    spec = replace_weights(Path(esm3.spec["pretrained"]), tmp_path / "other", change)
    with pytest.raises(UserError, match=f"do not fit.*{message}"):
        esm3_adapter.load(spec, -1, CPU)


def test_esm3_refuses_a_folder_of_another_kind(esm3, tmp_path):
    with pytest.raises(UserError, match=r"expected config.json and model.safetensors"):
        esm3_adapter.load({"pretrained": str(tmp_path)}, -1, CPU)
    spec = save_esm3(tmp_path / "esm2", esm3.module, {"hidden_size": 32})
    with pytest.raises(UserError, match="expected exactly the keys d_model, n_heads, v_heads, n_layers"):
        esm3_adapter.load(spec, -1, CPU)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_esm3_on_a_cpu_refuses_half_precision(esm3, dtype):
    with pytest.raises(UserError, match=f"dtype {dtype}; expected auto, float32"):
        esm3_adapter.load(esm3.spec | {"dtype": dtype}, -1, CPU)


def test_esm3_refuses_a_name_that_the_package_does_not_know(esm3):
    with pytest.raises(UserError, match=r"esm2_t6.*expected esm3-sm-open-v1"):
        esm3_adapter.load({"pretrained": "facebook/esm2_t6_8M_UR50D"}, -1, CPU)


def test_esm3_from_the_hub_reports_its_revision_and_refuses_another(esm3, monkeypatch, tmp_path):
    from esm.models.esm3 import ESM3
    from esm.utils.constants import esm3 as constants

    monkeypatch.setattr(constants, "data_root", lambda model: tmp_path / "snapshots" / "abc123")
    monkeypatch.setattr(ESM3, "from_pretrained", lambda name, device: esm3.module)
    spec = {"pretrained": "esm3-sm-open-v1"}
    assert esm3_adapter.load(spec, -1, CPU).revision == "abc123"
    assert esm3_adapter.load(spec | {"revision": "abc123"}, -1, CPU).revision == "abc123"
    with pytest.raises(UserError, match="revision 000000, but the package esm takes abc123"):
        esm3_adapter.load(spec | {"revision": "000000"}, -1, CPU)


def test_esm3_from_a_hub_that_cannot_be_reached_is_an_error(esm3, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"esm3-sm-open-v1: .*the hub.*HF_TOKEN"):
        esm3_adapter.load({"pretrained": "esm3-sm-open-v1"}, -1, CPU)


def test_missing_esm_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "esm.utils.constants.models", None)
    with pytest.raises(UserError, match=re.escape(esm3_adapter.INSTALL)):
        esm3_adapter.load({"pretrained": "esm3-sm-open-v1"}, -1, CPU)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The packages evo2 and vtx, with stand-ins for what exists only on a GPU, if there is none."""
    pytest.importorskip("vortex", reason="the packages evo2 and vtx are not installed (docs/encoders.md)")
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE.type == "cpu":
            patch.setitem(sys.modules, "flash_attn_2_cuda", types.ModuleType("flash_attn_2_cuda"))
            kernel = types.ModuleType("vortex.ops.embedding.rotary")
            kernel.apply_rotary = apply_rotary
            patch.setitem(sys.modules, kernel.__name__, kernel)
            patch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        folder = tmp_path_factory.mktemp("evo2")
        with contextlib.chdir(folder):  # the package writes activations_debug.log where it is imported
            pytest.importorskip("evo2.models", reason="the packages evo2 and vtx are not installed (docs/encoders.md)")
        from vortex.logging import activations_file_handler

        logging.getLogger().removeHandler(activations_file_handler)
        yield folder


def apply_rotary(x, cos, sin, seqlen_offsets=0, cu_seqlens=None, inplace=False, interleaved=False, **options):
    """In place of the Triton kernel: the package's own formula of it in PyTorch."""
    from vortex.model.rotary import apply_rotary_emb_torch

    assert cu_seqlens is None
    assert seqlen_offsets == 0
    length = x.shape[1]
    turned = apply_rotary_emb_torch(x, cos[:length], sin[:length], interleaved)
    return x.copy_(turned) if inplace else turned


@pytest.fixture(scope="module")
def evo2(package):
    """A small random Evo 2 with a block of each kind: the config of an encoder, and the package's own model."""
    from evo2 import Evo2
    from vortex.model.model import StripedHyena
    from vortex.model.tokenizer import CharLevelTokenizer
    from vortex.model.utils import dotdict, load_checkpoint

    config = yaml.safe_load(pkgutil.get_data("evo2", "configs/evo2-7b-8k.yml")) | {
        "hidden_size": 32,
        "num_filters": 32,
        "hcl_filter_groups": 32,
        "hcm_filter_groups": 8,
        "hcs_filter_groups": 8,
        "num_attention_heads": 2,
        "inner_mlp_size": 48,
        "state_size": 4,
        "num_layers": 4,
        "hcs_layer_idxs": [0],
        "hcm_layer_idxs": [1],
        "hcl_layer_idxs": [2],
        "attn_layer_idxs": [3],
        "use_fp8_input_projections": False,
        "use_flash_attn": DEVICE.type == "cuda",
    }
    torch.manual_seed(0)
    module = StripedHyena(dotdict(config))
    tensors = {
        name: -torch.rand(tensor.shape)
        if name.endswith("log_poles")
        else 0.3 * torch.randn(tensor.shape)
        if tensor.dim() > 1
        else tensor.float().cpu()
        for name, tensor in module.state_dict().items()
        if not name.endswith("._extra_state")
    }
    folder = package / "small"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    # The package's own way to the same weights.
    torch.save(tensors, package / "small.pt")
    load_checkpoint(module, package / "small.pt")
    own = Evo2.__new__(Evo2)
    own.model, own.tokenizer = module.eval(), CharLevelTokenizer(512)
    spec = {"pretrained": str(folder), "revision": None, "package": "evo2", "dtype": "auto"}
    return types.SimpleNamespace(spec=spec, own=own, folder=folder)


@pytest.mark.parametrize(
    ("layer", "name"),
    [(0, "embedding_layer"), (1, "blocks.0"), (-1, "blocks.3"), ("blocks.2.mlp.l3", "blocks.2.mlp.l3")],
)
def test_evo2_gives_the_packages_own_embeddings(evo2, layer, name):
    from evo2.scoring import prepare_batch

    encoder = evo2_adapter.load(evo2.spec, layer, DEVICE)
    with torch.no_grad():
        found = encoder.forward(GENES, "dna")
    tokens, lengths = prepare_batch(GENES, evo2.own.tokenizer, device=DEVICE)
    own = evo2.own(tokens, return_embeddings=True, layer_names=[name])[1][name]
    for rows, expected, length in zip(found, own, lengths, strict=True):
        assert rows.shape == (length, encoder.width)
        assert rows.dtype == encoder.dtype == torch.bfloat16
        assert torch.equal(rows, expected[:length])
        assert rows.float().std() > 0


def test_evo2_rows_do_not_depend_on_the_padding_of_a_batch(evo2):
    encoder = evo2_adapter.load(evo2.spec, -1, DEVICE)
    with torch.no_grad():
        together = encoder.forward(GENES, "dna")
        for sequence, found in zip(GENES, together, strict=True):
            (alone,) = encoder.forward([sequence], "dna")
            # Convolutions by FFT round by the length of the batch; the network computes in bfloat16 (8 bits).
            scale = float(alone.float().abs().max())
            torch.testing.assert_close(found.float(), alone.float(), rtol=0, atol=2**-6 * scale)


def test_evo2_is_an_encoder_like_others(evo2, tmp_path):
    encoders.refer(evo2.spec, tmp_path / "checkpoint")
    encoder = encoders.load(tmp_path / "checkpoint", "blocks.2.mlp.l3", DEVICE)
    reading = {"letters": {"U": "T"}, "batch_tokens": 50, "pool": 4, "storage": "bfloat16"}
    found = encoders.encode(encoder, ["ACGUACGU", "GG"], "rna", reading)
    assert [tuple(rows.shape) for rows in found] == [(2, 32), (1, 32)]
    assert found[0].device == CPU


def test_evo2_by_name_is_the_packages_model(evo2, monkeypatch):
    from evo2 import Evo2

    monkeypatch.setattr(Evo2, "load_evo2_model", lambda *arguments, **options: evo2.own.model)
    spec = {"pretrained": "evo2_7b_base", "dtype": "bfloat16"}
    if DEVICE.type == "cpu":
        with pytest.raises(UserError, match="Evo 2 needs an NVIDIA GPU"):
            evo2_adapter.load(spec, -1, CPU)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    encoder = evo2_adapter.load(spec, -1, DEVICE)
    assert encoder.module is evo2.own.model
    assert (encoder.name, encoder.revision, encoder.width) == ("evo2_7b_base", None, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrained": "evo3_1t"}, "evo3_1t: expected one of evo2_40b"),
        ({"pretrained": "evo2_7b", "revision": "abc"}, "always takes the newest revision; leave revision out"),
        ({"dtype": "float32"}, "dtype float32; .*bfloat16"),
    ],
)
def test_evo2_refuses_what_the_package_cannot_give(evo2, changes, message):
    with pytest.raises(UserError, match=message):
        evo2_adapter.load(evo2.spec | changes, -1, DEVICE)


def test_evo2_refuses_a_layer_that_it_does_not_have(evo2):
    with pytest.raises(UserError, match=r"layer 5 does not exist; it has 4 layers \(0 to 4\)"):
        evo2_adapter.load(evo2.spec, 5, DEVICE)
    with pytest.raises(UserError, match=r"no module blocks.20.mlp.l3; expected a name such as embedding_layer"):
        evo2_adapter.load(evo2.spec, "blocks.20.mlp.l3", DEVICE)


@pytest.mark.parametrize(
    ("sequence", "modality", "message"),
    [
        ("ACGU", "rna", "cannot read U of ACGU; expected A, C, G, T, N .see `letters`: {U: T}"),
        ("acgt", "dna", "cannot read a, c, g, t of"),
        ("MKV", "protein", "reads DNA, not protein"),
    ],
)
def test_evo2_refuses_what_it_cannot_read(evo2, sequence, modality, message):
    with pytest.raises(UserError, match=message):
        evo2_adapter.load(evo2.spec, -1, DEVICE).forward([sequence], modality)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("norm.scale"), r"missing \['norm.scale'\], unexpected \[\]"),
        (lambda tensors: tensors.update(other=torch.zeros(1)), r"missing \[\], unexpected \['other'\]"),
        (lambda tensors: tensors.update({"norm.scale": torch.ones(9)}), "size mismatch for norm.scale"),
    ],
)
def test_evo2_refuses_weights_that_do_not_fit(evo2, tmp_path, change, message):
    spec = replace_weights(evo2.folder, tmp_path / "other", change)
    with pytest.raises(UserError, match=f"not fit .*{message}"):
        evo2_adapter.load(spec, -1, DEVICE)


def test_evo2_refuses_a_folder_of_another_kind(evo2, tmp_path):
    with pytest.raises(UserError, match=r"expected config.json and model.safetensors"):
        evo2_adapter.load({"pretrained": str(tmp_path)}, -1, DEVICE)
    (tmp_path / "model.safetensors").write_bytes((evo2.folder / "model.safetensors").read_bytes())
    config = json.loads((evo2.folder / "config.json").read_text()) | {"use_fp8_input_projections": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="expected use_fp8_input_projections: false"):
        evo2_adapter.load({"pretrained": str(tmp_path)}, -1, DEVICE)


def test_missing_evo2_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "evo2.models", None)
    with pytest.raises(UserError, match=re.escape(evo2_adapter.INSTALL)):
        evo2_adapter.load({"pretrained": "evo2_1b_base"}, -1, CPU)


def test_documents_and_messages_name_the_pinned_versions():
    lines = (ROOT / "requirements-optional.lock").read_text().splitlines()
    pinned = {line.partition(";")[0] for line in lines if not line.startswith("#")}
    text = (ROOT / "docs" / "encoders.md").read_text() + esm3_adapter.INSTALL + evo2_adapter.INSTALL
    named = set(re.findall(r"[a-z0-9-]+==[0-9.]+(?:post[0-9]+)?", text))
    assert any(pin.startswith("esm==") for pin in named)
    assert named <= pinned
