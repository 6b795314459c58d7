"""What jobs record about themselves: one JSON line for each finished job.

`results/benchmarks/<rule>/<shard>.jsonl` says what each job made, carried over and left out, and the time it took. The
forecast of `plan` is computed from these records; nothing that is made depends on them. Beside them lie the files of
Snakemake's `benchmark`, of every rule: the time of a whole job, with the start and the end of its process.
"""

import contextlib
import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

RECORD_SUFFIX = ".jsonl"
_ENOUGH = 100  # benchmarks that are read of a folder, the newest: they differ little, and a large set has ten thousand


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Add a line to the records of a shard's jobs. Errors are ignored: a record must not fail a job that is done."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as out:
            out.write(json.dumps(record) + "\n")


def read_records(folder: Path, shard: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield every job record below `folder`, or those of one shard in it; incomplete lines are skipped."""
    paths = sorted(folder.rglob("*" + RECORD_SUFFIX)) if shard is None else [folder / f"{shard}{RECORD_SUFFIX}"]
    for path in paths:
        if shard is not None and not path.exists():
            continue
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                yield json.loads(line)


@dataclass
class Benchmarks:
    """seconds: of whole jobs, by the file that tells it, the oldest first; jobs: how many there are, of which these are the newest."""

    seconds: dict[Path, float]
    jobs: int

    @property
    def total(self) -> float:
        """Seconds of all jobs; where not all were read, as if the others had taken as long as these."""
        return fmean(self.seconds.values()) * self.jobs if self.seconds else 0.0


def benchmarks(folder: Path) -> Benchmarks:
    """The newest benchmarks of a rule, or of a step.

    folder: where they are; a rule's single file has the folder's name and an ending. Those that cannot be read are no jobs.
    """
    paths = sorted([*folder.rglob("*.tsv"), *folder.parent.glob(f"{folder.name}.tsv")], key=_written)
    newest, found = paths[-_ENOUGH:], dict[Path, float]()
    for path in newest:
        with contextlib.suppress(OSError, KeyError, ValueError), open(path, encoding="utf-8", newline="") as stream:
            if told := [float(line["s"]) for line in csv.DictReader(stream, delimiter="\t")]:
                found[path] = sum(told)
    return Benchmarks(found, len(paths) - len(newest) + len(found))


def _written(path: Path) -> int:
    """When a file was written, in ns; 0 where it is gone."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def around(folder: Path) -> float:
    """Seconds that a job of a step takes before and after what its own record is about; 0 where nothing tells.

    folder: of the step's records.
    """
    jobs = {path.stem.partition("-")[0]: seconds for path, seconds in benchmarks(folder).seconds.items()}
    last = {shard: list(read_records(folder, shard))[-1:] for shard in jobs}
    found = [
        jobs[shard] - record["seconds"] - record.get("waited", 0.0)
        for shard, records in last.items()
        for record in records
    ]
    return max(median(found), 0.0) if found else 0.0


def against_expected(records: list[dict[str, Any]]) -> float | None:
    """How many times as long as the built-in speeds say the work of these jobs took; None where none of them says it."""
    told = [record for record in _whole(records) if record.get("expected")]
    expected = sum(record["expected"] for record in told)
    return sum(record["working"] for record in told) / expected if expected else None


def _whole(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of jobs that made something, and all of each thing: what one part of a score took says nothing of the whole."""
    return [record for record in records if record["made"] > 0 and not record.get("in_part")]


def speed(records: list[dict[str, Any]], workers: int = 0) -> tuple[float, float] | None:
    """(seconds that a job spends outside its work, seconds for each request), or None if nothing was made yet.

    Args:
        records: of finished jobs, as `read_records` yields them.
        workers: how many processes will share a job's requests, if the forecast is for another number of GPUs than the
            records'; 0 for as many as the records say.
    """
    made = _whole(records)
    if not made:
        return None
    start = median(max(record["seconds"] - record["working"], 0.0) for record in made)
    work = sum(record["working"] * (max(record["gpus"], 1) if workers else 1) for record in made)
    return start, work / max(workers, 1) / sum(record["made"] for record in made)
