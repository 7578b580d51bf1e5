# Supervised fine-tuning: one job a rung; in a ladder each rung goes on from the one before.
SFT = "results/models/{start}/{task}{form}/s{seed}/sft-{recipe}/e{epochs}/checkpoint"


rule sft:
    input:
        unpack(reads(SFT)),
    output:
        directory(SFT),
    log:
        aside("results/logs/models/{start}/{task}{form}/s{seed}/sft-{recipe}/e{epochs}.log"),
    benchmark:
        aside("results/benchmarks/models/{start}/{task}{form}/s{seed}/sft-{recipe}/e{epochs}.tsv")
    wildcard_constraints:
        form="(/(features|both)-[a-z0-9.-]+)?",
    conda:
        "../envs/cisterna.yaml"
    threads: resource("sft", "threads")
    resources:
        **placement("sft"),
        mem_mb=resource("sft", "mem_mb"),
        runtime=resource("sft", "runtime"),
        gpu=resource("sft", "gpu"),
    params:
        launcher=launcher("sft"),
        recipe=recipe_of(SFT),
        data=subpath(input.train, parent=True),
        previous=words("previous"),
        source=words("bank", "encoder"),
        sequences=sequences_of(SFT),
        work=work_of(SFT),
    shell:
        "{params.launcher} sft --parent {input.parent:q} {params.previous:q} --data {params.data:q}"
        " {params.source:q} {params.sequences:q} --recipe {params.recipe:q} --seed {wildcards.seed} --epochs {wildcards.epochs}"
        " --work {params.work:q} --output {output:q} > {log:q} 2>&1"
