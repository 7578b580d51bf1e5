# Splits of each task, audited for leakage before they are written, and the baselines on them.


rule data:
    input:
        shipped_or_own(table_of),
    output:
        directory("results/data/{task}"),
    log:
        aside("results/logs/data/{task}.log"),
    benchmark:
        aside("results/benchmarks/data/{task}.tsv")
    conda:
        "../envs/cisterna.yaml"
    threads: STUDY.resources("data")["threads"]
    resources:
        **resources("data"),
    params:
        spec=lambda wildcards: inputs.as_json(STUDY.spec(wildcards.task)),
        seed=lambda wildcards: STUDY.config["tasks"][wildcards.task]["seed"],
        contents=contents(table_of),
    shell:
        "cisterna data --task {wildcards.task:q} --spec {params.spec:q} --seed {params.seed} --output {output:q} > {log:q} 2>&1"


rule baselines:
    input:
        "results/data/{task}",
    output:
        directory("results/baselines/{task}"),
    log:
        aside("results/logs/baselines/{task}.log"),
    benchmark:
        aside("results/benchmarks/baselines/{task}.tsv")
    conda:
        "../envs/cisterna.yaml"
    threads: STUDY.resources("baselines")["threads"]
    resources:
        **resources("baselines"),
    params:
        options=inputs.as_json(STUDY.evaluation),
    shell:
        "cisterna baselines --data {input:q} --options {params.options:q} --output {output:q} > {log:q} 2>&1"
