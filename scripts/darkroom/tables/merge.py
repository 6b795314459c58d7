"""Write the final tables from all shards together."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from darkroom.config.models import Select
from darkroom.errors import DarkroomError
from darkroom.files import replacing
from darkroom.metrics.base import Catalogue
from darkroom.rows.labels import Labels
from darkroom.store.shardfile import Type, arrow_schema, iter_records, packed_meta
from darkroom.tables.duplicates import DuplicatesFile
from darkroom.tables.fields import FieldTypes, Names, shaped
from darkroom.tables.kind import TABLE_COLUMNS, Kind
from darkroom.tables.select import select_rows

TABLE_GROUP_ROWS = 16_384


def merge_scores(
    kinds: list[Kind],
    catalogue: Catalogue,
    select: Select,
    parquet: Path,
    table: Path,
    meta: dict[str, str],
    labels: Labels | None = None,
    prefix: str = "darkroom_",
    duplicates: DuplicatesFile | None = None,
) -> dict[str, int]:
    """Write scores.parquet and scores.csv: a line per request of all kinds. Returns counts by kind.

    catalogue: the columns of scores; labels: what a person said of the images, for the column `label`; prefix: what
    a column of ours begins with where a field of the user's rows has its name; duplicates: what was found of each line. Raises DarkroomError where a shard is missing, stale, damaged or holds other counts than planned.
    """
    for kind in kinds:
        kind.check()
    several = any(kind.model is not None for kind in kinds)
    columns: dict[str, Type] = {"kind": "text", **({"model": "text"} if several else {}), **TABLE_COLUMNS}
    for kind in kinds:
        columns |= catalogue.types(kind.name)
    columns |= duplicates.columns if duplicates else {}
    columns |= {"selected": "bool", "label": "text"}
    own_types, of_kind = _own_fields(kinds)
    names = Names(own_types, prefix)
    named = {column: names(column) for column in columns}
    schema = arrow_schema({named[column]: type_ for column, type_ in columns.items()} | own_types)
    counts: dict[str, int] = {}

    found = duplicates.lines() if duplicates else None

    def records() -> Iterator[dict[str, Any]]:
        for kind in kinds:
            rows, last = 0, None
            joined = _labelled(kind, labels)
            for record in select_rows(
                duplicates.joined(joined, found) if duplicates and found else joined,
                select.least_of(kind.name),
                select.per_row,
                select.labels,
            ):
                rows, last = rows + (record["row"] != last), record["row"]
                for state in (
                    "requests",
                    "failed" if record["error"] else "made",
                    *(["selected"] * record["selected"]),
                ):
                    counts[f"{kind.name} {state}"] = counts.get(f"{kind.name} {state}", 0) + 1
                if record["label"]:
                    state = f"{kind.name} labelled {record['label']}"
                    counts[state] = counts.get(state, 0) + 1
                own = kind.plan.order.ordered(json.loads(record["fields"]))
                line = {column: record.get(name) for name, column in named.items()}
                yield line | {name: shaped(own.get(name), type_) for name, type_ in own_types.items()}
            if rows != kind.rows_expected:
                raise DarkroomError(f"{kind.name}: images of {rows} rows where {kind.rows_expected} are planned")

    with (
        replacing(table) as csv_file,
        open(csv_file, "w", encoding="utf-8", newline="") as stream,
        replacing(parquet) as parquet_file,
        pq.ParquetWriter(parquet_file, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        # With "\n" alone, Python 3.11 leaves a cell that holds "\r" without quotes, and readers see two lines.
        lines = csv.DictWriter(stream, schema.names, lineterminator="\r\n")
        lines.writeheader()
        group: list[dict[str, Any]] = []

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
            lines.writerows(map(_texts, group))
            group.clear()

        number = 0
        for number, record in enumerate(records(), 1):  # noqa: B007
            group.append(record)
            if len(group) >= TABLE_GROUP_ROWS:
                flush()
        flush()
        # For who reads it: kind -> [name, type] of the user's own fields, and which columns of ours have which other name.
        own_fields = {kind: [[name, types.named(name)] for name in types.order] for kind, types in of_kind.items()}
        moved = {name: column for name, column in named.items() if column != name}
        told = {"rule": "merge_scores", "fields": own_fields, "moved": moved}
        writer.add_key_value_metadata(packed_meta(meta | told, number))
    return counts


def _labelled(kind: Kind, labels: Labels | None) -> Iterator[dict[str, Any]]:
    for record in kind.records():
        yield record | {"label": labels.of(record["key"]) if labels else None}


def _texts(line: dict[str, Any]) -> dict[str, Any]:
    """A line of the table for CSV: lists and objects as JSON."""
    nested = {k: json.dumps(v, ensure_ascii=False) for k, v in line.items() if isinstance(v, list | dict)}
    return line | nested


def _own_fields(kinds: list[Kind]) -> tuple[dict[str, Type], dict[str, FieldTypes]]:
    """The user's own fields: their types over all rows, and kind -> the fields of its rows."""
    of_kind = {kind.name: FieldTypes(kind.plan.columns) for kind in kinds}
    for kind in kinds:
        for name in kind.plan.shards:
            for record in iter_records(kind.image_file(name), ["fields"]):
                of_kind[kind.name].add(kind.plan.order.ordered(json.loads(record["fields"])))
    every = FieldTypes()
    for types in of_kind.values():
        every.join(types)
    return {field: every.named(field) for field in every.order}, of_kind


def write_rejected(kinds: list[Kind], path: Path, labels: Labels | None = None) -> int:
    """Write rejected.jsonl: every row of the user's files that could not be used, with file kind, line and reason.

    labels: after they went through `merge_scores`, for those that are of no image.
    """
    count = 0
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as out:
        of_rows: dict[str, Kind] = {}
        for kind in kinds:
            of_rows.setdefault(kind.rows, kind)  # one of those that are made from the same rows
        for kind in of_rows.values():
            for _, first, line in kind.lines():
                if "rejected" in line:
                    count += 1
                    name, number = kind.plan.place(first + line["line"])
                    record: dict[str, Any] = {"file": kind.rows} | ({"name": name} if len(kind.plan.files) > 1 else {})
                    record |= {"line": number, "reason": line["rejected"]}
                    out.write(json.dumps(record | {"text": line["text"]}, ensure_ascii=False) + "\n")
        for record in labels.left() if labels else ():
            count += 1
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
    return count
