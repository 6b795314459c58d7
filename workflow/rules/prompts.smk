# REQUIRED INPUTS: the user's rows (config: prompts, edits)
# OUTPUTS: {results}/prompts/{shard}.jsonl, {results}/edits/{shard}.jsonl: the rows of each shard


if "images" in KINDS:

    rule shard_prompts:
        input:
            rows=ancient(DARKROOM.config["prompts"]),
        output:
            f"{RESULTS}/prompts/{{shard}}.jsonl",
        log:
            f"{RESULTS}/logs/shard_prompts/{{shard}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/shard_prompts/{{shard}}.tsv"
        localrule: True
        conda:
            "../../envs/tables.yaml"
        params:
            digest=lambda wildcards: DARKROOM.plans["images"]
            .shards[wildcards.shard]
            .digest,
            kind="images",
        message:
            "rows of shard {wildcards.shard} (prompts)"
        script:
            "../../scripts/shard_rows.py"


if "edited" in KINDS:

    rule shard_edits:
        input:
            rows=ancient(DARKROOM.config["edits"]),
        output:
            f"{RESULTS}/edits/{{shard}}.jsonl",
        log:
            f"{RESULTS}/logs/shard_edits/{{shard}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/shard_edits/{{shard}}.tsv"
        localrule: True
        conda:
            "../../envs/tables.yaml"
        params:
            digest=lambda wildcards: DARKROOM.plans["edited"]
            .shards[wildcards.shard]
            .digest,
            kind="edited",
        message:
            "rows of shard {wildcards.shard} (edits)"
        script:
            "../../scripts/shard_rows.py"
