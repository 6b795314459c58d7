# REQUIRED INPUTS: {results}/images/{shard}.parquet or {results}/edited/{shard}.parquet
# OUTPUTS: {results}/scores/{kind}/{shard}.parquet: what the judge says of each image


rule score_images:
    input:
        images=lambda wildcards: reads(
            [f"{RESULTS}/{wildcards.kind}/{wildcards.shard}.parquet"],
            makes=f"{RESULTS}/scores/{wildcards.kind}/{wildcards.shard}.parquet",
        ),
        model=lambda wildcards: model(
            "judge",
            makes=f"{RESULTS}/scores/{wildcards.kind}/{wildcards.shard}.parquet",
        ),
    output:
        update(f"{RESULTS}/scores/{{kind}}/{{shard}}.parquet"),
    log:
        f"{RESULTS}/logs/score_images/{{kind}}/{{shard}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/score_images/{{kind}}/{{shard}}.tsv"
    conda:
        "../../envs/judge.yaml"
    threads: job_threads("judge")
    resources:
        gpu=gpus("judge"),
        mem_mb=memory("judge"),
        runtime=lambda wildcards, attempt: needs.judge_minutes(
            DARKROOM.requests(wildcards.kind, wildcards.shard), attempt
        ),
    params:
        digest=lambda wildcards: DARKROOM.score_digests[wildcards.kind][wildcards.shard],
        images=lambda wildcards: DARKROOM.image_digests[wildcards.kind][wildcards.shard],
    message:
        "score {wildcards.kind}, shard {wildcards.shard}"
    script:
        "../../scripts/score_images.py"
