# Every checkpoint on the ID and OOD examples of its task; base and CPT also on held-out corpora.


# Only for a study with `evaluation.group`: the answers of a group of evaluations, which `evaluate` finds in its work
# folder. Its time is that of all of them.
rule answers:
    input:
        unpack(answered),
    output:
        "results/models/{group}/answers.json",
    log:
        aside("results/logs/models/{group}/answers.log"),
    benchmark:
        aside("results/benchmarks/models/{group}/answers.tsv")
    conda:
        "../envs/cisterna.yaml"
    threads: STUDY.resources("evaluate")["threads"]
    resources:
        **resources("evaluate") | {"runtime": runtime_of_group},
    params:
        members=lambda wildcards, input: inputs.pack(inputs.members(STUDY, group_of(wildcards), input)),
        work="results/.work/models/{group}/answers",
        options=inputs.as_json(STUDY.evaluation),
    shell:
        "exec cisterna answers --members {params.members:q} --options {params.options:q} --work {params.work:q}"
        " --output {output:q} > {log:q} 2>&1"


rule evaluate:
    input:
        unpack(evaluated),
    output:
        directory("results/models/{model}/eval"),
    log:
        aside("results/logs/models/{model}/eval.log"),
    benchmark:
        aside("results/benchmarks/models/{model}/eval.tsv")
    conda:
        "../envs/cisterna.yaml"
    threads: STUDY.resources("evaluate")["threads"]
    resources:
        **resources("evaluate"),
    params:
        bank=words("bank"),
        work="results/.work/models/{model}/eval",
        options=inputs.as_json(STUDY.evaluation),
    shell:
        "exec cisterna evaluate --checkpoint {input.checkpoint:q} --data {input.data:q} {params.bank:q}"
        " --options {params.options:q} --work {params.work:q} --output {output:q} > {log:q} 2>&1"


rule perplexity:
    input:
        unpack(measured),
        tokens=lambda wildcards: inputs.tokens(STUDY, wildcards.start.split("/")[0]),
    output:
        "results/models/{start}/perplexity.json",
    log:
        aside("results/logs/models/{start}/perplexity.log"),
    benchmark:
        aside("results/benchmarks/models/{start}/perplexity.tsv")
    conda:
        "../envs/cisterna.yaml"
    threads: STUDY.resources("evaluate")["threads"]
    resources:
        **resources("evaluate"),
    shell:
        "exec cisterna perplexity --checkpoint {input.checkpoint:q} --tokens {input.tokens:q} --output {output:q} > {log:q} 2>&1"
