# REQUIRED INPUTS: all image and score shards
# OUTPUTS: {results}/scores.parquet and .csv, {results}/rejected.jsonl


rule merge_scores:
    input:
        reads(
            [path for kind in KINDS for path in shard_files(kind)],
            makes=f"{RESULTS}/scores.parquet",
        ),
    output:
        scores=f"{RESULTS}/scores.parquet",
        table=f"{RESULTS}/scores.csv",
        rejected=f"{RESULTS}/rejected.jsonl",
    log:
        f"{RESULTS}/logs/merge_scores.log",
    benchmark:
        f"{RESULTS}/benchmarks/merge_scores.tsv"
    conda:
        "../../envs/tables.yaml"
    resources:
        **asks_for("merge_scores"),
    params:
        digest=DARKROOM.merge_digest,
    message:
        "merge all shards into {output.scores} and {output.table}"
    script:
        "../../scripts/merge_scores.py"
