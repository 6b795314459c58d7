# Configuration, plans and paths. Everything here is light, and the same at every parse.
import os
import sys
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path

# The library beside this workflow, else one that is installed. (source_path() is of no use here: it copies a single file.)
LIBRARY = Path(workflow.snakefile).parents[2] / "scripts"
if (LIBRARY / "darkroom").is_dir():
    sys.path.insert(0, str(LIBRARY))
elif find_spec("darkroom") is None:
    sys.exit(
        f"error: no library darkroom, neither in {LIBRARY} nor installed; `pip install` the repository that this workflow is from"
    )

from darkroom.config.load import DEMONSTRATION, names_rows
from darkroom.errors import DarkroomError
from darkroom.jobs.runtime import search_first
from darkroom.models.hub import models_of_section
from darkroom.run.events import watch_over
from darkroom.run.lineage import manifest_of
from darkroom.run.needs import (
    gpus_of,
    needs_of_all,
    needs_of_any_shard,
    needs_of_step,
    threads_of,
)
from darkroom.run.workflow import Workflow
from darkroom.tools.watch import Teller
from snakemake.logging import logger

if (LIBRARY / "darkroom").is_dir():
    # Snakemake puts the folder of scripts at the end of their path, where an installed library would win.
    search_first(LIBRARY)

# A job parses this file again, on a node perhaps. It takes the plan it was submitted with: the user may have edited the rows
# meanwhile. It knows that it is one, and of which run, from a variable that Snakemake hands on.
IS_JOB = "DARKROOM_RUN" in os.environ
os.environ.setdefault("DARKROOM_RUN", f"{time.time_ns()}-{os.getpid()}")


envvars:
    "DARKROOM_RUN",


# Whoever includes the workflow in one of their own may give it a config without a file.
OURS = [LIBRARY.parent / name for name in ("Snakefile", "workflow/Snakefile")]
OUTERMOST = Path(workflow.main_snakefile).resolve() in [path.resolve() for path in OURS]

try:
    IS_DEMONSTRATION = not names_rows(
        config, has_file=bool(workflow.configfiles), needs_file=OUTERMOST
    )
except DarkroomError as error:
    sys.exit(f"error: {error}")

# A module may come without it.
if IS_DEMONSTRATION:

    configfile: str(LIBRARY.parent / "config/config.yaml")


try:
    DARKROOM = Workflow.open(
        config,
        planned=IS_JOB,
        # Which target is asked for is not known yet; `darkroom fetch` is what finds the commit.
        unpinned=True,
    )
    # A job's inputs are there and counted.
    AGAIN = set() if IS_JOB else DARKROOM.mark_again()
    SETTLED = set() if IS_JOB else DARKROOM.state.settled
except DarkroomError as error:
    # A WorkflowError would wrap the line into a traceback of this file.
    sys.exit(f"error: {error}")

if DARKROOM.config.container:

    container: DARKROOM.config.container


RESULTS = DARKROOM.config.results
LINEAGE = DARKROOM.lineage
STAGES = {stage.name: stage for stage in DARKROOM.stages}
STAMP = str(DARKROOM.stamp)
IMAGE_SHARD = f"{RESULTS}/{{kind}}/{{recipe}}/{{shard}}-{{rows}}"
SCORE_SHARD = (
    f"{RESULTS}/scores/{{metric}}/{{kind}}/{{scores}}-{{recipe}}/{{group}}-{{rows}}"
)
GALLERY_SHARD = f"{RESULTS}/gallery/{{kind}}/{{shown}}-{{recipe}}/{{shard}}-{{rows}}"


wildcard_constraints:
    shard="[0-9a-f]{12}x*",
    group="[0-9a-f]{12}x*",
    rows="[0-9a-f]{8}",
    recipe="[0-9a-f]{8}",
    scores="[0-9a-f]{8}",
    shown="[0-9a-f]{8}",
    kind="|".join(STAGES),
    format="imagefolder|parquet|webdataset|preferences",


def again(makes):
    """The stamp, as an input of the job that makes the file `makes`: newer than that file where it has to be made again.

    makes: a path, or a pattern that the rule's wildcards fill in.
    """
    if not AGAIN:
        return ancient(STAMP)
    return lambda wildcards: (
        STAMP if makes.format(**dict(wildcards.items())) in AGAIN else ancient(STAMP)
    )


def timed(paths, makes):
    """Inputs of the job that makes the file `makes` whose times count, unless they say what they said when it was made.

    paths: patterns, or a function of the wildcards that returns paths; makes: as in `again`.
    """
    if not SETTLED and not callable(paths):
        return paths

    def found(wildcards):
        values = dict(wildcards.items())
        files = (
            paths(wildcards)
            if callable(paths)
            else [path.format(**values) for path in paths]
        )
        settled = makes.format(**values) in SETTLED
        return [ancient(file) for file in files] if settled else files

    return found


def manifests(files):
    return [manifest_of(file) for file in files]


def checked_cluster(wildcards):
    """No file: an input function that sees whether the partitions of the Slurm profile can be read.

    Of a wrong limit the executor says nothing but a traceback. Its settings are known when inputs are asked for, and not
    before; a dry run has none.
    """
    settings = getattr(workflow, "executor_settings", None)
    path = getattr(settings, "partition_config", None)
    if IS_JOB or not path:
        return []
    from dataclasses import fields

    from darkroom.config.partitions import check_partitions
    from snakemake_executor_plugin_slurm.partitions import PartitionLimits

    try:
        check_partitions(path, [field.name for field in fields(PartitionLimits)])
    except DarkroomError as error:
        sys.exit(f"error: {error}")
    return []


# Snakemake asks for each resource of each job apart.
@cache
def needs_of_job(step, name, attempt, marker=None):
    """needs_of_step, once for all resources of a job; where it raises, as before a model is fetched, it is asked again."""
    return needs_of_step(DARKROOM, step, name, attempt, marker)


def source_manifests(kind):
    """Manifests of the pictures of this run that a shard starts from."""
    return lambda wildcards: manifests(LINEAGE.sources(kind, wildcards.shard))


def source_images(kind):
    """These pictures themselves, whose times do not count."""
    return lambda wildcards: [
        ancient(file) for file in LINEAGE.sources(kind, wildcards.shard)
    ]


def asks_for_all(rule):
    """The resources of a rule whose job reads all shards."""
    return {
        "mem_mb": lambda wildcards, attempt: needs_of_all(
            DARKROOM, rule, attempt
        ).mem_mb,
        "runtime": lambda wildcards, attempt: needs_of_all(
            DARKROOM, rule, attempt
        ).runtime,
    }


def asks_for(step, unit):
    """The resources of the jobs of a rule: functions of the work, the model and the attempt.

    step: one of the rule's steps; all have its section of the config. unit: the wildcard of a shard, or group of shards. The
    size of a hub model that is still to be fetched is not known; Snakemake asks again once the marker is there.
    """
    section = DARKROOM.device_section(step)
    of_stage = {stage: LINEAGE.step(stage, step.metric) for stage in STAGES}

    def found(wildcards, attempt, marker=None):
        of = of_stage[wildcards.get("kind", step.stage)]
        return needs_of_job(of, wildcards.get(unit), attempt, marker)

    if step.section in DARKROOM.models:
        asked = {
            "mem_mb": lambda wildcards, input, attempt: found(
                wildcards, attempt, str(input.model[0])
            ).mem_mb,
            "runtime": lambda wildcards, input, attempt: found(
                wildcards, attempt, str(input.model[0])
            ).runtime,
        }
    else:
        asked = {
            "mem_mb": lambda wildcards, attempt: found(wildcards, attempt).mem_mb,
            "runtime": lambda wildcards, attempt: found(wildcards, attempt).runtime,
        }
    # More that the config names, such as a partition, goes to the executor as it is.
    return {"gpu": gpus_of(section)} | section.resources | asked


def threads(step):
    """CPU threads of the jobs of a rule; step: as in `asks_for`."""
    section = DARKROOM.device_section(step)
    return section.resources.get("threads", threads_of(step, section))


def model(section, makes):
    """Input of the jobs that make files `makes` with the model of a section: none where that lies in a folder, and its LoRAs in files.

    makes: as in `again`. The marker's time counts for nothing; but where the model has to be fetched again, Snakemake would
    pass over jobs whose only input from that is ancient(), whatever else they are to be run for.
    """
    wanted = models_of_section(DARKROOM.models, section)
    if not wanted:
        return []

    def markers(wildcards):
        for one in wanted:
            if one.commit is None:
                sys.exit(f"error: {one.unpinned}")
        made = makes.format(**dict(wildcards.items()))
        missing = made in AGAIN or not Path(made).exists()
        paths = [str(one.marker) for one in wanted]
        return [path if missing and path in AGAIN else ancient(path) for path in paths]

    return markers


def rows_files():
    """Every file of rows."""
    return [
        LINEAGE.rows_file(rows, shard)
        for rows, plan in DARKROOM.row_plans.items()
        for shard in plan.names
    ]


def shard_files():
    """Every file of pictures and scores."""
    return [file.path for step in LINEAGE.steps() for file in LINEAGE.files(step)]


def gallery_files():
    """Every shard's file of the gallery, where one is wanted."""
    return [path for *_, path in DARKROOM.gallery_files()]


TELLER = Teller(DARKROOM, logger.info)


# The run's events are recorded by a handler on Snakemake's logger, which gets the same records as a logger plugin. A plugin
# has to be installed and named by a flag or a profile before any Snakefile is read: a fresh clone, or a run with a profile
# of the site's, would be without it.
onstart:
    try:
        watch_over(logger, DARKROOM.claim())
    except DarkroomError as error:
        sys.exit(f"error: {error}")
    # The screen tells of stages; Snakemake's own log in .snakemake/log has each job.
    TELLER.start()


def tell_end():
    """Say what there is now and what failed. The run has ended as it has, whatever comes of it."""
    from darkroom.tools.summary import ending

    TELLER.end()
    try:
        for line in ending(DARKROOM):
            logger.info(line)
    except (OSError, ImportError, DarkroomError) as error:
        logger.info(f"what failed was not counted: {error}")


# A dry run has no end that could be told of.
if not IS_JOB:
    if IS_DEMONSTRATION:
        logger.info(DEMONSTRATION)
    if line := DARKROOM.trial_line():
        logger.info(line)
    for line in DARKROOM.rejected_lines():
        logger.info(line)


onsuccess:
    tell_end()


onerror:
    tell_end()
