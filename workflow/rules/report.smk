# Tables of all metrics and rewards, then figures and a results page, each with its caption in the Snakemake report.


rule gather:
    input:
        [f"results/{folder}/metrics.json" for folder, _, _ in STUDY.evaluations()],
        expand("results/baselines/{task}/metrics.json", task=STUDY.tasks),
        PERPLEXITIES,
        [checkpoint(model.path) for model in STUDY.models if model.kind == "rl"],
    output:
        metrics=f"{FOLDER}/metrics.parquet",
        gains=f"{FOLDER}/rl_gains.parquet",
        rewards=f"{FOLDER}/rl_rewards.parquet",
    log:
        f"results/logs/studies/{STUDY.name}/gather.log",
    benchmark:
        f"results/benchmarks/studies/{STUDY.name}/gather.tsv"
    conda:
        "../envs/cisterna.yaml"
    threads: resource("report", "threads")
    resources:
        mem_mb=resource("report", "mem_mb"),
        runtime=resource("report", "runtime"),
        gpu=resource("report", "gpu"),
    params:
        folder=subpath(output.metrics, parent=True),
        study=as_json(config),
    shell:
        "cisterna gather --study {params.study:q} --output {params.folder:q} > {log:q} 2>&1"


rule figures:
    input:
        metrics=rules.gather.output.metrics,
        gains=rules.gather.output.gains,
        rewards=rules.gather.output.rewards,
    output:
        figure("sft_accuracy", "Supervised fine-tuning", figure="accuracy against epochs"),
        figure("sft_balanced_accuracy", "Supervised fine-tuning", figure="balanced accuracy against epochs"),
        figure("rl_gain", "Reinforcement learning", figure="what RL adds"),
        figure("rl_reward", "Reinforcement learning", figure="reward while training"),
        figure("generalization_gap", "Generalization", figure="ID minus OOD"),
        figure("label_prior", "Generalization", figure="answers against truth"),
        figure("sequences", "Sequences", figure="tokens against features"),
        figure("lineage", "Study", figure="family tree"),
        table=report(REPORT, caption="../report/table.rst", category="Study", labels={"figure": "all results"}),
    log:
        f"results/logs/studies/{STUDY.name}/figures.log",
    benchmark:
        f"results/benchmarks/studies/{STUDY.name}/figures.tsv"
    conda:
        "../envs/cisterna.yaml"
    threads: resource("report", "threads")
    resources:
        mem_mb=resource("report", "mem_mb"),
        runtime=resource("report", "runtime"),
        gpu=resource("report", "gpu"),
    params:
        metrics=subpath(input.metrics, parent=True),
        folder=subpath(output.table, parent=True),
        study=as_json(config),
    shell:
        "cisterna figures --study {params.study:q} --metrics {params.metrics:q} --output {params.folder:q} > {log:q} 2>&1"
