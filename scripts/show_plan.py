"""Print what a run would do and how long it would take (rule plan: `snakemake -j1 plan`)."""

from typing import TYPE_CHECKING

from darkroom.jobs.runtime import job, tell
from darkroom.run.workflow import Workflow
from darkroom.tools.forecast import forecast, table

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(None):
    tell(table(forecast(Workflow.of_job(snakemake.config, snakemake.scriptdir))), snakemake.log[0])
