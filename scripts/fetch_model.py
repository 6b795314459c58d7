"""Bring the model of one section from the hub into its cache (rule fetch_model)."""

import signal
from typing import TYPE_CHECKING

from darkroom.jobs.runtime import job, tell
from darkroom.models.hub import fetch, report_lines
from darkroom.run.workflow import Workflow

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(None, online=True):
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # at once, not at the end of a file of many gigabytes
    section = snakemake.wildcards.section
    model = Workflow.of_job(snakemake.config, unpinned=True).models[section]
    tell(report_lines(section, fetch(model)), snakemake.log[0])
