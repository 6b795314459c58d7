# REQUIRED INPUTS: the tables; the image shards behind them are read, too
# OUTPUTS: {results}/dataset/ (the user's rows and PNG files), {results}/exports/{format}/


if "folder" in EXPORTS:

    rule write_dataset:
        input:
            reads(TABLES, makes=EXPORTS["folder"][0]),
        output:
            EXPORTS["folder"],
        log:
            f"{RESULTS}/logs/write_dataset.log",
        benchmark:
            f"{RESULTS}/benchmarks/write_dataset.tsv"
        conda:
            "../../envs/tables.yaml"
        resources:
            **asks_for("write_dataset"),
        params:
            digest=DARKROOM.export_digest("folder"),
            format="folder",
        message:
            "write {output}"
        script:
            "../../scripts/write_export.py"


rule export_dataset:
    input:
        lambda wildcards: reads(
            TABLES,
            makes=f"{RESULTS}/exports/{wildcards.format}/SHA256SUMS",
        ),
    output:
        f"{RESULTS}/exports/{{format}}/SHA256SUMS",
    log:
        f"{RESULTS}/logs/export_dataset/{{format}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/export_dataset/{{format}}.tsv"
    conda:
        "../../envs/tables.yaml"
    resources:
        **asks_for("export_dataset"),
    params:
        digest=lambda wildcards: DARKROOM.export_digest(wildcards.format),
        format=lambda wildcards: wildcards.format,
    message:
        "export as {wildcards.format}"
    script:
        "../../scripts/write_export.py"
