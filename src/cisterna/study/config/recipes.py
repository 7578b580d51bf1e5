"""The section `recipes`: Cisterna's own keys of a stage's recipe. The others are options of the library that trains."""

from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from cisterna.study.config import types as t

Epochs = Annotated[list[t.Count], t.Some]
Bridge = Annotated[Literal["linear", "mlp"], t.Choice]
Deepspeed = Annotated[Literal["zero1", "zero2", "zero3", "zero3-offload"], t.Choice]


class Lora(t.Section):
    """`lora`."""

    r: t.Count = t.required("rank. SFT and RL may differ.")
    lora_alpha: t.Count = t.required("scale; the update is weighted by `lora_alpha / r`.")
    lora_dropout: t.BelowOne = t.default(0.0, "dropout before the adapter.")
    target_modules: Annotated[list[t.Text], t.Some, t.ONE_OR_MORE] = t.default(
        "all-linear", "modules that get an adapter, one text or a list."
    )
    modules_to_save: Annotated[list[t.Text], t.Some] | None = t.default(
        None,
        "modules trained in full and stored with the adapter, such as `embed_tokens` and `lm_head` where the tokens "
        "are new.",
    )
    use_rslora: t.Flag = t.default(False, "weight the update by `lora_alpha / sqrt(r)`.")


class Recipe(t.Open):
    """The keys of every recipe."""

    lora: Lora | None = t.default(None, "train a LoRA adapter; null trains all weights.")
    deepspeed: Deepspeed | None = t.default(None, "`src/cisterna/training/deepspeed/NAME.json`.")
    processes: t.Count = t.default(
        1,
        "ranks, started by torchrun. The global batch is `processes` x `per_device_train_batch_size` x "
        "`gradient_accumulation_steps`.",
    )
    nodes: t.Count = t.default(
        1,
        "nodes over which the ranks are spread, the same number on each; a divisor of `processes`. More than 1 needs "
        "Slurm ([docs/cluster.md](../docs/cluster.md)). It changes no result.",
    )
    save_minutes: t.Positive = t.default(10.0, "minutes between saves of the state from which a killed stage resumes.")


class CptRecipe(Recipe):
    """A recipe of continued pre-training."""

    kind: ClassVar = "cpt"
    option_defaults: ClassVar = {"num_train_epochs": 1.0}

    corpora: t.Names = t.required("the corpora it is trained on, mixed block by block.")
    block_size: Annotated[int, Field(ge=2), t.Expected("integer >= 2")] = t.default(
        256, "tokens in a block. At most the `max_position_embeddings` of the backbone."
    )
    seed: t.Natural = t.default(0, "of the order of blocks. A CPT checkpoint is shared by all seeds of the study.")


class SftRecipe(Recipe):
    """A recipe of supervised fine-tuning."""

    kind: ClassVar = "sft"
    option_defaults: ClassVar = {"lr_scheduler_type": "constant"}

    epochs: Epochs = t.required("the rungs, ascending: epoch counts at which a checkpoint is published.")
    fraction: t.ShareOrAll = t.default(1.0, "share of the training examples that is used, from the first on.")
    examples: t.Count | None = t.optional(
        "a number of training examples instead of `fraction`; smaller parts lie in larger ones, for SFT and RL alike."
    )
    bridge: Bridge = t.default(
        "linear", "the bridge that is made for `features` and `both` if the parent has none: one layer, or two."
    )
    attn_implementation: t.Text | None = t.optional(
        "the implementation of attention, by its name in transformers, such as `kernels-community/flash-attn2` on a "
        "GPU; without it the library's default, `sdpa` ([docs/how-it-works.md](../docs/how-it-works.md#packing))."
    )


class Rewards(t.Section):
    """Weights of the rewards. Any other key is PATH.py:FUNCTION."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, t.Weight]

    correct: t.Weight = t.optional("1 if the answer is the right one.")
    concise: t.Weight = t.optional(
        "1 if the answer is right and at most `concise_words` words stand outside the first think block."
    )
    format: t.Weight = t.optional(
        "1 if the output is one think block with text in it, then one answer of the answer space, right or wrong."
    )
    tags: t.Weight = t.optional(
        "a third for each of `<think>`, `</think>` and `Answer: ` that stands once, in this order."
    )
    well_formed: t.Weight = t.optional(
        "1 if the output ends in exactly one answer of the answer space, right or wrong."
    )
    go_f1: t.Weight = t.optional(
        "F1 of the terms after propagation; only for tasks whose answers are sets of GO terms."
    )


class RlRecipe(Recipe):
    """A recipe of reinforcement learning."""

    kind: ClassVar = "rl"
    option_defaults: ClassVar = {"lr_scheduler_type": "constant"}

    epochs: Epochs = t.required("the rungs, ascending: epochs over the prompts.")
    examples: t.Count | None = t.default(None, "prompts that are used, from the first on; null is all of `train`.")
    fraction: t.ShareOrAll = t.optional("share of the prompts that is used, instead of `examples`.")
    rewards: Rewards = t.default(
        lambda: Rewards.model_validate({"correct": 1.0, "well_formed": 0.1}),
        "weights of the rewards; at least one above 0. A key `PATH.py:FUNCTION` is a function of your own that pays in "
        "[0, 1], with the path relative to the clone. What each pays, and how it can be gamed: "
        "[docs/rewards.md](../docs/rewards.md).",
    )
    concise_words: t.Count = t.optional(
        "the most words outside the first think block, the answer among them, for which `concise` pays. The paper: 10.",
        "`20`",
    )
    validation: t.Flag = t.optional(
        "also log the reward on the `validation` split, after every epoch: one completion of each example, drawn as in "
        "training.",
        "`false`",
    )
    bridge: Bridge = t.default("linear", "as for `sft`; made where RL starts from cold.")
    train_bridge: t.Flag = t.default(True, "train the bridge; false leaves that of SFT as it is.")


class Recipes(t.Section):
    """`recipes`."""

    cpt: dict[t.Name, CptRecipe] = t.default({}, "continued pre-training: next-token loss on packed blocks.")
    sft: dict[t.Name, SftRecipe] = t.default({}, "supervised fine-tuning on reasoning and answer.")
    rl: dict[t.Name, RlRecipe] = t.default({}, "GRPO with the task's verifiable rewards.")
