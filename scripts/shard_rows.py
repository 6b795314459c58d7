"""Write the rows of one shard, as the plan has them (rules shard_prompts and shard_edits)."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from darkroom.runtime import job, say
from darkroom.workflow import Workflow

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake.log[0]):
    plan = Workflow.of_job(snakemake.config, snakemake.scriptdir).plans[snakemake.params.kind]
    shard = plan.shards[snakemake.wildcards.shard]
    path = Path(snakemake.output[0])
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(plan.read(shard.name))
    os.replace(temporary, path)
    say(f"{shard.rows} rows, {shard.rejected} rejected")
