# REQUIRED INPUTS: the tables; the image shards behind them are read, too
# OUTPUTS: {results}/dataset/ (the user's rows and PNG files), {results}/exports/{format}/


if "folder" in DARKROOM.exports:

    rule write_dataset:
        input:
            tables=[ancient(path) for path in DARKROOM.tables.files],
            manifest=timed([DARKROOM.tables.made], DARKROOM.exports["folder"].made),
            again=again(DARKROOM.exports["folder"].made),
        output:
            files=DARKROOM.exports["folder"].files,
            manifest=DARKROOM.exports["folder"].made,
        log:
            f"{RESULTS}/logs/write_dataset.log",
        benchmark:
            f"{RESULTS}/benchmarks/write_dataset.tsv"
        conda:
            "../../envs/tables.yaml"
        resources:
            **asks_for_all("write_dataset"),
        params:
            format="folder",
        message:
            "write {output.files}"
        script:
            "../../scripts/write_export.py"


rule export_dataset:
    input:
        tables=[ancient(path) for path in DARKROOM.tables.files],
        manifest=timed(
            [DARKROOM.tables.made], f"{RESULTS}/.darkroom/made/{{format}}.manifest"
        ),
        again=again(f"{RESULTS}/.darkroom/made/{{format}}.manifest"),
    output:
        files=f"{RESULTS}/exports/{{format}}/SHA256SUMS",
        manifest=f"{RESULTS}/.darkroom/made/{{format}}.manifest",
    log:
        f"{RESULTS}/logs/export_dataset/{{format}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/export_dataset/{{format}}.tsv"
    conda:
        "../../envs/tables.yaml"
    resources:
        **asks_for_all("export_dataset"),
    params:
        format=lambda wildcards: wildcards.format,
    message:
        "export as {wildcards.format}"
    script:
        "../../scripts/write_export.py"
