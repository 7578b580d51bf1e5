"""Predictions for new sequences, by a checkpoint of SFT or RL.

    cisterna predict .../e2/checkpoint --input new.csv --output answers.parquet
    cisterna predict .../e2/checkpoint --input new.csv --output answers.csv --columns id up down none answer
    cisterna predict .../e2/checkpoint --input new.h5ad --output answers.csv --features new-embeddings.h5ad

Not for scoring: the answers to new sequences are not known.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cisterna import tasks
from cisterna.artifacts import files
from cisterna.errors import UserError
from cisterna.evaluation import generate, scores
from cisterna.scoring import answers, metrics
from cisterna.scoring.answers import Labels
from cisterna.sequences import engines, inputs_file, precomputed

READ = ["predicted", "well_formed", "tokens", "finished"]
WRITERS: dict[str, Callable[[pd.DataFrame, Path], Any]] = {
    ".parquet": lambda frame, path: frame.to_parquet(path, index=False),
    ".csv": lambda frame, path: frame.to_csv(path, index=False),
    ".tsv": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
    ".jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True),
}


def predict(
    folder: Path,
    table: Path,
    output: Path,
    options: Mapping[str, Any],
    columns: Sequence[str] = (),
    probabilities: bool = False,
    features: Sequence[Path] = (),
) -> pd.DataFrame:
    """Answer the rows of `table` (csv, tsv, Parquet or JSON lines) with the checkpoint `folder`.

    The table needs the column of the sequence (`sequence`, or its name in the task's own table) and may have one of
    ids. Features come live from the encoder: no bank is needed. Precomputed ones are those of the new ids in the files
    `features`, or else in the files that the model was trained with. Writes, as the ending of `output` says (one of
    WRITERS), and returns id, sequence, prompt, output, predicted (null where the output does not parse), well_formed,
    tokens, finished.

    With `probabilities` also that of each label after the model's own reasoning, a column each (`probability:up`), in
    the order of the task's `labels`; null where the output has no end of the reasoning (see `generate.label_logs`).
    With `columns` only these, in this order: a name of the above, a label for its probability, or `answer` for
    predicted.

    Raises UserError for a checkpoint that was not trained on a task, for an output that is one of the inputs, for an
    ending or a column that there is not, and with the row for one that the task cannot ask about, and for a table
    without ids where features belong to ids.
    """
    engine_name = options.get("engine", engines.TRANSFORMERS)
    engines.packages(engine_name)
    write = WRITERS.get(output.suffix.lower())
    if write is None:
        raise UserError(f"{output}: unknown kind of file. Use one of {', '.join(WRITERS)}.")
    if output.exists() and any(path.exists() and path.samefile(output) for path in (table, *features)):
        raise UserError(
            f"--output: {output} is one of the files that are read, and would be replaced. Name another one."
        )
    inputs = inputs_file.read(folder)
    if inputs is None:
        raise UserError(f"{folder}: not trained on a task; expected a checkpoint of SFT or RL")
    labels = list(inputs["labels"] or ())
    questions = tasks.questions(tasks.load(inputs["task"], inputs["spec"]), table)
    if changed := questions.attrs.get("letters"):
        print(f"{table}: letters that were read otherwise than written: {json.dumps(changed)}", flush=True)
    given = questions.drop(columns="segments")
    known = [*given.columns, "output", *READ]
    sources = _sources(columns, known, labels)
    probabilities = probabilities or any(name.startswith(scores.PROBABILITY) for name in sources.values())
    if probabilities and not labels:
        raise UserError(f"{folder}: the answers of {inputs['task']} are sets of terms, which have no probabilities")
    parse = Labels(tuple(labels)).parse if labels else answers.parse_terms
    encoder = inputs["encoder"]
    if encoder is not None and "batch_size" in encoder["reading"] and not features:  # an encoder of cells
        features = [table]
    by_id = encoder is not None and precomputed.by_id(encoder["reading"])
    if by_id and not features and questions.attrs.get("numbered"):
        raise UserError(
            f"{table}: its rows have no ids but their numbers, which may be ids of other examples in the files of the "
            "encoder. Add ids, or give the features of these rows (--features)."
        )
    loaded = generate.load(folder, features=features, engine_name=engine_name)
    prompts = loaded.encode(questions)
    generate.check(loaded, prompts, questions, labels if probabilities else (), options, table)
    outputs = generate.generate(loaded, prompts, options)
    frame = pd.concat([given, generate.read(loaded, outputs, parse)[["output", *READ]]], axis=1)
    if probabilities:
        logs = generate.label_logs(loaded, prompts, outputs, labels)
        frame = frame.join(scores.probability_table(metrics.probabilities(logs, len(labels)), labels))
        unknown = int(frame.iloc[:, -1].isna().sum())
        if unknown:
            print(
                f"{unknown} of {len(frame)} rows have no probabilities, because the output has no end of the reasoning "
                "(</think>); a higher max_new_tokens may help",
                flush=True,
            )
    if sources:
        frame = frame[list(sources.values())].set_axis(list(sources), axis=1)
    output.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(output) as temporary:
        write(frame, temporary)
    return frame


def _sources(columns: Sequence[str], known: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
    """The column of the whole table behind each of the `columns` that are asked for.

    UserError for a name that is none, is there twice, or is both a column and a label.
    """
    own = {name: name for name in (*known, *scores.probability_columns(labels))} | {"answer": "predicted"}
    of_labels = dict(zip(labels, scores.probability_columns(labels), strict=True))
    for name in columns:
        if name in own and name in of_labels:
            raise UserError(f"--columns: {name!r} is a column and a label. For the label write {of_labels[name]!r}.")
        if name not in own and name not in of_labels:
            raise UserError(f"--columns: no column {name!r}. Use some of {', '.join([*known, 'answer', *labels])}.")
        if list(columns).count(name) > 1:
            raise UserError(f"--columns: {name!r} is named twice")
    return {name: (of_labels | own)[name] for name in columns}
