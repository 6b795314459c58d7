"""Parquet files in the layout of Hugging Face `datasets`, with the pictures in them as they were made."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from darkroom.exports.base import Export, Sums, replace_files, runs
from darkroom.store.shardfile import Type, write_shard
from darkroom.tables.kind import Kind


def write(export: Export, sums: Sums) -> dict[str, int]:
    """Write a folder per kind with files of at most `export.limit` bytes of pictures and text; the images in each."""
    return {
        kind.name: write_files(export, kind, columns(export, kind), _records(export, kind), sums)
        for kind in export.kinds
    }


def columns(export: Export, kind: Kind) -> dict[str, Type]:
    """The columns of a kind's files and their types (see `shardfile`)."""
    pictures: dict[str, Type] = dict.fromkeys(_pictures(export, kind), "picture")
    return pictures | export.described_columns(kind)


def _pictures(export: Export, kind: Kind) -> dict[str, str]:
    """Column of a picture -> its name in a shard."""
    names = export.names(kind)
    return {names(name): name for name in ("image", *(["source"] if kind.has_sources else []))}


def _records(export: Export, kind: Kind) -> Iterator[dict[str, Any]]:
    pictures = _pictures(export, kind)
    for image in export.selected(kind):
        record: dict[str, Any] = {name: image.full.get(picture) for name, picture in pictures.items()}
        yield record | export.described(kind, image)


def write_files(
    export: Export, kind: Kind, columns: dict[str, Type], records: Iterator[dict[str, Any]], sums: Sums
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


def _bytes(value: Any) -> int:
    if isinstance(value, dict | list):
        return sum(map(_bytes, value.values() if isinstance(value, dict) else value))
    return len(value) if isinstance(value, str | bytes) else 8
