# Tables of all metrics and rewards, then figures and a results page, each with its caption in the Snakemake report.
import shlex

from cisterna.report import FIGURES


rule gather:
    input:
        made_by("evaluate"),
        [f"results/baselines/{task}" for task in STUDY.tasks],
        [f"results/data/{task}" for task in STUDY.of_terms],
        made_by("perplexity"),
        if_stored(made_by("rl", "base")),  # their logs of rewards, and what weights were stored in
    output:
        metrics=f"{FOLDER}/metrics.parquet",
        gains=f"{FOLDER}/rl_gains.parquet",
        rewards=f"{FOLDER}/rl_rewards.parquet",
        cells=f"{FOLDER}/cells.parquet",
    log:
        aside(f"results/logs/studies/{STUDY.name}/gather.log"),
    benchmark:
        aside(f"results/benchmarks/studies/{STUDY.name}/gather.tsv")
    conda:
        "../envs/cisterna.yaml"
    threads: STUDY.resources("report")["threads"]
    resources:
        **resources("report"),
    params:
        results=subpath(output.metrics, ancestor=3),
        folder=subpath(output.metrics, parent=True),
        study=lambda wildcards: inputs.pack(config),  # a function: in a plain text {x} would be a wildcard
    shell:
        "cisterna gather --config {params.study:q} --results {params.results:q} --output {params.folder:q} > {log:q} 2>&1"


rule figures:
    input:
        shipped_or_own(lambda wildcards: STUDY.published),
        metrics=rules.gather.output.metrics,
        gains=rules.gather.output.gains,
        rewards=rules.gather.output.rewards,
        cells=rules.gather.output.cells,
    output:
        [figure(name, *labels) for name, labels in FIGURES.items()],
        png=[f"{FOLDER}/figures/{name}.png" for name in FIGURES],
        table=report(
            f"{FOLDER}/figures/table.html",
            caption="../report/table.rst",
            category="Study",
            labels={"figure": "all results"},
        ),
    log:
        aside(f"results/logs/studies/{STUDY.name}/figures.log"),
    benchmark:
        aside(f"results/benchmarks/studies/{STUDY.name}/figures.tsv")
    conda:
        "../envs/cisterna.yaml"
    threads: STUDY.resources("report")["threads"]
    resources:
        **resources("report"),
    params:
        metrics=subpath(input.metrics, parent=True),
        folder=subpath(output.table, parent=True),
        study=lambda wildcards: inputs.pack(config),
    shell:
        "cisterna figures --config {params.study:q} --metrics {params.metrics:q} --output {params.folder:q} > {log:q} 2>&1"


# The answers themselves: what a claim compares is paired example by example.
rule findings:
    input:
        if_stored(made_by("evaluate", "data")),
        metrics=rules.gather.output.metrics,
    output:
        findings=f"{FOLDER}/findings.json",
        page=report(
            f"{FOLDER}/findings.html",
            caption="../report/findings.rst",
            category="Findings",
            labels={"figure": "the paper's claims"},
        ),
    log:
        aside(f"results/logs/studies/{STUDY.name}/findings.log"),
    benchmark:
        aside(f"results/benchmarks/studies/{STUDY.name}/findings.tsv")
    conda:
        "../envs/cisterna.yaml"
    threads: STUDY.resources("report")["threads"]
    resources:
        **resources("report"),
    params:
        results=subpath(output.findings, ancestor=3),
        folder=subpath(output.findings, parent=True),
        study=lambda wildcards: inputs.pack(config),
    shell:
        "cisterna findings --config {params.study:q} --results {params.results:q} --output {params.folder:q} > {log:q} 2>&1"


# Of the evaluations alone: it is not made again for a new baseline, nor for another figure.
rule quotes:
    input:
        made_by("evaluate"),
        [f"results/data/{task}" for task in STUDY.of_terms],
    output:
        page=report(
            f"{FOLDER}/quotes.html",
            caption="../report/quotes.rst",
            category="Study",
            labels={"figure": "what the models say"},
        ),
    log:
        aside(f"results/logs/studies/{STUDY.name}/quotes.log"),
    benchmark:
        aside(f"results/benchmarks/studies/{STUDY.name}/quotes.tsv")
    conda:
        "../envs/cisterna.yaml"
    threads: STUDY.resources("report")["threads"]
    resources:
        **resources("report"),
    params:
        results=subpath(output.page, ancestor=3),
        folder=subpath(output.page, parent=True),
        study=lambda wildcards: inputs.pack(config),
    shell:
        "cisterna quotes --config {params.study:q} --results {params.results:q} --output {params.folder:q} > {log:q} 2>&1"


# The report of a study some of whose jobs failed. `cisterna report --partial` writes it. The rule is for
# `snakemake --report`, which takes only files that a rule makes. It has no inputs, so that it needs no other job.
rule partial:
    output:
        [figure(name, *labels, folder=f"{FOLDER}/partial") for name, labels in FIGURES.items()],
        table=report(
            f"{FOLDER}/partial/figures/table.html",
            caption="../report/table.rst",
            category=lambda wildcards: snakefile.count_missing(Path(FOLDER) / "partial" / "cells.parquet"),
            labels={"figure": "what is missing, and all results"},
        ),
        quotes=report(
            f"{FOLDER}/partial/quotes.html",
            caption="../report/quotes.rst",
            category="Study",
            labels={"figure": "what the models say"},
        ),
    log:
        aside(f"results/logs/studies/{STUDY.name}/partial.log"),
    conda:
        "../envs/cisterna.yaml"
    threads: STUDY.resources("report")["threads"]
    resources:
        **resources("report"),
    params:
        study=lambda wildcards: inputs.pack(config),
    shell:
        "cisterna report --partial --config {params.study:q} > {log:q} 2>&1"


onerror:
    FORK_SERVER.stop()
    names = " ".join(shlex.quote(str(path)) for path in workflow.overwrite_configfiles)
    study = f" --config {names}" if names else ""
    same = f" --configfile {names}" if names else ""
    logger.error(
        f"Some jobs failed; `cisterna status{study}` says which, and why. A report of the finished ones:\n"
        f"    cisterna report --partial{study}\n"
        f"    snakemake --report results/report.html partial{same}",
        extra={"advice": True},  # `--logger cisterna` gives advice of its own
    )
