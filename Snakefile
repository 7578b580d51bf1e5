# The table of contents of a study: config, rules, targets. What a study consists of is decided in src/cisterna/study.py.
from snakemake.utils import min_version

min_version("9.0")


report: "workflow/report/workflow.rst"


include: "workflow/rules/config.smk"
include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/tokenize.smk"
include: "workflow/rules/features.smk"
include: "workflow/rules/cpt.smk"
include: "workflow/rules/sft.smk"
include: "workflow/rules/rl.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


rule models:
    input:
        [checkpoint(model.path) for model in STUDY.models],


rule evaluations:
    input:
        [f"results/{folder}/{name}" for folder, _, _ in STUDY.evaluations() for name in EVALUATION],


# All that a study is made of, not the report alone: Snakemake leaves a deleted file be where only the report needs it.
rule all:
    default_target: True
    input:
        [f"results/data/{task}/{name}" for task in STUDY.tasks for name in DATA],
        [f"results/baselines/{task}/{name}" for task in STUDY.tasks for name in BASELINES],
        [f"results/tokens/{backbone}/{corpus}" for backbone, corpus in STUDY.tokenized],
        [f"results/encoders/{encoder}/checkpoint" for encoder in STUDY.encoders],
        [f"results/features/{encoder}/{task}" for encoder, task in STUDY.banks],
        rules.models.input,
        rules.evaluations.input,
        PERPLEXITIES,
        rules.gather.output,
        rules.figures.output,
