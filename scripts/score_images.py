"""Judge the images of one shard (rule score_images)."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from darkroom.devices import Devices
from darkroom.judge import judge_shard
from darkroom.records import append_record
from darkroom.runtime import job
from darkroom.workflow import Workflow

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


devices = Devices()


def open_judge(section, kind, rubric):
    devices.claim(section, "judge")
    from darkroom import vlm  # vLLM: only where something is to be asked

    return vlm.open_judge(section, kind, rubric)


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
        seconds = time.monotonic() - started - devices.waited
        record = counts | {"seconds": round(seconds, 3), "gpus": len(devices.held)}
        append_record(workflow.record("scores/" + kind, shard), record)
        devices.release()
