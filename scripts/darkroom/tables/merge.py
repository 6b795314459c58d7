"""Write the final tables from all shards together."""

import csv
import io
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from darkroom.config.models import Select
from darkroom.files import replacing
from darkroom.metrics.base import Catalogue
from darkroom.rows.labels import LABELS, Labels
from darkroom.store.columns import TABLE_COLUMNS, Type
from darkroom.store.shardfile import arrow_schema, arrow_type, packed_meta
from darkroom.tables.duplicates import DuplicatesFile
from darkroom.tables.fields import Names
from darkroom.tables.joined import Joined
from darkroom.tables.kind import Kind
from darkroom.tables.select import Selector
from darkroom.tables.yields import write_yields

_MARKS = (b",", b'"', b"\r", b"\n")
_QUOTED = '[,"\r\n]'  # a cell of CSV that has one of these stands in quotes


def merge_scores(
    kinds: list[Kind],
    catalogue: Catalogue,
    select: Select,
    parquet: Path,
    table: Path,
    meta: dict[str, str],
    labels: Labels | None = None,
    prefix: str = "darkroom_",
    yields: Path | None = None,
    by: str | None = None,
    duplicates: DuplicatesFile | None = None,
) -> dict[str, int]:
    """Write scores.parquet and scores.csv: a line per request of all kinds. Returns counts by kind.

    catalogue: the columns of scores; labels: what a person said of the images, for the column `label`; prefix: what
    a column of ours begins with where a field of the user's rows has its name; yields: write yield.csv there, also by the column or
    field `by`; duplicates: what was found of each line. Raises DarkroomError where a shard is missing, stale, damaged or holds other
    counts than planned.

    The shards are read once, into a file without a name beside the tables. Memory holds some thousands of images, and of all of
    them what they are selected by.
    """
    several = any(kind.model is not None for kind in kinds)
    columns: dict[str, Type] = {"kind": "text", **({"model": "text"} if several else {}), **TABLE_COLUMNS}
    for kind in kinds:
        columns |= catalogue.types(kind.name)
    parquet.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=parquet.parent) as file:
        columns |= duplicates.columns if duplicates else {}
        images = Joined.gathered(kinds, columns | {"label": "text"}, labels, file, duplicates)
        columns |= {"selected": "bool", "label": "text"}
        own_types = images.own_types()
        names = Names(own_types, prefix)
        named = {column: names(column) for column in columns}
        counts: dict[str, int] = {}
        flags = []
        selector = Selector(catalogue, select, named, columns, own_types, by)
        every = {kind.name: selector.chosen(images, kind) for kind in kinds}
        for name, chosen in every.items():
            flags += chosen.selected.chunks
            counts |= _counts(images, name, chosen.selected)
        schema = arrow_schema({named[column]: type_ for column, type_ in columns.items()} | own_types)
        with (
            replacing(table) as csv_file,
            open(csv_file, "wb") as stream,
            replacing(parquet) as parquet_file,
            pq.ParquetWriter(parquet_file, schema, compression="zstd", write_page_checksum=True) as writer,
        ):
            header = io.StringIO()
            csv.writer(header, lineterminator="\r\n").writerow(schema.names)
            stream.write(header.getvalue().encode())
            for part, nested in _parts(images, pa.chunked_array(flags, pa.bool_()), list(columns), own_types, schema):
                writer.write_table(part)
                stream.write(_csv(part, nested))
            # For who reads it: kind -> [name, type] of the user's own fields, and which columns of ours have which other name.
            own_fields = {
                kind: [[name, types.named(name)] for name in types.order] for kind, types in images.fields.items()
            }
            moved = {name: column for name, column in named.items() if column != name}
            told = {"rule": "merge_scores", "fields": own_fields, "moved": moved}
            writer.add_key_value_metadata(packed_meta(meta | told, images.number))
    if yields is not None:
        write_yields(yields, every, by)
    return counts


def _counts(images: Joined, kind: str, selected: pa.ChunkedArray) -> dict[str, int]:
    """How many images of a kind there are in which state; states that none is in are left out."""
    counts = {"requests": len(selected), "failed": 0, "made": 0, "selected": pc.sum(selected).as_py() or 0}
    counts |= {f"labelled {label}": 0 for label in LABELS}
    for part in images.of_kind(kind, ["error", "label"]):
        counts["failed"] += len(part) - part["error"].null_count
        counts["made"] += part["error"].null_count
        for label in LABELS:
            counts[f"labelled {label}"] += pc.sum(pc.equal(part["label"], label)).as_py() or 0
    return {f"{kind} {state}": number for state, number in counts.items() if number}


def _parts(
    images: Joined, selected: pa.ChunkedArray, columns: list[str], own_types: Mapping[str, Type], schema: pa.Schema
) -> Iterator[tuple[pa.Table, dict[int, pa.ChunkedArray]]]:
    """The table part by part, and its columns of lists and objects as JSON, by their place."""
    at = 0
    for part in images.parts():
        found: list[Any] = [
            selected.slice(at, len(part)).combine_chunks() if name == "selected" else part[name].combine_chunks()
            for name in columns
        ]
        at += len(part)
        rows = list(images.own_rows(part)) if own_types else []
        nested: dict[int, pa.ChunkedArray] = {}
        for name, type_ in own_types.items():
            if not isinstance(type_, str):
                nested[len(found)] = pa.chunked_array([one.texts(name, type_) for one in rows], pa.large_string())
            own = pa.chunked_array([one.column(name, type_) for one in rows], arrow_type(type_))
            found.append(own.combine_chunks())  # in one piece: how Parquet cuts its pages hangs on the pieces
        yield pa.table(found, schema=schema), nested


def _csv(part: pa.Table, nested: Mapping[int, pa.ChunkedArray]) -> bytes:
    """The lines of a part as the `csv` module of Python writes them; nested: columns as JSON by their place."""
    if not len(part):
        return b""
    cells = [_cells(nested.get(place, column)) for place, column in enumerate(part.columns)]
    # With "\n" alone, a cell that holds "\r" would need no quotes to some, and others see two lines.
    cells[-1] = _joined(cells[-1], "\r\n", by="")
    lines = _joined(*cells, by=",")
    return b"".join(_bytes(one) for one in lines.chunks)


def _bytes(texts: pa.Array) -> bytes:
    """Texts that follow each other without a gap, as they lie in memory."""
    _, offsets, data = texts.buffers()
    first, last = pa.Array.from_buffers(pa.int64(), len(texts) + 1, [None, offsets], offset=texts.offset)[:: len(texts)]
    return data[first.as_py() : last.as_py()].to_pybytes()


def _cells(column: pa.ChunkedArray) -> pa.ChunkedArray:
    type_ = column.type
    if pa.types.is_boolean(type_):
        return pc.if_else(column, pa.scalar("True", pa.large_string()), pa.scalar("False", pa.large_string()))
    if pa.types.is_floating(type_):
        told = column.combine_chunks().view(pa.int64()).dictionary_encode()  # by their bits: 0.0 is not -0.0
        values = told.dictionary.view(pa.float64()).to_pylist()
        texts = pa.array([repr(value) for value in values], pa.large_string())
        return pa.chunked_array([texts.take(told.indices)])
    texts = column.cast(pa.large_string())
    if pa.types.is_integer(type_):
        return texts
    if not any(mark in _bytes(one) for one in texts.chunks if len(one) for mark in _MARKS):
        return texts
    quoted = pc.match_substring_regex(texts, _QUOTED)
    doubled = pc.replace_substring(texts, '"', '""')
    return pc.if_else(quoted, _joined('"', doubled, '"', by=""), texts)


def _joined(*texts: pa.ChunkedArray | str, by: str) -> pa.ChunkedArray:
    """Texts side by side; a null is an empty one."""
    large = [pa.scalar(one, pa.large_string()) if isinstance(one, str) else one for one in (*texts, by)]
    return pc.binary_join_element_wise(*large, null_handling="replace")


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
