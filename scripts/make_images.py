"""Make the images of one shard (rules generate_images and edit_images)."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from darkroom.engines.work import ShardJob
from darkroom.jobs.devices import Devices
from darkroom.jobs.history import append_record
from darkroom.jobs.runtime import job, limit_threads
from darkroom.make import make_shard, read_requests
from darkroom.run.workflow import ROWS, SECTIONS, Workflow
from darkroom.store.carry import moved_rows, old_shard_files
from darkroom.store.scratch import Scratch
from darkroom.store.shardfile import check_digest

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def open_engine(section, name):
    from darkroom.engines import diffusion  # torch and diffusers: only where something is to be made

    return diffusion.open_engine(section, name)


with job(snakemake.log[0]):
    workflow = Workflow.of_job(snakemake.config)
    kind, shard, path = snakemake.params.kind, snakemake.wildcards.shard, Path(snakemake.output[0])
    limit_threads(snakemake.threads, workflow.config[SECTIONS[kind]]["device"])
    plan = workflow.plans[kind]
    shard_job = ShardJob(
        name=SECTIONS[kind],
        section=workflow.config[SECTIONS[kind]],
        recipe=workflow.recipes[kind],
        digest=snakemake.params.digest,
        folder=Path(workflow.config[ROWS[kind]]).absolute().parent,
        outputs=path.parent,
        scratch=Scratch(workflow.results(".darkroom", "scratch", kind, shard)),
        strict=workflow.config["strict"],
        images={Path(name).stem: Path(name) for name in snakemake.input.get("images", [])},
        model=workflow.models.get(SECTIONS[kind]),
    )
    for name, source in shard_job.images.items():
        check_digest(source, workflow.image_digests["images"][name])
    rows = workflow.shard_rows(kind, shard, Path(snakemake.input.rows))
    started, devices = time.monotonic(), Devices()
    counts = make_shard(
        read_requests(rows, shard_job.section, workflow.config["seed"], workflow.config["samples_per_prompt"]),
        path,
        shard_job,
        old_shard_files(plan, shard, path.parent),
        moved_rows(plan.shard_of_row, shard, workflow.image_digests[kind], path.parent),
        open_engine,
        devices,
    )
    seconds = time.monotonic() - started - devices.waited
    append_record(workflow.record(kind, shard), counts | {"seconds": round(seconds, 3), "gpus": len(devices.held)})
    devices.release()
