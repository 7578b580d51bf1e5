"""go-terms (protein): which Gene Ontology terms does a protein have?

The reasoning data of BioReason-Pro (`wanglab/bioreason-pro-sft-reasoning-data` on the Hugging Face hub), or a CSV, TSV,
Parquet or JSON-lines file with the same columns. The ontology is a file of the user's, such as go-basic.obo. With this
entry in the config

    functions:
      adapter: go-terms
      file: data/proteins.csv
      options: {ontology: data/go-basic.obo, weights: train}
      ood: [Danio rerio]

the row

    protein_id         P00001
    sequence           MKTAYIAKQR
    organism           Homo sapiens
    interpro_formatted IPR000719: Protein kinase domain (3-9)
    go_pred            GO:0004672
    reasoning          The kinase domain binds ATP and transfers its phosphate to proteins.
    go_mf              ['GO:0004672', 'GO:0016301', 'GO:0005524']
    go_bp              GO:0006468
    go_cc

becomes

    prompt  Which Gene Ontology terms does this protein of Homo sapiens have?
            InterPro: IPR000719: Protein kinase domain (3-9)
            GO-GPT: GO:0004672
            <protein>MKTAYIAKQR</protein>
    trace   The kinase domain binds ATP and transfers its phosphate to proteins.
    answer  GO:0004672, GO:0005524, GO:0006468

The answer is the fewest terms that imply all those of the row (GO:0016301, kinase activity, is implied), sorted; it
is scored after propagation (`cisterna.scoring.gene_ontology`). The terms of a cell are a list, the text of a Python or
JSON list, or ids with commas, semicolons or spaces between them. Terms that are obsolete, or not in the ontology, are
left out; so is
a protein without any other term, and one whose sequence was there before. The notes of the data say how many. Out of
domain are the groups that `ood` lists, by the option `group` (the organism). Columns that are not named here are not
read; every column can be given another name by the option of its role.

Source: BioReason-Pro (github.com/bowang-lab/BioReason-Pro). The row above is not of the data.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cisterna.errors import UserError
from cisterna.scoring import answers, gene_ontology
from cisterna.scoring.gene_ontology import Ontology
from cisterna.sequences.tokenization import ALPHABETS
from cisterna.tasks import catalog, table
from cisterna.tasks.adapters import published
from cisterna.tasks.base import Task, segment

TERMS = ("mf", "bp", "cc")
QUESTION = ("id", "sequence", "organism", "interpro", "predictions")  # what a prompt is made of
MAY_BE_EMPTY = ("interpro", "predictions", "reasoning")
FROM_TRAIN = "train"  # the value of the option `weights` for information accretion of the training proteins
RARE = str.maketrans(dict.fromkeys("BJOUZ", "X"))  # letters of UniProt that stand for no or for a rare residue


def task(name: str, spec: Mapping[str, Any]) -> Task:
    """The task of a table of proteins. `spec` is its entry in the config; the data are opened by `cisterna.tasks.read`.

    Its `labels` are empty: an answer is a set of the terms of `terms`. Raises UserError for options that are missing.
    """
    options = _options(name, spec)
    held_out = tuple(map(str, spec["ood"])) if isinstance(spec.get("ood"), list | tuple) else ()
    origin = published.source(spec)
    return Task(
        name=name,
        modality="protein",
        labels=(),
        examples=functools.partial(examples, held_out=held_out, group=options["group"]),
        open=functools.partial(read, name, spec),
        meaning=f"the most specific Gene Ontology terms of columns {', '.join(options[role] for role in TERMS)}, "
        f"in the ontology {options['ontology']}",
        rule=f"out of domain: proteins whose {options['group']!r} is one of {', '.join(held_out)}",
        sources=(*origin.get("sources", ()), options["ontology"], *_weight_files(options)),
        hub=origin.get("hub"),
        columns={role: options[role] for role in QUESTION},
        ask=functools.partial(ask, options=options),
        terms=functools.partial(terms, spec),
    )


def terms(spec: Mapping[str, Any], train: pd.DataFrame) -> Ontology:
    """The ontology that answers are scored by, with the weights that the option `weights` asks for.

    `train` holds the training examples, whose `answer` is what information accretion is computed from.
    """
    options = _filled(spec)
    found = gene_ontology.read(Path(options["ontology"]))
    if options["weights"] is None:
        return found
    if options["weights"] == FROM_TRAIN:
        return found.weighted(gene_ontology.information_accretion(map(answers.split, train["answer"]), found))
    return found.weighted(gene_ontology.read_weights(Path(options["weights"]), found))


def prompt(sequence: str, organism: str, interpro: str, predictions: str) -> str:
    """The question about one protein, with what InterPro and GO-GPT say of it; ends with a newline."""
    return (
        f"Which Gene Ontology terms does this protein of {organism} have?\n"
        f"InterPro: {interpro or 'none'}\n"
        f"GO-GPT: {predictions or 'none'}\n"
        f"<protein>{sequence}</protein>\n"
    )


def read(name: str, spec: Mapping[str, Any]) -> pd.DataFrame:
    """The proteins of the data: the texts of QUESTION and `reasoning`, `group`, and `answer`, the text of their terms.

    `notes` in `attrs` says how many ids and proteins were left out. Raises UserError, naming the row, for a column that
    is missing, an empty cell, a repeated id, a letter that is no residue, markup, and a cell that does not hold terms.
    """
    options = _options(name, spec)
    known = gene_ontology.read(Path(options["ontology"]))
    parts, fingerprint = _tables(name, spec)
    frames = [_frame(part, place, options, known) for place, part in parts]
    frame = pd.concat(frames, ignore_index=True)
    _refuse_repeated(frame)
    left_out = int(frame["unknown"].sum())
    without = frame["answer"] == ""
    if without.all():
        raise UserError(
            f"tasks.{name}: no protein has a term of {options['ontology']} (version {known.version}). Give the "
            "ontology of the release that the data are of."
        )
    kept = frame[~without]
    again = kept["sequence"].duplicated()
    notes = [
        f"{left_out} gold ids left out: obsolete, or not in {options['ontology']} (version {known.version})",
        f"{int(without.sum())} proteins left out: no other term",
        f"{int(again.sum())} proteins left out: the sequence was there before",
    ]
    kept = kept[~again].drop(columns=["unknown", "where"]).reset_index(drop=True)
    kept.attrs = {"notes": notes} | ({"fingerprint": fingerprint} if fingerprint else {})
    return kept


def examples(raw: pd.DataFrame, *, held_out: tuple[str, ...], group: str) -> pd.DataFrame:
    """Rows of `read` as examples. UserError for a held-out group that no protein has."""
    for name in held_out:
        if name not in set(raw["group"]):
            most = raw["group"].value_counts().index[:10]
            raise UserError(
                f"no protein has the group {name!r}, which `ood` holds out. The most frequent of column {group!r} are: "
                f"{', '.join(most)}."
            )
    return pd.DataFrame(
        {
            "id": raw["id"],
            "prompt": [prompt(*row) for row in zip(*(raw[role] for role in QUESTION[1:]), strict=True)],
            "segments": [[segment(sequence)] for sequence in raw["sequence"]],
            "reasoning": raw["reasoning"],
            "answer": raw["answer"],
            "sequence": raw["sequence"],
            "group": raw["group"],
            "ood": raw["group"].isin(held_out),
        }
    )


def ask(path: Path, *, options: Mapping[str, Any]) -> pd.DataFrame:
    """New proteins as questions: id, sequence, prompt, segments. The table has the columns of QUESTION."""
    frame = _texts(table.open_table(path), str(path), QUESTION, options)
    return pd.DataFrame(
        {
            "id": frame["id"],
            "sequence": frame["sequence"],
            "prompt": [prompt(*row) for row in zip(*(frame[role] for role in QUESTION[1:]), strict=True)],
            "segments": [[segment(sequence)] for sequence in frame["sequence"]],
        }
    )


def ids(cell: object) -> list[str]:
    """The ids in a cell: a list, the text of one, or ids with commas, semicolons or blanks between them.

    Raises ValueError for anything that is not a GO id.
    """
    found: Any = cell
    if cell is None or (isinstance(cell, float) and cell != cell):
        found = []
    elif isinstance(cell, str):
        text = cell.strip()
        listed = text.startswith("[")
        found = ast.literal_eval(text) if listed else [part for part in re.split(r"[,;\s]+", text) if part]
    elif not isinstance(cell, list | tuple | np.ndarray):
        raise ValueError(f"{cell!r} is not a list of GO ids")
    for identifier in found:
        if not isinstance(identifier, str) or not gene_ontology.TERM.fullmatch(identifier):
            raise ValueError(f"{identifier!r} is not a GO id such as GO:0004672")
    return list(found)


def _options(name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    options = _filled(spec)
    if options["ontology"] is catalog.REQUIRED:
        raise UserError(
            f"tasks.{name}.options.ontology: missing. Give an ontology in OBO format, such as go-basic.obo."
        )
    return options


def _filled(spec: Mapping[str, Any]) -> dict[str, Any]:
    defaults = {name: option.default for name, option in catalog.ADAPTERS["go-terms"].options.items()}
    return defaults | dict(spec.get("options") or {})


def _weight_files(options: Mapping[str, Any]) -> list[str]:
    return [] if options["weights"] in (None, FROM_TRAIN) else [options["weights"]]


def _tables(name: str, spec: Mapping[str, Any]) -> tuple[list[tuple[str, pd.DataFrame]], dict[str, str] | None]:
    """Place and rows of each part of the data, and the fingerprint of data of the hub."""
    if "hub" in spec:
        given, fingerprint = published.of_hub(name, str(spec["hub"]), spec.get("revision"))
        return [(place, frame) for _, place, frame in given], fingerprint
    paths = [spec["file"]] if isinstance(spec["file"], str) else list(spec["file"])
    return [(path, table.open_table(Path(path))) for path in paths], None


def _frame(raw: pd.DataFrame, place: str, options: Mapping[str, Any], known: Ontology) -> pd.DataFrame:
    """The rows of one part of the data by role, with their answer and the number of ids that were left out."""
    frame = _texts(raw, place, (*QUESTION, "reasoning"), options)
    for role in TERMS:
        _column(raw, place, options[role], role)
    frame["group"] = _strings(_column(raw, place, options["group"], "group"), place, options["group"], False)
    found, unknown = [], []
    for row, cells in enumerate(zip(*(raw[options[role]] for role in TERMS), strict=True), 1):
        given: list[str] = []
        for role, cell in zip(TERMS, cells, strict=True):
            try:
                given += ids(cell)
            except (ValueError, SyntaxError) as error:
                raise UserError(
                    f"{place}: row {row}: column {options[role]!r}: {error}. Give a list of GO ids, or ids with commas "
                    "between them."
                ) from None
        found.append(answers.join(known.specific(given)))
        unknown.append(sum(not known.terms(identifier) for identifier in set(given)))
    return frame.assign(answer=found, unknown=unknown)


def _texts(raw: pd.DataFrame, place: str, roles: Sequence[str], options: Mapping[str, Any]) -> pd.DataFrame:
    """The columns of `roles` as checked texts, and `where`, the place of each row for messages."""
    frame = pd.DataFrame(
        {
            role: _strings(_column(raw, place, options[role], role), place, options[role], role in MAY_BE_EMPTY)
            for role in roles
        }
    )
    frame["where"] = [f"{place}: row {row}" for row in range(1, len(frame) + 1)]
    for role in roles:
        for where, text in zip(frame["where"], frame[role], strict=True):
            table.refuse_markup(text, f"{where}: column {options[role]!r}")
    sequences = []
    for where, text in zip(frame["where"], frame["sequence"], strict=True):
        sequence = text.upper().translate(RARE)
        wrong = sorted(set(sequence) - set(ALPHABETS["protein"]))
        if wrong:
            raise UserError(
                f"{where}: column {options['sequence']!r}: {wrong[0]!r} is not a residue ({ALPHABETS['protein']}, and "
                "B J O U Z, which become X). Correct the row."
            )
        sequences.append(sequence[: options["residues"]])
    return frame.assign(sequence=sequences)


def _column(raw: pd.DataFrame, place: str, column: str, role: str) -> pd.Series:
    if column not in raw.columns:
        raise UserError(
            f"{place}: no column {column!r}. It has: {', '.join(map(str, raw.columns))}. If another column holds it, "
            f"name that one in options.{role}."
        )
    return raw[column]


def _strings(column: pd.Series, place: str, name: str, may_be_empty: bool) -> list[str]:
    texts = ["" if missing else str(value).strip() for value, missing in zip(column, column.isna(), strict=True)]
    if not may_be_empty and "" in texts:
        raise UserError(f"{place}: row {texts.index('') + 1}: column {name!r} is empty. Fill it or remove the row.")
    return texts


def _refuse_repeated(frame: pd.DataFrame) -> None:
    repeated = frame["id"].duplicated()
    if repeated.any():
        second = int(repeated.to_numpy().argmax())
        first = int((frame["id"] == frame["id"].iloc[second]).to_numpy().argmax())
        raise UserError(
            f"{frame['where'].iloc[first]} and {frame['where'].iloc[second]} share the id "
            f"{frame['id'].iloc[second]!r}. "
            "Give every protein an id of its own."
        )
