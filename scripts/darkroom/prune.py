"""Find, and remove, what lies in a results folder and is no longer planned: shards of rows that were edited or deleted."""

import re
import shutil
from pathlib import Path

from darkroom.errors import DarkroomError
from darkroom.workflow import ROWS, RULES, Workflow

SHARD_NAME = re.compile("[0-9a-f]{12}x*")


def unplanned_files(workflow: Workflow) -> list[Path]:
    """Files and scratch folders of shards that are not planned, with their logs and benchmarks; of the config's kinds alone.

    Raises DarkroomError while a planned shard is missing or stale: it may still take images over from them.
    """
    outdated = set(workflow.outdated_files())
    waiting = sum(not path.exists() or path in outdated for _, _, path, _ in workflow.shard_files())
    if waiting:
        raise DarkroomError(
            f"{waiting} shard files are missing or stale and may take images over; run snakemake first, then prune"
        )
    found: list[Path] = []
    for kind, plan in workflow.plans.items():
        stages = ((kind, plan.shards, (f"shard_{ROWS[kind]}", RULES[kind])),)
        stages += ((f"scores/{kind}", workflow.groups[kind].members, (f"score_images/{kind}",)),)
        for stage, planned, rules in stages:
            folders = {ROWS[kind]: (".jsonl",)} if stage == kind else {}
            folders |= {stage: (".parquet",), f".darkroom/scratch/{stage}": ("", ".jsonl")}
            folders |= {f"{top}/{rule}": (".log", ".tsv", ".jsonl") for top in ("logs", "benchmarks") for rule in rules}
            for folder, suffixes in folders.items():
                for path in workflow.results(folder).glob("*"):
                    # The user may keep files of his own beside ours.
                    if path.suffix in suffixes and SHARD_NAME.fullmatch(path.stem) and path.stem not in planned:
                        found.append(path)
    return sorted(found)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(p.stat().st_size for p in (path.rglob("*") if path.is_dir() else [path]) if p.is_file())


def remove(path: Path) -> None:
    """Remove a file or a folder."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
