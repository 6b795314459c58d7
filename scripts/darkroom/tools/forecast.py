"""What a run would do before it is started: shards missing and stale, and requests to make.

Whether a result can be taken over is asked of `store.carry`, as the jobs do. What all this costs is for `tools.costs`.
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from darkroom.engines.work import ShardJob
from darkroom.errors import RowError
from darkroom.make import identify
from darkroom.plan.parts import fields_of, score_keys
from darkroom.plan.stages import Stage, like
from darkroom.rows.read import further_fields, of_this_run
from darkroom.run.jobs import Kept, requests_of, shard_job
from darkroom.run.lineage import File, Step
from darkroom.run.workflow import Workflow
from darkroom.store.carry import find_images, find_scores, waiting_images
from darkroom.store.shardfile import iter_records
from darkroom.store.sources import Sources, source_name

Place = tuple[str, int, int]  # row, item, sample
_BRIEF = ["key", "row", "item", "sample", "prompt", "sha256", "error", "width", "height"]


@dataclass
class StageForecast:
    """A step's shards and requests.

    files: those that a job will make, each with the requests that it will make anew. sized, pixels: how many pictures of these files
    have a known size, and what it is in all, without the sources of edits.
    """

    step: Step
    shards: int = 0
    missing: int = 0
    stale: int = 0
    to_make: int = 0
    carried: int = 0
    sized: int = 0
    pixels: int = 0
    files: list[tuple[File, int]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.step.name

    def add_size(self, width: int | None, height: int | None) -> None:
        """Count the size of a picture."""
        if width and height:
            self.sized, self.pixels = self.sized + 1, self.pixels + width * height

    @property
    def jobs(self) -> int:
        return self.missing + self.stale


@dataclass
class _Planned:
    """What is known on the way.

    wanted: by stage, images that others start from (of edits, other edits, too), and pictures: by stage, the record of each,
    as its shard file will have it.
    remade: by path, the records of shards that will be made again, as their files will have them; the `sha256` of an image that is
    to be made is None.
    """

    wanted: dict[str, set[Place]]
    pictures: dict[str, dict[Place, dict[str, Any]]] = field(default_factory=dict)
    remade: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def forecast(workflow: Workflow) -> list[StageForecast]:
    """The forecast of every step that runs a model, in the order they run."""
    wanted: dict[str, set[Place]] = {}
    for stage in workflow.stages:
        if stage.reads and not stage.every:
            plan = workflow.plans[stage.name]
            read = {other.model: other.name for other in workflow.lineage.read_by(stage)}
            for reference in (reference for shard in plan.names for reference in plan.references(shard)):
                of = stage.name if reference.edit else read[reference.model]
                wanted.setdefault(of, set()).add(reference[:3])
    planned = _Planned(wanted)
    return [_step(workflow, step, planned) for step in workflow.lineage.steps()]


def _step(workflow: Workflow, step: Step, planned: _Planned) -> StageForecast:
    told, kept = StageForecast(step), Kept(workflow, step)
    for file in workflow.lineage.files(step):
        told.shards += 1
        missing = not os.path.exists(file.path) or not os.path.exists(file.manifest)
        # A job runs, too, where an input comes back first.
        again = file.path in workflow.state.again or any(
            path in planned.remade or not os.path.exists(path) for path in file.inputs
        )
        told.missing, told.stale, before = told.missing + missing, told.stale + (again and not missing), told.to_make
        if step.metric is not None:
            if missing or again:
                _score_group(workflow, step, file, told, kept, planned)
        elif missing or again:
            planned.remade[file.path] = records = _image_shard(workflow, step, file, told, kept, planned)
            _keep(planned, step.stage, records)
        else:
            _keep(planned, step.stage, iter_records(file.path, _BRIEF) if planned.wanted.get(step.stage) else ())
        if missing or again:
            told.files.append((file, told.to_make - before))
    return told


def _image_shard(
    workflow: Workflow, step: Step, file: File, told: StageForecast, kept: Kept, planned: _Planned
) -> list[dict[str, Any]]:
    """Count the requests of a shard of images; its records as the file will have them."""
    stage = workflow.stage(step.stage)
    job = shard_job(workflow, step.stage, file.name)
    requests = requests_of(workflow, step.stage, workflow.plans[step.stage].read(file.name))
    failures: dict[int, str] = {}
    sources = _PlannedSources(job, _pictures(workflow, file, planned, stage), planned.pictures.get(stage.name, {}))
    identify(requests, job, sources, failures)
    wanted = {r.key for place, r in enumerate(requests) if place not in failures and not r.given}
    have = waiting_images(wanted, kept.scratch(file.name), kept.shards([file.name]))
    have |= {key: place.sha256 for key, place in find_images(wanted, kept.image_files(file.name)).items()}
    records, new = [], set()
    for place, request in enumerate(requests):
        record = {
            "key": request.key,
            "row": request.row,
            "item": request.item,
            "sample": request.sample,
            "prompt": request.prompt,
            "sha256": have.get(request.key),
            "error": failures.get(place),
            "fields": json.dumps(further_fields(request.user_row), ensure_ascii=False),
            "width": request.width,
            "height": request.height,
            "source_sha256": request.source_sha256,
        }
        if request.given and place not in failures:
            record["sha256"] = hashlib.sha256(sources.read(request.given).data).hexdigest()
        elif place not in failures and request.key not in have:
            new.add(request.key)
        if place not in failures:
            told.add_size(request.width, request.height)
        records.append(record)
    given = sum(r.given is not None and place not in failures for place, r in enumerate(requests))
    told.to_make += len(new)
    told.carried += len(requests) - len(failures) - given - len(new)
    return records


def _pictures(
    workflow: Workflow, file: File, planned: _Planned, stage: Stage
) -> dict[str | None, dict[Place, dict[str, Any]]]:
    """model -> the records of the images that a shard starts from: those that rows name, or all of the shard's files.

    None stands for the model where rows need not say it.
    """
    if not stage.every:
        return {other.model: planned.pictures.get(other.name, {}) for other in workflow.lineage.read_by(stage)}
    records = (record for path in file.inputs for record in planned.remade.get(path) or iter_records(path, _BRIEF))
    return {None: {(record["row"], record["item"], record["sample"]): record for record in records}}


def _keep(planned: _Planned, stage: str, records: Any) -> None:
    if not (wanted := planned.wanted.get(stage)):
        return
    pictures = planned.pictures.setdefault(stage, {})
    for record in records:
        place = record["row"], record["item"], record["sample"]
        if place in wanted:
            pictures[place] = record


class _PlannedSources(Sources):
    """Sources that may not be there yet: an image that is to be made has its key for its content."""

    def __init__(
        self, job: ShardJob, images: dict[str | None, dict[Place, dict[str, Any]]], edits: dict[Place, dict[str, Any]]
    ):
        super().__init__(job.folder, [], pictures=job.pictures)
        self.images, self.edits = images, edits

    def _read(self, reference: dict[str, Any], sha256: str | None) -> Any:
        of = of_this_run(reference)
        if of is None:
            return super()._read(reference, sha256)
        planned = self.edits if of == "edit" else self.images.get(reference.get("model"), {})
        record = planned.get((reference[of], reference["item"], reference["sample"]))
        if record is None or record["error"] is not None:
            raise RowError(f"source {source_name(reference)} was not made")
        width, height = record["width"], record["height"]
        size = SimpleNamespace(size=(width, height), width=width, height=height)
        return SimpleNamespace(sha256=record["sha256"] or record["key"], image=size)


def _score_group(
    workflow: Workflow, step: Step, file: File, told: StageForecast, kept: Kept, planned: _Planned
) -> None:
    """Count the images of a group of shards that are to be scored."""
    columns = ["key", "prompt", "sha256", "error", "width", "height", "fields"]
    columns += ["source_sha256"] if workflow.stage(step.stage).reads else []
    parts = workflow.metric(step.metric or "").parts(like(step.stage))
    sound: list[dict[str, Any]] = []
    for path in file.inputs:
        records = planned.remade[path] if path in planned.remade else iter_records(path, columns)
        for record in records:
            if record["error"] is None:
                sound.append(record if record["sha256"] else record | {"sha256": record["key"]})
                told.add_size(record["width"], record["height"])
    old_files, journals = kept.score_files(file.name)
    known = find_scores(parts, sound, old_files, journals, workflow.config.retry_failed)
    key_of = score_keys(workflow.lineage.metrics[step.metric or ""][step.stage], fields_of(parts))
    wanted = list(zip(*(map(part.keys(), sound) for part in parts), strict=True))
    new = {key_of(record) for record, keys in zip(sound, wanted, strict=False) if not known.keys() >= set(keys)}
    told.to_make += len(new)
    told.carried += len(sound) - len(new)
