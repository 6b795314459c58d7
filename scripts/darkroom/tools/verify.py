"""Read everything that a run has made once more, and say what is wrong with it."""

import filecmp
import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from darkroom.errors import DarkroomError, RowError
from darkroom.exports import SUMS
from darkroom.exports.base import wrong_files
from darkroom.metrics.rubric import JUDGE
from darkroom.plan.requests import request_key
from darkroom.run.jobs import contents, requests_of
from darkroom.run.workflow import Workflow
from darkroom.store.images import open_picture
from darkroom.store.manifest import manifest_path, read_manifest
from darkroom.store.shardfile import check_digest, iter_records
from darkroom.tables.kind import Kind
from darkroom.tables.merge import merge_scores, write_rejected
from darkroom.views.gallery import check_packs, packs_folder, read_head


@dataclass
class Report:
    """What was read, by name, and what is wrong, a line each."""

    counts: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, name: str, number: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + number


def verify(workflow: Workflow) -> Report:
    """Check every row, request, digest, hash, key and count of a finished run against its plan.

    Rows: each is in its prompts file. Requests: each row has as many records as it asks for, under the key that its
    content and the recipe give. Images: each has the SHA-256 that is recorded, and decodes. Scores: one for each image,
    of that very picture. Tables, rejected.jsonl and duplicates.parquet: the same bytes when made once more from the shards. Exports: every
    file that SHA256SUMS names, with that hash. Data set: a file for each selected image, with its bytes. Gallery: every
    shard's file, and its packs by their SHA-256.
    """
    report = Report()
    for kind in workflow.kinds():
        shown = (_gallery,) if workflow.config.gallery.enabled else ()
        checks = [(check, shard) for shard in kind.plan.names for check in (_rows, _images, *shown)]
        for check, name in checks + [(_scores, group) for group in kind.groups]:
            try:
                report.problems += list(check(workflow, kind, name, report))
            except DarkroomError as error:
                report.problems.append(str(error))
    try:
        report.problems += list(_tables(workflow, report))
    except (DarkroomError, OSError) as error:
        report.problems.append(str(error))
    return report


def _rows(workflow: Workflow, kind: Kind, shard: str, report: Report) -> Iterator[str]:
    path, planned = kind.rows_file(shard), kind.plan.shards[shard]
    if not path.exists():
        yield f"{path}: no such file; run snakemake again"
        return
    workflow.shard_rows(workflow.stage(kind.name).rows, shard, path)
    report.add(f"{kind.name} rows", planned.rows)
    report.add(f"{kind.name} rejected rows", planned.rejected)


def _images(workflow: Workflow, kind: Kind, shard: str, report: Report) -> Iterator[str]:
    path = kind.image_file(shard)
    meta = check_digest(path, kind.image_digests[shard])
    if meta["recipe"] != workflow.recipes[kind.name]:
        yield f"{path}: its recipe is not the one that is planned; delete it and run again"
    recipe = workflow.recipes[kind.name]
    requests = requests_of(workflow, kind.name, kind.plan.read(shard))
    yield from _manifest(path, meta)
    number = 0
    for number, record in enumerate(iter_records(path), 1):
        where = f"{path}: row {record['row']}, item {record['item']}, sample {record['sample']}"
        if number > len(requests):
            continue
        request = requests[number - 1]
        if (request.row, request.item, request.sample) != (record["row"], record["item"], record["sample"]):
            yield f"{where}: stands where {request.name} is planned"
            continue
        if record["error"] is not None:
            report.add(f"{kind.name} failed")
            continue
        report.add(f"{kind.name} images")
        data = record["image"]["bytes"] if record["image"] else b""
        if hashlib.sha256(data).hexdigest() != record["sha256"]:
            yield f"{where}: the image is not the one that was written"
            continue
        try:
            picture = open_picture(data, record["key"])
            if picture.image.size != (record["width"], record["height"]):
                yield f"{where}: {picture.image.size} pixels where {record['width']} x {record['height']} are recorded"
        except RowError as error:
            yield f"{where}: {error}"
        request.width, request.height = record["width"], record["height"]
        if not request.given and request_key(request, recipe, record.get("source_sha256"), None) != record["key"]:
            yield f"{where}: its key is not that of its row and recipe"
        if request.source:
            try:
                open_picture(record["source"]["bytes"], record["source_name"])
            except RowError as error:
                yield f"{where}: {error}"
    if number != len(requests):
        yield f"{path}: {number} records where {len(requests)} requests are planned"


def _scores(workflow: Workflow, kind: Kind, group: str, report: Report) -> Iterator[str]:
    planned = workflow.score_requests(kind.name, group)
    for metric, digests in kind.score_digests.items():
        path, counted = kind.score_file(metric, group), "scored" if metric == JUDGE else f"scored by {metric}"
        yield from _manifest(path, check_digest(path, digests[group]))
        columns = ["key", "row", "sha256", "error"]
        images = (i for shard in kind.groups[group] for i in iter_records(kind.image_file(shard), columns))
        scores = list(iter_records(path))
        for image, score in zip(images, scores, strict=False):
            if (image["key"], image["sha256"]) != (score["image_key"], score["sha256"]):
                yield f"{path}: row {image['row']}: the scores are of another picture"
            report.add(f"{kind.name} {counted}", image["error"] is None)
        if len(scores) != planned:
            yield f"{path}: {len(scores)} scores where {planned} requests are planned"


def _manifest(path: Path, meta: dict[str, Any]) -> Iterator[str]:
    """A shard's manifest is there, and says what the shard itself says."""
    manifest = read_manifest(manifest_path(path))
    if manifest is None:
        yield f"{manifest_path(path)}: missing or damaged; delete {path} and run snakemake again"
    elif any(manifest[name] != meta[name] for name in ("digest", "records", "failed")):
        yield f"{manifest_path(path)}: not that of {path.name}; delete both and run snakemake again"


def _gallery(workflow: Workflow, kind: Kind, shard: str, report: Report) -> Iterator[str]:
    path = Path(workflow.lineage.gallery_file(kind.name, shard))
    head = read_head(path)
    if head.get("made_from") != contents(workflow.gallery_inputs(kind.name, shard)):
        yield f"{path}: not of the pictures and scores that are there; delete it and run snakemake again"
    yield from check_packs(packs_folder(path, shard), head)
    report.add(f"{kind.name} in the gallery", head["records"])


def _tables(workflow: Workflow, report: Report) -> Iterator[str]:
    """The tables are made once more, in a temporary folder: they must be the same to the byte."""
    if report.problems:
        yield "the tables were not compared with the shards, for the shards are not in order"
        return
    meta = workflow.tables_meta()
    with tempfile.TemporaryDirectory(prefix="darkroom-verify-") as name:
        new = [Path(name, table) for table in ("scores.parquet", "scores.csv", "rejected.jsonl", "yield.csv")]
        labels = workflow.labels()
        select, prefix = workflow.config.select, workflow.config.export.prefix
        if found := workflow.duplicates_file():
            found = replace(found, path=Path(name, found.path.name))
            workflow.find_duplicates(found.path)
            new.append(found.path)
        yields = new[3], workflow.config.report.yield_by
        merge_scores(workflow.kinds(), workflow.catalogue, select, new[0], new[1], meta, labels, prefix, *yields, found)
        write_rejected(workflow.kinds(), new[2], labels)
        for path in new:
            there = workflow.results(path.name)
            if not there.exists():
                yield f"{there}: no such file; run snakemake again"
            elif not filecmp.cmp(path, there, shallow=False):
                yield f"{there}: not what the shards amount to; delete it and run snakemake again"
        report.add("table lines", pq.read_metadata(new[0]).num_rows)
    for format in workflow.config.export.formats:
        yield from _export(workflow, format, report)


def _export(workflow: Workflow, format: str, report: Report) -> Iterator[str]:
    """The files of an export have the hashes that it says, and the data set has a file for each selected image."""
    folder = workflow.export_folder(format)
    wrong = list(wrong_files(folder))
    if (folder / SUMS).exists():
        report.add(f"{format} files", (folder / SUMS).read_bytes().count(b"\n"))
    yield from wrong
    if wrong or format != "folder":
        return
    export = workflow.export(format)
    for kind in export.kinds:
        marker = export.marker(kind)
        for image in export.selected(kind):
            path = folder / kind.name / image.shard / f"{image.record['key']}.png"
            report.add("data set files")
            data = marker.image(image.shard, image.record, image.full["image"]["bytes"])
            if not path.exists() or path.read_bytes() != data:
                yield f"{path}: not the image of its shard; delete {folder / SUMS} and run again"


def report_lines(report: Report) -> str:
    """The report for a terminal."""
    lines = [f"{number:10d} {name}" for name, number in sorted(report.counts.items())]
    return "\n".join([*lines, *(f"error: {problem}" for problem in report.problems)])
