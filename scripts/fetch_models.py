"""Bring models of the hub into its cache: one section's (rule fetch_model), or all (rule fetch_models)."""

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
    models = Workflow.of_job(snakemake.config, snakemake.scriptdir, unpinned=True).models
    section = snakemake.wildcards.get("section")
    lines = [report_lines(name, fetch(model)) for name, model in models.items() if section in (None, name)]
    tell("\n".join(lines) or "nothing to fetch: the config names no model of the hub", snakemake.log[0])
