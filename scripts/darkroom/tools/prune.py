"""Find, and remove, what lies in a results folder and is no longer planned: shards of rows that were edited or deleted."""

from pathlib import Path

from darkroom.errors import DarkroomError
from darkroom.files import target_of
from darkroom.plan.shards import SHARD_NAME
from darkroom.run.workflow import ROWS, RULES, Workflow


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
        stages += ((f"gallery/{kind}", plan.shards, (f"gallery_shard/{kind}",)),)
        stages += ((f"scores/{kind}", workflow.groups[kind].members, (f"score_images/{kind}",)),)
        for stage, planned, rules in stages:
            folders = {ROWS[kind]: (".jsonl",)} if stage == kind else {}
            endings = ("", ".js") if stage.startswith("gallery/") else (".parquet",)
            folders |= {stage: endings, f".darkroom/scratch/{stage}": ("", ".jsonl")}
            folders |= {f"{top}/{rule}": (".log", ".tsv", ".jsonl") for top in ("logs", "benchmarks") for rule in rules}
            for folder, suffixes in folders.items():
                for path in workflow.results(folder).glob("*"):
                    file = target_of(path)
                    # The user may keep files of his own beside ours.
                    if file.suffix in suffixes and SHARD_NAME.fullmatch(file.stem) and file.stem not in planned:
                        found.append(path)
    return sorted(found)
