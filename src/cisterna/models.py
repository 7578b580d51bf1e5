"""Models from checkpoints: the base of a lineage, and the weights that its descendants have changed, loaded strictly.

`make_base` publishes the base checkpoint of a backbone: made here with random weights, or a pretrained model with
residue tokens added. `compose` loads the base, merges the adapter of each descendant in order, and returns one plain
model, with its bridge if it reads features (`cisterna.sequences.source.connect` connects it to them). A missing or
unexpected key, or a hash that does not match its manifest, is an error that names it. Not for training
(`cisterna.training`).
"""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from cisterna import gguf_files, imported, pretrained, updates
from cisterna.artifacts import adapter, checkpoint, files, weights
from cisterna.errors import UserError, one_line
from cisterna.sequences import bridge, conventions, inputs_file, tokenization
from cisterna.sequences.source import restore

if TYPE_CHECKING:
    from peft import LoraConfig

NEW_ROWS = "new_embeddings.safetensors"
ADAPTER = "adapter_model.safetensors"
BRIDGE = "bridge.safetensors"


def make_base(spec: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Publish the base checkpoint of a backbone; returns its manifest.

    `spec` is a value of `backbones` in the config. With `architecture`, the model gets random weights, drawn with
    `seed`, and a tokenizer trained on `tokenizer.files`. With `pretrained` (a hub id or a local folder, and a
    `revision`), the checkpoint has only what Cisterna adds: the tokenizer with residue tokens, and their embedding
    rows, drawn around the mean of the model's own rows. The pretrained weights stay where they are; files of a local
    folder are hashed, so that a later change of them is an error. Those of a GGUF file are not used as they are: the
    checkpoint has them all. So it has with `random_weights`, which draws them anew. UserError if the base cannot be
    made.
    """
    started = time.perf_counter()
    seed = int(spec.get("seed", 0))
    torch.manual_seed(seed)
    with files.new_folder(output) as folder:
        (_extend if "pretrained" in spec else _create)(spec, folder)
        stored = gguf_files.read(folder)
        return checkpoint.write_manifest(
            folder,
            published=output,
            kind="base",
            parent=None,
            recipe=spec,
            seed=seed,
            data=_sources(spec),
            trained={"quantization": stored} if stored else {},
            measured={"seconds": round(time.perf_counter() - started, 3)},
        )


def _sources(spec: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the files that a base is made from: the tokenizer's text, or a local pretrained model."""
    if "pretrained" not in spec:
        return {str(path): files.sha256(files.locate(path)) for path in spec["tokenizer"]["files"]}
    gguf = gguf_files.find(spec["pretrained"])
    hashes = {gguf.name: files.sha256(gguf)} if gguf else _hashes(Path(spec["pretrained"]))
    if "bridge" in spec and (file := Path(spec["pretrained"]) / spec["bridge"]["file"]).is_file():
        hashes[file.name] = files.sha256(file)
    if part := _published_adapter(spec):
        hashes |= {f"base {name}": digest for name, digest in _hashes(Path(part.base)).items()}
    return hashes


def _hashes(folder: Path) -> dict[str, str]:
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
    model, unused = _pretrained(spec)
    if unused:
        print(
            f"{len(unused)} weights are no part of {type(model).__name__} and are not used: {_parts(unused)}",
            flush=True,
        )
    with _loading(spec):
        gguf = gguf_files.find(spec["pretrained"])
        part, name, revision = _published_adapter(spec), spec["pretrained"], spec.get("revision")
        if part and not (part.folder / "tokenizer_config.json").is_file():
            name, revision = part.base, part.revision
        if gguf:
            tokenizer = gguf_files.load_tokenizer(gguf)
        else:
            tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
        if not tokenizer.encode("A", add_special_tokens=False):  # transformers makes an empty one without files
            raise ValueError("It has no tokenizer.")
        known = conventions.derive(tokenizer, model, spec.get("chat_template_kwargs"))
        if not spec.get("think_tokens", True):
            conventions.check_text_marks(tokenizer)
    pretrained.check(model, f"backbone {spec['pretrained']}")
    if not known.thinking:
        print(
            f"warning: backbone {spec['pretrained']}: its chat template switches thinking off. Its outputs are answers "
            "without reasoning, and SFT does not teach the reasoning of the data. To switch it on, give the backbone "
            "chat_template_kwargs, for most models {enable_thinking: true}",
            file=sys.stderr,
        )
    # Some tokenizers have tokens that their model has no rows for; these are new too.
    before = min(len(tokenizer), *(len(table.weight) for table in pretrained.embeddings(model).values()))
    # Not normalized: a tokenizer that normalizes its text would read <|protein:K|> with a Kelvin sign as the token.
    ours = tokenization.added_tokens(think=spec.get("think_tokens", True))
    added = (token for token in ours if token not in tokenizer.get_vocab())
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    if tokenizer.eos_token is None:
        tokenizer.eos_token = known.end_tokens[0]
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    conventions.write(folder, known)
    tokenizer.save_pretrained(folder)
    tensors = {}
    for name, module in pretrained.embeddings(model).items():
        rows = module.weight.detach().float()[:before]
        noise = torch.randn(len(tokenizer) - before, rows.shape[1]) * rows.std(dim=0) * 0.1
        tensors[name] = (rows.mean(dim=0) + noise).to(module.weight.dtype).contiguous()
    if "bridge" in spec:
        with _loading(spec):
            layer = imported.read_bridge(spec["pretrained"], spec.get("revision"), spec["bridge"]["file"])
            hidden = model.get_input_embeddings().weight.shape[1]
            if len(layer["weight"]) != hidden:
                raise ValueError(
                    f"{spec['bridge']['file']} writes embeddings of width {len(layer['weight'])}; expected {hidden}, "
                    "that of the model."
                )
        save_file(layer, folder / BRIDGE)
        _take_marks(tokenizer, model, tensors, before)
    whole = gguf is not None or spec.get("random_weights", False)
    if whole:
        _put_rows(model, tensors, before, len(tokenizer))
        model.save_pretrained(folder)
    else:
        save_file(tensors, folder / NEW_ROWS)
        files.write_json(folder / "tokens.json", {"before": before, "after": len(tokenizer)})
    stored = gguf_files.quantization(gguf) if gguf else gguf_files.read(Path(spec["pretrained"]))
    if stored and not spec.get("random_weights"):
        files.write_json(folder / gguf_files.FILE, stored)


def _put_rows(model: PreTrainedModel, new: Mapping[str, torch.Tensor], before: int, after: int) -> None:
    """Give the tables of embeddings of a model `after` rows at least, with the `new` ones from row `before` on."""
    if min(len(table.weight) for table in pretrained.embeddings(model).values()) < after:
        rows = max(after, model.get_input_embeddings().num_embeddings)
        model.resize_token_embeddings(rows, mean_resizing=False)
        model.name_or_path = ""  # otherwise PEFT notices the new size and saves the matrix with every adapter
    with torch.no_grad():
        for name, table in pretrained.embeddings(model).items():
            table.weight[before:after] = new[name]


def _take_marks(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, tensors: dict[str, torch.Tensor], before: int
) -> None:
    """Give the tags around a sequence the rows of the tokens that the model has around features (BioReason's names)."""
    vocabulary = tokenizer.get_vocab()
    for modality in tokenization.ALPHABETS:
        for own, theirs in ((f"<{modality}>", "start"), (f"</{modality}>", "end")):
            row, known = vocabulary[own], vocabulary.get(f"<|{modality}_{theirs}|>")
            if known is not None and known < before <= row:
                for name, table in pretrained.embeddings(model).items():
                    tensors[name][row - before] = table.weight.detach()[known]


def _parts(names: list[str]) -> str:
    """The parts of a model that weights are in, such as `model.vision_tower`."""
    return ", ".join(sorted({".".join(name.split(".")[:2]) for name in names}))


@contextmanager
def _loading(spec: Mapping[str, Any]) -> Iterator[None]:
    """Turn what the library raises for a model or tokenizer that it cannot load into a UserError."""
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"backbone {spec['pretrained']}: cannot be loaded; expected a hub id, a local folder with config.json, "
            f"safetensors weights and a tokenizer, or a GGUF file. {one_line(error)}"
        ) from None


def _published_adapter(spec: Mapping[str, Any]) -> imported.Adapter | None:
    """The adapter that a backbone is, with its base; None for a whole model."""
    with _loading(spec):
        if "pretrained" not in spec or gguf_files.find(spec["pretrained"]):
            return None
        return imported.find(spec["pretrained"], spec.get("revision"))


def published_adapter(base: Path, spec: Mapping[str, Any]) -> imported.Adapter | None:
    """The adapter that the backbone of a base checkpoint is, with its base; None for a whole model."""
    return None if has_weights(base) else _published_adapter(spec)


def has_weights(base: Path) -> bool:
    """Whether a base checkpoint has all weights: made here, or from a GGUF file. Others refer to those of a model."""
    return (base / "config.json").is_file()


def _pretrained(
    spec: Mapping[str, Any], dtype: torch.dtype | None = None, merged: bool = True
) -> tuple[PreTrainedModel, list[str]]:
    part = _published_adapter(spec)
    unused: list[str] = []
    with _loading(spec):
        name, revision = (part.base, part.revision) if part else (spec["pretrained"], spec.get("revision"))
        gguf = gguf_files.find(name)
        if gguf:
            model = gguf_files.load(gguf)
            if spec.get("dtype", "auto") != "auto":
                cast(model, getattr(torch, spec["dtype"]))
        else:
            model, unused = pretrained.load(name, revision, spec.get("dtype", "float32"))
    if part:
        if dtype is not None:
            cast(model, dtype)
        try:
            model = _load_adapter(model, part.folder, merged)
        except TypeError as error:
            raise UserError(f"{part.folder}: PEFT cannot read this adapter: {one_line(error)}") from None
    if spec.get("random_weights"):
        model, unused = type(model)(model.config).to(model.dtype).eval(), []
    pretrained.number_positions(model)
    return model, unused


def _load_base(
    folder: Path, manifest: Mapping[str, Any], dtype: torch.dtype | None = None, merged: bool = True
) -> PreTrainedModel:
    """The model of a base checkpoint. UserError if the files of a pretrained model have changed since it was made.

    `dtype` and `merged` are for the adapter of a published model, as in `compose`.
    """
    spec = manifest["recipe"]
    if not has_weights(folder):
        model, _ = _pretrained(spec, dtype, merged)
        if _sources(spec) != manifest["data"]:
            raise UserError(
                f"backbone {spec['pretrained']}: its files have changed since {folder} was made from them. Restore "
                f"them, or delete {folder} and rerun"
            )
        sizes = files.read_json(folder / "tokens.json")
        new, tables = load_file(folder / NEW_ROWS), pretrained.embeddings(model)
        if new.keys() != tables.keys():
            raise UserError(
                f"{folder}: it has embeddings of new tokens for {sorted(new)}, expected {sorted(tables)}; it was made "
                "by an earlier version. Delete it and rerun"
            )
        _put_rows(model, new, sizes["before"], sizes["after"])
    else:
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        weights.load_full(model, folder)
        pretrained.number_positions(model)
    if (folder / BRIDGE).is_file():
        layer = load_file(folder / BRIDGE)
        bridge.attach(model, "projection", layer["weight"].shape[1])
        model.bridge.load_state_dict(layer)
    return model


def lora_config(options: Mapping[str, Any]) -> "LoraConfig":
    """The PEFT configuration of a recipe's `lora` block; options by their PEFT names, all linear layers by default."""
    from peft import LoraConfig

    return LoraConfig(**({"task_type": "CAUSAL_LM", "target_modules": "all-linear"} | dict(options)))


def attach(model: PreTrainedModel, folder: Path) -> Any:
    """Put the adapter stored in `folder` on a model. Strict: UserError for a missing or unexpected key."""
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    adapted = get_peft_model(model, adapter.read(folder))
    tensors = load_file(folder / ADAPTER)
    weights.check(folder, tensors, get_peft_model_state_dict(adapted))
    set_peft_model_state_dict(adapted, tensors)
    return adapted


def compose(folder: Path, dtype: torch.dtype | None = None, merged: bool = True) -> PreTrainedModel:
    """The model of a checkpoint: its lineage is verified and loaded from the base on.

    Weights are in the base's dtype, or that of full weights that a stage has stored, unless `dtype` names another. The
    update of an adapter is merged into weights in float32 and kept beside those of lower precision, where a merge would
    round it away; beside all of them where `merged` is False, for a model that is to compute in lower precision than
    its weights have. Modules that an adapter has trained in full, and a bridge, are in float32 always. The model is on
    the CPU, in evaluation mode. UserError if less than `updates.KEPT` of an adapter's update would be left.
    """
    chain = checkpoint.lineage(folder)
    base, manifest = chain[0]
    if manifest["kind"] != "base":
        raise UserError(f"{base}: a lineage has to begin with a base checkpoint, and this one is {manifest['kind']}")
    full = max(number for number, (path, _) in enumerate(chain) if not is_adapter(path))  # these replace all before
    # An adapter of others is put on the model after the cast, as the adapters of stages are.
    lower = dtype if full == 0 and published_adapter(base, manifest["recipe"]) else None
    model = _load_base(base, manifest, lower, merged)
    for number, (path, _) in enumerate(chain):
        if sequence_inputs := inputs_file.read(path):
            restore(model, sequence_inputs)
        if is_adapter(path):
            replaced = number < full
            model = attach(model, path).merge_and_unload() if replaced else _load_adapter(model, path, merged)
        elif number > 0:
            weights.load_full(model, path)
        if number == full and dtype is not None and lower is None:
            cast(model, dtype)
    if any(hasattr(module, "update_down") for module in model.modules()):
        model.save_pretrained = _refuse_to_save
    conventions.obey(model, tokenization.load(base))
    return model.eval()


def _refuse_to_save(*_: Any, **__: Any) -> None:
    raise UserError("save_pretrained would lose the updates beside the weights; compose the model in torch.float32")


def is_adapter(folder: Path) -> bool:
    """Whether a checkpoint is an adapter, and not full weights."""
    return (folder / ADAPTER).is_file()


def cast(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Cast the weights of the backbone; a bridge, and an encoder that is part of it, convert what they take and give.

    Buffers stay as they are: the frequencies of rotary positions have to be in float32, as `from_pretrained` has them.
    """
    for name, part in model.named_children():
        if name not in ("bridge", "encoder"):
            for weight in part.parameters():
                weight.data = weight.data.to(dtype)


def _load_adapter(model: PreTrainedModel, folder: Path, merged: bool) -> PreTrainedModel:
    """The model with the update of the adapter in `folder`, merged into it or beside it (see `compose`)."""
    adapted = _attach_wide(model, folder)
    for name, layer in list(updates.adapted_layers(adapted)):
        if (kept := _place(adapted.get_base_model(), layer, merged)) is not None:
            updates.check(kept, f"{folder}: {name}")
            above, _, last = name.rpartition(".")
            setattr(adapted.get_submodule(above), last, layer.get_base_layer())
    return adapted.merge_and_unload()  # what is not beside a weight, and the modules that were trained in full


def _attach_wide(model: PreTrainedModel, folder: Path) -> Any:
    """`attach`, with the modules that were trained in full in float32 if they are stored in it."""
    with safe_open(folder / ADAPTER, "pt") as stored:
        full = {name for name in stored.keys() if "lora_" not in name}  # noqa: SIM118 (it is no dict)
        wide = {name.removeprefix(updates.PREFIX) for name in full if stored.get_slice(name).get_dtype() == "F32"}
    for name, module in list(model.named_modules()):
        if any(f"{name}.{own}" in wide for own, _ in module.named_parameters(recurse=False)):
            updates.widen(model, module)
    return attach(model, folder)


def _place(model: PreTrainedModel, layer: Any, merged: bool) -> float | None:
    """Put the update of a layer's adapter beside the weight, and return the share that is there; or leave it to merge.

    It is left, None, where the weight is in float32. A weight of lower precision is brought to float32 for an update
    that is not low-rank (DoRA), and for embeddings and the output layer, whose weight other code reads. If these two
    are tied, the one with the adapter gets a weight of its own: the other had no part in the update.
    """
    base = layer.get_base_layer()
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if layer not in ends and updates.can_stack(layer) and (updates.low(base.weight) or not merged):
        return updates.stack(base, *updates.factors(layer))
    if layer in ends and ends[1] is not None and ends[0].weight is ends[1].weight:
        base.weight = torch.nn.Parameter(base.weight.detach().clone())
    updates.widen(model, base)
    return None


def rounded_stage(folder: Path, dtype: torch.dtype) -> tuple[Path, float | None] | None:
    """The stage of a lineage whose full weights, cast to `dtype`, lose too much of their update, and the share left.

    None where there is none; a share of None where its checkpoint, of an earlier version, does not say. Adapters lose
    nothing (see `compose`).
    """
    for path, manifest in reversed(checkpoint.ancestors(folder)[1:]):
        kept = manifest["measured"].get("update_kept", {}).get(str(dtype).removeprefix("torch."))
        if not is_adapter(path) and (kept is None or kept < updates.KEPT):
            return path, kept
    return None


def update_kept(parent: Path, folder: Path) -> float:
    """The share of the update that was trained on `parent`, an adapter in `folder`, which the model of the two has."""
    from peft.utils import ModulesToSaveWrapper

    model = compose(parent)
    if sequence_inputs := inputs_file.read(folder):
        restore(model, sequence_inputs)
    adapted = _attach_wide(model, folder)
    pairs = [(0.0, 0.0)]  # dot products: of what is there with what was trained, and of that with itself
    for _, layer in updates.adapted_layers(adapted):
        adapter, base = layer.active_adapters[0], layer.get_base_layer()
        before, beside = base.weight.detach().float().clone(), updates.update(base)
        trained = layer.get_delta_weight(adapter).float()
        if _place(adapted.get_base_model(), layer, merged=True) is None:
            layer.merge()
        there = base.weight.detach().float() - before + (updates.update(base) - beside)
        if adapter not in layer.lora_variant:  # DoRA: the update is what the merge, always in float32, makes of it
            pairs.append(((there * trained).sum(), (trained * trained).sum()))
    stored = load_file(folder / ADAPTER)
    for name, module in adapted.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            before = dict(module.original_module.named_parameters())
            for own, now in module.modules_to_save[module.active_adapters[0]].named_parameters():
                trained = stored[f"{name}.{own}"].float() - before[own].float()
                pairs.append((((now.float() - before[own].float()) * trained).sum(), (trained * trained).sum()))
    return updates.share(*(sum(map(float, column)) for column in zip(*pairs, strict=True)))


def base_of(folder: Path) -> Path:
    """The base checkpoint of a lineage; it has the tokenizer for all of it."""
    return checkpoint.ancestors(folder)[0][0]
