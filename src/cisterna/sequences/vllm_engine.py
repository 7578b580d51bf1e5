"""The engine `vllm`: vLLM in this process, which reads feature rows as embeddings of single positions.

It has weights of its own, with all updates of the lineage and those of an adapter in them. It computes in the dtype of
the model, or in float32 where the model has weights of several dtypes or where a merge would round an update away.
Installed by `make vllm`.
"""

import copy
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from cisterna import updates
from cisterna.constants import ELSE
from cisterna.errors import UserError, one_line
from cisterna.sequences.source import SequenceSource

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
    """See `cisterna.sequences.engines.Engine`. It has no weights until `load`.

    `update_kept` is the smallest share of an update, of one beside the weights or of an adapter, that it has.
    """

    def __init__(
        self,
        model: Any,
        source: SequenceSource,
        version: str,
        dtype: torch.dtype | None = None,
        gather: Callable[[list], Any] = lambda parameters: nullcontext(),
        **options: Any,
    ) -> None:
        """`model` may be a PEFT model. `gather` makes parameters whole that are sharded when weights are loaded, and
        not here. `options` of vllm.LLM go above the usual ones.
        """
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from vllm import LLM

        plain = _plain(model)
        if source.features is not None and getattr(plain.config, "hidden_size_per_layer_input", None):
            raise UserError(f"engine: vllm cannot read features with per-layer embeddings; {ELSE}")
        self.source, self.version, self.gather, self.dtype = source, version, gather, dtype or _dtype(model)
        self.first, self.width = plain.get_input_embeddings().weight.shape
        self.started_for = _shape(model, source)
        on_cpu = {} if torch.cuda.is_available() else {"enforce_eager": True, "kv_cache_memory_bytes": CPU_CACHE}
        usual: dict[str, Any] = {
            "max_model_len": -1,  # what the model has positions for, or else what fits into memory
            "logprobs_mode": "raw_logprobs",
        }
        with tempfile.TemporaryDirectory() as folder, _own_random_numbers():
            config = copy.deepcopy(plain.config)
            config.architectures, config.tie_word_embeddings = [type(plain).__name__], _is_tied(plain)
            config.save_pretrained(folder)
            with _starting():
                self.llm = LLM(
                    model=folder,
                    load_format="dummy",
                    dtype=_name(self.dtype),
                    enable_prompt_embeds=source.features is not None,
                    generation_config="vllm",
                    skip_tokenizer_init=True,
                    disable_log_stats=True,
                    seed=0,
                    **usual | on_cpu | options,
                )
        with _starting():  # on a CPU it refuses some sizes of heads only when it runs
            self._run([{"prompt_token_ids": [0]}], [{"max_tokens": 1}])

    def takes(self, model: Any, source: SequenceSource) -> bool:
        """See `Engine`: models of one config, whose weights it would have in one dtype."""
        return self.started_for == _shape(model, source) and self.dtype == _dtype(model)

    def forget(self) -> None:
        """See `Engine`."""
        vars(self).pop("model", None)

    def close(self) -> None:
        """See `Engine`."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        cleanup_dist_env_and_memory()

    def load(self, model: Any, source: SequenceSource | None = None) -> None:
        """See `Engine`. UserError if less than `updates.KEPT` of an update would be left."""
        self.source = source or self.source
        self.model, kept = _plain(model), _Kept()
        weights = _weights(model, self.dtype, self.gather, kept)
        with _starting():
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        if not torch.cuda.is_available() and _is_tied(self.model):
            _pack_output_layer(self.llm)
        self.llm.reset_prefix_cache()
        self.update_kept = updates.check(kept.share(), "engine: vllm")

    def describe(self) -> dict[str, Any]:
        """See `Engine`."""
        return {
            "name": "vllm",
            "version": self.version,
            "dtype": _name(self.dtype),
            "update_kept": self.update_kept,
        }

    def generate(
        self, prompts: Sequence[list[int]], options: Mapping[str, Any], stream: Sequence[int]
    ) -> list[list[int]]:
        """See `Engine`. Each prompt has random numbers of its own, which do not depend on the others."""
        sampling = sampling_options(self.model.generation_config, options)
        features = self.source.features is not None
        if features and sampling["repetition_penalty"] != 1.0:
            raise UserError("engine: vllm has no repetition_penalty for prompts with features; expected 1.0")
        return [row for row, _ in self.sample(prompts, sampling, stream, 0)]

    def sample(
        self, prompts: Sequence[list[int]], sampling: Mapping[str, Any], stream: Sequence[int], first: int
    ) -> list[tuple[list[int], list[float]]]:
        """The token ids that the model writes after each prompt, with the log-probability of each.

        `sampling` are options of vllm.SamplingParams. The random numbers of a prompt depend on `stream` and its number,
        which begins at `first`.
        """
        seeds = (np.random.SeedSequence([*stream, first + at]).generate_state(1)[0] for at in range(len(prompts)))
        return self._run(self._prompts(prompts), [{**sampling, "seed": int(seed)} for seed in seeds])

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
        """Token ids after each prompt, and the log-probability of each (of which distribution: `logprobs_mode`)."""
        from vllm import SamplingParams

        parameters = [SamplingParams(**{"temperature": 0.0} | own, logprobs=0, detokenize=False) for own in options]
        with _own_random_numbers():
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
        features = self.source.features
        if features is None:
            return [{"prompt_token_ids": ids} for ids in prompts]
        rows = [torch.tensor(ids) for ids in prompts]
        is_feature = [ids >= self.first for ids in rows]
        index = torch.cat([ids[chosen] - self.first for ids, chosen in zip(rows, is_feature, strict=True)])
        different, places = index.unique(return_inverse=True)
        bridge: Any = self.model.bridge
        bridge = bridge.modules_to_save["default"] if hasattr(bridge, "modules_to_save") else bridge
        projected = torch.zeros(0, self.width, dtype=self.dtype)
        with torch.no_grad(), self.gather(list(bridge.parameters())):
            if len(index):  # `forward` itself, because the hooks of DeepSpeed would gather and release the parameters
                projected = bridge.forward(features.rows(different).to(bridge.weight.device)).to("cpu", self.dtype)
        parts = projected[places].split([int(chosen.sum()) for chosen in is_feature])
        made: list[Any] = []
        for ids, chosen, part in zip(rows, is_feature, parts, strict=True):
            embeddings = torch.zeros(len(ids), self.width, dtype=self.dtype)
            embeddings[chosen] = part
            tokens = {"prompt_token_ids": ids.masked_fill(chosen, 0).tolist()}
            mixed = tokens | {"prompt_embeds": embeddings, "prompt_is_token_ids": (~chosen).tolist()}
            made.append(mixed if chosen.any() else tokens)
        return made


def _own_random_numbers() -> Any:
    """A block in which vLLM may set the seeds of torch: nothing else that draws random numbers may depend on that."""
    return torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else [])


@contextmanager
def _starting() -> Iterator[None]:
    """Turn what vLLM raises where it does not start into a UserError, with its error as the cause."""
    try:
        yield
    except (ValueError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"engine: vllm does not start with this model; {ELSE}. {one_line(error)}") from error


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


class _Kept:
    """How much of the updates is left after a cast: those beside the weights, and those of an adapter."""

    def __init__(self) -> None:
        self.pairs: dict[str, tuple[float, float]] = {}

    def add(self, name: str, update: torch.Tensor, error: torch.Tensor) -> None:
        """One of the updates of a weight, and what all of them together have lost."""
        there, trained = self.pairs.get(name, (0.0, 0.0))
        own = float((update * update).sum())
        self.pairs[name] = there + own + float((update * error).sum()), trained + own

    def share(self) -> float:
        """The smallest share."""
        return min((updates.share(*pair) for pair in self.pairs.values()), default=1.0)


def _weights(
    model: Any, dtype: torch.dtype, gather: Callable[[list], Any], kept: _Kept
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight that vLLM has, with its updates, one at a time; adds to `kept` what is left of them."""
    for name, weight, added in updates.parameters(model, gather):
        if name.startswith(OURS):
            continue
        if not added:
            yield name, weight.to(dtype, copy=True)  # vLLM may keep it until it has the rest of a layer
            continue
        exact = weight.double() + sum(one.double() for one in added.values())
        whole = exact.to(dtype)
        for which, one in added.items():
            kept.add(which, one.double(), whole.double() - exact)
        yield name, whole


def update_kept(model: Any, dtype: torch.dtype) -> float:
    """The smallest share of an update, of those beside weights or of an adapter, that is left where they are merged."""
    kept = _Kept()
    for _ in _weights(model, dtype, lambda parameters: nullcontext(), kept):
        pass
    return kept.share()


def _shape(model: Any, source: SequenceSource) -> tuple[Any, ...]:
    """What an engine is started for, beside its dtype: it cannot take a model for which this is different."""
    plain = _plain(model)
    config = {key: value for key, value in plain.config.to_dict().items() if key != "_name_or_path"}
    return type(plain), config, _is_tied(plain), source.features is not None


def _dtype(model: Any) -> torch.dtype:
    """That of all weights, where it loses no update; else float32."""
    found = {weight.dtype for name, weight in model.named_parameters() if not name.startswith(OURS)}
    (dtype,) = found if len(found) == 1 else (torch.float32,)
    low = dtype.itemsize < torch.float32.itemsize
    return torch.float32 if low and update_kept(model, dtype) < updates.KEPT else dtype


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _plain(model: Any) -> Any:
    """The model without the adapter that PEFT has put on it."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def _is_tied(model: Any) -> bool:
    """Whether the output layer has the weights of the embeddings; an adapter of one of the two unties them."""
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    adapted = any(hasattr(end, "base_layer") for end in ends)
    return ends[1] is not None and not adapted and ends[1].weight is ends[0].weight


def _pack_output_layer(llm: Any) -> None:
    """On a CPU vLLM packs the weights of its layers, and does not pack a tied output layer again when it reloads."""
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    llm.apply_model(lambda model: dispatch_cpu_unquantized_gemm(model.lm_head, remove_weight=False))
