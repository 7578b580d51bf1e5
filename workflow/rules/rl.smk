# Reinforcement learning, from an SFT checkpoint or (cold start, also called RL-zero) from a base or CPT checkpoint.
RL = "results/models/{origin}/rl-{recipe}/e{epochs}/checkpoint"


rule rl:
    input:
        unpack(reads(RL)),
        own=shipped_or_own(rewards_of),
    output:
        directory(RL),
    log:
        aside("results/logs/models/{origin}/rl-{recipe}/e{epochs}.log"),
    wildcard_constraints:
        origin=r"[a-z0-9.-]+/(base|cpt-[a-z0-9.-]+)/[a-z0-9.-]+(/(features|both)-[a-z0-9.-]+)?/s\d+(/sft-[a-z0-9.-]+/e\d+)?",
    conda:
        "../envs/cisterna.yaml"
    threads: STUDY.resources("rl")["threads"]
    resources:
        **resources("rl"),
    params:
        launcher=launcher("rl"),
        recipe=recipe_of(RL),
        seed=lambda wildcards: model_of(wildcards, RL).seed,
        inputs=words("previous", "bank", "encoder"),
        sequences=sequences_of(RL),
        work=work_of(RL),
        contents=contents(rewards_of),
    shell:
        "exec {params.launcher} rl --parent {input.parent:q} --data {input.data:q} {params.inputs:q}"
        " {params.sequences:q} --recipe {params.recipe:q} --seed {params.seed} --epochs {wildcards.epochs}"
        " --work {params.work:q} --output {output:q} > {log:q} 2>&1"
