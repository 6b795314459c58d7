"""What a job asks the cluster for: a function of its work, its model and the attempt, for every rule.

Too little costs a retry, which asks for more (twice the time, half as much memory again) and goes on with what is finished;
too much costs a longer wait in the queue. Nothing is cut off here: the most that a job may ask for is the profile's to say.

Where the speeds come from. Images: 0.5 s per step and megapixel covers FLUX.1-dev on an 80 GB card, and smaller models,
which are no slower on smaller cards. Judge: a 7B model answers the questions about a megapixel in half a second. All else was
measured on one core of a busy 2-core machine with a local disk, 30 to 2000 requests, PNG pictures of 2 bytes a pixel; CPU
seconds, of which a job gets some ten times as many for a slow core and a network file system:

                      a request   a megapixel
    merge              0.1-0.4 ms          -
    gallery, shard        0.2 ms      230 ms
    gallery, index        0.4 ms           -
    export, folder        1.9 ms       11 ms
    export, Parquet       0.8 ms       17 ms
    export, tar files     1.3 ms       11 ms

They took 130 to 450 MB of memory, whatever the number of pictures.
"""

import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from darkroom.config.models import Config, DeviceSection, Judge, ModelSource, StageSection
from darkroom.config.options import judge_host_bytes
from darkroom.engines import DEFAULTS, family
from darkroom.metrics.rubric import JUDGE
from darkroom.models.hub import marker_bytes
from darkroom.models.identity import model_bytes
from darkroom.plan.stages import ROWS
from darkroom.run.lineage import Step

if TYPE_CHECKING:
    from darkroom.run.workflow import Workflow

# Of a step and megapixel, and of the questions about a megapixel; `make bench-gpu` measures them. A step of FLUX.1-dev takes 0.18 on an
# H200 (docs/cards.md) and 0.24 on an H100 (28 steps in 6.71 s by xDiT's docs/performance/flux.md); no question was measured.
STEP_SECONDS, QUESTION_SECONDS = 0.25, 0.5
SLOWER_CARD = 2  # times as long as that, a job that makes images may take
# Until an engine answers: imports, warm-up, kernels and graphs, on a host with a card and without one; and its weights, as fast as a
# disk of the cluster gives them. What a job asks for allows for much slower ones.
START_SECONDS, CPU_START_SECONDS, READ_BYTES_PER_SECOND = 60, 15, 500 * 10**6
# The part of the judge's time that `shards_per_job: auto` leaves to starts by these figures: half of the tenth that it promises,
# for cards that answer twice as fast.
STARTS_SHARE = 0.05
# What a hub model is taken to weigh before it is fetched, in bytes: FLUX.1-dev in bfloat16 with its text encoders; Qwen2.5-VL-7B; of a
# metric, a CLIP of the size H in float32.
HUB_MODEL_BYTES = {"generate": 34 * 10**9, "edit": 34 * 10**9, "judge": 17 * 10**9, "metrics": 4 * 10**9}
_BILLIONS = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)[Bb](?![A-Za-z0-9])")
# Times as long as with all weights on the GPU: once for each image, or for each step.
OFFLOAD_TIME = {"none": 1, "model": 2, "sequential": 5}
MOST_TOGETHER = 1000  # the most that `shards_per_job` may be
_MEGAPIXEL = 2**20
_LEAST_PICTURE = 0.01  # megapixels; a smaller picture is no faster
_PROCESS_MB = 3_000  # Python with torch, diffusers or vLLM, without a model, and the two Snakemakes around it
_START_MINUTES = 10  # imports of these from a network file system, on a busy node
_LOAD_BYTES_PER_MINUTE = 3 * 10**9  # 50 MB/s, a cold read over a network file system
_TABLE_MB, _TABLE_START_MINUTES = 1_000, 5  # the same of a process with pyarrow alone
_TABLE_BYTES = 2_000  # held of each request at the most: a line of the table, a name and its checksum
_SHARD_SECONDS = 0.05  # to open the files of one shard and read what they say of themselves


@dataclass(frozen=True)
class Needs:
    """mem_mb: host memory in MB; runtime: minutes; threads: CPU threads; gpu: GPUs."""

    mem_mb: int
    runtime: int
    threads: int = 1
    gpu: int = 0


@dataclass(frozen=True)
class Work:
    """requests: images of the job; pixels: of all its pictures together, an edit's source among them; shards: of images."""

    requests: int
    pixels: int
    shards: int = 1

    @property
    def picture_pixels(self) -> float:
        """Pixels of a request, on average."""
        return self.pixels / max(self.requests, 1)

    def __add__(self, other: "Work") -> "Work":
        return Work(self.requests + other.requests, self.pixels + other.pixels, self.shards + other.shards)


def image_seconds(section: StageSection, work: Work) -> float:
    """Seconds to make images once the engine is there, at the built-in speed: the GPUs share them."""
    kind = family(section.family)
    passes = section.sampling.steps or kind.defaults.get("steps") or DEFAULTS["steps"]
    passes *= 2 if kind.guided(section.sampling) else 1
    passes *= OFFLOAD_TIME[section.options.offload]
    share = -(-work.requests // max(gpus_of(section), 1))
    return share * passes * STEP_SECONDS * max(work.picture_pixels / _MEGAPIXEL, _LEAST_PICTURE)


def judge_seconds(work: Work, model: int) -> float:
    """Seconds to score images once the engine is there, at the built-in speed; model: bytes of the judge's weights.

    One that is ten times as large, on as many GPUs as it needs, takes six times as long.
    """
    slower = max(model / HUB_MODEL_BYTES["judge"], 1) ** 0.8
    return work.requests * QUESTION_SECONDS * slower * max(work.picture_pixels / _MEGAPIXEL, 1)


def metric_seconds(work: Work) -> float:
    """Seconds to score images by any other metric: as long as the judge would take, or less."""
    return work.requests * QUESTION_SECONDS * max(work.picture_pixels / _MEGAPIXEL, 1)


def start_seconds(section: DeviceSection, model: int) -> float:
    """Seconds until an engine is ready to work, at the built-in speed; model: bytes of its weights."""
    imports = START_SECONDS if gpus_of(section) else CPU_START_SECONDS
    return imports + model / READ_BYTES_PER_SECOND


def hub_model_bytes(name: str, model: str | None) -> int:
    """What a model of the hub is taken to weigh before it is fetched.

    name: of its section of the config. model: its own name, which often says how many billions of parameters its language
    model has; two bytes each, and 1.3 billion more that see and embed.
    """
    usual = HUB_MODEL_BYTES.get(name.partition(".")[0], HUB_MODEL_BYTES["edit"])
    said = _BILLIONS.findall(model or "") if name == "judge" else []
    return int((float(said[-1]) + 1.3) * 2 * 10**9) if said else usual


def shards_together(config: Config) -> int:
    """How many shards of images a job of the judge scores at the most: `judge.shards_per_job`, or what `auto` stands for.

    Nothing enters here that can change while scores stay good: not what was recorded, not how many rows there are, not whether the
    model is fetched. So what is done stays grouped as it is.
    """
    asked = config.judge.shards_per_job
    if asked != "auto":
        return asked
    model = known_bytes("judge", config.judge)
    samples = max(config.samples_of(rows) for rows in ROWS)
    shard = judge_seconds(Work(config.shards.size * samples, 0), model)
    return shards_for(START_SECONDS + model / READ_BYTES_PER_SECOND, shard, STARTS_SHARE)


def shards_for(start: float, shard: float, share: float) -> int:
    """How many shards a job must have so that its start is no larger share of its time; start and shard in seconds."""
    return min(max(math.ceil(start * (1 / share - 1) / max(shard, 1e-3)), 1), MOST_TOGETHER)


def known_bytes(name: str, section: ModelSource) -> int:
    """The size of a model's weights in bytes: of its folder, or what it is taken to weigh on the hub."""
    return model_bytes(section) or hub_model_bytes(name, section.model)


def image_needs(section: StageSection, work: Work, model: int, attempt: int) -> Needs:
    """Of a job that makes images; section: `generate` or `edit` of the config; model: bytes of its weights.

    Each GPU has a process and a copy of the weights, which pass through host memory, or stay there where they are offloaded.
    """
    workers = max(gpus_of(section), 1)
    return _model_needs(model, 1.3 * model * workers, workers, SLOWER_CARD * image_seconds(section, work), attempt)


def judge_needs(section: Judge, work: Work, model: int, attempt: int) -> Needs:
    """Of a job that scores images; section: `judge` of the config; model: bytes of its weights.

    Its GPUs share one model, with a process each.
    """
    held = 1.3 * model + judge_host_bytes(section)
    return _model_needs(model, held, max(gpus_of(section), 1), judge_seconds(work, model), attempt)


def metric_needs(section: DeviceSection, work: Work, model: int, attempt: int) -> Needs:
    """Of a job of any other metric."""
    return _model_needs(model, 1.3 * model, max(gpus_of(section), 1), metric_seconds(work), attempt)


def merge_needs(work: Work, attempt: int) -> Needs:
    return _table_needs(work, 0.005, 0, attempt)


def duplicates_needs(work: Work, attempt: int) -> Needs:
    """The search takes some 0.05 ms a picture among 100 000, and the more the more there are; reading them a millisecond."""
    return _table_needs(work, 0.01, 0, attempt)


def gallery_shard_needs(work: Work, attempt: int) -> Needs:
    return _table_needs(work, 0.01, 2, attempt)


def gallery_index_needs(work: Work, attempt: int) -> Needs:
    return _table_needs(work, 0.005, 0, attempt)


def export_needs(work: Work, attempt: int) -> Needs:
    """A megapixel is 3 MB of PNG at the most, read and written at 50 MB/s."""
    return _table_needs(work, 0.02, 0.2, attempt)


def plot_needs(work: Work, attempt: int) -> Needs:
    """The plots count the lines of the table and show a few dozen pictures."""
    return _table_needs(work, 0.005, 0, attempt)


def _model_needs(model: int, held: float, processes: int, seconds: float, attempt: int) -> Needs:
    """model: bytes to load; held: bytes of host memory besides what each process takes."""
    memory = _PROCESS_MB * processes + held / 10**6
    minutes = _START_MINUTES + model / _LOAD_BYTES_PER_MINUTE + seconds / 60
    return _grown(Needs(int(memory), int(minutes) + 1), attempt)


def _table_needs(work: Work, request_seconds: float, megapixel_seconds: float, attempt: int) -> Needs:
    seconds = work.requests * request_seconds + work.shards * _SHARD_SECONDS
    seconds += work.pixels / _MEGAPIXEL * megapixel_seconds
    memory = _TABLE_MB + (work.requests * _TABLE_BYTES + 12 * work.picture_pixels) / 10**6
    return _grown(Needs(int(memory), int(_TABLE_START_MINUTES + seconds / 60) + 1), attempt)


def _grown(needs: Needs, attempt: int) -> Needs:
    """After a failure: half as much memory again, and twice the time."""
    return replace(
        needs, mem_mb=int(needs.mem_mb * (1 + 0.5 * (attempt - 1))), runtime=needs.runtime * 2 ** (attempt - 1)
    )


def gpus_of(section: DeviceSection) -> int:
    """GPUs of a job of a stage or a metric: none where its section of the config says cpu."""
    return 0 if section.device == "cpu" else section.gpus


def threads_of(step: Step, section: DeviceSection) -> int:
    """CPU threads of a step's jobs: models on the CPU repeat exactly on one; each process of its own on a GPU gets a few."""
    gpus = gpus_of(section)
    return 4 * (gpus if step.metric is None else 1) if gpus else 1


_TABLE_RULES: dict[str, Callable[[Work, int], Needs]] = {
    "find_duplicates": duplicates_needs,
    "merge_scores": merge_needs,
    "gallery_shard": gallery_shard_needs,
    "gallery_index": gallery_index_needs,
    "write_dataset": export_needs,
    "export_dataset": export_needs,
    "draw_plots": plot_needs,
}


def needs_of_all(workflow: "Workflow", rule: str, attempt: int = 1) -> Needs:
    """What a job asks for that is made of all shards."""
    work = sum((work_of(workflow, name, plan.names) for name, plan in workflow.plans.items()), Work(0, 0, 0))
    return _TABLE_RULES[rule](work, attempt)


def needs_of_any_shard(workflow: "Workflow", rule: str) -> Needs:
    """What every job of a rule asks for that reads one shard of images and loads no model: enough for the largest shard, twice over.

    It is one figure for all of them, at each attempt: Snakemake takes as long over a function of the job for each of ten thousand
    small jobs as over the rest of such a job.
    """
    asked = [_TABLE_RULES[rule](Work(0, 0, 0), 2)]
    for stage, plan in workflow.plans.items():
        largest = sorted(plan.names, key=partial(workflow.requests, stage))[-1:]  # none where there are no rows
        asked.append(_TABLE_RULES[rule](work_of(workflow, stage, largest), 2))
    return Needs(max(needs.mem_mb for needs in asked), max(needs.runtime for needs in asked))


def needs_of_step(workflow: "Workflow", step: Step, name: str, attempt: int = 1, marker: str | None = None) -> Needs:
    """What a job of a step asks for.

    name: of its shard, or group of shards. marker: what says which files of the hub were fetched for the job, where its model is
    from there. `resources` in the step's section of the config replaces what is named there, at every attempt.
    Raises FileNotFoundError where the marker is not written yet.
    """
    section = workflow.device_section(step)
    work = work_of(workflow, step.stage, [name] if step.metric is None else workflow.groups[step.stage].members[name])
    if step.metric is None:
        needs: Callable[..., Needs] = image_needs
    elif step.metric == JUDGE:
        needs = judge_needs
    else:
        needs = metric_needs
    model = marker_bytes(marker) if marker else workflow.model_bytes.get(step.section, 0)
    asked = replace(needs(section, work, model, attempt), threads=threads_of(step, section), gpu=gpus_of(section))
    given: dict[str, Any] = {name: value for name, value in section.resources.items() if name in vars(asked)}
    return replace(asked, **given)


def seconds_of_step(workflow: "Workflow", step: Step, work: Work) -> float:
    """Seconds that a step's engine works, at the built-in speed, without its start."""
    if step.metric is None:
        return image_seconds(workflow.config.section(step.section), work)
    if step.metric == JUDGE:
        return judge_seconds(work, workflow.model_bytes[step.section])
    return metric_seconds(work)


def start_of_step(workflow: "Workflow", step: Step) -> float:
    """Seconds until a step's engine is there, at the built-in speed: none where it has neither a model nor a GPU."""
    section, model = workflow.device_section(step), workflow.model_bytes.get(step.section, 0)
    return start_seconds(section, model) if model or gpus_of(section) else 0.0


def work_of(workflow: "Workflow", stage: str, shards: Collection[str]) -> Work:
    """The work of some shards of images, each of the size that the config has; where one starts from another, of both."""
    made = workflow.stage(stage)
    pictures = 2 if made.reads else 1
    while made.every:  # as large as what it is made from
        made = workflow.stage(made.reads or "")
    sampling = workflow.config.section(made.section).sampling
    pixels = (sampling.width or 1024) * (sampling.height or 1024) * pictures
    requests = sum(workflow.requests(stage, shard) for shard in shards)
    return Work(requests, requests * pixels, len(shards))
