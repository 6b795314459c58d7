"""What a run will cost, before it is started: time on so many GPUs, what jobs ask for, starts of engines, disk.

What there is to do is the forecast's to say. The speed of a step is that of its jobs so far (`jobs.history`), or, where none has made
anything yet, the one that is built in (`run.needs`).
"""

import heapq
import itertools
import os
import shutil
import textwrap
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean, median

from darkroom.errors import DarkroomError
from darkroom.jobs.history import against_expected, around, benchmarks, read_records, speed
from darkroom.jobs.terminal import clock, columns, size
from darkroom.plan.stages import like
from darkroom.run.lineage import Step
from darkroom.run.needs import (
    Needs,
    Work,
    needs_of_all,
    needs_of_any_shard,
    needs_of_step,
    seconds_of_step,
    shards_for,
    start_of_step,
    work_of,
)
from darkroom.run.outputs import Output
from darkroom.run.workflow import Workflow
from darkroom.store.manifest import SUFFIX, read_manifest
from darkroom.tools.forecast import StageForecast
from darkroom.views.gallery import PREVIEW_PACK, THUMBNAIL_PACK

MUCH = 0.1  # the share of starts from which a setting that lowers it is named
GPUS = (1, 8, 32)  # told unless the user names others
# Built in, as `run.needs` has them: seconds of a job without a model, and of a request and a megapixel of it.
_JOB_SECONDS, _PLOT_SECONDS = 2.0, 8.0
_OTHER_SECONDS = {
    "gallery_shard": (0.0002, 0.23),
    "find_duplicates": (0.0004, 0.0),
    "merge_scores": (0.0004, 0.0),
    "gallery_index": (0.0004, 0.0),
    "write_dataset": (0.0019, 0.011),
    "export_dataset": (0.0013, 0.017),
    "draw_plots": (0.0004, 0.0),
}
# Bytes of a pixel of a picture, as it is stored.
_PIXEL = {"png": 2.0, "webp-lossless": 1.6, "jpeg": 0.5}
# Bytes of a record beside its picture; of its scores; of its line in the tables; of a job's logs.
_RECORD, _SCORES, _LINE, _LOGS = 500, 1000, 1500, 6000
_WEBP_PIXEL = 0.2 * 4 / 3  # in base64
_WIDTH, _MARGIN = 100, 8  # of the lines below the tables
_OTHERS = "rows, tables, gallery"
_SAMPLE = 50  # files that are there, whose size is looked at
_MEGAPIXEL = 2**20


@dataclass(frozen=True)
class Pace:
    """How fast the jobs of a step are, in seconds.

    start: of a job, before and after its work; request: of its work; idle: of a job that finds nothing to make. jobs: how many
    have told it, 0 where it is built in.
    """

    start: float
    request: float
    idle: float
    jobs: int

    def seconds(self, requests: int) -> float:
        """Of a job that makes so many."""
        return self.start + requests * self.request if requests else self.idle


@dataclass(frozen=True)
class Task:
    """A job to come. path: what it makes; inputs: paths that others may have to make first."""

    rule: str
    path: str
    seconds: float
    gpus: int = 0
    inputs: Sequence[str] = ()


@dataclass(frozen=True)
class Room:
    """What will be written. count: files and folders."""

    name: str
    bytes: float
    count: float


@dataclass
class StageCosts:
    """A step whose files are to be made. needs: what its jobs ask for, each once; requests: what their files are about."""

    told: StageForecast
    pace: Pace
    needs: set[Needs]
    requests: int

    @property
    def seconds(self) -> float:
        """Of all its jobs, one after another."""
        return sum(self.pace.seconds(new) for _, new in self.told.files)

    @property
    def starting(self) -> float:
        """Seconds of these in which no engine works yet."""
        return sum(self.pace.seconds(new) - new * self.pace.request for _, new in self.told.files)

    @property
    def share(self) -> float:
        """The part of the time that starts take."""
        return self.starting / self.seconds if self.seconds else 0.0


@dataclass
class Costs:
    """stages: those that have something to do. tasks: every job, those of tables and the gallery among them."""

    workflow: Workflow
    stages: list[StageCosts]
    tasks: list[Task] = field(default_factory=list)

    @property
    def gpu_hours(self) -> float:
        return sum(task.seconds * task.gpus for task in self.tasks) / 3600

    @property
    def seconds(self) -> float:
        """Of all jobs, one after another."""
        return sum(task.seconds for task in self.tasks)

    @cached_property
    def others(self) -> list[Task]:
        """The jobs of no stage: rows, tables, exports, plots, the gallery."""
        made = {file.path for stage in self.stages for file, _ in stage.told.files}
        return [task for task in self.tasks if task.path not in made]

    @cached_property
    def rooms(self) -> list[Room]:
        """What will be written, by kind."""
        return list(_rooms(self))


def costs(workflow: Workflow, forecast: list[StageForecast], records: Path | None = None) -> Costs:
    """What the run of a forecast will cost.

    records: another results folder whose jobs tell the speeds. Raises DarkroomError where it has no records.
    """
    folder = workflow.results() if records is None else records
    if records is not None and not (records / "benchmarks").is_dir():
        raise DarkroomError(f"{records}: no job has recorded anything there; name the results folder of a run")
    stages = [_stage_costs(workflow, told, folder) for told in forecast if told.jobs]
    found = Costs(workflow, stages)
    found.tasks = list(_tasks(workflow, stages, folder))
    return found


def _stage_costs(workflow: Workflow, told: StageForecast, results: Path) -> StageCosts:
    step, names = told.step, [file.name for file, _ in told.files]
    requests = sum(workflow.step_requests(step, name) for name in names)
    needs = {needs_of_step(workflow, step, name) for name in names}
    return StageCosts(told, _pace(workflow, told, results), needs, requests)


def _pace(workflow: Workflow, told: StageForecast, results: Path) -> Pace:
    step = told.step
    folder = results / workflow.history_folder(step).relative_to(workflow.results())
    records = list(read_records(folder))
    if step.metric is not None and not workflow.metric(step.metric).columns(like(step.stage)):
        return Pace(_JOB_SECONDS, 0.0, _JOB_SECONDS, 0)  # nothing is asked, no engine started
    names = [file.name for file, _ in told.files]
    if step.metric is not None:
        groups = workflow.groups[step.stage].members
        names = [shard for name in names for shard in groups[name]]
    work = work_of(workflow, step.stage, names)
    each = seconds_of_step(workflow, step, work) / max(work.requests, 1)
    workers = max(workflow.gpus(step), 1) if step.metric is None else 0  # a metric's GPUs work on each request together
    if known := speed(records, workers):
        start, request = known
        if slower := against_expected(records):  # other steps, other sizes: as much longer as they should be
            request = slower * each
        outside = around(folder)
        idle = [record["seconds"] for record in records if record["made"] == 0]
        made = sum(record["made"] > 0 for record in records)
        return Pace(start + outside, request, median(idle or [_JOB_SECONDS]) + outside, made)
    if told.sized:  # of edits, as large as their sources are
        pixels = told.pixels * (2 if workflow.stage(step.stage).reads else 1)
        each = seconds_of_step(workflow, step, Work(told.sized, pixels)) / told.sized
    return Pace(_JOB_SECONDS + start_of_step(workflow, step), each, _JOB_SECONDS, 0)


# ------------------------------------------------------------------------------------------------- jobs


def _tasks(workflow: Workflow, stages: list[StageCosts], results: Path) -> Iterator[Task]:
    """Every job to come, each after those whose files it reads."""
    lineage, wanted = workflow.lineage, set[str]()
    other = _Others(results)
    for rows, plan in workflow.row_plans.items():
        for shard in plan.names:
            path = lineage.rows_file(rows, shard)
            if not os.path.exists(path):
                yield Task(f"shard_{rows}", path, other.seconds(f"shard_{rows}", Work(0, 0)))
    for stage in stages:
        step, gpus = stage.told.step, workflow.gpus(stage.told.step)
        made = workflow.stage(step.stage)
        for file, new in stage.told.files:
            wanted.add(file.path)
            inputs = [] if step.metric else [lineage.rows_file(made.rows, file.name)]
            rule = f"score_{step.metric}" if step.metric else made.rule
            yield Task(rule, file.path, stage.pace.seconds(new), gpus, [*inputs, *file.inputs])
    for kind, shard, path in workflow.gallery_files():
        inputs = workflow.gallery_inputs(kind, shard)
        if not os.path.exists(path) or path in workflow.state.again or wanted.intersection(inputs):
            yield Task(
                "gallery_shard", path, other.seconds("gallery_shard", work_of(workflow, kind, [shard])), 0, inputs
            )
    yield from _of_all(workflow, wanted, other)


def _of_all(workflow: Workflow, wanted: set[str], other: "_Others") -> Iterator[Task]:
    """The jobs that are made of all shards."""
    work = sum((work_of(workflow, stage, plan.names) for stage, plan in workflow.plans.items()), Work(0, 0, 0))
    tables, again = workflow.tables, workflow.state.again
    after = [
        ("write_dataset" if name == "folder" else "export_dataset", output) for name, output in workflow.exports.items()
    ]
    after += [("draw_plots", workflow.plots)] if workflow.plots else []
    after += [("gallery_index", workflow.gallery)] if workflow.gallery else []

    def is_due(output: Output) -> bool:
        return output.made in again or not all(map(os.path.exists, [output.made, *output.files]))

    compared = workflow.duplicates
    looked_for = compared is not None and (is_due(compared) or not wanted.isdisjoint(workflow.compared_files()))
    if compared and looked_for:
        yield Task("find_duplicates", compared.made, other.seconds("find_duplicates", work), 0, list(wanted))
    merged = bool(wanted) or looked_for or is_due(tables)
    if merged:
        after_all = [*wanted, *([compared.made] if compared else [])]
        yield Task("merge_scores", tables.made, other.seconds("merge_scores", work), 0, after_all)
    for rule, output in after:
        if merged or is_due(output):
            shown = [path for *_, path in workflow.gallery_files()] if output is workflow.gallery else []
            yield Task(rule, output.made, other.seconds(rule, work), 0, [tables.made, *shown])


@dataclass
class _Others:
    """How long jobs without a model take: as those of their rule did, at the built-in speed where none ran."""

    results: Path
    known: dict[str, float | None] = field(default_factory=dict)

    def seconds(self, rule: str, work: Work) -> float:
        if rule not in self.known:
            taken = benchmarks(self.results / "benchmarks" / rule).seconds
            self.known[rule] = fmean(taken.values()) if taken else None
        request, megapixel = _OTHER_SECONDS.get(rule, (0.0, 0.0))
        built_in = work.requests * request + work.pixels / _MEGAPIXEL * megapixel
        # A job of all shards that was recorded may have had few of them.
        start = self.known[rule] or (_PLOT_SECONDS if rule == "draw_plots" else _JOB_SECONDS)
        return max(start, built_in) if self.known[rule] else start + built_in


def wall_seconds(tasks: Iterable[Task], gpus: int, jobs: int) -> float:
    """Seconds from the start to the end, by the clock.

    gpus: how many there are, for the jobs that use some. jobs: how many others run at a time. Each starts as soon as its inputs are
    there and there is room for it, in the order of `tasks`.
    """
    todo = {task.path: task for task in tasks}
    waits = {path: sum(one in todo for one in dict.fromkeys(task.inputs)) for path, task in todo.items()}
    after: dict[str, list[str]] = {}
    for path, task in todo.items():
        for one in dict.fromkeys(task.inputs):
            if one in todo:
                after.setdefault(one, []).append(path)
    ready: dict[bool, deque[str]] = {True: deque(), False: deque()}  # whether it uses GPUs
    room = {True: max(gpus, 1), False: max(jobs, 1)}
    running: list[tuple[float, int, str]] = []
    now, number = 0.0, 0

    def takes(path: str) -> int:
        return min(todo[path].gpus, max(gpus, 1)) or 1

    for path in todo:
        if not waits[path]:
            ready[todo[path].gpus > 0].append(path)
    while any(ready.values()) or running:
        for kind, queue in ready.items():
            while queue and takes(queue[0]) <= room[kind]:
                path = queue.popleft()
                room[kind] -= takes(path)
                heapq.heappush(running, (now + todo[path].seconds, number, path))
                number += 1
        now, _, path = heapq.heappop(running)
        room[todo[path].gpus > 0] += takes(path)
        for one in after.get(path, ()):
            waits[one] -= 1
            if not waits[one]:
                ready[todo[one].gpus > 0].append(one)
    return now


# ------------------------------------------------------------------------------------------------- disk


def _rooms(costs: Costs) -> Iterator[Room]:
    workflow = costs.workflow
    doing = {task.path for task in costs.tasks}
    rules = [task.rule for task in costs.tasks]
    requests = {
        kind: sum(workflow.requests(kind, shard) for shard in plan.names) for kind, plan in workflow.plans.items()
    }
    pictures = {kind: _picture_bytes(costs, kind) for kind in requests}
    for stage in costs.stages:
        step = stage.told.step
        each = pictures[step.stage] if step.metric is None else _recorded_bytes(workflow, step) or _SCORES
        yield Room(step.name, stage.requests * each, 2 * stage.told.jobs)
    shown = [(kind, shard) for kind, shard, path in workflow.gallery_files() if path in doing]
    if shown or "gallery_index" in rules:
        yield _gallery_room(costs, shown)
    if "merge_scores" in rules:
        yield Room("tables", sum(requests.values()) * _LINE, 4 if "find_duplicates" in rules else 3)
    total = sum(number * pictures[kind] for kind, number in requests.items())
    for format, output in workflow.exports.items():
        if output.made in doing:
            single = sum(number * (2 if workflow.stage(kind).reads else 1) for kind, number in requests.items())
            packed = total / (workflow.config.export.file_mb * 10**6) + 1
            name = "dataset" if format == "folder" else f"exports/{format}"
            files = single if format in ("folder", "imagefolder") else packed
            yield Room(f"{name} (all selected)", total, files + 4)
    rows = sum(shard.length for plan in workflow.row_plans.values() for shard in plan.shards.values())
    others = sum(rule.startswith("shard_") for rule in rules)
    jobs = sum(stage.told.jobs for stage in costs.stages)
    plots = 2 * len(workflow.figures) if "draw_plots" in rules else 0
    held = (rows if others else 0) + len(rules) * _LOGS
    yield Room("rows, logs", held, others + 2 * len(rules) + jobs + plots)


def _pixels(costs: Costs, kind: str) -> float:
    """Of a picture of a stage, on average; its source not counted."""
    for stage in costs.stages:
        if stage.told.step.stage == kind and stage.told.sized:
            return stage.told.pixels / stage.told.sized
    workflow = costs.workflow
    work = work_of(workflow, kind, workflow.plans[kind].names)
    return work.picture_pixels / (2 if workflow.stage(kind).reads else 1)


def _picture_bytes(costs: Costs, kind: str) -> float:
    """Of a request in a file of pictures: as those that are there, else of as many pixels, the source's among them."""
    workflow = costs.workflow
    known = _recorded_bytes(workflow, workflow.lineage.step(kind))
    stored = workflow.section(kind).image_format
    pixel = _PIXEL[stored if isinstance(stored, str) else next(iter(stored))]
    return known or _pixels(costs, kind) * (2 if workflow.stage(kind).reads else 1) * pixel + _RECORD


def _recorded_bytes(workflow: Workflow, step: Step) -> float | None:
    """Bytes of a request in the files of a step that are there, None where there is none."""
    total, records = 0, 0
    for path in itertools.islice(workflow.results(*step.name.split("/")).glob("*/*.parquet"), _SAMPLE):
        if manifest := read_manifest(path.with_suffix(SUFFIX)):
            total, records = total + path.stat().st_size, records + manifest["records"]
    return total / records if records else None


def _gallery_room(costs: Costs, shown: list[tuple[str, str]]) -> Room:
    """Of the shards' files that are to be made; a picture is shown small, and large where it is larger than that."""
    workflow, total, count = costs.workflow, 0.0, 8.0  # the page's own files
    options = workflow.config.gallery
    for kind in workflow.plans:
        shards = [shard for stage, shard in shown if stage == kind]
        requests, pixels = sum(workflow.requests(kind, shard) for shard in shards), _pixels(costs, kind)
        pictures = requests * (2 if workflow.stage(kind).reads else 1)
        small = pictures * min(pixels, options.thumbnail**2) * _WEBP_PIXEL
        large = 0.0
        if options.preview and pixels > options.thumbnail**2:
            large = pictures * min(pixels, options.preview**2) * _WEBP_PIXEL
        total += small + large + requests * _LINE
        # A file and a folder of each shard, and its packs.
        count += len(shards) * (4 if large else 3) + small / THUMBNAIL_PACK + large / PREVIEW_PACK
    return Room("gallery", total, count)


# ------------------------------------------------------------------------------------------------- text


def text(costs: Costs, forecast: list[StageForecast], gpus: Sequence[int] = (), jobs: int = 0) -> str:
    """What there is to do and what it costs, for a terminal.

    gpus: how many GPUs to say the time for, the usual ones unless told. jobs: how many jobs without one run at a time, as many as this
    machine has CPUs unless told.
    """
    known = {stage.told.name: stage for stage in costs.stages}
    rows: list[tuple[str, ...]] = [
        ("stage", "shards", "missing", "stale", "to make", "carried over", "time", "GPU-hours")
    ]
    for told in forecast:
        seconds = known[told.name].seconds if told.name in known else 0.0
        hours = seconds * costs.workflow.gpus(told.step) / 3600
        counts = (told.shards, told.missing, told.stale, told.to_make, told.carried)
        rows.append((told.name, *map(str, counts), clock(seconds), f"{hours:.2f}"))
    if others := costs.others:
        rows.append((_OTHERS, "", "", "", "", "", clock(sum(task.seconds for task in others)), "0.00"))
    if not costs.tasks:
        return columns(rows)
    lines = _lines(costs, gpus, jobs or len(os.sched_getaffinity(0)))
    wrapped = (textwrap.fill(line, _WIDTH, subsequent_indent=" " * _MARGIN, break_on_hyphens=False) for line in lines)
    return "\n\n".join([columns(rows), _asked(costs), "\n".join(wrapped)])


def _asked(costs: Costs) -> str:
    """What the jobs of each kind ask for."""
    rows: list[tuple[str, ...]] = [
        ("a job of", "jobs", "images", "takes", "asks for memory", "GPUs", "threads", "runtime")
    ]
    for stage in costs.stages:
        jobs = stage.told.jobs
        numbers = f"{jobs}", f"{stage.requests / jobs:.0f}", clock(stage.seconds / jobs)
        rows.append((stage.told.name, *numbers, *_asks(stage.needs)))
    if rules := {task.rule for task in costs.others if not task.rule.startswith("shard_")}:
        workflow, of_shard = costs.workflow, "gallery_shard"
        each = {
            needs_of_any_shard(workflow, rule) if rule == of_shard else needs_of_all(workflow, rule) for rule in rules
        }
        numbers = f"{len(costs.others)}", "", clock(fmean(task.seconds for task in costs.others))
        rows.append((_OTHERS, *numbers, *_asks(each)))
    return columns(rows)


def _asks(needs: set[Needs]) -> tuple[str, ...]:
    """Memory and time from the least to the most."""
    memory, runtime = sorted(one.mem_mb for one in needs), sorted(one.runtime for one in needs)
    least, most = size(memory[0] * 10**6), size(memory[-1] * 10**6)
    one = max(needs, key=lambda one: one.runtime)
    told = f"{runtime[0]}-{runtime[-1]} min" if runtime[0] < runtime[-1] else f"{runtime[0]} min"
    return f"{least.removesuffix(' GB')}-{most}" if least != most else most, str(one.gpu), str(one.threads), told


def _lines(costs: Costs, gpus: Sequence[int], jobs: int) -> Iterator[str]:
    workflow = costs.workflow
    yield f"time    {clock(costs.seconds)} of work, one job after another; {costs.gpu_hours:.2f} GPU-hours"
    if any(task.gpus for task in costs.tasks):
        at = ", ".join(f"{clock(wall_seconds(costs.tasks, n, jobs))} on {_gpus(n)}" for n in gpus or GPUS)
        yield f"        by the clock: {at} (--gpus N)"
    else:
        yield f"        by the clock: {clock(wall_seconds(costs.tasks, 0, jobs))} with {jobs} jobs at a time (--jobs N)"
    yield from _speeds(costs)
    working = [stage for stage in costs.stages if stage.pace.request and stage.told.to_make]
    if shares := [f"{_percent(stage.share)} of {stage.told.name} (`{_setting(stage)}`)" for stage in working]:
        yield f"starts  of engines, with what lowers them: {', '.join(shares)}"
        yield from (f"        {hint}" for stage in working if (hint := _hint(workflow, stage)))
    total, count = sum(room.bytes for room in costs.rooms), sum(room.count for room in costs.rooms)
    free = _free(workflow)
    told = f"{size(round(total))} in {round(count):,} files and folders to write"
    yield f"disk    {told}; {'' if free > total else 'only '}{size(free)} are free there"
    largest = sorted(costs.rooms, key=lambda room: -room.bytes)[:4]
    yield "        " + ", ".join(f"{room.name} {size(round(room.bytes))}" for room in largest if room.bytes)
    if fetched := [
        f"{model.repo} {size(workflow.model_bytes[name])}" if name in workflow.model_bytes else model.repo
        for name, model in workflow.models.items()
        if not model.fetched
    ]:
        yield f"models  to fetch, once: {', '.join(dict.fromkeys(fetched))}"


def _speeds(costs: Costs) -> Iterator[str]:
    told = [stage for stage in costs.stages if stage.pace.jobs]
    built_in = [stage.told.name for stage in costs.stages if not stage.pace.jobs and stage.pace.request]
    jobs = sum(stage.pace.jobs for stage in told)
    if told:
        yield f"speeds  as {jobs} jobs recorded them: {', '.join(stage.told.name for stage in told)}"
    if built_in:
        yield f"{'        ' if told else 'speeds  '}built in, for a card of 80 GB, as no job was recorded yet: {', '.join(built_in)}"


def _setting(stage: StageCosts) -> str:
    return "shards.size" if stage.told.step.metric is None else "judge.shards_per_job"


def _hint(workflow: Workflow, stage: StageCosts) -> str | None:
    """The setting that would make starts a tenth, where they are more and so many shards are there."""
    step, files = stage.told.step, [(file, new) for file, new in stage.told.files if new]
    if stage.share <= MUCH or len(files) < 2:
        return None
    shards = len(files) if step.metric is None else sum(len(file.inputs) for file, _ in files)
    number = shards_for(stage.pace.start, sum(new for _, new in files) * stage.pace.request / shards, MUCH)
    if number >= shards:
        return None
    if step.metric is None:
        number *= workflow.config.shards.size
    return f"`{_setting(stage)}: {number}` would make it {_percent(MUCH)} for {stage.told.name}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _gpus(number: int) -> str:
    return "1 GPU" if number == 1 else f"{number} GPUs"


def _free(workflow: Workflow) -> int:
    """Bytes that are free where the results will be."""
    folder = workflow.results().absolute()
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
