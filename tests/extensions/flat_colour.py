"""A family that needs no model: each picture is of one colour, drawn from the seed of its request."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from darkroom.engines import Family, register
from darkroom.engines.base import Engine, Failure

if TYPE_CHECKING:
    from darkroom.config.models import StageSection
    from darkroom.plan.requests import Request
    from PIL.Image import Image

BLACK = (0, 0, 0)


class FlatColour(Engine):
    def __init__(self, section: "StageSection", name: str):
        self.name, self.batch_limit = name, section.batch_size

    def colours(self, requests: Sequence["Request"]) -> list[tuple[int, ...]]:
        return [tuple(hashlib.sha256(str(request.seed).encode()).digest()[:3]) for request in requests]

    def make(
        self, batch: Sequence["Request"], size: tuple[int, int], sources: "Sequence[Image] | None"
    ) -> Iterator[tuple["Request", "Image | Failure"]]:
        from PIL import Image  # not above: this file is run wherever the config is read

        def attempt(part: slice) -> list[tuple[int, ...]] | None:
            try:
                return self.colours(batch[part])
            except MemoryError:
                return None

        for requests, colours in self.in_parts(batch, size, attempt):
            for request, colour in zip(requests, colours, strict=True):
                picture = Image.new("RGB", (request.width, request.height), colour)
                yield request, Failure("the seed gives black") if colour == BLACK else picture


register(
    Family(
        name="flat-colour",
        open=f"{__name__}:FlatColour",
        makes=True,
        needs_model=False,
        local=False,
        settings=frozenset({"seed", "width", "height"}),
        reads_negative=lambda request: False,
    )
)
