"""Reinforcement learning: GRPO with the task's verifiable rewards.

    cisterna rl --parent .../sft-brief/e2/checkpoint --data results/data/splice-donor \
        --output .../e2/rl-grpo/e1/checkpoint --work results/.work/... --recipe '{...}' --seed 0 --epochs 1

The trainer is `trl.GRPOTrainer`, its options the recipe's. The parent's adapters are merged before the run and the RL
adapter starts anew, so its rank is free of the SFT rank (asymmetric capacity). The run fails, with the numbers, if no
group of completions ever had reward variance: such a run has no gradient, and its checkpoint would be the parent.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from cisterna import files, models, rewards, tokenizer
from cisterna.errors import UserError
from cisterna.training.run import Job, Setup, execute


def train(job: Job, data: Path) -> None:
    """Train on the prompts of `data`/train.parquet (the first `examples` of them) and publish."""

    def build(options: dict[str, Any]) -> Setup:
        tokens = tokenizer.load(models.base_of(job.parent))
        frame = pd.read_parquet(data / "train.parquet").head(job.recipe.get("examples"))
        functions, weights = rewards.trl_functions(
            job.recipe.get("rewards", {"correct": 1.0}), files.read_json(data / "card.json")["labels"]
        )
        prompts = [tokenizer.prompt_text(tokens, prompt) for prompt in frame["prompt"]]
        trainer = GRPOTrainer(
            model=models.compose(job.parent).train(),
            args=GRPOConfig(**options, reward_weights=weights),
            reward_funcs=functions,
            train_dataset=Dataset.from_dict({"prompt": prompts, "answer": list(frame["answer"])}),
            processing_class=tokens,
            peft_config=models.lora_config(job.recipe["lora"]) if job.recipe.get("lora") else None,
            callbacks=[EffectiveUpdates()],
        )
        return Setup(
            trainer=trainer, data={"train.parquet": files.sha256(data / "train.parquet")}, tokens_per_epoch=None
        )

    execute(job, build)


class EffectiveUpdates(TrainerCallback):
    """Ends the run with an error if no group of completions had reward variance in any logged step."""

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        logs = [entry for entry in state.log_history if "frac_reward_zero_std" in entry]
        if logs and all(entry["frac_reward_zero_std"] == 1.0 for entry in logs):
            raise UserError(
                f"reinforcement learning had nothing to learn from: in all {len(logs)} logged steps no group of "
                f"{args.num_generations} completions had reward variance (mean reward {logs[0]['reward']:.3g} first, "
                f"{logs[-1]['reward']:.3g} last); nothing is published. Start from a checkpoint that solves some of "
                "the examples, raise num_generations or temperature, or check the rewards"
            )
