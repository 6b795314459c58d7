"""What need not be made again: where images and scores lie that are still good.

Jobs ask this module what they can take over, and so does the forecast of what they will.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from darkroom.errors import DarkroomError
from darkroom.jobs.runtime import say
from darkroom.plan.parts import Part, score_keys
from darkroom.store.journal import read_journal
from darkroom.store.scratch import Scratch
from darkroom.store.shardfile import ImageRecord, RecordReader, iter_records, read_meta

_OPEN_FILES = 4  # each keeps a row group in memory


class ShardFolder:
    """The shard files of a stage, or of a metric's scores of it, of whatever recipe and rows: {folder}/{recipe}/{shard}-{rows}.parquet.

    folders: of the stage, and those of the same stage by other models.
    """

    def __init__(self, *folders: str | Path):
        self.folders = folders

    @cached_property
    def _by_shard(self) -> dict[str, list[str]]:
        found: dict[str, list[tuple[int, str]]] = {}
        recipes = []
        for folder in self.folders:
            with contextlib.suppress(FileNotFoundError):
                recipes += [entry.path for entry in os.scandir(folder) if entry.is_dir()]
        for recipe in recipes:
            with os.scandir(recipe) as entries:
                for entry in entries:
                    if entry.name.endswith(".parquet") and not entry.name.startswith("."):
                        shard = entry.name.partition("-")[0]
                        found.setdefault(shard, []).append((-entry.stat().st_mtime_ns, entry.path))
        return {shard: [path for _, path in sorted(files)] for shard, files in found.items()}

    def files(self, shards: Iterable[str]) -> list[Path]:
        """The files of these shards, in their order, the newest of each first."""
        return [Path(path) for shard in shards for path in self._by_shard.get(shard, ())]


@dataclass(frozen=True)
class Place:
    """Where an image lies: at a position of a shard file."""

    path: Path
    position: int
    sha256: str


def find_images(wanted: Iterable[str], files: Iterable[Path]) -> dict[str, Place]:
    """key -> where its image lies, for those of the keys `wanted` that are in one of the shard files. Damaged files are passed over."""
    left = set(wanted)
    found: dict[str, Place] = {}
    for path in files:
        if not left:
            break
        try:
            for position, record in enumerate(iter_records(path, ["key", "origin", "error", "sha256"])):
                if record["key"] in left and record["error"] is None and record["origin"] != "given":
                    found[record["key"]] = Place(path, position, record["sha256"])
        except DarkroomError as error:
            say(f"nothing carried over: {error}")
        left -= set(found)
    return found


class Images:
    """The images of `places`, read from their shard files; what is found to be damaged is left out."""

    def __init__(self, places: dict[str, Place]):
        self.places: dict[str, Place] = {}
        self._readers: dict[Path, RecordReader] = {}
        for key, place in sorted(places.items(), key=lambda item: (str(item[1].path), item[1].position)):
            if self._sound(key, place):
                self.places[key] = place

    def _sound(self, key: str, place: Place) -> bool:
        try:
            record = self._record(place)
        except DarkroomError as error:
            say(f"not carried over: {error}")
            return False
        if record["image"] and hashlib.sha256(record["image"]["bytes"]).hexdigest() == place.sha256:
            return True
        say(f"{place.path}: the image of row {record['row']} is damaged and will be made again")
        return False

    def _record(self, place: Place) -> ImageRecord:
        if place.path not in self._readers:
            if len(self._readers) >= _OPEN_FILES:
                self._readers.pop(next(iter(self._readers)))
            self._readers[place.path] = RecordReader(place.path)
        return self._readers[place.path][place.position]

    def __contains__(self, key: str) -> bool:
        return key in self.places

    def get(self, key: str) -> bytes | None:
        """The image under a key, None where it was not found."""
        place = self.places.get(key)
        image = self._record(place)["image"] if place else None
        return image["bytes"] if image else None


def take_over(wanted: Iterable[str], own: Scratch, shards: Iterable[str]) -> None:
    """Copy images that killed jobs of other shards left, and that are wanted here now, into this shard's own scratch folder."""
    others = [
        other for shard in shards if (other := own.of_shard(shard)).folder != own.folder and other.folder.exists()
    ]
    for key in wanted if others else ():
        for other in others:
            if not own.has(key) and (data := other.get(key)) is not None:
                own.put(key, data)


def waiting_images(wanted: Iterable[str], own: Scratch, shards: Iterable[str]) -> dict[str, str]:
    """key -> SHA-256 of the images that wait in scratch folders, this shard's own and those that `take_over` looks into."""
    folders = [own, *(own.of_shard(shard) for shard in shards)]
    folders = [folder for folder in folders if folder.folder.exists()]
    found = {}
    for key in wanted if folders else ():
        if data := next(filter(None, (folder.get(key) for folder in folders)), None):
            found[key] = hashlib.sha256(data).hexdigest()
    return found


def find_scores(
    parts: Sequence[Part],
    records: Sequence[Mapping[str, Any]],
    files: Iterable[Path],
    journals: Iterable[Path],
    retry_failed: bool,
) -> dict[str, dict[str, Any]]:
    """key of a part -> its columns, of all that are known: a key says by itself whether its scores still hold.

    Under a part's `shared_keys` are its newest columns for whatever items.

    Args:
        parts: of the metric. Of files that were made for another recipe, the parts that are the same are taken.
        records: of the images that are to be scored.
        files: score files, the newest of a shard first.
        journals: scores of files that were not finished.
        retry_failed: leave out parts with a reason, which are to be asked for again.
    """
    sources: dict[tuple[str, str], set[str | None]] = {}
    for record in records:
        if record["sha256"]:
            sources.setdefault((record["prompt"], record["sha256"]), set()).add(record.get("source_sha256"))
    known: dict[str, dict[str, Any]] = {}
    for path in files if sources else ():
        known = dict(_scored(path, parts, sources)) | known
    for journal in journals:
        for scores in read_journal(journal).values():
            known |= scores
    if retry_failed:
        reasons = {name for part in parts for name in part.errors}
        # What is kept for its items says for each of them whether it failed.
        shared = {key for part in parts if part.over for key in map(part.shared_keys(), records)}
        known = {
            key: scores
            for key, scores in known.items()
            if key in shared or not any(scores.get(name) for name in reasons)
        }
    for part in parts:
        if part.reuse is not None:
            key_of, shared_key = part.keys(), part.shared_keys()
            for record in records:
                earlier = known.get(shared_key(record))
                if earlier and (key := key_of(record)) not in known and (whole := part.reuse(record, earlier)):
                    known[key] = whole
    return known


def _scored(
    path: Path, parts: Sequence[Part], sources: Mapping[tuple[str, str], set[str | None]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        meta = read_meta(path)
        told = meta.get("parts", {})
        keys = [(part.columns, part.keys()) for part in parts if told.get(part.name, [None])[0] == part.identity]
        keys += [
            (part.columns, part.shared_keys())
            for part in parts
            if part.over and told.get(part.name, [None, None])[1] == part.shared
        ]
        if not keys:
            return
        file_key = score_keys(meta["recipe"], meta.get("fields", ()))
        for record in iter_records(path):
            # A score file does not say what an edit started from: its key does.
            for source in sources.get((record["prompt"], record["sha256"]), ()):
                about = record | {"source_sha256": source}
                if file_key(about) == record["key"]:
                    for columns, key_of in keys:
                        yield key_of(about), {name: record[name] for name in columns}
                    break
    except DarkroomError as error:
        say(f"no scores carried over: {error}")
