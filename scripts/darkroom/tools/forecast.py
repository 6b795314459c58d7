"""What a run would do before it is started: shards missing and stale, requests to make, and the time they take.

Requests are compared by their keys with what lies in old shard files and scratch folders, exactly as the jobs do it; the
time comes from what earlier jobs of the same results folder recorded (`darkroom.jobs.history`).
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from darkroom.engines.work import ShardJob
from darkroom.errors import DarkroomError, RowError
from darkroom.jobs.history import read_records, speed
from darkroom.jobs.terminal import clock, columns
from darkroom.make import identify, read_requests
from darkroom.metrics.judge import old_score_files, read_journal, score_key
from darkroom.run.workflow import ROWS, SECTIONS, Workflow
from darkroom.store.carry import old_shard_files
from darkroom.store.scratch import Scratch
from darkroom.store.shardfile import iter_records
from darkroom.store.sources import Sources, source_name

Place = tuple[str, int, int]  # row, item, sample


@dataclass
class StageForecast:
    """A stage's shards and requests; `seconds` of all its jobs together, None where no job was recorded yet."""

    name: str
    shards: int = 0
    missing: int = 0
    stale: int = 0
    to_make: int = 0
    carried: int = 0
    gpus: int = 0
    seconds: float | None = None

    @property
    def jobs(self) -> int:
        return self.missing + self.stale

    @property
    def gpu_hours(self) -> float | None:
        return None if self.seconds is None else self.seconds * self.gpus / 3600


@dataclass
class _State:
    """What is known on the way.

    outdated: files that will be made anew; wanted: images of the prompts that edits start from, and pictures: the record
    of each, as its shard file will have it.
    """

    outdated: set[Path]
    wanted: set[Place]
    pictures: dict[Place, dict[str, Any]] = field(default_factory=dict)

    def count(self, stage: StageForecast, path: Path, inputs: list[Path]) -> bool:
        """Count a shard of a stage, and say whether its job runs; it does, too, where an input has to come back first."""
        stage.shards += 1
        missing = not path.exists()
        stale = path in self.outdated or not all(file.exists() for file in inputs)
        stage.missing, stage.stale = stage.missing + missing, stage.stale + (stale and not missing)
        return missing or stale


def forecast(workflow: Workflow) -> list[StageForecast]:
    """The forecast of every stage that runs a model, in the order they run."""
    outdated = set(workflow.outdated_files())
    if workflow.config["retry_failed"]:
        outdated |= set(workflow.failed_files())
    edits = workflow.plans.get("edited")
    references = [r for shard in edits.shards for r in edits.references(shard)] if edits else []
    state = _State(outdated, {(row, item, sample) for row, item, sample, *_ in references})
    stages: list[StageForecast] = []
    for kind in workflow.plans:
        images, scores = StageForecast(kind), StageForecast(f"scores/{kind}")
        for group, shards in workflow.groups[kind].members.items():
            records = {shard: _image_shard(workflow, kind, shard, images, state) for shard in shards}
            _score_group(workflow, kind, group, scores, state, records)
        stages += [images, scores]
    for stage in stages:
        section = SECTIONS.get(stage.name, "judge")
        stage.gpus = 0 if workflow.config[section]["device"] == "cpu" else workflow.config[section]["gpus"]
        workers = max(stage.gpus, 1) if stage.name in SECTIONS else 0  # the judge's GPUs work on each request together
        pace = speed(list(read_records(workflow.record_folder(stage.name))), workers)
        if stage.to_make == 0:
            stage.seconds = 0.0
        elif pace:
            stage.seconds = stage.jobs * pace[0] + stage.to_make * pace[1]
    return stages


def _image_shard(
    workflow: Workflow, kind: str, shard: str, stage: StageForecast, state: _State
) -> list[dict[str, Any]] | None:
    """Count a shard of images; its records as the file will have them, None where its file stays as it is.

    The `sha256` of an image that is to be made is None.
    """
    path = workflow.results(kind, f"{shard}.parquet")
    inputs = [workflow.results(ROWS[kind], f"{shard}.jsonl")]
    if kind == "edited":
        inputs += [workflow.results("images", f"{name}.parquet") for name in workflow.source_shards(shard)]
    if not state.count(stage, path, inputs):
        if kind == "images":
            _keep(state, iter_records(path, _BRIEF) if state.wanted else ())
        return None
    config, section = workflow.config, workflow.config[SECTIONS[kind]]
    folder = Path(config[ROWS[kind]]).absolute().parent
    scratch = Scratch(workflow.results(".darkroom", "scratch", kind, shard))
    planned = ShardJob(SECTIONS[kind], section, workflow.recipes[kind], "", folder, path.parent, scratch)
    requests = read_requests(workflow.plans[kind].read(shard), section, config["seed"], config["samples_per_prompt"])
    failures: dict[int, str] = {}
    sources = _PlannedSources(planned, state.pictures)
    identify(requests, planned, sources, failures)
    have: dict[str, str] = {}
    for file in old_shard_files(workflow.plans[kind], shard, path.parent):
        left = scratch.of_shard(file.stem)
        if left.folder.exists():
            have |= {r.key: hashlib.sha256(left.get(r.key)).hexdigest() for r in requests if left.has(r.key)}
        try:
            old = iter_records(file, ["key", "origin", "error", "sha256"]) if file.exists() else ()
            have = {r["key"]: r["sha256"] for r in old if r["error"] is None and r["origin"] != "given"} | have
        except DarkroomError:
            continue  # damaged: nothing is carried over from it
    records, new = [], set()
    for place, request in enumerate(requests):
        record = {
            name: getattr(request, name) for name in ("row", "item", "sample", "prompt", "key", "width", "height")
        }
        record |= {
            "sha256": have.get(request.key),
            "error": failures.get(place),
            "source_sha256": request.source_sha256,
        }
        if request.given and place not in failures:
            record["sha256"] = hashlib.sha256(sources.read(request.given).data).hexdigest()
        elif place not in failures and request.key not in have:
            new.add(request.key)
        records.append(record)
    given = sum(r.given is not None and place not in failures for place, r in enumerate(requests))
    stage.to_make += len(new)
    stage.carried += len(requests) - len(failures) - given - len(new)
    if kind == "images":
        _keep(state, records)
    return records


_BRIEF = ["key", "row", "item", "sample", "sha256", "error", "width", "height"]


def _keep(state: _State, records: Any) -> None:
    for record in records:
        place = record["row"], record["item"], record["sample"]
        if place in state.wanted:
            state.pictures[place] = record


class _PlannedSources(Sources):
    """Sources that may not be there yet: an image that is to be made has its key for its content."""

    def __init__(self, job: ShardJob, pictures: dict[Place, dict[str, Any]]):
        super().__init__(job.folder, job.images)
        self.pictures = pictures

    def _read(self, reference: dict[str, Any]) -> Any:
        if "path" in reference:
            return super()._read(reference)
        record = self.pictures.get((reference["row"], reference["item"], reference["sample"]))
        if record is None or record["error"] is not None:
            raise RowError(f"source {source_name(reference)} was not made")
        width, height = record["width"], record["height"]
        size = SimpleNamespace(size=(width, height), width=width, height=height)
        return SimpleNamespace(sha256=record["sha256"] or record["key"], image=size)


def _score_group(
    workflow: Workflow,
    kind: str,
    group: str,
    stage: StageForecast,
    state: _State,
    shards: dict[str, list[dict[str, Any]] | None],
) -> None:
    path = workflow.results("scores", kind, f"{group}.parquet")
    images = {shard: workflow.results(kind, f"{shard}.parquet") for shard in shards}
    if not state.count(stage, path, list(images.values())):
        return
    columns = ["key", "prompt", "sha256", "error"] + (["source_sha256"] if kind == "edited" else [])
    records = [
        record
        for shard, there in shards.items()
        for record in (iter_records(images[shard], columns) if there is None else there)
    ]
    known: set[str] = set(read_journal(workflow.score_journal(kind, group)))
    errors = [f"{question.name}_error" for question in workflow.rubric.questions[kind]]
    retry = workflow.config["retry_failed"]
    for old in old_score_files(workflow.plans[kind], workflow.groups[kind], group, path.parent):
        try:
            for record in iter_records(old) if old.exists() else ():
                if record["sha256"] and not (retry and any(record.get(name) for name in errors)):
                    known.add(record["key"])
        except DarkroomError:
            continue  # damaged: nothing is carried over from it
    new, sound = set(), 0
    for record in records:
        if record["error"] is not None:
            continue
        sound += 1
        about = {name: record[name] for name in columns if name in record}
        about["sha256"] = record["sha256"] or record["key"]
        if (key := score_key(workflow.recipes["judge"], about)) not in known:
            new.add(key)
    stage.to_make += len(new)
    stage.carried += sound - len(new)


def table(stages: list[StageForecast]) -> str:
    """The forecast as a table for a terminal."""
    heads = ("stage", "shards", "missing", "stale", "to make", "carried over", "time", "GPU-hours")
    rows = [heads]
    for stage in stages:
        time = "unknown" if stage.seconds is None else clock(stage.seconds)
        hours = "unknown" if stage.gpu_hours is None else f"{stage.gpu_hours:.2f}"
        counts = (stage.shards, stage.missing, stage.stale, stage.to_make, stage.carried)
        rows.append((stage.name, *map(str, counts), time, hours))
    return columns(rows)
