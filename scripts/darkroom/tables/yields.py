"""yield.csv: how many images each step of the selection leaves, of each kind, and by a field where the config names one."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from darkroom.files import replacing

if TYPE_CHECKING:
    from darkroom.tables.select import Chosen

_HEADER = ("kind", "field", "value", "step", "images")


@dataclass
class Yield:
    """The steps of a kind, and how many images are left after each: of all of them, and of each value of a field."""

    steps: list[str]
    left: list[int]
    field: str | None = None
    by: Mapping[str, list[int]] | None = None


def write_yields(path: Path, chosen: "Mapping[str, Chosen]", field: str | None) -> None:
    """Write yield.csv. chosen: kind -> its selection; field: what the yield is told by."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as stream:
        lines = csv.writer(stream, lineterminator="\r\n")
        lines.writerow(_HEADER)
        for kind, one in chosen.items():
            whole = [("", "", one.left), *((field or "", value or "", left) for value, left in one.by.items())]
            for of, value, left in whole:
                lines.writerows((kind, of, value, step, number) for step, number in zip(one.steps, left, strict=True))


def read_yields(path: Path) -> dict[str, Yield]:
    """kind -> its yield, from yield.csv. Raises OSError where there is none."""
    found: dict[str, Yield] = {}
    with open(path, encoding="utf-8", newline="") as stream:
        for line in csv.DictReader(stream):
            kind = found.setdefault(line["kind"], Yield([], [], None, {}))
            if not line["field"]:
                kind.steps.append(line["step"])
                kind.left.append(int(line["images"]))
                continue
            kind.field = line["field"]
            by = dict(kind.by or {})
            by.setdefault(line["value"], []).append(int(line["images"]))
            kind.by = by
    return found
