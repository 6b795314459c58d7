"""Journals: scores of a file that is not written yet, a JSON line each, so that a killed job goes on where it stopped."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from darkroom.files import replacing

Scores = dict[str, dict[str, dict[str, Any]]]  # key of a picture's scores -> key of each part -> its columns


def read_journal(path: Path) -> Scores:
    """What a journal holds; a line that was being written when its job died is passed over."""
    known: Scores = {}
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                parts = {key: columns for key, columns in entry["scores"].items() if isinstance(columns, dict)}
                known.setdefault(entry["key"], {}).update(parts)
    return known


class Journal:
    """A journal that is open for writing: what is added is on the disk when `add` returns."""

    def __init__(self, out: IO[str]):
        self._out = out

    def add(self, scores: Scores) -> None:
        for key, parts in scores.items():
            self._out.write(_line(key, parts))
        self._out.flush()
        os.fsync(self._out.fileno())


@contextlib.contextmanager
def open_journal(path: Path) -> Iterator[Journal]:
    """Go on with the journal `path`, or begin it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as out:
        out.write("\n")  # ends a line that a killed job left half
        yield Journal(out)


def clear_journal(path: Path, written: set[str]) -> None:
    """Forget the scores whose parts are in their file now, by key. Those of rows that have moved stay for the jobs of other files."""
    left = {}
    for key, scores in read_journal(path).items():
        if rest := {part: columns for part, columns in scores.items() if part not in written}:
            left[key] = rest
    if not left:
        path.unlink(missing_ok=True)
        return
    with replacing(path, apart=False) as temporary:
        temporary.write_text("".join(_line(key, scores) for key, scores in left.items()), encoding="utf-8")


def _line(key: str, scores: dict[str, dict[str, Any]]) -> str:
    return json.dumps({"key": key, "scores": scores}) + "\n"
