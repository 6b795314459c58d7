"""Make one image shard: carry over what is still good, make the rest, write the shard file.

The same steps serve text to image and edits. A finished image goes to the scratch folder at once, under its
key; the shard file is put together from there at the end. So a killed job loses at most the batch in hand, and
memory does not grow with the shard.
"""

import gc
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from darkroom.devices import Devices
from darkroom.errors import DarkroomError, Interrupted, OutOfMemory, RowError
from darkroom.hub import HubModel, local_section
from darkroom.images import encode_png, open_picture, read_file
from darkroom.options import packages
from darkroom.plan import Plan
from darkroom.requests import Request, expand, request_key
from darkroom.rows import MAX_SIDE, further_fields
from darkroom.runtime import Progress, device_kind, say, stop_requested, versions
from darkroom.scratch import Scratch
from darkroom.shardfile import EDITED_COLUMNS, IMAGE_COLUMNS, RecordReader, iter_records, read_meta, write_shard
from darkroom.workers import Report, spread

if TYPE_CHECKING:
    from darkroom.diffusion import Engine

PACKAGES = ("torch", "diffusers", "transformers", "pillow")

Batch = tuple[list[Request], tuple[int, int]]  # requests that share a call, and the size worked at


@dataclass
class Stage:
    """What a job of a stage works with.

    name: "generate" or "edit"; folder: the user's rows' folder; outputs: where the stage's shard files lie; images:
    the image shards that edits of this shard start from, by name. model: the section's model, where that is of the hub.
    """

    name: str
    section: dict[str, Any]
    recipe: dict[str, Any]
    digest: str
    folder: Path
    outputs: Path
    scratch: Scratch
    strict: bool = False
    images: dict[str, Path] = field(default_factory=dict)
    model: HubModel | None = None

    @property
    def columns(self) -> dict[str, str]:
        return EDITED_COLUMNS if self.name == "edit" else IMAGE_COLUMNS


def read_requests(lines: bytes, section: dict[str, Any], seed: int, samples: int) -> list[Request]:
    """The requests of a prompts file's lines (see `expand`); rejected rows have none."""
    rows = [json.loads(line) for line in lines.splitlines()]
    return [request for row in rows if "rejected" not in row for request in expand(row, section, seed, samples)]


class Sources:
    """The images that requests start from: the user's files, and images of this run in their shard files."""

    def __init__(self, stage: Stage):
        self.folder = stage.folder
        self.readers = {name: RecordReader(path) for name, path in stage.images.items()}
        self.places: dict[tuple[str, int, int], tuple[str, int]] = {}
        for name, path in stage.images.items():
            for position, record in enumerate(iter_records(path, ["row", "item", "sample"])):
                self.places[record["row"], record["item"], record["sample"]] = (name, position)

    def read(self, reference: dict[str, Any], sha256: str | None = None) -> Any:
        """The Picture behind {"path"} or {"row", "item", "sample"}. Raises RowError with the reason.

        sha256: what its content must be; a file that changes while the job runs must not be taken for what it was.
        """
        picture = self._read(reference)
        if sha256 and picture.sha256 != sha256:
            raise RowError(f"image {source_name(reference)} changed while the job ran; run again")
        return picture

    def _read(self, reference: dict[str, Any]) -> Any:
        if "path" in reference:
            name = reference["path"]
            return open_picture(read_file(str(self.folder / name), name), name)
        place = reference["row"], reference["item"], reference["sample"]
        if place not in self.places:
            raise RowError(f"source {source_name(reference)} is not among the images of this run")
        shard, position = self.places[place]
        record = self.readers[shard][position]
        if record["image"] is None:
            raise RowError(f"source {source_name(reference)} was not made: {record['error']}")
        return open_picture(record["image"]["bytes"], source_name(reference))


def source_name(reference: dict[str, Any]) -> str:
    """A source as a reader of the tables wants it: the file's path, or row/item/sample."""
    return reference.get("path") or f"{reference['row']}/{reference['item']}/{reference['sample']}"


def make_shard(
    requests: list[Request],
    path: Path,
    stage: Stage,
    old_files: list[Path],
    moved: Callable[[str], str | None],
    open_engine: Callable[[dict[str, Any], str], "Engine"],
    devices: Devices | None = None,
) -> dict[str, float]:
    """Write the shard file of `requests` and return the counts requests, made, carried, given and failed.

    And "working", the seconds spent on making images, without imports and the loading of models.

    old_files: shard files that may hold images under these keys. moved: the other shard that a row id
    belongs to now, if that one still needs its images from this shard's old file. open_engine is called only
    where something is to be made, and so are `devices` claimed: with several of them worker processes share the work, each
    with an engine of its own that `diffusion` opens. Raises DarkroomError where the environment is broken (no model, no memory), and
    Interrupted after SIGTERM with all finished images kept.
    """
    sources = Sources(stage)
    failures: dict[int, str] = {}
    sizes = identify(requests, stage, sources, failures)
    wanted = {request.key: place for place, request in enumerate(requests) if place not in failures}
    _carry_over(wanted, path, old_files, stage, moved)
    given = sum(r.given is not None and place not in failures for place, r in enumerate(requests))
    todo: dict[str, int] = {}
    for place, request in enumerate(requests):
        if place not in failures and not request.given and not stage.scratch.has(request.key):
            todo.setdefault(request.key, place)
    carried = len(requests) - len(failures) - given - len(todo)
    say(f"{len(requests)} requests: {len(todo)} to make, {carried} carried over, {given} given, {len(failures)} failed")
    broken: dict[str, str] = {}
    working = 0.0
    if todo:
        working = _make(
            [requests[place] for place in todo.values()], sizes, stage, sources, broken, open_engine, devices
        )
    for place, request in enumerate(requests):
        if request.key in broken:
            failures.setdefault(place, broken[request.key])
    if failures and stage.strict:
        place = min(failures)
        raise DarkroomError(f"strict: {requests[place].name} failed: {failures[place]}")
    counts = {"made": len(todo) - len(broken), "carried": carried, "given": given, "failed": len(failures)}
    meta = {
        "digest": stage.digest,
        "rule": "edit_images" if stage.name == "edit" else "generate_images",
        "recipe": stage.recipe,
        "versions": versions(*PACKAGES, *packages(stage.section)),
        "device": device_kind(stage.section["device"]),
        "failed": len(failures),
    }
    write_shard(path, stage.columns, _records(requests, failures, stage, sources), meta)
    stage.scratch.clear()
    say("done: " + ", ".join(f"{number} {name}" for name, number in counts.items()))
    return {"requests": len(requests), **counts, "working": round(working, 3)}


def identify(
    requests: list[Request], stage: Stage, sources: Sources, failures: dict[int, str]
) -> dict[str, tuple[int, int]]:
    """Set every request's key and final size; note those whose source cannot be read. Returns key -> (width, height)."""
    sizes = {}
    for place, request in enumerate(requests):
        hashes: dict[str, str | None] = {"source": None, "given": None}
        for part in hashes:
            if reference := getattr(request, part):
                try:
                    picture = sources.read(reference)
                except RowError as error:
                    failures.setdefault(place, str(error))
                    continue
                hashes[part] = picture.sha256
                if part == "source" and max(picture.image.size) > MAX_SIDE and None in (request.width, request.height):
                    width, height = picture.image.size
                    failures[place] = (
                        f"source {source_name(reference)}: {width} x {height} pixels; at most {MAX_SIDE} a side"
                    )
                if part == "given" or request.width is None:
                    request.width = picture.image.width
                if part == "given" or request.height is None:
                    request.height = picture.image.height
        if request.given:
            request.steps = request.guidance = request.true_cfg = request.seed = None
        request.source_sha256, request.given_sha256 = hashes["source"], hashes["given"]
        request.key = request_key(request, stage.recipe, hashes["source"], hashes["given"])
        sizes[request.key] = (request.width, request.height)
    return sizes


def _carry_over(
    wanted: dict[str, int], path: Path, old_files: list[Path], stage: Stage, moved: Callable[[str], str | None]
) -> None:
    """Copy images that are still good from old shard files, and from jobs that were killed, into the scratch folder.

    Also keeps those images of this shard's own old file whose rows now belong to another shard: the file is about
    to be replaced, and that shard's job may come later.
    """
    for old in old_files:
        left = stage.scratch.of_shard(old.stem)
        if old != path and left.folder.exists():
            for key in wanted:
                if left.has(key) and not stage.scratch.has(key):
                    stage.scratch.put(key, left.get(key))
        if not old.exists():
            continue
        try:
            reader = RecordReader(old)
            columns = ["key", "row", "origin", "error"]
            for place, brief in enumerate(iter_records(old, columns)):
                if brief["error"] is not None or brief["origin"] == "given":
                    continue
                keep = stage.scratch if brief["key"] in wanted else None
                if keep is None and old == path and (shard := moved(brief["row"])):
                    keep = stage.scratch.of_shard(shard)
                if keep is None or keep.has(brief["key"]):
                    continue
                record = reader[place]
                data = record["image"]["bytes"]
                if hashlib.sha256(data).hexdigest() == record["sha256"]:
                    keep.put(record["key"], data)
                else:
                    say(f"{old}: the image of row {record['row']} is damaged and will be made again")
        except DarkroomError as error:
            say(f"nothing carried over: {error}")


def _make(
    todo: list[Request],
    sizes: dict[str, tuple[int, int]],
    stage: Stage,
    sources: Sources,
    broken: dict[str, str],
    open_engine: Callable[[dict[str, Any], str], "Engine"],
    devices: Devices | None,
) -> float:
    """Make the images of `todo` into the scratch folder, failures into `broken` (key -> reason); the seconds it took."""
    section = stage.section
    say(f"model {stage.recipe['model']} ({section['model']}, revision {section['revision']})")
    found = versions(*PACKAGES, *packages(section))
    say("versions: " + ", ".join(f"{name} {version}" for name, version in found.items()))
    held = devices.claim(section, stage.name, most=len(todo)) if devices else {}
    if len(held) > 1:
        reports = spread((stage, todo, sizes), len(todo), stage.name, held)
    else:
        reports = work(stage, todo, sizes, 0, 1, open_engine, sources)
    progress = Progress(len(todo), "images")
    try:
        next(reports)
        progress = Progress(len(todo), "images")
        for done, failed in reports:
            broken |= failed
            progress.add(done)
    except Interrupted as error:
        raise Interrupted(
            f"interrupted, {progress.done} of {progress.total} kept; run again to go on from there"
        ) from error
    return progress.seconds


def work(
    stage: Stage,
    todo: list[Request],
    sizes: dict[str, tuple[int, int]],
    part: int,
    parts: int,
    open_engine: Callable[[dict[str, Any], str], "Engine"] | None = None,
    sources: Sources | None = None,
) -> Iterator[Report]:
    """Make one of several parts of the images of `todo` into the scratch folder; `sizes` as `identify` returns them.

    Yields (0, {}) when the engine is ready, then of each batch the number of its requests and why those that failed did: key ->
    reason. Raises Interrupted after SIGTERM, and DarkroomError where the environment is broken.
    """
    if open_engine is None:
        from darkroom.diffusion import open_engine

    sources = sources or Sources(stage)
    engine = open_engine(local_section(stage.section, stage.model), stage.name)
    say(f"device {engine.device}, dtype {engine.dtype}, batch size {stage.section['batch_size']}")
    batches = share(list(_batches(todo, sizes, engine, stage.section["batch_size"])), part, parts)
    if batches:
        engine.prepare([request for batch, _ in batches for request in batch])
    yield 0, {}
    for batch, size in batches:
        if stop_requested.is_set():
            raise Interrupted("interrupted")
        failed = {}
        for request, result in _run(engine, batch, size, sources):
            if isinstance(result, str):
                failed[request.key] = result
                say(f"{request.name}: {result}")
            else:
                stage.scratch.put(request.key, encode_png(result))
        yield len(batch), failed


def share(batches: list[Batch], part: int, parts: int) -> list[Batch]:
    """One of the parts into which batches are cut: neighbours, for they share prompts, and about as much work in each."""
    costs = [
        sum(width * height * r.steps * (2 if r.true_cfg > 1 else 1) for r in batch)
        for batch, (width, height) in batches
    ]
    total, before, own = sum(costs), 0, []
    for batch, cost in zip(batches, costs, strict=True):
        if (2 * before + cost) * parts // (2 * total) == part:  # where the batch's middle lies
            own.append(batch)
        before += cost
    return own


def _batches(
    todo: list[Request], sizes: dict[str, tuple[int, int]], engine: "Engine", batch_size: int
) -> Iterator[Batch]:
    """Batches of requests that can share a call, with the size worked at."""
    from darkroom.diffusion import batch_key

    groups: dict[Any, list[Request]] = {}
    for request in todo:
        size = engine.work_size(*sizes[request.key])
        groups.setdefault(batch_key(request, size), []).append(request)
    for group in groups.values():
        size = engine.work_size(*sizes[group[0].key])
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size], size


def _run(
    engine: "Engine", batch: list[Request], size: tuple[int, int], sources: Sources
) -> Iterator[tuple[Request, Image.Image | str]]:
    """One batch: an image of the request's own size, or the reason why not, for each of its requests."""
    import torch

    if len(batch) > engine.batch_limit:
        limit = engine.batch_limit
        for start in range(0, len(batch), limit):
            yield from _run(engine, batch[start : start + limit], size, sources)
        return
    pictures = None
    if engine.edits:
        pictures, there = [], []
        for request in batch:
            try:
                picture = sources.read(request.source, request.source_sha256).image
            except RowError as error:
                yield request, str(error)
                continue
            pictures.append(picture)
            there.append(request)
        batch = there
        if not batch:
            return
    try:
        arrays = batch_arrays(engine, batch, size, pictures)
    except torch.OutOfMemoryError:
        arrays = None  # gone on with below: here the traceback would keep the failed call's memory
    if arrays is None:
        gc.collect()
        torch.cuda.empty_cache()
        if len(batch) == 1:
            raise OutOfMemory(
                f"{engine.name}: out of memory with a single image of {size[0]} x {size[1]} pixels;"
                " use a larger GPU, a smaller size or a smaller model"
            )
        engine.batch_limit = (len(batch) + 1) // 2
        say(f"out of memory with {len(batch)} images at once; going on with {engine.batch_limit}")
        yield from _run(engine, batch, size, sources)
        return
    for request, array in zip(batch, arrays, strict=True):
        yield request, finish_image(array, (request.width, request.height), engine.edits)


def batch_arrays(
    engine: "Engine", batch: list[Request], size: tuple[int, int], pictures: list[Image.Image] | None
) -> Any:
    """What the engine makes of a batch at `size`: float32 [len(batch), height, width, 3], 0..1; pictures: the sources.

    Raises DarkroomError where the model makes another size.
    """
    if pictures is not None:
        pictures = [picture.resize(size, Image.Resampling.LANCZOS) for picture in pictures]
    arrays = engine.run(batch, size, pictures)
    if tuple(arrays.shape[1:3]) != (size[1], size[0]):
        raise DarkroomError(
            f"{engine.name}.model: returns {arrays.shape[2]} x {arrays.shape[1]} pixels where {size[0]} x {size[1]}"
            " are asked for; set width and height to what it makes"
        )
    return arrays


def finish_image(array: Any, size: tuple[int, int], edited: bool) -> Image.Image | str:
    """[height, width, 3] floats 0..1 as an image of exactly `size`, or what is wrong with them."""
    import numpy as np

    if not np.isfinite(array).all():
        return "the model returned NaN (a numerical overflow; try another dtype)"
    pixels = (array * 255).round().astype("uint8")
    if not pixels.any():
        return "the model returned an all-black image"
    image = Image.fromarray(pixels)
    if image.size == size:
        return image
    if edited:  # the work was done at a size of the model's grid: back to the source's own
        return image.resize(size, Image.Resampling.LANCZOS)
    left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
    return image.crop((left, top, left + size[0], top + size[1]))


def _records(
    requests: list[Request], failures: dict[int, str], stage: Stage, sources: Sources
) -> Iterator[dict[str, Any]]:
    for place, request in enumerate(requests):
        record: dict[str, Any] = {name: getattr(request, name, None) for name in IMAGE_COLUMNS}
        record["origin"] = "given" if request.given else "generated"
        record["fields"] = json.dumps(further_fields(request.user_row), ensure_ascii=False)
        record["image"] = record["sha256"] = None
        record["error"] = failures.get(place)
        if stage.name == "edit":
            record |= {"source_name": source_name(request.source), "source_sha256": None, "source": None}
        if place not in failures:
            try:
                record |= _pictures(request, stage, sources)
            except RowError as error:
                record["error"] = str(error)
        yield record


def _pictures(request: Request, stage: Stage, sources: Sources) -> dict[str, Any]:
    """The columns of a record that hold pictures, and their hashes."""
    columns: dict[str, Any] = {}
    if request.source:
        picture = sources.read(request.source, request.source_sha256)
        columns["source"] = {"bytes": picture.data, "path": f"{request.key}.source.png"}
        columns["source_sha256"] = picture.sha256
    given = sources.read(request.given, request.given_sha256) if request.given else None
    data = given.data if given else stage.scratch.get(request.key)
    columns["image"] = {"bytes": data, "path": f"{request.key}.png"}
    columns["sha256"] = hashlib.sha256(data).hexdigest()
    return columns


def moved_rows(
    home: Callable[[str], str | None], own: str, digests: dict[str, str], outputs: Path
) -> Callable[[str], str | None]:
    """The other file a row belongs to now, by name, unless that one is there and up to date.

    home: row id -> the name of its file; own: the file that is being made; digests: what each file is to be made for.
    """

    def moved(row: str) -> str | None:
        other = home(row)
        if other in (None, own):
            return None
        if other not in settled:
            try:
                settled[other] = read_meta(outputs / f"{other}.parquet")["digest"] == digests[other]
            except DarkroomError:
                settled[other] = False
        return None if settled[other] else other

    settled: dict[str, bool] = {}
    return moved


def old_shard_files(plan: Plan, shard: str, outputs: Path) -> list[Path]:
    """Shard files of this stage that may hold images of the rows now in `shard`, its own first."""
    return [outputs / f"{name}.parquet" for name in plan.earlier_shards(shard)]
