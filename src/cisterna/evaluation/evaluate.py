"""Evaluation of one checkpoint on one task: generate, parse, score.

    cisterna evaluate --checkpoint .../e2/checkpoint --data results/data/splice-donor --output .../e2/eval \
        --work results/.work/.../e2/eval --options '{}'

Every example of `id` and of `ood` is answered, greedily unless the options say otherwise. Published are the predictions
(one row an example) and the metrics with their intervals. Neither split is ever used to choose a checkpoint. Outputs
are saved batch by batch in the work folder: rerun the same command and a killed evaluation resumes.

On request the options add to this, and change no answer: `samples` draws further answers to each example, for accuracy
at k, `calibration` computes the probability of each label after the model's own reasoning, and `shots` has a model that
was not trained on the task answer after examples of train too.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from cisterna.artifacts import checkpoint, files, shutdown, work_folder
from cisterna.artifacts.progress import Progress
from cisterna.constants import ENGINE, TEST_SPLITS
from cisterna.data import splits
from cisterna.errors import UserError
from cisterna.evaluation import few_shot, generate, scores
from cisterna.evaluation.generate import LoadedModel, OnBatch
from cisterna.scoring import answers, bootstrap, lenient, metrics
from cisterna.scoring.answers import AnswerSpace
from cisterna.sequences import engines, inputs_file

LOGGED = ("accuracy", "balanced_accuracy", "f1_micro", "well_formed")  # printed, of those that the task has
# Of the predictions; the last five on request.
COLUMNS = "id prompt output answer predicted predicted_lenient well_formed tokens finished repeated".split()
COLUMNS += ["confidence", "sampled", *(f"few_shot_{name}" for name in ("output", "predicted", "predicted_lenient"))]
# Keys of the options that change no output: outputs saved under other values of these are used.
CHANGE_NO_OUTPUT = frozenset({"bootstrap", "samples", "calibration", "shots"})
GRAM = 4  # tokens of the n-grams whose repetition is counted, as in Welleck et al. 2020


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
    where `max_new_tokens` cut it), repeated (see `repeats`). With `calibration` in the options also, for a task of
    labels, the probability of each label after the model's own reasoning, a column each (`probability:up`, in the order
    of the task's `labels`; they add up to 1), and confidence: that of `predicted`. They are null where they are not
    known (see `generate.label_logs`). With `samples` also sampled: the answers of that many further outputs, drawn from
    the model's whole distribution at `sample_temperature`, null where one does not parse. With `shots`, for a model
    that was not trained on the task, also few_shot_output, few_shot_predicted and few_shot_predicted_lenient
    (`cisterna.evaluation.few_shot`).

    metrics.json: split -> metric -> value, low, high, n, with the metrics of the task's answer space
    (`cisterna.scoring.metrics.score` or `term_sets.score`), with `calibration` those of `metrics.score_probabilities`
    and `ranking.score`, with `samples` those of `metrics.score_samples`, those of `lenient.score`, and the shares of
    degenerate outputs:

    - unfinished: cut by `max_new_tokens`
    - empty: finished without an answer: nothing after `</think>` (or at all), or nothing after `Answer:`
    - off_format: finished with something else that does not parse; so the three and well_formed add up to 1
    - repeated: any of these that repeats itself (see `repeats`)

    and under "groups": split -> group of the data (`scores.pooled`) -> accuracy and balanced accuracy (of terms micro
    F1), with `calibration` AUROC and AUPRC. A metric of no examples has n 0 and null for numbers.

    With another engine than transformers also engine.json: its name, version and dtype, and the share of the updates of
    adapters that it has (`update_kept`).

    Raises UserError for a checkpoint that was trained on other splits of the task, for splits that are not those of
    their card, and if `work` is in use; Stopped after SIGTERM.
    """
    engine_name = options.get("engine", engines.TRANSFORMERS)
    of_engine = engines.packages(engine_name)
    card = splits.read_card(data)
    tables = {split: splits.check(data, split, card) for split in TEST_SPLITS}
    space = answers.load_space(card, data)
    inputs_file.check_data(folder, card["task"], {"train.parquet": card["files"]["train.parquet"]})
    facts = {
        "checkpoint": checkpoint.read_manifest(folder)["identity"],
        "data": {path.name: card["files"][path.name] for path in tables.values()},
        "labels": card["labels"],
        "options": {key: value for key, value in options.items() if key not in CHANGE_NO_OUTPUT},
        "bank": checkpoint.read_manifest(bank)["identity"] if bank else None,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "packages": checkpoint.packages() | of_engine,
    }
    with work_folder.folder(work, output, facts) if work else nullcontext():
        loaded = generate.load(folder, bank, engine_name=engine_name)
        columns = ["id", "prompt", "segments", "answer", "group"]
        frames = {split: pd.read_parquet(path, columns=columns) for split, path in tables.items()}
        prompts = {split: loaded.encode(frame) for split, frame in frames.items()}
        with_shots = _with_shots(loaded, folder, data, card, frames, options)
        for split, frame in frames.items():
            scored = space.labels if options.get("calibration") else ()
            generate.check(loaded, prompts[split], frame, scored, options, tables[split])
            answers.check_written(space, frame["answer"], loaded.tokenizer, tables[split])
            if split in with_shots:
                generate.check(loaded, with_shots[split], frame, (), options, f"{tables[split]}, with shots")
        examples = sum(map(len, frames.values())) + sum(map(len, with_shots.values()))
        on_batch = _reporter(work, output, options, examples) if work else None
        predictions, results = {}, {}
        groups: dict[str, Any] = {}
        for split, frame in frames.items():
            saved = work / split if work else None
            predictions[split], logs = _answer(loaded, frame, prompts[split], space, options, saved, on_batch)
            results[split] = _score(predictions[split], logs, space, options)
            seed, resamples = int(options.get("seed", 0)), int(options["bootstrap"])
            if split in with_shots:
                folder_of = work / f"{split}-shots-{options['shots']}" if work else None
                table = _answer_after_shots(loaded, frame, with_shots[split], space, options, folder_of, on_batch)
                results[split] |= scores.for_json(few_shot.score(table, space, seed, resamples))
                shown = table[["output", "predicted", "predicted_lenient"]].add_prefix("few_shot_")
                predictions[split] = predictions[split].join(shown)
            groups[split] = scores.of_groups(predictions[split], space, seed, resamples)
            logged = (f"{name} {results[split][name]['value']:.3f}" for name in LOGGED if name in results[split])
            print(f"{split}: n {len(frame)} {' '.join(logged)}", flush=True)
        results["groups"] = groups
        with files.new_folder(output) as target:
            for split, table in predictions.items():
                names = [name for name in (*COLUMNS, *scores.probability_columns(space.labels)) if name in table]
                table[names].to_parquet(target / f"{split}.parquet", index=False)
            files.write_json(target / "metrics.json", results)
            if engine := loaded.engine.describe():
                files.write_json(target / ENGINE, engine)
    return results


def _reporter(work: Path, output: Path, options: Mapping[str, Any], examples: int) -> OnBatch:
    """A function to call after each batch: it writes the progress, and raises Stopped after SIGTERM."""
    samples = int(options.get("samples") or 0)
    total, unit = (1 + samples) * examples, "answers" if samples else "examples"
    progress, done = Progress(work, output, "evaluate"), 0

    def on_batch(outputs: int) -> None:
        nonlocal done
        done += outputs
        progress.update(done, total, unit)
        if shutdown.requested():
            raise shutdown.Stopped(
                f"{output}: by SIGTERM after {done} of {total} {unit}; the outputs are saved in {work}: rerun the same "
                "command to resume"
            )

    return on_batch


def _answer(
    loaded: LoadedModel,
    frame: pd.DataFrame,
    prompts: list[list[int]],
    space: AnswerSpace,
    options: Mapping[str, Any],
    saved: Path | None,
    on_batch: OnBatch | None,
) -> tuple[pd.DataFrame, NDArray[np.float64] | None]:
    """The examples of a split with all COLUMNS, and the log-probabilities of the labels if they are asked for.

    `saved` is the folder of the saved batches of the answers; those of samples and labels are next to it.
    """

    def next_to(name: str) -> Path | None:
        return saved.with_name(f"{saved.name}-{name}") if saved else None

    outputs = generate.generate(loaded, prompts, options, saved, on_batch)
    table = frame.join(generate.read(loaded, outputs, space.parse))
    read = zip(table["output"], table["finished"], strict=True)
    table["predicted_lenient"] = [lenient.read(output, space, finished) for output, finished in read]
    table["repeated"] = [repeats(loaded.before_end(output)) for output in outputs]
    logs = None
    if options.get("calibration") and space.labels:
        logs = generate.label_logs(loaded, prompts, outputs, space.labels, next_to("labels"), on_batch)
        table["confidence"] = metrics.confidences(scores.texts(table["predicted"]), logs, space.labels)
        probabilities = metrics.probabilities(logs, len(space.labels))
        table = table.join(scores.probability_table(probabilities, space.labels))
    samples = []
    for number in range(1, int(options.get("samples") or 0) + 1):
        folder = next_to(f"sample-{number:04}")
        drawn = generate.generate(loaded, prompts, generate.sampling(options), folder, on_batch, number)
        samples.append(scores.texts(generate.read(loaded, drawn, space.parse)["predicted"]))
    if samples:
        table["sampled"] = [list(row) for row in zip(*samples, strict=True)]
    return table, logs


def _with_shots(
    loaded: LoadedModel,
    folder: Path,
    data: Path,
    card: Mapping[str, Any],
    frames: Mapping[str, pd.DataFrame],
    options: Mapping[str, Any],
) -> dict[str, list[list[int]]]:
    """The prompts of each split after examples of train; none unless they are asked for and the model is untrained."""
    if not options.get("shots") or checkpoint.read_manifest(folder)["kind"] not in ("base", "cpt"):
        return {}
    if loaded.source.features is not None:
        raise UserError(f"{folder}: reads sequences as features, and few-shot prompts have tokens; leave out shots")
    train = pd.read_parquet(splits.check(data, "train", card))
    shots = few_shot.choose(train, card["labels"] or (), int(options["shots"]))
    if len(shots) < int(options["shots"]):
        raise UserError(f"evaluation.shots: {options['shots']}, and train of {card['task']} has {len(train)} examples")
    return {split: few_shot.encode(loaded.tokenizer, list(frame["prompt"]), shots) for split, frame in frames.items()}


def _answer_after_shots(
    loaded: LoadedModel,
    frame: pd.DataFrame,
    prompts: list[list[int]],
    space: AnswerSpace,
    options: Mapping[str, Any],
    saved: Path | None,
    on_batch: OnBatch | None,
) -> pd.DataFrame:
    """The answers to `prompts`, with the gold ones and what a lenient reader finds."""
    outputs = generate.generate(loaded, prompts, options, saved, on_batch)
    table = frame[["answer"]].join(generate.read(loaded, outputs, space.parse))
    read = zip(table["output"], table["finished"], strict=True)
    table["predicted_lenient"] = [lenient.read(output, space, finished) for output, finished in read]
    return table


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
    nothing = ("", answers.ANSWER.strip())
    empty = table["output"].map(lambda output: output.rpartition(answers.END_THINK)[2].strip() in nothing)
    malformed = table["finished"] & ~table["well_formed"]
    return {
        "unfinished": ~table["finished"],
        "empty": malformed & empty,
        "off_format": malformed & ~empty,
        "repeated": table["repeated"],
    }


def repeats(token_ids: Sequence[int]) -> bool:
    """Whether an output, without the end-of-text token, repeats itself: more than half of its 4-grams of tokens are
    repetitions of others (seq-rep-4 above 0.5; Welleck et al. 2020, arXiv:1908.04319, section 3).
    """
    grams = [tuple(token_ids[start : start + GRAM]) for start in range(len(token_ids) - GRAM + 1)]
    return 2 * len(set(grams)) < len(grams)
