"""Read all results once more and fail where anything is wrong (rule verify: `snakemake -j1 verify`)."""

from typing import TYPE_CHECKING

from darkroom.errors import DarkroomError
from darkroom.jobs.runtime import job, tell
from darkroom.run.workflow import Workflow
from darkroom.tools.verify import report_lines, verify

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(None):
    report = verify(Workflow.of_job(snakemake.config, snakemake.scriptdir))
    tell(report_lines(report), snakemake.log[0])
    if report.problems:
        raise DarkroomError(f"{len(report.problems)} problems, listed above")
