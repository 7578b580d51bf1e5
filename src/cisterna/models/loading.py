"""Models from checkpoints: make a base, compose a lineage, load strictly.

`compose` loads the base, merges each ancestor's adapter in order and returns one plain model, with its bridge if it
reads features (`cisterna.sequences.source.connect` connects it to them); a missing or unexpected key, or a hash
that does not match its manifest, is an error that names it. Not for training (`cisterna.training`).
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from cisterna.artifacts import checkpoint, files, weights
from cisterna.errors import UserError
from cisterna.sequences import inputs_file, tokenization
from cisterna.sequences.source import restore

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NEW_ROWS = "new_embeddings.safetensors"


def make_base(spec: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Publish the base checkpoint of a backbone; returns its manifest.

    Two kinds of `spec` (a value of `backbones` in the config): with `architecture` a model is made here, with random
    weights drawn from `seed`, and a tokenizer trained on `tokenizer.files`; with `pretrained` (a hub id or a local
    folder, and a `revision`) the checkpoint holds only what Cisterna adds to it: the tokenizer with residue tokens and
    their embedding rows, drawn around the mean of the model's own rows. The weights stay where they are; those of a
    local folder are hashed, so that another model in its place is noticed. Raises UserError for what cannot be made.
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
            data=_sources(spec),
            trained={},
            measured={"seconds": round(time.perf_counter() - started, 3)},
        )


def _sources(spec: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the files that a base is made from: the tokenizer's text, or a pretrained model in a local folder."""
    if "pretrained" not in spec:
        return {str(path): files.sha256(Path(path)) for path in spec["tokenizer"]["files"]}
    folder = Path(spec["pretrained"])
    return {path.name: files.sha256(path) for path in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")])}


def _create(spec: Mapping[str, Any], folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    tokens = tokenization.build(spec["tokenizer"]["vocab_size"], [Path(file) for file in spec["tokenizer"]["files"]])
    ids = {"eos_token_id": tokens.eos_token_id, "pad_token_id": tokens.pad_token_id}
    model = untrained("backbone", AutoModelForCausalLM, spec["architecture"], tokens, **ids, bos_token_id=None)
    model.generation_config.update(**ids)
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)


def untrained(
    what: str, kind: Any, architecture: Mapping[str, Any], tokens: "PreTrainedTokenizerBase", **ids: int | None
) -> "PreTrainedModel":
    """A model of the auto class `kind` with random weights, for the vocabulary of `tokens`.

    UserError, which names `what`, for an architecture that cannot be built.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    options = dict(architecture)
    try:
        config = AutoConfig.for_model(options.pop("model_type"), vocab_size=len(tokens), **ids, **options)
        model = kind.from_config(config)
        with torch.inference_mode():
            model(torch.tensor([[tokens.pad_token_id]]))  # some shapes that do not fit each other fail only here
    except (StrictDataclassError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{what} architecture {dict(architecture)}: {error}") from None
    return model


def _extend(spec: Mapping[str, Any], folder: Path) -> None:
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    model = _pretrained(spec)
    with _loading(spec):
        tokens = AutoTokenizer.from_pretrained(
            spec["pretrained"], revision=spec.get("revision"), trust_remote_code=False
        )
        if not tokens.encode("A", add_special_tokens=False):  # the empty one that transformers makes without files
            raise ValueError("It has no tokenizer.")
    before = len(tokens)
    # Not normalized: else a tokenizer that rewrites its text would read <|protein:K|> with a Kelvin sign as the token.
    added = (token for token in tokenization.added_tokens() if token not in tokens.get_vocab())
    tokens.add_tokens([AddedToken(token, normalized=False) for token in added])
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


def _embeddings(model: "PreTrainedModel") -> dict[str, Any]:
    """The input embedding, and the output projection where it is not tied to it."""
    found = {"input": model.get_input_embeddings()}
    output = model.get_output_embeddings()
    if output is not None and output.weight is not found["input"].weight:
        found["output"] = output
    return found


@contextmanager
def _loading(spec: Mapping[str, Any]) -> Iterator[None]:
    """Turn what the library raises for a model or tokenizer that it cannot load into a UserError."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(
            f"backbone {spec['pretrained']}: cannot be loaded; expected a hub id or a local folder with config.json, "
            f"safetensors weights and a tokenizer. {str(error).splitlines()[0]}"
        ) from None


def _pretrained(spec: Mapping[str, Any]) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    with _loading(spec):
        return AutoModelForCausalLM.from_pretrained(
            spec["pretrained"],
            revision=spec.get("revision"),
            dtype=spec.get("dtype", "float32"),
            use_safetensors=True,  # never the pickles of pytorch_model.bin, which can run code
            trust_remote_code=False,
        )


def _load_base(folder: Path, manifest: Mapping[str, Any]) -> "PreTrainedModel":
    from transformers import AutoConfig, AutoModelForCausalLM

    spec = manifest["recipe"]
    if "pretrained" in spec:
        model = _pretrained(spec)
        if _sources(spec) != manifest["data"]:
            raise UserError(
                f"backbone {spec['pretrained']}: its files are not those that {folder} was made from. Put them back, "
                f"or delete {folder} and rerun"
            )
        sizes = files.read_json(folder / "tokens.json")
        if len(_embeddings(model)["input"].weight) < sizes["after"]:
            model.resize_token_embeddings(sizes["after"], mean_resizing=False)
            model.name_or_path = ""  # else PEFT would compare the sizes and store the whole matrix with every adapter
        rows = load_file(folder / NEW_ROWS)
        with torch.no_grad():
            for name, module in _embeddings(model).items():
                module.weight[sizes["before"] : sizes["after"]] = rows[name]
        return model
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    weights.load_full(model, folder)
    return model


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
    weights.check(f"{folder}: adapter does", tensors, get_peft_model_state_dict(adapted))
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
        described = inputs_file.read(path)
        if described:
            restore(model, described)
        if (path / "adapter_model.safetensors").is_file():
            model = attach(model, path).merge_and_unload()
        else:
            weights.load_full(model, path)
    if dtype is not None:
        model = model.to(dtype)
    return model.eval()


def base_of(folder: Path) -> Path:
    """The base checkpoint below a checkpoint; it holds the tokenizer of the whole lineage."""
    current = folder
    while (manifest := checkpoint.read_manifest(current))["parent"]:
        current = checkpoint.parent_of(current, manifest)
    return current
