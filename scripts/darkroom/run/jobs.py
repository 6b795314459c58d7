"""What a job of a run works with, put together from its plan: the requests, the files it makes and those it may take over.

And what it leaves behind about itself.
"""

import json
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from darkroom.engines.work import ShardJob
from darkroom.jobs.devices import Devices
from darkroom.jobs.history import append_record
from darkroom.models.hub import models_of_section
from darkroom.plan.requests import Request, expand_rows
from darkroom.run.lineage import Step, folders_like, manifest_of
from darkroom.run.needs import seconds_of_step, work_of
from darkroom.run.workflow import Workflow
from darkroom.store.carry import ShardFolder
from darkroom.store.manifest import read_manifest
from darkroom.store.scratch import Scratch


def contents(files: list[str]) -> list[str]:
    """What shard files hold, by hash, as their manifests say it; nothing for one that has none."""
    found = (read_manifest(manifest_of(path)) for path in files)
    return [manifest["content"] if manifest else "" for manifest in found]


@dataclass
class Kept:
    """Where results of a step that are still good may lie: asked once for each of its files."""

    workflow: Workflow
    step: Step

    @cached_property
    def folder(self) -> ShardFolder:
        """All shard files of the step, of whatever recipe, and under whatever name the config had its model."""
        folder = self.workflow.results(*self.step.name.split("/"))
        return ShardFolder(folder, *(other for other in folders_like(folder) if other != folder))

    def shards(self, shards: list[str]) -> list[str]:
        """The shards that held rows of these before, and these themselves."""
        return self.workflow.plans[self.step.stage].earlier_shards(*shards)

    def image_files(self, shard: str) -> list[Path]:
        """Shard files that may hold images of the rows of a shard."""
        return self.folder.files(self.shards([shard]))

    def scratch(self, shard: str) -> Scratch:
        """Where finished images of a shard wait."""
        return Scratch(self.workflow.scratch_folder(self.step) / shard)

    def score_files(self, group: str) -> tuple[list[Path], list[Path]]:
        """(score files, journals) that may hold scores of the rows of a group, the journal of its own last."""
        groups = self.workflow.groups[self.step.stage]
        shards = self.shards(groups.members[group])
        names = dict.fromkeys([group, *(name for shard in shards for name in groups.homes_of(shard))])
        journals = [self.workflow.journal(self.step, name) for name in reversed(names)]
        return self.folder.files(names), journals


def requests_of(workflow: Workflow, stage: str, lines: bytes) -> list[Request]:
    """The requests of a shard's lines; rejected rows have none."""
    wanted, config = workflow.stage(stage), workflow.config
    table = json.loads(b"[%s]" % b",".join(lines.splitlines()))
    rows = (row for row in table if "rejected" not in row and wanted.makes(row))
    seed, samples = config.seed_of(wanted.section), config.samples_of(wanted.rows)
    return expand_rows(rows, config.section(wanted.section), seed, samples, wanted.every)


def shard_job(workflow: Workflow, stage: str, shard: str) -> ShardJob:
    """What the job that makes a shard of a stage works with."""
    wanted, lineage = workflow.stage(stage), workflow.lineage
    sources = lineage.sources_by_stage(stage, shard)
    images = {
        None if wanted.every else other.model: [Path(path) for path in sources.get(other.name, ())]
        for other in lineage.read_by(wanted)
    }
    return ShardJob(
        name=wanted.section,
        section=workflow.config.section(wanted.section),
        recipe=workflow.recipes[stage],
        digest=lineage.image_digests[stage][shard],
        folder=workflow.rows_folder(wanted.rows),
        pictures=workflow.row_plans[wanted.rows].pictures,
        rule=wanted.rule,
        edits=wanted.reads is not None,
        scratch=Kept(workflow, lineage.step(stage)).scratch(shard),
        strict=workflow.config.strict,
        images=[path for paths in images.values() for path in paths],
        made_by={path: model for model, paths in images.items() if model is not None for path in paths},
        edits_before=[Path(path) for path in sources.get(stage, ())],
        kinds={"row": wanted.reads, "edit": stage} if wanted.reads is not None else {},
        models={one.section: one for one in models_of_section(workflow.models, wanted.section)},
        made_from=contents(lineage.sources(stage, shard)),
        compiled=workflow.results(".darkroom", "compiled"),
        extensions=tuple(workflow.config.extensions),
    )


def keep_record(
    workflow: Workflow, step: Step, name: str, counts: dict[str, float], started: float, devices: Devices
) -> None:
    """Record what a job made and the time it took.

    name: of its shard or group. counts: what it made, and "working", the seconds spent on it. started: `time.monotonic()` at its
    beginning. The built-in estimate of the same work is recorded with it, so that a forecast for other settings can be drawn.
    """
    shards = [name] if step.metric is None else workflow.groups[step.stage].members[name]
    work = work_of(workflow, step.stage, shards)
    expected = seconds_of_step(workflow, step, work) / max(work.requests, 1) * counts["made"]
    record = counts | {
        "seconds": time.monotonic() - started - devices.waited,
        "waited": devices.waited,
        "expected": expected,
    }
    rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in record.items()}
    append_record(workflow.history(step, name), rounded | {"gpus": len(devices.held)})
