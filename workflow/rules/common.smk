# Configuration, plans and digests. Everything here is light, and the same at every parse.
import inspect
import sys
from pathlib import Path

# Not workflow.basedir, which is another repository where this workflow is a module of a larger one.
REPOSITORY = Path(workflow.current_basedir.get_path_or_uri(secret_free=True)).parents[1]
if not (REPOSITORY / "scripts/darkroom").is_dir():
    sys.exit(
        f"error: {REPOSITORY}: Darkroom needs its library beside it; clone the repository, and name its Snakefile there"
    )

sys.path.insert(0, str(REPOSITORY / "scripts"))

from darkroom.run.needs import gpus_of, needs_of, threads_of
from darkroom.jobs.devices import visible_devices
from darkroom.errors import DarkroomError
from darkroom.views.gallery import site_files
from darkroom.jobs.runtime import refusal
from darkroom.run.workflow import Workflow
from snakemake.jobs import Job

try:
    DARKROOM = Workflow.open(
        config,
        schema=REPOSITORY / "workflow/schemas/config.schema.yaml",
        roots=[Path.cwd(), REPOSITORY],
        # A job on a node takes the plan it was submitted with: the user may have edited the rows meanwhile.
        planned=not workflow.is_main_process,
        # Which target is asked for is not known yet; fetch_models is what finds the commit.
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


def quick(function):
    """The function with its signature at hand: Snakemake looks that up several times per job, for tens of thousands of jobs."""
    function.__signature__ = inspect.signature(function)
    return function


def asks_for(rule, kind=None, unit=None, section=None):
    """The resources of a rule, functions of its work and the attempt.

    kind: of its images, where no wildcard names it; unit: the wildcard of its shard, or group of shards; section: of its
    model. The size of a hub model that is still to be fetched is not known; Snakemake asks again once the marker is there.
    """

    def needs(wildcards, input, attempt):
        images = kind or wildcards.get("kind")
        marker = str(input.model[0]) if input.get("model") else None
        return needs_of(DARKROOM, rule, attempt, images, wildcards.get(unit), marker)

    def of(name):
        return quick(
            lambda wildcards, input, attempt: getattr(
                needs(wildcards, input, attempt), name
            )
        )

    gpus = {"gpu": gpus_of(DARKROOM.config[section])} if section else {}
    return {"mem_mb": of("mem_mb"), "runtime": of("runtime")} | gpus


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


onstart:
    try:
        DARKROOM.claim(log)
    except DarkroomError as error:
        sys.exit(f"error: {error}")
    for path in DARKROOM.results("logs").rglob("*.refused"):
        path.unlink()
