# REQUIRED INPUTS: {results}/images/{shard}.parquet or {results}/edited/{shard}.parquet
# OUTPUTS: {results}/scores/{kind}/{group}.parquet: what the judge says of each image of a group of shards


if DARKROOM.config["judge"]["shards_per_job"] == 1:
    judged = reads_one(
        f"{RESULTS}/{{kind}}/{{group}}.parquet",
        makes=f"{RESULTS}/scores/{{kind}}/{{group}}.parquet",
        jobs=[{"kind": k, "group": g} for k in KINDS for g in DARKROOM.plans[k].names],
    )
else:
    judged = lambda wildcards: reads(
        [
            f"{RESULTS}/{wildcards.kind}/{shard}.parquet"
            for shard in DARKROOM.groups[wildcards.kind].members[wildcards.group]
        ],
        makes=f"{RESULTS}/scores/{wildcards.kind}/{wildcards.group}.parquet",
    )


rule score_images:
    input:
        images=judged,
        model=model("judge", makes=f"{RESULTS}/scores/{{kind}}/{{group}}.parquet"),
    output:
        update(f"{RESULTS}/scores/{{kind}}/{{group}}.parquet"),
    log:
        f"{RESULTS}/logs/score_images/{{kind}}/{{group}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/score_images/{{kind}}/{{group}}.tsv"
    conda:
        "../../envs/judge.yaml"
    threads: threads_of("judge", DARKROOM.config["judge"])
    resources:
        **asks_for("score_images", unit="group", section="judge"),
    params:
        digest=quick(
            lambda wildcards: DARKROOM.score_digests[wildcards.kind][wildcards.group]
        ),
    message:
        "score {wildcards.kind}, shard {wildcards.group}"
    script:
        "../../scripts/score_images.py"
