"""A study: its config, and the models and jobs that it expands to. Imports neither torch nor pandas."""

from cisterna.study.expansion import READING, Model, Study, load, read

__all__ = ["READING", "Model", "Study", "load", "read"]
