"""cells: the label of a cell, from its genes in the order of their expression; any `.h5ad` file of AnnData.

A cell becomes a "cell sentence" (Levine et al., Cell2Sentence, ICML 2024): the upper-case names of the genes that it
expresses, the most expressed first; the first `genes` of them are shown. The order is exactly that of the
`cell2sentence` package (1.2.0) for the chosen cells as one AnnData: genes with equal expression are in a random order,
drawn cell by cell in the order of the file with the package's seed 42. A value of zero, even a stored one, is no gene.

With this entry in the config

    blood:
      adapter: cells
      file: data/pbmc.h5ad
      options: {label: bulk_labels, group: phase, genes: 16}
      ood: [S, G2M]

the cell AAAGCCTGGCTAAC-1, whose `bulk_labels` is CD14+ Monocyte and whose largest values are 5.54 FTL, 4.55 CD74, 4.21
AIF1, HLA-DPA1 and JUNB, 4.15 LST1, 4.09 HLA-DRA and 4.02 TYROBP, becomes

    prompt  Which cell type?<rna> FTL CD74 JUNB HLA-DPA1 AIF1 LST1 HLA-DRA TYROBP CST3 HLA-DRB1 S100A4 CTSS HLA-DRB5
            FCER1G TIMP1 HLA-DPB1</rna>
            End with the line "Answer: X", where X is nothing but the answer.
    trace   most expressed FTL, CD74, JUNB, HLA-DPA1, AIF1
    answer  CD14+ Monocyte

What a model reads of it is the key `sequences` of the task: with `tokens` the sentence, without tags; with `features`
the features of the cell in its place, such as those of TranscriptFormer (`cisterna.sequences.precomputed`); with `both`
the sentence and then the features.

(Zheng et al., Nature Communications 8:14049, 2017; normalised and logarithmic, as shipped in Scanpy 1.11.5.)

The file is never in memory as a whole: only the ids and two columns of `obs` are read, and the expression of the
chosen cells, ENTRIES values at a time. A matrix that is stored by genes (CSC) is read once for every PASS cells. The
option `sample` chooses cells by the sha256 of seed and id, before any expression is read. Not for counting, normalising
or annotating cells: that is done before, for example in Scanpy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import heapq
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from cisterna.errors import UserError, one_line
from cisterna.tasks import catalog, loading, tables, unseen
from cisterna.tasks.adapters import answer_form, published
from cisterna.tasks.base import Task, segment

ANSWER = "nothing but the answer"
TRACED = 5  # genes in a trace
NAMED = "genes"  # the value of the option `reasoning` for such a trace
RAW = "raw.X"  # the value of the option `layer` for AnnData's `raw`
ENSEMBL = re.compile(r"ENS[A-Z]*G[0-9]{6,}")  # how an Ensembl id of a gene begins
TIES = 42  # `random_state` of cell2sentence.utils.generate_sentences
ENTRIES = 4_000_000  # stored values in memory at a time: 32 to 64 MB
PASS = 8192  # cells for which a matrix that is stored by genes (CSC) is read from end to end


def task(name: str, spec: Mapping[str, Any]) -> Task:
    """The task of an `.h5ad` file. `spec` is its entry in the config; the file is opened by `cisterna.tasks.read`."""
    options = catalog.options(spec)
    path = Path(catalog.sources(name, spec)[0])
    several = unseen.columns(spec)
    held_out = {} if spec.get("split") else unseen.values(spec, options["group"])
    options["question"] = str(options["question"]).strip()
    tables.refuse_markup(options["question"], f"tasks.{name}.options.question")
    made = Task(
        name=name,
        modality="rna",
        labels=None,
        examples=functools.partial(examples, path=path, options=options, held_out=held_out, several=several),
        open=functools.partial(read, path, options, int(spec.get("seed", 0)), several=several),
        meaning=f"obs column {options['label']!r} of {path}",
        rule=unseen.rule(held_out, "cells") if held_out else "",
        sources=(str(path),),
        prompt=_prompt(options),
        segments=functools.partial(segments, genes=options["genes"]),
    )
    return dataclasses.replace(made, ask=functools.partial(_ask, made, options))


def prompt(question: str, sentence: str, genes: int, form: str = "") -> str:
    """The question and, between tags, the first `genes` genes of a sentence; ends with a newline.

    `form` is a last line, of the form of the answer.
    """
    return f"{question}<rna>{_shown(sentence, genes)}</rna>\n{form}"


def segments(sentence: str, genes: int) -> list[dict[str, Any]]:
    """The context of the tagged genes of a sentence: these genes."""
    return [segment(_shown(sentence, genes))]


def _shown(sentence: str, genes: int) -> str:
    """The first genes of a sentence, after a blank: the mark of words in place of residues."""
    return f" {' '.join(sentence.split()[:genes])}"


def reasoning(sentence: str) -> str:
    """The first genes of a sentence, named again."""
    return f"most expressed {', '.join(sentence.split()[:TRACED])}"


def examples(
    raw: pd.DataFrame,
    *,
    path: Path,
    options: Mapping[str, Any],
    held_out: Mapping[str, tuple[str, ...]],
    several: tuple[str, ...] = (),
) -> pd.DataFrame:
    """Rows of `read` as examples; of cells with the same sentence the first is kept.

    `held_out` has the values that are out of domain, by column of `obs`: groups, or values of the columns `several`.
    Raises UserError for a held-out group that no cell has, and for two cells with the same sentence that have different
    labels or are on different sides of the split.
    """
    named = _groups(options, several)
    frame = raw.assign(ood=False)
    for role, column in named.items():
        tables.check_held_out(frame[role], held_out.get(column, ()), path, column)
        frame["ood"] |= frame[role].isin(held_out.get(column, ()))
    if several and held_out:
        frame = unseen.mark(frame, held_out)
    elif "group" not in named:
        frame["group"] = "all"
    tables.check_consistent(
        frame,
        path,
        lambda row: f"cell {frame['id'].iloc[row]!r}",
        f"first {options['genes']} genes",
        "Raise options.genes, or remove one of them",
    )
    again = frame["sequence"].duplicated()
    dropped = tables.dropped(f"the first {options['genes']} genes of an earlier cell", list(frame["id"][again]))
    notes = [
        *tables.notes_of_missing(frame["label"], f"labels (obs column {options['label']!r})"),
        *(
            note
            for role, column in named.items()
            for note in tables.notes_of_missing(raw[role], f"groups (obs column {column!r})")
        ),
    ]
    frame = frame[~again].reset_index(drop=True)
    written = _prompt(options)
    made = pd.DataFrame(
        {
            "id": frame["id"],
            "prompt": [written(sentence) for sentence in frame["sequence"]],
            "segments": [segments(sentence, options["genes"]) for sentence in frame["sequence"]],
            "reasoning": frame["reasoning"],
            "answer": frame["label"],
            "sequence": frame["sequence"],
            "group": frame["group"],
            "ood": frame["ood"],
        }
        | {role: frame[role] for role in named if role != "group"}
    )
    made.attrs = {"dropped": dropped, "notes": notes}
    return made


def _groups(options: Mapping[str, Any], several: tuple[str, ...]) -> dict[str, str]:
    """The columns of `obs` that say what is held out, by their names in examples."""
    if several:
        return {unseen.PREFIX + column: column for column in several}
    return {"group": options["group"]} if options["group"] else {}


def read(
    path: Path, options: Mapping[str, Any], seed: int, labelled: bool = True, several: tuple[str, ...] = ()
) -> pd.DataFrame:
    """The cells of a file in its order: id, sequence (the first `genes` genes); if `labelled` label, group, reasoning.

    With `several` columns of `obs`, whose values are held out, these (`split:NAME`) in place of the group.

    The option `sample` keeps only that many cells: those with the smallest sha256 of seed and id, so that a larger
    sample contains every smaller one. Raises UserError for a file that is not AnnData, for a column, layer or matrix
    that it does not have, for repeated ids of cells or names of genes, and, naming cell and gene, for an expression
    that is negative or not a number, a gene whose name has blanks, a cell without a label or without an expressed gene.
    """
    with _opened(path) as file:
        ids = _texts(_column(file, path, "obs", None), path, "obs", "the index")
        if not ids:
            raise UserError(f"{path}: has no cells.")
        advice = "Give every cell an id of its own (obs_names_make_unique)"
        tables.check_unique(ids, path, lambda row: f"cell {row + 1}", advice)
        frame = pd.DataFrame({"id": ids})
        if labelled:
            for role, name in {"label": options["label"], **_groups(options, several)}.items():
                column = _column(file, path, "obs", name)
                frame[role] = _texts(column, path, "obs", f"column {name!r}", ids)
            reason = options.get("reasoning", NAMED)
            if reason not in (None, NAMED):
                frame["reasoning"] = _texts(_column(file, path, "obs", reason), path, "obs", f"column {reason!r}", ids)
                for identifier, text in zip(ids, frame["reasoning"], strict=True):
                    tables.refuse_markup(text, f"{path}: cell {identifier!r}: obs column {reason!r}")
            for label in frame["label"].unique():
                _check_label(label, f"{path}: obs column {options['label']!r}")
            read = {options["label"], *_groups(options, several).values(), reason, file["obs"].attrs["_index"]}
            unread = [column for column in file["obs"] if column not in {*read, "__categories"}]
            frame.attrs["notes"] = published.not_read(unread, " of obs")
        genes = _genes(file, path, options)
        if labelled and all(map(ENSEMBL.match, genes)):
            part = file["raw/var" if options["layer"] == RAW else "var"]
            others = [name for name in part if name not in (part.attrs["_index"], options["names"], "__categories")]
            frame.attrs["notes"].append(
                "genes have Ensembl ids as names in prompts; a column of var with symbols can be named in "
                f"options.names (there are: {tables.shown(others) or 'none'})"
            )
        matrix = _matrix(file, path, options["layer"], (len(ids), len(genes)))
        rows = np.arange(len(ids))
        if options["sample"] is not None:  # by the hash that orders the rows when they are split
            keys = (hashlib.sha256(f"{seed}:{identifier}".encode()).digest() for identifier in ids)
            smallest = heapq.nsmallest(options["sample"], zip(keys, range(len(ids)), strict=True))
            rows = np.sort([row for _, row in smallest])
        sentences = []
        random = np.random.RandomState(TIES)
        for chosen, chunk in _chunks(matrix, rows):
            _check_chunk(chunk, path, [ids[row] for row in chosen], genes)
            for row in range(len(chosen)):
                stored = slice(chunk.indptr[row], chunk.indptr[row + 1])
                ranked = rank(chunk.indices[stored], chunk.data[stored], random)
                sentences.append(" ".join(genes[column] for column in ranked[: options["genes"]]))
    left = frame["id"].drop(frame.index[rows])
    frame = frame.iloc[rows].assign(sequence=sentences).reset_index(drop=True)
    if labelled and "reasoning" not in frame:
        frame["reasoning"] = frame["sequence"].map(reasoning) if reason else ""
    frame.attrs["dropped"] = tables.dropped(f"not among the {options['sample']} of options.sample", list(left))
    return frame


def rank(columns: np.ndarray, values: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """The columns of one cell's expressed genes, the most expressed first: int, shape as `columns`, which ascend.

    As in cell2sentence.utils.generate_sentences: shuffled by `random`, then sorted by a stable sort.
    """
    order = np.arange(len(columns))
    random.shuffle(order)
    return columns[order][np.argsort(-values[order].astype(np.float64), kind="stable")]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file as `h5py.File`. UserError if it cannot be read, or is not AnnData."""
    import h5py

    tables.check_file(path)
    try:
        with h5py.File(path, "r") as file:
            for part in ("obs", "var"):
                if not isinstance(file.get(part), h5py.Group) or "_index" not in file[part].attrs:
                    raise UserError(
                        f"{path}: no table {part!r} as AnnData 0.7 and later write it. Read it with anndata, and write "
                        "it again with write_h5ad."
                    )
            yield file
    except OSError as error:
        raise UserError(f"{path}: cannot be read as .h5ad ({one_line(error)}). Copy or write it again.") from error


def _column(file: Any, path: Path, part: str, name: str | None) -> pd.Series:
    """A column of `obs` or `var`, or the index if `name` is None. Other columns are not read (but by AnnData 0.7)."""
    from anndata.io import read_elem

    table = file[part]
    index = table.attrs["_index"]
    if name is not None and (name not in table or name == "__categories"):
        has = [key for key in table if key not in (index, "__categories")]
        raise UserError(f"{path}: no column {name!r} in {part}. It has: {tables.shown(has)}.")
    if "__categories" in table and name is not None:  # AnnData 0.7 stored the categories of all columns together
        return read_elem(table)[name]
    return pd.Series(read_elem(table[index if name is None else name]))


def _texts(column: pd.Series, path: Path, part: str, what: str, ids: list[str] | None = None) -> list[str]:
    """A column of texts or categories. UserError for fractions, and, naming the row, for a missing value."""
    if pd.api.types.is_float_dtype(column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column):
        raise UserError(f"{path}: {what} of {part} holds fractions; expected texts or categories. Convert it to texts.")
    texts = ["" if missing else str(value).strip() for value, missing in zip(column, column.isna(), strict=True)]
    if "" in texts:
        row = texts.index("")
        where = f"cell {ids[row]!r}" if ids else f"row {row + 1}"
        raise UserError(
            f"{path}: {where} has no value in {what} of {part}, and so have {texts.count('') - 1} more. Fill it, or "
            "remove such rows."
        )
    return texts


def _check_label(label: str, where: str) -> None:
    tables.refuse_markup(label, where)
    if "<" in label or not label.isprintable():
        raise UserError(
            f"{where}: the label {label!r} must be one line without <, so that answers can be parsed. Rename it."
        )


def _genes(file: Any, path: Path, options: Mapping[str, Any]) -> list[str]:
    """The names of the genes in upper case, as the package writes them. They have no blanks, which separate genes."""
    part = "raw/var" if options["layer"] == RAW else "var"
    if part not in file:
        raise UserError(f"{path}: no {RAW}. Set options.layer to null (X) or the name of a layer.")
    what = "the index" if options["names"] is None else f"column {options['names']!r}"
    names = [name.upper() for name in _texts(_column(file, path, part, options["names"]), path, part, what)]
    for row, name in enumerate(names, 1):
        if len(name.split()) != 1:
            raise UserError(
                f"{path}: gene {row}: the name {name!r} in {what} of {part} has blanks, which separate genes in a "
                "cell sentence. Rename it, or name another column of var in options.names."
            )
        tables.refuse_markup(name, f"{path}: gene {row}")
        if "<" in name:
            raise UserError(f"{path}: gene {row}: the name {name!r} in {what} of {part} has a <. Rename it.")
    advice = "Case is ignored. Make the names unique, or name another column of var in options.names"
    tables.check_unique(names, path, lambda row: f"gene {row + 1}", advice)
    return names


def _matrix(file: Any, path: Path, layer: str | None, shape: tuple[int, int]) -> Any:
    """The expression, still on disk: an `h5py.Dataset`, or AnnData's CSRDataset or CSCDataset, of `shape`."""
    import h5py
    from anndata.io import sparse_dataset

    key = {None: "X", RAW: "raw/X"}.get(layer, f"layers/{layer}")
    if key not in file:
        has = [*file.get("layers", {}), *([RAW] if "raw/X" in file else [])]
        raise UserError(
            f"{path}: no {'X' if layer is None else f'layer {layer!r}'}. Set options.layer to one of: "
            f"{tables.shown(has) or 'null'}."
        )
    stored = file[key]
    try:
        matrix = stored if isinstance(stored, h5py.Dataset) else sparse_dataset(stored)
    except (KeyError, ValueError):
        matrix = None
    if matrix is None or len(matrix.shape) != 2 or matrix.dtype.kind not in "fiub":
        raise UserError(f"{path}: {key} is not a matrix of numbers, dense or sparse (CSR or CSC). Write it again.")
    if tuple(matrix.shape) != shape:
        raise UserError(
            f"{path}: {key} has the shape {tuple(matrix.shape)}, but there are {shape[0]} cells and {shape[1]} genes. "
            "Write it again."
        )
    return matrix


def _chunks(matrix: Any, rows: np.ndarray) -> Iterator[tuple[np.ndarray, sparse.csr_matrix]]:
    """Ascending `rows` of a matrix on disk in pieces, without stored zeros: (numbers of the rows, their values).

    A piece has at most ENTRIES values (or one row); of a CSC matrix, the values of at most PASS rows.
    """
    import h5py

    if isinstance(matrix, h5py.Dataset):
        for chosen in _pieces(rows, np.full(len(rows), matrix.shape[1])):
            runs = np.split(chosen, np.flatnonzero(np.diff(chosen) > 1) + 1)
            dense = np.concatenate([matrix[run[0] : run[-1] + 1] for run in runs])
            yield chosen, sparse.csr_matrix(dense)
    elif matrix.format == "csr":
        for chosen in _pieces(rows, np.diff(matrix.group["indptr"][...])[rows]):
            mask = np.zeros(matrix.shape[0], dtype=bool)
            mask[chosen] = True
            yield chosen, _nonzero(matrix[mask])
    else:
        stored = np.diff(matrix.group["indptr"][...])
        for chosen in np.array_split(rows, range(PASS, len(rows), PASS)):
            columns = _pieces(np.arange(matrix.shape[1]), stored)
            parts = [matrix[:, piece[0] : piece[-1] + 1].tocsr()[chosen] for piece in columns]
            yield chosen, _nonzero(sparse.hstack(parts, format="csr"))


def _pieces(rows: np.ndarray, stored: np.ndarray) -> list[np.ndarray]:
    """`rows` in runs of at most ENTRIES stored values, or of one row."""
    starts, total = [], 0
    for index, count in enumerate(stored.tolist()):
        if index and total + count > ENTRIES:
            starts.append(index)
            total = 0
        total += count
    return np.split(rows, starts)


def _nonzero(chunk: sparse.csr_matrix) -> sparse.csr_matrix:
    """The same cells with their genes in the order of the columns, which is the order in which ties are drawn."""
    chunk.sum_duplicates()
    chunk.eliminate_zeros()
    return chunk


def _check_chunk(chunk: sparse.csr_matrix, path: Path, ids: list[str], genes: list[str]) -> None:
    """UserError for a value that is negative or not a number, or a cell without an expressed gene."""
    wrong = ~(np.isfinite(chunk.data) & (chunk.data > 0))
    if wrong.any():
        at = int(wrong.argmax())
        cell = int(np.searchsorted(chunk.indptr, at, side="right")) - 1
        raise UserError(
            f"{path}: cell {ids[cell]!r}: the expression of {genes[chunk.indices[at]]} is {chunk.data[at]:g}; expected "
            "counts, or values made from them that are 0 or more. Name such a matrix in options.layer (a layer, or "
            f"{RAW})."
        )
    empty = np.diff(chunk.indptr) == 0
    if empty.any():
        raise UserError(
            f"{path}: cell {ids[int(empty.argmax())]!r} expresses no gene. Remove such cells (scanpy.pp.filter_cells)."
        )


def _prompt(options: Mapping[str, Any]) -> Callable[[str], str]:
    """`prompt` of a sentence, with the options of the task."""
    form = answer_form.line(ANSWER, stated=options["answer_form"])
    return functools.partial(prompt, options["question"], genes=options["genes"], form=form)


def _ask(made: Task, options: Mapping[str, Any], path: Path) -> pd.DataFrame:
    """New cells as questions: all cells of an `.h5ad` file, or the cell sentences of a table."""
    if path.suffix.lower() != ".h5ad":
        return loading.questions(made, path)
    assert made.prompt is not None
    assert made.segments is not None
    frame = read(path, {**options, "sample": None}, 0, labelled=False)
    frame["prompt"] = frame["sequence"].map(made.prompt)
    frame["segments"] = frame["sequence"].map(made.segments)
    frame.attrs["numbered"] = list(frame["id"]) == [str(row) for row in range(len(frame))]  # AnnData's default
    return frame
