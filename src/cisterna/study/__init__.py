"""A study: its config, and the models and jobs that it expands to. Imports neither torch nor pandas."""

from cisterna.study.expansion import Study, load, locate, read
from cisterna.study.lineages import Model

__all__ = ["Model", "Study", "load", "locate", "read"]
