"""What jobs record about themselves: one JSON line for each finished job.

`results/benchmarks/<rule>/<shard>.jsonl` says what each job made, carried over and left out, and the time it took. The
forecast of `plan` is computed from these records; nothing that is made depends on them.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

RECORD_SUFFIX = ".jsonl"


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


def speed(records: list[dict[str, Any]], workers: int = 0) -> tuple[float, float] | None:
    """(seconds that a job spends outside its work, seconds for each request), or None if nothing was made yet.

    Args:
        records: of finished jobs, as `read_records` yields them.
        workers: how many processes will share a job's requests, if the forecast is for another number of GPUs than the
            records'; 0 for as many as the records say.
    """
    made = [record for record in records if record["made"] > 0]
    if not made:
        return None
    start = median(max(record["seconds"] - record["working"], 0.0) for record in made)
    work = sum(record["working"] * (max(record["gpus"], 1) if workers else 1) for record in made)
    return start, work / max(workers, 1) / sum(record["made"] for record in made)
