"""The identity of scores: of all that a metric says of a picture, and of each part of it that can be made alone."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from darkroom.identity import digest, digests
from darkroom.plan.recipe import Recipe

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """Columns of a metric that are made together, and what decides them besides prompt and pictures.

    A score file that was made for another recipe gives those of its columns whose parts are the same.

    Attributes:
        name: unique in its metric.
        columns: all that it fills, its error columns with them.
        errors: those of them that hold a reason.
        recipe: what decides them, as plain JSON.
        fields: the row's own fields that decide them, too.
        over: one of these whose items are scored one by one. Then scores of the same picture whose row had other items are handed to the
            scorer, which may use what still holds of them (`Subject.earlier`).
        pieces: what decides the score of an item.
        reuse: gives a record's columns from those of the same picture with other items; None where there is an item to score.
    """

    name: str
    columns: tuple[str, ...]
    errors: tuple[str, ...]
    recipe: Recipe
    fields: tuple[str, ...] = ()
    over: str | None = None
    pieces: Recipe | None = None
    reuse: Callable[[Record, Mapping[str, Any]], dict[str, Any] | None] | None = field(default=None, compare=False)

    @property
    def identity(self) -> str:
        """What a score file says of the part, so that another file can tell whether its columns hold there."""
        return digest([self.recipe, self.fields])

    @property
    def shared(self) -> str | None:
        """The same of the items of `over`; None where there is none."""
        return None if self.over is None else digest(["pieces", self.pieces, self._beside])

    @property
    def _beside(self) -> list[str]:
        return [name for name in self.fields if name != self.over]

    def keys(self) -> Callable[[Record], str]:
        """A function of a record: the identity of the part's scores of its picture."""
        return score_keys(self.recipe, self.fields)

    def shared_keys(self) -> Callable[[Record], str]:
        """The same, whatever the items of `over`."""
        return score_keys(["pieces", self.pieces], self._beside)


def score_key(recipe: Recipe, record: Record) -> str:
    """The identity of an image's scores: the metric's recipe, what was asked for, and the pictures."""
    return score_keys(recipe)(record)


def score_keys(recipe: Any, fields: Iterable[str] = ()) -> Callable[[Record], str]:
    """`score_key` for many records: a function of the record alone. fields: the row's own fields that decide scores, too."""
    of, names = digests(recipe), list(fields)

    def key(record: Record) -> str:
        about = record["prompt"], record["sha256"], record.get("source_sha256")
        if not names:
            return of(*about)
        own = own_fields(record)
        return of(*about, {name: own[name] for name in names if name in own})

    return key


def own_fields(record: Record) -> dict[str, Any]:
    """The row's further fields, of a record of an image or score file."""
    return json.loads(record["fields"] or "{}")


def fields_of(parts: Iterable[Part]) -> list[str]:
    """The row's own fields that decide any of these parts, in order."""
    return sorted({name for part in parts for name in part.fields})
