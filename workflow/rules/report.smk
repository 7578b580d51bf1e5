# Tables of all metrics and rewards, then figures and a results page, each with its caption in the Snakemake report.
FIGURES = {
    "sft_accuracy": ("Supervised fine-tuning", "accuracy against epochs"),
    "sft_balanced_accuracy": ("Supervised fine-tuning", "balanced accuracy against epochs"),
    "rl_gain": ("Reinforcement learning", "what RL adds"),
    "rl_reward": ("Reinforcement learning", "reward while training"),
    "generalization_gap": ("Generalization", "ID minus OOD"),
    "label_prior": ("Generalization", "answers against truth"),
    "sequences": ("Sequences", "tokens against features"),
    "sweeps": ("Study", "every sweep, every stage"),
    "lineage": ("Study", "family tree"),
}


rule gather:
    input:
        evaluations,
        [f"results/baselines/{task}" for task in STUDY.tasks],
        [f"results/data/{task}" for task in STUDY.of_terms],
        PERPLEXITIES,
        rewards,
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
        study=lambda wildcards: as_json(config),  # a function: in a plain text {x} would be a wildcard
    shell:
        "cisterna gather --study {params.study:q} --results {params.results:q} --output {params.folder:q} > {log:q} 2>&1"


rule figures:
    input:
        metrics=rules.gather.output.metrics,
        gains=rules.gather.output.gains,
        rewards=rules.gather.output.rewards,
        cells=rules.gather.output.cells,
    output:
        [figure(name, *labels) for name, labels in FIGURES.items()],
        png=[f"{FOLDER}/figures/{name}.png" for name in FIGURES],
        table=report(REPORT, caption="../report/table.rst", category="Study", labels={"figure": "all results"}),
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
        study=lambda wildcards: as_json(config),  # a function: in a plain text {x} would be a wildcard
    shell:
        "cisterna figures --study {params.study:q} --metrics {params.metrics:q} --output {params.folder:q} > {log:q} 2>&1"


# The answers themselves: what a claim compares is paired example by example.
rule findings:
    input:
        answers,
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
        study=lambda wildcards: as_json(config),  # a function: in a plain text {x} would be a wildcard
    shell:
        "cisterna findings --study {params.study:q} --results {params.results:q} --output {params.folder:q} > {log:q} 2>&1"


# What is there of a study of which some jobs failed, and why the rest is not. Without inputs, so that Snakemake asks for
# none, and it has to be told to do it again:
#     snakemake --cores 1 --forceall partial && snakemake --report report.html partial
rule gather_partial:
    output:
        metrics=f"{PARTIAL}/metrics.parquet",
        gains=f"{PARTIAL}/rl_gains.parquet",
        rewards=f"{PARTIAL}/rl_rewards.parquet",
        cells=f"{PARTIAL}/cells.parquet",
    log:
        aside(f"results/logs/studies/{STUDY.name}/gather_partial.log"),
    conda:
        "../envs/cisterna.yaml"
    threads: STUDY.resources("report")["threads"]
    resources:
        **resources("report"),
    params:
        results=subpath(output.metrics, ancestor=4),
        folder=subpath(output.metrics, parent=True),
        study=lambda wildcards: as_json(config),  # a function: in a plain text {x} would be a wildcard
    shell:
        "cisterna gather --partial --study {params.study:q} --results {params.results:q} --output {params.folder:q}"
        " > {log:q} 2>&1"


rule partial:
    input:
        metrics=rules.gather_partial.output.metrics,
        gains=rules.gather_partial.output.gains,
        rewards=rules.gather_partial.output.rewards,
        cells=rules.gather_partial.output.cells,
    output:
        [figure(name, *labels, folder=PARTIAL) for name, labels in FIGURES.items()],
        png=[f"{PARTIAL}/figures/{name}.png" for name in FIGURES],
        table=report(
            f"{PARTIAL}/figures/table.html",
            caption="../report/table.rst",
            category=missing,
            labels={"figure": "what is missing, and all results"},
        ),
    log:
        aside(f"results/logs/studies/{STUDY.name}/partial.log"),
    conda:
        "../envs/cisterna.yaml"
    threads: STUDY.resources("report")["threads"]
    resources:
        **resources("report"),
    params:
        metrics=subpath(input.metrics, parent=True),
        folder=subpath(output.table, parent=True),
        study=lambda wildcards: as_json(config),  # a function: in a plain text {x} would be a wildcard
    shell:
        "cisterna figures --study {params.study:q} --metrics {params.metrics:q} --output {params.folder:q} > {log:q} 2>&1"


onerror:
    given = [shlex.quote(str(path)) for path in workflow.overwrite_configfiles]
    asked = "".join(f" --config {path}" for path in given)
    same = f" --configfile {' '.join(given)}" if given else ""
    print(
        f"Some jobs failed; `cisterna status{asked}` says which, and why. A report of what is there:\n"
        f"    snakemake --cores 1 --forceall partial{same}\n"
        f"    snakemake --report results/report.html partial{same}",
        file=sys.stderr,
    )
