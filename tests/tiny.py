"""Tiny but real parts of tests: a backbone, an encoder, the sizes of a task, published checkpoints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TEXTS = [ROOT / "resources" / "corpora" / "text.txt", ROOT / "resources" / "tokenizer" / "task_text.txt"]
SIZES = {"train": 64, "validation": 16, "id": 24, "ood": 24}
ESM = {
    "model_type": "esm",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "position_embedding_type": "rotary",
    "initializer_range": 0.5,  # so that untrained features tell a residue's neighbours
}
READING = {"layer": -1, "pool": None, "flank": 1024, "letters": {}, "storage": "float16"}
READING |= {"batch_tokens": 4096, "trained": False}


def backbone(seed: int = 0, **architecture: object) -> dict[str, Any]:
    """A value of `backbones` in the config: a Qwen3 of 50,000 parameters. Paths are absolute."""
    shape = {
        "model_type": "qwen3",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    }
    return {
        "architecture": shape | architecture,
        "tokenizer": {"vocab_size": 400, "files": [str(path) for path in TEXTS]},
        "seed": seed,
    }


def encoder(output: Path, seed: int = 0, **architecture: object) -> Path:
    """Publish an encoder as `cisterna encoder` makes it, with random weights."""
    import torch

    from cisterna.artifacts import checkpoint, files
    from cisterna.sequences import tokenization
    from cisterna.training import encoder as stage

    torch.manual_seed(seed)
    tokenizer = tokenization.build_for_encoder()
    model = stage.make(ESM | architecture, tokenizer)
    facts: dict[str, Any] = {"recipe": {"architecture": ESM | architecture}, "data": {}, "trained": {}, "measured": {}}
    with files.new_folder(output) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        checkpoint.write_manifest(folder, published=output, kind="encoder", parent=None, seed=seed, **facts)
    return output


def publish(parent: Path, output: Path, save: Callable[[Path], Any], kind: str = "sft", train: str = "0" * 64) -> Path:
    """Publish what `save` writes into a folder as a checkpoint trained from `parent`; `train` is its data's SHA-256."""
    from cisterna.artifacts import checkpoint, files

    facts: dict[str, Any] = {"recipe": {"learning_rate": 1e-3}, "data": {"train.parquet": train}}
    facts |= {"trained": {"steps": 1}, "measured": {"seconds": 1.0}}
    with files.new_folder(output) as folder:
        save(folder)
        checkpoint.write_manifest(folder, published=output, kind=kind, parent=parent, seed=0, **facts)
    return output


def adapted(parent: Path, seed: int = 1, dtype: Any = None, size: float = 0.1, **lora: object) -> Any:
    """The model of `parent` with a LoRA adapter (rank 8 by default), every trainable weight moved at random."""
    import torch
    from peft import get_peft_model

    from cisterna import models

    model = get_peft_model(models.compose(parent, dtype), models.lora_config({"r": 8, "lora_alpha": 16} | lora)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model


def hub_model(folder: Path, tie: bool, spare: int, size: int = 400, think: bool = True) -> Any:
    """A model and its tokenizer in a local folder as on the hub: a Qwen3 with `spare` more rows than tokens."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers import models as cores
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    from cisterna.sequences.tokenization import THINK

    core = Tokenizer(cores.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"vocab_size": size, "special_tokens": ["<|end|>"], "initial_alphabet": alphabet}
    core.train([str(TEXTS[0])], trainers.BpeTrainer(**options, show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>")
    if think:
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in THINK])  # as Qwen3 has them
    tokenizer.save_pretrained(folder)
    shape = backbone()["architecture"] | {"vocab_size": len(tokenizer) + spare, "tie_word_embeddings": tie}
    torch.manual_seed(7)
    model = Qwen3ForCausalLM(Qwen3Config(**shape, eos_token_id=tokenizer.eos_token_id)).eval()
    model.save_pretrained(folder)
    return model, tokenizer
