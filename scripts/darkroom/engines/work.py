"""Make the images of a job with its engine, batch by batch, into the scratch folder."""

import os
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkroom import engines
from darkroom.config.extensions import load
from darkroom.config.models import StageSection, stage_section_model
from darkroom.engines.base import Engine, Failure, Source
from darkroom.errors import DarkroomError, Interrupted, RowError
from darkroom.jobs.beside import Beside, ahead
from darkroom.jobs.runtime import say, stop_requested
from darkroom.jobs.spread import Report
from darkroom.models.hub import HubModel, local_section
from darkroom.plan.recipe import Recipe
from darkroom.plan.requests import Request
from darkroom.rows.read import of_this_run
from darkroom.store.images import encode
from darkroom.store.scratch import Scratch
from darkroom.store.shardfile import EDITED_COLUMNS, IMAGE_COLUMNS
from darkroom.store.sources import Sources

if TYPE_CHECKING:
    from PIL.Image import Image

Batch = tuple[list[Request], tuple[int, int]]  # requests that share a call, and the size worked at
OpenEngine = Callable[[StageSection, str], Engine]

# Beside the engine, each of its pictures is encoded and written, and the sources of its next ones are read. A job has four threads
# for each GPU (`darkroom.run.needs.threads_of`): the engine's, these, and the one that reads.
WRITERS = 2  # a megapixel takes one of them 0.2 to 0.3 s
UNWRITTEN = (
    4  # pictures, or a batch where that is more: so many wait for a slow disk before the engine does; a kill loses them
)
AHEAD = 1  # batches whose sources are held beside those of the one in hand


@dataclass
class ShardJob:
    """What a job that makes a shard of images works with.

    name: the section of the config. folder: of the user's rows. pictures: the file of those that rows held. rule: what makes the shard. edits: its pictures start from others.
    images: the shards of pictures of this run that they may start from, `edits_before` those that other edits do; made_by: the model
    of each of these where rows name one of several. kinds: what the tables call the pictures of these. models: those of the hub that the section names, by section (`models.hub`). made_from: the content
    of all of them, as their manifests say it. compiled: where compiled code of the run's jobs is kept.
    """

    name: str
    section: StageSection
    recipe: Recipe
    digest: str
    folder: Path
    rule: str
    scratch: Scratch
    edits: bool = False
    strict: bool = False
    images: list[Path] = field(default_factory=list)
    made_by: dict[Path, str] = field(default_factory=dict)
    edits_before: list[Path] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)
    models: dict[str, HubModel] = field(default_factory=dict)
    made_from: list[str] = field(default_factory=list)
    compiled: Path | None = None
    extensions: tuple[str, ...] = ()
    pictures: Path | None = None

    def sources(self) -> Sources:
        """The images that its requests start from."""
        return Sources(self.folder, self.images, self.scratch, self.pictures, self.edits_before, self.made_by)

    def kind_of(self, reference: dict[str, Any]) -> str | None:
        """What the tables call the pictures that a reference is to one of; None for the user's."""
        found = self.kinds.get(of_this_run(reference) or "")
        return f"{found}-{reference['model']}" if found and "model" in reference else found

    @property
    def columns(self) -> dict[str, str]:
        return EDITED_COLUMNS if self.edits else IMAGE_COLUMNS

    @property
    def family(self) -> engines.Family:
        return engines.family(self.recipe["family"], f"{self.name}.family")


def work(
    job: ShardJob,
    todo: list[Request],
    sizes: dict[str, tuple[int, int]],
    part: int,
    parts: int,
    open_engine: OpenEngine | None = None,
    sources: Sources | None = None,
) -> Iterator[Report]:
    """Make one of several parts of the images of `todo` into the scratch folder; `sizes` as `identify` returns them.

    Yields (0, {}) when the engine is ready, then of each batch, once its pictures are written, the number of its requests and why
    those that failed did: key -> reason. open_engine: the family's own unless given. Raises Interrupted after SIGTERM, and
    DarkroomError where the environment is broken; what the engine has made is written before that.
    """
    sources = sources or job.sources()
    if job.compiled and job.section.options.compile:
        # PyTorch keeps its code there under what it depends on: the graph, the card, versions and settings.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(job.compiled.absolute()))
    engine = (open_engine or engines.open_engine)(local_section(job.section, job.models, job.name), job.name)
    say(f"device {engine.device}, dtype {engine.dtype}, batch size {job.section.batch_size}")
    batches = share(list(_batches(todo, sizes, engine, job.section.batch_size)), part, parts, job.family.guided)
    if batches:
        engine.prepare([request for batch, _ in batches for request in batch])
    yield 0, {}
    waiting = ahead(partial(_with_sources, engine, job, sources), batches, 0 if engine.takes_cpu else AHEAD)
    unwritten = 0 if engine.takes_cpu else max(UNWRITTEN, job.section.batch_size)
    reports: deque[tuple[Report, list[Future[None]]]] = deque()
    with Beside[None](WRITERS, unwritten) as writing, closing(waiting):
        for (batch, size), pictures, unread in waiting:
            if stop_requested.is_set():
                raise Interrupted("interrupted")
            failed, saved = {}, []
            for request, made in chain(unread, _results(engine, job, batch, size, pictures)):
                if isinstance(made, Failure):
                    failed[request.key] = made.reason
                    say(f"{request.name}: {made.reason}")
                else:
                    saved.append(writing.call(_save, job, request.key, made))
            reports.append(((len(batch) + len(unread), failed), saved))
            while reports and all(future.done() for future in reports[0][1]):
                yield _written(*reports.popleft())
        while reports:
            yield _written(*reports.popleft())


def _save(job: ShardJob, key: str, picture: "Image") -> None:
    job.scratch.put(key, encode(picture, job.recipe.get("image_format")))


def _written(report: Report, saved: list[Future[None]]) -> Report:
    """A batch's report, when its pictures are written. Raises what kept one of them from it."""
    for future in saved:
        future.result()
    return report


def packed(job: ShardJob) -> dict[str, Any]:
    """A job for `work_apart`: without classes that an extension brings, which a new process has yet to load."""
    return vars(job) | {"section": job.section.model_dump()}


def work_apart(
    packed_job: dict[str, Any], todo: list[Request], sizes: dict[str, tuple[int, int]], part: int, parts: int
) -> Iterator[Report]:
    """`work` in a process of its own, which has read no config."""
    load(packed_job["extensions"])
    section = stage_section_model(packed_job["name"]).model_validate(packed_job["section"])
    yield from work(ShardJob(**packed_job | {"section": section}), todo, sizes, part, parts)


def share(
    batches: list[Batch], part: int, parts: int, guided: Callable[[Request], bool] = engines.one_pass
) -> list[Batch]:
    """One of the parts into which batches are cut: neighbours, for they share prompts, and about as much work in each."""
    costs = [
        sum(width * height * (r.steps or 1) * (2 if guided(r) else 1) for r in batch)
        for batch, (width, height) in batches
    ]
    total, before, own = sum(costs), 0, []
    for batch, cost in zip(batches, costs, strict=True):
        if (2 * before + cost) * parts // (2 * total) == part:  # where the batch's middle lies
            own.append(batch)
        before += cost
    return own


def _batches(
    todo: list[Request], sizes: dict[str, tuple[int, int]], engine: Engine, batch_size: int
) -> Iterator[Batch]:
    """Batches of requests that can share a call, with the size worked at."""
    groups: dict[tuple[tuple[int, int], Hashable], list[Request]] = {}
    for request in todo:
        size = engine.work_size(*sizes[request.key])
        groups.setdefault((size, engine.batch_key(request, size)), []).append(request)
    for (size, _), group in groups.items():
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size], size


def _with_sources(
    engine: Engine, job: ShardJob, sources: Sources, batch: Batch
) -> tuple[Batch, "list[Source] | None", list[tuple[Request, Failure]]]:
    """Those requests of a batch whose sources can be read, with these (None where there are none), and the others with the reason."""
    requests, size = batch
    if not job.edits:
        return batch, None, []
    there: list[Request] = []
    pictures: list[Source] = []
    unread = []
    for request in requests:
        try:
            first, *more = [sources.read(reference, sha256).image for reference, sha256 in request.contents]
        except RowError as error:
            unread.append((request, Failure(str(error))))
        else:
            there.append(request)
            prepared = [engine.prepare_source(one, engine.work_size(*one.size)) for one in more]
            one = engine.prepare_source(first, size)
            pictures.append((one, *prepared) if prepared else one)
    return (there, size), pictures, unread


def _results(
    engine: Engine, job: ShardJob, batch: list[Request], size: tuple[int, int], pictures: "list[Source] | None"
) -> Iterator[tuple[Request, "Image | Failure"]]:
    """An image of the request's own size, or the reason why not, for each request of a batch."""
    if not batch:
        return
    for request, made in engine.make(batch, size, pictures):
        if not isinstance(made, Failure) and made.size != request.size:
            raise DarkroomError(
                f"{job.name}.family: {job.family.name} made {made.width} x {made.height} pixels where"
                f" {request.width} x {request.height} are asked for"
            )
        yield request, made
