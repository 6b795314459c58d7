# Configuration, plans and digests. Everything here is light, and the same at every parse.
import inspect
import sys
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

from darkroom.run import needs
from darkroom.jobs.devices import visible_devices
from darkroom.errors import DarkroomError
from darkroom.views.gallery import site_files
from darkroom.jobs.runtime import refusal
from darkroom.run.workflow import Workflow
from snakemake.jobs import Job
from snakemake.logging import logger

try:
    DARKROOM = Workflow.open(
        config,
        # A job on a node takes the plan it was submitted with: the user may have edited the rows meanwhile.
        planned=not workflow.is_main_process,
        # Which target is asked for is not known yet; `darkroom fetch` is what finds the commit.
        unpinned=True,
    )
except DarkroomError as error:
    # A WorkflowError would wrap the line into a traceback of this file.
    sys.exit(f"error: {error}")

if DARKROOM.config["container"]:

    container: DARKROOM.config["container"]


RESULTS = DARKROOM.config["results"]
KINDS = list(DARKROOM.plans)
ROWS = {"images": "prompts", "edited": "edits"}
TABLES = [
    f"{RESULTS}/scores.parquet",
    f"{RESULTS}/scores.csv",
    f"{RESULTS}/rejected.jsonl",
]
EXPORTS = {
    format: [str(path) for path in files]
    for format, files in DARKROOM.export_files().items()
}
GALLERY = (
    [f"{RESULTS}/gallery/{name}" for name in [*site_files(), "index.js"]]
    if DARKROOM.config["gallery"]["enabled"]
    else []
)
PLOTS = [str(path) for path in DARKROOM.plot_files()]


wildcard_constraints:
    shard="[0-9a-f]{12}x*",
    group="[0-9a-f]{12}x*",
    kind="images|edited",
    format="imagefolder|parquet|webdataset|preferences",


def shard_files(kind):
    """Every file of every shard of a kind."""
    files = [
        f"{RESULTS}/{ROWS[kind]}/{{shard}}.jsonl",
        f"{RESULTS}/{kind}/{{shard}}.parquet",
    ]
    return expand(files, shard=DARKROOM.plans[kind].names) + expand(
        f"{RESULTS}/scores/{kind}/{{group}}.parquet",
        group=DARKROOM.groups[kind].members,
    )


def score_file(kind, shard):
    """The file that holds the scores of an image shard."""
    return str(DARKROOM.score_file(kind, shard))


def gallery_files():
    """Every shard's file of the gallery, where one is wanted."""
    return [str(path) for *_, path in DARKROOM.gallery_files()] if GALLERY else []


def gpus(section):
    """GPUs of a stage's jobs: none where the config says cpu."""
    wanted = DARKROOM.config[section]
    return 0 if wanted["device"] == "cpu" else wanted["gpus"]


def workers(section):
    """Processes of a stage's jobs: each GPU has one, but the judge's share one model."""
    return 1 if section == "judge" else max(1, gpus(section))


def job_threads(section):
    """CPU threads of a stage's jobs: models on the CPU repeat exactly on one; a GPU is fed with a few."""
    return 4 * workers(section) if gpus(section) else 1


def quick(function):
    """The function with its signature at hand: Snakemake looks that up several times per job, for tens of thousands of jobs."""
    function.__signature__ = inspect.signature(function)
    return function


def memory(section):
    copies, held = workers(section), DARKROOM.held_bytes(section)
    size, processes = DARKROOM.model_bytes(section), max(gpus(section), 1)
    return quick(
        lambda wildcards, attempt: needs.memory_mb(
            size * copies, attempt, processes, held
        )
    )


def image_minutes(kind, section):
    size = DARKROOM.model_bytes(section)

    def minutes(wildcards, attempt):
        requests, steps, pixels = DARKROOM.image_work(kind, wildcards.shard)
        share = -(-requests // workers(section))
        return needs.image_minutes(size, share, steps, pixels, attempt)

    return quick(minutes)


def judge_minutes():
    size = DARKROOM.model_bytes("judge")
    return quick(
        lambda wildcards, attempt: needs.judge_minutes(
            size, DARKROOM.score_requests(wildcards.kind, wildcards.group), attempt
        )
    )


# What is to be made again is told by the files themselves: Snakemake's records can be lost, or wrong after a failed job.
CURRENT, AGAIN = set(), set()
if workflow.is_main_process:
    CURRENT, AGAIN = DARKROOM.sorted_files()
    if DARKROOM.config["retry_failed"]:
        AGAIN |= {str(path) for path in DARKROOM.failed_files()}
    AGAIN |= {str(path) for path in DARKROOM.outdated_models(AGAIN)}
    CURRENT -= AGAIN


def reads(paths, makes):
    """Input files of the job that makes the file `makes`: their times count only where that is to be made anyway.

    Without ancient() a touched shard of more than a megabyte would make all that follows stale; with it always, Snakemake
    would pass over a stale file whose input is made anew in the same run.
    """
    return [ancient(path) for path in paths] if makes in CURRENT else paths


def reads_one(path, makes, jobs):
    """As `reads`, where every job reads one file: patterns, and the wildcard values of all jobs.

    An input function costs as much as all else about a job, so it is one only where some jobs have to run and some have not.
    """
    current = sum(makes.format(**job) in CURRENT for job in jobs)
    if not current:
        return path
    if current == len(jobs):
        return ancient(path)
    return lambda wildcards: reads(
        [path.format(**dict(wildcards.items()))],
        makes.format(**dict(wildcards.items())),
    )[0]


def model(section, makes):
    """Input of the jobs that make files `makes` with the model of a section: none where that lies in a folder."""
    if section not in DARKROOM.models:
        return []
    wanted = DARKROOM.models[section]

    def marker(wildcards):
        if wanted.commit is None:
            sys.exit(f"error: {wanted.unpinned}")
        return reads([str(wanted.marker)], makes.format(**dict(wildcards.items())))

    return marker


def all_files(wildcards):
    """Every file of every shard; an input function, for only when the DAG is built it can be told what to make again."""
    if workflow.is_main_process:
        # The same as --forcerun, which is read before the Snakefile is.
        workflow.dag.forcefiles.update(AGAIN)
        if workflow.local_exec and "gpu" not in workflow.global_resources:
            # The same as --resources gpu=N, without which Snakemake takes GPUs to be endless. Jobs wait for a device of
            # their own in any case, but each of them that waits is a process.
            if number := len(visible_devices()):
                workflow.global_resources["gpu"] = number
    return [path for kind in KINDS for path in shard_files(kind)] + gallery_files()


def retries(job):
    """How often a job is run again; Snakemake knows no failure that another try cannot cure, but our jobs say so."""
    refused = any(refusal(path).exists() for path in job.log)
    return 0 if refused else job.rule.restart_times


if workflow.is_main_process:
    Job.restart_times = property(retries)


# The run's events are recorded by a handler on Snakemake's logger, which gets the same records as a logger plugin. A plugin
# has to be installed and named by a flag or a profile before any Snakefile is read: a fresh clone, or a run with a profile
# of the site's, would be without it.
onstart:
    try:
        logger.addHandler(DARKROOM.claim())
    except DarkroomError as error:
        sys.exit(f"error: {error}")
    for path in DARKROOM.results("logs").rglob("*.refused"):
        path.unlink()
