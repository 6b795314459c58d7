"""The section of the config that says which pictures, sources and prompts count as the same."""

from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, Field, model_validator

from darkroom.config.values import AS_GIVEN, PathText, Refused, Section

Way = Literal["exact", "phash", "embeddings"]
WAYS: tuple[Way, ...] = get_args(Way)  # in the order in which they count
SOURCES, PROMPTS = "sources", "prompts"  # what can be compared beside the pictures of stages

# The columns that the tables get.
PICTURE_COLUMNS = {
    "duplicate_group": "text",
    "duplicate_of": "text",
    "duplicate_by": "text",
    "duplicate_distance": "float",
}
AGAINST, SOURCE_GROUP, PROMPT_GROUP = "duplicate_against", "source_group", "prompt_group"


def _each_once(values: list[str]) -> list[str]:
    if len(set(values)) < len(values):
        raise ValueError("must not name anything twice")
    return values


class Duplicates(Section):
    by: Way | list[Way] = Field(
        default=[],
        description="What makes two pictures duplicates, one or several: `exact`, the same file; `phash`, hashes of their look that differ"
        " in few bits (the metric `phash` is then computed, whether or not `metrics` names it); `embeddings`, vectors of nearly the same"
        " direction, of a metric that gives them. Equal files count by any of them. An empty list looks for none.",
    )
    of: Annotated[list[Annotated[str, Field(min_length=1)]], AfterValidator(_each_once)] = Field(
        default=["images", "edited"],
        description="What is compared: pictures of `images` and `edited`, or of a stage of your own, each among themselves, by whichever"
        " model; `sources` of edits, by file and by hash; `prompts`, as text without regard to case, spaces and the point at the end.",
    )
    distance: int | None = Field(
        default=None,
        ge=0,
        le=64,
        description="Bits in which the hashes of duplicates differ at most, up to a quarter of them. Null is 3 in 32: 6 of 64, 24 of 256.",
    )
    similarity: Annotated[float, AS_GIVEN] = Field(
        default=0.95, gt=0, le=1, description="Least cosine of the angle between the embeddings of duplicates."
    )
    against: Annotated[list[PathText], AfterValidator(_each_once)] = Field(
        default=[],
        description="Earlier sets that pictures are compared with, too: the results folder of another run, which has a `phash` of as many bits"
        " where `by` names it, or a folder of pictures. By file and by hash.",
    )

    @model_validator(mode="after")
    def _by_something(self) -> Self:
        if self.against and not self.ways:
            raise Refused("by: name exact or phash, for what duplicates.against is compared by")
        return self

    @property
    def ways(self) -> tuple[str, ...]:
        """What is compared by, in the order in which they count; () where nothing is looked for."""
        named = [self.by] if isinstance(self.by, str) else self.by
        return tuple(way for way in WAYS if way in named)

    @property
    def columns(self) -> dict[str, str]:
        """The columns that the tables get, and their types; none where nothing is looked for."""
        if not self.ways:
            return {}
        pictures = set(self.of) - {SOURCES, PROMPTS}
        columns = dict(PICTURE_COLUMNS) if pictures else {}
        columns |= {AGAINST: "text"} if self.against and pictures else {}
        columns |= {SOURCE_GROUP: "text"} if SOURCES in self.of else {}
        return columns | ({PROMPT_GROUP: "text"} if PROMPTS in self.of else {})

    def bits_apart(self, bits: int) -> int:
        """Bits in which the hashes of duplicates differ at most, of so many."""
        return bits * 3 // 32 if self.distance is None else self.distance
