# REQUIRED INPUTS: the user's rows (config: prompts, edits)
# OUTPUTS: {results}/prompts/{shard}-{rows}.jsonl, {results}/edits/{shard}-{rows}.jsonl: the rows of each shard


if "prompts" in DARKROOM.row_plans:

    rule shard_prompts:
        input:
            rows=ancient(DARKROOM.config.prompts),
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
            rows=ancient(DARKROOM.config.edits),
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
