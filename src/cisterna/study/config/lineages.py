"""The section `lineages`: which backbones, tasks and recipes are combined."""

from typing import Annotated, Literal

from pydantic import Field

from cisterna.study.config import types as t

Rung = Annotated[int | Literal["cold"], t.Expected("rung or `cold`")]
Pair = Annotated[list[t.Natural], Field(min_length=2, max_length=2)]


class Start(t.Section):
    """An entry of `rl`."""

    recipe: t.Text = t.required("the RL recipe.")
    from_: Annotated[list[Rung], t.Some, t.UNIQUE] = t.optional(
        "rungs of the SFT recipes to start from, e.g. `[1, 8]`; `cold` starts from the base or CPT model.",
        "required without `budget`",
        alias="from",
    )


class Budget(t.Section):
    """`budget`."""

    epochs: t.Count = t.optional("the budget in epochs.", "this or `examples`")
    examples: t.Count = t.optional(
        "the budget in examples seen: epochs x `examples` of a recipe. The recipes of the entry that spend a number of "
        "the split are taken.",
        "this or `epochs`",
    )
    split: Annotated[list[Pair], t.Some, t.UNIQUE] = t.required(
        "pairs `[SFT, RL]`, each adding up to the budget and each number of epochs a rung of its recipe, or 0 for no "
        "such stage. In a ladder the rungs below are trained and evaluated too."
    )


class Lineage(t.Section):
    """A lineage."""

    sweep: t.PlainName = t.optional(
        "what the entry is for (`sft-epochs`); `cisterna plan` counts models by it. It changes no result."
    )
    tasks: t.Selection = t.default("all", "")
    sequences: Annotated[list[t.Form], t.Some, t.UNIQUE, t.ALL_OR] = t.default(
        "all", "which [forms](#encoders) of the tasks; each must be one that every task of the entry lists."
    )
    backbones: t.Selection = t.default("all", "")
    seeds: Annotated[list[t.Natural], t.Some, t.UNIQUE] = t.optional(
        "seeds of its SFT and RL stages, where they are not those of the study.", "those of the study"
    )
    cpt: t.Names = t.default(["none"], "CPT recipes; `none` starts from the base model.")
    sft: Annotated[list[t.Text], t.UNIQUE] = t.default([], "SFT recipes.")
    rl: list[Start] = t.default([], "RL recipes and where they start.")
    budget: Budget = t.optional("a fixed number of epochs or of examples, divided between SFT and RL. Replaces `from`.")
