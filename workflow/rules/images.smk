# REQUIRED INPUTS: {results}/prompts/{shard}-{rows}.jsonl, {results}/edits/{shard}-{rows}.jsonl
# OUTPUTS: {results}/images/{recipe}/{shard}-{rows}.parquet, {results}/edited/{recipe}/{shard}-{rows}.parquet: the images of each
# shard, and beside each file a manifest, which says by hash what it holds
#
# update(): where a file has to be made again, the old one stays while the job runs, so that what is still good is carried over.


if "images" in STAGES:

    rule generate_images:
        input:
            rows=ancient(f"{RESULTS}/prompts/{{shard}}-{{rows}}.jsonl"),
            again=again(f"{RESULTS}/images/{{recipe}}/{{shard}}-{{rows}}.parquet"),
            model=model(
                "generate", f"{RESULTS}/images/{{recipe}}/{{shard}}-{{rows}}.parquet"
            ),
        output:
            images=update(f"{RESULTS}/images/{{recipe}}/{{shard}}-{{rows}}.parquet"),
            manifest=update(f"{RESULTS}/images/{{recipe}}/{{shard}}-{{rows}}.manifest"),
        log:
            f"{RESULTS}/logs/generate_images/{{recipe}}/{{shard}}-{{rows}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/generate_images/{{recipe}}/{{shard}}-{{rows}}.tsv"
        conda:
            "../../envs/generate.yaml"
        threads: threads(LINEAGE.step("images"))
        resources:
            **asks_for(LINEAGE.step("images"), "shard"),
        params:
            stage="images",
        message:
            "generate images, shard {wildcards.shard}"
        script:
            "../../scripts/make_images.py"


if "edited" in STAGES:

    rule edit_images:
        input:
            rows=ancient(f"{RESULTS}/edits/{{shard}}-{{rows}}.jsonl"),
            images=source_images("edited"),
            manifests=timed(
                source_manifests("edited"),
                f"{RESULTS}/edited/{{recipe}}/{{shard}}-{{rows}}.parquet",
            ),
            again=again(f"{RESULTS}/edited/{{recipe}}/{{shard}}-{{rows}}.parquet"),
            model=model(
                "edit", f"{RESULTS}/edited/{{recipe}}/{{shard}}-{{rows}}.parquet"
            ),
        output:
            images=update(f"{RESULTS}/edited/{{recipe}}/{{shard}}-{{rows}}.parquet"),
            manifest=update(f"{RESULTS}/edited/{{recipe}}/{{shard}}-{{rows}}.manifest"),
        log:
            f"{RESULTS}/logs/edit_images/{{recipe}}/{{shard}}-{{rows}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/edit_images/{{recipe}}/{{shard}}-{{rows}}.tsv"
        conda:
            "../../envs/generate.yaml"
        threads: threads(LINEAGE.step("edited"))
        resources:
            **asks_for(LINEAGE.step("edited"), "shard"),
        params:
            stage="edited",
        message:
            "edit images, shard {wildcards.shard}"
        script:
            "../../scripts/make_images.py"


# Stages of extensions, which make one picture from each picture of another stage.
for stage in [stage for stage in STAGES.values() if stage.every]:

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
            "{params.stage}, shard {wildcards.shard}"
        script:
            "../../scripts/make_images.py"
