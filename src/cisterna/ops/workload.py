"""How much a study trains: rows of its splits, tokens of its corpora, and the examples and tokens of each model.

Counts of rows are exact where the config has a number. Tokens are estimates until something has run: the cards of data
and of tokenized corpora and the manifests of checkpoints replace them once they exist. `notes` says which is which.
Not for time, memory or disk (`cisterna.ops.cost`).
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cisterna.artifacts import files
from cisterna.constants import SPLITS, TEST_SPLITS
from cisterna.study import Model, Study
from cisterna.tasks import catalog

# An example of a built-in task takes 60 to 110 tokens: one a residue, one or two a common word.
TOKENS_PER_EXAMPLE = 100
ROWS = 1000  # of a split without a number in the config, before its data are prepared
# Bytes of a corpus per token: sequences are one token a residue, English text with a vocabulary of
# about a thousand tokens is about three bytes a token.
BYTES_PER_TOKEN = {"dna": 1.0, "rna": 1.0, "protein": 1.0, "text": 3.0}
TOKENS_PER_DOCUMENT = 1000  # of a corpus with a limit on its documents; a web page has about as many
MAX_LENGTH = 1024  # default of trl.SFTConfig
MAX_COMPLETION_LENGTH = 512  # default of trl.GRPOConfig
NUM_GENERATIONS = 8  # default of trl.GRPOConfig


class Work(NamedTuple):
    """What a model is trained on beyond the rung before it.

    Examples are blocks for CPT, training examples for SFT and prompts for RL. The tokens of RL are the most that can be
    generated.
    """

    examples: float
    tokens: float


@dataclass(frozen=True)
class Workload:
    """What is known of the data of a study. A missing entry is not known: then it is assumed, or not counted."""

    study: Study
    sizes: dict[tuple[str, str], int]  # (task, split) -> rows
    sft_tokens: dict[str, float]  # task -> tokens of an example, measured
    corpora: dict[tuple[str, str], float]  # (backbone, corpus) -> tokens
    from_files: list[str]  # corpora whose tokens are estimated from the size of the file
    from_documents: list[str]  # corpora whose tokens are estimated from the number of documents

    def rows(self, task: str, split: str) -> int:
        """Rows of a split; ROWS if they are not known."""
        return self.sizes.get((task, split), ROWS)

    def rows_tested(self, task: str) -> int:
        """Examples of one evaluation."""
        return sum(self.rows(task, split) for split in TEST_SPLITS)

    def tokens_tested(self, task: str) -> int:
        """The most tokens that one evaluation can generate."""
        return int(self.rows_tested(task) * self.study.config["evaluation"]["max_new_tokens"])

    def of(self, model: Model) -> Work:
        """What the job of a model trains on."""
        if model.kind == "base":
            return Work(0, 0)
        recipe, task = self.study.recipe(model.kind, str(model.recipe)), str(model.task)
        if model.kind == "cpt":
            known = sum(self.corpora.get((model.backbone, name), 0) for name in recipe["corpora"])
            tokens = recipe["num_train_epochs"] * known
            return Work(tokens / recipe["block_size"], tokens)
        rows = epochs_added(self.study, model) * rows_used(recipe, self.rows(task, "train"))
        if model.kind == "sft":
            assumed = TOKENS_PER_EXAMPLE if task in catalog.LABELS else recipe.get("max_length") or MAX_LENGTH
            return Work(rows, rows * self.sft_tokens.get(task, assumed))
        length = recipe.get("max_completion_length") or MAX_COMPLETION_LENGTH
        return Work(rows, rows * (recipe.get("num_generations") or NUM_GENERATIONS) * length)

    def notes(self) -> list[str]:
        """For each estimate a line: whether it is measured or assumed, and of what."""
        study = self.study
        lines = []
        if self.from_files:
            lines.append("tokens of cpt: estimated from file sizes: 1 byte a residue, 3 bytes a token of text, for")
            lines.append(f"  {', '.join(self.from_files)}")
        if self.from_documents:
            documents = f"{TOKENS_PER_DOCUMENT:,} a document, assumed for"
            lines.append(f"tokens of cpt: {documents} {', '.join(self.from_documents)}")
        if self.corpora and not self.from_files + self.from_documents:
            lines.append("tokens of cpt: counted")
        if self.sft_tokens:
            lines.append(f"tokens of sft: measured for {', '.join(self.sft_tokens)}")
        tuned = {str(model.task) for model in study.models if model.kind == "sft"}
        assumed = [task for task in study.tasks if task in tuned and task not in self.sft_tokens]
        built_in = [task for task in assumed if task in catalog.LABELS]
        own = [task for task in assumed if task not in catalog.LABELS]
        if built_in:
            lines.append(f"tokens of sft: {TOKENS_PER_EXAMPLE} an example, assumed for {', '.join(built_in)}")
        if own:
            lines.append(f"tokens of sft: at most; max_length an example, for {', '.join(own)}")
        if any(model.kind == "rl" for model in study.models):
            lines.append("tokens of rl: at most; prompts x num_generations x max_completion_length")
        uncounted = dict.fromkeys(corpus for pair in study.tokenized if pair not in self.corpora for corpus in pair[1:])
        if uncounted:
            lines.append(f"not counted: corpora whose file does not exist: {', '.join(uncounted)}")
        splits = ("train", *TEST_SPLITS)
        unsized = [task for task in study.tasks if any((task, split) not in self.sizes for split in splits)]
        if unsized:
            lines.append(f"rows of splits without a number, {ROWS:,} assumed until prepared: {', '.join(unsized)}")
        return lines


def rows_used(recipe: Mapping[str, Any], size: int) -> int:
    """Rows of train that a recipe uses, as SFT and RL choose them."""
    return int(recipe.get("examples") or math.ceil(size * recipe.get("fraction", 1.0)))


def epochs_added(study: Study, model: Model) -> int:
    """Epochs of an SFT or RL model beyond the rung before it."""
    return model.epochs - (study.model(model.previous).epochs if model.previous else 0)


def measure(study: Study, results: Path) -> Workload:
    """What is known of the data of a study, from its config, its corpora and what is below `results`."""
    sizes: dict[tuple[str, str], int] = {}
    for task in study.tasks:
        card = _json(results / "data" / task / "card.json")
        for split in SPLITS:
            size = study.config["tasks"][task].get(split)
            if card:
                sizes[task, split] = card["splits"][split]["rows"]
            elif isinstance(size, int):  # a list names the groups of a split
                sizes[task, split] = size
    sft_tokens: dict[str, float] = {}
    for model in study.models:
        task = str(model.task)
        if model.kind == "sft" and task not in sft_tokens:
            manifest = _json(results / model.path / "checkpoint" / "manifest.json")
            tokens, size = manifest.get("trained", {}).get("tokens"), sizes.get((task, "train"))
            if tokens and size:
                sft_tokens[task] = tokens / (model.epochs * rows_used(study.recipe("sft", str(model.sft)), size))
    corpora: dict[tuple[str, str], float] = {}
    from_files: dict[str, None] = {}
    from_documents: dict[str, None] = {}
    for backbone, name in study.tokenized:
        card = _json(results / "tokens" / backbone / name / "card.json")
        if card:
            corpora[backbone, name] = card["train"]["tokens"]
            continue
        corpus = study.config["corpora"][name]
        by_documents = corpus.get("train_documents", math.inf) * TOKENS_PER_DOCUMENT
        file = files.locate(corpus["file"])
        by_size = _unpacked_size(file) / BYTES_PER_TOKEN[corpus["modality"]] if file.is_file() else math.inf
        if min(by_documents, by_size) < math.inf:
            corpora[backbone, name] = min(by_documents, by_size)
            (from_files if by_size <= by_documents else from_documents)[name] = None
    return Workload(study, sizes, sft_tokens, corpora, list(from_files), list(from_documents))


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _unpacked_size(path: Path) -> int:
    """Size of a file in bytes; of a gzipped file that of its content."""
    if path.suffix != ".gz":
        return path.stat().st_size
    with path.open("rb") as stream:  # RFC 1952: the last four bytes are the size, modulo 2^32
        stream.seek(-min(4, path.stat().st_size), os.SEEK_END)
        return int.from_bytes(stream.read(4), "little")
