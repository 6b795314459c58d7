"""Find the duplicates of the whole set (rule find_duplicates)."""

from pathlib import Path
from typing import TYPE_CHECKING

from darkroom.jobs.runtime import job, say
from darkroom.run.workflow import Workflow
from darkroom.store.manifest import write_manifest

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake.log[0]):
    workflow = Workflow.of_job(snakemake.config)
    counts = workflow.find_duplicates(Path(snakemake.output.found))
    if workflow.duplicates:
        write_manifest(Path(snakemake.output.manifest), workflow.duplicates.manifest())
    say(", ".join(f"{name}: {number}" for name, number in counts.items()) or "no pictures were compared")
