"""YAML with the line of every key.

PyYAML by itself keeps the last of a key's repetitions without a word, and forgets lines.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cisterna.errors import UserError, one_line
from cisterna.study.config.problems import Key, Place, Problems, show

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C where PyYAML has it


def parse(path: Path, problems: Problems) -> dict[Any, Any]:
    """The mapping in a YAML file. `problems` gets the place of every key, and the keys that are there twice.

    UserError if the file cannot be read or is not YAML (with line and column), or holds no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot read the config: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from None
    try:
        loader = LOADER(text)  # checks the characters
        try:
            node = loader.get_single_node()
            keys = list(_keys(node, ()))  # before construction, which writes the keys of a merge (<<) into the node
            document = loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else path
        raise UserError(f"{place}: broken YAML: {error.problem or error.context}") from None
    except RecursionError:
        raise UserError(f"{path}: broken YAML: an alias contains itself") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: broken YAML: {one_line(error)}") from None
    if not isinstance(document, dict):
        expected = "a mapping with the keys study, backbones, tasks, lineages"
        raise UserError(f"{path}: found {show(document)}; expected {expected}.")
    seen: dict[Key, int] = {}
    for key, line in keys:
        if key in seen:
            problems.add(key, f"repeated key; it is already in line {seen[key]}", Place(str(path), line))
        seen.setdefault(key, line)
    problems.places |= {key: Place(str(path), line) for key, line in seen.items()}
    return document


def _keys(node: yaml.Node | None, key: Key) -> Iterator[tuple[Key, int]]:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if name.tag == "tag:yaml.org,2002:merge" or not isinstance(name, yaml.ScalarNode):
                continue
            yield (*key, name.value), name.start_mark.line + 1
            yield from _keys(value, (*key, name.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*key, index), value.start_mark.line + 1
            yield from _keys(value, (*key, index))
