"""A family that edits without a model: half of the source, or of the mean of several, and half of a colour drawn from the seed."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from darkroom.engines import Family, register
from darkroom.engines.base import Engine, Failure

if TYPE_CHECKING:
    from darkroom.config.models import StageSection
    from darkroom.engines.base import Source
    from darkroom.plan.requests import Request
    from PIL.Image import Image


class Blend(Engine):
    def __init__(self, section: "StageSection", name: str):
        self.name, self.batch_limit = name, section.batch_size

    def make(
        self, batch: Sequence["Request"], size: tuple[int, int], sources: "Sequence[Source] | None"
    ) -> Iterator[tuple["Request", "Image | Failure"]]:
        from PIL import Image  # not above: this file is run wherever the config is read

        for request, source in zip(batch, sources or (), strict=True):
            colour = tuple(hashlib.sha256(str(request.seed).encode()).digest()[:3])
            first, *more = source if isinstance(source, tuple) else (source,)
            picture = first.resize(request.size)
            for number, other in enumerate(more, 2):
                picture = Image.blend(picture, other.resize(request.size), 1 / number)
            yield request, Image.blend(picture, Image.new("RGB", request.size, colour), 0.5)


register(
    Family(
        name="blend",
        open=f"{__name__}:Blend",
        edits=True,
        joins=True,
        needs_model=False,
        local=False,
        settings=frozenset({"seed", "width", "height"}),
        reads_negative=lambda request: False,
    )
)
