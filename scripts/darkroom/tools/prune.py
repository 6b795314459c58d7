"""Find what lies in a results folder and is no longer planned: files of other recipes, and of rows that were edited or deleted.

They stay until someone removes them, for going back to an earlier setting then makes nothing again. So whoever starts a run is
told how much they hold.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from darkroom.errors import DarkroomError
from darkroom.files import size_of, target_of
from darkroom.jobs.terminal import size
from darkroom.plan.shards import SHARD_NAME
from darkroom.plan.stages import STAGES
from darkroom.run.lineage import folders_like
from darkroom.run.workflow import Workflow

_FILE = re.compile(rf"({SHARD_NAME.pattern})-[0-9a-f]{{8}}\.(jsonl|parquet|manifest|js|log|tsv|refused)")
_NAMED = re.compile(rf"({SHARD_NAME.pattern})(\.jsonl)?")


def superseded_files(workflow: Workflow) -> Iterator[Path]:
    """Files and folders of shards that are not planned, with what jobs left of them; of the config's stages alone, by whichever model.

    The user may keep files of his own beside ours: only names that the workflow gives are looked at.
    """
    lineage, results = workflow.lineage, workflow.results
    rows = {name for stems in lineage.stems.values() for name in stems.values()}
    for kind in lineage.plans:
        yield from _left(results(kind), rows, depth=0)
        for top in ("logs", "benchmarks"):
            yield from _left(results(top, f"shard_{kind}"), rows, depth=0)
    for step in lineage.steps():
        files = list(lineage.files(step))
        planned = {_stem(file.path) for file in files}
        names = {file.name for file in files}
        yield from _left(results(step.name), planned, depth=1)
        for folder in (
            (workflow.job_log(step, files[0].path).parents[1], workflow.history_folder(step)) if files else ()
        ):
            yield from _left(folder, planned, depth=1)
        yield from _named(workflow.history_folder(step), names)
        yield from _named(workflow.scratch_folder(step), names)
    shown: dict[str, set[str]] = {stage.name: set() for stage in workflow.stages}
    for stage, _, path in workflow.gallery_files():
        shown[stage].add(_stem(path))
    for stage, planned in shown.items() if workflow.gallery else ():
        yield from _left(results("gallery", stage), planned, depth=1)
        for top in ("logs", "benchmarks"):
            yield from _left(results(top, "gallery_shard", stage), planned, depth=1)
        yield from _packs(workflow, stage)
    yield from _of_other_models(workflow)


def _of_other_models(workflow: Workflow) -> Iterator[Path]:
    """All that is left of the config's stages by models that it does not name, or names otherwise."""
    now = {stage.name for stage in workflow.stages}
    tops = ["", "gallery", "logs/gallery_shard", "benchmarks/gallery_shard", ".darkroom/scratch"]
    for metric in (metric.name for metric in workflow.metrics):
        tops += [
            f"{top}/{metric}"
            for top in ("scores", ".darkroom/scratch/scores", "logs/score_images", "benchmarks/score_images")
        ]
    for base in dict.fromkeys(stage.like for stage in workflow.stages):
        folders = [path for top in tops for path in folders_like(workflow.results(top, base)) if path.name not in now]
        for model in {path.name.partition("-")[2] for path in folders}:
            rule = "_".join(filter(None, [STAGES[base].rule, model]))
            folders += [workflow.results(top, rule) for top in ("logs", "benchmarks")]
        for folder in folders:
            yield from _left(folder, set(), depth=1)
            yield from _named(folder, set())


def superseded_line(workflow: Workflow) -> str | None:
    """One line that says how much they hold, for `plan`, `watch` and the end of a run; None where there are none.

    A file that goes meanwhile counts for nothing, and packs of a gallery that cannot be read are left out.
    """
    count = total = 0
    with contextlib.suppress(DarkroomError):
        for path in superseded_files(workflow):
            with contextlib.suppress(FileNotFoundError):
                total += size_of(path)
                count += 1
    told = f"superseded: {size(total)} in {count} files and folders of earlier settings or rows"
    return f"{told}; `darkroom prune` removes them" if count else None


def unplanned_files(workflow: Workflow) -> list[Path]:
    """The files and folders that `prune` removes.

    Raises DarkroomError while a planned shard is missing or stale: it may still take images over from them.
    """
    waiting = sum(1 for step in workflow.lineage.steps() for _ in workflow.wanted(step))
    if waiting:
        raise DarkroomError(
            f"{waiting} shard files are missing or stale and may take images over; run snakemake first, then prune"
        )
    return sorted(superseded_files(workflow))


def _stem(path: str) -> str:
    """What tells one of the files of a step from the others: its recipe and its name."""
    file = Path(path)
    return f"{file.parent.name}/{file.stem}"


def _left(folder: Path, planned: set[str], depth: int) -> Iterator[Path]:
    """Our files below `folder` that are not planned; depth: 1 where a folder for each recipe lies between."""
    for path in folder.glob("*/*" if depth else "*"):
        file = target_of(path)
        stem = f"{file.parent.name}/{file.stem}" if depth else file.stem
        if _FILE.fullmatch(file.name) and stem not in planned:
            yield path


def _named(folder: Path, planned: set[str]) -> Iterator[Path]:
    """Scratch folders, journals and records of shards that are not planned."""
    for path in folder.glob("*"):
        if (found := _NAMED.fullmatch(path.name)) and found[1] not in planned:
            yield path


def _packs(workflow: Workflow, stage: str) -> Iterator[Path]:
    """Packs of the gallery that no planned file names."""
    from darkroom.views.gallery import packs_folder, read_head

    wanted: dict[Path, set[str]] = {}
    for kind, shard, path in workflow.gallery_files():
        if kind == stage and Path(path).exists():
            wanted[packs_folder(Path(path), shard)] = set(read_head(path).get("packs", ()))
    for folder in workflow.results("gallery", stage).glob("*"):
        if not SHARD_NAME.fullmatch(folder.name):
            continue
        if folder not in wanted:
            yield folder
            continue
        for pack in folder.glob("*"):
            if target_of(pack).name not in wanted[folder]:
                yield pack
