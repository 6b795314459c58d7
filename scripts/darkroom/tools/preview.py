"""The first rows as a run would read them, without a plan of all: for a look at made prompts, or at whether fields are read as meant."""

import json
from collections.abc import Iterator
from itertools import islice

from darkroom.config.models import Config
from darkroom.errors import RowError
from darkroom.plan.stages import ROWS
from darkroom.rows.fields import Fields
from darkroom.rows.formats import Line, read_rows
from darkroom.rows.read import parse_row
from darkroom.run.workflow import reading_of

_TOLD = ("id", "prompt", "width", "height")  # of a row, told before its other fields


def preview_lines(config: Config, number: int) -> Iterator[str]:
    """A line for each of the first rows of prompts, and of edits: its number, its prompts, its size, and its other fields.

    Raises DarkroomError where a file cannot be read.
    """
    for rows in ROWS:
        files = config.row_files(rows)
        fields = Fields.of(config.rows.model_dump(), rows)
        for path in files:
            yield f"{rows}: {path}"
            for line in islice(read_rows(path, fields), number):
                yield _told(config, rows, fields, line)


def _told(config: Config, rows: str, fields: Fields, line: Line) -> str:
    place, _, row, reason = line
    if row is not None:
        try:
            normal = parse_row(row, rows, fields, reading=reading_of(config, rows))
        except RowError as error:
            reason = str(error)
    if row is None or reason is not None:
        return f"{place:>6}  rejected: {reason}"
    prompts = list(dict.fromkeys(item["prompt"] for item in normal["items"]))
    size = [f"{row['width']} x {row['height']}"] if {"width", "height"} <= row.keys() else []
    others = [f"{name}: {_short(value)}" for name, value in row.items() if name not in _TOLD]
    return f"{place:>6}  " + "  |  ".join([*prompts, *size, *([", ".join(others)] if others else [])])


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."
