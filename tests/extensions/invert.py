"""A stage after the images: of each picture its negative, or a step on the way there."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from darkroom.config.models import StageSection, allow_section
from darkroom.engines import Family, register
from darkroom.engines.base import Engine, Failure
from darkroom.plan import stages
from pydantic import Field

if TYPE_CHECKING:
    from darkroom.plan.requests import Request
    from PIL.Image import Image


class Invert(StageSection):
    family: str = "invert"
    strength: float = Field(default=1, ge=0, le=1, description="How much of the negative there is in the picture.")


class Inverter(Engine):
    def __init__(self, section: Invert, name: str):
        self.name, self.batch_limit, self.strength = name, section.batch_size, section.strength

    def make(
        self, batch: Sequence["Request"], size: tuple[int, int], sources: "Sequence[Image] | None"
    ) -> Iterator[tuple["Request", "Image | Failure"]]:
        from PIL import Image, ImageOps

        for request, source in zip(batch, sources or (), strict=True):
            yield request, Image.blend(source, ImageOps.invert(source), self.strength)


register(
    Family(
        name="invert",
        open=f"{__name__}:Inverter",
        edits=True,
        needs_model=False,
        local=False,
        settings=frozenset(),
        recipe_keys=("strength",),
        reads_negative=lambda request: False,
    )
)
allow_section("invert", Invert)
stages.register(
    stages.Stage(
        "inverted",
        rows="prompts",
        section="invert",
        rule="invert_images",
        reads="images",
        every=True,
        title="Inverted images",
    )
)
