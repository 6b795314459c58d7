"""Give the user's rows back with images and scores (rule write_dataset)."""

from typing import TYPE_CHECKING

from darkroom.dataset import write_dataset
from darkroom.runtime import job, say
from darkroom.workflow import Workflow

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake.log[0]):
    workflow = Workflow.of_job(snakemake.config, snakemake.scriptdir)
    counts = write_dataset(
        workflow.kinds(),
        workflow.rubric,
        workflow.config["select"],
        workflow.config["judge"]["reply_column"],
        workflow.results("dataset"),
        workflow.dataset_files(),
    )
    workflow.set_mark(workflow.dataset_mark, workflow.dataset_digest())
    say(", ".join(f"{name}: {number} rows" for name, number in counts.items()))
