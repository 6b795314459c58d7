"""Score the images of one group of shards (rule score_images)."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from darkroom.jobs.devices import Devices
from darkroom.jobs.history import append_record
from darkroom.jobs.runtime import job, limit_threads
from darkroom.metrics.judge import judge_shards
from darkroom.run.jobs import Kept, contents
from darkroom.run.workflow import Workflow

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
        workflow = Workflow.of_job(snakemake.config, snakemake.scriptdir)
        metric, kind, group = snakemake.wildcards.metric, snakemake.wildcards.kind, snakemake.wildcards.group
        lineage = workflow.lineage
        step = lineage.step(kind, metric)
        path = workflow.planned_path(snakemake.output.scores, kind, group, metric)
        shards = workflow.groups[kind].members[group]
        images = {lineage.image_file(kind, shard): lineage.image_digests[kind][shard] for shard in shards}
        old_files, old_journals = Kept(workflow, step).score_files(group)
        limit_threads(snakemake.threads, workflow.config[step.section]["device"])
        started = time.monotonic()
        counts = judge_shards(
            images={Path(file): planned for file, planned in images.items()},
            kind=kind,
            rubric=workflow.rubric,
            section=workflow.config["judge"],
            recipe=workflow.recipes["judge"],
            path=path,
            stage_digest=lineage.score_digests[metric][kind][group],
            journal=workflow.journal(step, group),
            old_files=old_files,
            old_journals=old_journals,
            made_from=contents(list(images)),
            open_engine=open_judge,
            retry_failed=workflow.config["retry_failed"],
        )
        seconds = time.monotonic() - started - devices.waited
        record = counts | {"seconds": round(seconds, 3), "gpus": len(devices.held)}
        append_record(workflow.history(step, group), record)
        devices.release()
