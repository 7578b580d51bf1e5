"""How fast a corpus of sequences is tokenized: FASTA to a stream of token ids, against `datasets.map`.

    .venv/bin/python benchmarks/tokenizing.py --output benchmarks/RESULTS.md     # one minute

Both read the same FASTA files of random letters and use the same tokenizer. `tokenize_corpus` makes the files that
training reads, with held-out documents, counts and hashes. `datasets.map` maps a data set of the same sequences, with
each residue written as its token, to the columns of the tokenizer. Times are CPU seconds of one process; the two run
alternately. benchmarks/README.md defines the columns.
"""

import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"

import datasets
import numpy as np

from cisterna.data import corpus
from cisterna.data.tokenized import tokenize_corpus
from cisterna.sequences import tokenization
from shared import TEXT, parser, publish, section, setting

COLUMNS = "corpus, residues, records, stream, datasets.map, ratio".split(", ")


def main() -> None:
    arguments = parser("Tokenize FASTA files and the same sequences with datasets.map; compare.")
    arguments.add_argument("--residues", type=int, default=14_000_000, help="residues of each corpus")
    arguments.add_argument("--mapped", type=int, default=1_000_000, help="about so many of them for datasets.map")
    arguments.add_argument("--repeats", type=int, default=5)
    options = arguments.parse_args()
    datasets.disable_progress_bars()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = folder / "base"
        tokenization.build(600, [TEXT]).save_pretrained(base)
        for title, modality, lengths in (
            ("proteins of 200 to 1,200 residues", "protein", (200, 1200)),
            ("DNA, records of 20,000 to 200,000 bases", "dna", (20_000, 200_000)),
        ):
            whole, part = folder / f"{modality}.fasta", folder / f"{modality}-part.fasta"
            count, records = write_fasta(whole, modality, lengths, options.residues)
            mapped, _ = write_fasta(part, modality, lengths, options.mapped)
            ours, theirs = [], []
            for number in range(options.repeats):
                output = folder / f"{modality}-{number}"
                ours.append(count / seconds(tokenize_corpus, whole, modality, base, output))
                theirs.append(mapped / seconds(map_dataset, part, modality, base, output / "cache.arrow"))
            ratio = median(mine / other for mine, other in zip(ours, theirs, strict=True))
            rows.append([title, f"{count:,}", f"{records:,}", rate(ours), rate(theirs), f"{ratio:.0f}"])
    title = "tokenizing.py: a corpus of sequences becomes a stream of token ids"
    about = (
        f"{setting('datasets', 'tokenizers', 'transformers')}. Medians of {options.repeats} alternating runs, CPU time."
    )
    publish(section(title, about, COLUMNS, rows), options.output)


def write_fasta(path: Path, modality: str, lengths: tuple[int, int], total: int) -> tuple[int, int]:
    """Records of random lengths and letters in lines of 60, until there are `total` letters: their number, records."""
    draw, generator = random.Random(1), np.random.default_rng(1)
    letters = np.frombuffer(tokenization.ALPHABETS[modality][:-1].encode(), dtype=np.uint8)
    count = records = 0
    with path.open("w") as stream:
        while count < total:
            length = draw.randint(*lengths)
            sequence = generator.choice(letters, length).tobytes().decode()
            lines = (sequence[at : at + 60] for at in range(0, length, 60))
            stream.write("\n".join([f">record{records} {length} letters", *lines, ""]))
            count, records = count + length, records + 1
    return count, records


def map_dataset(path: Path, modality: str, base: Path, cache: Path) -> None:
    """The usual way: a data set of texts, and the tokenizer mapped over it in batches."""
    tokenizer = tokenization.load(base)
    texts = [tokenization.expand(f"<{modality}>{text}</{modality}>") for text in corpus.documents(path, modality)]
    made = datasets.Dataset.from_dict({"text": texts})
    made.map(
        lambda rows: tokenizer(rows["text"], add_special_tokens=False),
        batched=True,
        remove_columns=["text"],
        cache_file_name=str(cache),
    )


def seconds(work: Callable[..., object], *arguments: object) -> float:
    """CPU seconds of this process for a call."""
    start = time.process_time()
    work(*arguments)
    return time.process_time() - start


def rate(values: list[float]) -> str:
    return f"{median(values) / 1e6:.3g} M/s"


if __name__ == "__main__":
    main()
