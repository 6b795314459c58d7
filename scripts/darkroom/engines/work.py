"""Make the images of a job with its engine, batch by batch, into the scratch folder."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from darkroom.errors import DarkroomError, Interrupted, OutOfMemory, RowError
from darkroom.jobs.runtime import say, stop_requested
from darkroom.jobs.spread import Report
from darkroom.models.hub import HubModel, local_section
from darkroom.plan.requests import Request
from darkroom.store.images import encode_png
from darkroom.store.scratch import Scratch
from darkroom.store.shardfile import EDITED_COLUMNS, IMAGE_COLUMNS
from darkroom.store.sources import Sources

if TYPE_CHECKING:
    from darkroom.engines.diffusion import Engine

Batch = tuple[list[Request], tuple[int, int]]  # requests that share a call, and the size worked at


@dataclass
class ShardJob:
    """What a job that makes a shard of images works with.

    name: the section of the config. folder: of the user's rows. rule: what makes the shard. edits: its pictures start from others.
    images: the shards of pictures of this run that they may start from. model: the section's model, where that is of the hub.
    made_from: the content of `images`, as their manifests say it.
    """

    name: str
    section: dict[str, Any]
    recipe: dict[str, Any]
    digest: str
    folder: Path
    rule: str
    scratch: Scratch
    edits: bool = False
    strict: bool = False
    images: list[Path] = field(default_factory=list)
    model: HubModel | None = None
    made_from: list[str] = field(default_factory=list)

    @property
    def columns(self) -> dict[str, str]:
        return EDITED_COLUMNS if self.edits else IMAGE_COLUMNS


def work(
    job: ShardJob,
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
        from darkroom.engines.diffusion import open_engine

    sources = sources or Sources(job.folder, job.images)
    engine = open_engine(local_section(job.section, job.model), job.name)
    say(f"device {engine.device}, dtype {engine.dtype}, batch size {job.section['batch_size']}")
    batches = share(list(_batches(todo, sizes, engine, job.section["batch_size"])), part, parts)
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
                job.scratch.put(request.key, encode_png(result))
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
    from darkroom.engines.diffusion import batch_key

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
