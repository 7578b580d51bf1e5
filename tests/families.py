"""A tiny random model of each decoder family, in a folder as on the hub."""

from pathlib import Path
from typing import Any

from tiny import hub_model

# The form of those that have no keys of their own.
COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # so that what a model reads matters
    "pad_token_id": 5,  # not that of the tokenizer
    "bos_token_id": None,
}
GROUPED = {"num_key_value_heads": 2}
HEADS = GROUPED | {"head_dim": 8}
SLIDING = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
GEMMA4 = HEADS | SLIDING | {"num_hidden_layers": 4, "layer_types": SLIDING["layer_types"] * 2}
GEMMA4 |= {"global_head_dim": 16, "hidden_size_per_layer_input": 4, "num_kv_shared_layers": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3ForCausalLM", HEADS),
    "qwen3.5": ("Qwen3_5ForCausalLM", HEADS | LINEAR | {"layer_types": ["linear_attention", "full_attention"]}),
    "llama": ("LlamaForCausalLM", GROUPED),
    "gemma3": ("Gemma3ForCausalLM", HEADS | SLIDING | {"query_pre_attn_scalar": 8}),
    "gemma4": ("Gemma4ForCausalLM", GEMMA4 | {"use_double_wide_mlp": True}),
    "olmo2": ("Olmo2ForCausalLM", GROUPED),
    "olmo3": ("Olmo3ForCausalLM", GROUPED | SLIDING),
    "phi": ("PhiForCausalLM", {}),
    "phi3": ("Phi3ForCausalLM", GROUPED),
    "mistral": ("MistralForCausalLM", GROUPED | {"sliding_window": 16}),
    "smollm3": ("SmolLM3ForCausalLM", GROUPED | {"no_rope_layers": [1, 0]}),
    "gpt-neox": ("GPTNeoXForCausalLM", {}),
    "gpt2": ("GPT2LMHeadModel", {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
}

# Mixtures of experts, of which less is tested.
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FORMS = FAMILIES | {"qwen3-moe": ("Qwen3MoeForCausalLM", HEADS | EXPERTS)}


def make(name: str, folder: Path, **more: Any) -> Any:
    """Save a model of a family with its tokenizer; returns the model. `more` are keys of its config."""
    import torch
    import transformers

    _, tokenizer = hub_model(folder, tie=True, spare=0)
    model_class, shape = FORMS[name]
    model_class = getattr(transformers, model_class)
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    if name == "gemma4":
        ids["vocab_size_per_layer_input"] = len(tokenizer)
    torch.manual_seed(7)
    model = model_class(model_class.config_class(**COMMON | shape | ids | more)).eval()
    for path in folder.glob("*.safetensors"):
        path.unlink()
    # Bytes that no text in English has end an output too, so that random outputs differ in length, and a reward in RL.
    ends = [tokenizer.eos_token_id, *range(100, 140)]
    model.generation_config = transformers.GenerationConfig(eos_token_id=ends)
    model.save_pretrained(folder)
    return model
