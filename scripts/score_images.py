"""Judge the images of one group of shards (rule score_images)."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from darkroom.jobs.devices import Devices
from darkroom.jobs.history import append_record
from darkroom.jobs.runtime import job, limit_threads
from darkroom.metrics.judge import judge_shards, old_score_files
from darkroom.run.workflow import Workflow
from darkroom.store.carry import moved_rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


devices = Devices()


def open_judge(section, kind, rubric):
    devices.claim(section, "judge")
    from darkroom.metrics import vlm  # vLLM: only where something is to be asked

    return vlm.open_judge(workflow.local_section("judge"), kind, rubric)


# The guard is for vLLM's workers: where they are spawned they import this file.
if __name__ == "__main__":
    with job(snakemake.log[0]):
        workflow = Workflow.of_job(snakemake.config)
        kind, group, path = snakemake.wildcards.kind, snakemake.wildcards.group, Path(snakemake.output[0])
        plan, groups = workflow.plans[kind], workflow.groups[kind]
        named = snakemake.input.images
        images = (Path(name) for name in ([named] if isinstance(named, str) else named))
        home = groups.of_shard()
        moved = moved_rows(
            lambda row: home.get(plan.shard_of_row(row)), group, workflow.score_digests[kind], path.parent
        )
        limit_threads(snakemake.threads, workflow.config["judge"]["device"])
        started = time.monotonic()
        counts = judge_shards(
            images={file: workflow.image_digests[kind][file.stem] for file in images},
            kind=kind,
            rubric=workflow.rubric,
            section=workflow.config["judge"],
            recipe=workflow.recipes["judge"],
            path=path,
            stage_digest=snakemake.params.digest,
            journal=workflow.score_journal(kind, group),
            old_files=old_score_files(plan, groups, group, path.parent),
            moved=lambda row: workflow.score_journal(kind, other) if (other := moved(row)) else None,
            open_engine=open_judge,
            retry_failed=workflow.config["retry_failed"],
        )
        seconds = time.monotonic() - started - devices.waited
        record = counts | {"seconds": round(seconds, 3), "gpus": len(devices.held)}
        append_record(workflow.record("scores/" + kind, group), record)
        devices.release()
