"""`cisterna data`: one task's examples as train, validation, id and ood, audited for leaks.

    cisterna data --task splice-donor --output results/data/splice-donor --seed 0
        --spec '{"train": 1000, "validation": 150, "id": 400, "ood": 400}'

Writes {train,validation,id,ood}.parquet and card.json, which has their SHA-256, all or nothing. Not for prompts
(`cisterna.tasks`) or token ids (`cisterna.sequences.prompt`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cisterna import tasks
from cisterna.artifacts import files
from cisterna.constants import MALFORMED, SPLITS, TEST_SPLITS
from cisterna.data import holdout, similarity
from cisterna.data.audit import Prompts, audit, check_distance
from cisterna.data.drawing import ALL, describe_draw, draw_splits, without_repeats
from cisterna.errors import UserError
from cisterna.scoring import gene_ontology
from cisterna.sequences.windows import tagged_stretches

SEGMENTS = pa.list_(pa.struct([("sequence", pa.string()), ("start", pa.int32()), ("center", pa.int32())]))
SHOWN = 5  # labels that a note names
NAMED = 200  # groups of a split that the card lists one by one


class Marked(NamedTuple):
    """A task with its examples, those out of domain marked, and how they were chosen (`cisterna.data.holdout`).

    `provenance` are the attributes of the examples as they were read (`cisterna.tasks.read`), `dropped` among them.
    """

    task: tasks.Task
    examples: pd.DataFrame
    provenance: Mapping[Any, Any]
    rule: str
    measure: similarity.Measure | None = None
    unseen: Mapping[str, Sequence[str]] = {}
    repeats: Sequence[Mapping[str, Any]] = ()  # rows that were left out after they were read, as in `dropped`


def prepare(name: str, spec: Mapping[str, Any], seed: int, output: Path) -> None:
    """Draw, audit and write the splits of task `name` into the folder `output`, which is replaced as a whole.

    `spec` is the task's entry in the config: the size of each split, and the keys of an adapter or of the user's own
    table. Nothing is written unless every check passes. Raises UserError for a mistake in the table, for a split that
    cannot be filled, and for a leak.
    """
    marked = mark(name, spec, seed)
    frames, card = draw(name, spec, seed, marked)
    for entry in card.get("dropped", []):
        more = ", ..." if entry["rows"] > len(entry["examples"]) else ""
        print(f"rows left out: {entry['rows']}: {entry['reason']} ({', '.join(entry['examples'])}{more})", flush=True)
    for note in card.get("notes", []):
        print(f"note: {note}", flush=True)
    with files.new_folder(Path(output)) as folder:
        for split, frame in frames.items():
            write(frame, folder / f"{split}.parquet")
        hashes = {f"{split}.parquet": files.sha256(folder / f"{split}.parquet") for split in SPLITS}
        if marked.task.terms is not None:
            terms = marked.task.terms(frames["train"])
            terms.write(folder / gene_ontology.FILE)
            hashes[gene_ontology.FILE] = files.sha256(folder / gene_ontology.FILE)
            card["answers"] = {"kind": "terms", "version": terms.version, "sha256": hashes[gene_ontology.FILE]}
        files.write_json(folder / "card.json", card | {"files": hashes})


def mark(name: str, spec: Mapping[str, Any], seed: int) -> Marked:
    """Read the examples of a task and mark those out of domain. UserError as for `prepare`."""
    task = tasks.load(name, spec)
    examples = tasks.read(task)
    _check_segments(examples, name)
    provenance = examples.attrs
    if spec.get("split"):
        held = holdout.hold_out(examples, spec["split"], seed, name, task.sequences)
        return Marked(task, held.examples, provenance, held.rule, held.measure, held.unseen)
    unseen: Mapping[str, Sequence[str]] = {}
    if isinstance(spec.get("ood"), Mapping):
        unseen = {column: list(map(str, values)) for column, values in spec["ood"].items()}
    repeats: list[dict[str, Any]] = []
    if tasks.SPLIT in examples.columns:
        examples, repeats = without_repeats(examples)
    return Marked(task, examples, provenance, task.rule, unseen=unseen, repeats=repeats)


def draw(
    name: str, spec: Mapping[str, Any], seed: int, marked: Marked
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The splits of the examples of a task, with the sizes in `spec`, audited, and their card without hashes.

    UserError as for `prepare`.
    """
    task, examples = marked.task, marked.examples
    sizes = {split: spec.get(split) for split in SPLITS}
    if spec.get("split"):
        sizes["ood"] = spec.get("ood", ALL)
    elif isinstance(sizes["ood"], list | tuple | Mapping):  # names of groups, or values of columns
        sizes["ood"] = int(examples["ood"].sum())
    if tasks.SPLIT in examples.columns:
        sizes |= {split: spec.get(split, ALL) for split in ("train", "id", "ood")}
    frames = draw_splits(examples, sizes, seed, name, task.quoted)
    dropped = [*marked.provenance.get("dropped", []), *marked.repeats, *frames["train"].attrs["dropped"]]
    labels = tuple(sorted(set(examples["answer"]))) if task.labels is None else task.labels
    if MALFORMED in labels:
        raise UserError(f"{name}: an answer is {MALFORMED!r}, which tables of results call outputs without an answer")
    prompts = Prompts(task.sequences, task.by_prompt, marked.unseen)
    if marked.measure is not None:
        sequence = spec["split"].get("column", "sequence")
        checks = audit(frames, prompts, {sequence: marked.measure})
        threshold = float(spec["split"]["threshold"])
        checks["held_out"] = check_distance(frames, prompts, threshold, marked.measure, sequence)
    else:
        checks = audit(frames, prompts)
    card = {
        "task": name,
        "spec": dict(spec),
        "modality": task.modality,
        "labels": list(labels),
        "meaning": task.meaning,
        "source": _source(task, marked.provenance),
        "seed": seed,
        "rule": f"{marked.rule}. {describe_draw(examples)}"
        + ("; rows that the tokenizer's text may quote go to train only" if task.quoted else ""),
        "splits": {split: _counts(frame, labels) for split, frame in frames.items()},
        "audit": checks,
    }
    card |= prompts.for_card()
    notes = [*marked.provenance.get("notes", []), *(_unseen_answers(frames) if task.terms is None else ())]
    if absent := sorted(set(labels) - set(examples["answer"])):
        notes.append(f"no row has the label {', '.join(absent[:SHOWN])}: check `labels`")
    for key, value in (("dropped", dropped), ("notes", notes), ("letters", marked.provenance.get("letters"))):
        if value:
            card[key] = value
    return frames, card


def _unseen_answers(frames: Mapping[str, pd.DataFrame]) -> list[str]:
    """A note for each test split with answers that no row of train has, such as those of a disease that is held out."""
    found = []
    taught = set(frames["train"]["answer"])
    for split in TEST_SPLITS:
        unseen = frames[split]["answer"][~frames[split]["answer"].isin(taught)]
        if len(unseen):
            labels = sorted(set(unseen))
            named = ", ".join(labels[:SHOWN]) + (", ..." if len(labels) > SHOWN else "")
            found.append(
                f"{split}: {len(unseen)} of {len(frames[split])} rows have an answer that no row of train has "
                f"({named}): training does not teach these labels, and no baseline can give them"
            )
    return found


def read_card(folder: Path) -> dict[str, Any]:
    """The card of the splits in `folder`. UserError if there is none, or if it has no hashes of its files."""
    path = Path(folder) / "card.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file. Write the splits with `cisterna data` first.")
    card = files.read_json(path)
    if "files" not in card:
        raise UserError(
            f"{path}: has no SHA-256 of its splits; an earlier version wrote it. Delete the folder and rerun."
        )
    return card


def check(folder: Path, split: str, card: Mapping[str, Any]) -> Path:
    """The file of a split in `folder`. UserError if it is not the one that the card describes."""
    path = Path(folder) / f"{split}.parquet"
    if not path.is_file():
        raise UserError(f"{path}: no such file. Write the splits with `cisterna data` first.")
    actual = files.sha256(path)
    if actual != card["files"][path.name]:
        raise UserError(
            f"{path}: its SHA-256 is {actual[:12]}, card.json says {card['files'][path.name][:12]}; it was changed "
            "after it was written. Delete the folder and rerun."
        )
    return path


def write(frame: pd.DataFrame, path: Path) -> None:
    """Write a split as Parquet: all columns, strings except segments; the same bytes for the same rows."""
    columns = {
        name: pa.array(list(frame[name]), SEGMENTS)
        if name == "segments"
        else pa.array([str(value) for value in frame[name]], pa.string())
        for name in frame.columns
    }
    pq.write_table(pa.table(columns), path, compression="zstd")


def _source(task: tasks.Task, provenance: Mapping[Any, Any]) -> dict[str, Any]:
    """What a task was made from: SHA-256 of each file; subset, revision and fingerprint of a data set of the hub."""
    source: dict[str, Any] = {path: files.sha256(files.locate(path)) for path in task.sources}
    if task.hub is not None:
        chosen = {key: value for key, value in task.hub.items() if key == "revision" or (key == "subset" and value)}
        source[str(task.hub["id"])] = chosen | {"fingerprint": provenance.get("fingerprint")}  # fmt: skip
    return source


def _check_segments(examples: pd.DataFrame, name: str) -> None:
    """ValueError, a bug of the task, if a tagged stretch of a prompt is not what its segment says."""
    for prompt, segments in zip(examples["prompt"], examples["segments"], strict=True):
        stretches = tagged_stretches(prompt)
        expected = [
            part["sequence"][part["start"] : part["start"] + len(stretch)]
            for part, stretch in zip(segments, stretches, strict=True)
        ]
        if stretches != expected:
            raise ValueError(f"task {name}: the prompt {prompt!r} has {stretches}, its segments have {expected}")


def _counts(frame: pd.DataFrame, labels: tuple[str, ...]) -> dict[str, Any]:
    groups = {str(group): int(rows) for group, rows in frame["group"].value_counts().sort_index().items()}
    answers = frame["answer"].value_counts()
    return {
        "rows": len(frame),
        "labels": {label: int(answers.get(label, 0)) for label in labels},
        "groups": groups if len(groups) <= NAMED else {f"{len(groups)} groups": len(frame)},
    }
