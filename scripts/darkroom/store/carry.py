"""What is still good: images of old shard files and of killed jobs, taken over instead of made again."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from darkroom.errors import DarkroomError
from darkroom.jobs.runtime import say
from darkroom.plan.shards import Plan
from darkroom.store.scratch import Scratch
from darkroom.store.shardfile import RecordReader, iter_records, read_meta


def carry_over(
    wanted: dict[str, int], path: Path, old_files: list[Path], scratch: Scratch, moved: Callable[[str], str | None]
) -> None:
    """Copy images that are still good from old shard files, and from jobs that were killed, into the scratch folder.

    Also keeps those images of this shard's own old file whose rows now belong to another shard: the file is about
    to be replaced, and that shard's job may come later.
    """
    for old in old_files:
        left = scratch.of_shard(old.stem)
        if old != path and left.folder.exists():
            for key in wanted:
                if left.has(key) and not scratch.has(key):
                    scratch.put(key, left.get(key))
        if not old.exists():
            continue
        try:
            reader = RecordReader(old)
            columns = ["key", "row", "origin", "error"]
            for place, brief in enumerate(iter_records(old, columns)):
                if brief["error"] is not None or brief["origin"] == "given":
                    continue
                keep = scratch if brief["key"] in wanted else None
                if keep is None and old == path and (shard := moved(brief["row"])):
                    keep = scratch.of_shard(shard)
                if keep is None or keep.has(brief["key"]):
                    continue
                record = reader[place]
                data = record["image"]["bytes"]
                if hashlib.sha256(data).hexdigest() == record["sha256"]:
                    keep.put(record["key"], data)
                else:
                    say(f"{old}: the image of row {record['row']} is damaged and will be made again")
        except DarkroomError as error:
            say(f"nothing carried over: {error}")


def moved_rows(
    home: Callable[[str], str | None], own: str, digests: dict[str, str], outputs: Path
) -> Callable[[str], str | None]:
    """The other file a row belongs to now, by name, unless that one is there and up to date.

    home: row id -> the name of its file; own: the file that is being made; digests: what each file is to be made for.
    """

    def moved(row: str) -> str | None:
        other = home(row)
        if other in (None, own):
            return None
        if other not in settled:
            try:
                settled[other] = read_meta(outputs / f"{other}.parquet")["digest"] == digests[other]
            except DarkroomError:
                settled[other] = False
        return None if settled[other] else other

    settled: dict[str, bool] = {}
    return moved


def old_shard_files(plan: Plan, shard: str, outputs: Path) -> list[Path]:
    """Shard files of this stage that may hold images of the rows now in `shard`, its own first."""
    return [outputs / f"{name}.parquet" for name in plan.earlier_shards(shard)]
