"""The distance between sequences, for the leakage audit, for splits by similarity, and for nearest neighbours.

A data set has one measure, chosen by its sequences (`Measure.of`):

- `jaccard of genes`: lists of words, such as the genes of a cell sentence; the Jaccard distance of their sets.
- `hamming / length`: sequences with the same length of at most ALIGNED letters, assumed to be variants of one parent;
  the share of positions that differ.
- `jaccard of k-mers`: all others; the Jaccard distance of their sets of runs of k letters. k is at least 3, so that
  a given run occurs in a random sequence as long as the longest one with a probability of at most 0.01:
  k = ceil(log_a(n (1 - q) / q)) for n letters of an alphabet of a, q = 0.01 (Fofanov et al., Bioinformatics 20:2421
  (2004), as in Mash, Ondov et al., Genome Biology 17:132 (2016)).

Not an alignment: distant homologs are far apart by all three.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

ALIGNED = 500  # letters: longer sequences of one length are often windows of a genome, not variants of one parent
WORD = 3  # letters of the shortest run
CHANCE = 0.01  # probability that a given run is in a random sequence
WIDEST = 2**24  # columns of a table; above that, only words that occur get a column
ROUNDING = 1e-9  # in floating point 1 - 4/5 is a little less than 0.2
BLOCK = 4_000_000  # entries of a dense block: 32 MB of float64


@dataclass(frozen=True)
class Measure:
    """What is compared: `genes`, `positions`, or runs of `word` letters."""

    kind: str  # genes | positions | words
    word: int = 0

    @staticmethod
    def of(sequences: Sequence[str]) -> Measure:
        """The measure for a data set with these sequences."""
        if any(" " in sequence for sequence in sequences):
            return Measure("genes")
        lengths = {len(sequence) for sequence in sequences}
        longest = max(lengths, default=0)
        if len(lengths) == 1 and longest <= ALIGNED:
            return Measure("positions")
        letters = max(4, len(set().union(*sequences)))
        return Measure("words", max(WORD, math.ceil(math.log(max(1, longest) * (1 - CHANCE) / CHANCE, letters))))

    def __str__(self) -> str:
        names = {"genes": "jaccard of genes", "positions": "hamming / length", "words": f"jaccard of {self.word}-mers"}
        return names[self.kind]

    @staticmethod
    def named(name: str) -> Measure:
        """The measure that `str` writes as `name`."""
        if name.endswith("-mers"):
            return Measure("words", int(name.removeprefix("jaccard of ").removesuffix("-mers")))
        return Measure("positions" if name.startswith("hamming") else "genes")


def nearest(sequences: Sequence[str], others: Sequence[str], measure: Measure) -> np.ndarray:
    """The distance of each of `sequences` to the nearest of `others`: float64 in [0, 1], shape (n,)."""
    left, right = _tables(measure, sequences, others)
    distances = np.ones(len(sequences))
    turned, sizes = right.T.tocsr(), _sizes(right)
    del right
    for start, stop in _blocks(len(sequences), len(others)):
        shared = (left[start:stop] @ turned).toarray()
        total = _sizes(left)[start:stop, None] + sizes
        # The union of two sets is the total less the shared words; for positions it is the length, half of the total.
        whole = total / 2 if measure.kind == "positions" else total - shared
        distances[start:stop] = (1 - shared / whole).min(axis=1)
    return distances


def clusters(sequences: Sequence[str], threshold: float, measure: Measure) -> np.ndarray:
    """The number of the cluster of each sequence: int32, shape (n,).

    Single linkage: two sequences are in one cluster if a chain joins them in which each sequence is nearer than
    `threshold` to the next. So sequences of different clusters are at least `threshold` apart. Only a block of the
    matrix of all pairs is in memory at a time.
    """
    (table,) = _tables(measure, sequences)
    sizes = _sizes(table)
    # Two sequences are nearer than the threshold d if their shared words s are more than `part` of the sum of their
    # sizes a + b: for Jaccard 1 - s / (a + b - s) < d, and for positions 1 - s / n < d with a = b = n.
    near = 1 - (threshold - ROUNDING)
    part = near / 2 if measure.kind == "positions" else near / (1 + near)
    joined: np.ndarray = np.arange(len(sequences), dtype=np.int32)  # the cluster of each among the pairs so far
    for start, stop in _blocks(len(sequences), len(sequences)):
        shared = (table[start:] @ table[start:stop].T.tocsr()).toarray()  # each pair once
        rows, columns = np.nonzero(shared > part * (sizes[start:, None] + sizes[start:stop]))
        rows, columns = joined[rows + start], joined[columns + start]
        edges = sparse.coo_matrix((np.ones(len(rows), bool), (rows, columns)), shape=(len(sequences),) * 2)
        _, labels = csgraph.connected_components(edges, directed=False)
        joined = labels[joined].astype(np.int32)
    return joined


def _sizes(table: sparse.csr_matrix) -> np.ndarray:
    """How many words each sequence has."""
    return np.diff(table.indptr).astype(np.float64)


def _blocks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """First and last row of blocks that have at most BLOCK entries."""
    step = max(1, BLOCK // max(1, columns))
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def _tables(measure: Measure, *parts: Sequence[str]) -> list[sparse.csr_matrix]:
    """For each part of the sequences a table of shape (sequences, words): 1 where a sequence has the word."""
    if measure.kind == "genes":
        numbers: dict[str, int] = {}
        rows = [[_genes(sequence, numbers) for sequence in part] for part in parts]
        width = len(numbers)
    else:
        letters = np.array(sorted(map(ord, set().union(*(letter for part in parts for letter in part)))), np.uint32)
        rows = [[_runs(sequence, letters, measure) for sequence in part] for part in parts]
        longest = max((len(sequence) for part in parts for sequence in part), default=0)
        base = len(letters) + 1
        width = longest * base if measure.kind == "positions" else base**measure.word
    if width > WIDEST:
        words = np.unique(np.concatenate([row for part in rows for row in part]))
        rows = [[np.searchsorted(words, row) for row in part] for part in rows]
        width = len(words)
    # There are millions of counts of shared words, so each has as few bytes as possible.
    dtype = np.uint16 if max((len(row) for part in rows for row in part), default=0) < 2**16 else np.uint32
    tables = []
    for part in rows:
        ends = np.cumsum([0, *map(len, part)])
        columns = np.concatenate(part, dtype=np.int32) if part else np.zeros(0, np.int32)
        ones = np.ones(len(columns), dtype)
        tables.append(sparse.csr_matrix((ones, columns, ends), shape=(len(part), max(1, width))))
    return tables


def _genes(sentence: str, numbers: dict[str, int]) -> np.ndarray:
    return np.array([numbers.setdefault(word, len(numbers)) for word in sorted(set(sentence.split()))], np.int32)


def _runs(sequence: str, letters: np.ndarray, measure: Measure) -> np.ndarray:
    """The numbers of the words of a sequence, each once: positions with their letter, or runs of letters."""
    base = len(letters) + 1  # 0 is no letter: the padding of a short sequence
    codes = np.searchsorted(letters, np.frombuffer(sequence.encode("utf-32-le"), np.uint32)).astype(np.int64) + 1
    if measure.kind == "positions":
        numbers = np.arange(len(codes), dtype=np.int64) * base + codes
    else:
        if len(codes) < measure.word:  # a short sequence is one word
            codes = np.pad(codes, (0, measure.word - len(codes)))
        runs = np.lib.stride_tricks.sliding_window_view(codes, measure.word)
        numbers = np.unique(runs @ (np.int64(base) ** np.arange(measure.word, dtype=np.int64)))
    return numbers if numbers[-1] > WIDEST else numbers.astype(np.int32)
