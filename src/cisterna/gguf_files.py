"""Backbones in GGUF, the files of llama.cpp: found, described and read, tokenizer and chat template included.

The weights of most of these files are quantized: stored in blocks of 2 to 8 bits a weight. They are computed once, in
float32, and saved as safetensors, with `quantization.json`, which says what they were stored in:

    {"file": "SmolLM2-135M-Instruct.Q4_1.gguf", "licence": "apache-2.0", "bits": 4,
     "types": {"Q4_1": 106168320, "Q8_0": 28311552, "F32": 35136}}

`types` counts weights by the type of GGUF, `bits` is the fewest that one of them was stored in, and `licence` is there
if the file states it. Not for GGUF on the hub, and not for writing such files.
"""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cisterna.artifacts import files

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FILE = "quantization.json"
# How text is divided before byte pairs are merged (`tokenizer.ggml.pre`), after llama.cpp's src/llama-vocab.cpp: names
# of what transformers does where it knows no name (GPT-2's rule), and of the same after each digit was set apart.
AS_GPT2 = {"gpt-2", "mpt", "olmo", "jais", "phi-2", "roberta-bpe"}
DIGITS_APART = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"}
NOT_WEIGHTS = ("rope_freqs", "rope_factors")  # tables of angles, which transformers computes


def find(name: str) -> Path | None:
    """The GGUF file that `name` is, or that lies alone in the folder `name`; None for all else.

    ValueError for a file that is not there, or a folder of several without a model in safetensors.
    """
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ValueError(f"There is no file {path}.")
        return path
    found = sorted(path.glob("*.gguf")) if path.is_dir() and not any(path.glob("*.safetensors")) else []
    if len(found) > 1:
        raise ValueError(f"It has {len(found)} GGUF files. Name one of them, such as {found[0]}.")
    return found[0] if found else None


def quantization(path: Path) -> dict[str, Any]:
    """What `quantization.json` says of a GGUF file. ValueError if the file is one part of several."""
    reader = _open(path)
    parts = reader.get_field("split.count")
    if parts is not None and parts.contents() > 1:
        raise ValueError("It is one of several parts. Merge them (llama.cpp: llama-gguf-split --merge).")
    types: Counter[str] = Counter()
    for tensor in reader.tensors:
        if not tensor.name.startswith(NOT_WEIGHTS):
            types[tensor.tensor_type.name] += int(tensor.n_elements)
    licence = reader.get_field("general.license")
    stated = {"licence": licence.contents()} if licence else {}
    return {"file": path.name, **stated, "bits": min(map(_bits, types)), "types": dict(types)}


def _open(path: Path) -> "GGUFReader":
    """The header and the tensors of a file. ValueError if it is damaged, or the package gguf is not installed."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ValueError(f"The package gguf is not installed ({error}): pip install -e '.[gguf]'.") from None
    try:
        return GGUFReader(path)
    except (IndexError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or no GGUF file: {error}") from None


def _bits(kind: str) -> int:
    """Bits of a weight of a type of GGUF, without the scales of its block: 4 of Q4_1 and IQ4_XS, 16 of BF16."""
    return int(re.findall(r"\d+", kind)[0])


def load(path: Path) -> "PreTrainedModel":
    """The model of a GGUF file as a plain one in float32.

    ValueError if the file is a part of a model, lacks a weight of it, or has more weights than the model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    stored = sum(quantization(path)["types"].values())
    options = {"gguf_file": path.name, "dtype": "float32", "output_loading_info": True}
    read, found = AutoModelForCausalLM.from_pretrained(path.parent, **options)
    if wrong := sorted(found["missing_keys"]) + sorted(str(key) for key in found["mismatched_keys"]):
        raise ValueError(f"{len(wrong)} weights of {type(read).__name__} are not in it, the first of them {wrong[0]}.")
    # The library marks what it has read from GGUF as quantized, and neither saves nor trains it.
    config = read.config
    del config.quantization_config
    config.name_or_path = ""
    with torch.random.fork_rng(devices=[]):  # the weights that it begins with are drawn at random
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.load_state_dict(read.state_dict())
    expected = sum(weight.numel() for weight in model.parameters())
    # A file may have an output layer of its own that is the embedding once more.
    if stored not in (expected, expected + model.get_input_embeddings().weight.numel()):
        raise ValueError(f"It has {stored:,} weights, and its {type(model).__name__} has {expected:,}.")
    return model


def load_tokenizer(path: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a GGUF file. ValueError if it divides text by a rule that is not known here."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    reader = _open(path)
    kind, rule = (
        field.contents() if (field := reader.get_field(f"tokenizer.ggml.{key}")) else None for key in ("model", "pre")
    )
    if kind is None:
        raise ValueError("It has no tokenizer.")
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    if kind != "gpt2" or rule in AS_GPT2 or rule in GGUF_PRE_TOKENIZER_SPLITS:
        return tokenizer
    if rule not in DIGITS_APART:
        raise ValueError(
            f"Its tokenizer divides text by the rule {rule!r} (tokenizer.ggml.pre), which transformers does not know: "
            "some texts would become other tokens than in training. Use the model's safetensors instead."
        )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def convert(path: Path, folder: Path) -> None:
    """Write a GGUF file as a folder of safetensors, with `quantization.json`."""
    load(path).save_pretrained(folder)
    load_tokenizer(path).save_pretrained(folder)
    files.write_json(folder / FILE, quantization(path))


def read(folder: Path) -> dict[str, Any] | None:
    """What `quantization.json` in a folder says; None without one."""
    path = folder / FILE
    return files.read_json(path) if path.is_file() else None


def describe(stored: Mapping[str, Any]) -> str:
    """What weights were stored in, as a part of a sentence: `4 bits in MODEL.gguf (Q4_1 79%, Q8_0 21%)`."""
    total = sum(stored["types"].values())
    shares = sorted(((count / total, kind) for kind, count in stored["types"].items()), reverse=True)
    named = ", ".join(f"{kind} {share:.0%}" for share, kind in shares if share >= 0.005)
    return f"{stored['bits']} bits in {stored['file']} ({named})"
