"""Make one image shard: carry over what is still good, make the rest, write the shard file.

The same steps serve text to image and edits. A finished image goes to the scratch folder at once, under its
key; the shard file is put together from there, beside the engine where the job has threads for that, and gets its name at the end. So a
killed job loses at most the batch in hand and the few images that are being written (`darkroom.engines.work`), and memory does not
grow with the shard.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Container, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Self, cast

from darkroom.config.models import ModelSection
from darkroom.config.options import packages
from darkroom.engines.work import OpenEngine, ShardJob, packed, work
from darkroom.errors import DarkroomError, Interrupted, RowError
from darkroom.jobs.beside import ahead
from darkroom.jobs.devices import Devices
from darkroom.jobs.runtime import Progress, device_kind, limit_threads, say, versions
from darkroom.jobs.spread import WorkerDied, spread
from darkroom.plan.requests import Request, request_keys
from darkroom.rows.read import MAX_SIDE, further_fields
from darkroom.store.carry import Images, find_images, take_over
from darkroom.store.images import MAX_PIXELS, combined_sha256, encode_png, sheet, sheet_pixels, suffix
from darkroom.store.scratch import Scratch
from darkroom.store.shardfile import IMAGE_COLUMNS, ImageRecord, write_shard_with_manifest
from darkroom.store.sources import Sources, source_name

_SAMPLER = ("seed", "steps", "guidance", "true_cfg")
_LOOK = 1.0  # seconds after which the shard's writer looks for the next picture
_LOOKING = 4  # threads that decode sources, at the most: each may hold one of `MAX_PIXELS`


def make_shard(
    requests: list[Request],
    path: Path,
    job: ShardJob,
    old_files: list[Path],
    neighbours: list[str],
    open_engine: OpenEngine | None = None,
    devices: Devices | None = None,
    threads: int | None = None,
) -> dict[str, float]:
    """Write the shard file of `requests` and return the counts requests, made, carried, given and failed.

    And "working", the seconds spent on making images, without imports and the loading of models.

    old_files: shard files that may hold images under these keys. neighbours: shards that held these rows before, in whose
    scratch folders their images may wait. An engine is opened (by `open_engine`, or as
    the family does) only where something is to be made, and so are `devices` claimed: with several of them worker processes
    share the work, each with an engine of its own. threads: those of the job, which an engine's libraries may start; None: one, and
    as many as the libraries start by default.
    Raises DarkroomError where the environment is broken (no model, no memory), and
    Interrupted after SIGTERM with all finished images kept.
    """
    sources = job.sources()
    failures: dict[int, str] = {}
    sizes = identify(requests, job, sources, failures, threads or 1)
    wanted = {r.key for place, r in enumerate(requests) if place not in failures and not r.given}
    kept = Images(find_images(wanted, old_files))
    take_over((key for key in wanted if key not in kept), job.scratch, neighbours)
    given = sum(r.given is not None and place not in failures for place, r in enumerate(requests))
    todo: dict[str, int] = {}
    for place, request in enumerate(requests):
        if place in failures or request.given or request.key in kept or job.scratch.has(request.key):
            continue
        todo.setdefault(request.key, place)
    carried = len(requests) - len(failures) - given - len(todo)
    say(f"{len(requests)} requests: {len(todo)} to make, {carried} carried over, {given} given, {len(failures)} failed")
    meta: dict[str, Any] = {
        "digest": job.digest,
        "rule": job.rule,
        "recipe": job.recipe,
        "versions": _versions(job),
        "device": device_kind(job.section.device),
    }
    arrivals = _Arrivals(job.scratch, todo)
    records = _records(requests, failures, job, sources, kept, arrivals)
    working = 0.0
    with _Writing(
        partial(write_shard_with_manifest, path, job.columns, records, meta, job.made_from), arrivals
    ) as writing:
        if todo:
            if (threads or 1) > 1:
                writing.start()
            wanted_now = [requests[place] for place in todo.values()]
            working = _make(wanted_now, sizes, job, sources, arrivals, open_engine, devices, threads)
        for place, request in enumerate(requests):
            if request.key in arrivals.broken:
                failures.setdefault(place, arrivals.broken[request.key])
        if failures and job.strict:
            place = min(failures)
            raise DarkroomError(f"strict: {requests[place].name} failed: {failures[place]}")
        meta["failed"] = len(failures)
    counts = {"made": len(todo) - len(arrivals.broken), "carried": carried, "given": given, "failed": len(failures)}
    job.scratch.clear(wanted | sources.spooled)
    say("done: " + ", ".join(f"{number} {name}" for name, number in counts.items()))
    return {"requests": len(requests), **counts, "working": round(working, 3)}


def identify(
    requests: list[Request], job: ShardJob, sources: Sources, failures: dict[int, str], threads: int = 1
) -> dict[str, tuple[int, int]]:
    """Set every request's key and final size; note those whose source cannot be read. Returns key -> (width, height)."""
    sizes, key = {}, request_keys(job.recipe)
    threads = min(threads, _LOOKING)
    references = [one for request in requests for one in (*request.sources, request.given) if one]
    neighbours = [one for one, _ in groupby(references)]  # several edits of one image stand together
    looks = ahead(partial(_look, sources), neighbours, threads if threads > 1 else 0, threads)
    looked: tuple[dict[str, Any], tuple[str, tuple[int, int]] | RowError] | None = None
    for place, request in enumerate(requests):
        hashes: dict[str, list[str]] = {"source": [], "given": []}
        sides: list[tuple[int, int]] = []
        for part, reference in [*(("source", one) for one in request.sources), ("given", request.given)]:
            if reference is None:
                continue
            if looked is None or looked[0] != reference:
                looked = reference, next(looks)
            if isinstance(looked[1], RowError):
                failures.setdefault(place, str(looked[1]))
                continue
            sha256, (width, height) = looked[1]
            hashes[part].append(sha256)
            if part == "source":
                sides.append((width, height))
                if max(width, height) > MAX_SIDE and None in (request.width, request.height):
                    failures[place] = (
                        f"source {source_name(reference)}: {width} x {height} pixels; at most {MAX_SIDE} a side"
                    )
            if part == "given" or request.width is None:
                request.width = width
            if part == "given" or request.height is None:
                request.height = height
        if request.more and (pixels := sheet_pixels(sides)) > MAX_PIXELS // 2:
            failures.setdefault(place, f"sources: {pixels} pixels side by side; at most {MAX_PIXELS // 2}")
        whole = len(hashes["source"]) == len(request.sources)
        request.parts_sha256 = hashes["source"] if whole else []
        request.source_sha256 = combined_sha256(request.parts_sha256)
        request.given_sha256 = hashes["given"][0] if hashes["given"] else None
        request.key = key(request, request.source_sha256, request.given_sha256)
        if place not in failures:
            sizes[request.key] = request.size
    return sizes


def _look(sources: Sources, reference: dict[str, Any]) -> tuple[str, tuple[int, int]] | RowError:
    """The content of a source, by its SHA-256, and its size; or why it cannot be read."""
    try:
        picture = sources.read(reference)
    except RowError as error:
        return error
    return picture.sha256, picture.image.size


def _make(
    todo: list[Request],
    sizes: dict[str, tuple[int, int]],
    job: ShardJob,
    sources: Sources,
    arrivals: "_Arrivals",
    open_engine: OpenEngine | None,
    devices: Devices | None,
    threads: int | None,
) -> float:
    """Make the images of `todo` into the scratch folder, as `arrivals` is told; the seconds it took."""
    section = job.section
    named = (
        f" ({section.model}, revision {section.revision})"
        if isinstance(section, ModelSection) and section.model
        else ""
    )
    say(f"model {job.recipe['model']}{named}")
    say("versions: " + ", ".join(f"{name} {version}" for name, version in _versions(job).items()))
    # Both before the engine's libraries are imported.
    if threads is not None:
        limit_threads(threads, section.device)
    held = devices.claim(section, job.name, most=len(todo)) if devices and job.family.local else {}
    if len(held) > 1:
        reports = spread("darkroom.engines.work:work_apart", (packed(job), todo, sizes), job.name, held)
    else:
        reports = work(job, todo, sizes, 0, 1, open_engine, sources)
    progress = Progress(len(todo), "images")

    def kept() -> str:
        there = sum(job.scratch.has(request.key) for request in todo)
        return f"{there} of {len(todo)} kept; run again to go on from there"

    try:
        next(reports)
        progress = Progress(len(todo), "images")
        for done, failed in reports:
            arrivals.add(failed)
            progress.add(done)
    except Interrupted as error:
        raise Interrupted(f"interrupted, {kept()}") from error
    except WorkerDied as error:
        raise WorkerDied(f"{error}; {kept()}") from error
    return progress.seconds


class _Arrivals:
    """The pictures that a job makes, for whoever writes them down in the order of the requests.

    scratch: where they go; expected: their keys. broken: key -> why there is none.
    """

    def __init__(self, scratch: Scratch, expected: Container[str]):
        self.scratch, self.expected = scratch, expected
        self.broken: dict[str, str] = {}
        self._changed = threading.Condition()
        self._over: bool | None = None  # whether all were made; None: not yet

    def add(self, broken: dict[str, str]) -> None:
        """Some more are there, or failed."""
        with self._changed:
            self.broken |= broken
            self._changed.notify_all()

    def end(self, whole: bool) -> None:
        """No more will come; whole: nothing is in the way of writing them down."""
        with self._changed:
            self._over = whole
            self._changed.notify_all()

    def wait(self, key: str | None) -> str | None:
        """Why there is no picture under a key, once that is known; of None, once there will be no more. Raises Interrupted where
        they are not to be written down after all."""
        with self._changed:
            # Looked for by itself, too: that a batch is there is told when the next one is.
            while not self._changed.wait_for(lambda: self._over is not None or self._known(key), _LOOK):
                pass
            if self._over is False:
                raise Interrupted("not all were made")
            return self.broken.get(key) if key is not None else None

    def _known(self, key: str | None) -> bool:
        return key is not None and (key not in self.expected or key in self.broken or self.scratch.has(key))


class _Writing:
    """The writing of a shard file, in a thread of its own from `start` on, or at the end of the `with` statement.

    Where that ends with an error, nothing is written.
    """

    def __init__(self, write: Callable[[], object], arrivals: _Arrivals):
        self.write, self.arrivals = write, arrivals
        self._pool = ThreadPoolExecutor(1)
        self._running: Future[object] | None = None

    def start(self) -> None:
        self._running = self._pool.submit(self.write)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        self.arrivals.end(error is None)
        with self._pool:
            if error is None:
                self._running.result() if self._running else self.write()


def _versions(job: ShardJob) -> dict[str, str]:
    """The packages that decide pixels, with their versions."""
    return versions(*job.family.packages, "pillow", *packages(job.section))


def _records(
    requests: list[Request],
    failures: dict[int, str],
    job: ShardJob,
    sources: Sources,
    kept: Images,
    arrivals: _Arrivals,
) -> Iterator[ImageRecord]:
    """The records of the shard, each as soon as its picture is there; the last of all ends when all is made."""
    for place, request in enumerate(requests):
        broken = None if place in failures else arrivals.wait(request.key)
        record: dict[str, Any] = {name: getattr(request, name, None) for name in IMAGE_COLUMNS}
        record |= {name: None for name in _SAMPLER if request.given or name not in job.family.settings}
        if request.given or not job.family.reads_negative(request):
            record["negative_prompt"] = None  # no model was given it
        record["origin"] = "given" if request.given else "generated"
        record["fields"] = json.dumps(further_fields(request.user_row), ensure_ascii=False)
        record["image"] = record["sha256"] = None
        record["error"] = failures.get(place, broken)
        if job.edits:
            record |= _about_sources(request, job, sources)
            record |= {"source_sha256": None, "source": None}
        if record["error"] is None:
            try:
                record |= _pictures(request, job, sources, kept)
            except RowError as error:
                record["error"] = str(error)
        yield cast(ImageRecord, record)
    arrivals.wait(None)


def _about_sources(request: Request, job: ShardJob, sources: Sources) -> dict[str, Any]:
    """What a record says of what it starts from, besides the picture."""
    parts = [
        {"name": source_name(one), "origin": sources.origin(one), "kind": job.kind_of(one)} for one in request.sources
    ]
    names, origins = map(source_name, request.sources), {part["origin"] for part in parts}
    told: dict[str, Any] = {"source_name": " + ".join(names), "source_kind": parts[0]["kind"], "source_parts": None}
    if len(parts) == 1:
        return told | {"source_origin": parts[0]["origin"]}
    if request.parts_sha256:
        sizes = [sources.read(one, sha256).image.size for one, sha256 in request.contents]
        parts = [
            part | {"sha256": sha256, "width": width, "height": height}
            for part, sha256, (width, height) in zip(parts, request.parts_sha256, sizes, strict=True)
        ]
    origin = origins.pop() if len(origins) == 1 else None if None in origins else "edited"
    return told | {"source_kind": None, "source_origin": origin, "source_parts": json.dumps(parts, ensure_ascii=False)}


def _source(request: Request, sources: Sources) -> bytes:
    """The picture of what a request starts from: its source, or all of its sources side by side."""
    if not request.more:
        assert request.source is not None and request.source_sha256 is not None, "asked for where it is known"
        return sources.stored(request.source, request.source_sha256)
    return encode_png(sheet([sources.read(reference, sha256).image for reference, sha256 in request.contents]))


def _pictures(request: Request, job: ShardJob, sources: Sources, kept: Images) -> dict[str, Any]:
    """The columns of a record that hold pictures, and their hashes."""
    columns: dict[str, Any] = {}
    if request.source and request.source_sha256:
        columns["source"] = {
            "bytes": _source(request, sources),
            "path": f"{request.key}.source.png",
        }
        columns["source_sha256"] = request.source_sha256
    given = request.given and request.given_sha256 and sources.stored(request.given, request.given_sha256)
    data = given or kept.get(request.key) or job.scratch.get(request.key)
    if data is None:
        raise DarkroomError(f"{job.scratch.path(request.key)}: gone while the job ran; run again")
    ending = ".png" if request.given else suffix(job.recipe.get("image_format"))
    columns["image"] = {"bytes": data, "path": request.key + ending}
    columns["sha256"] = hashlib.sha256(data).hexdigest()
    return columns
