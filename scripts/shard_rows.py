"""Write the rows of one shard, as the plan has them (rules shard_prompts and shard_edits)."""

from typing import TYPE_CHECKING

from darkroom.files import replacing
from darkroom.jobs.runtime import job, say
from darkroom.run.workflow import Workflow

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake.log[0]):
    workflow = Workflow.of_job(snakemake.config)
    plan = workflow.row_plans[snakemake.params.rows]
    workflow.check_planned(snakemake.output[0], snakemake.params.rows, snakemake.wildcards.shard)
    shard = plan.shards[snakemake.wildcards.shard]
    with replacing(snakemake.output[0]) as temporary:
        temporary.write_bytes(plan.read(shard.name))
    say(f"{shard.rows} rows, {shard.rejected} rejected")
