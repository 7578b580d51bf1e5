"""Generation: the token ids that a checkpoint writes after each prompt, and the answers that they spell.

Not for the metrics of answers (`cisterna.scoring`).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from cisterna import models
from cisterna.artifacts import files
from cisterna.sequences import tokenization
from cisterna.sequences.prompt import encode_prompts
from cisterna.sequences.source import TOKENS, SequenceSource, connect, source_of
from cisterna.study.config import evaluation_keys

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


OnBatch = Callable[[int], None]  # called after each batch with the number of outputs in it


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint on its device, with its tokenizer and the source of its sequences."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    device: torch.device
    source: SequenceSource = TOKENS

    def encode(self, frame: pd.DataFrame) -> list[list[int]]:
        """The `prompt` of each row (with its `segments`) as token ids, with feature rows where the model reads them."""
        first = self.model.get_input_embeddings().num_embeddings
        return encode_prompts(self.tokenizer, list(frame["prompt"]), self.source, list(frame["segments"]), first)

    def before_end(self, output: list[int]) -> list[int]:
        """Generated token ids up to the end-of-text token, or all of them where there is none."""
        end = self.tokenizer.eos_token_id
        return output[: output.index(end)] if end in output else output


def load(folder: Path, bank: Path | None = None) -> LoadedModel:
    """Load a checkpoint. If it reads features, they come from `bank`, or else live from its encoder."""
    source = source_of(folder, bank)
    model, device = load_on_device(folder, source)
    return LoadedModel(model, tokenization.load(models.base_of(folder)), device, source)


def load_on_device(folder: Path, source: SequenceSource = TOKENS) -> "tuple[PreTrainedModel, torch.device]":
    """The model of a checkpoint on the GPU if there is one, there in bfloat16 if it can."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    model = models.compose(folder, torch.bfloat16 if gpu and torch.cuda.is_bf16_supported() else None)
    connect(model, source)
    return model.to(device), device


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
    own = evaluation_keys()  # the others are options of transformers.GenerationConfig
    generation = {"do_sample": False} | {key: value for key, value in options.items() if key not in own}
    outputs: dict[int, list[int]] = {}
    if saved and saved.is_dir():
        print(f"{len(list(saved.iterdir()))} batches are done already", flush=True)
    for number, begin in enumerate(range(0, len(order), size)):
        batch = order[begin : begin + size]
        stream = [seed, number, sample] if sample else [seed, number]
        compute = partial(_generate_batch, loaded, [prompts[index] for index in batch], generation, stream)
        outputs.update(zip(batch, saved_batch(saved, number, compute), strict=True))
        print(f"generated {len(outputs)}/{len(order)}", flush=True)
        if on_batch:
            on_batch(len(batch))
    return [outputs[index] for index in range(len(prompts))]


def sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that sample from the model's whole distribution, whatever its own generation config says.

    These are TRL's GRPOTrainer's defaults, but for the temperature.
    """
    temperature = float(options.get("sample_temperature", 1.0))
    whole = {"do_sample": True, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
    return dict(options) | whole | {"temperature": temperature}


def read(loaded: LoadedModel, outputs: Sequence[list[int]], parse: Callable[[str], str | None]) -> pd.DataFrame:
    """Outputs as text and their answers: columns output, predicted, well_formed, tokens, finished.

    `parse` is the parser of the task's answer space.
    """
    rows = []
    for output in outputs:
        text, finished = tokenization.decode_completion(loaded.tokenizer, output)
        predicted = parse(text) if finished else None
        tokens = len(loaded.before_end(output)) + finished
        rows.append((text, predicted, predicted is not None, tokens, finished))
    return pd.DataFrame(rows, columns=["output", "predicted", "well_formed", "tokens", "finished"])


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


def _generate_batch(
    loaded: LoadedModel, prompts: list[list[int]], generation: Mapping[str, Any], stream: list[int]
) -> list[list[int]]:
    batch = loaded.tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(loaded.device)
    torch.manual_seed(int(np.random.SeedSequence(stream).generate_state(1)[0]))
    with torch.inference_mode():
        sequences = loaded.model.generate(**batch, **generation)
    return sequences[:, batch["input_ids"].shape[1] :].tolist()
