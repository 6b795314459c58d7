# REQUIRED INPUTS: all image shards, and the score shards of the metrics that pictures are compared by
# OUTPUTS: {results}/duplicates.parquet: which pictures, sources and prompts of the whole set are alike

if DARKROOM.duplicates:

    rule find_duplicates:
        input:
            files=[ancient(path) for path in DARKROOM.compared_files()],
            manifests=timed(DARKROOM.duplicates.inputs, DARKROOM.duplicates.made),
            again=again(DARKROOM.duplicates.made),
        output:
            found=DARKROOM.duplicates.files[0],
            manifest=DARKROOM.duplicates.made,
        log:
            f"{RESULTS}/logs/find_duplicates.log",
        benchmark:
            f"{RESULTS}/benchmarks/find_duplicates.tsv"
        conda:
            "../../envs/tables.yaml"
        resources:
            **asks_for_all("find_duplicates"),
        message:
            f"find the duplicates of the whole set: {RESULTS}/duplicates.parquet"
        script:
            "../../scripts/find_duplicates.py"
