# REQUIRED INPUTS: {results}/{kind}/{recipe}/{shard}-{rows}.parquet, with its manifest; kind: images, edited
# OUTPUTS: {results}/scores/{metric}/{kind}/{scores}-{recipe}/{group}-{rows}.parquet: what a metric says of each image of a group of
# shards, and its manifest


if DARKROOM.config["judge"]["shards_per_job"] == 1:
    # A group is a shard.
    judged = [IMAGE_SHARD.replace("{shard}", "{group}")]
    judged_images = [ancient(f"{path}.parquet") for path in judged]
    judged_manifests = [f"{path}.manifest" for path in judged]
else:

    def group_files(wildcards):
        shards = DARKROOM.groups[wildcards.kind].members[wildcards.group]
        return [LINEAGE.image_file(wildcards.kind, shard) for shard in shards]

    judged_images = lambda wildcards: [ancient(file) for file in group_files(wildcards)]
    judged_manifests = lambda wildcards: manifests(group_files(wildcards))


rule score_images:
    input:
        images=judged_images,
        manifests=timed(judged_manifests, f"{SCORE_SHARD}.parquet"),
        again=again(f"{SCORE_SHARD}.parquet"),
        model=model("judge"),
    output:
        scores=update(f"{SCORE_SHARD}.parquet"),
        manifest=update(f"{SCORE_SHARD}.manifest"),
    log:
        f"{RESULTS}/logs/score_images/{{metric}}/{{kind}}/{{scores}}-{{recipe}}/{{group}}-{{rows}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/score_images/{{metric}}/{{kind}}/{{scores}}-{{recipe}}/{{group}}-{{rows}}.tsv"
    conda:
        "../../envs/judge.yaml"
    threads: job_threads("judge")
    resources:
        gpu=gpus("judge"),
        mem_mb=memory("judge"),
        runtime=judge_minutes(),
    message:
        "score {wildcards.kind}, shard {wildcards.group}"
    script:
        "../../scripts/score_images.py"
