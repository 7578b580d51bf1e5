"""Text models of transformers as backbones: loaded strictly, and the tables of embeddings that a new token needs.

A multimodal checkpoint (Gemma 3 and 4, Mistral 3) becomes the text model in it: trainers, merges and generation then
meet the same class as for a text checkpoint of the family. Its other parts (vision, audio) are not kept. Not for
lineages (`cisterna.models`).
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from cisterna.errors import UserError


def load(name: str, revision: str | None, dtype: str) -> tuple[PreTrainedModel, list[str]]:
    """The text model of a hub id or a folder, and the names of stored weights that are not in it.

    ValueError if a weight of the model is not stored (the library would draw it at random), or if a multimodal model
    has no text model of a class of its own; OSError and others as `from_pretrained`.
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
        output_loading_info=True,
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
    """UserError for a model that reads padded texts, or the rest of a text after its cache, otherwise than a text."""
    advice = "Use another backbone"
    with _reading(model) as (ids, alone):
        mask = torch.ones_like(ids)
        padded = torch.cat([torch.zeros_like(ids[:, :5]), ids], dim=1), torch.cat([mask[:, :5] * 0, mask], dim=1)
        if _differ(model(padded[0], attention_mask=padded[1]).logits[:, 5:], alone):
            raise UserError(f"{name}: {type(model).__name__} reads a text otherwise after padding. {advice}")
        try:
            cache = copy.deepcopy(model(ids[:, :7], use_cache=True).past_key_values)
            rest = model(ids[:, 7:], past_key_values=cache, use_cache=True).logits
        except (AttributeError, TypeError, ValueError, NotImplementedError):  # it has another kind of state
            rest = None
        if rest is None or _differ(rest, alone[:, 7:]):
            raise UserError(f"{name}: {type(model).__name__} does not read on from its cache. {advice}")


def check_documents(model: PreTrainedModel) -> None:
    """UserError for a model that does not keep the documents of a packed block apart, as layers with a state do not."""
    with _reading(model) as (ids, alone):
        twice = torch.arange(ids.shape[1]).repeat(2)[None]
        packed = model(ids.repeat(1, 2), position_ids=twice, use_cache=False).logits
        if _differ(packed[:, ids.shape[1] :], alone):
            raise UserError(
                f"continued pre-training packs documents into blocks, and {type(model).__name__} reads one document "
                "with what it has read of others. Use a backbone with attention in all layers, or leave out cpt"
            )


@contextmanager
def _reading(model: PreTrainedModel) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A text of 12 tokens and its logits, with the model in evaluation mode."""
    training, size = model.training, model.get_input_embeddings().num_embeddings
    ids = torch.linspace(1, size - 1, 12, device=model.device).long()[None]
    try:
        with torch.no_grad():
            yield ids, model.eval()(ids, use_cache=False).logits
    finally:
        model.train(training)


def _differ(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether logits differ by more than the rounding of bfloat16, at most positions (experts may change at some)."""
    spread = (expected - expected.mean(dim=-1, keepdim=True)).float().norm(dim=-1)
    return bool(((found - expected).float().norm(dim=-1) / spread).median() > 0.1)
