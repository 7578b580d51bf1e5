"""Evaluation of one checkpoint on one task: generate, parse, score. And the perplexity of a checkpoint on corpora.

    cisterna evaluate --checkpoint .../e2/checkpoint --data results/data/splice-donor --output .../e2/eval \
        --work results/.work/.../e2/eval --options '{...}'

Every example of `id` and of `ood` is answered, greedily unless the options say otherwise. Outputs keep the predictions
(one row an example) and the metrics with their intervals. Neither split ever chooses a checkpoint. Answers are kept in
the work folder batch by batch, so that a killed evaluation goes on where it was.

Beside these answers, where the options ask for it: `samples` answers more of each example, for accuracy at k, and with
`calibration` the probability of each label after the model's own reasoning. Neither changes the answers.
"""

import copy
import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from cisterna import models, tasks
from cisterna.artifacts import checkpoint, files, shutdown, work_folder
from cisterna.artifacts.progress import Progress
from cisterna.constants import TEST_SPLITS
from cisterna.data import splits
from cisterna.data.corpus import Blocks
from cisterna.errors import UserError
from cisterna.scoring import answers, at_k, bootstrap, calibration
from cisterna.scoring.answers import AnswerSpace
from cisterna.sequences import inputs_file, tokenization
from cisterna.sequences.prompt import encode_prompts
from cisterna.sequences.source import TOKENS, SequenceSource, connect, source_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SAID = ("accuracy", "balanced_accuracy", "f1_micro", "well_formed")  # in the log, of those that a task has
# Of the predictions; the last two where the options ask for them.
COLUMNS = "id prompt output answer predicted well_formed tokens finished repeated confidence sampled".split()
# Evaluation keys that are Cisterna's own; the others are options of transformers.GenerationConfig.
OWN_KEYS = frozenset({"batch_size", "bootstrap", "seed", "samples", "sample_temperature", "calibration"})
# Of these, keys that change no answer that is kept: more samples can be asked for later, and no answer is lost.
BESIDE = frozenset({"bootstrap", "samples", "calibration"})
READ = 32  # outputs whose labels are scored at a time: more are no faster, and on a CPU a fifth slower (measured)
FEWEST = 5  # examples of a group that has metrics of its own
OTHER = "other"  # the group of all examples of smaller groups
GRAM = 4  # tokens of the stretches whose repetition is counted, as in Welleck et al. 2020


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
    tokens (generated, the end-of-text token included), finished (False where `max_new_tokens` cut it), repeated (see
    `repeats`). With `calibration` in the options also confidence: the probability of `predicted` among the labels,
    after the model's own reasoning; null where it is not known (see `_label_logs`). With `samples` also sampled: the
    answers of that many further outputs, drawn from the model's whole distribution at `sample_temperature`, null where
    one does not parse.

    metrics.json: split -> metric -> value, low, high, n, with the metrics of `metrics.score` (or, where answers are
    sets of terms, `ontology.score`), with `calibration` those of `metrics.calibration`, with `samples` those of
    `metrics.at_k`, and the shares of degenerate outputs:

    - unfinished: cut by `max_new_tokens`
    - empty: finished with no answer: nothing after `</think>` (or at all), or nothing after `Answer:`
    - off_format: finished with something else that does not parse; so the three and well_formed add up to 1
    - repeated: any of these that repeats itself (see `repeats`)

    and under "groups": split -> group of the data (`metrics.pooled`) -> accuracy and balanced accuracy (of terms micro
    F1). A metric of no examples has n 0 and null for numbers.

    Raises UserError for a checkpoint that was trained on other splits of the task, for splits that are not those of
    their card, and if `work` is in use; Stopped after SIGTERM.
    """
    card = splits.read_card(data)
    tables = {split: splits.check(data, split, card) for split in TEST_SPLITS}
    space = answers.load_space(card, data)
    inputs_file.check_data(folder, card["task"], {"train.parquet": card["files"]["train.parquet"]})
    facts = {
        "checkpoint": checkpoint.read_manifest(folder)["identity"],
        "data": {path.name: card["files"][path.name] for path in tables.values()},
        "labels": card["labels"],
        "options": {key: value for key, value in options.items() if key not in BESIDE},
        "bank": checkpoint.read_manifest(bank)["identity"] if bank else None,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "packages": checkpoint.packages(),
    }
    with work_folder.folder(work, output, facts) if work else nullcontext():
        tokens = tokenization.load(models.base_of(folder))
        given = source_of(folder, bank)
        model, device = _on_device(folder, given)
        columns = ["id", "prompt", "segments", "answer", "group"]
        frames = {split: pd.read_parquet(path, columns=columns) for split, path in tables.items()}
        samples, total = int(options.get("samples") or 0), sum(map(len, frames.values()))
        unit = "answers" if samples else "examples"
        told = _Teller(work, output, (1 + samples) * total, unit) if work else None
        predicted, results = {}, {}
        groups: dict[str, Any] = {}
        for split, frame in frames.items():
            asked = _Asked(model, tokens, _prompts(model, tokens, frame, given), device, work / split if work else None)
            predicted[split], logs = _answer_in_depth(asked, frame, space.labels, options, told)
            results[split], groups[split] = _score(predicted[split], logs, space, options)
            said = (f"{name} {results[split][name]['value']:.3f}" for name in SAID if name in results[split])
            print(f"{split}: n {len(frame)} {' '.join(said)}", flush=True)
        results["groups"] = groups
        with files.new_folder(output) as target:
            for split, predictions in predicted.items():
                written = [name for name in COLUMNS if name in predictions]
                predictions[written].to_parquet(target / f"{split}.parquet", index=False)
            files.write_json(target / "metrics.json", results)
    return results


class _Teller:
    """Called after each batch with the number of answers in it: says how far the evaluation is, and obeys SIGTERM."""

    def __init__(self, work: Path, output: Path, total: int, unit: str) -> None:
        self.work, self.output, self.total, self.unit = work, output, total, unit
        self.done = 0
        self.progress = Progress(work, output, "evaluate")

    def __call__(self, answers: int) -> None:
        self.done += answers
        self.progress.update(self.done, self.total, self.unit)
        if shutdown.requested():
            raise shutdown.Stopped(
                f"{self.output}: by SIGTERM after {self.done} of {self.total} {self.unit}; the answers are saved in "
                f"{self.work}, and the same command goes on from there"
            )


@dataclass(frozen=True)
class _Asked:
    """The prompts of a split, as token ids, and the model that is asked; `kept` is the folder of its kept batches."""

    model: "PreTrainedModel"
    tokens: "PreTrainedTokenizerBase"
    prompts: list[list[int]]
    device: torch.device
    kept: Path | None = None

    def beside(self, name: str) -> Path | None:
        """The folder of the kept batches of another question about the same prompts."""
        return self.kept.with_name(f"{self.kept.name}-{name}") if self.kept else None


def _answer_in_depth(
    asked: _Asked,
    frame: pd.DataFrame,
    labels: Sequence[str],
    options: Mapping[str, Any],
    told: Callable[[int], None] | None,
) -> tuple[pd.DataFrame, NDArray[np.float64] | None]:
    """A frame of examples with all that `evaluate` writes of each, and the log-probabilities of its labels."""
    rows = _generate(asked, options, asked.kept, told)
    found = frame.join(_read(asked.tokens, rows, labels))
    found["repeated"] = [repeats(_before_end(asked.tokens, row)) for row in rows]
    logs = None
    if options.get("calibration") and labels:
        logs = _label_logs(asked, rows, labels, asked.beside("labels"), told)
        found["confidence"] = calibration.confidences(_answers(found), logs, labels)
    votes = []
    for number in range(1, int(options.get("samples") or 0) + 1):
        drawn = _generate(asked, _sampling(options), asked.beside(f"sample-{number:04}"), told, number)
        votes.append(_answers(_read(asked.tokens, drawn, labels)))
    if votes:
        found["sampled"] = [list(given) for given in zip(*votes, strict=True)]
    return found, logs


def _sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under which a model is sampled from its whole distribution, whatever its own generation config says.

    As TRL's GRPOTrainer samples where its options are not changed.
    """
    temperature = float(options.get("sample_temperature", 1.0))
    whole = {"do_sample": True, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
    return dict(options) | whole | {"temperature": temperature}


def _score(
    found: pd.DataFrame, logs: NDArray[np.float64] | None, space: AnswerSpace, options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metrics of a split, and those of its groups, as `evaluate` writes them."""
    gold, predicted = found["answer"].tolist(), _answers(found)
    seed, resamples = int(options.get("seed", 0)), int(options["bootstrap"])

    def score(rows: Sequence[int]) -> dict[str, Any]:
        return space.score([gold[row] for row in rows], [predicted[row] for row in rows], seed, resamples)

    scores = score(range(len(gold))) | bootstrap.means(_degenerate(found), seed, resamples)
    if logs is not None:
        scores |= calibration.score(gold, predicted, logs, space.labels, seed, resamples)
    if "sampled" in found:
        votes = [[vote if vote is None else space.canonical(vote) for vote in row] for row in found["sampled"]]
        scores |= at_k.score([space.canonical(answer) for answer in gold], votes, seed, resamples)
    groups: dict[str, list[int]] = {}
    for row, group in enumerate(pooled(found["group"].fillna("none").tolist())):
        groups.setdefault(group, []).append(row)
    parts = {group: score(rows) for group, rows in groups.items()}
    chosen = {group: {name: whole[name] for name in space.group_metrics} for group, whole in parts.items()}
    return {name: _finite(summary) for name, summary in scores.items()}, chosen


def pooled(groups: Sequence[str]) -> list[str]:
    """The group of each example, with all groups of fewer than `FEWEST` examples as one, `OTHER`."""
    sizes = Counter(groups)
    return [group if sizes[group] >= FEWEST else OTHER for group in groups]


def _finite(summary: Mapping[str, float]) -> dict[str, float | None]:
    """A summary for JSON, which has no NaN."""
    return {key: None if math.isnan(value) else value for key, value in summary.items()}


def _degenerate(found: pd.DataFrame) -> dict[str, pd.Series]:
    """Which outputs are unfinished, empty, off-format and repeated (see `evaluate`)."""
    nothing = found["output"].map(_says_nothing)
    ended = found["finished"] & ~found["well_formed"]
    return {
        "unfinished": ~found["finished"],
        "empty": ended & nothing,
        "off_format": ended & ~nothing,
        "repeated": found["repeated"],
    }


def _says_nothing(output: str) -> bool:
    """Whether an output ends without an answer: nothing after `</think>` or at all, or nothing after `Answer:`."""
    return output.rpartition(answers.END_THINK)[2].strip() in ("", answers.ANSWER.strip())


def repeats(ids: Sequence[int]) -> bool:
    """Whether an output, as token ids without the end-of-text token, repeats itself: more than half of its stretches of
    four tokens are repetitions of others (seq-rep-4 above 0.5; Welleck et al. 2020, arXiv:1908.04319, section 3).
    """
    stretches = list(zip(*(ids[start:] for start in range(GRAM)), strict=False))
    return 2 * len(set(stretches)) < len(stretches)


def _answers(frame: pd.DataFrame) -> list[str | None]:
    """What was answered, None where the output does not parse."""
    return [value if isinstance(value, str) else None for value in frame["predicted"]]


def predict(folder: Path, table: Path, output: Path, options: Mapping[str, Any]) -> pd.DataFrame:
    """Answer new sequences, the rows of `table` (csv, tsv, Parquet or JSON lines), with a checkpoint of SFT or RL.

    The table needs the column of the sequence (`sequence`, or what the task's own table calls it) and may have its id.
    Features come from the encoder: no bank is needed. Writes and returns id, sequence, prompt, output, predicted (null
    where the output does not parse), well_formed, tokens, finished. Raises UserError for a checkpoint that was not
    trained on a task, and naming the row for a sequence that the task cannot ask about.
    """
    described = inputs_file.read(folder)
    if described is None:
        raise UserError(f"{folder}: not trained on a task; expected a checkpoint of SFT or RL")
    frame = tasks.questions(tasks.load(described["task"], described["spec"]), table)
    given = source_of(folder)
    model, device = _on_device(folder, given)
    tokens = tokenization.load(models.base_of(folder))
    answered = answer(model, tokens, frame, described["labels"], options, device, given)
    frame = pd.concat([frame.drop(columns="segments"), answered], axis=1)
    output.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(output) as temporary:
        frame.to_parquet(temporary, index=False)
    return frame


def answer(
    model: "PreTrainedModel",
    tokens: "PreTrainedTokenizerBase",
    frame: pd.DataFrame,
    labels: Sequence[str],
    options: Mapping[str, Any],
    device: torch.device,
    given: SequenceSource,
    kept: Path | None = None,
    told: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Answer the `prompt` of each row (with its `segments`): output, predicted, well_formed, tokens, finished.

    `labels` is the answer space; without one an answer is a set of terms.

    Prompts are batched by length, longest first, so that little is padded and memory peaks at the first batch. The
    folder `kept` holds a file a batch: those that are there are not generated again. `told` is called after each batch
    with its size. What is sampled depends on the seed and the number of the batch alone.
    """
    asked = _Asked(model, tokens, _prompts(model, tokens, frame, given), device)
    return _read(tokens, _generate(asked, options, kept, told), labels)


def _prompts(
    model: "PreTrainedModel", tokens: "PreTrainedTokenizerBase", frame: pd.DataFrame, given: SequenceSource
) -> list[list[int]]:
    """The prompts of a frame as token ids, with feature rows where the model reads them."""
    first = model.get_input_embeddings().num_embeddings
    return encode_prompts(tokens, list(frame["prompt"]), given, list(frame["segments"]), first)


def _generate(
    asked: _Asked,
    options: Mapping[str, Any],
    kept: Path | None,
    told: Callable[[int], None] | None,
    draw: int = 0,
) -> list[list[int]]:
    """The token ids that a model writes after each prompt, padded after the end-of-text token. See `answer`.

    Each `draw` samples from random numbers of its own.
    """
    model, tokens, ids = asked.model, asked.tokens, asked.prompts
    order = sorted(range(len(ids)), key=lambda index: -len(ids[index]))
    size, seed = int(options["batch_size"]), int(options.get("seed", 0))
    generation = {"do_sample": False} | {key: value for key, value in options.items() if key not in OWN_KEYS}
    generated: dict[int, list[int]] = {}
    if kept and kept.is_dir():
        print(f"{len(list(kept.iterdir()))} batches are there", flush=True)
    for number, begin in enumerate(range(0, len(order), size)):
        chosen = order[begin : begin + size]
        path = kept / f"{number:06}.json" if kept else None
        rows = _kept(path)
        if rows is None:
            batch = tokens.pad({"input_ids": [ids[index] for index in chosen]}, return_tensors="pt").to(asked.device)
            stream = [seed, number, draw] if draw else [seed, number]
            torch.manual_seed(int(np.random.SeedSequence(stream).generate_state(1)[0]))
            with torch.inference_mode():
                sampled = model.generate(**batch, **generation)
            rows = sampled[:, batch["input_ids"].shape[1] :].tolist()
            if path:
                files.write_json(path, rows)
            print(f"generated {begin + len(rows)}/{len(order)}", flush=True)
        generated.update(zip(chosen, rows, strict=True))
        if told:
            told(len(rows))
    return [generated[index] for index in range(len(ids))]


def _read(tokens: "PreTrainedTokenizerBase", rows: Sequence[list[int]], labels: Sequence[str]) -> pd.DataFrame:
    """What token ids say: output, predicted, well_formed, tokens, finished."""
    read = functools.partial(answers.parse, labels=labels) if labels else answers.parse_terms
    found = []
    for row in rows:
        text, finished = tokenization.decode_completion(tokens, row)
        predicted = read(text) if finished else None
        length = row.index(tokens.eos_token_id) + 1 if finished else len(row)
        found.append((text, predicted, predicted is not None, length, finished))
    return pd.DataFrame(found, columns=["output", "predicted", "well_formed", "tokens", "finished"])


def _before_end(tokens: "PreTrainedTokenizerBase", row: list[int]) -> list[int]:
    """Generated token ids up to the end-of-text token, or all of them where there is none."""
    return row[: row.index(tokens.eos_token_id)] if tokens.eos_token_id in row else row


def _label_logs(
    asked: _Asked,
    rows: Sequence[list[int]],
    labels: Sequence[str],
    kept: Path | None,
    told: Callable[[int], None] | None,
) -> NDArray[np.float64]:
    """Log-probability of each label as the answer after the model's own reasoning: shape (prompts, labels).

    That of writing `Answer: LABEL` and the end-of-text token, as SFT teaches it, after the prompt and what the model
    wrote up to its last `</think>`, less that of the tokens with which all labels begin: so up to a constant a prompt.
    NaN where an output has no `</think>`: a model that has not ended its reasoning has no answer to be sure of. `kept`
    is the folder of the kept batches.
    """
    end = asked.tokens.convert_tokens_to_ids(answers.END_THINK)
    reasoned: dict[int, list[int]] = {}
    for index, (prompt, row) in enumerate(zip(asked.prompts, rows, strict=True)):
        said = _before_end(asked.tokens, row)
        if end in said:
            reasoned[index] = prompt + said[: len(said) - said[::-1].index(end)]
    endings = _endings(asked.tokens, labels)
    same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*endings, strict=False))
    shared = [column[0] for column in same][: min(map(len, endings)) - 1]
    found = np.full((len(rows), len(labels)), np.nan)
    order = sorted(reasoned, key=lambda index: -len(reasoned[index]))
    for number, begin in enumerate(range(0, len(order), READ)):
        chosen = order[begin : begin + READ]
        path = kept / f"{number:06}.json" if kept else None
        logs = _kept(path)
        if logs is None:
            starts = [reasoned[index] + shared for index in chosen]
            logs = _continuation_logs(asked, starts, [ending[len(shared) :] for ending in endings])
            if path:
                files.write_json(path, logs)
            if told:
                told(0)
        found[chosen] = logs
    return found


def _endings(tokens: "PreTrainedTokenizerBase", labels: Sequence[str]) -> list[list[int]]:
    """The token ids after `</think>` of an output that answers each label, as SFT tokenizes them."""
    texts = [answers.completion("", label) + tokens.eos_token for label in tokenization.escape(tokens, list(labels))]
    end = tokens.convert_tokens_to_ids(answers.END_THINK)
    ids = tokens([tokenization.expand(text) for text in texts], add_special_tokens=False)["input_ids"]
    return [row[row.index(end) + 1 :] for row in ids]


def _continuation_logs(asked: _Asked, starts: list[list[int]], endings: Sequence[list[int]]) -> list[list[float]]:
    """Log-probability of each of the `endings` after each of the `starts`, both token ids: a row a start.

    The starts are read once; each ending goes on from a copy of what the model's cache then holds.
    """
    model = asked.model
    batch = asked.tokens.pad({"input_ids": starts}, return_tensors="pt").to(asked.device)
    mask = batch["attention_mask"]
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    last = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}
    columns = []
    with torch.inference_mode():
        begun = model(input_ids=batch["input_ids"], attention_mask=mask, position_ids=positions, use_cache=True, **last)
        first = begun.logits[:, -1].float().log_softmax(dim=-1)
        for ending in endings:
            total = first[:, ending[0]].double()
            ids = torch.tensor(ending, device=asked.device).expand(len(starts), -1)
            if len(ending) > 1:
                steps = torch.arange(1, len(ending), device=asked.device)
                read = model(
                    input_ids=ids[:, :-1],
                    attention_mask=torch.cat([mask, mask.new_ones(len(starts), len(steps))], dim=1),
                    position_ids=positions[:, -1:] + steps,
                    past_key_values=copy.deepcopy(begun.past_key_values),
                    use_cache=True,
                )
                logs = read.logits.float().log_softmax(dim=-1)
                total = total + logs.gather(2, ids[:, 1:, None]).double().sum(dim=(1, 2))
            columns.append(total)
    return torch.stack(columns, dim=1).tolist()


def _kept(path: Path | None) -> list | None:
    """What is kept of a batch; None if there is nothing, or if a loss of power left half a file."""
    if path is None:
        return None
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


def _on_device(folder: Path, given: SequenceSource = TOKENS) -> "tuple[PreTrainedModel, torch.device]":
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    model = models.compose(folder, torch.bfloat16 if gpu and torch.cuda.is_bf16_supported() else None)
    connect(model, given)
    return model.to(device), device
