"""Write the selected images in one of the export formats (rules write_dataset, export_dataset)."""

from pathlib import Path
from typing import TYPE_CHECKING

from darkroom.exports.write import write_export
from darkroom.jobs.runtime import job, say
from darkroom.run.workflow import Workflow
from darkroom.store.manifest import write_manifest

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake.log[0]):
    workflow = Workflow.of_job(snakemake.config)
    format = snakemake.params.format
    counts = write_export(workflow.export(format))
    write_manifest(Path(snakemake.output.manifest), workflow.exports[format].manifest())
    say(", ".join(f"{name}: {number} lines" for name, number in counts.items()))
