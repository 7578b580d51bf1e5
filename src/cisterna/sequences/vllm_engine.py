"""The engine `vllm`: vLLM in this process, which reads feature rows as embeddings of single positions.

It has weights of its own, with all updates of the lineage in them. It computes in the dtype of the model, or in float32
where the model has weights of several dtypes or where a merge would round an update away. Installed by `make vllm`.
"""

import copy
import itertools
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cisterna import updates
from cisterna.errors import UserError, one_line
from cisterna.sequences.source import SequenceSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OURS = ("bridge.", "encoder.")  # parts of a model that vLLM does not have
CPU_CACHE = 2**30  # bytes of the cache of keys and values on a CPU; on a GPU vLLM takes what is free
# Options of transformers.GenerationConfig that are passed on, with their value where they are not set.
OPTIONS = {"do_sample": False, "max_new_tokens": None, "eos_token_id": None, "repetition_penalty": 1.0}
SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}
# Others that would change what is written: refused if they are set.
REFUSED = (
    "num_beams no_repeat_ngram_size suppress_tokens begin_suppress_tokens bad_words_ids forced_bos_token_id "
    "forced_eos_token_id sequence_bias typical_p epsilon_cutoff eta_cutoff exponential_decay_length_penalty top_h "
    "penalty_alpha guidance_scale encoder_repetition_penalty encoder_no_repeat_ngram_size min_length min_new_tokens "
    "num_return_sequences stop_strings watermarking_config constraints force_words_ids"
).split()
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process, so that weights are handed over and not copied
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # jobs that run side by side would all get the same cores
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


class Vllm:
    """See `cisterna.sequences.engines.Engine`. `update_kept` is the share of the updates beside weights that it has."""

    def __init__(self, model: "PreTrainedModel", source: SequenceSource, version: str) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from vllm import LLM

        if source.features is not None and getattr(model.config, "hidden_size_per_layer_input", None):
            raise UserError("engine: vllm cannot read features with per-layer embeddings; use engine: transformers")
        self.source, self.version, self.dtype = source, version, _dtype(model)
        on_cpu = {} if torch.cuda.is_available() else {"enforce_eager": True, "kv_cache_memory_bytes": CPU_CACHE}
        # vLLM sets the seeds of torch: what else draws random numbers here must not depend on that
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
            config = copy.deepcopy(model.config)
            config.architectures, config.tie_word_embeddings = [type(model).__name__], _is_tied(model)
            config.save_pretrained(folder)
            with _starting():
                self.llm = LLM(
                    model=folder,
                    load_format="dummy",
                    dtype=str(self.dtype).removeprefix("torch."),
                    max_model_len=-1,  # what the model has positions for, or else what fits into memory
                    enable_prompt_embeds=source.features is not None,
                    logprobs_mode="raw_logprobs",
                    generation_config="vllm",
                    skip_tokenizer_init=True,
                    disable_log_stats=True,
                    seed=0,
                    **on_cpu,
                )
        self.load(model)
        with _starting():  # on a CPU it refuses some sizes of heads only when it runs
            self._run([{"prompt_token_ids": [0]}], [{"max_tokens": 1}])

    def load(self, model: "PreTrainedModel") -> None:
        """See `Engine`. UserError if less than `updates.KEPT` of the updates beside the weights would be left."""
        self.update_kept = updates.check(update_kept(model, self.dtype), "engine: vllm")
        self.model = model
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": _weights(model, self.dtype)})
        if not torch.cuda.is_available() and _is_tied(model):
            _pack_output_layer(self.llm)
        self.llm.reset_prefix_cache()

    def describe(self) -> dict[str, Any]:
        """See `Engine`."""
        dtype = str(self.dtype).removeprefix("torch.")
        return {"name": "vllm", "version": self.version, "dtype": dtype, "update_kept": self.update_kept}

    def generate(
        self, prompts: Sequence[list[int]], options: Mapping[str, Any], stream: Sequence[int]
    ) -> list[list[int]]:
        """See `Engine`. Each prompt has random numbers of its own, which do not depend on the others."""
        sampling = sampling_options(self.model.generation_config, options)
        features = self.source.features is not None
        if features and sampling["repetition_penalty"] != 1.0:
            raise UserError("engine: vllm has no repetition_penalty for prompts with features; expected 1.0")
        seeds = (int(np.random.SeedSequence([*stream, at]).generate_state(1)[0]) for at in range(len(prompts)))
        return [row for row, _ in self._run(self._prompts(prompts), [sampling | {"seed": seed} for seed in seeds])]

    def continuation_logs(self, starts: Sequence[list[int]], endings: Sequence[list[int]]) -> list[list[float]]:
        """See `Engine`. One request for each token that follows a start and the same tokens before it."""
        # What comes before a token, and that token. A label may begin as another one.
        steps = sorted({(tuple(ending[:at]), token) for ending in endings for at, token in enumerate(ending)})
        wanted = list(itertools.product(range(len(starts)), steps))
        prompts = self._prompts([starts[row] + list(before) for row, (before, _) in wanted])
        forced = [{"allowed_token_ids": [token], "max_tokens": 1} for _, (_, token) in wanted]
        logs = [row[0] for _, row in self._run(prompts, forced)]
        found = dict(zip(wanted, logs, strict=True))
        return [
            [sum(found[row, (tuple(ending[:at]), token)] for at, token in enumerate(ending)) for ending in endings]
            for row in range(len(starts))
        ]

    def _run(self, prompts: list[Any], options: list[dict[str, Any]]) -> list[tuple[list[int], list[float]]]:
        """Token ids after each prompt, and the log-probability of each in the model's whole distribution."""
        from vllm import SamplingParams

        parameters = [SamplingParams(**{"temperature": 0.0} | own, logprobs=0, detokenize=False) for own in options]
        with torch.random.fork_rng(devices=[]):
            requests = self.llm.generate(prompts, parameters, use_tqdm=False)
        outputs = [request.outputs[0] for request in requests]
        return [
            (
                list(one.token_ids),
                [logs[token].logprob for logs, token in zip(one.logprobs, one.token_ids, strict=True)],
            )
            for one in outputs
        ]

    def _prompts(self, prompts: Sequence[list[int]]) -> list[Any]:
        """Prompts as vLLM takes them: token ids, and where there are feature rows the embeddings of these positions."""
        table = self.model.get_input_embeddings().weight
        first, width = len(table), table.shape[1]
        rows = [torch.tensor(ids) for ids in prompts]
        is_feature = [ids >= first for ids in rows]
        index = torch.cat([ids[chosen] - first for ids, chosen in zip(rows, is_feature, strict=True)])
        features = self.source.features
        if not len(index) or features is None:
            return [{"prompt_token_ids": ids} for ids in prompts]
        different, places = index.unique(return_inverse=True)
        bridge: Any = self.model.bridge
        with torch.inference_mode():
            projected = bridge(features.rows(different).to(bridge.weight.device)).to("cpu", self.dtype)
        parts = projected[places].split([int(chosen.sum()) for chosen in is_feature])
        made: list[Any] = []
        for ids, chosen, part in zip(rows, is_feature, parts, strict=True):
            embeddings = torch.zeros(len(ids), width, dtype=self.dtype)
            embeddings[chosen] = part
            tokens = {"prompt_token_ids": ids.masked_fill(chosen, 0).tolist()}
            mixed = tokens | {"prompt_embeds": embeddings, "prompt_is_token_ids": (~chosen).tolist()}
            made.append(mixed if chosen.any() else tokens)
        return made


@contextmanager
def _starting() -> Iterator[None]:
    """Turn what vLLM raises for a model that it cannot run into a UserError."""
    try:
        yield
    except (ValueError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"engine: vllm cannot run this model; use engine: transformers. {one_line(error)}") from None


def sampling_options(config: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of vllm.SamplingParams for a model's `GenerationConfig` with `options` above it.

    UserError for options that vLLM does not have.
    """
    config = copy.deepcopy(config)
    unknown = [*config.update(**options), *(name for name in options if name in REFUSED)]
    refused = [name for name in REFUSED if getattr(config, name, None) not in (None, False, 0, 1)]
    if unknown or refused:
        names = ", ".join(sorted({*unknown, *refused}))
        raise UserError(f"engine: vllm does not support {names} of the generation config; use engine: transformers")

    def value(name: str, default: Any) -> Any:
        found = getattr(config, name, None)
        return default if found is None else found

    own = {name: value(name, default) for name, default in OPTIONS.items()}
    ends = own["eos_token_id"]
    made = {
        "max_tokens": own["max_new_tokens"],
        "stop_token_ids": [] if ends is None else ends if isinstance(ends, list) else [ends],
        "repetition_penalty": own["repetition_penalty"],
    }
    return made | ({name: value(name, default) for name, default in SAMPLING.items()} if own["do_sample"] else {})


def update_kept(model: "PreTrainedModel", dtype: torch.dtype) -> float:
    """The share of the updates beside a model's weights that is left where they are merged in `dtype`."""
    pairs = [(0.0, 0.0)]
    for module in model.modules():
        if hasattr(module, "update_down"):
            weight, added = module.weight.detach().float(), torch.as_tensor(updates.update(module))
            there = (weight + added).to(dtype).float() - weight
            pairs.append((float((there * added).sum()), float((added * added).sum())))
    return updates.share(*(sum(column) for column in zip(*pairs, strict=True)))


def _dtype(model: "PreTrainedModel") -> torch.dtype:
    """That of all weights, where it loses no update; else float32."""
    found = {weight.dtype for name, weight in model.named_parameters() if not name.startswith(OURS)}
    (dtype,) = found if len(found) == 1 else (torch.float32,)
    return dtype if update_kept(model, dtype) >= updates.KEPT else torch.float32


def _weights(model: "PreTrainedModel", dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight that vLLM has, with the update beside it, one at a time."""
    for name, weight in model.named_parameters():
        if not name.startswith(OURS):
            added = updates.update(model.get_submodule(name.rpartition(".")[0])) if name.endswith(".weight") else 0.0
            yield name, (weight.detach().float() + added).to(dtype)


def _is_tied(model: "PreTrainedModel") -> bool:
    """Whether the output layer has the weights of the embeddings; an adapter of one of the two unties them."""
    output = model.get_output_embeddings()
    return output is not None and output.weight is model.get_input_embeddings().weight


def _pack_output_layer(llm: Any) -> None:
    """On a CPU vLLM packs the weights of its layers, and does not pack a tied output layer again when it reloads."""
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    llm.apply_model(lambda model: dispatch_cpu_unquantized_gemm(model.lm_head, remove_weight=False))
