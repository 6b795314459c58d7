"""Every row, request and reply of a run that came to nothing, with the reason, from the plan and the shard files."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from darkroom.errors import DarkroomError, general
from darkroom.plan.shards import base_folder
from darkroom.run.workflow import REASONS, Workflow
from darkroom.store.manifest import read_manifest


@dataclass(frozen=True)
class Failure:
    """file: of the user's rows, as the config names it. stage: "prompts" or "edits" for a row that was rejected, with its
    line; else the stage of the request ("images", "scores/images", ...), with row, item and sample."""

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
    """A line for each of the user's files with rejected rows, and for each step with failures, with the commonest reasons."""
    yield from workflow.rejected_lines()
    counts: dict[str, Counter[str]] = {}
    for failure in find_failures(workflow):
        if failure.line is None:
            counts.setdefault(failure.stage, Counter())[failure.reason_class[1]] += 1
    for stage, reasons in counts.items():
        told = [f"{count:,} x {reason}" for reason, count in reasons.most_common(REASONS)]
        more = ["..."] if len(reasons) > REASONS else []
        yield f"{stage}: {reasons.total():,} failed: {'; '.join(told + more)}"


def find_failures(workflow: Workflow) -> Iterator[Failure]:
    """Every failure that is on record, stage by stage; of a run that is not over, what there is so far.

    Files that will be made again, because they are stale or damaged, are passed over.
    """
    from darkroom.store.shardfile import iter_records

    for rows in workflow.row_plans:
        yield from _rejected(workflow, rows)
    for step in workflow.lineage.steps():
        file = workflow.rows_name(workflow.stage(step.stage).rows)
        for shard in workflow.lineage.files(step):
            manifest = read_manifest(shard.manifest)
            if manifest is None or manifest["digest"] != shard.digest or not manifest["failed"]:
                continue
            columns = ["row", "item", "sample", "error"] if step.metric is None else None
            try:
                for record in iter_records(shard.path, columns):
                    for reason in [record["error"]] if step.metric is None else _replies(record):
                        if reason is not None:
                            yield Failure(
                                step.name, file, reason, None, record["row"], record["item"], record["sample"]
                            )
            except DarkroomError:
                continue


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
