"""The table of stages: which steps make pictures, from which rows, with which section of the config.

Rules, plan, watch, prune, verify and the tables go over it. A stage that an extension brings is registered here and then has
files, scores, a place in the gallery and lines in the tables like the others.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """A step that makes pictures, a shard at a time.

    name: its folder below the results, and the `kind` of its pictures in the tables. rows: the rows it goes by, "prompts" or
        "edits".
    section: its section of the config.
    rule: the rule that makes its shards.
    reads: the stage whose pictures it can start from, or None.
    every: it makes one picture from each picture of `reads`, shard by shard; else its rows name their sources.
    title: what people call its pictures.
    """

    name: str
    rows: str
    section: str
    rule: str
    reads: str | None = None
    every: bool = False
    title: str = ""


ROWS = ("prompts", "edits")  # the files of rows, in the order they are planned

IMAGES = Stage("images", "prompts", "generate", "generate_images", title="Images")
EDITED = Stage("edited", "edits", "edit", "edit_images", reads="images", title="Edited images")
STAGES: dict[str, Stage] = {stage.name: stage for stage in (IMAGES, EDITED)}


def register(stage: Stage) -> None:
    """Add a stage to the table; it runs after the stage it reads. Raises ValueError where the name is taken by another."""
    if STAGES.setdefault(stage.name, stage) != stage:
        raise ValueError(f"a stage {stage.name} is there already")


def stages_of(rows: set[str]) -> list[Stage]:
    """The stages of a run that has these rows, in the order they run: each after the one it reads."""
    return [stage for stage in STAGES.values() if stage.rows in rows]
