"""Give the user's rows back, in their own format, with the images that were kept and what the judge said of them."""

import csv
import gzip
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from darkroom.images import encode_png, open_picture
from darkroom.rubric import Rubric
from darkroom.shardfile import iter_records
from darkroom.tables import Kind, select_rows


def write_dataset(
    kinds: list[Kind], rubric: Rubric, select: dict[str, Any], reply_column: str, folder: Path, files: dict[str, Path]
) -> dict[str, int]:
    """Write the selected images as PNG below `folder` and one file of rows per kind; return the number of rows in each.

    files: kind -> the file of rows to write; its ending (.jsonl, .jsonl.gz, .csv, .parquet) decides the format. A row
    of which no image was selected is left out. PNG files that are there already are kept, those no longer wanted are
    removed. Paths in the rows are relative to `folder`.
    """
    counts = {}
    for kind in kinds:
        rows = _rows(kind, rubric, select, reply_column, folder)
        counts[kind.name] = _write_rows(rows, files[kind.name])
        for name in (kind.name, "sources") if kind.name == "edited" else (kind.name,):
            for left in (folder / name).glob("*"):
                if left.name not in kind.plan.shards and left.is_dir():
                    shutil.rmtree(left)
    return counts


def _rows(
    kind: Kind, rubric: Rubric, select: dict[str, Any], reply_column: str, folder: Path
) -> Iterator[dict[str, Any]]:
    records = select_rows(kind.records(), select[kind.name], select["per_row"])
    by_row = itertools.groupby(records, key=lambda record: (record["shard"], record["row"]))
    lines = ((shard, line) for shard, _, line in kind.lines() if "rejected" not in line)
    shard_now, pictures = None, None
    for ((shard, row), group), (_, line) in zip(by_row, lines, strict=True):
        if row != line["id"]:
            raise AssertionError(f"{kind.prompts}/{shard}.jsonl: row {line['id']} where row {row} was made")
        if shard != shard_now:
            if pictures:
                pictures.finish()
            shard_now, pictures = shard, _Pictures(kind, shard, folder)
        group = list(group)
        paths = pictures.write(group)
        if paths:
            yield _filled(line["row"], [r for r in group if r["selected"]], paths, kind.name, rubric, reply_column)
    if pictures:
        pictures.finish()


class _Pictures:
    """Writes the PNG files of one shard, reading its image file once, in order."""

    def __init__(self, kind: Kind, shard: str, folder: Path):
        self.records = iter_records(kind.images / f"{shard}.parquet")
        self.folder, self.kind, self.shard = folder, kind.name, shard
        self.wanted: set[Path] = set()

    def write(self, group: list[dict[str, Any]]) -> list[tuple[str, str | None]]:
        """Paths (image, source or None) of the selected records of `group`, the next of the shard."""
        paths = []
        for record, full in zip(group, itertools.islice(self.records, len(group)), strict=True):
            if not record["selected"]:
                continue
            path = self._write(self.kind, record["key"], full["image"]["bytes"])
            source = None
            if self.kind == "edited":
                source = self._write("sources", record["source_sha256"][:32], full["source"]["bytes"])
            paths.append((path, source))
        return paths

    def _write(self, name: str, stem: str, data: bytes) -> str:
        path = self.folder / name / self.shard / f"{stem}.png"
        if path not in self.wanted:
            self.wanted.add(path)
            if not data.startswith(b"\x89PNG"):
                data = encode_png(open_picture(data, path.name).image)
            if not path.exists() or path.stat().st_size != len(data):
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_name(f".{path.name}.{os.getpid()}")
                temporary.write_bytes(data)
                os.replace(temporary, path)
        return path.relative_to(self.folder).as_posix()

    def finish(self) -> None:
        for name in (self.kind, "sources") if self.kind == "edited" else (self.kind,):
            for path in (self.folder / name / self.shard).glob("*"):
                if path not in self.wanted:
                    path.unlink()


def _filled(
    row: dict[str, Any],
    records: list[dict[str, Any]],
    paths: list[tuple[str, str | None]],
    kind: str,
    rubric: Rubric,
    reply_column: str,
) -> dict[str, Any]:
    filled = dict(row)
    images = [path for path, _ in paths]
    if kind == "edited":
        sources = [source for _, source in paths]  # one per result, so that pairs stay pairs
        filled["images"] = sources[0] if isinstance(row["images"], str) and len(sources) == 1 else sources
        filled["edited_images"] = (
            images[0] if isinstance(row.get("edited_images"), str) and len(images) == 1 else images
        )
    else:
        single = isinstance(row.get("images"), str) and len(images) == 1
        filled["images"] = images[0] if single else images
    questions = rubric.questions[kind]
    if questions:
        asked = next((question for question in questions if question.type == "json"), questions[0])
        replies = [record[f"{asked.name}_reply"] for record in records]
        filled[reply_column] = replies[0] if len(replies) == 1 else replies
    # Which of the row's prompts (or sources) each image is of, which sample, and its scores.
    names = ["item", "sample", *rubric.scores(kind)]
    filled["scores"] = {name: [record[name] for record in records] for name in names}
    return filled


def _write_rows(rows: Iterator[dict[str, Any]], path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    suffix = PurePosixPath(path.name.removesuffix(".gz")).suffix
    count = 0
    try:
        if suffix in (".csv", ".parquet"):
            table = list(rows)
            count = len(table)
            (_write_csv if suffix == ".csv" else _write_parquet)(table, temporary)
        else:
            with gzip.GzipFile(temporary, "wb", mtime=0) if path.name.endswith(".gz") else open(temporary, "wb") as out:
                for row in rows:
                    count += 1
                    out.write(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with open(path, "w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, names)
        writer.writeheader()
        for row in rows:
            nested = {k: json.dumps(v, ensure_ascii=False) for k, v in row.items() if isinstance(v, list | dict)}
            writer.writerow(row | nested)


def _write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values)
        except pa.ArrowException:  # values of several types, such as one reply here and a list of them there
            columns[name] = pa.array([None if v is None else json.dumps(v, ensure_ascii=False) for v in values])
    pq.write_table(pa.table(columns), path)
