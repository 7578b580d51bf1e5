"""The sections `evaluation`, `report` and `resources`: how checkpoints are tested and shown, what jobs ask for."""

from typing import Annotated, Literal, get_args

from cisterna.study.config import types as t

# The kinds of jobs: keys of `resources`.
_Job = Literal["data", "baselines", "tokenize", "encoder", "features", "base", "cpt", "sft", "rl", "evaluate", "report"]
JOBS: tuple[_Job, ...] = get_args(_Job)
JobName = Annotated[_Job, t.Choice]


class _Options(t.Section):
    """What an evaluation is, in a study and by hand."""

    max_new_tokens: t.Count = t.default(96, "most tokens of an output; what is longer is cut, and so not well-formed.")
    batch_size: t.Count = t.default(200, "outputs generated at a time.")
    bootstrap: t.Count = t.default(2000, "resamples behind every 95% interval.")
    samples: t.Natural = t.default(
        0, "further outputs of each example, drawn at random, for accuracy at k samples (`pass@k`, `maj@k`)."
    )
    sample_temperature: t.Positive = t.default(
        1.0, "their temperature; they are drawn from the whole distribution (no top-k, no top-p)."
    )
    shots: t.Natural = t.optional(
        "examples of train before each question, in further outputs of base and CPT models: few-shot answers, strict "
        "and lenient ([how](../docs/how-it-works.md#evaluation)).",
        "0",
    )
    engine: Annotated[Literal["transformers", "vllm"], t.Choice] = t.optional(
        "what generates: `vllm` is faster and is installed by `make vllm`. Greedy outputs are the same from both, "
        "unless rounding decides between two tokens; samples are other draws.",
        "`transformers`",
    )
    calibration: t.Flag = t.default(
        True,
        "whether the probability of each label is measured, after the model's own reasoning: for calibration, AUROC "
        "and AUPRC.",
    )


class Evaluation(_Options):
    """`evaluation`."""

    group: Annotated[Literal["none", "lineage", "backbone"], t.Choice] = t.default(
        "none",
        "which checkpoints answer in one job, which starts the engine once and then swaps weights: those of SFT, and "
        "of RL above it, of one `lineage` (above one base or CPT model, on a task in one form, with one seed), or all "
        "of a `backbone`. Results are the same. [When to group](../docs/how-it-works.md#many-checkpoints-in-one-job).",
    )


class EvaluationOptions(_Options):
    """The options of an evaluation started by hand, which may also have a seed."""

    seed: t.Natural = t.optional("of what is drawn at random.", "0")


class Report(t.Section):
    """`report`."""

    published: t.Path = t.optional(
        "a file of published numbers, which the results page shows beside those of the models with the same names of "
        "task, backbone and recipes ([how](../docs/paper-results.md#beside-your-own-numbers)). "
        "`resources/paper-results.parquet` has those of the paper."
    )


class Resources(t.Section):
    """`resources` of a job."""

    threads: t.Count = t.default(1, "CPU cores.")
    mem_mb: t.Count = t.default(3000, "memory, MB.")
    runtime: t.Count = t.default(60, "minutes.")
    gpu: t.Natural = t.default(0, "GPUs.")
