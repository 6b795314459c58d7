# REQUIRED INPUTS: all image and score shards, {results}/duplicates.parquet where duplicates are looked for
# OUTPUTS: {results}/scores.parquet and .csv, {results}/rejected.jsonl, {results}/yield.csv


rule merge_scores:
    input:
        files=[
            ancient(path)
            for path in rows_files()
            + shard_files()
            + (DARKROOM.duplicates.files if DARKROOM.duplicates else [])
        ],
        manifests=timed(DARKROOM.tables.inputs, DARKROOM.tables.made),
        again=again(DARKROOM.tables.made),
    output:
        scores=f"{RESULTS}/scores.parquet",
        table=f"{RESULTS}/scores.csv",
        rejected=f"{RESULTS}/rejected.jsonl",
        yields=f"{RESULTS}/yield.csv",
        manifest=DARKROOM.tables.made,
    log:
        f"{RESULTS}/logs/merge_scores.log",
    benchmark:
        f"{RESULTS}/benchmarks/merge_scores.tsv"
    conda:
        "../../envs/tables.yaml"
    resources:
        **asks_for_all("merge_scores"),
    message:
        "merge all shards into {output.scores} and {output.table}"
    script:
        "../../scripts/merge_scores.py"
