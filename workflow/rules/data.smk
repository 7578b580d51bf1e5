# Splits of each task with their leakage audit, and the baselines on them.


rule data:
    input:
        given(table_of),
    output:
        train="results/data/{task}/train.parquet",
        validation="results/data/{task}/validation.parquet",
        id="results/data/{task}/id.parquet",
        ood="results/data/{task}/ood.parquet",
        card="results/data/{task}/card.json",
    log:
        aside("results/logs/data/{task}.log"),
    benchmark:
        aside("results/benchmarks/data/{task}.tsv")
    conda:
        "../envs/cisterna.yaml"
    threads: resource("data", "threads")
    resources:
        mem_mb=resource("data", "mem_mb"),
        runtime=resource("data", "runtime"),
        gpu=resource("data", "gpu"),
    params:
        folder=subpath(output.card, parent=True),
        spec=lambda wildcards: as_json(STUDY.spec(wildcards.task)),
        seed=lambda wildcards: STUDY.config["tasks"][wildcards.task]["seed"],
        contents=contents(table_of),
    shell:
        "cisterna data --task {wildcards.task:q} --spec {params.spec:q} --seed {params.seed}"
        " --output {params.folder:q} > {log:q} 2>&1"


rule audit:
    input:
        rules.data.output,
    output:
        "results/data/{task}/audit.json",
    log:
        aside("results/logs/audit/{task}.log"),
    benchmark:
        aside("results/benchmarks/audit/{task}.tsv")
    conda:
        "../envs/cisterna.yaml"
    threads: resource("data", "threads")
    resources:
        mem_mb=resource("data", "mem_mb"),
        runtime=resource("data", "runtime"),
        gpu=resource("data", "gpu"),
    params:
        folder=subpath(output[0], parent=True),
    shell:
        "cisterna audit {params.folder:q} --output {output:q} > {log:q} 2>&1"


rule baselines:
    input:
        rules.data.output,
        audit=rules.audit.output,
    output:
        id="results/baselines/{task}/id.parquet",
        ood="results/baselines/{task}/ood.parquet",
        metrics="results/baselines/{task}/metrics.json",
        choices="results/baselines/{task}/choices.json",
    log:
        aside("results/logs/baselines/{task}.log"),
    benchmark:
        aside("results/benchmarks/baselines/{task}.tsv")
    conda:
        "../envs/cisterna.yaml"
    threads: resource("baselines", "threads")
    resources:
        mem_mb=resource("baselines", "mem_mb"),
        runtime=resource("baselines", "runtime"),
        gpu=resource("baselines", "gpu"),
    params:
        data=subpath(input[0], parent=True),
        folder=subpath(output.metrics, parent=True),
        options=as_json(STUDY.config["evaluation"]),
    shell:
        "cisterna baselines --data {params.data:q} --options {params.options:q} --output {params.folder:q} > {log:q} 2>&1"
