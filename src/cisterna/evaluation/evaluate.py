"""Evaluation of one checkpoint on one task: generate, parse, score.

    cisterna evaluate --checkpoint .../e2/checkpoint --data results/data/splice-donor --output .../e2/eval \
        --work results/.work/.../e2/eval --options '{}'

Every example of `id` and of `ood` is answered, greedily unless the options say otherwise. Published are the predictions
(one row an example) and the metrics with their intervals. Neither split is ever used to choose a checkpoint. Outputs
are saved batch by batch in the work folder: rerun the same command and a killed evaluation resumes. Where all answers
are there already, from an earlier run or from that of a group (`answering`), no model is loaded.

On request the options add to this, and change no answer: `samples` draws further answers to each example, for accuracy
at k, `calibration` computes the probability of each label after the model's own reasoning, and `shots` has a model that
was not trained on the task answer after examples of train too.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cisterna.artifacts import files, work_folder
from cisterna.constants import ANSWER, ENGINE
from cisterna.evaluation import few_shot, scores
from cisterna.evaluation.case import Case
from cisterna.scoring import answers, bootstrap, lenient, metrics
from cisterna.scoring.answers import AnswerSpace

LOGGED = ("accuracy", "balanced_accuracy", "f1_micro", "well_formed")  # printed, of those that the task has
# Of the predictions; the last five on request.
COLUMNS = "id prompt output answer predicted predicted_lenient well_formed tokens finished repeated".split()
COLUMNS += ["confidence", "sampled", *(f"few_shot_{name}" for name in ("output", "predicted", "predicted_lenient"))]


def evaluate(
    folder: Path,
    data: Path,
    output: Path,
    options: Mapping[str, Any],
    bank: Path | None = None,
    work: Path | None = None,
) -> dict[str, Any]:
    """Evaluate the checkpoint `folder` on the task in `data`; write id.parquet, ood.parquet, metrics.json to `output`.

    A model that reads features takes them from `bank`, or else live from its encoder. Outputs are saved in `work`, if
    there is one, until `cisterna clean`.

    Each parquet: id, prompt, output, answer (gold), predicted (null where the output does not parse), predicted_lenient
    (by `cisterna.scoring.lenient`), well_formed, tokens (generated, the end-of-text token included), finished (False
    where `max_new_tokens` cut it), repeated (see `generate.repeats`). With `calibration` in the options also, for a
    task of labels, the probability of each label after the model's own reasoning, a column each (`probability:up`, in
    the order of the task's `labels`; they add up to 1), and confidence: that of `predicted`. They are null where they
    are not known (see `generate.label_logs`). With `samples` also sampled: the answers of that many further outputs,
    drawn from the model's whole distribution at `sample_temperature`, null where one does not parse. With `shots`, for
    a model that was not trained on the task, also few_shot_output, few_shot_predicted and few_shot_predicted_lenient
    (`cisterna.evaluation.few_shot`).

    metrics.json: split -> metric -> value, low, high, n, with the metrics of the task's answer space
    (`cisterna.scoring.metrics.score` or `term_sets.score`), with `calibration` those of `metrics.score_probabilities`
    and `ranking.score`, with `samples` those of `metrics.score_samples`, those of `lenient.score`, and the shares of
    degenerate outputs:

    - unfinished: cut by `max_new_tokens`
    - empty: finished without an answer: nothing after `</think>` (or at all), or nothing after `Answer:`
    - off_format: finished with something else that does not parse; so the three and well_formed add up to 1
    - repeated: any of these that repeats itself (see `generate.repeats`)

    and under "groups": split -> group of the data (`scores.pooled`) -> accuracy and balanced accuracy (of terms micro
    F1), with `calibration` AUROC and AUPRC. A metric of no examples has n 0 and null for numbers.

    With another engine than transformers also engine.json: its name, version and dtype, and the share of the updates of
    adapters that it has (`update_kept`).

    Raises UserError for a checkpoint that was trained on other splits of the task, for splits that are not those of
    their card, and if `work` is in use; Stopped after SIGTERM.
    """
    case = Case(folder, data, options, bank)
    _ = case.facts  # refuses before a folder is made
    seed, resamples = int(options.get("seed", 0)), int(options["bootstrap"])
    with work_folder.locked(work, output) if work else nullcontext():
        answered = case.saved(work) if work else None
        if answered is None:
            from cisterna.evaluation import answering

            answered = answering.answer(case, output, work)
        predictions, results = {}, {}
        groups: dict[str, Any] = {}
        for split, path in case.tables.items():
            frame = pd.read_parquet(path, columns=["id", "prompt", "answer", "group"])
            predictions[split], logs = _read(frame, answered["splits"][split], case.space)
            results[split] = _score(predictions[split], logs, case.space, options)
            if case.shots:
                table = _with_answers(pd.DataFrame(answered["splits"][split]["few_shot"]), case.space)
                metrics_of = few_shot.score(table.join(frame["answer"]), case.space, seed, resamples)
                results[split] |= scores.for_json(metrics_of)
                shown = table[["output", "predicted", "predicted_lenient"]].add_prefix("few_shot_")
                predictions[split] = predictions[split].join(shown)
            groups[split] = scores.of_groups(predictions[split], case.space, seed, resamples)
            logged = (f"{name} {results[split][name]['value']:.3f}" for name in LOGGED if name in results[split])
            print(f"{split}: n {len(frame)} {' '.join(logged)}", flush=True)
        results["groups"] = groups
        with files.new_folder(output) as target:
            for split, table in predictions.items():
                names = [name for name in (*COLUMNS, *scores.probability_columns(case.space.labels)) if name in table]
                table[names].to_parquet(target / f"{split}.parquet", index=False)
            files.write_json(target / "metrics.json", results)
            if answered["engine"]:
                files.write_json(target / ENGINE, answered["engine"])
    return results


def _read(
    frame: pd.DataFrame, answered: Mapping[str, Any], space: AnswerSpace
) -> tuple[pd.DataFrame, NDArray[np.float64] | None]:
    """The examples of a split with all COLUMNS, and the log-probabilities of the labels if they were asked for.

    `answered` are the answers to the split, as `answering.answer` makes them.
    """
    table = _with_answers(frame.join(pd.DataFrame(answered["outputs"])), space)
    table["well_formed"] = table["predicted"].notna()
    logs = None
    if answered["logs"] is not None:
        logs = np.array(answered["logs"], float)  # null becomes NaN
        table["confidence"] = metrics.confidences(scores.texts(table["predicted"]), logs, space.labels)
        probabilities = metrics.probabilities(logs, len(space.labels))
        table = table.join(scores.probability_table(probabilities, space.labels))
    samples = [scores.predicted(pd.DataFrame(sample), space.parse) for sample in answered["samples"]]
    if samples:
        table["sampled"] = [list(row) for row in zip(*samples, strict=True)]
    return table, logs


def _with_answers(table: pd.DataFrame, space: AnswerSpace) -> pd.DataFrame:
    """A table with output and finished, with what is read strictly and leniently."""
    read = zip(table["output"], table["finished"], strict=True)
    found = [lenient.read(output, space, finished) for output, finished in read]
    return table.assign(
        predicted=pd.Series(scores.predicted(table, space.parse), table.index, dtype=object),
        predicted_lenient=pd.Series(found, table.index, dtype=object),
    )


def _score(
    table: pd.DataFrame, logs: NDArray[np.float64] | None, space: AnswerSpace, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The metrics of a split, with null for NaN, which JSON does not have."""
    seed, resamples = int(options.get("seed", 0)), int(options["bootstrap"])
    summaries = scores.of_split(table, space, seed, resamples) | bootstrap.means(degenerate(table), seed, resamples)
    gold = table["answer"].tolist()
    summaries |= lenient.score(gold, scores.texts(table["predicted_lenient"]), space, seed, resamples)
    if logs is not None:
        predicted = scores.texts(table["predicted"])
        summaries |= metrics.score_probabilities(gold, predicted, logs, space.labels, seed, resamples)
    if "sampled" in table:
        samples = [[answer and space.canonical(answer) for answer in row] for row in table["sampled"]]
        summaries |= metrics.score_samples([space.canonical(answer) for answer in gold], samples, seed, resamples)
    return scores.for_json(summaries)


def degenerate(table: pd.DataFrame) -> dict[str, pd.Series]:
    """Which outputs are unfinished, empty, off-format and repeated (see `evaluate`)."""
    nothing = ("", ANSWER.strip())
    empty = table["output"].map(lambda output: output.rpartition(answers.END_THINK)[2].strip() in nothing)
    malformed = table["finished"] & ~table["well_formed"]
    return {
        "unfinished": ~table["finished"],
        "empty": malformed & empty,
        "off_format": malformed & ~empty,
        "repeated": table["repeated"],
    }
