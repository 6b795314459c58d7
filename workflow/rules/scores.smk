# REQUIRED INPUTS: {results}/{kind}/{recipe}/{shard}-{rows}.parquet, with its manifest; kind: images, edited
# OUTPUTS: {results}/scores/{metric}/{kind}/{scores}-{recipe}/{group}-{rows}.parquet: what a metric says of each image of a group of
# shards, and its manifest


if DARKROOM.scored_apart:
    # A group is a shard.
    judged = IMAGE_SHARD.replace("{shard}", "{group}")
    judged_images = ancient(f"{judged}.parquet")
    judged_manifests = [f"{judged}.manifest"]
else:

    def group_files(wildcards):
        shards = DARKROOM.groups[wildcards.kind].members[wildcards.group]
        return [LINEAGE.image_file(wildcards.kind, shard) for shard in shards]

    judged_images = lambda wildcards: [ancient(file) for file in group_files(wildcards)]
    judged_manifests = lambda wildcards: manifests(group_files(wildcards))


# The judge, and the metrics that the config names.
for metric, scored in LINEAGE.metrics.items():
    step = LINEAGE.step(next(iter(scored)), metric)
    files = SCORE_SHARD.replace("{metric}", metric)

    rule:
        name:
            "score_images" if metric == "judge" else f"score_{metric}"
        input:
            images=judged_images,
            manifests=timed(judged_manifests, f"{files}.parquet"),
            again=again(f"{files}.parquet"),
            model=model(step.section, f"{files}.parquet"),
        output:
            scores=update(f"{files}.parquet"),
            manifest=update(f"{files}.manifest"),
        log:
            f"{RESULTS}/logs/score_images/{metric}/{{kind}}/{{scores}}-{{recipe}}/{{group}}-{{rows}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/score_images/{metric}/{{kind}}/{{scores}}-{{recipe}}/{{group}}-{{rows}}.tsv"
        conda:
            "../../envs/judge.yaml"
        threads: threads(step)
        resources:
            **asks_for(step, "group"),
        params:
            metric=metric,
        message:
            "score {wildcards.kind}, shard {wildcards.group} ({params.metric})"
        script:
            "../../scripts/score_images.py"
