# REQUIRED INPUTS: image and score shards with their manifests, {results}/scores.parquet
# OUTPUTS: {results}/gallery/: index.html, and a file for each shard

if DARKROOM.gallery:

    # Where each shard is scored by itself, and all stages alike, patterns do: an input function for each of ten thousand
    # jobs takes its time.
    scored = {
        metric: set(ids.values())
        for metric, ids in LINEAGE.score_ids.items()
        if len(ids) == len(STAGES)
    }
    alike = len(scored) == len(LINEAGE.score_ids) and all(
        len(ids) == 1 for ids in scored.values()
    )
    if alike and DARKROOM.scored_apart:
        shown = [IMAGE_SHARD] + [
            SCORE_SHARD.replace("{metric}", metric)
            .replace("{scores}", *ids)
            .replace("{group}", "{shard}")
            for metric, ids in scored.items()
        ]
        shown_files = [ancient(f"{path}.parquet") for path in shown]
        shown_manifests = [f"{path}.manifest" for path in shown]
    else:
        shown_files = lambda wildcards: [
            ancient(file)
            for file in DARKROOM.gallery_inputs(wildcards.kind, wildcards.shard)
        ]
        shown_manifests = lambda wildcards: manifests(
            DARKROOM.gallery_inputs(wildcards.kind, wildcards.shard)
        )

    drawn = needs_of_any_shard(DARKROOM, "gallery_shard")

    rule gallery_shard:
        input:
            files=shown_files,
            manifests=timed(shown_manifests, f"{GALLERY_SHARD}.js"),
            again=again(f"{GALLERY_SHARD}.js"),
        output:
            update(f"{GALLERY_SHARD}.js"),
        log:
            f"{RESULTS}/logs/gallery_shard/{{kind}}/{{shown}}-{{recipe}}/{{shard}}-{{rows}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/gallery_shard/{{kind}}/{{shown}}-{{recipe}}/{{shard}}-{{rows}}.tsv"
        conda:
            "../../envs/tables.yaml"
        resources:
            mem_mb=drawn.mem_mb,
            runtime=drawn.runtime,
        message:
            "gallery of {wildcards.kind}, shard {wildcards.shard}"
        script:
            "../../scripts/gallery_shard.py"

    rule gallery_index:
        input:
            files=[ancient(path) for path in gallery_files() + DARKROOM.tables.files],
            manifest=timed([DARKROOM.tables.made], DARKROOM.gallery.made),
            again=again(DARKROOM.gallery.made),
        output:
            files=DARKROOM.gallery.files,
            manifest=DARKROOM.gallery.made,
        log:
            f"{RESULTS}/logs/gallery_index.log",
        benchmark:
            f"{RESULTS}/benchmarks/gallery_index.tsv"
        conda:
            "../../envs/tables.yaml"
        resources:
            **asks_for_all("gallery_index"),
        message:
            f"index of the gallery: {RESULTS}/gallery/index.html"
        script:
            "../../scripts/gallery_index.py"
