"""Give the user's rows back, in their own format, with the images that were kept and what the judge said of them."""

import csv
import datetime
import decimal
import functools
import gzip
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from darkroom.exports.base import Export, Image, Pictures, PngFolder, Sums
from darkroom.exports.provenance import Marker
from darkroom.files import replacing
from darkroom.plan.stages import EDITED, like
from darkroom.rows.fields import NAMES, PLAIN, Fields
from darkroom.rows.formats import ending
from darkroom.store.shardfile import arrow_schema
from darkroom.tables.fields import FieldTypes, Names, shaped
from darkroom.tables.kind import Kind

TABLE_ROWS = 1000  # of the rows' Parquet file, written at once


def write(export: Export, sums: Sums) -> dict[str, int]:
    """Write the selected images as PNG and one file of rows per kind; return the number of rows in each.

    The ending of `export.rows` (.jsonl, .json, .csv, .tsv, also with .gz; .parquet) decides the format. A row of which no image was
    selected is left out. Paths in the rows are relative to the folder.
    """
    counts = {}
    for kind in export.kinds:
        pictures = PngFolder(export.folder, picture_folders(kind), sums)
        path = export.rows[kind.name]
        counts[kind.name] = _write_rows(
            _rows(export, kind, pictures), path, given_types(export.given.get(kind.name, ()))
        )
        pictures.finish()
        sums.add_file(path.name, note=True)
    return counts


def picture_folders(kind: Kind) -> tuple[str, ...]:
    """The folders that hold a kind's pictures."""
    if not kind.has_sources:
        return (kind.name,)
    return kind.name, "sources" if kind.name == EDITED.name else f"{kind.name}_sources"


def _rows(export: Export, kind: Kind, pictures: PngFolder) -> Iterator[dict[str, Any]]:
    marker, stored = export.marker(kind), Pictures(kind)
    fields = export.fields.get(kind.name, PLAIN)
    names = Names(
        [*kind.plan.columns, *NAMES, *(name for of in fields.names.values() for name in of)], export.settings.prefix
    )
    said = export.catalogue.main_reply(kind.name)
    by_row = itertools.groupby(export.records(kind), key=lambda found: (found[0], found[2]["row"]))
    lines = ((shard, line) for shard, _, line in kind.lines() if "rejected" not in line and kind.makes(line))
    for ((shard, row), group), (_, line) in zip(by_row, lines, strict=True):
        if row != line["id"]:
            raise AssertionError(f"{kind.rows_file(shard)}: row {line['id']} where row {row} was made")
        kept, paths = [], []
        for _, place, record, _ in group:
            if record["selected"]:
                kept.append(record)
                paths.append(put_pictures(pictures, marker, stored.read(shard, place, record)))
        if kept:
            filled = _with_pictures(kind.plan.order.ordered(line["row"]), paths, kind, fields)
            if said is not None:
                replies = [record[said] for record in kept]
                filled[names(export.reply_column)] = replies[0] if len(replies) == 1 else replies
            # Which of the row's prompts (or sources) each image is of, which sample, and its scores.
            scores = ["item", "sample", *export.catalogue.score_names(kind.name)]
            filled[names("scores")] = {name: [record[name] for record in kept] for name in scores}
            yield filled


def put_pictures(pictures: PngFolder, marker: Marker, image: Image) -> tuple[str, str | None]:
    """Write an image as PNG below the first folder of `pictures`, and its source below the second; their paths."""
    shard, record, full = image.shard, image.record, image.full
    path = pictures.put(
        pictures.names[0], shard, record["key"], lambda: marker.image(shard, record, full["image"]["bytes"])
    )
    if "source" not in full:
        return path, None
    stem = record["source_sha256"][:32]
    source = pictures.put(pictures.names[1], shard, stem, lambda: marker.source(shard, record, full["source"]["bytes"]))
    return path, source


def _with_pictures(
    row: dict[str, Any], paths: list[tuple[str, str | None]], kind: Kind, fields: Fields
) -> dict[str, Any]:
    """The row with its pictures as the fields that name such: paths of images, and of their sources."""
    filled = dict(row)
    given = fields.user_name("images", row)
    images = [path for path, _ in paths]
    if kind.has_sources:
        sources = [source for _, source in paths]  # one per result, so that pairs stay pairs
        filled[given] = sources[0] if _is_single(row.get(given)) and len(sources) == 1 else sources
        results = fields.user_name(f"{like(kind.name)}_images", row)
        filled[results] = images[0] if isinstance(row.get(results), str) and len(images) == 1 else images
    else:
        filled[given] = images[0] if _is_single(row.get(given)) and len(images) == 1 else images
    return filled


def _is_single(value: Any) -> bool:
    """Whether a field that names images holds one, outside of a list."""
    return isinstance(value, str | dict)


def _write_rows(rows: Iterator[dict[str, Any]], path: Path, given: Mapping[str, pa.DataType]) -> int:
    zipped = path.suffix == ".gz"
    written: dict[str, Callable[[Path, Path], None]] = {
        ".json": _write_array,
        ".csv": _write_csv,
        ".tsv": functools.partial(_write_csv, delimiter="\t"),
        ".parquet": functools.partial(_write_parquet, given=given),
    }
    write = written.get((path.with_suffix("") if zipped else path).suffix)
    count = 0
    with replacing(path) as temporary:
        with open(temporary, "wb") as out:
            for row in rows:
                count += 1
                out.write(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n")
        if write:  # whose columns are known when the last row is
            with replacing(temporary, apart=False) as table:
                write(temporary, table)
        if zipped:
            with (
                replacing(temporary, apart=False) as packed,
                open(temporary, "rb") as plain,
                open(packed, "wb") as file,
                # Without a name: that of the temporary file has a process id in it.
                gzip.GzipFile("", "wb", fileobj=file, mtime=0) as zipping,
            ):
                shutil.copyfileobj(plain, zipping)
    return count


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, "rb") as stream:
        yield from map(json.loads, stream)


def _write_array(rows: Path, path: Path) -> None:
    with open(rows, "rb") as lines, open(path, "wb") as out:
        for number, line in enumerate(lines):
            out.write((b",\n" if number else b"[\n") + line.rstrip(b"\n"))
        out.write(b"\n]\n" if out.tell() else b"[]\n")


def _write_csv(rows: Path, path: Path, delimiter: str = ",") -> None:
    own = FieldTypes()
    for row in _read_rows(rows):
        own.add(row)
    with open(path, "w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, own.order, delimiter=delimiter)
        writer.writeheader()
        for row in _read_rows(rows):
            nested = {k: json.dumps(v, ensure_ascii=False) for k, v in row.items() if isinstance(v, list | dict)}
            writer.writerow(row | nested)


def _write_parquet(rows: Path, path: Path, given: Mapping[str, pa.DataType]) -> None:
    """given: the types that columns had in the user's files; those that JSON has not come back from the text of their values."""
    own, left = FieldTypes(), dict(given)
    for chunk in _chunks(rows):
        for row in chunk:
            own.add(row)
        for name, type_ in list(left.items()):
            try:
                _as_given([row.get(name) for row in chunk], type_)
            except (pa.ArrowException, TypeError, ValueError, ArithmeticError):
                del left[name]  # it holds something else, too
    columns = {name: own.named(name) for name in own.order}
    schema = pa.schema(
        [(name, left.get(name, type_.type)) for name, type_ in zip(columns, arrow_schema(columns), strict=True)]
    )
    with pq.ParquetWriter(path, schema) as writer:
        for chunk in _chunks(rows):
            arrays = []
            for field in schema:
                values = [row.get(field.name) for row in chunk]
                if field.name in left:
                    arrays.append(_as_given(values, field.type))
                else:
                    arrays.append(pa.array([shaped(value, columns[field.name]) for value in values], field.type))
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _chunks(rows: Path) -> Iterator[list[dict[str, Any]]]:
    read = _read_rows(rows)
    while chunk := list(itertools.islice(read, TABLE_ROWS)):
        yield chunk


def given_types(files: Iterable[str | Path]) -> dict[str, pa.DataType]:
    """Column -> its type in the user's Parquet files, where that is a number or a time that JSON does not tell."""
    found: dict[str, pa.DataType] = {}
    for file in files:
        for field in pq.read_schema(file) if ending(file) == ".parquet" else ():
            found.setdefault(field.name, field.type)
    known = (types.is_integer, types.is_floating, types.is_decimal, types.is_date, types.is_timestamp, types.is_time)
    return {name: type_ for name, type_ in found.items() if any(is_of(type_) for is_of in known)}


def _as_given(values: list[Any], type_: pa.DataType) -> pa.Array:
    """Values of rows as the Parquet file that they are from had them. Raises where they are not such."""
    if types.is_decimal(type_):
        return pa.array([None if value is None else decimal.Decimal(str(value)) for value in values], type_)
    if types.is_time(type_):
        return pa.array([None if value is None else datetime.time.fromisoformat(value) for value in values], type_)
    return pa.array(values).cast(type_)
