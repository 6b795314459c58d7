"""Give the user's rows back, in their own format, with the images that were kept and what the judge said of them."""

import csv
import gzip
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from darkroom.exports.base import Export, Image, Names, Pictures, PngFolder, Sums
from darkroom.exports.provenance import Marker
from darkroom.files import replacing
from darkroom.plan.stages import EDITED
from darkroom.rows.fields import NAMES, PLAIN, Fields, merge_names
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
        counts[kind.name] = _write_rows(_rows(export, kind, pictures), path)
        pictures.finish()
        sums.add_file(path.name, note=True)
    return counts


def picture_folders(kind: Kind) -> tuple[str, ...]:
    """The folders that hold a kind's pictures."""
    if not kind.has_sources:
        return (kind.name,)
    return kind.name, "sources" if kind.name == EDITED.name else f"{kind.name}_sources"


def _rows(export: Export, kind: Kind, pictures: PngFolder) -> Iterator[dict[str, Any]]:
    marker, stored, columns = export.marker(kind), Pictures(kind), kind.plan.columns
    fields = export.fields.get(kind.name, PLAIN)
    names = Names([*columns, *NAMES, *(name for of in fields.names.values() for name in of)], export.settings.prefix)
    said = export.catalogue.main_reply(kind.name)
    by_row = itertools.groupby(export.records(kind), key=lambda found: (found[0], found[2]["row"]))
    lines = ((shard, line) for shard, _, line in kind.lines() if "rejected" not in line)
    for ((shard, row), group), (_, line) in zip(by_row, lines, strict=True):
        if row != line["id"]:
            raise AssertionError(f"{kind.rows_file(shard)}: row {line['id']} where row {row} was made")
        kept, paths = [], []
        for _, place, record in group:
            if record["selected"]:
                kept.append(record)
                paths.append(put_pictures(pictures, marker, stored.read(shard, place, record)))
        if kept:
            own = line["row"]
            row = {name: own[name] for name in columns if name in own} | own
            filled = _with_pictures(row, paths, kind, fields)
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
        results = fields.user_name(f"{kind.name}_images", row)
        filled[results] = images[0] if isinstance(row.get(results), str) and len(images) == 1 else images
    else:
        filled[given] = images[0] if _is_single(row.get(given)) and len(images) == 1 else images
    return filled


def _is_single(value: Any) -> bool:
    """Whether a field that names images holds one, outside of a list."""
    return isinstance(value, str | dict)


def _write_rows(rows: Iterator[dict[str, Any]], path: Path) -> int:
    zipped = path.suffix == ".gz"
    written = {".json": _write_array, ".csv": _write_csv, ".tsv": _write_csv, ".parquet": _write_parquet}
    write = written.get((path.with_suffix("") if zipped else path).suffix)
    count = 0
    with replacing(path) as temporary:
        with open(temporary, "wb") as out:
            for row in rows:
                count += 1
                out.write(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n")
        if write:  # whose columns are known when the last row is
            with replacing(temporary, apart=False) as table:
                write(temporary, table, *(("\t",) if ".tsv" in path.suffixes else ()))
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


def _columns(rows: Path) -> list[str]:
    """The names that rows have, in their order."""
    order: list[str] = []
    known: set[str] = set()
    for row in _read_rows(rows):
        if not row.keys() <= known:
            merge_names(order, row)
            known.update(row)
    return order


def _write_array(rows: Path, path: Path) -> None:
    with open(rows, "rb") as lines, open(path, "wb") as out:
        for number, line in enumerate(lines):
            out.write((b",\n" if number else b"[\n") + line.rstrip(b"\n"))
        out.write(b"\n]\n" if out.tell() else b"[]\n")


def _write_csv(rows: Path, path: Path, delimiter: str = ",") -> None:
    names = _columns(rows)
    with open(path, "w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, names, delimiter=delimiter)
        writer.writeheader()
        for row in _read_rows(rows):
            nested = {k: json.dumps(v, ensure_ascii=False) for k, v in row.items() if isinstance(v, list | dict)}
            writer.writerow(row | nested)


def _write_parquet(rows: Path, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def chunks() -> Iterator[list[dict[str, Any]]]:
        read = _read_rows(rows)
        while chunk := list(itertools.islice(read, TABLE_ROWS)):
            yield chunk

    types: dict[str, pa.DataType | None] = {}  # None: values of several types, written as JSON
    for chunk in chunks():
        for name in dict.fromkeys(name for row in chunk for name in row):
            known = types.get(name, pa.null())
            try:
                here = pa.array([row.get(name) for row in chunk]).type
                fields = [pa.schema([(name, type_)]) for type_ in (known, here) if known is not None]
                types[name] = pa.unify_schemas(fields, promote_options="permissive")[0].type if fields else None
            except pa.ArrowException:  # such as one reply here and a list of them there
                types[name] = None
    schema = pa.schema([(name, types[name] or pa.string()) for name in _columns(rows)])
    with pq.ParquetWriter(path, schema) as writer:
        for chunk in chunks():
            for name in [name for name, type_ in types.items() if type_ is None]:
                for row in chunk:
                    if row.get(name) is not None:
                        row[name] = json.dumps(row[name], ensure_ascii=False)
            writer.write_table(pa.Table.from_pylist(chunk, schema=schema))
