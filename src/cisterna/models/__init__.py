"""Models: base checkpoints (`base`), and the model of any checkpoint (`composition`)."""

from cisterna.models.base import make_base, untrained
from cisterna.models.composition import attach, base_of, compose, lora_config

__all__ = ["attach", "base_of", "compose", "lora_config", "make_base", "untrained"]
