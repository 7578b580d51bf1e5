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
            End with the line "Answer: X", where X is the list of their ids with ", " between them.
    trace   The kinase domain binds ATP and transfers its phosphate to proteins.
    answer  GO:0004672, GO:0005524, GO:0006468

The answer is the smallest set of terms that implies all terms of the row, sorted: here GO:0004672 implies GO:0016301,
kinase activity. It is scored after propagation (`cisterna.scoring.gene_ontology`). The terms of a cell are a list, the
text of a Python or JSON list, or ids separated by commas, semicolons or spaces. Terms that are obsolete or not in the
ontology are left out; so are proteins without any other term, and those with the sequence of an earlier row. The notes
of the data card say how many. `reasoning` may be a list of texts, which is joined by line breaks. Out of domain are the
groups that `ood` lists, in the column of the option `group` (default: the organism), or those that `split` chooses.
Without these keys the splits are those of the data: files of train and ood, or train, id and ood, or a column `split`
(`cisterna.tasks.adapters.published`). With these keys data in several files or splits are refused, unless `pool` says
that their rows are one table. Other columns are not read, and the notes of the data card list them. Each column can
have another name, set by the option of its role.

Source: BioReason-Pro (github.com/bowang-lab/BioReason-Pro). The row above is not of the data.
"""

from __future__ import annotations

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
from cisterna.sequences import letters
from cisterna.tasks import catalog, tables
from cisterna.tasks.adapters import answer_form, published
from cisterna.tasks.base import SPLIT, Task, segment

TERMS = ("mf", "bp", "cc")
QUESTION = ("id", "sequence", "organism", "interpro", "predictions")  # what a prompt is made of
MAY_BE_EMPTY = ("interpro", "predictions", "reasoning")
ANSWER = 'the list of their ids with ", " between them'
FROM_TRAIN = "train"  # the value of the option `weights` for information accretion of the training proteins


def task(name: str, spec: Mapping[str, Any]) -> Task:
    """The task of a table of proteins. `spec` is its entry in the config; `cisterna.tasks.read` opens the data.

    Its `labels` are empty: an answer is a set of terms of the ontology. Raises UserError for options that are missing.
    """
    options = _options(name, spec)
    held_out = catalog.held_out(spec)
    origin = published.source(spec)
    return Task(
        name=name,
        modality="protein",
        labels=(),
        examples=functools.partial(examples, name=name, options=options, held_out=held_out),
        open=functools.partial(read, name, spec),
        meaning=f"the most specific Gene Ontology terms of columns {', '.join(options[role] for role in TERMS)}, "
        f"in the ontology {options['ontology']}",
        rule=f"out of domain: proteins whose {options['group']!r} is one of {', '.join(held_out)}"
        if catalog.divided(spec)
        else "out of domain: the rows of the split that the data hold out",
        sources=(*origin.get("sources", ()), options["ontology"], *_weight_files(options)),
        hub=origin.get("hub"),
        ask=functools.partial(ask, options=options, rule=spec.get("unusual_letters")),
        terms=functools.partial(terms, spec),
    )


def terms(spec: Mapping[str, Any], train: pd.DataFrame) -> Ontology:
    """The ontology for scoring answers, with the weights of the option `weights`.

    Information accretion is computed from the `answer` of the training examples `train`.
    """
    options = catalog.options(spec)
    ontology = gene_ontology.read(Path(options["ontology"]))
    if options["weights"] is None:
        return ontology
    if options["weights"] == FROM_TRAIN:
        return ontology.weighted(gene_ontology.information_accretion(map(answers.split, train["answer"]), ontology))
    return ontology.weighted(gene_ontology.read_weights(Path(options["weights"]), ontology))


def prompt(sequence: str, organism: str, interpro: str, predictions: str, form: str = "") -> str:
    """The question about one protein, with its InterPro text and the predictions of GO-GPT; ends with a newline.

    `form` is a last line, of the form of the answer.
    """
    return (
        f"Which Gene Ontology terms does this protein of {organism} have?\n"
        f"InterPro: {interpro or 'none'}\n"
        f"GO-GPT: {predictions or 'none'}\n"
        f"<protein>{sequence}</protein>\n{form}"
    )


def read(name: str, spec: Mapping[str, Any]) -> pd.DataFrame:
    """The proteins of the data: the texts of QUESTION and `reasoning`, `group`, and `answer`, their terms as text.

    If the data say what is out of domain, SPLIT is a column too. `notes` in `attrs` says how many ids and proteins were
    left out. Raises UserError, naming the row, for a missing column, an empty cell, a repeated id, a letter that is not
    a residue, markup, or a cell that is not a list of terms; for data in splits that `ood` or `split` would mix.
    """
    options = _options(name, spec)
    ontology = gene_ontology.read(Path(options["ontology"]))
    parts, fingerprint = published.open_parts(name, spec)
    given = not catalog.divided(spec)
    _check_parts(name, parts, given, options["pool"])
    reader = letters.Reader("protein", spec.get("unusual_letters"))
    frames = []
    for split, place, part in parts:
        frame = _frame(part, place, options, ontology, reader)
        frames.append(frame.assign(**{SPLIT: published.splits(part, split, place)}) if given else frame)
    frame = pd.concat(frames, ignore_index=True)
    notes: list[str] = []
    if given:
        frame, notes = published.settled(name, frame)
    tables.check_unique(
        list(frame["id"]), f"tasks.{name}", list(frame["where"]).__getitem__, "Give every protein an id of its own"
    )
    left_out = int(frame["unknown"].sum())
    without = frame["answer"] == ""
    if without.all():
        raise UserError(
            f"tasks.{name}: no protein has a term of {options['ontology']} (version {ontology.version}). Use "
            "the ontology of the release that the data were made with."
        )
    kept = frame[~without]
    same = [*([SPLIT] if given else []), "sequence"]  # those of two splits: `cisterna.data.drawing.without_repeats`
    again = kept.duplicated(same)
    differs = kept["answer"] != kept.groupby(same)["answer"].transform("first")
    dropped = [
        *tables.dropped("no other term", list(frame["id"][without])),
        *tables.dropped("the sequence of an earlier row", list(kept["id"][again & ~differs])),
        *tables.dropped("the sequence of an earlier row, with other terms", list(kept["id"][again & differs])),
    ]
    notes += [
        f"{left_out} gold ids left out: obsolete, or not in {options['ontology']} (version {ontology.version})",
        f"{int(without.sum())} proteins left out: no other term",
        f"{int(again.sum())} proteins left out: the sequence was there before",
        *tables.notes_of_missing(frame["group"], f"column {options['group']!r}"),
        *published.not_read(_unread(parts, options)),
    ]
    kept = kept[~again].drop(columns=["unknown", "where"]).reset_index(drop=True)
    if given:
        outside = kept[SPLIT] == "ood"
        shared = sorted(set(kept["group"][outside]) & set(kept["group"][~outside]))
        if shared:  # then a group does not say on which side of the split a row is
            notes.append(f"{options['group']} of ood and of other splits: {tables.shown(shared)}")
            kept["group"] = outside.map({True: published.OUT, False: published.IN})
    kept.attrs = {"notes": notes, "dropped": dropped, "letters": reader.report()}
    if fingerprint:
        kept.attrs["fingerprint"] = fingerprint
    return kept


def examples(raw: pd.DataFrame, *, name: str, options: Mapping[str, Any], held_out: tuple[str, ...]) -> pd.DataFrame:
    """Rows of `read` as examples, with SPLIT where they have it. UserError for a held-out group that no protein has."""
    tables.check_held_out(raw["group"], held_out, f"tasks.{name}", options["group"])
    given = raw.columns.intersection([SPLIT])
    return pd.DataFrame(
        {
            "id": raw["id"],
            "prompt": _prompts(raw, options),
            "segments": [[segment(sequence)] for sequence in raw["sequence"]],
            "reasoning": raw["reasoning"],
            "answer": raw["answer"],
            "sequence": raw["sequence"],
            "group": raw["group"],
            "ood": raw["group"].isin(held_out) if given.empty else raw[SPLIT] == "ood",
        }
        | {name: raw[name] for name in given}
    )


def ask(path: Path, *, options: Mapping[str, Any], rule: str | None = None) -> pd.DataFrame:
    """New proteins as questions: id, sequence, prompt, segments. The table has the columns of QUESTION."""
    reader = letters.Reader("protein", rule)
    frame = _texts(tables.open_table(path), str(path), QUESTION, options, reader)
    segments = pd.Series([[segment(sequence)] for sequence in frame["sequence"]], index=frame.index)
    asked = frame[["id", "sequence"]].assign(prompt=_prompts(frame, options), segments=segments)
    asked.attrs = {"letters": reader.report()}
    return asked


def ids(cell: object) -> list[str]:
    """The ids in a cell: a list, the text of one, or ids separated by commas, semicolons or blanks.

    Raises ValueError for anything that is not a GO id.
    """
    listed: Any = cell
    if cell is None or (isinstance(cell, float) and cell != cell):
        listed = []
    elif isinstance(cell, str):
        text = cell.strip()
        listed = tables.listed(text) if text.startswith("[") else filter(None, re.split(r"[,;\s]+", text))
        if listed is None:
            raise ValueError(f"{text[:60]!r} is not a list of texts")
    elif not isinstance(cell, list | tuple | np.ndarray):
        raise ValueError(f"{cell!r} is not a list of GO ids")
    identifiers = list(listed)
    for identifier in identifiers:
        if not isinstance(identifier, str) or not gene_ontology.TERM.fullmatch(identifier):
            raise ValueError(f"{identifier!r} is not a GO id such as GO:0004672")
    return identifiers


def _prompts(frame: pd.DataFrame, options: Mapping[str, Any]) -> list[str]:
    form = answer_form.line(ANSWER, stated=options["answer_form"])
    columns = (frame["sequence"], frame["organism"], frame["interpro"], frame["predictions"])
    return [prompt(*row, form) for row in zip(*columns, strict=True)]


def _options(name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    options = catalog.options(spec)
    if options["ontology"] is catalog.REQUIRED:
        raise UserError(
            f"tasks.{name}.options.ontology: missing. Give an ontology in OBO format, such as go-basic.obo."
        )
    return options


def _weight_files(options: Mapping[str, Any]) -> list[str]:
    return [] if options["weights"] in (None, FROM_TRAIN) else [options["weights"]]


def _texts(
    raw: pd.DataFrame, place: str, roles: Sequence[str], options: Mapping[str, Any], reader: letters.Reader
) -> pd.DataFrame:
    """The columns of `roles` as checked texts, and `where`, the name of each row in messages."""
    frame = pd.DataFrame(
        {
            role: tables.texts(raw, options[role], place, advice=_advice(role), may_be_empty=role in MAY_BE_EMPTY)
            for role in roles
        }
    )
    frame["where"] = tables.row_names(place, len(frame))
    frame["sequence"] = [
        reader.read(text, f"{where}: column {options['sequence']!r}")
        for where, text in zip(frame["where"], frame["sequence"], strict=True)
    ]
    return frame.assign(sequence=frame["sequence"].str[: options["residues"]])


def _frame(
    raw: pd.DataFrame, place: str, options: Mapping[str, Any], ontology: Ontology, reader: letters.Reader
) -> pd.DataFrame:
    """The rows of one part of the data by role, with their answer and the number of ids that were left out."""
    raw = tables.joined(raw, options["reasoning"], place)
    frame = _texts(raw, place, (*QUESTION, "reasoning"), options, reader)
    frame["group"] = tables.texts(raw, options["group"], place, advice=_advice("group"))
    columns = [tables.column(raw, options[role], place, advice=_advice(role)) for role in TERMS]
    specific, unknown = [], []
    for where, *cells in zip(frame["where"], *columns, strict=True):
        identifiers: list[str] = []
        for role, cell in zip(TERMS, cells, strict=True):
            try:
                identifiers += ids(cell)
            except ValueError as error:
                raise UserError(
                    f"{where}: column {options[role]!r}: {error}. Give a list of GO ids, or ids with commas between "
                    "them."
                ) from None
        specific.append(answers.join(ontology.specific(identifiers)))
        unknown.append(sum(not ontology.terms(identifier) for identifier in set(identifiers)))
    return frame.assign(answer=specific, unknown=unknown)


def _check_parts(name: str, parts: Sequence[published.Part], given: bool, pool: bool) -> None:
    """UserError for data without splits that are to say what is out of domain, and with splits that are to be mixed."""
    splits = [split for split, _, _ in parts if split is not None]
    whole = len(parts) == 1 and SPLIT not in parts[0][2].columns
    if given and whole:
        raise UserError(
            f"tasks.{name}.ood: missing, and {parts[0][1]} has no column {SPLIT!r}. Give the groups that are held out, "
            "or `split`, or files of train and ood, or of train, id and ood."
        )
    if not given and not whole and not pool:
        found = ", ".join(splits) if splits else f"column {SPLIT!r}"
        raise UserError(
            f"tasks.{name}: the data come in splits ({found}), and `ood` or `split` would divide the rows of all of "
            "them. Remove these keys to keep the splits, or set options.pool to true."
        )


def _unread(parts: Sequence[published.Part], options: Mapping[str, Any]) -> list[str]:
    """The columns that are not read, in the order of the data."""
    read = {SPLIT, options["group"], *(options[role] for role in (*QUESTION, "reasoning", *TERMS))}
    return list(dict.fromkeys(str(column) for _, _, raw in parts for column in raw.columns if column not in read))


def _advice(role: str) -> str:
    return f" If the column has another name, set it in options.{role}."
