# The table of contents of a study: config, rules, targets. What a study consists of is decided in src/cisterna/study.
import gc

from cisterna.runtime import snakefile
from snakemake.utils import min_version

min_version("9.0")
# A dry run of 5,030 jobs (benchmarks/dag_scale.py) takes 7.7 s, and 8.8 s with Python's default: it would look through
# millions of objects that live as long as the run.
gc.set_threshold(200_000, 50, 50)
snakefile.see_changed_s3_folders(workflow)
FORK_SERVER = snakefile.ForkServer()


report: "workflow/report/workflow.rst"


include: "workflow/rules/config.smk"
include: "workflow/rules/inputs.smk"
include: "workflow/rules/resources.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/tokenize.smk"
include: "workflow/rules/features.smk"
include: "workflow/rules/cpt.smk"
include: "workflow/rules/sft.smk"
include: "workflow/rules/rl.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


onstart:
    snakefile.announce(workflow, STUDY, log)
    FORK_SERVER.start(workflow, STUDY)


onsuccess:
    FORK_SERVER.stop()


rule models:
    input:
        made_by("base", "cpt", "sft", "rl"),


rule evaluations:
    input:
        made_by("evaluate"),


# Everything that a study is made of, not the report alone: Snakemake does not make a deleted file again if nothing but
# the finished report needs it.
rule all:
    default_target: True
    input:
        made_by(*set(jobs.KINDS) - {"figures", "answers"}),  # answers are no result
        rules.figures.output,
