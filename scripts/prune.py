"""List, then remove, files that are no longer planned (rule prune: `snakemake -j1 prune`)."""

from typing import TYPE_CHECKING

from darkroom.files import remove, size_of
from darkroom.jobs.runtime import job, tell
from darkroom.run.workflow import Workflow
from darkroom.tools.prune import unplanned_files

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(None):
    files = unplanned_files(Workflow.of_job(snakemake.config, snakemake.scriptdir))
    total = sum(map(size_of, files))
    tell("\n".join(map(str, files)), snakemake.log[0])
    for path in files:
        remove(path)
    print(f"removed {len(files)} files and folders that are no longer planned, {total / 10**6:.1f} MB", flush=True)
