"""The completions of GRPO from vLLM, in the process that trains (`use_vllm: true`; TRL calls it colocate).

TRL's own engine cannot read feature rows, draws from generators that depend on the batch, so that a resumed run is
another one, and takes weights that were merged in place. `Rollouts` has its interface and takes its place: the engine
is that of evaluation (`cisterna.sequences.vllm_engine`), with float32 weights that have all updates, and each
completion has random numbers of its own.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from trl import import_utils

from cisterna import updates
from cisterna.errors import UserError
from cisterna.sequences import engines
from cisterna.sequences.source import TOKENS, SequenceSource
from cisterna.sequences.vllm_engine import Vllm
from cisterna.study.config.trainer_options import WITH_VLLM

# TRL imports vLLM, 5 seconds, wherever it is installed, for its own engine.
import_utils.is_vllm_available = lambda *_, **__: False

from trl.distributed import DistributedBackend  # noqa: E402
from trl.trainer import grpo_trainer  # noqa: E402

DTYPE = torch.float32  # of the engine: a merge in lower precision would round most of an update away
# The mean absolute difference between the log-probabilities of engine and trainer above which a run fails. In float32
# both compute the same up to the order of sums: 1e-6 was seen. A trainer that computes in bfloat16 rounds every
# activation to 8 bits, which the engine does not: up to 0.04 was seen, with 26 M random weights (docs/how-it-works.md).
LIMIT, LIMIT_16_BITS = 1e-3, 0.1
UPDATE_KEPT = "sampling/update_kept"  # logged for each sync: the share of the update that the engine has
DIFFERENCE = "sampling/sampling_logp_difference/{}"  # as TRL calls it


def check(config: Any) -> dict[str, str] | None:
    """What a run of this GRPOConfig records of its engine; None where transformers generates.

    UserError where vLLM is not installed, and for options that it does not support.
    """
    if not config.use_vllm:
        return None
    version = engines.packages(engines.VLLM)[engines.VLLM]
    for name, (allowed, why) in WITH_VLLM.items():
        if getattr(config, name) not in allowed:
            raise UserError(
                f"recipe: {name}: found {getattr(config, name)!r}; expected {allowed[0]!r} with use_vllm: {why}"
            )
    return {"name": engines.VLLM, "version": version, "dtype": str(DTYPE).removeprefix("torch.")}


class Rollouts:
    """Has the interface of trl.generation.vllm_generation.VLLMGeneration. Its engine begins with `start`."""

    def __init__(self, model: Any, accelerator: Any, **options: Any) -> None:
        self.model, self.accelerator, self._options = model, accelerator, options
        self._asleep = False

    def start(
        self,
        source: SequenceSource,
        length: int,
        end_tokens: Sequence[int],
        seed: int,
        step: Callable[[], int],
    ) -> None:
        """Start the engine. `length` is that of the longest prompt; `step` says how many steps were trained."""
        options, gpu, ranks = self._options, torch.cuda.is_available(), self.accelerator.num_processes
        distributed = DistributedBackend(self.accelerator)
        trained_encoder = source.encoder is not None and source.encoder["reading"].get("trained")
        if distributed.is_zero3 and trained_encoder:
            raise UserError("recipe: use_vllm: not supported with an encoder that is trained under ZeRO-3; use zero2")
        self._sleeps = options["enable_sleep_mode"] and gpu
        if options["enable_sleep_mode"] and not gpu:
            print("vllm_enable_sleep_mode: vLLM cannot sleep on a CPU, so that its engine stays awake", flush=True)
        more = {"gpu_memory_utilization": options["gpu_memory_utilization"]} if gpu else {}
        more |= {"enable_sleep_mode": True} if self._sleeps else {}
        # Each rank has an engine of its own. They start together, because vLLM makes groups of processes.
        more |= {"distributed_executor_backend": "external_launcher"} if ranks > 1 else {}
        self._engine = Vllm(
            self.model,
            source,
            engines.packages(engines.VLLM)[engines.VLLM],
            DTYPE,
            distributed.gather_params,
            max_model_len=length + options["max_completion_length"],
            max_num_seqs=options["max_num_seqs"],
            logprobs_mode="processed_logprobs",  # with the temperature, as the trainer's
            **more,
        )
        self._sampling = {
            "temperature": options["temperature"],
            "max_tokens": options["max_completion_length"],
            "stop_token_ids": list(end_tokens),
        }
        self._seed, self._step, self._calls = seed, step, (-1, 0)
        self._sleep()
        self.accelerator.wait_for_everyone()

    @property
    def update_kept(self) -> float:
        """The share of the updates that the engine had after the last sync."""
        return self._engine.update_kept

    def sync_weights(self) -> None:
        """Bring the trained weights into the engine. UserError if they would lose some of their update."""
        if self._asleep:
            torch.cuda.empty_cache()
            self._engine.llm.wake_up(tags=["weights"])
            self._asleep = False
        self._engine.load(self.model)

    def generate(
        self, prompts: list[list[int]], images: None, num_generations: int, profiler: Any
    ) -> tuple[list[list[int]], list[list[int]], list[list[list[float]]], None]:
        """A completion for each of the prompts of this rank: prompts, completions, log-probabilities.

        The random numbers of a completion depend on the seed of the run, the step, how often completions were drawn in
        this step, and its place among those of all ranks.
        """
        if self._asleep:  # sleeping, it has lost its weights
            self.sync_weights()
        step, calls = self._step(), self._calls
        self._calls = step, calls[1] + 1 if calls[0] == step else 0
        if self._sleeps:
            self._engine.llm.wake_up(tags=["kv_cache"])
        first = self.accelerator.process_index * len(prompts)
        with profiler:
            found = self._engine.sample(prompts, self._sampling, [self._seed, *self._calls], first)
        self._sleep()
        return prompts, [ids for ids, _ in found], [[[log] for log in logs] for _, logs in found], None

    def _sleep(self) -> None:
        if self._sleeps:
            self._engine.llm.sleep(level=2)
        self._asleep = self._sleeps


grpo_trainer.VLLMGeneration = Rollouts  # TRL has no option for an engine of one's own


class Trainer(grpo_trainer.GRPOTrainer):
    """trl.GRPOTrainer for prompts that are token ids, with feature rows of `source`; with `use_vllm` see above."""

    def __init__(self, *arguments: Any, source: SequenceSource = TOKENS, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.use_vllm:
            asked = [data["prompt"] for data in (self.train_dataset, self.eval_dataset) if data is not None]
            length = max(len(prompt) for prompts in asked for prompt in prompts)
            ends, seed = self.eos_token_ids, self.args.seed
            self.vllm_generation.start(source, length, ends, seed, lambda: self.state.global_step)

    def _tokenize_prompts(self, prompts: list) -> tuple[list[list[int]], None, dict]:
        """A feature row has no text."""
        return prompts, None, {}

    def _generate_and_score_completions(self, inputs: list) -> dict[str, Any]:
        """TRL's, then compare the engine with the model that is trained."""
        batch = super()._generate_and_score_completions(inputs)
        if self.use_vllm:
            self._metrics[self._mode][UPDATE_KEPT].append(self.vllm_generation.update_kept)
            self._compare(batch)
        return batch

    @property
    def _mode(self) -> str:
        """What the metrics of a batch are of, as TRL says it."""
        return "train" if self.model.training else "eval"

    def _compare(self, batch: dict[str, Any]) -> None:
        """UserError if engine and model differ in the log-probabilities of the completions, on all ranks together."""
        trained = batch.get("old_per_token_logps")
        if trained is None or _drops_out(self.model):  # the model of the engine drops nothing out
            trained = self._log_probabilities(batch)
        apart = (trained - batch["sampling_per_token_logps"]).abs()[batch["completion_mask"].bool()]
        if not len(apart):  # with mask_truncated_completions
            apart = apart.new_zeros(1)
        facts = torch.stack([apart.sum(), apart.new_tensor(len(apart)), apart.max()])[None]
        total, count, largest = self.accelerator.gather(facts).unbind(dim=1)
        mean, most = float(total.sum() / count.sum()), float(largest.max())
        if not self.vllm_importance_sampling_correction:  # else TRL has logged them
            for name, value in (("mean", mean), ("max", most)):
                self._metrics[self._mode][DIFFERENCE.format(name)].append(value)
        computes_low = self.args.bf16 or self.args.fp16 or any(map(updates.low, self.model.parameters()))
        limit = LIMIT_16_BITS if computes_low else LIMIT
        if not mean <= limit:  # also NaN
            raise UserError(
                f"use_vllm: after step {self.state.global_step} the log-probabilities of engine and trainer differ by "
                f"{mean:.2g} on average (at most {most:.2g}) over {int(count.sum())} tokens; expected at most "
                f"{limit:g}. vLLM does not compute what this model does: use use_vllm: false"
            )

    def _log_probabilities(self, batch: dict[str, Any]) -> torch.Tensor:
        ids, mask = (
            torch.cat([batch[f"prompt_{part}"], batch[f"completion_{part}"]], dim=1) for part in ("ids", "mask")
        )
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            found, _, _ = self._get_per_token_logps_and_entropies(
                self.model, ids, mask, batch["completion_ids"].shape[1], self.args.per_device_train_batch_size
            )
        self.model.train(training)
        return found


def _drops_out(model: nn.Module) -> bool:
    rates = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    return any(rates) or bool(getattr(model.config, "attention_dropout", 0.0))


def measured(history: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a manifest says of the engine, from the log: the smallest `update_kept`, the largest mean difference."""
    names = {"update_kept": (UPDATE_KEPT, min), "logp_difference": (DIFFERENCE.format("mean"), max)}
    found = {key: [entry[name] for entry in history if name in entry] for key, (name, _) in names.items()}
    return {"engine": {key: worst(found[key]) for key, (_, worst) in names.items()}} if found["update_kept"] else {}
