# The table of contents of a study: config, rules, targets. What a study consists of is decided in src/cisterna/study.py.
from snakemake.utils import min_version

min_version("9.0")

# A study given by --configfile stands alone; values given without a study change the default one.
if "study" not in config:

    report: "workflow/report/workflow.rst"


include: "workflow/rules/config.smk"
include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/tokenize.smk"
include: "workflow/rules/cpt.smk"
include: "workflow/rules/sft.smk"
include: "workflow/rules/rl.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        REPORT,
        PERPLEXITIES,


rule models:
    input:
        [checkpoint(model.path) for model in STUDY.models],


rule evaluations:
    input:
        [f"results/{folder}/metrics.json" for folder, _, _ in STUDY.evaluations()],
