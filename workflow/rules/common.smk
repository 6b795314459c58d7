# Configuration, plans and digests. Everything here is light, and the same at every parse.
import sys
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir) / "scripts"))

from darkroom import resources as needs
from darkroom.errors import DarkroomError
from darkroom.workflow import Workflow

try:
    DARKROOM = Workflow.open(
        config,
        schema=Path(workflow.basedir) / "workflow/schemas/config.schema.yaml",
        roots=[Path.cwd(), Path(workflow.basedir)],
        # A job on a node takes the plan it was submitted with: the user may have edited the rows meanwhile.
        planned=not workflow.is_main_process,
    )
except DarkroomError as error:
    # A WorkflowError would wrap the line into a traceback of this file.
    sys.exit(f"error: {error}")

RESULTS = DARKROOM.config["results"]
KINDS = list(DARKROOM.plans)
ROWS = {"images": "prompts", "edited": "edits"}
TABLES = [
    f"{RESULTS}/scores.parquet",
    f"{RESULTS}/scores.csv",
    f"{RESULTS}/rejected.jsonl",
]
PLOTS = DARKROOM.plots()
DATASET = {kind: str(path) for kind, path in DARKROOM.dataset_files().items()}


wildcard_constraints:
    shard="[0-9a-f]{12}x*",
    kind="images|edited",


def shard_files(kind):
    """Every file of every shard of a kind."""
    return expand(
        [
            f"{RESULTS}/{ROWS[kind]}/{{shard}}.jsonl",
            f"{RESULTS}/{kind}/{{shard}}.parquet",
            f"{RESULTS}/scores/{kind}/{{shard}}.parquet",
        ],
        shard=DARKROOM.plans[kind].names,
    )


def gpus(section):
    """GPUs of a stage's jobs: none where the config says cpu."""
    wanted = DARKROOM.config[section]
    return 0 if wanted["device"] == "cpu" else wanted["gpus"]


def job_threads(section):
    """CPU threads of a stage's jobs: models on the CPU repeat exactly on one; a GPU's job feeds it with a few."""
    return 1 if DARKROOM.config[section]["device"] == "cpu" else 4


def memory(section):
    size = DARKROOM.model_bytes(section)
    return lambda wildcards, attempt: needs.memory_mb(size, attempt)


def image_minutes(kind, section):
    return lambda wildcards, attempt: needs.image_minutes(
        *DARKROOM.image_work(kind, wildcards.shard), attempt
    )


# What is to be made again is told by the files themselves: Snakemake's records can be lost, or wrong after a failed job.
AGAIN = set()
if workflow.is_main_process:
    AGAIN |= {str(path) for path in DARKROOM.outdated_files()}
    if DARKROOM.config["retry_failed"]:
        AGAIN |= {str(path) for path in DARKROOM.failed_files()}


def reads(paths, makes):
    """Input files of the job that makes the file `makes`: their times count only where that is to be made anyway.

    Without ancient() a touched shard of more than a megabyte would make all that follows stale; with it always, Snakemake
    would pass over a stale file whose input is made anew in the same run.
    """
    stays = (
        workflow.is_main_process and str(makes) not in AGAIN and Path(makes).exists()
    )
    return [ancient(path) for path in paths] if stays else paths


def all_files(wildcards):
    """Every file of every shard; an input function, for only when the DAG is built it can be told what to make again."""
    if workflow.is_main_process:
        # The same as --forcerun, which is read before the Snakefile is.
        workflow.dag.forcefiles.update(AGAIN)
    return [path for kind in KINDS for path in shard_files(kind)]


onstart:
    try:
        DARKROOM.claim(log)
    except DarkroomError as error:
        sys.exit(f"error: {error}")
