"""Tasks: labelled data sets turned into prompt, reasoning trace and answer."""

from cisterna.tasks.base import COLUMNS, SPLIT, Task, quotable, segment
from cisterna.tasks.loading import load, questions, read

__all__ = ["COLUMNS", "SPLIT", "Task", "load", "questions", "quotable", "read", "segment"]
