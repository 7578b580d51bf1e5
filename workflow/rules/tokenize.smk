# The base checkpoint of each backbone, with its tokenizer, and the corpora as streams of tokens.


rule base:
    input:
        shipped_or_own(texts_of),
    output:
        directory("results/models/{backbone}/base/checkpoint"),
    log:
        aside("results/logs/models/{backbone}/base.log"),
    priority: 1  # most of a study waits for CPT
    conda:
        "../envs/cisterna.yaml"
    threads: STUDY.resources("base")["threads"]
    resources:
        **resources("base"),
    params:
        spec=lambda wildcards: inputs.as_json(STUDY.config["backbones"][wildcards.backbone]),
        contents=contents(texts_of),
    shell:
        "cisterna base --spec {params.spec:q} --output {output:q} > {log:q} 2>&1"


rule tokenize:
    input:
        corpus=shipped_or_own(corpus_of),
        base="results/models/{backbone}/base/checkpoint",
    output:
        directory("results/tokens/{backbone}/{corpus}"),
    log:
        aside("results/logs/tokens/{backbone}/{corpus}.log"),
    benchmark:
        aside("results/benchmarks/tokens/{backbone}/{corpus}.tsv")
    priority: 1  # most of a study waits for CPT
    conda:
        "../envs/cisterna.yaml"
    threads: STUDY.resources("tokenize")["threads"]
    resources:
        **resources("tokenize"),
    params:
        modality=lambda wildcards: STUDY.config["corpora"][wildcards.corpus]["modality"],
        options=lambda wildcards: inputs.as_json(STUDY.documents(wildcards.corpus)),
        contents=contents(corpus_of),
    shell:
        "cisterna tokenize --corpus {input.corpus:q} --modality {params.modality:q} --options {params.options:q}"
        " --base {input.base:q} --output {output:q} > {log:q} 2>&1"
