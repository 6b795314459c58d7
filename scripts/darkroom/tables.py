"""Read all shards together: check them against the plan, select, and write the final tables."""

import csv
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from darkroom.errors import DarkroomError
from darkroom.files import replacing
from darkroom.judge import SCORE_COLUMNS
from darkroom.labels import Labels
from darkroom.plan import Plan, rows_digest
from darkroom.rubric import Rubric
from darkroom.shardfile import EDITED_COLUMNS, check_digest, iter_records, packed_meta, read_meta

TABLE_GROUP_ROWS = 16_384
_ARROW = {"text": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}

# Columns of the final tables before the rubric's; those of edits alone are null for generated images.
TABLE_COLUMNS = {"kind": "text", "shard": "text"} | {
    name: type_ for name, type_ in EDITED_COLUMNS.items() if type_ != "picture" and name != "fields"
}


@dataclass
class Kind:
    """All shards of one kind: "images" (of the prompts) or "edited" (of the edits).

    image_digests: shard -> digest that is planned; groups: score file -> the shards it covers, and score_digests: the
    digest that is planned for it; images and scores: folders of these files; prompts: the folder of the prompts files.
    """

    name: str
    plan: Plan
    samples: int
    image_digests: dict[str, str]
    score_digests: dict[str, str]
    prompts: Path
    images: Path
    scores: Path
    groups: dict[str, list[str]]

    def check(self) -> None:
        """Every shard file is there, was made for what is planned, and holds as many requests as its rows ask for."""
        for group, shards in self.groups.items():
            made = [check_digest(self.images / f"{name}.parquet", self.image_digests[name]) for name in shards]
            images = sum(meta["records"] for meta in made)
            scores = check_digest(self.scores / f"{group}.parquet", self.score_digests[group])["records"]
            if images != scores:
                raise DarkroomError(
                    f"{self.scores / group}.parquet: {scores} scores for {images} images; delete it and run again"
                )

    def records(self) -> Iterator[dict[str, Any]]:
        """A record per request in the order of the rows: image columns without pictures, then scores."""
        for group, shards in self.groups.items():
            scores = iter_records(self.scores / f"{group}.parquet")
            for shard in shards:
                yield from self._joined(shard, scores, group)

    def group_of(self, shard: str) -> str:
        """The name of the score file that covers a shard."""
        return next(group for group, shards in self.groups.items() if shard in shards)

    def shard_records(self, shard: str) -> Iterator[dict[str, Any]]:
        """The records of one shard, as `records` has them."""
        group = self.group_of(shard)
        shards = self.groups[group]
        before = shards[: shards.index(shard)]
        skipped = sum(read_meta(self.images / f"{name}.parquet")["records"] for name in before)
        scores = iter_records(self.scores / f"{group}.parquet")
        yield from self._joined(shard, itertools.islice(scores, skipped, None), group)

    def _joined(self, shard: str, scores: Iterator[dict[str, Any]], group: str) -> Iterator[dict[str, Any]]:
        """The images of a shard with their scores, which come next in `scores`."""
        columns = [c for c in TABLE_COLUMNS if c not in ("kind", "shard")] + ["fields"]
        if self.name == "images":
            columns = [c for c in columns if not c.startswith("source")]
        for image in iter_records(self.images / f"{shard}.parquet", columns):
            score = next(scores, {"image_key": None, "sha256": None})
            if (image["key"], image["sha256"]) != (score["image_key"], score["sha256"]):
                raise DarkroomError(
                    f"{self.scores / group}.parquet: row {image['row']}: the scores are of another picture;"
                    " delete it and run again"
                )
            kept = {column: value for column, value in score.items() if column not in SCORE_COLUMNS}
            yield {"kind": self.name, "shard": shard} | image | kept

    def lines(self) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """(shard, first line of the shard in the user's file, prompts line) of every row and rejected row."""
        for name, shard in self.plan.shards.items():
            path = self.prompts / f"{name}.jsonl"
            data = path.read_bytes()
            if rows_digest(data) != shard.digest:
                raise DarkroomError(f"{path}: not the rows that are planned; delete it and run again")
            for raw in data.splitlines():
                yield name, shard.first_line, json.loads(raw)


def is_selected(record: dict[str, Any], thresholds: dict[str, float]) -> bool:
    """Whether an image was made and reaches every threshold; a null score reaches none."""
    if record["error"] is not None:
        return False
    return all(record.get(name) is not None and record[name] >= least for name, least in thresholds.items())


def select_rows(
    records: Iterator[dict[str, Any]], thresholds: dict[str, float], per_row: int | None
) -> Iterator[dict[str, Any]]:
    """The records with `selected`; per_row: at most so many samples of an item, the best by the first threshold."""

    def finish(group: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for record in group:
            record["selected"] = is_selected(record, thresholds)
        if per_row is not None:
            by = next(iter(thresholds), None)
            chosen = [record for record in group if record["selected"]]
            chosen.sort(key=lambda record: (-record[by] if by else 0, record["sample"]))
            for record in chosen[per_row:]:
                record["selected"] = False
        return group

    group: list[dict[str, Any]] = []
    for record in records:
        if group and (group[0]["row"], group[0]["item"]) != (record["row"], record["item"]):
            yield from finish(group)
            group = []
        group.append(record)
    yield from finish(group)


def merge_scores(
    kinds: list[Kind],
    rubric: Rubric,
    select: dict[str, Any],
    parquet: Path,
    table: Path,
    meta: dict[str, str],
    labels: Labels | None = None,
) -> dict[str, int]:
    """Write scores.parquet and scores.csv: a line per request of all kinds. Returns counts by kind.

    labels: what a person said of the images, for the column `label`. Raises DarkroomError where a shard is missing, stale, damaged or holds other counts than planned.
    """
    for kind in kinds:
        kind.check()
    columns = dict(TABLE_COLUMNS)
    for kind in kinds:
        columns |= rubric.columns(kind.name)
    columns |= {"selected": "bool", "label": "text"}
    fields = _field_columns(kinds, columns)
    schema = pa.schema(
        [(name, _ARROW[type_]) for name, type_ in columns.items()]
        + [(column, type_) for column, type_ in fields.values()]
    )
    counts: dict[str, int] = {}

    def records() -> Iterator[dict[str, Any]]:
        for kind in kinds:
            expected = sum(shard.rows for shard in kind.plan.shards.values())
            rows, last = 0, None
            for record in select_rows(kind.records(), select[kind.name], select["per_row"]):
                rows, last = rows + (record["row"] != last), record["row"]
                for state in (
                    "requests",
                    "failed" if record["error"] else "made",
                    *(["selected"] * record["selected"]),
                ):
                    counts[f"{kind.name} {state}"] = counts.get(f"{kind.name} {state}", 0) + 1
                record["label"] = labels.of(record["key"]) if labels else None
                if record["label"]:
                    state = f"{kind.name} labelled {record['label']}"
                    counts[state] = counts.get(state, 0) + 1
                own = json.loads(record.pop("fields"))
                for name, (column, type_) in fields.items():
                    value = own.get(name)
                    as_text = type_ == pa.string() and value is not None and not isinstance(value, str)
                    if type_ == pa.float64() and value is not None:
                        value = float(value)  # Arrow refuses whole numbers that a float64 rounds
                    record[column] = json.dumps(value, ensure_ascii=False) if as_text else value
                yield record
            if rows != expected:
                raise DarkroomError(f"{kind.images}: images of {rows} rows where {expected} are planned")

    with (
        replacing(table) as csv_file,
        open(csv_file, "w", encoding="utf-8", newline="") as stream,
        replacing(parquet) as parquet_file,
        pq.ParquetWriter(parquet_file, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        # With "\n" alone, Python 3.11 leaves a cell that holds "\r" without quotes, and readers see two lines.
        lines = csv.DictWriter(stream, schema.names, lineterminator="\r\n", extrasaction="ignore")
        lines.writeheader()
        group: list[dict[str, Any]] = []

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
            lines.writerows(group)
            group.clear()

        number = 0
        for number, record in enumerate(records(), 1):  # noqa: B007
            group.append(record)
            if len(group) >= TABLE_GROUP_ROWS:
                flush()
        flush()
        own = [column for column, _ in fields.values()]  # the columns that hold the user's own fields
        writer.add_key_value_metadata(packed_meta(meta | {"rule": "merge_scores", "fields": own}, number))
    return counts


def _field_columns(kinds: list[Kind], columns: dict[str, str]) -> dict[str, tuple[str, pa.DataType]]:
    """The user's own fields as columns: field -> (column, type). Mixed or nested values become JSON text.

    A field that has the name of a column of ours is called row_<name>.
    """
    types: dict[str, pa.DataType | None] = {}
    for kind in kinds:
        for name in kind.plan.shards:
            for record in iter_records(kind.images / f"{name}.parquet", ["fields"]):
                for field, value in json.loads(record["fields"]).items():
                    type_ = _scalar_type(value)
                    types[field] = _common_type(types.get(field), type_) if field in types else type_
    taken, named = set(columns) | set(types), {}
    for field, type_ in types.items():
        column = field
        while column in columns or (column != field and column in taken):
            column = f"row_{column}"
        taken.add(column)
        named[field] = (column, type_ or pa.string())
    return named


def _scalar_type(value: Any) -> pa.DataType | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        return pa.int64() if -(2**63) <= value < 2**63 else pa.string()
    return pa.float64() if isinstance(value, float) else pa.string()


def _common_type(one: pa.DataType | None, other: pa.DataType | None) -> pa.DataType | None:
    if one is None or other is None or one == other:
        return one or other
    numbers = {pa.int64(), pa.float64()}
    return pa.float64() if {one, other} <= numbers else pa.string()


def write_rejected(kinds: list[Kind], path: Path, labels: Labels | None = None) -> int:
    """Write rejected.jsonl: every row of the user's files that could not be used, with file kind, line and reason.

    labels: after they went through `merge_scores`, for those that are of no image.
    """
    count = 0
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as out:
        for kind in kinds:
            source = "prompts" if kind.name == "images" else "edits"
            for _, first, line in kind.lines():
                if "rejected" in line:
                    count += 1
                    record = {"file": source, "line": first + line["line"], "reason": line["rejected"]}
                    out.write(json.dumps(record | {"text": line["text"]}, ensure_ascii=False) + "\n")
        for record in labels.left() if labels else ():
            count += 1
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
    return count
