# Encoders, and the feature banks (embedding caches) of each task's sequences.


rule encoder:
    input:
        shipped_or_own(encoder_files_of),
    output:
        directory("results/encoders/{encoder}/checkpoint"),
    log:
        aside("results/logs/encoders/{encoder}.log"),
    conda:
        "../envs/cisterna.yaml"
    threads: STUDY.resources("encoder")["threads"]
    resources:
        **resources("encoder"),
    params:
        spec=lambda wildcards: inputs.as_json(STUDY.encoder(wildcards.encoder)),
        corpora=lambda wildcards: inputs.as_json(inputs.corpora(STUDY, wildcards.encoder)),
        contents=contents(encoder_files_of),
        work="results/.work/encoders/{encoder}",
    shell:
        "exec cisterna encoder --spec {params.spec:q} --corpora {params.corpora:q} --work {params.work:q}"
        " --output {output:q} > {log:q} 2>&1"


rule features:
    input:
        data="results/data/{task}",
        encoder="results/encoders/{encoder}/checkpoint",
        files=shipped_or_own(feature_files_of),
    output:
        directory("results/features/{encoder}/{task}"),
    log:
        aside("results/logs/features/{encoder}/{task}.log"),
    conda:
        "../envs/cisterna.yaml"
    threads: STUDY.resources("features")["threads"]
    resources:
        **resources("features"),
    params:
        reading=lambda wildcards: inputs.as_json(STUDY.reading(wildcards.encoder)),
        work="results/.work/features/{encoder}/{task}",
    shell:
        "exec cisterna features --encoder {input.encoder:q} --data {input.data:q} --reading {params.reading:q}"
        " --work {params.work:q} --output {output:q} > {log:q} 2>&1"
