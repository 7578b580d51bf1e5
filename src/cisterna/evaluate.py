"""Evaluation of one checkpoint on one task: generate, parse, score. And the perplexity of a checkpoint on corpora.

    cisterna evaluate --checkpoint .../e2/checkpoint --data results/data/splice-donor --output .../e2/eval \
        --work results/.work/.../e2/eval --options '{...}'

Every example of `id` and of `ood` is answered, greedily unless the options say otherwise. Outputs keep the predictions
(one row an example) and the metrics with their intervals. Neither split ever chooses a checkpoint. Answers are kept in
the work folder batch by batch, so that a killed evaluation goes on where it was.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from cisterna import answers, checkpoint, files, inputs, metrics, models, resume, stop, tasks, tokenizer
from cisterna import data as splits
from cisterna.corpus import Blocks
from cisterna.errors import UserError
from cisterna.inputs import Inputs
from cisterna.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SPLITS = ("id", "ood")
TOKENS = Inputs()
# Evaluation keys that are Cisterna's own; the others are options of transformers.GenerationConfig.
OWN_KEYS = frozenset({"batch_size", "bootstrap", "seed"})


def evaluate(
    folder: Path,
    data: Path,
    output: Path,
    options: Mapping[str, Any],
    bank: Path | None = None,
    work: Path | None = None,
) -> dict[str, Any]:
    """Evaluate the checkpoint `folder` on the task in `data`; write id.parquet, ood.parquet, metrics.json to `output`.

    A model that reads features takes them from `bank`, or without one from its encoder. What is answered is kept in
    `work`, if given, until it is published.

    Each parquet: id, prompt, output, answer (gold), predicted (null where the output does not parse), well_formed,
    tokens (generated, the end-of-text token included), finished (False where `max_new_tokens` cut it).

    Raises UserError for a checkpoint that was trained on other splits of the task, for splits that are not those of
    their card, and if `work` is in use; Stopped after SIGTERM.
    """
    card = splits.read_card(data)
    tables = {split: splits.check(data, split, card) for split in SPLITS}
    inputs.check_data(folder, card["task"], {"train.parquet": card["files"]["train.parquet"]})
    facts = {
        "checkpoint": checkpoint.read_manifest(folder)["identity"],
        "data": {path.name: card["files"][path.name] for path in tables.values()},
        "labels": card["labels"],
        "options": dict(options),
        "bank": checkpoint.read_manifest(bank)["identity"] if bank else None,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "packages": checkpoint.packages(),
    }
    with resume.folder(work, output, facts) if work else nullcontext():
        tokens = tokenizer.load(models.base_of(folder))
        given = inputs.of(folder, bank)
        model, device = _on_device(folder, given)
        columns = ["id", "prompt", "segments", "answer"]
        frames = {split: pd.read_parquet(path, columns=columns) for split, path in tables.items()}
        told = _Teller(work, output, sum(map(len, frames.values()))) if work else None
        predicted, results = {}, {}
        for split, frame in frames.items():
            answered = answer(
                model, tokens, frame, card["labels"], options, device, given, work / split if work else None, told
            )
            predicted[split] = pd.concat([frame, answered], axis=1)
            results[split] = metrics.score(
                frame["answer"].tolist(),
                [value if isinstance(value, str) else None for value in answered["predicted"]],
                card["labels"],
                seed=int(options.get("seed", 0)),
                resamples=int(options["bootstrap"]),
            )
            scores = results[split]
            print(
                f"{split}: n {len(frame)} accuracy {scores['accuracy']['value']:.3f} "
                f"balanced {scores['balanced_accuracy']['value']:.3f} well-formed {scores['well_formed']['value']:.3f}",
                flush=True,
            )
        with files.new_folder(output) as target:
            columns = ["id", "prompt", "output", "answer", "predicted", "well_formed", "tokens", "finished"]
            for split, predictions in predicted.items():
                predictions[columns].to_parquet(target / f"{split}.parquet", index=False)
            files.write_json(target / "metrics.json", results)
    return results


class _Teller:
    """Called after each batch with the number of answers in it: says how far the evaluation is, and obeys SIGTERM."""

    def __init__(self, work: Path, output: Path, total: int) -> None:
        self.work, self.output, self.total = work, output, total
        self.done = 0
        self.progress = Progress(work, output, "evaluate")

    def __call__(self, answers: int) -> None:
        self.done += answers
        self.progress.update(self.done, self.total, "examples")
        if stop.requested():
            raise stop.Stopped(
                f"{self.output}: by SIGTERM after {self.done} of {self.total} examples; the answers are saved in "
                f"{self.work}, and the same command goes on from there"
            )


def predict(folder: Path, table: Path, output: Path, options: Mapping[str, Any]) -> pd.DataFrame:
    """Answer new sequences, the rows of `table` (csv, tsv, Parquet or JSON lines), with a checkpoint of SFT or RL.

    The table needs the column of the sequence (`sequence`, or what the task's own table calls it) and may have its id.
    Features come from the encoder: no bank is needed. Writes and returns id, sequence, prompt, output, predicted (null
    where the output does not parse), well_formed, tokens, finished. Raises UserError for a checkpoint that was not
    trained on a task, and naming the row for a sequence that the task cannot ask about.
    """
    described = inputs.read(folder)
    if described is None:
        raise UserError(f"{folder}: not trained on a task; expected a checkpoint of SFT or RL")
    frame = tasks.questions(tasks.load(described["task"], described["spec"]), table)
    given = inputs.of(folder)
    model, device = _on_device(folder, given)
    tokens = tokenizer.load(models.base_of(folder))
    answered = answer(model, tokens, frame, described["labels"], options, device, given)
    frame = pd.concat([frame.drop(columns="segments"), answered], axis=1)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    frame.to_parquet(temporary, index=False)
    os.replace(temporary, output)
    return frame


def answer(
    model: "PreTrainedModel",
    tokens: "PreTrainedTokenizerBase",
    frame: pd.DataFrame,
    labels: Sequence[str],
    options: Mapping[str, Any],
    device: torch.device,
    given: Inputs,
    kept: Path | None = None,
    told: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Answer the `prompt` of each row (with its `segments`): output, predicted, well_formed, tokens, finished.

    Prompts are batched by length, longest first, so that little is padded and memory peaks at the first batch. The
    folder `kept` holds a file a batch: those that are there are not generated again. `told` is called after each batch
    with its size. What is sampled depends on the seed and the number of the batch alone.
    """
    first = model.get_input_embeddings().num_embeddings
    ids = inputs.prompt_ids(tokens, list(frame["prompt"]), given, list(frame["segments"]), first)
    order = sorted(range(len(ids)), key=lambda index: -len(ids[index]))
    size, seed = int(options["batch_size"]), int(options.get("seed", 0))
    generation = {"do_sample": False} | {key: value for key, value in options.items() if key not in OWN_KEYS}
    generated: dict[int, list[int]] = {}
    if kept and kept.is_dir():
        print(f"{len(list(kept.iterdir()))} batches are there", flush=True)
    for number, begin in enumerate(range(0, len(order), size)):
        chosen = order[begin : begin + size]
        path = kept / f"{number:06}.json" if kept else None
        rows = _rows(path) if path else None
        if rows is None:
            batch = tokens.pad({"input_ids": [ids[index] for index in chosen]}, return_tensors="pt").to(device)
            torch.manual_seed(int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
            with torch.inference_mode():
                sampled = model.generate(**batch, **generation)
            rows = sampled[:, batch["input_ids"].shape[1] :].tolist()
            if path:
                files.write_json(path, rows)
            print(f"generated {begin + len(rows)}/{len(order)}", flush=True)
        generated.update(zip(chosen, rows, strict=True))
        if told:
            told(len(rows))
    found = []
    for index in range(len(ids)):
        row = generated[index]
        text, finished = tokenizer.written(tokens, row)
        predicted = answers.parse(text, labels) if finished else None
        length = row.index(tokens.eos_token_id) + 1 if finished else len(row)
        found.append((text, predicted, predicted is not None, length, finished))
    return pd.DataFrame(found, columns=["output", "predicted", "well_formed", "tokens", "finished"])


def _rows(path: Path) -> list[list[int]] | None:
    """The token ids that are kept of a batch; None if there are none, or if a loss of power left half a file."""
    try:
        return files.read_json(path)
    except (FileNotFoundError, ValueError):
        return None


def perplexity(folder: Path, corpora: Sequence[Path], output: Path, block_size: int) -> dict[str, Any]:
    """Perplexity of a checkpoint on the held-out part of each corpus: exp of the mean loss per predicted token.

    Writes and returns corpus -> value, tokens, and a 95% interval (bootstrap over blocks of `block_size` tokens).
    """
    model, device = _on_device(folder)
    results = {}
    for corpus in corpora:
        blocks = Blocks(corpus, block_size, part="heldout")
        sums, counts = [], []
        for begin in range(0, len(blocks), 16):
            items = [blocks[index] for index in range(begin, min(begin + 16, len(blocks)))]
            batch = {key: torch.from_numpy(np.stack([item[key] for item in items])).to(device) for key in items[0]}
            with torch.inference_mode():  # with a cache, transformers would not keep attention inside the documents
                answer = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
            logits = answer.logits.float()
            labels = batch["labels"][:, 1:]
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].transpose(1, 2), labels, reduction="none", ignore_index=-100
            )
            sums.append(loss.sum(dim=1).double().cpu().numpy())
            counts.append((labels != -100).sum(dim=1).cpu().numpy())
        total, count = np.concatenate(sums), np.concatenate(counts)
        draws = np.random.default_rng(0).integers(0, len(total), (1000, len(total)))
        low, high = np.exp(np.quantile(total[draws].sum(1) / count[draws].sum(1), [0.025, 0.975]))
        value = math.exp(total.sum() / count.sum())
        results[corpus.name] = {"value": value, "low": float(low), "high": float(high), "n": int(count.sum())}
        print(f"{corpus.name}: perplexity {value:.2f} over {count.sum()} tokens", flush=True)
    files.write_json(output, results)
    return results


def _on_device(folder: Path, given: Inputs = TOKENS) -> "tuple[PreTrainedModel, torch.device]":
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    model = models.compose(folder, torch.bfloat16 if gpu and torch.cuda.is_bf16_supported() else None)
    inputs.prepare(model, given)
    return model.to(device), device
