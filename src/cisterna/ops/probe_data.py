"""Data that `cisterna plan --calibrate` measures with: prepared ones, cut to some rows or tokens, and their lengths.

Not for what is run on them (`cisterna.ops.probes`).
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cisterna.artifacts import files
from cisterna.constants import TEST_SPLITS
from cisterna.data import splits
from cisterna.ops.timing import Lengths
from cisterna.scoring import answers
from cisterna.scoring.answers import Labels


def rows(data: Path, split: str) -> int:
    """Rows of a split of prepared data."""
    return int(splits.read_card(data)["splits"][split]["rows"])


def cut_rows(source: Path, folder: Path, most: Mapping[str, int]) -> Path:
    """Copy prepared data to a new folder, of some splits the first so many rows; returns the folder."""
    shutil.copytree(source, folder)
    card = splits.read_card(source)
    for split, count in most.items():
        path = folder / f"{split}.parquet"
        frame = pd.read_parquet(path).head(count)
        splits.write(frame, path)
        card["splits"][split]["rows"] = len(frame)
        card["files"][path.name] = files.sha256(path)
    files.write_json(folder / "card.json", card)
    return folder


def cut_heldout(source: Path, folder: Path, most: int) -> int:
    """Write the first so many held-out tokens of a tokenized corpus to a new folder; returns how many there are."""
    folder.mkdir(parents=True)
    stream = np.load(source / "heldout.npy", mmap_mode="r")[:most]
    starts = np.load(source / "heldout_starts.npy")
    np.save(folder / "heldout.npy", stream)
    np.save(folder / "heldout_starts.npy", starts[starts < len(stream)])
    return len(stream)


def lengths(base: Path, data: Path) -> tuple[Lengths, list[list[int]]]:
    """Of the rows of train, as a backbone reads and writes them without features; and the completions as token ids."""
    from cisterna.sequences import tokenization
    from cisterna.sequences.prompt import encode_prompts
    from cisterna.sequences.source import TOKENS

    tokenizer = tokenization.load(base)
    frame = pd.read_parquet(data / "train.parquet")
    prompts = encode_prompts(tokenizer, list(frame["prompt"]), TOKENS, list(frame["segments"]), 0)
    reasonings, labels = (tokenization.escape(tokenizer, list(frame[column])) for column in ("reasoning", "answer"))
    texts = [answers.completion(*pair) for pair in zip(reasonings, labels, strict=True)]
    completions = tokenization.encode_completions(tokenizer, texts)
    written = list(map(len, completions))
    space = answers.load_space(splits.read_card(data), data)
    scored = len(space.labels) if isinstance(space, Labels) else 0
    prompt = float(np.mean(list(map(len, prompts))))
    return Lengths(prompt, float(np.mean(written)), max(written), scored), completions


def teach(work: Path, completions: Sequence[Sequence[int]]) -> None:
    """Put what train teaches in the place of the outputs that an evaluation has saved, and remove what follows."""
    for entry in work.iterdir():
        if entry.name in TEST_SPLITS:
            for path in entry.glob("*.json"):
                count = len(files.read_json(path))
                files.write_json(path, [completions[index % len(completions)] for index in range(count)])
        elif entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name == "answers.json":
            entry.unlink()


def at_end(progress: Path) -> bool:
    """Whether a stage with this file of its progress has taken all of its steps."""
    if not progress.is_file():
        return False
    reported = json.loads(progress.read_text(encoding="utf-8"))
    return bool(reported["done"] == reported["total"])
