"""Tasks: labelled data sets turned into prompt, reasoning trace and answer (see `base`)."""

from cisterna.tasks.base import COLUMNS, SPLIT, Task, load, questions, quotable, read, segment

__all__ = ["COLUMNS", "SPLIT", "Task", "load", "questions", "quotable", "read", "segment"]
