"""Write the gallery's page and its index of all shards (rule gallery_index)."""

from pathlib import Path
from typing import TYPE_CHECKING

from darkroom.jobs.runtime import job, say
from darkroom.run.workflow import Workflow
from darkroom.store.manifest import write_manifest
from darkroom.views.gallery import rejected_rows, write_index

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake.log[0]):
    workflow = Workflow.of_job(snakemake.config)
    counts = write_index(
        workflow.kinds(),
        workflow.catalogue,
        workflow.config.select,
        workflow.results("scores.parquet"),
        {(kind, shard): Path(path) for kind, shard, path in workflow.gallery_files()},
        workflow.results("gallery"),
        workflow.gallery_about()
        | {"rejected": rejected_rows(workflow.results("rejected.jsonl"), workflow.user_files())},
        {"digest": workflow.gallery.digest},
    )
    write_manifest(Path(snakemake.output.manifest), workflow.gallery.manifest())
    say(", ".join(f"{number} {name}" for name, number in counts.items()))
