# Configuration, plans and paths. Everything here is light, and the same at every parse.
import os
import sys
from importlib.util import find_spec
from pathlib import Path

# The library beside this workflow, else one that is installed. (source_path() is of no use here: it copies a single file.)
LIBRARY = Path(workflow.snakefile).parents[2] / "scripts"
if (LIBRARY / "darkroom").is_dir():
    sys.path.insert(0, str(LIBRARY))
    # Scripts inherit it. Snakemake puts their folder at the end of the path only, where an installed library would win.
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(LIBRARY) not in inherited:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(LIBRARY), *filter(None, inherited)])
elif find_spec("darkroom") is None:
    sys.exit(
        f"error: no library darkroom, neither in {LIBRARY} nor installed; `pip install` the repository that this workflow is from"
    )

from darkroom.errors import DarkroomError
from darkroom.jobs.runtime import refusal
from darkroom.run import needs
from darkroom.run.workflow import Workflow
from snakemake.logging import logger

# A job parses this file again, on a node perhaps. It takes the plan it was submitted with: the user may have edited the rows
# meanwhile. It knows that it is one from a variable that Snakemake hands on.
IS_JOB = "DARKROOM_RUN" in os.environ
os.environ.setdefault("DARKROOM_RUN", str(os.getpid()))


envvars:
    "DARKROOM_RUN",


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

if DARKROOM.config["container"]:

    container: DARKROOM.config["container"]


RESULTS = DARKROOM.config["results"]
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
    metric="|".join(LINEAGE.metrics),
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
    return [str(Path(file).with_suffix(".manifest")) for file in files]


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


def memory(section):
    copies, held = workers(section), DARKROOM.held_bytes(section)
    size, processes = DARKROOM.model_bytes(section), max(gpus(section), 1)
    return lambda wildcards, attempt: needs.memory_mb(
        size * copies, attempt, processes, held
    )


def image_minutes(kind, section):
    size = DARKROOM.model_bytes(section)

    def minutes(wildcards, attempt):
        requests, steps, pixels = DARKROOM.image_work(kind, wildcards.shard)
        share = -(-requests // workers(section))
        return needs.image_minutes(size, share, steps, pixels, attempt)

    return minutes


def judge_minutes():
    size = DARKROOM.model_bytes("judge")
    return lambda wildcards, attempt: needs.judge_minutes(
        size, DARKROOM.score_requests(wildcards.kind, wildcards.group), attempt
    )


def model(section):
    """Input of the jobs that work with the model of a section: none where that lies in a folder."""
    if section not in DARKROOM.models:
        return []
    wanted = DARKROOM.models[section]

    def marker(wildcards):
        if wanted.commit is None:
            sys.exit(f"error: {wanted.unpinned}")
        return [ancient(str(wanted.marker))]

    return marker


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
