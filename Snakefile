# The table of contents of a study: config, rules, targets. What a study consists of is decided in src/cisterna/study.
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


# Long lists are functions, so that Snakemake looks at their files only where they are asked for.
rule models:
    input:
        models,


rule evaluations:
    input:
        evaluations,


# All that a study is made of, not the report alone: Snakemake leaves a deleted file be where only the report needs it.
rule all:
    default_target: True
    input:
        [f"results/data/{task}" for task in STUDY.tasks],
        [f"results/baselines/{task}" for task in STUDY.tasks],
        [f"results/tokens/{backbone}/{corpus}" for backbone, corpus in STUDY.tokenized],
        [f"results/encoders/{encoder}/checkpoint" for encoder in STUDY.encoders],
        [f"results/features/{encoder}/{task}" for encoder, task in STUDY.banks],
        models,
        evaluations,
        PERPLEXITIES,
        rules.gather.output,
        rules.figures.output,
        rules.findings.output,
