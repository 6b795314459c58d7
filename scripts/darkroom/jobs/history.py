"""What jobs record of themselves: one JSON line per finished job, beside Snakemake's benchmark files.

`results/benchmarks/<rule>/<shard>.jsonl` says what a job made, carried over, left out, and the time it took. The
forecast of `snakemake plan` is computed from them; nothing else depends on them.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

RECORD_SUFFIX = ".jsonl"


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Add a line to the records of a shard's jobs. A record must not fail a job that is done: errors pass."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as out:
            out.write(json.dumps(record) + "\n")


def read_records(folder: Path, shard: str | None = None) -> Iterator[dict[str, Any]]:
    """Every job record below `folder`, or those of one shard in it; lines that are cut short are passed over."""
    paths = sorted(folder.rglob("*" + RECORD_SUFFIX)) if shard is None else [folder / f"{shard}{RECORD_SUFFIX}"]
    for path in paths:
        if shard is not None and not path.exists():
            continue
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                yield json.loads(line)


def speed(records: list[dict[str, Any]], workers: int = 0) -> tuple[float, float] | None:
    """(seconds a job takes before and after its work, seconds per request), or None where nothing was made yet.

    workers: the processes that share a job's requests, where the numbers of the records' GPUs were others.
    """
    made = [record for record in records if record["made"] > 0]
    if not made:
        return None
    start = median(max(record["seconds"] - record["working"], 0.0) for record in made)
    work = sum(record["working"] * (max(record["gpus"], 1) if workers else 1) for record in made)
    return start, work / max(workers, 1) / sum(record["made"] for record in made)
