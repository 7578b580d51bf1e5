"""Models from checkpoints: the base of a lineage, and the weights that its descendants have changed, loaded strictly.

`make_base` publishes the base checkpoint of a backbone: made here with random weights, or a pretrained model with
residue tokens added. `compose` loads the base, merges the adapter of each descendant in order, and returns one plain
model, with its bridge if it reads features (`cisterna.sequences.source.connect` connects it to them). A missing or
unexpected key, or a hash that does not match its manifest, is an error that names it. Not for training
(`cisterna.training`).
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from cisterna.artifacts import checkpoint, files, weights
from cisterna.errors import UserError, one_line
from cisterna.sequences import inputs_file, tokenization
from cisterna.sequences.source import restore

if TYPE_CHECKING:
    from peft import LoraConfig

NEW_ROWS = "new_embeddings.safetensors"


def make_base(spec: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Publish the base checkpoint of a backbone; returns its manifest.

    `spec` is a value of `backbones` in the config. With `architecture`, the model gets random weights, drawn with
    `seed`, and a tokenizer trained on `tokenizer.files`. With `pretrained` (a hub id or a local folder, and a
    `revision`), the checkpoint has only what Cisterna adds: the tokenizer with residue tokens, and their embedding
    rows, drawn around the mean of the model's own rows. The pretrained weights stay where they are; files of a local
    folder are hashed, so that a later change of them is an error. UserError if the base cannot be made.
    """
    started = time.perf_counter()
    seed = int(spec.get("seed", 0))
    torch.manual_seed(seed)
    with files.new_folder(output) as folder:
        (_extend if "pretrained" in spec else _create)(spec, folder)
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
    """SHA-256 of the files that a base is made from: the tokenizer's text, or a local pretrained model."""
    if "pretrained" not in spec:
        return {str(path): files.sha256(files.locate(path)) for path in spec["tokenizer"]["files"]}
    folder = Path(spec["pretrained"])
    return {path.name: files.sha256(path) for path in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")])}


def _create(spec: Mapping[str, Any], folder: Path) -> None:
    texts = [files.locate(file) for file in spec["tokenizer"]["files"]]
    tokenizer = tokenization.build(spec["tokenizer"]["vocab_size"], texts)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = untrained("backbone", AutoModelForCausalLM, spec["architecture"], tokenizer, **ids, bos_token_id=None)
    model.generation_config.update(**ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def untrained(
    name: str, auto_class: Any, architecture: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, **ids: int | None
) -> PreTrainedModel:
    """A model of `auto_class` with random weights, for the vocabulary of `tokenizer`.

    UserError, which begins with `name`, for an architecture that cannot be built.
    """
    from huggingface_hub.errors import StrictDataclassError

    options = dict(architecture)
    try:
        config = AutoConfig.for_model(options.pop("model_type"), vocab_size=len(tokenizer), **ids, **options)
        model = auto_class.from_config(config)
        with torch.inference_mode():
            model(torch.tensor([[tokenizer.pad_token_id]]))  # some inconsistent shapes fail only here
    except (StrictDataclassError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{name} architecture {dict(architecture)}: {error}") from None
    return model


def _extend(spec: Mapping[str, Any], folder: Path) -> None:
    model = _pretrained(spec)
    with _loading(spec):
        tokenizer = AutoTokenizer.from_pretrained(
            spec["pretrained"], revision=spec.get("revision"), trust_remote_code=False
        )
        if not tokenizer.encode("A", add_special_tokens=False):  # transformers makes an empty one without files
            raise ValueError("It has no tokenizer.")
    before = len(tokenizer)
    # Not normalized: a tokenizer that normalizes its text would read <|protein:K|> with a Kelvin sign as the token.
    added = (token for token in tokenization.added_tokens() if token not in tokenizer.get_vocab())
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    tensors = {}
    for name, module in _embeddings(model).items():
        rows = module.weight.detach().float()[:before]
        noise = torch.randn(len(tokenizer) - before, rows.shape[1]) * rows.std(dim=0) * 0.1
        tensors[name] = (rows.mean(dim=0) + noise).to(module.weight.dtype).contiguous()
    save_file(tensors, folder / NEW_ROWS)
    files.write_json(folder / "tokens.json", {"before": before, "after": len(tokenizer)})


def _embeddings(model: PreTrainedModel) -> dict[str, Any]:
    """The input embedding, and the output projection where it is not tied to it."""
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    tied = last is None or last.weight is first.weight
    return {"input": first} if tied else {"input": first, "output": last}


@contextmanager
def _loading(spec: Mapping[str, Any]) -> Iterator[None]:
    """Turn what the library raises for a model or tokenizer that it cannot load into a UserError."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(
            f"backbone {spec['pretrained']}: cannot be loaded; expected a hub id or a local folder with config.json, "
            f"safetensors weights and a tokenizer. {one_line(error)}"
        ) from None


def _pretrained(spec: Mapping[str, Any]) -> PreTrainedModel:
    with _loading(spec):
        return AutoModelForCausalLM.from_pretrained(
            spec["pretrained"],
            revision=spec.get("revision"),
            dtype=spec.get("dtype", "float32"),
            use_safetensors=True,  # never the pickles of pytorch_model.bin, which can run code
            trust_remote_code=False,
        )


def _load_base(folder: Path, manifest: Mapping[str, Any]) -> PreTrainedModel:
    """The model of a base checkpoint. UserError if the files of a pretrained model have changed since it was made."""
    spec = manifest["recipe"]
    if "pretrained" in spec:
        model = _pretrained(spec)
        if _sources(spec) != manifest["data"]:
            raise UserError(
                f"backbone {spec['pretrained']}: its files have changed since {folder} was made from them. Restore "
                f"them, or delete {folder} and rerun"
            )
        sizes = files.read_json(folder / "tokens.json")
        if len(_embeddings(model)["input"].weight) < sizes["after"]:
            model.resize_token_embeddings(sizes["after"], mean_resizing=False)
            model.name_or_path = ""  # otherwise PEFT notices the new size and saves the matrix with every adapter
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


def attach(model: PreTrainedModel, folder: Path) -> Any:
    """Put the adapter stored in `folder` on a model. Strict: UserError for a missing or unexpected key."""
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    adapted = get_peft_model(model, PeftConfig.from_pretrained(folder))
    tensors = load_file(folder / "adapter_model.safetensors")
    weights.check(folder, tensors, get_peft_model_state_dict(adapted))
    set_peft_model_state_dict(adapted, tensors)
    return adapted


def compose(folder: Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model of a checkpoint: its lineage is verified and loaded from the base on, every adapter merged.

    The model is on the CPU, in evaluation mode; weights are in the base's dtype unless `dtype` names another.
    """
    chain = checkpoint.lineage(folder)
    base, manifest = chain[0]
    if manifest["kind"] != "base":
        raise UserError(f"{base}: a lineage has to begin with a base checkpoint, and this one is {manifest['kind']}")
    model = _load_base(base, manifest)
    for path, _ in chain[1:]:
        if sequence_inputs := inputs_file.read(path):
            restore(model, sequence_inputs)
        if (path / "adapter_model.safetensors").is_file():
            model = attach(model, path).merge_and_unload()
        else:
            weights.load_full(model, path)
    if dtype is not None:
        model = model.to(dtype)
    return model.eval()


def base_of(folder: Path) -> Path:
    """The base checkpoint of a lineage; it has the tokenizer for all of it."""
    while (manifest := checkpoint.read_manifest(folder))["parent"]:
        folder = checkpoint.parent_of(folder, manifest)
    return folder
