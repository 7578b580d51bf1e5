# Tables of all metrics and rewards, then figures and a results page, each with its caption in the Snakemake report.
FIGURES = {
    "sft_accuracy": ("Supervised fine-tuning", "accuracy against epochs"),
    "sft_balanced_accuracy": ("Supervised fine-tuning", "balanced accuracy against epochs"),
    "rl_gain": ("Reinforcement learning", "what RL adds"),
    "rl_reward": ("Reinforcement learning", "reward while training"),
    "generalization_gap": ("Generalization", "ID minus OOD"),
    "label_prior": ("Generalization", "answers against truth"),
    "sequences": ("Sequences", "tokens against features"),
    "lineage": ("Study", "family tree"),
}


rule gather:
    input:
        evaluations,
        [f"results/baselines/{task}" for task in STUDY.tasks],
        PERPLEXITIES,
        rewards,
    output:
        metrics=f"{FOLDER}/metrics.parquet",
        gains=f"{FOLDER}/rl_gains.parquet",
        rewards=f"{FOLDER}/rl_rewards.parquet",
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
