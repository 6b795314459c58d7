"""Put all shards together into the final tables (rule merge_scores)."""

from pathlib import Path
from typing import TYPE_CHECKING

from darkroom.jobs.runtime import job, say
from darkroom.run.workflow import Workflow
from darkroom.store.manifest import write_manifest
from darkroom.tables.merge import merge_scores, write_rejected

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake.log[0]):
    workflow = Workflow.of_job(snakemake.config)
    output, labels = snakemake.output, workflow.labels()
    counts = merge_scores(
        workflow.kinds(),
        workflow.catalogue,
        workflow.config.select,
        Path(output.scores),
        Path(output.table),
        workflow.tables_meta(),
        labels,
        workflow.config.export.prefix,
        Path(output.yields),
        workflow.config.report.yield_by,
        workflow.duplicates_file(),
    )
    counts["rejected rows"] = write_rejected(workflow.kinds(), Path(output.rejected), labels)
    write_manifest(Path(output.manifest), workflow.tables.manifest())
    for line in labels.left() if labels else ():
        say(f"warning: {workflow.config.labels}, line {line['line']}: {line['reason']}")
    say(", ".join(f"{name}: {number}" for name, number in counts.items()))
