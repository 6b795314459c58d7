"""The table of stages: which steps make pictures, from which rows, with which section of the config.

Rules, plan, watch, prune, verify and the tables go over it. A stage that an extension brings is registered here and then has
files, scores, a place in the gallery and lines in the tables like the others.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from darkroom.errors import DarkroomError

if TYPE_CHECKING:
    from darkroom.config.models import Config


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
    models: the names of the models that the config has for it, in its order, where it names several; model: which of these makes
        this one's pictures. Then it is a stage of its own, called "images-<model>", and None and () else.
    """

    name: str
    rows: str
    section: str
    rule: str
    reads: str | None = None
    every: bool = False
    title: str = ""
    models: tuple[str, ...] = ()
    model: str | None = None

    @property
    def like(self) -> str:
        """The name of the stage in the table that it is, or that it is one of."""
        return like(self.name)

    def of(self, model: str, models: Sequence[str]) -> "Stage":
        """The stage whose pictures are made by one of several models, or from the pictures of one."""
        return replace(
            self,
            name=f"{self.name}-{model}",
            section=self.section if self.every else f"{self.section}.{model}",
            rule=f"{self.rule}_{model}",
            reads=f"{self.reads}-{model}" if self.every else self.reads,
            title=f"{self.title or self.name}, {model}",
            models=tuple(models),
            model=model,
        )

    def makes(self, row: dict[str, Any]) -> bool:
        """Whether a normal row (`darkroom.rows.read`) has pictures at this stage."""
        return self.model is None or self.model in makers_of(row, self.models)


def like(name: str) -> str:
    """The name of the stage in the table that a stage called `name` is, or is one of."""
    return name.partition("-")[0]


def makers_of(row: dict[str, Any], models: Sequence[str]) -> list[str]:
    """Which of several models a normal row goes to; pictures that are there already are judged once, under the first."""
    wanted = list(row.get("models", models))
    return wanted[:1] if all("given" in item for item in row["items"]) else wanted


ROWS = ("prompts", "edits")  # the files of rows, in the order they are planned

IMAGES = Stage("images", "prompts", "generate", "generate_images", title="Images")
EDITED = Stage("edited", "edits", "edit", "edit_images", reads="images", title="Edited images")
STAGES: dict[str, Stage] = {stage.name: stage for stage in (IMAGES, EDITED)}
# What else lies in the results folder.
_FOLDERS = frozenset("prompts edits scores dataset exports gallery plots logs benchmarks sources".split())


def register(stage: Stage) -> None:
    """Add a stage to the table; every run that has its rows has the stage then, too. It runs after the stage it reads.

    Raises DarkroomError where it cannot run, or where its name, or that of its rule, is taken.
    """
    wrong, before = None, STAGES.get(stage.reads or "")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", stage.name) or not stage.rule.isidentifier():
        wrong = "its name must be small letters, digits and underscores, and its rule's that of a Python function"
    elif stage.name in _FOLDERS:
        wrong = "the results have a folder of that name; give it another"
    elif not stage.every or before is None or before.rows != stage.rows:
        wrong = f"set every, and reads to one of {', '.join(STAGES)}, which have the same rows"
    elif any(stage != other and {stage.name, stage.rule} & {other.name, other.rule} for other in STAGES.values()):
        wrong = "there is a stage of that name, or with that rule; give it another"
    if wrong:
        raise DarkroomError(f"stage {stage.name}: {wrong}")
    STAGES[stage.name] = stage


def stages_of(rows: set[str]) -> list[Stage]:
    """The stages of a run that has these rows, in the order they run: each after the one it reads."""
    return [stage for stage in STAGES.values() if stage.rows in rows]


def used_stages(config: "Config") -> list[Stage]:
    """The stages of a run with this config, which names the files of its rows, in the order they run."""
    return stages_for(config, stages_of({rows for rows in ROWS if config.rows_of(rows) is not None}))


def stages_for(config: "Config", stages: Iterable[Stage]) -> list[Stage]:
    """These stages of the table, each once for every model where the config names several for it, or for what it reads."""
    found: list[Stage] = []
    models: dict[str, list[str]] = {}
    for stage in stages:
        names = models.get(stage.reads or "", []) if stage.every else config.models_named(stage.section)
        models[stage.name] = names
        found += [stage.of(name, names) for name in names] or [stage]
    return found
