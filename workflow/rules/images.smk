# REQUIRED INPUTS: {results}/prompts/{shard}-{rows}.jsonl, {results}/edits/{shard}-{rows}.jsonl
# OUTPUTS: {results}/images/{recipe}/{shard}-{rows}.parquet, {results}/edited/{recipe}/{shard}-{rows}.parquet: the images of each
# shard, and beside each file a manifest, which says by hash what it holds
#
# update(): where a file has to be made again, the old one stays while the job runs, so that what is still good is carried over.


# Images of prompts; a rule for each of several models.
for stage in [stage for stage in STAGES.values() if not stage.reads]:

    rule:
        name:
            stage.rule
        input:
            rows=ancient(f"{RESULTS}/{stage.rows}/{{shard}}-{{rows}}.jsonl"),
            again=again(f"{RESULTS}/{stage.name}/{{recipe}}/{{shard}}-{{rows}}.parquet"),
            model=model(
                stage.section,
                f"{RESULTS}/{stage.name}/{{recipe}}/{{shard}}-{{rows}}.parquet",
            ),
        output:
            images=update(
                f"{RESULTS}/{stage.name}/{{recipe}}/{{shard}}-{{rows}}.parquet"
            ),
            manifest=update(
                f"{RESULTS}/{stage.name}/{{recipe}}/{{shard}}-{{rows}}.manifest"
            ),
        log:
            f"{RESULTS}/logs/{stage.rule}/{{recipe}}/{{shard}}-{{rows}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/{stage.rule}/{{recipe}}/{{shard}}-{{rows}}.tsv"
        conda:
            "../../envs/generate.yaml"
        threads: threads(LINEAGE.step(stage.name))
        resources:
            **asks_for(LINEAGE.step(stage.name), "shard"),
        params:
            stage=stage.name,
        message:
            "generate {params.stage}, shard {wildcards.shard}"
        script:
            "../../scripts/make_images.py"


# Pictures that are made from others: edits, and what stages of extensions make from each picture of another stage.
for stage in [stage for stage in STAGES.values() if stage.reads]:

    rule:
        name:
            stage.rule
        input:
            rows=ancient(f"{RESULTS}/{stage.rows}/{{shard}}-{{rows}}.jsonl"),
            images=source_images(stage.name),
            manifests=timed(
                source_manifests(stage.name),
                f"{RESULTS}/{stage.name}/{{recipe}}/{{shard}}-{{rows}}.parquet",
            ),
            again=again(f"{RESULTS}/{stage.name}/{{recipe}}/{{shard}}-{{rows}}.parquet"),
            model=model(
                stage.section,
                f"{RESULTS}/{stage.name}/{{recipe}}/{{shard}}-{{rows}}.parquet",
            ),
        output:
            images=update(
                f"{RESULTS}/{stage.name}/{{recipe}}/{{shard}}-{{rows}}.parquet"
            ),
            manifest=update(
                f"{RESULTS}/{stage.name}/{{recipe}}/{{shard}}-{{rows}}.manifest"
            ),
        log:
            f"{RESULTS}/logs/{stage.rule}/{{recipe}}/{{shard}}-{{rows}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/{stage.rule}/{{recipe}}/{{shard}}-{{rows}}.tsv"
        conda:
            "../../envs/generate.yaml"
        threads: threads(LINEAGE.step(stage.name))
        resources:
            **asks_for(LINEAGE.step(stage.name), "shard"),
        params:
            stage=stage.name,
        message:
            ("edit images" if stage.name == "edited" else stage.name)
            + ", shard {wildcards.shard}"
        script:
            "../../scripts/make_images.py"
