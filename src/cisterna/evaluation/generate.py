"""Generation: what a checkpoint writes after each prompt, its answers, and the probability of each label.

Not for the metrics of answers (`cisterna.scoring`).
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from cisterna import models, updates
from cisterna.artifacts import files
from cisterna.errors import UserError
from cisterna.evaluation import scores
from cisterna.scoring import answers
from cisterna.sequences import conventions, engines, tokenization
from cisterna.sequences.engines import Engine
from cisterna.sequences.prompt import encode_prompts
from cisterna.sequences.source import TOKENS, SequenceSource, connect, source_of
from cisterna.study.config import evaluation_keys

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OnBatch = Callable[[int], None]  # called after each batch with the number of outputs in it
GRAM = 4  # tokens of the n-grams whose repetition is counted, as in Welleck et al. 2020
LABELS_BATCH = 32  # outputs at a time for `label_logs`: more are no faster, and on a CPU a fifth slower (measured)


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint on its device, with its tokenizer, the source of its sequences, and the name of its engine."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    device: torch.device
    source: SequenceSource = TOKENS
    engine_name: str = engines.TRANSFORMERS
    shared: engines.Shared = field(default_factory=engines.Shared)

    @cached_property
    def engine(self) -> Engine:
        """What answers the prompts. It starts, or gets the weights, when it is first used: after all checks."""
        return self.shared.use(self.engine_name, self.model, self.tokenizer, self.device, self.source)

    def encode(self, frame: pd.DataFrame) -> list[list[int]]:
        """The `prompt` of each row (with its `segments`) as token ids, with feature rows where the model reads them."""
        first_row = self.model.get_input_embeddings().num_embeddings
        ids = list(frame["id"]) if "id" in frame else []
        prompts, segments = list(frame["prompt"]), list(frame["segments"])
        return encode_prompts(self.tokenizer, prompts, self.source, segments, first_row, ids)

    def before_end(self, output: list[int]) -> list[int]:
        """Generated token ids up to the first end token, or all of them where there is none."""
        return tokenization.before_end(self.tokenizer, output)


def load(
    folder: Path,
    bank: Path | None = None,
    features: Sequence[Path] = (),
    engine_name: str = engines.TRANSFORMERS,
    shared: engines.Shared | None = None,
) -> LoadedModel:
    """Load a checkpoint. If it reads features, they come from `bank`, or else live from its encoder, or from files.

    Its engine is `shared`, if that is given, with other checkpoints of the same backbone, which it does not answer any
    more from then on.
    """
    source = source_of(folder, bank, features)
    # vLLM has weights of its own on the GPU; those of the checkpoint stay on the CPU
    model, device = load_on_device(folder, source, move=engine_name == engines.TRANSFORMERS)
    return LoadedModel(
        model, tokenization.load(models.base_of(folder)), device, source, engine_name, shared or engines.Shared()
    )


def load_on_device(
    folder: Path, source: SequenceSource = TOKENS, move: bool = True
) -> "tuple[PreTrainedModel, torch.device]":
    """The model of a checkpoint on the GPU if there is one, there in bfloat16 if it can (see `gpu_dtype`).

    Without `move` it has the same dtype but stays on the CPU.
    """
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu and move else "cpu")
    model = models.compose(folder, gpu_dtype(folder) if gpu and torch.cuda.is_bf16_supported() else None)
    if source.features is not None and not hasattr(model, "bridge"):
        raise UserError(f"{folder}: the model has no bridge and reads no features; leave out --bank")
    connect(model, source)
    return model.to(device), device


def gpu_dtype(folder: Path) -> torch.dtype:
    """bfloat16, or float32 where a cast would lose what training of all weights has changed. Says which, and why."""
    lost = models.rounded_stage(folder, torch.bfloat16)
    if lost is None:
        print(f"in bfloat16, with at least {updates.KEPT} of the update of each stage", flush=True)
        return torch.bfloat16
    share = "an unknown share" if lost[1] is None else f"{lost[1]:.2f}"
    print(f"in float32: bfloat16 would keep {share} of the update of {lost[0]}", flush=True)
    return torch.float32


def generate(
    loaded: LoadedModel,
    prompts: Sequence[list[int]],
    options: Mapping[str, Any],
    saved: Path | None = None,
    on_batch: OnBatch | None = None,
    sample: int = 0,
) -> list[list[int]]:
    """The token ids that a model writes after each prompt, padded after the end-of-text token.

    Prompts are batched by length, longest first, so that little is padded and memory peaks at the first batch. Batches
    that are in the folder `saved` are not generated again. Random numbers depend on the seed in `options`, the number
    of the batch, and the number of the `sample`.
    """
    size, seed = int(options["batch_size"]), int(options.get("seed", 0))
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    ours = evaluation_keys()  # the others are options of transformers.GenerationConfig
    generation = {"do_sample": False} | {key: value for key, value in options.items() if key not in ours}
    outputs: dict[int, list[int]] = {}
    if saved and saved.is_dir():
        print(f"{len(list(saved.iterdir()))} batches are done already", flush=True)
    for number, begin in enumerate(range(0, len(order), size)):
        batch = order[begin : begin + size]
        stream = [seed, number, sample] if sample else [seed, number]
        compute = partial(loaded.engine.generate, [prompts[index] for index in batch], generation, stream)
        outputs.update(zip(batch, saved_batch(saved, number, compute), strict=True))
        print(f"generated {len(outputs)}/{len(order)}", flush=True)
        if on_batch:
            on_batch(len(batch))
    return [outputs[index] for index in range(len(prompts))]


def check(
    loaded: LoadedModel,
    prompts: Sequence[list[int]],
    frame: pd.DataFrame,
    labels: Sequence[str],
    options: Mapping[str, Any],
    source: object,
) -> None:
    """UserError for prompts that the model cannot read or answer in full. `labels` are those that get probabilities."""
    names = frame["id"].astype(str).tolist()
    tokenization.check_known(loaded.tokenizer, prompts, names, source)
    more = int(options["max_new_tokens"]) + max(map(len, _endings(loaded.tokenizer, labels)), default=0)
    advice = "Lower max_new_tokens in `evaluation`, shorten the prompts, or use another backbone"
    conventions.check_positions(loaded.model, list(map(len, prompts)), names, more, str(source), advice)


def sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that sample from the model's whole distribution, whatever its own generation config says.

    These are TRL's GRPOTrainer's defaults, but for the temperature.
    """
    whole = {"do_sample": True, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
    return dict(options) | whole | {"temperature": float(options.get("sample_temperature", 1.0))}


def decode(loaded: LoadedModel, outputs: Sequence[list[int]]) -> pd.DataFrame:
    """Outputs as text: columns output, tokens (generated, the end token included), finished (whether there is one)."""
    rows = []
    for output in outputs:
        text, finished = tokenization.decode_completion(loaded.tokenizer, output)
        rows.append((text, len(loaded.before_end(output)) + finished, finished))
    return pd.DataFrame(rows, columns=["output", "tokens", "finished"])


def read(loaded: LoadedModel, outputs: Sequence[list[int]], parse: Callable[[str], str | None]) -> pd.DataFrame:
    """Outputs as text and their answers: the columns of `decode`, predicted and well_formed.

    `parse` is the parser of the task's answer space.
    """
    frame = decode(loaded, outputs)
    frame["predicted"] = scores.predicted(frame, parse)
    frame["well_formed"] = frame["predicted"].notna()
    return frame


def saved_batch(folder: Path | None, number: int, compute: Callable[[], list]) -> list:
    """The result of a batch: from its file in `folder`, or else computed and written there."""
    if folder is None:
        return compute()
    path = folder / f"{number:06}.json"
    with suppress(FileNotFoundError, ValueError):  # ValueError: half a file, after a loss of power
        return files.read_json(path)
    result = compute()
    files.write_json(path, result)
    return result


def repeats(token_ids: Sequence[int]) -> bool:
    """Whether an output, without the end-of-text token, repeats itself: more than half of its 4-grams of tokens are
    repetitions of others (seq-rep-4 above 0.5; Welleck et al. 2020, arXiv:1908.04319, section 3).
    """
    grams = [tuple(token_ids[start : start + GRAM]) for start in range(len(token_ids) - GRAM + 1)]
    return 2 * len(set(grams)) < len(grams)


# --- Probabilities of labels ---


def label_logs(
    loaded: LoadedModel,
    prompts: Sequence[list[int]],
    outputs: Sequence[list[int]],
    labels: Sequence[str],
    saved: Path | None = None,
    on_batch: OnBatch | None = None,
) -> NDArray[np.float64]:
    """Log-probability of each label after the reasoning in each output, up to a constant a row: (prompts, labels).

    It is that of the tokens of `Answer: LABEL` and the end-of-text token, as in SFT, after the prompt and the output up
    to the end of its last thought. The tokens with which all labels begin are left out, which makes the constant. NaN
    where an output has no end of a thought: without it there is no answer to score.
    """
    reasoned: dict[int, list[int]] = {}
    for index, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        written = loaded.before_end(output)
        end = conventions.thought_end(loaded.tokenizer, written)
        if end is not None:
            reasoned[index] = prompt + written[:end]
    endings = _endings(loaded.tokenizer, labels)
    # labels differ in length: compared up to the end of the shortest
    equal = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*endings, strict=False))
    shared = [column[0] for column in equal][: min(map(len, endings)) - 1]
    different = [ending[len(shared) :] for ending in endings]
    logs = np.full((len(outputs), len(labels)), np.nan)
    order = sorted(reasoned, key=lambda index: -len(reasoned[index]))
    for number, begin in enumerate(range(0, len(order), LABELS_BATCH)):
        batch = order[begin : begin + LABELS_BATCH]
        starts = [reasoned[index] + shared for index in batch]
        logs[batch] = saved_batch(saved, number, partial(loaded.engine.continuation_logs, starts, different))
        if on_batch:
            on_batch(0)
    return logs


def _endings(tokenizer: "PreTrainedTokenizerBase", labels: Sequence[str]) -> list[list[int]]:
    """The token ids after the thought of an output that answers each label, as SFT tokenizes them."""
    escaped = tokenization.escape(tokenizer, list(labels))
    encoded = tokenization.encode_completions(tokenizer, [answers.completion("", label) for label in escaped])
    return [ids[conventions.thought_end(tokenizer, ids) :] for ids in encoded]
