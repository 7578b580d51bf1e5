# Continued pre-training on packed blocks of the corpora.
CPT = "results/models/{backbone}/cpt-{recipe}/checkpoint"


rule cpt:
    input:
        parent="results/models/{backbone}/base/checkpoint",
        tokens=lambda wildcards: expand(
            "results/tokens/{backbone}/{corpus}",
            backbone=wildcards.backbone,
            corpus=STUDY.recipe("cpt", wildcards.recipe)["corpora"],
        ),
    output:
        directory(CPT),
    log:
        aside("results/logs/models/{backbone}/cpt-{recipe}.log"),
    priority: 1  # most of a study waits for CPT
    conda:
        "../envs/cisterna.yaml"
    threads: STUDY.resources("cpt")["threads"]
    resources:
        **resources("cpt"),
    params:
        launcher=launcher("cpt"),
        recipe=recipe_of(CPT),
        seed=lambda wildcards: STUDY.recipe("cpt", wildcards.recipe)["seed"],
        epochs=lambda wildcards: STUDY.recipe("cpt", wildcards.recipe)["num_train_epochs"],
        work="results/.work/models/{backbone}/cpt-{recipe}",
    shell:
        "exec {params.launcher} cpt --parent {input.parent:q} --tokens {input.tokens:q} --recipe {params.recipe:q}"
        " --seed {params.seed} --epochs {params.epochs} --work {params.work:q} --output {output:q} > {log:q} 2>&1"
