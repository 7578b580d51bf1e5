"""What a model answers to the examples of a task: for one evaluation, or for those of a group in one process.

    cisterna answers --members '{".../e1/eval": {"checkpoint": ".../e1/checkpoint", "data": "results/data/splice-donor",
        "work": "results/.work/.../e1/eval"}, ".../e2/eval": ...}' --options '{}' --work ... --output .../answers.json

Outputs are saved batch by batch in the work folder of each evaluation, and all answers when there are no more, so
`cisterna evaluate` and its rule find them there and load no model. Not for metrics (`evaluate`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from cisterna.artifacts import files, progress, shutdown, work_folder
from cisterna.artifacts.progress import Progress
from cisterna.data import splits
from cisterna.errors import UserError
from cisterna.evaluation import few_shot, generate, scores
from cisterna.evaluation.case import SAVED, Case
from cisterna.evaluation.generate import LoadedModel, OnBatch
from cisterna.scoring import answers
from cisterna.sequences import engines


def answer_group(
    members: Mapping[str, Mapping[str, str]], options: Mapping[str, Any], work: Path, output: Path
) -> dict[str, str]:
    """Answer for every member, one after another with one engine, and save the answers in its work folder.

    A member has as its name the folder that its evaluation will be published as, and the paths checkpoint, data, work
    (its work folder) and, if it reads one, bank. Members whose answers are saved already are left as they are. A member
    for which a UserError is raised (a checkpoint that is refused, a work folder in use) is left to its own evaluation,
    which raises it again; the others go on. Returns, and writes to `output`, what became of each.

    `work` is for the lock and the progress of the group. Raises UserError if it is in use; Stopped after SIGTERM: what
    is answered is saved.
    """
    outcome: dict[str, str] = {}
    shared = engines.Shared()
    with work_folder.locked(work, output), shutdown.watch():
        shown = Progress(work, output, "answers")
        shown.update(0, len(members), "evaluations")
        for number, (name, paths) in enumerate(members.items()):
            if shutdown.requested():
                raise shutdown.Stopped(f"{work}: by SIGTERM after {number} of {len(members)} evaluations")
            print(name, flush=True)
            try:
                outcome[name] = _answer_member(Path(name), paths, options, shared)
            except UserError as error:
                outcome[name] = f"left to its own evaluation: {error}"
            shared.forget()
            print(f"{name}: {outcome[name]}", flush=True)
            shown.update(number + 1, len(members), "evaluations")
        shared.close()
        files.write_json(output, outcome)
    return outcome


def _answer_member(output: Path, paths: Mapping[str, str], options: Mapping[str, Any], shared: engines.Shared) -> str:
    bank = Path(paths["bank"]) if "bank" in paths else None
    case, work = Case(Path(paths["checkpoint"]), Path(paths["data"]), options, bank), Path(paths["work"])
    with work_folder.locked(work):
        if case.saved(work) is not None:
            return "answered already"
        answer(case, output, work, shared)
        (work / progress.NAME).unlink(missing_ok=True)  # it waits for its own evaluation
    return "answered"


def answer(case: Case, output: Path, work: Path | None = None, shared: engines.Shared | None = None) -> dict[str, Any]:
    """All answers of a model, a JSON object, which is also saved in `work`, which is locked by the caller.

    - `device`: cuda or cpu; `asked`: see `Case.asked`; `engine`: what an engine other than transformers says of itself
    - `splits`: by split `outputs`, a table (columns output, tokens, finished, repeated; see `generate`), `logs` (by
      example the log-probability of each label, null without), `samples`, further tables (output, finished), and
      `few_shot`, such a table of the answers after examples of train, null without

    The engine is `shared` with other checkpoints, if it is given (see `generate.load`). Raises UserError for a
    checkpoint and data that do not fit; Stopped after SIGTERM.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    facts = case.facts | {"device": device}
    with shutdown.watch():
        if work:
            work_folder.discard_stale(work, facts)
        loaded = generate.load(case.checkpoint, case.bank, engine_name=case.engine_name, shared=shared)
        columns = ["id", "prompt", "segments", "answer"]
        frames = {split: pd.read_parquet(path, columns=columns) for split, path in case.tables.items()}
        prompts = {split: loaded.encode(frame) for split, frame in frames.items()}
        with_shots = _with_shots(loaded, case, frames)
        for split, frame in frames.items():
            generate.check(loaded, prompts[split], frame, case.labels, case.options, case.tables[split])
            answers.check_written(case.space, frame["answer"], loaded.tokenizer, case.tables[split])
            if case.shots:
                shown = f"{case.tables[split]}, with shots"
                generate.check(loaded, with_shots[split], frame, (), case.options, shown)
        examples = sum(map(len, frames.values())) + sum(map(len, with_shots.values()))
        on_batch = _reporter(case, work, output, examples) if work else None
        found: dict[str, Any] = {"device": device, "asked": case.asked}
        found["splits"] = {
            split: _answer_split(loaded, rows, with_shots.get(split), case, work / split if work else None, on_batch)
            for split, rows in prompts.items()
        }
        found["engine"] = loaded.engine.describe()
        if work:
            files.write_json(work / SAVED, found)
    return found


def _reporter(case: Case, work: Path, output: Path, examples: int) -> OnBatch:
    """A function to call after each batch: it writes the progress, and raises Stopped after SIGTERM."""
    total, unit = (1 + case.samples) * examples, "answers" if case.samples else "examples"
    shown, done = Progress(work, output, "evaluate"), 0

    def on_batch(outputs: int) -> None:
        nonlocal done
        done += outputs
        shown.update(done, total, unit)
        if shutdown.requested():
            raise shutdown.Stopped(
                f"{output}: by SIGTERM after {done} of {total} {unit}; the outputs are saved in {work}: rerun the same "
                "command to resume"
            )

    return on_batch


def _with_shots(loaded: LoadedModel, case: Case, frames: Mapping[str, pd.DataFrame]) -> dict[str, list[list[int]]]:
    """The prompts of each split after examples of train; none unless they are asked for."""
    if not case.shots:
        return {}
    if loaded.source.features is not None:
        raise UserError(
            f"{case.checkpoint}: reads sequences as features, and few-shot prompts have tokens; leave out shots"
        )
    train = pd.read_parquet(splits.check(case.data, "train", case.card))
    shots = few_shot.choose(train, case.card["labels"] or (), case.shots)
    if len(shots) < case.shots:
        raise UserError(f"evaluation.shots: {case.shots}, and train of {case.card['task']} has {len(train)} examples")
    return {split: few_shot.encode(loaded.tokenizer, list(frame["prompt"]), shots) for split, frame in frames.items()}


def _answer_split(
    loaded: LoadedModel,
    prompts: list[list[int]],
    with_shots: list[list[int]] | None,
    case: Case,
    saved: Path | None,
    on_batch: OnBatch | None,
) -> dict[str, Any]:
    """The answers to a split. `saved` is the folder of its batches; those of samples and labels are next to it."""

    def next_to(name: str) -> Path | None:
        return saved.with_name(f"{saved.name}-{name}") if saved else None

    outputs = generate.generate(loaded, prompts, case.options, saved, on_batch)
    table = generate.decode(loaded, outputs)
    table["repeated"] = [generate.repeats(loaded.before_end(output)) for output in outputs]
    found: dict[str, Any] = {"outputs": table.to_dict("list"), "logs": None, "samples": [], "few_shot": None}
    if case.labels:
        logs = generate.label_logs(loaded, prompts, outputs, case.labels, next_to("labels"), on_batch)
        found["logs"] = scores.rows_for_json(logs)
    for number in range(1, case.samples + 1):
        folder = next_to(f"sample-{number:04}")
        drawn = generate.generate(loaded, prompts, generate.sampling(case.options), folder, on_batch, number)
        found["samples"].append(generate.decode(loaded, drawn)[["output", "finished"]].to_dict("list"))
    if with_shots is not None:
        shown = generate.generate(loaded, with_shots, case.options, next_to(f"shots-{case.shots}"), on_batch)
        found["few_shot"] = generate.decode(loaded, shown)[["output", "finished"]].to_dict("list")
    return found
