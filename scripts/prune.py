"""List, then remove, files that are no longer planned (rule prune: `snakemake -j1 prune`)."""

from typing import TYPE_CHECKING

from darkroom.files import remove, size_of
from darkroom.prune import unplanned_files
from darkroom.runtime import job, tell
from darkroom.workflow import Workflow

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(None):
    files = unplanned_files(Workflow.of_job(snakemake.config, snakemake.scriptdir))
    total = sum(map(size_of, files))
    tell("\n".join(map(str, files)), snakemake.log[0])
    for path in files:
        remove(path)
    print(f"removed {len(files)} files and folders that are no longer planned, {total / 10**6:.1f} MB", flush=True)
