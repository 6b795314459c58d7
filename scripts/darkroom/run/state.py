"""What is there although it must be made again, and what is newer than what follows from it although nothing changed.

A file that is wanted for something else has another path (`lineage`), so Snakemake sees by itself that it is missing. Left are
the cases that a path cannot tell:

- files under names that stay (tables, exports, plots, the gallery's index) that were made for something else;
- a shard that came back with other pictures than what follows was made from;
- a shard file that another program replaced or cut short, or whose failures are to be tried again;
- a shard's file of the gallery whose packs of pictures were deleted.

Times only raise a suspicion: where a file is newer than what was made from it, the manifests' contents decide.
"""

import os
import time as clock
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from darkroom.errors import DarkroomError
from darkroom.run.lineage import File, manifest_of
from darkroom.run.outputs import Output
from darkroom.store.manifest import read_manifest


@dataclass
class State:
    """again: files that are there and must be made again. settled: files whose inputs are newer, but say the same as when they
    were used. Outputs are named by their manifest (`Output.made`)."""

    again: set[str] = field(default_factory=set)
    settled: set[str] = field(default_factory=set)

    def _decide(self, path: str, same: bool) -> None:
        (self.settled if same else self.again).add(path)


@dataclass(frozen=True)
class Shown:
    """A shard's file of the gallery. packs: the folder of its pictures; inputs: the manifests of what it is made from."""

    path: str
    packs: str
    inputs: list[str]


def look(shards: Iterable[File], shown: Iterable[Shown], outputs: Iterable[Output], retry_failed: bool) -> State:
    """The state of a run's files.

    shards: files of pictures and scores. shown: the shards' files of the gallery. retry_failed: files that hold failures are to
    be made again.
    """
    state = State()
    for file in shards:
        _look_at_shard(file, state, retry_failed)
    for shown_file in shown:
        _look_at_shown(shown_file, state)
    for output in outputs:
        _look_at_output(output, state)
    return state


def _look_at_shard(file: File, state: State, retry_failed: bool) -> None:
    data, own = _time(file.path), _time(file.manifest)
    if data is None and own is None:
        return
    if data is None or own is None or (data > own and not _is_sound(file)):
        state.again.add(file.path)
        return
    inputs = [manifest_of(path) for path in file.inputs]
    # Snakemake compares an input with the oldest file of its job.
    newer = any(_newer(path, min(data, own)) for path in inputs)
    if not newer and not retry_failed:
        return
    manifest = read_manifest(file.manifest)
    if manifest is None or (retry_failed and manifest["failed"]):
        state.again.add(file.path)
    elif newer:
        state._decide(file.path, manifest["made_from"] == _contents(inputs))


def _look_at_shown(file: Shown, state: State) -> None:
    own = _time(file.path)
    if own is None:
        return
    newer = any(_newer(path, own) for path in file.inputs)
    # Packs are written before the file; where one is deleted the folder's time changes.
    packs = _time(file.packs)
    suspect = packs is None or packs > own
    if not newer and not suspect:
        return
    head = _shown_head(file.path)
    lost = suspect and not all(os.path.exists(f"{file.packs}/{name}") for name in head["packs"])
    if lost:
        state.again.add(file.path)
    elif newer:
        state._decide(file.path, head.get("made_from") == _contents(file.inputs))


def _look_at_output(output: Output, state: State) -> None:
    times = [time for path in (output.made, *output.files) if (time := _time(path)) is not None]
    if len(times) <= len(output.files):  # one is missing
        return
    manifest = read_manifest(output.made)
    if manifest is None or manifest["digest"] != output.digest:
        state.again.add(output.made)
    elif any(_newer(path, min(times)) for path in output.inputs):
        state._decide(output.made, manifest["made_from"] == [output.made_from()])


def _time(path: str) -> int | None:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None


def _newer(path: str, than: int) -> bool:
    found = _time(path)
    return found is not None and found > than


def _contents(manifests: list[str]) -> list[str]:
    return [manifest["content"] if (manifest := read_manifest(path)) else "" for path in manifests]


def _is_sound(file: File) -> bool:
    """Whether a shard file that is newer than its manifest is the one that is wanted: touched, not replaced."""
    from darkroom.store.shardfile import read_meta

    try:
        return read_meta(file.path)["digest"] == file.digest
    except DarkroomError:
        return False


def _shown_head(path: str) -> dict[str, Any]:
    """The first line of a shard's file of the gallery; of one that is damaged, that it was made from nothing."""
    from darkroom.views.gallery import read_head

    try:
        return {"packs": {}} | read_head(path)
    except DarkroomError:
        return {"packs": {}}


def touch_stamp(path: Path, needed: bool) -> None:
    """Bring the stamp up to date that makes files be made again: it is an input of theirs, newer than they are, and never the same.

    needed: whether there are such files. Raises OSError where it cannot be written.
    """
    if needed or not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{clock.time_ns()}\n")
