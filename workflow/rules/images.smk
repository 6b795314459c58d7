# REQUIRED INPUTS: {results}/prompts/{shard}.jsonl, {results}/edits/{shard}.jsonl
# OUTPUTS: {results}/images/{shard}.parquet, {results}/edited/{shard}.parquet: the images of each shard
#
# update(): the old shard file stays while the job runs, so that every image that is still good is carried over.

if "images" in KINDS:

    rule generate_images:
        input:
            rows=reads_one(
                f"{RESULTS}/prompts/{{shard}}.jsonl",
                makes=f"{RESULTS}/images/{{shard}}.parquet",
                jobs=[{"shard": name} for name in DARKROOM.plans["images"].names],
            ),
            model=model("generate", makes=f"{RESULTS}/images/{{shard}}.parquet"),
        output:
            update(f"{RESULTS}/images/{{shard}}.parquet"),
        log:
            f"{RESULTS}/logs/generate_images/{{shard}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/generate_images/{{shard}}.tsv"
        conda:
            "../../envs/generate.yaml"
        threads: threads_of("generate", DARKROOM.config["generate"])
        resources:
            **asks_for("generate_images", "images", "shard", "generate"),
        params:
            digest=quick(
                lambda wildcards: DARKROOM.image_digests["images"][wildcards.shard]
            ),
            kind="images",
        message:
            "generate images, shard {wildcards.shard}"
        script:
            "../../scripts/make_images.py"


if "edited" in KINDS:

    rule edit_images:
        input:
            rows=reads_one(
                f"{RESULTS}/edits/{{shard}}.jsonl",
                makes=f"{RESULTS}/edited/{{shard}}.parquet",
                jobs=[{"shard": name} for name in DARKROOM.plans["edited"].names],
            ),
            images=lambda wildcards: reads(
                [
                    f"{RESULTS}/images/{name}.parquet"
                    for name in DARKROOM.source_shards(wildcards.shard)
                ],
                makes=f"{RESULTS}/edited/{wildcards.shard}.parquet",
            ),
            model=model("edit", makes=f"{RESULTS}/edited/{{shard}}.parquet"),
        output:
            update(f"{RESULTS}/edited/{{shard}}.parquet"),
        log:
            f"{RESULTS}/logs/edit_images/{{shard}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/edit_images/{{shard}}.tsv"
        conda:
            "../../envs/generate.yaml"
        threads: threads_of("edit", DARKROOM.config["edit"])
        resources:
            **asks_for("edit_images", "edited", "shard", "edit"),
        params:
            digest=quick(
                lambda wildcards: DARKROOM.image_digests["edited"][wildcards.shard]
            ),
            kind="edited",
        message:
            "edit images, shard {wildcards.shard}"
        script:
            "../../scripts/make_images.py"
