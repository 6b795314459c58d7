"""Every row, request and reply of a run that came to nothing, with the reason, from the plan and the shard files."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from darkroom.errors import DarkroomError
from darkroom.run.workflow import ROWS, Workflow
from darkroom.store.shardfile import iter_records, read_meta
from darkroom.views.report import general


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


def find_failures(workflow: Workflow) -> Iterator[Failure]:
    """Every failure that is on record, stage by stage; of a run that is not over, what there is so far.

    Files that will be made again, because they are stale or damaged, are passed over.
    """
    for kind in workflow.plans:
        yield from _rejected(workflow, kind)
    for stage, _, path, planned in workflow.shard_files():
        scores, _, kind_name = stage.rpartition("/")
        try:
            meta = read_meta(path) if path.exists() else {}
            if meta.get("digest") != planned or not meta["failed"]:
                continue
            file = workflow.config[ROWS[kind_name]]
            for record in iter_records(path, None if scores else ["row", "item", "sample", "error"]):
                for reason in _replies(record) if scores else [record["error"]]:
                    if reason is not None:
                        place = {name: record[name] for name in ("row", "item", "sample")}
                        yield Failure(stage, file, reason, **place)
        except DarkroomError:
            continue


def _rejected(workflow: Workflow, kind: str) -> Iterator[Failure]:
    rows, plan = ROWS[kind], workflow.plans[kind]
    for shard in plan.shards.values():
        for line in map(json.loads, plan.read(shard.name).splitlines() if shard.rejected else ()):
            if "rejected" in line:
                yield Failure(rows, workflow.config[rows], line["rejected"], line=shard.first_line + line["line"])


def _replies(record: dict[str, Any]) -> Iterator[str | None]:
    """What is wrong with the scores of an image; one that was not made has none."""
    if record["sha256"] is not None:
        for name, value in record.items():
            if name.endswith("_error") and value is not None:
                yield f"{name.removesuffix('_error')}: {value}"
