"""Make the images of one shard (rules generate_images, edit_images, and those of other stages)."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from darkroom.jobs.devices import Devices
from darkroom.jobs.runtime import job
from darkroom.make import make_shard
from darkroom.run.jobs import Kept, keep_record, requests_of, shard_job
from darkroom.run.workflow import Workflow

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


with job(snakemake.log[0]):
    workflow = Workflow.of_job(snakemake.config)
    stage, shard = snakemake.params.stage, snakemake.wildcards.shard
    step = workflow.lineage.step(stage)
    path = workflow.planned_path(snakemake.output.images, stage, shard)
    lines = workflow.shard_rows(workflow.stage(stage).rows, shard, Path(snakemake.input.rows))
    workflow.check_sources(stage, shard)
    kept = Kept(workflow, step)
    started, devices = time.monotonic(), Devices()
    counts = make_shard(
        requests_of(workflow, stage, lines),
        path,
        shard_job(workflow, stage, shard),
        kept.image_files(shard),
        kept.shards([shard]),
        devices=devices,
        threads=snakemake.threads,
    )
    keep_record(workflow, step, shard, counts, started, devices)
    devices.release()
