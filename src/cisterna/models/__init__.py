"""Models from checkpoints (see `loading`)."""

from cisterna.models.loading import attach, base_of, compose, lora_config, make_base, untrained

__all__ = ["attach", "base_of", "compose", "lora_config", "make_base", "untrained"]
