"""Write the gallery's page and its index of all shards (rule gallery_index)."""

from typing import TYPE_CHECKING

from darkroom.jobs.runtime import job, say
from darkroom.run.workflow import Workflow
from darkroom.views.gallery import write_index

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake.log[0]):
    workflow = Workflow.of_job(snakemake.config)
    counts = write_index(
        workflow.kinds(),
        workflow.rubric,
        workflow.config["select"],
        workflow.results("scores.parquet"),
        workflow.gallery_digests,
        workflow.results("gallery"),
        workflow.gallery_about(),
        {"digest": snakemake.params.digest, "failures": workflow.failures_digest()},
    )
    say(", ".join(f"{number} {name}" for name, number in counts.items()))
