"""Score the images of one group of shards by one metric (rule score_images)."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from darkroom.config.models import metric_section
from darkroom.jobs.devices import Devices
from darkroom.jobs.runtime import job, limit_threads
from darkroom.metrics.score import score_shards
from darkroom.plan.stages import like
from darkroom.run.jobs import Kept, contents, keep_record
from darkroom.run.workflow import Workflow

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


devices = Devices()


def open_scorer():
    if metric.needs:
        devices.claim(metric.needs, metric_section(metric.name))
    return metric.open(like(kind))


# The guard is for vLLM's workers: where they are spawned they import this file.
if __name__ == "__main__":
    with job(snakemake.log[0]):
        workflow = Workflow.of_job(snakemake.config)
        lineage = workflow.lineage
        metric = workflow.metric(snakemake.params.metric)
        kind, group = snakemake.wildcards.kind, snakemake.wildcards.group
        step = lineage.step(kind, metric.name)
        path = workflow.planned_path(snakemake.output.scores, kind, group, metric.name)
        shards = workflow.groups[kind].members[group]
        images = {lineage.image_file(kind, shard): lineage.image_digests[kind][shard] for shard in shards}
        old_files, old_journals = Kept(workflow, step).score_files(group)
        if metric.needs:
            limit_threads(snakemake.threads, metric.needs.device)
        started = time.monotonic()
        counts = score_shards(
            metric=metric,
            kind=like(kind),
            images={Path(file): planned for file, planned in images.items()},
            path=path,
            stage_digest=lineage.score_digests[metric.name][kind][group],
            journal=workflow.journal(step, group),
            old_files=old_files,
            old_journals=old_journals,
            made_from=contents(list(images)),
            open_scorer=open_scorer,
            retry_failed=workflow.config.retry_failed,
            threads=snakemake.threads,
        )
        keep_record(workflow, step, group, counts, started, devices)
        devices.release()
