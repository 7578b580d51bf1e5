"""Models from checkpoints: make a base, compose a lineage, load strictly.

`compose` loads the base, merges each ancestor's adapter in order and returns one plain model; a missing or unexpected
key, or a hash that does not match its manifest, is an error that names it. Not for training (`cisterna.training`).
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from cisterna import checkpoint, files, tokenizer
from cisterna.errors import UserError

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

NEW_ROWS = "new_embeddings.safetensors"


def make_base(spec: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Publish the base checkpoint of a backbone; returns its manifest.

    Two kinds of `spec` (a value of `backbones` in the config): with `architecture` a model is made here, with random
    weights drawn from `seed`, and a tokenizer trained on `tokenizer.files`; with `pretrained` (a hub id or a local
    folder, and a `revision`) the checkpoint holds only what Cisterna adds to it: the tokenizer with residue tokens and
    their embedding rows, drawn around the mean of the model's own rows.
    """
    started = time.perf_counter()
    seed = int(spec.get("seed", 0))
    torch.manual_seed(seed)
    with files.new_folder(output) as folder:
        if "pretrained" in spec:
            _extend(spec, folder)
        else:
            _create(spec, folder)
        return checkpoint.write_manifest(
            folder,
            published=output,
            kind="base",
            parent=None,
            recipe=spec,
            seed=seed,
            data={str(path): files.sha256(Path(path)) for path in spec.get("tokenizer", {}).get("files", [])},
            trained={},
            measured={"seconds": round(time.perf_counter() - started, 3)},
        )


def _create(spec: Mapping[str, Any], folder: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    tokens = tokenizer.build(spec["tokenizer"]["vocab_size"], [Path(file) for file in spec["tokenizer"]["files"]])
    options = dict(spec["architecture"])
    try:
        config = AutoConfig.for_model(
            options.pop("model_type"),
            vocab_size=len(tokens),
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
            bos_token_id=None,
            **options,
        )
        model = AutoModelForCausalLM.from_config(config)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"backbone architecture {dict(spec['architecture'])}: {error}") from None
    model.generation_config.eos_token_id = tokens.eos_token_id
    model.generation_config.pad_token_id = tokens.pad_token_id
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)


def _extend(spec: Mapping[str, Any], folder: Path) -> None:
    from transformers import AutoTokenizer

    model = _pretrained(spec)  # first: its error says what to do where there is no such model
    tokens = AutoTokenizer.from_pretrained(spec["pretrained"], revision=spec.get("revision"))
    before = len(tokens)
    tokens.add_tokens([token for token in tokenizer.tokens() if token not in tokens.get_vocab()])
    if tokens.pad_token is None:
        tokens.pad_token = tokens.eos_token
    tokens.save_pretrained(folder)
    tensors = {}
    for name, module in _embeddings(model).items():
        rows = module.weight.detach().float()[:before]
        noise = torch.randn(len(tokens) - before, rows.shape[1]) * rows.std(dim=0) * 0.1
        tensors[name] = (rows.mean(dim=0) + noise).to(module.weight.dtype).contiguous()
    save_file(tensors, folder / NEW_ROWS)
    files.write_json(folder / "tokens.json", {"before": before, "after": len(tokens)})


def _embeddings(model: "PreTrainedModel") -> dict[str, torch.nn.Module]:
    """The input embedding, and the output projection where it is not tied to it."""
    found = {"input": model.get_input_embeddings()}
    output = model.get_output_embeddings()
    if output is not None and output.weight is not found["input"].weight:
        found["output"] = output
    return found


def _pretrained(spec: Mapping[str, Any]) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(
            spec["pretrained"], revision=spec.get("revision"), dtype=spec.get("dtype", "float32")
        )
    except OSError as error:
        raise UserError(
            f"backbone {spec['pretrained']}: cannot be loaded; expected a hub id or a local folder with config.json "
            f"and safetensors weights. {str(error).splitlines()[0]}"
        ) from None


def _load_base(folder: Path, manifest: Mapping[str, Any]) -> "PreTrainedModel":
    from transformers import AutoConfig, AutoModelForCausalLM

    spec = manifest["recipe"]
    if "pretrained" in spec:
        model = _pretrained(spec)
        sizes = files.read_json(folder / "tokens.json")
        if len(_embeddings(model)["input"].weight) < sizes["after"]:
            model.resize_token_embeddings(sizes["after"], mean_resizing=False)
        rows = load_file(folder / NEW_ROWS)
        with torch.no_grad():
            for name, module in _embeddings(model).items():
                module.weight[sizes["before"] : sizes["after"]] = rows[name]
        return model
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    load_full(model, folder)
    return model


def load_full(model: torch.nn.Module, folder: Path) -> None:
    """Load full weights (safetensors, one file or shards), every key present and none left over, or UserError."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        tensors.update(load_file(path))
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    missing, unexpected = model.load_state_dict(tensors, strict=False)  # both lists are checked on the next lines
    missing = [key for key in missing if key not in tied]
    if missing or unexpected:
        raise UserError(f"{folder}: weights do not fit the model; missing {missing[:5]}, unexpected {unexpected[:5]}")
    if hasattr(model, "tie_weights"):
        model.tie_weights()


def lora_config(options: Mapping[str, Any]) -> "LoraConfig":
    """The PEFT configuration of a recipe's `lora` block; options by their PEFT names, all linear layers by default."""
    from peft import LoraConfig

    return LoraConfig(**({"task_type": "CAUSAL_LM", "target_modules": "all-linear"} | dict(options)))


def attach(model: "PreTrainedModel", folder: Path, trainable: bool = False) -> Any:
    """Put the adapter stored in `folder` on a model. Strict: UserError for a missing or unexpected key."""
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    config = PeftConfig.from_pretrained(folder)
    config.inference_mode = not trainable
    adapted = get_peft_model(model, config)
    tensors = load_file(folder / "adapter_model.safetensors")
    expected = set(get_peft_model_state_dict(adapted))
    missing, unexpected = sorted(expected - set(tensors)), sorted(set(tensors) - expected)
    if missing or unexpected:
        raise UserError(f"{folder}: adapter does not fit the model; missing {missing[:5]}, unexpected {unexpected[:5]}")
    set_peft_model_state_dict(adapted, tensors)
    return adapted


def compose(folder: Path, dtype: torch.dtype | None = None) -> "PreTrainedModel":
    """The model of a checkpoint: its verified lineage loaded from the base on, every adapter merged.

    Weights are in the base's dtype unless `dtype` is given; on the CPU, in evaluation mode.
    """
    chain = checkpoint.lineage(folder)
    base, manifest = chain[0]
    if manifest["kind"] != "base":
        raise UserError(f"{base}: a lineage has to begin with a base checkpoint, this is {manifest['kind']}")
    model = _load_base(base, manifest)
    for path, _ in chain[1:]:
        if (path / "adapter_model.safetensors").is_file():
            model = attach(model, path).merge_and_unload()
        else:
            load_full(model, path)
    if dtype is not None:
        model = model.to(dtype)
    return model.eval()


def base_of(folder: Path) -> Path:
    """The base checkpoint below a checkpoint; it holds the tokenizer of the whole lineage."""
    current = folder
    while (manifest := checkpoint.read_manifest(current))["parent"]:
        current = checkpoint.parent_of(current, manifest)
    return current
