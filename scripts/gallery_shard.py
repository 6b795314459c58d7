"""Make the gallery's files of one shard (rule gallery_shard)."""

from pathlib import Path
from typing import TYPE_CHECKING

from darkroom.jobs.runtime import job, say
from darkroom.run.jobs import contents
from darkroom.run.workflow import Workflow
from darkroom.views.gallery import score_columns, write_shard

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake.log[0]):
    workflow = Workflow.of_job(snakemake.config)
    kind, shard = snakemake.wildcards.kind, snakemake.wildcards.shard
    counts = write_shard(
        next(found for found in workflow.kinds() if found.name == kind),
        shard,
        workflow.config.gallery,
        Path(snakemake.output[0]),
        {"digest": workflow.lineage.shown_id, "made_from": contents(workflow.gallery_inputs(kind, shard))},
        score_columns(workflow.catalogue, kind),
    )
    say(", ".join(f"{number} {name}" for name, number in counts.items()))
