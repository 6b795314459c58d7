# REQUIRED INPUTS: image and score shards, {results}/scores.parquet
# OUTPUTS: {results}/gallery/: index.html, and a file for each shard
#
# update(): where the pictures are the old ones, new scores leave the thumbnails as they are.

if GALLERY:

    # Where each shard is judged by itself, patterns do: see reads_one.
    if DARKROOM.config["judge"]["shards_per_job"] == 1:
        wanted = {
            "makes": f"{RESULTS}/gallery/{{kind}}/{{shard}}.js",
            "jobs": [
                {"kind": k, "shard": s} for k in KINDS for s in DARKROOM.plans[k].names
            ],
        }
        shown = {
            "images": reads_one(f"{RESULTS}/{{kind}}/{{shard}}.parquet", **wanted),
            "scores": reads_one(
                f"{RESULTS}/scores/{{kind}}/{{shard}}.parquet", **wanted
            ),
        }
    else:
        shown = {
            "files": lambda wildcards: reads(
                [
                    f"{RESULTS}/{wildcards.kind}/{wildcards.shard}.parquet",
                    score_file(wildcards.kind, wildcards.shard),
                ],
                makes=f"{RESULTS}/gallery/{wildcards.kind}/{wildcards.shard}.js",
            )
        }

    rule gallery_shard:
        input:
            **shown,
        output:
            update(f"{RESULTS}/gallery/{{kind}}/{{shard}}.js"),
        log:
            f"{RESULTS}/logs/gallery_shard/{{kind}}/{{shard}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/gallery_shard/{{kind}}/{{shard}}.tsv"
        conda:
            "../../envs/tables.yaml"
        resources:
            **asks_for("gallery_shard", unit="shard"),
        params:
            digest=quick(
                lambda wildcards: DARKROOM.gallery_digests[wildcards.kind][
                    wildcards.shard
                ]
            ),
        message:
            "gallery of {wildcards.kind}, shard {wildcards.shard}"
        script:
            "../../scripts/gallery_shard.py"

    rule gallery_index:
        input:
            reads(
                gallery_files() + [f"{RESULTS}/scores.parquet"],
                makes=f"{RESULTS}/gallery/index.js",
            ),
        output:
            GALLERY,
        log:
            f"{RESULTS}/logs/gallery_index.log",
        benchmark:
            f"{RESULTS}/benchmarks/gallery_index.tsv"
        conda:
            "../../envs/tables.yaml"
        resources:
            **asks_for("gallery_index"),
        params:
            digest=DARKROOM.gallery_digest(),
        message:
            f"index of the gallery: {RESULTS}/gallery/index.html"
        script:
            "../../scripts/gallery_index.py"
