# REQUIRED INPUTS: the user's rows (config: prompts, edits)
# OUTPUTS: {results}/prompts/{shard}-{rows}.jsonl, {results}/edits/{shard}-{rows}.jsonl: the rows of each shard

# The plan has read all files of rows; jobs name the first alone, for there may be thousands of files and of shards.


if "prompts" in DARKROOM.row_plans:

    rule shard_prompts:
        input:
            rows=ancient(DARKROOM.row_files("prompts")[0]),
        output:
            f"{RESULTS}/prompts/{{shard}}-{{rows}}.jsonl",
        log:
            f"{RESULTS}/logs/shard_prompts/{{shard}}-{{rows}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/shard_prompts/{{shard}}-{{rows}}.tsv"
        localrule: True
        conda:
            "../../envs/tables.yaml"
        params:
            rows="prompts",
        message:
            "rows of shard {wildcards.shard} (prompts)"
        script:
            "../../scripts/shard_rows.py"


if "edits" in DARKROOM.row_plans:

    rule shard_edits:
        input:
            rows=ancient(DARKROOM.row_files("edits")[0]),
        output:
            f"{RESULTS}/edits/{{shard}}-{{rows}}.jsonl",
        log:
            f"{RESULTS}/logs/shard_edits/{{shard}}-{{rows}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/shard_edits/{{shard}}-{{rows}}.tsv"
        localrule: True
        conda:
            "../../envs/tables.yaml"
        params:
            rows="edits",
        message:
            "rows of shard {wildcards.shard} (edits)"
        script:
            "../../scripts/shard_rows.py"
