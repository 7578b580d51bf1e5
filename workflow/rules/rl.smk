# Reinforcement learning, warm (from an SFT rung) or cold (from a base or CPT checkpoint).
RL = "results/models/{origin}/rl-{recipe}/e{epochs}/checkpoint"


rule rl:
    input:
        unpack(reads(RL)),
    output:
        directory(RL),
    log:
        aside("results/logs/models/{origin}/rl-{recipe}/e{epochs}.log"),
    benchmark:
        aside("results/benchmarks/models/{origin}/rl-{recipe}/e{epochs}.tsv")
    wildcard_constraints:
        origin=r"[a-z0-9.-]+/(base|cpt-[a-z0-9.-]+)/[a-z0-9.-]+(/(features|both)-[a-z0-9.-]+)?/s\d+(/sft-[a-z0-9.-]+/e\d+)?",
    conda:
        "../envs/cisterna.yaml"
    threads: resource("rl", "threads")
    resources:
        **placement("rl"),
        mem_mb=resource("rl", "mem_mb"),
        runtime=resource("rl", "runtime"),
        gpu=resource("rl", "gpu"),
    params:
        launcher=launcher("rl"),
        recipe=recipe_of(RL),
        data=subpath(input.train, parent=True),
        seed=lambda wildcards: model_of(wildcards, RL).seed,
        previous=words("previous"),
        source=words("bank", "encoder"),
        sequences=sequences_of(RL),
        work=work_of(RL),
    shell:
        "{params.launcher} rl --parent {input.parent:q} {params.previous:q} --data {params.data:q}"
        " {params.source:q} {params.sequences:q} --recipe {params.recipe:q} --seed {params.seed} --epochs {wildcards.epochs}"
        " --work {params.work:q} --output {output:q} > {log:q} 2>&1"
