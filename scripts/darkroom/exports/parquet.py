"""Parquet files in the layout of Hugging Face `datasets`, with the pictures in them as they were made."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from darkroom.exports.base import Export, Sums, replace_files, runs
from darkroom.store.shardfile import write_shard
from darkroom.tables.kind import Kind


def write(export: Export, sums: Sums) -> dict[str, int]:
    """Write a folder per kind with files of at most `export.limit` bytes of pictures and text; the images in each."""
    return {
        kind.name: write_files(export, kind, columns(export, kind), _records(export, kind), sums)
        for kind in export.kinds
    }


def columns(export: Export, kind: Kind) -> dict[str, str]:
    """The columns of a kind's files and their types (see `shardfile`)."""
    sources = {"source": "picture"} if kind.has_sources else {}
    return {"image": "picture"} | sources | export.described_columns(kind)


def _records(export: Export, kind: Kind) -> Iterator[dict[str, Any]]:
    for image in export.selected(kind):
        record = {name: image.full[name] for name in ("image", "source") if name in image.full}
        yield record | export.described(kind, image)


def write_files(
    export: Export, kind: Kind, columns: dict[str, str], records: Iterator[dict[str, Any]], sums: Sums
) -> int:
    """Stream records into `kind`/train-00000-of-0000N.parquet and return their number."""
    folder = export.folder / kind.name
    folder.mkdir(exist_ok=True)
    meta = {"digest": export.digest, "rule": "export_dataset"}
    written: list[Path] = []
    count = 0
    for run in runs(records, export.limit, _bytes):
        path = folder / f".train-{len(written):05d}.parquet"
        count += write_shard(path, columns, run, meta)
        written.append(path)
    names = [f"train-{number:05d}-of-{len(written):05d}.parquet" for number in range(len(written))]
    replace_files(folder, written, names)
    for name in names:
        sums.add_file(f"{kind.name}/{name}", note=True)
    return count


def _bytes(record: dict[str, Any]) -> int:
    values = (value["bytes"] if isinstance(value, dict) else value for value in record.values())
    return sum(len(value) if isinstance(value, str | bytes) else 8 for value in values)
