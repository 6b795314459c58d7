"""Judge the images of one shard (rule score_images)."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from darkroom.judge import judge_shard
from darkroom.records import append_record
from darkroom.runtime import job
from darkroom.workflow import Workflow

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def open_judge(section, kind, rubric):
    from darkroom import vlm  # vLLM: only where something is to be asked

    return vlm.open_judge(workflow.local_section("judge"), kind, rubric)


# The guard is for vLLM's workers: where they are spawned they import this file.
if __name__ == "__main__":
    with job(snakemake.log[0], snakemake.threads):
        workflow = Workflow.of_job(snakemake.config, snakemake.scriptdir)
        kind, shard = snakemake.wildcards.kind, snakemake.wildcards.shard
        started = time.monotonic()
        counts = judge_shard(
            images=Path(snakemake.input.images[0]),
            images_digest=snakemake.params.images,
            kind=kind,
            rubric=workflow.rubric,
            section=workflow.config["judge"],
            recipe=workflow.recipes["judge"],
            path=Path(snakemake.output[0]),
            stage_digest=snakemake.params.digest,
            journal=workflow.results(".darkroom", "scratch", "scores", kind, f"{shard}.jsonl"),
            open_engine=open_judge,
            retry_failed=workflow.config["retry_failed"],
        )
        record = counts | {"seconds": round(time.monotonic() - started, 3), "gpus": snakemake.resources.get("gpu", 0)}
        append_record(workflow.record("scores/" + kind, shard), record)
