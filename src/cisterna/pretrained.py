"""Text models of transformers as backbones: loaded strictly, and the tables of embeddings that a new token needs.

A multimodal checkpoint (Gemma 3 and 4, Mistral 3) becomes the text model in it: trainers, merges and generation then
meet the same class as for a text checkpoint of the family. Its other parts (vision, audio) are not kept. Not for
lineages (`cisterna.models`).
"""

import copy
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from cisterna.errors import UserError, one_line

_LENGTH = 12  # tokens of the text with which a model is checked


def load(name: str, revision: str | None, dtype: str) -> tuple[PreTrainedModel, list[str]]:
    """The text model of a hub id or a folder, and the names of stored weights that are not in it.

    ValueError if a weight of the model is not stored or has another shape (the library would draw it at random), if
    there is an adapter beside the weights, or if a multimodal model has no text model of a class of its own; OSError
    and others as `from_pretrained`.
    """
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    text_only = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    model, found = (AutoModelForCausalLM if text_only else AutoModelForImageTextToText).from_pretrained(
        name,
        config=config,
        revision=revision,
        dtype=dtype,
        use_safetensors=True,  # never the pickles of pytorch_model.bin, which can run code
        trust_remote_code=False,
        ignore_mismatched_sizes=True,  # refused below
        output_loading_info=True,
    )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError("An adapter lies beside its weights (adapter_config.json), and would be a part of the model.")
    if other := sorted(found["mismatched_keys"]):
        name, stored, expected = other[0]
        raise ValueError(
            f"Its files have {len(other)} weights of other shapes than its config.json says, the first of them {name}: "
            f"{tuple(stored)}, expected {tuple(expected)}."
        )
    text = _text_model(model)
    kept = {id(tensor) for tensor in text.state_dict(keep_vars=True).values()}
    unused = {name for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) not in kept}
    if missing := sorted(set(found["missing_keys"]) - unused):
        raise ValueError(
            f"Its files lack {len(missing)} weights of {type(text).__name__}, the first of them {missing[0]}. They "
            "would be random."
        )
    return text, sorted((unused - set(found["missing_keys"])) | set(found["unexpected_keys"]))


def _text_model(model: PreTrainedModel) -> PreTrainedModel:
    """The text model in a multimodal one, with the same modules; a text model is returned as it is."""
    if model.config.get_text_config(decoder=True) is model.config:
        return model
    decoder, output = model.get_decoder(), model.get_output_embeddings()
    text_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(decoder.config), None)
    if text_class is None or output is None:
        raise ValueError(f"{type(model).__name__} is multimodal, and its text model has no class of its own.")
    decoder.config.tie_word_embeddings = output.weight is model.get_input_embeddings().weight
    with torch.device("meta"):
        text = text_class(decoder.config)
    if type(text.base_model) is not type(decoder):
        raise ValueError(f"{type(model).__name__} is multimodal, and its text model is not a {text_class.__name__}.")
    setattr(text, text.base_model_prefix, decoder)
    text.set_output_embeddings(output)
    text.generation_config = model.generation_config
    return text.eval()


def embeddings(model: PreTrainedModel) -> dict[str, Any]:
    """The tables with one row a token, each once.

    They are the input embedding, the output layer where it is not tied to it, and in Gemma 3n and 4 the per-layer
    embedding, of which every layer reads a part.
    """
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    tables: dict[str, Any] = {"input": first}
    if last is not None and last.weight is not first.weight:
        tables["output"] = last
    if getattr(model.config, "hidden_size_per_layer_input", None):
        tables["per_layer"] = model.get_per_layer_input_embeddings()
    return tables


# --- What a family has to do ---


def number_positions(model: PreTrainedModel) -> None:
    """Let a model with learned positions (GPT-2) count them from the first token of a text, not from the padding.

    `generate` gives such a model its positions, but trainers that score padded texts do not.
    """
    limit = getattr(model.config, "max_position_embeddings", None) or 0
    ours = {id(table) for table in embeddings(model).values()}
    others = (part for part in model.modules() if isinstance(part, torch.nn.Embedding) and id(part) not in ours)
    if any(limit <= table.num_embeddings <= limit + 2 for table in others):  # OPT and BioGPT do not use the first two
        model.register_forward_pre_hook(_give_positions, with_kwargs=True)


def _give_positions(model: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    mask, ids = options.get("attention_mask"), arguments[0] if arguments else options.get("input_ids")
    if ids is None or mask is None or mask.ndim != 2 or options.get("position_ids") is not None:
        return None
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    return arguments, options | {"position_ids": positions}


def check(model: PreTrainedModel, name: str) -> None:
    """UserError for a model that reads padded texts, or the rest of a text after its cache, otherwise than a text.

    Also for one whose output is not finite.
    """
    text = _Text(model)
    if not torch.isfinite(text.logits).all():
        raise UserError(f"{name}: {type(model).__name__} computes values that are not finite. Check its weights")
    ids, mask = text.ids, torch.ones_like(text.ids)
    padded = torch.cat([mask[:, :5], ids], dim=1), torch.cat([mask[:, :5] * 0, mask], dim=1)
    if text.read_otherwise(lambda: model(padded[0], attention_mask=padded[1]).logits[:, 5:]):
        raise UserError(f"{name}: {type(model).__name__} reads a text otherwise after padding. Use another backbone")
    if text.read_otherwise(lambda: _continued(model, ids, 7)):
        raise UserError(f"{name}: {type(model).__name__} does not read on from its cache. Use another backbone")


def restart_positions(documents: list[list[int]]) -> dict[str, torch.Tensor]:
    """What a model is given for documents in one block of CPT: ids, and positions that restart at each document."""
    positions = [torch.arange(len(document)) for document in documents]
    return {"input_ids": torch.tensor([list(chain(*documents))]), "position_ids": torch.cat(positions)[None]}


def check_documents(
    model: PreTrainedModel,
    pack: Callable[[list[list[int]]], Mapping[str, Any]] = restart_positions,
    use: str = "continued pre-training packs documents into blocks",
    advice: str = "leave out cpt",
) -> None:
    """UserError for a model that does not keep the documents of a packed block apart, as layers with a state do not.

    `pack` gives the inputs of the model for documents in one row; `use` says who packs, `advice` how to do without.
    """
    text = _Text(model)
    inputs = pack([text.ids[0].flip(0).tolist(), text.ids[0].tolist()])
    inputs = {key: value.to(model.device) if torch.is_tensor(value) else value for key, value in inputs.items()}
    advice = f"Use a backbone with attention in all layers, or {advice}"
    try:
        leaks = text.read_otherwise(lambda: model(**inputs, use_cache=False).logits[:, _LENGTH:])
    except ValueError as error:  # transformers knows that some layers could not keep them apart here
        raise UserError(f"{use}: {type(model).__name__}: {one_line(error)} {advice}") from None
    if leaks:
        raise UserError(
            f"{use}, and {type(model).__name__} reads one document with what it has read of others. {advice}"
        )


def _continued(model: PreTrainedModel, ids: torch.Tensor, begin: int) -> torch.Tensor:
    """Logits of a text that is read in two parts; NaN where the model has no cache of the usual kind."""
    try:
        begun = model(ids[:, :begin], use_cache=True)
        cache = copy.deepcopy(begun.past_key_values)
        rest = model(ids[:, begin:], past_key_values=cache, use_cache=True)
    except (AttributeError, TypeError, ValueError, NotImplementedError):
        return torch.full((1, ids.shape[1], 1), torch.nan, device=ids.device)
    return torch.cat([begun.logits, rest.logits], dim=1)


class _Text:
    """A text of 12 tokens, read by a model: what it is to be compared with, and how exactly."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.ids = torch.linspace(1, model.get_input_embeddings().num_embeddings - 1, _LENGTH, device=model.device)
        self.ids = self.ids.long()[None]
        self.logits = self._read(lambda: model(self.ids, use_cache=False).logits)
        # Rounding is enlarged by each layer, and in bfloat16 it is no small thing. So it is measured: the embeddings
        # are changed in their last bit.
        hook = model.get_input_embeddings().register_forward_hook(_change_last_bit)
        rounding = self._distance(lambda: model(self.ids, use_cache=False).logits)
        hook.remove()
        self.limit = max(0.001, 3 * rounding)

    def read_otherwise(self, read: Callable[[], torch.Tensor]) -> bool:
        """Whether logits of the text that are got in another way differ by more than rounding."""
        return not self._distance(read) < self.limit

    def _distance(self, read: Callable[[], torch.Tensor]) -> float:
        """How far logits are off, relative to their spread: the median over positions (experts may change at some)."""
        spread = (self.logits - self.logits.mean(dim=-1, keepdim=True)).norm(dim=-1)
        spread = spread.clamp(min=torch.finfo(spread.dtype).tiny)  # a padding token may have an embedding of zeros
        return float(((self._read(read) - self.logits).norm(dim=-1) / spread).median())

    def _read(self, read: Callable[[], torch.Tensor]) -> torch.Tensor:
        training = self.model.training
        try:
            self.model.eval()
            with torch.no_grad():
                return read().float()
        finally:
            self.model.train(training)


def _change_last_bit(module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
    signs = torch.arange(output.numel(), device=output.device).view_as(output) % 2 * 2 - 1
    kind = output.device.type
    computes_in = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else output.dtype
    return (output.float() * (1 + torch.finfo(computes_in).eps * signs)).to(output.dtype)
