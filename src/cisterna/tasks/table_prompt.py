"""The prompt of a user's table: a template, the sequences in it, and the other columns that it names.

    prompt: "Which is more stable? {reference} or {variant}, at {degrees} degrees. {options}"
    columns: {sequence: {reference: wild type, variant: mutated}, ...}
    modality: rna

has the sequences `reference` and `variant` and the field `degrees`, a column. A task may have no sequences at all.

Not for labels, groups and splits (`cisterna.tasks.user_table`).
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cisterna.errors import UserError
from cisterna.sequences import letters
from cisterna.sequences.tokenization import ALPHABETS
from cisterna.tasks import catalog, tables
from cisterna.tasks.base import segment

OPTIONS = "options"  # the field of a template that is the labels


@dataclass(frozen=True)
class TablePrompt:
    """How rows of a table become prompts.

    `modalities` are those of the sequences, by name and in the order of the template; `columns` and `positions` their
    columns in the table. `fields` are the other columns that the template names; `unusual_letters` is the key of the
    config.
    """

    template: str
    labels: tuple[str, ...]
    modalities: Mapping[str, str]
    columns: Mapping[str, str]
    positions: Mapping[str, str]
    fields: tuple[str, ...]
    unusual_letters: str | None = None

    @property
    def simple(self) -> bool:
        """Whether there is one sequence, as `columns: {sequence: NAME}` says."""
        return list(self.modalities) == ["sequence"]

    def read(self, raw: pd.DataFrame, path: Path, new: bool = False) -> pd.DataFrame:
        """The cells of the prompts as texts: a column for each sequence and each field. The attribute `letters` is what
        the readers of the sequences report (`cisterna.sequences.letters`).

        A `new` table, without labels, may call a column of a sequence as the template does. Raises UserError naming
        file, row and column for a missing column, an empty cell, markup, and a letter outside the modality.
        """
        cells, reports = pd.DataFrame(index=range(len(raw))), {}
        for name, modality in self.modalities.items():
            column = _column(raw, self.columns[name], name, new)
            texts = tables.texts(
                raw, column, path, " with the sequences" if new else f" ({self._key('sequence', name)})"
            )
            reader = letters.Reader(modality, self.unusual_letters)
            cells[name] = [
                reader.read(text, f"{path}: row {row}: column {column!r}") for row, text in enumerate(texts, 1)
            ]
            reports[name] = reader.report()
        for column in self.fields:
            cells[column] = tables.texts(
                raw, column, path, ", which the task's prompt names" if new else ", which `prompt` names"
            )
        found = {name: report for name, report in reports.items() if report}
        cells.attrs["letters"] = found.get("sequence", {}) if self.simple else found
        return cells

    def segments(
        self, cells: pd.DataFrame, raw: pd.DataFrame, path: Path, new: bool = False
    ) -> list[list[dict[str, Any]]]:
        """The context of each sequence of each row. UserError, naming the row, for a position outside its sequence."""
        centers: dict[str, list[int | None]] = {name: [None] * len(cells) for name in self.modalities}
        for name in self.positions:
            column = _column(raw, self.positions[name], "position", new and self.simple)
            texts = tables.texts(
                raw, column, path, " with the positions" if new else f" ({self._key('position', name)})"
            )
            centers[name] = [
                center(text, len(sequence), f"{path}: row {row}: column {column!r}")
                for row, (text, sequence) in enumerate(zip(texts, cells[name], strict=True), 1)
            ]
        segments: list[list[dict[str, Any]]] = [[] for _ in range(len(cells))]
        for name in self.modalities:
            for row, sequence, middle in zip(segments, cells[name], centers[name], strict=True):
                row.append(segment(sequence, 0, middle))
        return segments

    def write(self, cells: pd.DataFrame) -> list[str]:
        """The prompt of each row, ending with a newline."""
        parts = [(text, name) for text, name, _, _ in string.Formatter().parse(self.template)]
        options = ", ".join(self.labels)
        prompts = []
        for row in cells.to_dict("records"):
            values = row | {name: f"<{kind}>{row[name]}</{kind}>" for name, kind in self.modalities.items()}
            values[OPTIONS] = options
            prompts.append("".join(text + ("" if name is None else values[name]) for text, name in parts) + "\n")
        return prompts

    def write_without(self, cells: pd.DataFrame, identifier: str | None) -> list[str]:
        """The prompts without the column of the id, which only names a row: what tells prompts apart."""
        named = identifier is not None and identifier in self.fields
        return self.write(cells.assign(**{str(identifier): ""}) if named else cells)

    def by_sequence(self, identifier: str | None) -> bool:
        """Whether the sequence alone tells prompts apart."""
        return self.simple and not set(self.fields) - {identifier}

    def _key(self, role: str, name: str) -> str:
        return f"columns.{role}" if self.simple else f"columns.{role}.{name}"


def of_spec(where: str, spec: Mapping[str, Any], labels: Sequence[str]) -> TablePrompt:
    """The prompt of a table whose entry in the config, at the key `where`, is `spec`.

    Raises UserError, which names the key, for a template and columns that do not belong together.
    """
    columns, modalities = dict(spec["columns"]), catalog.sequences(spec)
    if modalities and spec["modality"] == "text":
        raise UserError(f"{where}.columns.sequence: not supported with `modality: text`. Remove one of the two.")
    if not modalities and spec["modality"] != "text":
        raise UserError(
            f"{where}.columns.sequence: missing. Name the column of {spec['file']} that holds it, or write "
            "`modality: text` for prompts without a sequence."
        )
    for modality in modalities.values():
        if modality not in ALPHABETS:
            raise UserError(
                f"{where}.modality: {modality!r} is not a modality. Use one of {', '.join(ALPHABETS)}, or text for "
                "prompts without a sequence."
            )
    written = "prompt" if "prompt" in spec else "question"
    template = str(spec[written]).strip()
    tables.refuse_markup(template, f"{where}.{written}")
    if written == "question":
        if list(modalities) != ["sequence"]:
            raise UserError(
                f"{where}.question: needs one sequence that follows it. Write the whole `prompt`, with columns in "
                "braces."
            )
        template = template.replace("{", "{{").replace("}", "}}") + "\n{sequence}\nOptions: {options}"
    names = named(template)
    for name in modalities:
        if names.count(name) != 1:
            raise UserError(f"{where}.prompt: {{{name}}} is there {names.count(name)} times. Write it once.")
    fields = tuple(name for name in dict.fromkeys(names) if name not in modalities and name != OPTIONS)
    if not modalities and not fields:
        raise UserError(f"{where}.prompt: the same for every row. Name columns in braces.")
    return TablePrompt(
        template=template,
        labels=tuple(labels),
        modalities={name: modalities[name] for name in names if name in modalities},
        columns=_by_name(columns.get("sequence")),
        positions=_by_name(columns.get("position")),
        fields=fields,
        unusual_letters=spec.get("unusual_letters"),
    )


def named(template: str) -> list[str]:
    """The fields of a template, in order."""
    return [name for _, name, _, _ in string.Formatter().parse(template) if name]


def center(text: str, length: int, where: str) -> int:
    """The text of a position, which counts from 1, as an index from 0. UserError if it is not in the sequence."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= length:
        raise UserError(f"{where}: {text!r} is not a position. Give a whole number from 1 to {length}.")
    return int(text) - 1


def _by_name(entry: str | Mapping[str, str] | None) -> dict[str, str]:
    """Columns of sequences by name; one column is that of the sequence called `sequence`."""
    if entry is None:
        return {}
    return dict(entry) if isinstance(entry, Mapping) else {"sequence": entry}


def _column(raw: pd.DataFrame, column: str, other: str, new: bool) -> str:
    """The column of a table; a new one may call it by the other name."""
    return other if new and column not in raw.columns else column
