"""What baselines read of an example: everything that differs between prompts, as a matrix.

A sequence is a bag of k-mers or of words, or one-hot by position. Another column of the prompt is one-hot, a number, or
TF-IDF of its words if it is free text. What a column is, `train` alone decides.

Not for the encoders that models read (`cisterna.sequences.encoders`).
"""

import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, OneHotEncoder, StandardScaler

from cisterna.data import similarity
from cisterna.sequences.tokenization import TAGGED

# For proteins pairs, the usual dipeptide composition: a short protein has few of the 8,000 triples.
KMER = {"dna": 3, "rna": 3, "protein": 2}
WORDS = 3  # free text has more of them than this, on average
NUMBERS = 10  # a column of more different numbers than this is a quantity, not a category

Analyzer = Callable[[str], Iterable[str]]


class Inputs(NamedTuple):
    """What differs between prompts: a table of texts, and the modality of those of its columns that are sequences."""

    texts: pd.DataFrame
    modalities: Mapping[str, str]


def read(table: pd.DataFrame, card: Mapping[str, Any]) -> Inputs:
    """What the prompts of all splits (columns sequence and prompt) of the task with this card say.

    - of a built-in task the sequence, from which all of its prompt follows
    - of the user's table with `prompt` in its entry of the config the columns in braces there
    - otherwise the sequences of the prompt, and, if it differs, its text without them
    - where no sequence is tagged the sequence (the genes of a cell), or of a task of texts the whole prompt
    """
    spec, modality = card["spec"], str(card["modality"])
    if not spec.get("file") and not spec.get("adapter"):
        return Inputs(table[["sequence"]], {"sequence": modality})
    cells = _cells(table["prompt"], str(spec["prompt"]), card["labels"]) if spec.get("prompt") else None
    if cells is not None:
        modalities = {}
        for name in map(str, cells.columns):
            tagged = [match for match in map(TAGGED.fullmatch, cells[name]) if match]
            if len(tagged) == len(cells):
                modalities[name] = tagged[0][1]
                cells[name] = [match[2] for match in tagged]
        return Inputs(cells, modalities)
    stretches = [TAGGED.findall(prompt) for prompt in table["prompt"]]
    count = len(stretches[0])
    if count == 0 or any(len(row) != count for row in stretches):
        if modality in KMER:
            return Inputs(table[["sequence"]], {"sequence": modality})
        return Inputs(pd.DataFrame({"text": table["prompt"]}), {})
    names = ["sequence"] if count == 1 else [f"sequence {place}" for place in range(1, count + 1)]
    modalities = {name: modality for name, (modality, _) in zip(names, stretches[0], strict=True)}
    texts = pd.DataFrame([[text for _, text in row] for row in stretches], columns=names, index=table.index)
    others = table["prompt"].str.replace(TAGGED, " ", regex=True)
    return Inputs(texts if (others == others.iloc[0]).all() else texts.assign(text=others), modalities)


def _cells(prompts: pd.Series, template: str, labels: Sequence[str]) -> pd.DataFrame | None:
    """The cells that filled the template, a column each in the order of the template; None if prompts do not fit it.

    A cell is as short as it can be: where one contains the text between two fields, the rest of it is in the next one.
    """
    names: dict[str, int] = {}
    pattern = ""
    for text, name, _, _ in string.Formatter().parse(template.strip()):
        pattern += re.escape(text)
        if name == "options":
            pattern += re.escape(", ".join(labels))
        elif name in names:
            pattern += rf"(?:\{names[name]})"
        elif name is not None:
            names[name] = len(names) + 1
            pattern += "(.*?)"
    matches = [re.fullmatch(pattern, prompt.removesuffix("\n"), re.DOTALL) for prompt in prompts]
    if not names or not all(matches):
        return None
    return pd.DataFrame([match.groups() for match in matches if match], columns=list(names), index=prompts.index)


@dataclass(frozen=True)
class Features:
    """Fitted on train: `kinds` says what each column became, and `of` makes the matrix of a table."""

    kinds: Mapping[str, str]
    transformer: ColumnTransformer

    def of(self, table: pd.DataFrame) -> csr_matrix:
        """The features of a table, shape (rows, features)."""
        return csr_matrix(self.transformer.transform(table))


def fit(train: pd.DataFrame, modalities: Mapping[str, str]) -> Features:
    """The features of a table of texts; `modalities` are those of the columns that are sequences.

    If there are several columns, each is scaled to length 1 (but numbers to standard deviation 1), so
    that the many k-mers of a sequence do not outweigh a category.
    """
    parts: dict[str, tuple[str, Any]] = {}
    for column in map(str, train.columns):
        if column in modalities:
            name, analyzer = sequence_kind(train[column], modalities[column])
            parts[column] = name, CountVectorizer(analyzer=analyzer)
        else:
            parts[column] = _field_kind(train[column])
    transformers = []
    for column, (kind, transformer) in parts.items():
        whole_column = [column] if kind in ("one-hot", "number") else column  # a table, or the texts alone
        if len(parts) > 1 and kind != "number":
            transformer = make_pipeline(transformer, Normalizer())
        transformers.append((column, transformer, whole_column))
    fitted = ColumnTransformer(transformers, sparse_threshold=1.0).fit(train)
    return Features({column: kind for column, (kind, _) in parts.items()}, fitted)


def sequence_kind(sequences: pd.Series, modality: str) -> tuple[str, Analyzer]:
    """Name and function of the features of sequences: words, letters by position, or k-mers.

    Lists of words (a cell's genes) are bags of words. Sequences of one length of at most `similarity.ALIGNED` letters
    are aligned, so a letter counts by its position (one-hot). All others are bags of k-mers.
    """
    if sequences.str.contains(" ", regex=False).any():
        return "words", str.split
    lengths = set(map(len, sequences))
    if len(lengths) == 1 and max(lengths) <= similarity.ALIGNED:
        return "positions", lambda sequence: [f"{position}{letter}" for position, letter in enumerate(sequence)]
    k = KMER[modality]
    return f"{k}-mers", lambda sequence: [sequence[i : i + k] for i in range(max(1, len(sequence) - k + 1))]


def _field_kind(texts: pd.Series) -> tuple[str, Any]:
    """Name and transformer of another column of the prompt."""
    different = texts.drop_duplicates()
    if len(different) > NUMBERS and _numbers(different.to_frame()).notna().all(axis=None):
        return "number", make_pipeline(FunctionTransformer(_numbers), SimpleImputer(), StandardScaler())
    many_words = different.str.split().str.len().mean() > WORDS and different.str.contains(r"\w").any()
    if 2 * len(different) > len(texts) and many_words:
        return "tf-idf", TfidfVectorizer(token_pattern=r"\w+")  # noqa: S106 - no password
    return "one-hot", OneHotEncoder(handle_unknown="ignore")


def _numbers(table: pd.DataFrame) -> pd.DataFrame:
    """A table of texts as numbers; what is none is missing."""
    return table.apply(pd.to_numeric, errors="coerce").replace([np.inf, -np.inf], np.nan)
