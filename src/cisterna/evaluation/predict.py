"""Predictions for new sequences, by a checkpoint of SFT or RL.

    cisterna predict .../e2/checkpoint --input new.csv --output answers.parquet

Not for scoring: the answers to new sequences are not known.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cisterna import tasks
from cisterna.artifacts import files
from cisterna.errors import UserError
from cisterna.evaluation import generate
from cisterna.scoring import answers
from cisterna.scoring.answers import Labels
from cisterna.sequences import inputs_file


def predict(folder: Path, table: Path, output: Path, options: Mapping[str, Any]) -> pd.DataFrame:
    """Answer the rows of `table` (csv, tsv, Parquet or JSON lines) with the checkpoint `folder`.

    The table needs the column of the sequence (`sequence`, or its name in the task's own table) and may have one of
    ids. Features come live from the encoder: no bank is needed. Writes and returns id, sequence, prompt, output,
    predicted (null where the output does not parse), well_formed, tokens, finished. Raises UserError for a checkpoint
    that was not trained on a task, and with the row for a sequence that the task cannot ask about.
    """
    inputs = inputs_file.read(folder)
    if inputs is None:
        raise UserError(f"{folder}: not trained on a task; expected a checkpoint of SFT or RL")
    questions = tasks.questions(tasks.load(inputs["task"], inputs["spec"]), table)
    parse = Labels(tuple(inputs["labels"])).parse if inputs["labels"] else answers.parse_terms
    loaded = generate.load(folder)
    outputs = generate.generate(loaded, loaded.encode(questions), options)
    frame = pd.concat([questions.drop(columns="segments"), generate.read(loaded, outputs, parse)], axis=1)
    output.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(output) as temporary:
        frame.to_parquet(temporary, index=False)
    return frame
