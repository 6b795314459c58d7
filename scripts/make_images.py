"""Make the images of one shard (rules generate_images and edit_images)."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from darkroom.devices import Devices
from darkroom.generate import Stage, make_shard, moved_rows, old_shard_files, read_requests
from darkroom.records import append_record
from darkroom.runtime import job, limit_threads
from darkroom.scratch import Scratch
from darkroom.shardfile import check_digest
from darkroom.workflow import ROWS, SECTIONS, Workflow

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def open_engine(section, name):
    from darkroom import diffusion  # torch and diffusers: only where something is to be made

    return diffusion.open_engine(section, name)


with job(snakemake.log[0]):
    workflow = Workflow.of_job(snakemake.config, snakemake.scriptdir)
    kind, shard, path = snakemake.params.kind, snakemake.wildcards.shard, Path(snakemake.output[0])
    limit_threads(snakemake.threads, workflow.config[SECTIONS[kind]]["device"])
    plan = workflow.plans[kind]
    stage = Stage(
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
    for name, source in stage.images.items():
        check_digest(source, workflow.image_digests["images"][name])
    rows = workflow.shard_rows(kind, shard, Path(snakemake.input.rows))
    started, devices = time.monotonic(), Devices()
    counts = make_shard(
        read_requests(rows, stage.section, workflow.config["seed"], workflow.config["samples_per_prompt"]),
        path,
        stage,
        old_shard_files(plan, shard, path.parent),
        moved_rows(plan.shard_of_row, shard, workflow.image_digests[kind], path.parent),
        open_engine,
        devices,
    )
    seconds = time.monotonic() - started - devices.waited
    append_record(workflow.record(kind, shard), counts | {"seconds": round(seconds, 3), "gpus": len(devices.held)})
    devices.release()
