"""Every row, request and reply of a run that came to nothing, with the reason, from the plan and the shard files."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from darkroom.errors import DarkroomError, general
from darkroom.plan.shards import base_folder
from darkroom.run.lineage import File, Step
from darkroom.run.workflow import REASONS, Workflow
from darkroom.store.manifest import read_manifest

_SHARDS_READ = 200  # of each step, for `lines`


@dataclass(frozen=True)
class Failure:
    """file: of the user's, as the config names it. stage: "prompts" or "edits" for a row that was rejected, "labels" for a label
    that could not be used, with its line; else the stage of the request ("images", "scores/images", ...), with row, item and sample."""

    stage: str
    file: str
    reason: str
    line: int | None = None
    row: str | None = None
    item: int | None = None
    sample: int | None = None

    def record(self) -> dict[str, Any]:
        """Its fields, without those that it has not."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def reason_class(self) -> tuple[str, str]:
        """Stage and reason without the names and numbers of this one case."""
        return self.stage, general(self.reason)

    def text(self) -> str:
        """One line for a terminal."""
        place = f"line {self.line}" if self.row is None else f"row {self.row}, item {self.item}, sample {self.sample}"
        return f"{self.file}, {place}: {self.stage}: {self.reason}"


def lines(workflow: Workflow) -> Iterator[str]:
    """A line for each of the user's files with rejected rows, and for each step with failures, with the commonest reasons.

    Where very many shards hold failures, reasons are those of the first ones: a run's end must not read a whole set once more.
    """
    yield from workflow.rejected_lines()
    for step in workflow.lineage.steps():
        failing = list(_failing(workflow, step))
        read = failing[:_SHARDS_READ]
        reasons = Counter(failure.reason_class[1] for shard, _ in read for failure in _failures(workflow, step, shard))
        if not reasons:
            continue
        total = reasons.total() if read == failing else sum(failed for _, failed in failing)
        told = [f"{count:,} x {reason}" for reason, count in reasons.most_common(REASONS)]
        more = ["..."] if len(reasons) > REASONS else []
        where = "" if read == failing else f" (reasons of the first {len(read):,} shards)"
        yield f"{step.name}: {total:,} failed: {'; '.join(told + more)}{where}"


def find_failures(workflow: Workflow) -> Iterator[Failure]:
    """Every failure that is on record, stage by stage; of a run that is not over, what there is so far.

    Files that will be made again, because they are stale or damaged, are passed over.
    """
    for rows in workflow.row_plans:
        yield from _rejected(workflow, rows)
    for record in workflow.wrong_labels():
        yield Failure("labels", str(workflow.config.labels), record["reason"], line=record["line"])
    for step in workflow.lineage.steps():
        for shard, _ in _failing(workflow, step):
            yield from _failures(workflow, step, shard)


def _failing(workflow: Workflow, step: Step) -> Iterator[tuple[File, int]]:
    """The files of a step that hold failures, and how many records with failures each has."""
    for shard in workflow.lineage.files(step):
        manifest = read_manifest(shard.manifest)
        if manifest is not None and manifest["digest"] == shard.digest and manifest["failed"]:
            yield shard, manifest["failed"]


def _failures(workflow: Workflow, step: Step, shard: File) -> Iterator[Failure]:
    """The failures in a file, none where it cannot be read."""
    from darkroom.store.shardfile import iter_records

    file = workflow.rows_name(workflow.stage(step.stage).rows)
    columns = ["row", "item", "sample", "error"] if step.metric is None else None
    with contextlib.suppress(DarkroomError):
        for record in iter_records(shard.path, columns):
            for reason in [record["error"]] if step.metric is None else _replies(record):
                if reason is not None:
                    yield Failure(step.name, file, reason, None, record["row"], record["item"], record["sample"])


def _rejected(workflow: Workflow, rows: str) -> Iterator[Failure]:
    plan = workflow.row_plans[rows]
    for shard in plan.shards.values():
        for line in map(json.loads, plan.read(shard.name).splitlines() if shard.rejected else ()):
            if "rejected" in line:
                name, number = plan.place(shard.first_line + line["line"])
                file = (
                    workflow.rows_name(rows)
                    if len(plan.files) == 1
                    else str(base_folder(workflow.row_files(rows)) / name)
                )
                yield Failure(rows, file, line["rejected"], line=number)


def _replies(record: dict[str, Any]) -> Iterator[str | None]:
    """What is wrong with the scores of an image; one that was not made has none."""
    if record["sha256"] is not None:
        for name, value in record.items():
            if name.endswith("_error") and value is not None:
                yield f"{name.removesuffix('_error')}: {value}"
