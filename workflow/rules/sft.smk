# Supervised fine-tuning: one job an epoch checkpoint (rung); in a ladder each rung continues the one before.
SFT = "results/models/{start}/{task}{form}/s{seed}/sft-{recipe}/e{epochs}/checkpoint"


rule sft:
    input:
        unpack(reads(SFT)),
    output:
        directory(SFT),
    log:
        aside("results/logs/models/{start}/{task}{form}/s{seed}/sft-{recipe}/e{epochs}.log"),
    wildcard_constraints:
        form="(/(features|both)-[a-z0-9.-]+)?",
    conda:
        "../envs/cisterna.yaml"
    threads: STUDY.resources("sft")["threads"]
    resources:
        **resources("sft"),
    params:
        launcher=launcher("sft"),
        recipe=recipe_of(SFT),
        inputs=words("previous", "bank", "encoder"),
        sequences=sequences_of(SFT),
        work=work_of(SFT),
    shell:
        "exec {params.launcher} sft --parent {input.parent:q} --data {input.data:q} {params.inputs:q}"
        " {params.sequences:q} --recipe {params.recipe:q} --seed {wildcards.seed} --epochs {wildcards.epochs}"
        " --work {params.work:q} --output {output:q} > {log:q} 2>&1"
