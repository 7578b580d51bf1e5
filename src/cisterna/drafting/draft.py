"""`cisterna init`: reads a table and writes a study of it, complete, with comments, and with what it could not decide.

    cisterna init data/variants.csv --label score --threshold 0.5 --output my-study.yaml

What it takes columns for is in `cisterna.drafting.roles`, how it splits in `cisterna.drafting.ways`, how much it trains
in `cisterna.drafting.budget`. The draft is read by the loader of configs before it is written. Not for cells (`.h5ad`)
and other data that an adapter reads.
"""

from __future__ import annotations

import os
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml

from cisterna import study as studies
from cisterna.artifacts import files
from cisterna.constants import SPLITS
from cisterna.drafting import budget, roles, ways, yaml_text
from cisterna.drafting.columns import shown
from cisterna.drafting.roles import RARE, Reading
from cisterna.drafting.ways import Way
from cisterna.errors import UserError
from cisterna.sequences.tokenization import UNUSUAL
from cisterna.study.config.types import PATH_RULE, RESERVED, is_path
from cisterna.tasks import catalog, tables

Spec = dict[str, Any]

SEQUENCE = {"dna": "DNA sequence", "rna": "RNA sequence", "protein": "protein"}
ROOM = 64  # lengths are rounded up to a multiple
SURE = 100  # test rows; with fewer an interval is wider than 0.2
UNEVEN = 0.7  # share of the rows that have one label
START_EARLY, START_LATE = 2, 8  # epochs of SFT from which RL starts
CLOSER = 1.2  # OOD is not out of domain if its distance to train is less than so many times that of ID
# Distances of ID to train from which on all sequences are unlike each other, and distances say no more.
FAR = {"dna": 0.5, "rna": 0.5, "protein": 0.7}
LOST = 0.5  # share of the rows that may be left out because their prompts do not tell them apart


def main(table: Path, label: str | None, thresholds: Sequence[float], classes: Sequence[str], output: Path) -> None:
    """Write a study of a table to `output`, a new file, and print what to do next.

    Raises UserError, and writes nothing, if the file exists, for a table that cannot be read, if the label cannot be
    decided (`cisterna.drafting.roles.read`), and if no split is possible.
    """
    _check_paths(table, output)
    reading = roles.read(tables.open_table(table), table, label, thresholds, classes)
    name = _name(table)
    spec = _spec(reading)
    examples, texts = ways.read(name, spec)
    _ask_about_rows(reading, spec, examples)
    size = budget.measure(examples, texts, reading.labels)
    train, epochs = _train(name, spec, len(examples), size, reading)
    tried = ways.tried(name, spec, reading, texts, lambda inside, outside: budget.sizes(inside, outside, train))
    chosen = tried[0]
    task = spec | {"split": chosen.split} | dict(chosen.sizes) | {"seed": 0}
    _check_size(task["train"], len(examples), table)
    config = _config(name, task, epochs, size)
    config["seeds"], seconds = budget.seeds(config, name, size)
    distances = _distances(chosen, texts)
    _ask_about_splits(reading, chosen, texts, size, seconds)
    text = _render(reading, name, config, tried, seconds, distances, output)
    _check(text, config)
    try:
        with output.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise _exists(output) from None
    except OSError as error:
        raise UserError(f"--output: {output}: cannot be written ({error.strerror}). Choose another one.") from None
    _report(reading, output, seconds)


def _train(name: str, spec: Spec, rows: int, size: budget.Size, reading: Reading) -> tuple[int, list[int]]:
    """How many examples, for how many epochs, if the share that is usual is held out. UserError for a bad label."""
    assumed = budget.sizes(rows - round(ways.SHARE * rows), round(ways.SHARE * rows), rows)
    _check_size(assumed["train"], rows, reading.path)
    task = spec | {"split": {"by": "group", "column": reading.label, "ood": ways.SHARE}, "seed": 0} | assumed
    try:
        studies.load(_config(name, task, [1], size))
    except UserError as error:
        raise UserError(f"{reading.path}: no study can be written of this table.\n{error}") from None
    return budget.fitting(
        assumed["train"], lambda train, epochs: _config(name, task | {"train": train}, epochs, size), name, size
    )


def _check_size(train: int, rows: int, table: Path) -> None:
    least = budget.PROMPTS[-1]
    if train < least:
        raise UserError(
            f"{table}: {rows} examples are too few: they leave {train} to train on. Expected at least {least}, and "
            "hundreds to learn something."
        )


def _check_paths(table: Path, output: Path) -> None:
    if os.path.lexists(output):
        raise _exists(output)
    if not output.parent.is_dir():
        raise UserError(f"--output: {output.parent}: no such folder. Make it, or choose another one.")
    if table.suffix.lower() == ".h5ad":
        raise UserError(
            f"{table}: cells are read by an adapter, and not drafted: config/README.md, Adapters, shows such a task."
        )
    if not is_path(str(table)):
        raise UserError(f"{shown(table)}: a study cannot name this file; expected {PATH_RULE}. Rename it.")


def _exists(output: Path) -> UserError:
    return UserError(f"{output} exists already, and is not overwritten. Remove it, or choose another --output.")


def _name(table: Path) -> str:
    """The name of study and task: that of the table, in the letters that a name may have."""
    name = re.sub(r"[^a-z0-9]+", "-", table.stem.lower()).strip("-")[:60] or "table"
    return f"my-{name}" if name in RESERVED or name in catalog.LABELS else name


# --- The task ---


def _spec(reading: Reading) -> Spec:
    """The entry of the task, without the split and the sizes."""
    columns: dict[str, Any] = {role: reading.of(role)[0] for role in ("id", "reasoning") if reading.of(role)}
    spec: Spec = {"file": str(reading.path), "columns": columns, "labels": list(reading.labels)}
    if reading.thresholds:
        spec["thresholds"] = [int(cut) if cut.is_integer() else cut for cut in reading.thresholds]
    sequences = reading.sequences
    if len(sequences) == 1:
        ((columns["sequence"], spec["modality"]),) = sequences.items()
        spec["question"] = f"Which class is this {SEQUENCE[spec['modality']]}?"
    elif sequences:
        named = {
            column if reading.columns[column].may_be_named else f"sequence{number}": column
            for number, column in enumerate(sequences, 1)
        }
        columns["sequence"] = named
        modalities = {name: sequences[column] for name, column in named.items()}
        spec["modality"] = modalities if len(set(modalities.values())) > 1 else next(iter(modalities.values()))
        spec["prompt"] = f"{' and '.join(f'{{{name}}}' for name in named)}: which class? {{options}}"
    else:
        spec["modality"] = "text"
        parts = ", ".join(f"{_literal(name)} {{{name}}}" for name in reading.of("text"))
        spec["prompt"] = f"{parts}: which class? {{options}}"
    columns["label"] = reading.label
    for column, modality in sequences.items():
        odd = sum(bool(set(text.upper()) & set(UNUSUAL[modality])) for text in reading.columns[column].cells)
        if odd:
            spec["unusual_letters"] = "mask"
            reading.questions.append(
                f"Sequences of {shown(column)} with unusual letters ({', '.join(UNUSUAL[modality])}): {odd}. They "
                "are read as unknown residues. Is that right? `refuse` and `keep` are the other rules of "
                "`unusual_letters`."
            )
    spec["conflicts"] = "drop"  # taken out again where there are none
    return spec


def _literal(name: str) -> str:
    """The name of a column as words of a prompt."""
    return yaml_text.one_line(name).replace("{", "{{").replace("}", "}}")


def _ask_about_rows(reading: Reading, spec: Spec, examples: pd.DataFrame) -> None:
    """Questions about rows that are left out, and about labels with few rows."""
    conflicts = False
    for entry in examples.attrs["dropped"]:
        first = ", ".join(yaml_text.one_line(row) for row in entry["examples"][:2])
        number = entry["rows"]
        rows = f"{_rows_are(number)} left out: {entry['reason']} ({first}{', ...' if number > 2 else ''})"
        conflict = "different labels" in entry["reason"]
        conflicts = conflicts or conflict
        if conflict and number > LOST * reading.rows:
            used = ", ".join(map(shown, reading.of("sequence", "text")))
            unused = "; ".join(f"{shown(name)}: {reading.taken[name].why}" for name in reading.of("unused"))
            raise UserError(
                f"{reading.path}: {rows}. The model would read {used}, which does not tell these rows apart."
                + (f" Not used: {unused}." if unused else "")
            )
        reading.questions.append(rows + (". Which label is right? (`conflicts`)" if conflict else ". Is that right?"))
    if not conflicts:
        del spec["conflicts"]
    counts = examples["answer"].value_counts().reindex(list(reading.labels), fill_value=0)
    found = {str(label): int(rows) for label, rows in counts.items()}
    for label, number in found.items():
        if not number and not reading.thresholds:
            raise UserError(
                f"{reading.path}: no row that is left has the label {shown(label)}. Correct the rows that are left "
                "out, or remove them."
            )
        if number < RARE and reading.thresholds:
            numbers = reading.columns[reading.label].numbers or [0.0]
            raise UserError(
                f"{reading.path}: {number or 'no'} row{'' if number == 1 else 's'} would be {shown(label)}; "
                f"expected {RARE} or more. Move a threshold; the numbers are {min(numbers):.6g} to {max(numbers):.6g}."
            )
    common, most = max(found.items(), key=lambda entry: entry[1])
    if most >= UNEVEN * len(examples):
        reading.questions.append(
            f"{most:,} of {len(examples):,} rows have the label {shown(common)}; a model that always gives it is right "
            "in as many. Read balanced accuracy and MCC, or leave out some of these rows?"
        )
    rare = [f"{shown(label)} ({number})" for label, number in found.items() if number < RARE]
    if rare:
        reading.questions.append(
            f"Few rows have the label {', '.join(rare)}: too few to learn or to measure. Join it with another, or "
            "leave it out?"
        )


def _rows_are(number: int) -> str:
    return "1 row is" if number == 1 else f"{number:,} rows are"


def _medians(way: Way, texts: Mapping[str, Sequence[str]]) -> dict[str, tuple[float, float]]:
    """For each sequence the median distance of ID and of OOD to the nearest in train."""
    nearest = way.card["audit"]["nearest_train"]
    found = {}
    for of in texts:
        parts = [nearest[split] if len(texts) == 1 else nearest[split][of] for split in ("id", "ood")]
        found[of] = (parts[0]["quantiles"]["0.5"], parts[1]["quantiles"]["0.5"])
    return found


def _is_near(inside: float, outside: float, modality: str) -> bool:
    """Whether OOD is hardly further from train than ID, and the distances can tell."""
    return outside < CLOSER * inside and (inside < FAR[modality] or outside < inside / CLOSER)


def _modality(reading: Reading, of: str) -> str:
    return reading.sequences.get(of) or next(iter(reading.sequences.values()))


def _ask_about_splits(
    reading: Reading, way: Way, texts: Mapping[str, Sequence[str]], size: budget.Size, seconds: float
) -> None:
    for flaw in way.flaws:
        reading.questions.append(f"{flaw}, the way rows are held out. Is another column of groups better?")
    near = [medians for of, medians in _medians(way, texts).items() if _is_near(*medians, _modality(reading, of))]
    if way.words == ways.AT_RANDOM:
        reading.questions.append(
            "Out of domain are rows at random, so ood is as hard as id. Which rows are the hard case: unseen families, "
            "scaffolds, a later batch? Add that as a column, and write `split: {by: group, column: ..., ood: 0.2}`."
        )
    elif near:
        hard = (
            "If unseen sequences are the hard case, split by similarity."
            if way.split["by"] == "group"
            else "Which rows are the hard case: unseen families, mutations at unseen positions, a later batch? Add "
            "that as a column, and write `split: {by: group, column: ..., ood: 0.2}`."
        )
        reading.questions.append(
            "Sequences out of domain are hardly further from train than those in domain (median distance "
            f"{near[0][1]:.2g} and {near[0][0]:.2g}). {hard}"
        )
    if way.sizes["id"] < SURE:
        reading.questions.append(
            f"Only {way.sizes['id']} rows of id and {way.sizes['ood']} of ood are tested, so differences below 0.1 "
            "will not be seen. Are there more rows?"
        )
    if size.longest_prompt > budget.LONG:
        reading.questions.append(
            f"The longest prompt has about {size.longest_prompt:,} tokens; long ones are slow. Cut the sequences to "
            "the part that matters?"
        )
    if seconds > budget.MINUTES * 60 * CLOSER:
        reading.questions.append(
            "Even the smallest study takes longer than 10 minutes here. See `cisterna plan --calibrate`."
        )


# --- The study ---


def _config(name: str, task: Mapping[str, Any], epochs: Sequence[int], size: budget.Size) -> dict[str, Any]:
    """The study: backbone and recipes of the default study, in the size of this table."""
    default = _default_study()
    nano, recipes = default["backbones"]["nano"], default["recipes"]
    written = budget.rounded(size.longest_completion, 8)
    room = budget.rounded(size.longest_prompt + written + 8, ROOM)
    positions = max(nano["architecture"]["max_position_embeddings"], room)
    prompts = next((count for count in budget.PROMPTS if count <= task["train"]), budget.PROMPTS[-1])
    starts = [epoch for epoch in epochs if epoch == START_EARLY or epoch == min(START_LATE, epochs[-1])]
    rl = {"epochs": [2], "examples": prompts, "max_completion_length": written}
    return {
        "study": name,
        "seeds": [0],
        "tasks": {name: dict(task)},
        "backbones": {"nano": nano | {"architecture": nano["architecture"] | {"max_position_embeddings": positions}}},
        "recipes": {
            "sft": {"ladder": recipes["sft"]["brief"] | {"epochs": list(epochs), "max_length": room}},
            "rl": {"grpo": recipes["rl"]["grpo"] | rl},
        },
        "evaluation": default["evaluation"] | {"max_new_tokens": written},
        "lineages": [{"sft": ["ladder"], "rl": [{"recipe": "grpo", "from": starts}]}],
    }


def _default_study() -> dict[str, Any]:
    path = files.CLONE / files.DEFAULT_CONFIG
    if not path.is_file():
        raise UserError(
            f"{path}: no such file. A draft has the backbone and the recipes of the default study, which is part of a "
            "clone: install Cisterna from a clone, or write the study yourself (config/README.md)."
        )
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _check(text: str, config: Mapping[str, Any]) -> None:
    """Read the draft as any config is read. A bug if it is not valid, or says something else than was meant."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.yaml"
        path.write_text(text, encoding="utf-8")
        if studies.read(path).config != studies.load(config).config:
            raise RuntimeError(f"the draft does not say what was meant:\n{text}")


# --- What is written and printed ---


def _distances(way: Way, texts: Mapping[str, Sequence[str]]) -> list[str]:
    """Near-duplicates, and how far the test rows are from train."""
    lines = []
    medians = _medians(way, texts)
    for of, sequences in texts.items():
        found, among, within = ways.near(sequences)
        what = "sequences" if of == "sequence" else f"sequences of {shown(of)}"
        lines.append(f"Near-duplicates: {found:,} of {among:,} {what} have another one {within}.")
        inside, outside = medians[of]
        lines.append(f"Distance to the nearest in train, median: id {inside:.2g}, ood {outside:.2g}.")
    return lines


def _held(way: Way, labels: Sequence[str]) -> list[list[object]]:
    """Rows of each split by label."""
    counts = {split: way.card["splits"][split] for split in SPLITS}
    first = labels[:8]
    rows: list[list[object]] = [["", "rows", *map(shown, first)]]
    rows += [[split, held["rows"], *(held["labels"][label] for label in first)] for split, held in counts.items()]
    return rows


def _others(tried: Sequence[Way], labels: Sequence[str]) -> list[tuple[Spec, str]]:
    """The other ways to split, with what each would hold or why it is not possible."""
    lines = []
    for way in tried:
        if way.problem:
            lines.append((way.split, f"not possible: {way.problem}"))
            continue
        held = []
        for split in SPLITS:
            counts = way.card["splits"][split]
            held.append(f"{split} {counts['rows']} ({'/'.join(str(counts['labels'][label]) for label in labels[:8])})")
        lines.append((way.split, f"{way.words}: {', '.join(held)}; by label {'/'.join(labels[:8])}"))
    return lines


def _render(
    reading: Reading,
    name: str,
    config: Mapping[str, Any],
    tried: Sequence[Way],
    seconds: float,
    distances: Sequence[str],
    output: Path,
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cisterna.drafting"),
        autoescape=False,  # noqa: S701  (YAML, not HTML; every value goes through a filter below)
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "yaml": yaml_text.value,
        "block": yaml_text.block,
        "comment": yaml_text.comment,
        "comment_table": yaml_text.table,
        "name": shown,
    }
    task = config["tasks"][name]
    plan, run = _next(output)
    return environment.get_template("study.yaml.j2").render(
        reading=reading,
        name=name,
        config=config,
        task=task,
        plan=yaml_text.one_line(plan),
        run=yaml_text.one_line(run),
        minutes=max(1, round(seconds / 60)),
        cores=budget.CORES,
        questions=reading.questions,
        columns=[["column", "taken for", "why"], *_taken(reading)],
        rule=yaml_text.one_line(tried[0].words),
        held=_held(tried[0], reading.labels),
        distances=distances,
        others=_others(tried[1:], reading.labels),
        steps=-(-task["train"] // config["recipes"]["sft"]["ladder"]["per_device_train_batch_size"]),
    )


def _taken(reading: Reading) -> list[list[str]]:
    rows = [[name, *reading.taken[name]] for name in reading.columns]
    return rows if reading.of("id") else [*rows, ["(number of the row)", "id", "no column is different in every row"]]


def _next(output: Path) -> tuple[str, str]:
    """The commands that plan and run the study."""
    path, cores = shlex.quote(str(output)), len(os.sched_getaffinity(0))
    snakefile = "" if Path("Snakefile").exists() else f" --snakefile {shlex.quote(str(files.CLONE / 'Snakefile'))}"
    return f"cisterna plan --config {path}", f"snakemake --cores {cores} --configfile {path}{snakefile}"


def _report(reading: Reading, output: Path, seconds: float) -> None:
    print(f"{output}: a study of {reading.path}, about {max(1, round(seconds / 60))} min on {budget.CORES} cores.\n")
    print(yaml_text.table(_taken(reading), start=""))
    if reading.questions:
        print("\nQuestions, also in the file:")
        for number, question in enumerate(reading.questions, 1):
            print(f"  {number}. {question}")
    plan, run = _next(output)
    print(f"\nNext:\n  {plan}\n  {run}")
